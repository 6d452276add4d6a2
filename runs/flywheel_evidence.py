"""The tables of runs/flywheel.sh. Nothing is measured here: every turn has left its marks on valid and test problems.

python runs/flywheel_evidence.py RUN    docs/evidence/flywheel*.json
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mull import config as configs
from mull.evals import evidence
from mull.evals.metrics import Marks, percentile_interval
from mull.recipes import flywheel_rule as rule
from mull.recipes.flywheel import FlywheelConfig
from mull.recipes.flywheel_data import read, turn_file
from mull.recipes.flywheel_rule import Turn

COMMAND = "runs/flywheel.sh"
ARMS = {"loop": "the loop", "coin": "the loop, verdicts by chance", "once": "one turn, all questions"}
PATIENCE = (1, 2, 3)
SET = 2  # the default when these runs were made; what they showed has made it 3
Interval = tuple[float, float, float]  # value, low, high


@dataclass
class Run:
    """What one `mull flywheel` has left."""

    seed: int
    cfg: FlywheelConfig
    turns: list[dict[str, Any]]  # of report.json; the base first
    history: list[Turn]  # what the rule knew
    rates: list[np.ndarray]  # of each turn's model, on the test problems: share of right answers [P], NaN if not judged

    @property
    def last(self) -> int:
        return len(self.rates) - 1


def read_run(folder: Path) -> Run:
    report = read(folder / "report.json")
    cfg = configs.load(FlywheelConfig, folder / "config.toml")
    turns = [row for row in report["turns"] if "valid" in row]  # the last may have found nothing to learn from
    marks = [[read(turn_file(folder, n, f"{name}.json")) for n in range(len(turns))] for name in ("valid", "test")]
    history = [Turn(n, marks[0][n], row["spent_flops"]) for n, row in enumerate(turns)]
    return Run(cfg.seed, cfg, turns, history, [rates_of(m) for m in marks[1]])


def rates_of(marks: Marks) -> np.ndarray:
    known = [[m for m in row if m is not None] for row in marks]
    return np.array([sum(row) / len(row) if row else math.nan for row in known])


def read_runs(run: Path) -> dict[str, dict[str, list[Run]]]:
    """By task and arm, the seeds in order."""
    out: dict[str, dict[str, list[Run]]] = {}
    for folder in sorted(run.glob("*/*-*/report.json")):
        task, arm = folder.parent.parent.name, folder.parent.name.rpartition("-")[0]
        out.setdefault(task, {}).setdefault(arm, []).append(read_run(folder.parent))
    by_seed = {
        task: {arm: sorted(runs, key=lambda r: r.seed) for arm, runs in arms.items()} for task, arms in out.items()
    }
    return {task: {arm: arms[arm] for arm in ARMS if arm in arms} for task, arms in by_seed.items()}


# ------------------------------------------------------------------------------------------------- the rule


def stop_of(run: Run, patience: int) -> int | None:
    """After which turn the rule would have ended the run; None: not within its turns."""
    for n in range(1, len(run.history)):
        if rule.stopped(run.history[: n + 1], run.cfg.threshold, run.cfg.evidence, patience, len(run.history)):
            return n
    return None


def ended(run: Run, patience: int) -> int:
    """The last turn of the run, had it had that patience."""
    found = stop_of(run, patience)
    return run.last if found is None else found


def chosen(run: Run, end: int) -> int:
    """The turn whose model would have been the result, had `end` been the last one."""
    return rule.best_of(run.history[: end + 1])


def doublings(run: Run, start: int, end: int) -> float:
    """Of compute, between the ends of two turns."""
    return 0.0 if start == end else math.log2(run.history[end].flops / run.history[start].flops)


# ------------------------------------------------------------------------------------------------- intervals


def interval(by_seed: Sequence[np.ndarray], resamples: int = 2000) -> Interval:
    """The mean, by bootstrap over seeds and over the problems of each, which are its own."""
    values = [v[np.isfinite(v)] for v in by_seed]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        some = rng.integers(0, len(values), len(values))
        draws.append(np.mean([rng.choice(values[s], len(values[s])).mean() for s in some]))
    mean = float(np.mean([v.mean() for v in values]))
    low, high = percentile_interval(np.array(draws))
    return mean, min(low, mean), max(high, mean)


def spread(values: Sequence[float]) -> Interval:
    """The mean over seeds, and their range."""
    mean = float(np.mean(values))
    return mean, min(*values, mean), max(*values, mean)


def row(claim: str, value: Interval, runs: Sequence[Run], unit: str = "share", n: int | None = None) -> dict[str, Any]:
    """`n`: problems of all seeds, unless it is something else."""
    problems = sum(len(run.rates[0]) for run in runs)
    return {
        **{"claim": claim, "value": value[0], "low": value[1], "high": value[2], "n": problems if n is None else n},
        **{"seeds": [run.seed for run in runs], "unit": unit, "command": COMMAND},
    }


# ------------------------------------------------------------------------------------------------- the tables


def by_turn(block: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What each turn asked, learnt and cost, and what its model can."""
    rows = []
    for n in range(min(run.last for run in runs) + 1):
        name = f"{block} / {f'turn {n}' if n else 'base'}"
        rows.append(row(f"{name} / test", interval([run.rates[n] for run in runs]), runs))
        if n == 0:
            continue
        gain = interval([run.rates[n] - run.rates[n - 1] for run in runs])
        rows.append(row(f"{name} / gain", gain, runs, "points"))
        counts: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
            "asked": ("questions", lambda t: t["asked"]["new"] + t["asked"]["again"]),
            "right of the sampled": ("share", lambda t: t["asked"]["right"] / max(t["asked"]["chains"], 1)),
            "learnt": ("chains", lambda t: t["learnt"]["lessons"]),
            "spent so far": ("TFLOPs", lambda t: t["spent_flops"] / 1e12),
        }
        for column, (unit, of) in counts.items():
            values = spread([float(of(run.turns[n])) for run in runs])
            rows.append(row(f"{name} / {column}", values, runs, unit, len(runs)))
    return rows


def by_patience(task: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Where the rule stops, and what going on to the last turn would have brought and cost, for several patiences; and
    for the one that was set before the runs, by seed."""
    lines = [(f"patience {p}" + (" (set before the runs)" if p == SET else ""), p, list(runs)) for p in PATIENCE]
    lines += [(f"seed {run.seed}, patience {SET}", SET, [run]) for run in runs]
    rows = []
    for label, patience, some in lines:
        ends = [ended(run, patience) for run in some]
        picked = [chosen(run, end) for run, end in zip(some, ends, strict=True)]
        finals = [chosen(run, run.last) for run in some]
        name = f"{task}, the rule / {label}"
        in_time = sum(stop_of(run, patience) is not None for run in some)
        rows.append(row(f"{name} / stopped", (in_time, in_time, in_time), some, f"of {len(some)}", len(some)))
        rows.append(row(f"{name} / after turn", spread([float(end) for end in ends]), some, "turns", len(some)))
        here = interval([run.rates[p] for run, p in zip(some, picked, strict=True)])
        rows.append(row(f"{name} / test of its model", here, some))
        more = [run.rates[f] - run.rates[p] for run, f, p in zip(some, finals, picked, strict=True)]
        rows.append(row(f"{name} / going on brings", interval(more), some, "points"))
        costs = [doublings(run, end, run.last) for run, end in zip(some, ends, strict=True)]
        rows.append(row(f"{name} / at a cost of", spread(costs), some, "doublings", len(some)))
        if min(costs) > 0:
            each = interval([gain / cost for gain, cost in zip(more, costs, strict=True)])
            rows.append(row(f"{name} / each doubling", each, some, "points"))
    return rows


def differences(task: str, arms: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """On the test problems, paired by problem: arms of one seed have the same."""
    stopped = [run.rates[chosen(run, ended(run, SET))] for run in arms["loop"]]
    final = [run.rates[run.last] for run in arms["loop"]]
    base = [run.rates[0] for run in arms["loop"]]
    pairs = [("where the rule stopped the loop, minus the base", stopped, base)]
    if "once" in arms:
        once = [run.rates[run.last] for run in arms["once"]]
        pairs += [
            ("one turn with all questions, minus the base", once, base),
            ("the loop's last turn minus one turn with all questions", final, once),
            ("where the rule stopped the loop, minus one turn with all questions", stopped, once),
        ]
        limit = sum(run.turns[-1]["spent_flops"] for run in arms["once"])
        turns = range(1, min(run.last for run in arms["loop"]) + 1)
        if n := max((t for t in turns if sum(r.turns[t]["spent_flops"] for r in arms["loop"]) <= limit), default=0):
            claim = f"turn {n} of the loop, the last at no more compute, minus one turn with all questions"
            pairs.append((claim, [run.rates[n] for run in arms["loop"]], once))
    if "coin" in arms:
        n = min(run.last for arm in ("coin", "loop") for run in arms[arm])
        coin, loop = ([run.rates[n] for run in arms[arm]] for arm in ("coin", "loop"))
        pairs += [
            (f"turn {n} of the loop with verdicts by chance, minus the base", coin, base),
            (f"turn {n} of the loop, minus the same with verdicts by chance", loop, coin),
        ]
    return [
        row(f"{task}: {claim}", interval([a - b for a, b in zip(one, other, strict=True)]), arms["loop"], "points")
        for claim, one, other in pairs
    ]


def spent(task: str, arms: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """What an arm cost, sampling and training; the loop up to its last turn, and up to where the rule stopped it."""
    ends = {ARMS[arm]: (runs, [run.last for run in runs]) for arm, runs in arms.items()}
    ends["the loop, up to where the rule stopped it"] = (arms["loop"], [ended(run, SET) for run in arms["loop"]])
    columns: dict[str, tuple[str, Callable[[list[dict[str, Any]]], float]]] = {
        "sampled": ("tokens", lambda turns: sum(t["tokens"]["sampled"] for t in turns)),
        "trained": ("tokens", lambda turns: sum(t["tokens"]["trained"] for t in turns)),
        "both": ("TFLOPs", lambda turns: turns[-1]["spent_flops"] / 1e12),
    }
    rows = []
    for label, (runs, until) in ends.items():
        for column, (unit, of) in columns.items():
            values = spread([float(of(run.turns[: end + 1])) for run, end in zip(runs, until, strict=True)])
            rows.append(row(f"{task}, what it cost / {label} / {column}", values, runs, unit, len(runs)))
    return rows


def data(task: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What curation kept of all right chains so far, and how the questions asked so far fare."""
    reasons = {
        "kept": "kept",
        "equal chain": "equal",
        "near duplicate": "near duplicates",
        "more than asked for": "more",
    }
    rows = []
    for n in range(1, min(run.last for run in runs) + 1):
        name = f"{task}, right chains so far / turn {n}"
        turns = [run.turns[n] for run in runs]
        for reason, column in reasons.items():
            shares = [t["curated"].get(reason, 0) / max(sum(t["curated"].get(r, 0) for r in reasons), 1) for t in turns]
            rows.append(row(f"{name} / {column}", spread(shares), runs, "share", len(runs)))
        for standing, column in (("solved", "questions solved"), ("never", "questions never solved")):
            shares = [s[standing] / max(sum(s.values()), 1) for s in (t["pass_rates"]["standing"] for t in turns)]
            rows.append(row(f"{name} / {column}", spread(shares), runs, "share", len(runs)))
        found = [float(len(t["contaminated"])) for t in turns]
        rows.append(row(f"{name} / contaminated", spread(found), runs, "questions", len(runs)))
    return rows


def main(run: Path) -> None:
    found = read_runs(run)
    blocks = [(f"{task}, {ARMS[arm]}", runs) for task, arms in found.items() for arm, runs in arms.items()]
    evidence.write("flywheel", [r for block, runs in blocks for r in by_turn(block, runs)])
    evidence.write("flywheel-rule", [r for task, arms in found.items() for r in by_patience(task, arms["loop"])])
    evidence.write("flywheel-compared", [r for task, arms in found.items() for r in differences(task, arms)])
    evidence.write("flywheel-spent", [r for task, arms in found.items() for r in spent(task, arms)])
    evidence.write("flywheel-data", [r for task, arms in found.items() for r in data(task, arms["loop"])])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
