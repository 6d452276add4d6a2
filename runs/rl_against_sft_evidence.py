"""The measurements and tables of runs/rl_against_sft.sh.

python runs/rl_against_sft_evidence.py measure RUN TASK SEED…   256 chains for each held-out problem, every model
python runs/rl_against_sft_evidence.py table RUN                docs/evidence/rl-against-sft*.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from mull.evals import arms, evidence
from mull.models.nano import shipped_folder

TASKS = ("chain", "countdown")
EXPERIMENT = arms.Experiment(
    command="runs/rl_against_sft.sh",
    base=shipped_folder(),
    arms={
        "base": "base",
        "sft": "SFT on the solver's solutions",
        "rl": "RL on its own chains",
        "expert": "SFT on its own verified chains",
        "random": "RL on random rewards",
    },
    splits={"levels 1 and 2": (1, 2), "level 3 (not trained)": (3,)},
    pairs=[("rl", "sft"), ("rl", "expert"), ("rl", "base"), ("sft", "base"), ("random", "base")],
)


def main(what: str, run: Path, *more: str) -> None:
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
