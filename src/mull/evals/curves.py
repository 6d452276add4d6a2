"""Accuracy against compute: the points of both o1 curves, and the log-linear fit through them.

Compute is what the ledger says that a problem cost: FLOPs and sampled tokens, averaged over problems. A test-time
point at N votes is *expected* accuracy and cost over all ways to draw N samples from the pool, so one pool of 64
samples per problem gives the points at 1, 2, 4 ... 64 without asking the model again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mull.evals import metrics
from mull.types import Cost, Verdict


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point. `flops` and `tokens` are totals of training, or means per problem at test time."""

    flops: float
    tokens: float
    accuracy: float
    low: float
    high: float
    label: str = ""  # what this point is: "step 40", "8 votes", "128 thinking tokens"
    n: int = 0  # problems

    def as_dict(self) -> dict[str, float | int | str | None]:
        """JSON-able: an accuracy over no problems is None."""
        return {**asdict(self), "accuracy": None if math.isnan(self.accuracy) else self.accuracy}


@dataclass(frozen=True, slots=True)
class Graded:
    """One sample of a problem with what it cost. A pool is all samples of one problem, drawn alike."""

    verdict: Verdict
    cost: Cost


Pool = Sequence[Graded]


def point(estimate: metrics.Estimate, flops: float, tokens: float, label: str = "") -> CurvePoint:
    return CurvePoint(flops, tokens, estimate.mean, estimate.low, estimate.high, label, estimate.n)


def powers_of_two(top: int) -> list[int]:
    """1, 2, 4 ... up to `top`, which must be at least 1.

    >>> powers_of_two(20)
    [1, 2, 4, 8, 16]
    """
    if top < 1:
        raise ValueError(f"no power of two is at most {top}")
    return [2**i for i in range(top.bit_length())]


# ------------------------------------------------------------------------------------------------ curves


def votes_curve(
    pools: Sequence[Pool], ns: Sequence[int] | None = None, prompts: Sequence[Cost] | None = None
) -> list[CurvePoint]:
    """Majority vote over N samples; N is each power of two up to the smallest pool unless `ns` says otherwise.

    A point costs N times the mean cost of a sample. `prompts` holds, per problem, what all its samples share (the
    prompt's prefill, which a prefix cache computes once): it is charged once at every N, and must then not be in
    the samples' own costs. The mean runs over all problems and samples, unscorable ones included: they cost as much.
    """
    if not pools or min(map(len, pools)) == 0:
        raise ValueError("a test-time curve needs at least one problem, and a sample of each")
    if prompts is not None and len(prompts) != len(pools):
        raise ValueError(f"{len(prompts)} prompt costs for {len(pools)} problems")
    ns = powers_of_two(min(map(len, pools))) if ns is None else ns
    values_PX, samples, unscorable = vote_table(pools, ns)
    flops, tokens = _mean_cost(pools)
    shared = float(np.mean([c.flops for c in prompts])) if prompts else 0.0
    return [
        point(
            metrics.share(values_PX[:, i].tolist(), samples, unscorable),
            shared + n * flops,
            n * tokens,
            f"{n} vote{'s' if n > 1 else ''}",
        )
        for i, n in enumerate(ns)
    ]


def vote_table(pools: Sequence[Pool], ns: Sequence[int]) -> tuple[np.ndarray, int, int]:
    """`[P, X]` expected vote accuracy per problem and N, with the counts of scorable and unscorable samples."""
    verdicts = [[g.verdict for g in pool] for pool in pools]
    unscorable = sum(v.correct is None for pool in verdicts for v in pool)
    return metrics.vote_values(verdicts, ns), sum(map(len, verdicts)) - unscorable, unscorable


def budget_curve(pools_by_budget: Mapping[int, Sequence[Pool]]) -> list[CurvePoint]:
    """pass@1 at each thinking budget (tokens, with a forced ending), each measured on samples of its own."""
    curve = []
    for budget in sorted(pools_by_budget):
        pools = pools_by_budget[budget]
        estimate = metrics.pass_at_1([[g.verdict.correct for g in pool] for pool in pools])
        curve.append(point(estimate, *_mean_cost(pools), f"{budget} thinking tokens"))
    return curve


def mean_curve(curves: Sequence[Sequence[CurvePoint]]) -> list[CurvePoint]:
    """The unweighted mean of several tasks' curves, point by point; they must have the same labels in the same order.

    Tasks are strata, not a sample of tasks: the variance of the mean is the sum of theirs over their number squared.
    Each side of the interval is combined separately, since an accuracy's interval is lopsided near 0 and 1.
    """
    labels = {tuple(p.label for p in curve) for curve in curves}
    if len(labels) != 1:
        raise ValueError(f"curves with different points have no mean: {sorted(labels)}")
    points = []
    for row in zip(*curves, strict=True):
        k = len(row)
        accuracy = sum(p.accuracy for p in row) / k
        below = math.sqrt(sum((p.accuracy - p.low) ** 2 for p in row)) / k
        above = math.sqrt(sum((p.high - p.accuracy) ** 2 for p in row)) / k
        flops, tokens = sum(p.flops for p in row) / k, sum(p.tokens for p in row) / k
        n = sum(p.n for p in row)
        points.append(CurvePoint(flops, tokens, accuracy, accuracy - below, accuracy + above, row[0].label, n))
    return points


def _mean_cost(pools: Sequence[Pool]) -> tuple[float, float]:
    """(FLOPs, sampled tokens) of one sample: the mean over problems of each problem's mean; no samples: zero."""
    filled = [pool for pool in pools if pool]
    if not filled:
        return 0.0, 0.0
    flops = np.mean([np.mean([g.cost.flops for g in pool]) for pool in filled])
    tokens = np.mean([np.mean([g.cost.sampled_tokens for g in pool]) for pool in filled])
    return float(flops), float(tokens)


# ------------------------------------------------------------------------------------------------- fits


@dataclass(frozen=True, slots=True)
class LogFit:
    """accuracy = a + b * log2(compute): `b` is what a doubling of compute buys, `low` to `high` its 95% interval."""

    a: float
    b: float
    low: float
    high: float
    doublings: float  # of compute, from the first point to the last
    n: int  # problems

    def at(self, compute: float) -> float:
        """The fitted accuracy, kept within [0, 1]."""
        return min(1.0, max(0.0, self.a + self.b * math.log2(compute)))


def doublings(compute: Sequence[float]) -> float:
    """How often compute doubles between the smallest and the largest value.

    >>> doublings([3.0, 12.0, 96.0])
    5.0
    """
    if not compute or min(compute) <= 0:
        raise ValueError("doublings need positive compute")
    return math.log2(max(compute) / min(compute))


def fit_log(compute_X: Sequence[float], values_PX: np.ndarray, seed: int = 0, resamples: int = 2000) -> LogFit:
    """Least squares of accuracy on log2(compute), the interval on the slope by bootstrap over problems.

    `values_PX[p, x]` is problem p's accuracy at compute x (NaN: not scorable). All points of a curve are measured on
    the same problems, so a resample takes whole rows; treating the points as independent would understate or
    overstate the error of the slope, as the noise they share is in the intercept.
    """
    x_X = np.log2(np.asarray(compute_X, dtype=np.float64))
    values_PX = np.asarray(values_PX, dtype=np.float64)
    if values_PX.ndim != 2 or values_PX.shape[1] != len(x_X):
        raise ValueError(f"values of shape {values_PX.shape} for {len(x_X)} points")
    centred_X = x_X - x_X.mean()
    spread = float(centred_X @ centred_X)
    if not np.isfinite(x_X).all() or spread == 0:
        raise ValueError("a slope needs positive compute at two different points at least")
    mean_X = np.nanmean(values_PX, axis=0)
    b = float(centred_X @ mean_X) / spread
    slopes_R = metrics.resampled_means(values_PX, seed, resamples) @ centred_X / spread
    low, high = metrics.percentile_interval(slopes_R)
    a = float(mean_X.mean()) - b * float(x_X.mean())
    return LogFit(a, b, min(low, b), max(high, b), doublings(list(compute_X)), len(values_PX))
