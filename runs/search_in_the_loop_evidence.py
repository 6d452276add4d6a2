"""The measurements and tables of runs/search_in_the_loop.sh.

python runs/search_in_the_loop_evidence.py measure RUN TASK SEED…   64 chains for each held-out problem, every model
python runs/search_in_the_loop_evidence.py table RUN                docs/evidence/search-in-the-loop*.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from mull.evals import arms, evidence
from mull.models.nano import shipped_folder

TASKS = ("chain", "countdown")
METHODS = {"sft": "imitation", "dpo": "preferences", "both": "both"}
EXPERIMENT = arms.Experiment(
    command="runs/search_in_the_loop.sh",
    base=shipped_folder(),
    arms={
        "base": "base",
        **{f"mcts-{m}": f"{label} of MCTS" for m, label in METHODS.items()},
        **{f"plain-{m}": f"{label} of plain chains" for m, label in METHODS.items()},
    },
    splits={"levels 1 and 2": (1, 2), "level 3 (not trained)": (3,)},
    pairs=[(f"mcts-{m}", f"plain-{m}") for m in METHODS] + [(f"mcts-{m}", "base") for m in METHODS],
    problems=200,
    chains=64,
    ks=(1, 4, 16, 64),
)


def main(what: str, run: Path, *more: str) -> None:
    if what == "measure":
        task, *seeds = more
        arms.measure(EXPERIMENT, run, task, map(int, seeds))
        return
    evidence.write("search-in-the-loop", arms.grid(EXPERIMENT, run, TASKS))
    evidence.write("search-in-the-loop-compared", arms.differences(EXPERIMENT, run, TASKS))
    keys = {"trained_tokens": "trained tokens", "search_flops": "FLOPs of the search", "flops": "FLOPs of learning"}
    evidence.write("search-in-the-loop-spent", arms.spent(EXPERIMENT, run, TASKS, keys))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
