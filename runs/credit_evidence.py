"""The measurements and tables of runs/credit.sh.

python runs/credit_evidence.py measure RUN ARM SEED   64 chains for each held-out problem, of one model
python runs/credit_evidence.py table RUN              docs/evidence/credit*.json
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mull.evals import arms, evidence
from mull.files import read_jsonl
from mull.models.nano import shipped_folder

TASK = "chain"
EXPERIMENT = arms.Experiment(
    command="runs/credit.sh",
    base=shipped_folder(),
    arms={
        "base": "base",
        "group": "group mean",
        "ppo": "PPO",
        "vineppo": "VinePPO",
        "potential": "PRM as potential, and outcome",
        "difference": "PRM as differences, and outcome",
        "prime": "PRIME",
        "random": "random rewards",
        "only-difference": "PRM alone, differences",
        "only-sum": "PRM alone, sum",
    },
    splits={"levels 1 and 2": (1, 2), "level 3 (not trained)": (3,)},
    chains=64,
    ks=(1, 4, 16, 64),
    pairs=[(arm, "group") for arm in ("ppo", "vineppo", "potential", "difference", "prime", "random")]
    + [("potential", "ppo")]
    + [(arm, "base") for arm in ("group", "ppo", "vineppo", "potential", "prime", "only-difference", "only-sum")],
)
SCORED = ("potential", "difference", "only-difference", "only-sum")


def hacking(run: Path, first: int = 5, last: int = 5) -> list[dict[str, Any]]:
    """What the scorer thinks of the chains, and what is true of them, at the start and the end of training. Checks are
    counted in the one question of each step whose chains the run keeps."""
    rows = []
    for arm in SCORED:
        label = EXPERIMENT.arms[arm]
        by_seed = [
            [{**r, "checks": checks(p.parent, r["step"])} for r in read_jsonl(p) if r["step"] > 0]
            for p in sorted((run / TASK).glob(f"{arm}-*/metrics.jsonl"))
        ]
        for key, name in (
            ("scorer", "the scorer's opinion"),
            ("truth", "right answers"),
            ("length", "tokens of a chain"),
            ("entropy", "nats of entropy a token"),
            ("checks", "lines that are checks"),
        ):
            for part, when in ((slice(0, first), "first"), (slice(-last, None), "last")):
                found = [[r[key] for r in rows_[part] if r.get(key) is not None] for rows_ in by_seed]
                if not all(found):  # the policy does not learn while the critic warms up, and its entropy is not known
                    continue
                means = [float(np.mean(values)) for values in found]
                claim = f"{label} / {name} / {when} five steps (range over seeds)"
                unit = {"length": "tokens", "entropy": "nats"}.get(key, "share")
                value = (float(np.mean(means)), min(means), max(means))
                rows.append(arms.row(EXPERIMENT, claim, value, len(means), len(means), unit))
    return rows


def checks(run: Path, step: int) -> float | None:
    """The share of a step's lines that check something, true or not; None where nothing was written."""
    rows = read_jsonl(run / "traces" / f"step_{step:06}.jsonl")
    thoughts = [chain["text"].partition("</think>")[0] for row in rows for chain in row["chains"]]
    lines = [line for thought in thoughts for line in thought.split("\n") if line.strip()]
    return sum(line.startswith("check") for line in lines) / len(lines) if lines else None


def main(what: str, run: Path, *more: str) -> None:
    if what == "measure":
        arm, seed = more
        one = replace(EXPERIMENT, arms={arm: EXPERIMENT.arms[arm]})
        arms.measure(one, run, TASK, [int(seed)])
        return
    evidence.write("credit", arms.grid(EXPERIMENT, run, [TASK]))
    evidence.write("credit-compared", arms.differences(EXPERIMENT, run, [TASK]))
    keys = {"total_sampled_tokens": "sampled tokens", "flops": "FLOPs", "step": "steps"}
    evidence.write("credit-spent", arms.spent(EXPERIMENT, run, [TASK], keys))
    evidence.write("credit-hacking", hacking(run))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
