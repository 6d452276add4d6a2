"""The evaluations of several rl runs on the same held-out problems, as arrays: what a scaling law is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mull.errors import UserError
from mull.evals import metrics
from mull.evals.metrics import Estimate
from mull.files import read_jsonl

MEAN = "mean"  # all problems of all tasks


@dataclass(frozen=True)
class Points:
    """Evaluations after training began, X of them over all seeds, and what was measured before.

    `rates_PX[p, x]` is problem p's share of right samples, NaN where no sample could be judged.
    """

    step_X: np.ndarray
    seed_X: np.ndarray  # 0 .. S-1
    compute_X: np.ndarray  # FLOPs of rollouts and training
    rates_PX: np.ndarray
    start_PS: np.ndarray  # before training
    task_P: np.ndarray  # each problem's task

    @property
    def seeds(self) -> int:
        return self.start_PS.shape[1]

    def shown(self) -> list[str]:
        """All tasks together, then each, where there are several."""
        names = list(dict.fromkeys(self.task_P.tolist()))
        return [MEAN, *names] if len(names) > 1 else names

    def where(self, kept_X: np.ndarray) -> Points:
        """The evaluations that a mask keeps."""
        return replace(
            self,
            step_X=self.step_X[kept_X],
            seed_X=self.seed_X[kept_X],
            compute_X=self.compute_X[kept_X],
            rates_PX=self.rates_PX[:, kept_X],
        )

    def rates(self, task: str) -> np.ndarray:
        """`[P, X]` of one task, or of all."""
        return self.rates_PX if task == MEAN else self.rates_PX[self.task_P == task]

    def start(self, task: str) -> np.ndarray:
        return self.start_PS if task == MEAN else self.start_PS[self.task_P == task]

    def between(self, seed: int, compute: float, task: str) -> np.ndarray | None:
        """`[P]`: a seed's rates at `compute`, between its two evaluations around it, on a line in log compute; None
        beyond its last one (and before its first)."""
        mine = np.flatnonzero(self.seed_X == seed)
        mine = mine[np.argsort(self.compute_X[mine])]
        x_X, wanted = np.log(self.compute_X[mine]), np.log(compute)
        after = int(np.searchsorted(x_X, wanted))
        rates_PX = self.rates(task)
        if after < len(x_X) and x_X[after] == wanted:
            return rates_PX[:, mine[after]]
        if not 0 < after < len(x_X):
            return None
        share = (wanted - x_X[after - 1]) / (x_X[after] - x_X[after - 1])
        return (1 - share) * rates_PX[:, mine[after - 1]] + share * rates_PX[:, mine[after]]


def read_points(files: Sequence[Path]) -> Points:
    """From the metrics of one rl run per seed. UserError where an evaluation lacks what a law needs, or where two
    runs were evaluated on different problems."""
    steps: list[int] = []
    seeds: list[int] = []
    compute: list[float] = []
    rates: list[list[float]] = []
    start: list[list[float]] = []
    problems: list[tuple[str, str]] | None = None
    for seed, file in enumerate(files):
        rows = [row for row in read_jsonl(file) if row.get("eval")]
        if not rows or rows[0]["step"] != 0:
            raise UserError(f"{file} has no evaluation before training: start again in another folder")
        for row in rows:
            ids, values = _rates(row, file)
            if problems is not None and ids != problems:
                raise UserError(f"{file}, step {row['step']}, was evaluated on other problems than {files[0]}")
            problems = ids
            if row["step"] == 0:
                start.append(values)
            else:
                steps.append(row["step"])
                seeds.append(seed)
                compute.append(row["flops"])
                rates.append(values)
    ids = problems or []
    return Points(
        np.array(steps),
        np.array(seeds),
        np.array(compute, dtype=np.float64),
        np.array(rates, dtype=np.float64).reshape(len(rates), len(ids)).T,
        np.array(start, dtype=np.float64).T,
        np.array([task for task, _ in ids]),
    )


def _rates(row: dict[str, Any], file: Path) -> tuple[list[tuple[str, str]], list[float]]:
    """((task, question id), rate) of every problem of one evaluation."""
    found = row["eval"].get("rates")
    if found is None:
        raise UserError(f"{file}, step {row['step']}, has no rates of single problems: it is from an older version")
    pairs = [((task, name), rate) for task, by_id in found.items() for name, rate in by_id.items()]
    return [key for key, _ in pairs], [np.nan if rate is None else rate for _, rate in pairs]


# ------------------------------------------------------------------------------------------ the held-out half


def found_at(points: Points, compute: float, task: str, samples: int) -> Estimate | None:
    """The mean accuracy of the seeds at `compute`, each between its two evaluations around it on a line in log
    compute; None when a seed has not got so far."""
    rates = [points.between(s, compute, task) for s in range(points.seeds)]
    reached = [r for r in rates if r is not None]
    if len(reached) < len(rates):
        return None
    rates_PS = np.stack(reached, axis=1)
    known_P = np.isfinite(rates_PS).any(axis=1)
    mean_P = np.full(len(rates_PS), np.nan)
    mean_P[known_P] = np.nanmean(rates_PS[known_P], axis=1)
    return metrics.share(mean_P.tolist(), int(known_P.sum()) * samples * points.seeds)


def held_out_errors(
    second: Points, laws: Sequence[dict[str, Any]], seed: int = 0, resamples: int = 1000
) -> list[dict[str, Any]]:
    """How far each published law lies from the evaluations of the second half: root mean square, and mean (found
    minus predicted) with its interval by bootstrap over problems. All seeds' evaluations count alike."""
    rows = []
    for one in laws if len(second.compute_X) else ():
        value_X = on_curve(one["curve"], second.compute_X)
        rates_PX = second.rates(one["task"])
        off_X = np.nanmean(rates_PX, axis=0) - value_X
        low, high = metrics.percentile_interval(
            metrics.resampled_means(rates_PX, seed, resamples).mean(1) - value_X.mean()
        )
        mean = float(off_X.mean())
        rows.append(
            {
                "task": one["task"],
                "law": one["law"],
                "rms": float(np.sqrt((off_X**2).mean())),
                "off": {"mean": mean, "low": min(low, mean), "high": max(high, mean), "n": len(rates_PX)},
                "evaluations": len(off_X),
            }
        )
    return rows


def on_curve(curve: Sequence[dict[str, float]], compute_X: np.ndarray) -> np.ndarray:
    """A published curve's values: its points are so close that a line between two of them is the law."""
    known = np.log([p["compute"] for p in curve])
    return np.interp(np.log(compute_X), known, [p["value"] for p in curve])
