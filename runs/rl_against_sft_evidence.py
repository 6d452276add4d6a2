"""The measurements and tables of runs/rl_against_sft.sh.

python runs/rl_against_sft_evidence.py choose RUN TASK LR…      the learning rate of SFT that is best on valid problems
python runs/rl_against_sft_evidence.py measure RUN TASK SEED…   256 chains for each held-out problem, every model
python runs/rl_against_sft_evidence.py table RUN                docs/evidence/rl-against-sft*.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mull.evals import arms, evidence
from mull.files import write_whole
from mull.models.nano import shipped_folder

TASKS = ("chain", "countdown")
EXPERIMENT = arms.Experiment(
    command="runs/rl_against_sft.sh",
    base=shipped_folder(),
    arms={
        "base": "base",
        "sft": "SFT on the solver's solutions",
        "gentle": "SFT on the solver's solutions, RL's rate",
        "rl": "RL on its own chains",
        "expert": "SFT on its own verified chains",
        "random": "RL on random rewards",
    },
    splits={"levels 1 and 2": (1, 2), "level 3 (not trained)": (3,)},
    problems=64,
    pairs=[("rl", "sft"), ("rl", "gentle"), ("rl", "expert"), ("rl", "base"), ("sft", "base"), ("random", "base")],
)


def choose(run: Path, task: str, rates: Sequence[str]) -> str:
    """The rate whose model (RUN/TASK/sweep-RATE) is right most often on valid problems; measured once."""
    path = run / task / "sweep.json"
    found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    small = replace(EXPERIMENT, chains=16)
    for rate in rates:
        if rate not in found:
            rows = arms.counts(small, run / task / f"sweep-{rate}" / "model", task, (1, 2), split="valid")
            found[rate] = sum(r["right"] for r in rows) / sum(r["n"] for r in rows)
            write_whole(path, json.dumps(found).encode())
    return max(rates, key=found.__getitem__)


def main(what: str, run: Path, *more: str) -> None:
    if what == "choose":
        task, *rates = more
        print(choose(run, task, rates))
        return
    if what == "measure":
        task, *seeds = more
        arms.measure(EXPERIMENT, run, task, map(int, seeds))
        return
    evidence.write("rl-against-sft", arms.grid(EXPERIMENT, run, TASKS))
    evidence.write("rl-against-sft-compared", arms.differences(EXPERIMENT, run, TASKS))
    keys = {"trained_tokens": "tokens", "flops": "FLOPs"}
    evidence.write("rl-against-sft-spent", arms.spent(EXPERIMENT, run, TASKS, keys))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
