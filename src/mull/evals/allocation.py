"""From measured outcomes to plans: which strategy pays for which difficulty, at every price of compute.

A price per FLOP turns "accuracy for compute" into one number, accuracy - price * FLOPs; at each price every difficulty
bin takes the plan that is best for it. Sweeping the price gives the frontier. What calibration expects of a point is
cross-validated over problems: plans and bins from one half, their accuracy on the other (Snell et al. 2408.03314 do
the same), so that the best of many noisy candidates is not taken at its word.

Axis letters: R rows (a problem with one draw of probes), C candidate plans, B bins, P problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mull.search.difficulty import bin_of, quantile_edges

PRIOR = 8.0  # problems' worth of the candidate's overall mean that each bin's mean is mixed with


@dataclass(frozen=True)
class Outcomes:
    """What every candidate plan made of every problem, for several draws of the probes."""

    problem_R: np.ndarray  # int64
    feature_RF: np.ndarray  # float64, one column for each feature
    accuracy_RC: np.ndarray  # float64 in [0, 1]
    flops_RC: np.ndarray  # float64, probes included

    def rows(self, keep_R: np.ndarray) -> Outcomes:
        return Outcomes(
            self.problem_R[keep_R], self.feature_RF[keep_R], self.accuracy_RC[keep_R], self.flops_RC[keep_R]
        )


def best_feature(outcomes: Outcomes, rate_R: np.ndarray) -> int:
    """The feature whose ranks agree most with the pass rate of the problem (Spearman, either sign)."""
    return int(np.argmax([abs(spearman(column, rate_R)) for column in outcomes.feature_RF.T]))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation with mean ranks for ties; 0 where one of them does not vary.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0]))
    1.0
    """
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1].round(12))


def _ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def choose(outcomes: Outcomes, feature: int, edges: Sequence[float], price: float) -> tuple[int, ...]:
    """The best candidate of each bin at a price (accuracy per FLOP)."""
    bins_R = np.array([bin_of(v, edges) for v in outcomes.feature_RF[:, feature]])
    overall_C = outcomes.accuracy_RC.mean(axis=0)
    picked = []
    for b in range(len(edges) + 1):
        inside_R = bins_R == b
        if not inside_R.any():
            picked.append(int(np.argmax(overall_C - price * outcomes.flops_RC.mean(axis=0))))
            continue
        n = len(np.unique(outcomes.problem_R[inside_R]))
        accuracy_C = (n * outcomes.accuracy_RC[inside_R].mean(axis=0) + PRIOR * overall_C) / (n + PRIOR)
        picked.append(int(np.argmax(accuracy_C - price * outcomes.flops_RC[inside_R].mean(axis=0))))
    return tuple(picked)


def apply(
    outcomes: Outcomes, feature: int, edges: Sequence[float], picked: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(accuracy, FLOPs) of every row under the plans picked for the bins."""
    plan_R = np.array([picked[bin_of(v, edges)] for v in outcomes.feature_RF[:, feature]])
    rows_R = np.arange(len(plan_R))
    return outcomes.accuracy_RC[rows_R, plan_R], outcomes.flops_RC[rows_R, plan_R]


def prices(outcomes: Outcomes, many: int = 40) -> np.ndarray:
    """From "compute is free" to "only the cheapest plan", in even steps of the logarithm."""
    dearest = 1.0 / float(outcomes.flops_RC.mean(axis=0).min())
    return np.r_[0.0, np.geomspace(dearest * 1e-4, dearest, many - 1)]


@dataclass(frozen=True)
class Spent:
    """A point of the frontier: the candidate of each bin, with its cross-validated mean accuracy and FLOPs."""

    picked: tuple[int, ...]
    accuracy: float
    flops: float


def frontier(outcomes: Outcomes, feature: int, bins: int, seed: int = 0) -> tuple[tuple[float, ...], list[Spent]]:
    """(edges between bins, points by ascending FLOPs): plans from all problems, expectations from two folds."""
    edges = tuple(quantile_edges(outcomes.feature_RF[:, feature].tolist(), bins))
    problems = np.unique(outcomes.problem_R)
    half_P = np.random.default_rng(seed).permutation(len(problems)) % 2
    fold_R = half_P[np.searchsorted(problems, outcomes.problem_R)]
    points: dict[tuple[int, ...], Spent] = {}
    for price in prices(outcomes):
        picked = choose(outcomes, feature, edges, price)
        accuracy, flops = [], []
        for fold in (0, 1):
            learnt = choose(outcomes.rows(fold_R != fold), feature, edges, price)
            a_R, f_R = apply(outcomes.rows(fold_R == fold), feature, edges, learnt)
            accuracy.append(a_R)
            flops.append(f_R)
        points.setdefault(
            picked, Spent(picked, float(np.concatenate(accuracy).mean()), float(np.concatenate(flops).mean()))
        )
    kept: list[Spent] = []
    for spent in sorted(points.values(), key=lambda s: (s.flops, -s.accuracy)):
        if not kept or spent.accuracy > kept[-1].accuracy:  # nothing that costs more and gives less
            kept.append(spent)
    return edges, kept
