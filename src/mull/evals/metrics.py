"""Accuracies with honest intervals. numpy only.

The unit of evidence is the *problem*: several samples of one problem are correlated, so every interval here treats
a problem as one cluster. Every mean is the mean over problems of each problem's own mean, so that a problem with
more scorable samples does not count for more. A verdict that could not be reached (`Verdict.correct` is None) is
in neither the numerator nor the denominator; it is counted in `Estimate.unscorable`.

Axis letters: P problems, R bootstrap resamples, X points of a curve, N votes, M answers in a problem's pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from mull.types import Verdict

Z95 = 1.959963984540054  # two-sided 95% quantile of the normal distribution
MAX_POOL = 1000  # C(M, N) leaves float64 a little above this

Marks = Sequence[Sequence[bool | None]]  # per problem, per sample: right, wrong, or unscorable


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its 95% interval. With no problem at all the mean is NaN and the interval [0, 1]."""

    mean: float
    low: float
    high: float
    n: int  # problems that the mean is over
    samples: int = 0  # scorable samples behind them
    unscorable: int = 0  # samples that no grader could judge
    left_out: int = 0  # problems without enough scorable samples

    def as_dict(self) -> dict[str, float | int | None]:
        """`{mean, low, high, n}`, JSON-able: a mean over nothing is None."""
        return {"mean": None if math.isnan(self.mean) else self.mean, "low": self.low, "high": self.high, "n": self.n}


# --------------------------------------------------------------------------------------------- intervals


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (JASA 22, 1927). `n` may be an effective, fractional size.

    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # p lies inside by algebra; the clamps keep rounding from saying otherwise at 0 and 1
    return max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p))


def share_interval(mean: float, low: float, high: float, n: int) -> tuple[float, float, float]:
    """(mean, low, high) of a share with a bootstrap's interval; with Wilson's where all of n problems gave 0, or all
    gave 1, and nothing was there to draw.

    >>> [round(x, 3) for x in share_interval(0.0, 0.0, 0.0, 96)], share_interval(0.5, 0.4, 0.7, 96)
    ([0.0, 0.0, 0.038], (0.5, 0.4, 0.7))
    """
    return (mean, *wilson(mean * n, n)) if mean in (0, 1) else (mean, low, high)


def clustered_wilson(values_P: np.ndarray, samples: int) -> tuple[float, float]:
    """A 95% interval for the mean of per-problem values in [0, 1], of which each is a mean of samples.

    Wilson's interval at the effective sample size p(1-p) / Var(mean), the variance taken between problems (Korn and
    Graubard 1998, with Wilson's interval in place of Clopper-Pearson's). The effective size cannot be below the
    number of problems nor above the number of samples; with one sample per problem this is Wilson's interval.
    """
    n = len(values_P)
    if n == 0:
        return 0.0, 1.0
    p = float(values_P.mean())
    effective = float(n)
    if n > 1 and 0 < p < 1:
        variance = float(values_P.var(ddof=1)) / n
        effective = min(max(p * (1 - p) / variance, n), max(samples, n)) if variance > 0 else float(max(samples, n))
    low, high = wilson(min(p * effective, effective), effective)
    return min(low, p), max(high, p)


def resampled_means(values_PX: np.ndarray, seed: int = 0, resamples: int = 2000) -> np.ndarray:
    """Bootstrap over problems: `[R, X]` means, each of P problems drawn with replacement.

    The columns of one resample share its problems, so a difference or slope taken along X is paired. NaN entries
    are left out of their column's mean.
    """
    values_PX = np.asarray(values_PX, dtype=np.float64)
    problems = len(values_PX)
    if problems == 0:
        raise ValueError("no problems to resample")
    rng = np.random.default_rng(seed)
    counts_RP = rng.multinomial(problems, np.full(problems, 1 / problems), size=resamples).astype(np.float64)
    known_PX = np.isfinite(values_PX)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts_RP @ np.where(known_PX, values_PX, 0.0)) / (counts_RP @ known_PX)


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of bootstrap draws, NaN draws left out."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_mean(clusters: Sequence[Sequence[float]], seed: int = 0, resamples: int = 2000) -> Estimate:
    """The mean over problems of each problem's mean, for values of any range (lengths, counts), by bootstrap."""
    means_P = np.array([float(np.mean(c)) for c in clusters if len(c)])
    samples = sum(len(c) for c in clusters)
    if not len(means_P):
        return Estimate(math.nan, 0.0, 1.0, 0, left_out=len(clusters))
    low, high = percentile_interval(resampled_means(means_P[:, None], seed, resamples)[:, 0])
    mean = float(means_P.mean())
    return Estimate(mean, min(low, mean), max(high, mean), len(means_P), samples, left_out=len(clusters) - len(means_P))


# ------------------------------------------------------------------------------------------- accuracies


def share(values_P: Sequence[float], samples: int | None = None, unscorable: int = 0) -> Estimate:
    """The mean of per-problem values in [0, 1] (NaN: left out) with its clustered interval."""
    values = np.asarray(values_P, dtype=np.float64)
    known = values[np.isfinite(values)]
    samples = len(known) if samples is None else samples
    low, high = clustered_wilson(known, samples)
    mean = float(known.mean()) if len(known) else math.nan
    return Estimate(mean, low, high, len(known), samples, unscorable, len(values) - len(known))


def _scored(marks: Sequence[bool | None]) -> list[bool]:
    return [bool(m) for m in marks if m is not None]


def pass_at_1(marks: Marks) -> Estimate:
    """Accuracy of one sample, averaged over the samples of each problem, then over problems."""
    scored = [_scored(m) for m in marks]
    samples = sum(map(len, scored))
    values = [sum(s) / len(s) if s else math.nan for s in scored]
    return share(values, samples, sum(map(len, marks)) - samples)


def pass_at_k_of(n: int, correct: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold a right one: 1 - C(n-c, k) / C(n, k).

    Unbiased for pass@k (Chen et al. 2021, arXiv 2107.03374), as a product of ratios so that no binomial overflows.

    >>> round(pass_at_k_of(4, 1, 2), 12)
    0.5
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} samples with {correct} right")
    if n - correct < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(n - correct + 1, n + 1)))


def pass_at_k(marks: Marks, k: int) -> Estimate:
    """pass@k over problems. It needs the reference, so it bounds what selection could reach; it is no accuracy.

    Problems with fewer than k scorable samples are left out and counted in `left_out`.
    """
    scored = [_scored(m) for m in marks]
    samples = sum(map(len, scored))
    values = [pass_at_k_of(len(s), sum(s), k) if len(s) >= k else math.nan for s in scored]
    return share(values, samples, sum(map(len, marks)) - samples)


def paired_difference(a: Marks, b: Marks, seed: int = 0, resamples: int = 2000) -> Estimate:
    """Mean over problems of (accuracy of b - accuracy of a), two models on the *same* problems in the same order.

    With one sample each this is Bonett and Price's interval for paired proportions (2012): two pseudo-problems, one
    won and one lost, keep it honest when no problem disagrees. With more samples it is a bootstrap over problems
    (and the former where no difference varies). A problem that either model has no scorable sample for is left out.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} problems against {len(b)}: a paired difference needs the same problems")
    pairs = [(_scored(x), _scored(y)) for x, y in zip(a, b, strict=True)]
    kept = [(x, y) for x, y in pairs if x and y]
    samples = sum(len(x) + len(y) for x, y in kept)
    unscorable = sum(map(len, a)) + sum(map(len, b)) - sum(len(x) + len(y) for x, y in pairs)
    left_out = len(pairs) - len(kept)
    if not kept:
        return Estimate(math.nan, -1.0, 1.0, 0, samples, unscorable, left_out)
    deltas_P = np.array([sum(y) / len(y) - sum(x) / len(x) for x, y in kept])
    mean = float(deltas_P.mean())
    if samples == 2 * len(kept) or np.ptp(deltas_P) == 0:
        padded = np.append(deltas_P, [1.0, -1.0])
        half = Z95 * float(padded.std()) / math.sqrt(len(padded))
        low, high = max(-1.0, float(padded.mean()) - half), min(1.0, float(padded.mean()) + half)
    else:
        low, high = percentile_interval(resampled_means(deltas_P[:, None], seed, resamples)[:, 0])
    return Estimate(mean, min(low, mean), max(high, mean), len(kept), samples, unscorable, left_out)


# ----------------------------------------------------------------------------------------- majority vote


def majority_values(pool: Sequence[Verdict], ns: Sequence[int]) -> np.ndarray:
    """Expected accuracy of a majority vote over N of the pool's M answers, for each N: exact, no resampling.

    The expectation runs over all C(M, N) subsets and over fair random tie breaks. Votes count by `Verdict.answer`;
    an answer that is None never wins against another, and N of them choose one of themselves. Where the winner's
    correctness is unknown the draw is left out: the result is conditional on a scorable winner, NaN if there is none.

    For each count t with which a class could win, the ways to draw the others are a polynomial in x (answers drawn)
    and y (classes tied at t); its coefficients for all N come from one product.
    """
    total, top = len(pool), max(ns)
    if not 1 <= min(ns) <= top <= total:
        raise ValueError(f"votes over {min(ns)} to {top} answers need a pool of at least {top}, this one has {total}")
    if total > MAX_POOL:
        raise ValueError(f"a pool of {total} answers is over the limit of {MAX_POOL} for exact vote counting")
    classes: dict[str, list[bool | None]] = {}
    silent: list[bool | None] = []
    for verdict in pool:
        (silent if verdict.answer is None else classes.setdefault(verdict.answer, [])).append(verdict.correct)

    right_N = np.zeros(len(ns))  # probability that the winner is right
    scorable_N = np.ones(len(ns))  # probability that the winner's correctness is known
    sizes = [len(marks) for marks in classes.values()]
    wins: dict[int, np.ndarray] = {}
    for marks in classes.values():
        scored = _scored(marks)
        if scored and not any(scored):
            continue  # a known wrong class adds to neither
        if len(marks) not in wins:
            others = sizes.copy()
            others.remove(len(marks))
            wins[len(marks)] = _win_probability(len(marks), others, len(silent), ns)
        if scored:
            right_N += wins[len(marks)] * (sum(scored) / len(scored))
        else:
            scorable_N -= wins[len(marks)]
    if silent:
        all_silent_N = np.array([math.comb(len(silent), n) / math.comb(total, n) for n in ns])
        right_N += all_silent_N * silent.count(True) / len(silent)
        scorable_N -= all_silent_N * silent.count(None) / len(silent)
    known_N = scorable_N > 1e-9  # rounding leaves dust where the winner is never scorable
    return np.where(known_N, np.clip(right_N / np.where(known_N, scorable_N, 1.0), 0.0, 1.0), np.nan)


def _win_probability(size: int, others: Sequence[int], silent: int, ns: Sequence[int]) -> np.ndarray:
    """The chance, for each N, that a class of `size` answers wins the vote against `others` and `silent` ones."""
    total, top = size + sum(others) + silent, max(ns)
    ways_N = np.zeros(len(ns))
    for t in range(1, min(size, top) + 1):
        rivals = [m for m in others if m >= t]
        free = total - size - sum(rivals)  # too small a class to reach t, or silent: any number may be drawn
        width = top - t + 1  # answers left for the others
        poly_XS = np.zeros((width, (top - t) // t + 1))
        poly_XS[:, 0] = _binomials(free, width)
        for m in rivals:
            c = _binomials(m, t + 1)
            product_XS = np.zeros_like(poly_XS)
            for j in range(min(t, width)):
                product_XS[j:] += c[j] * poly_XS[: width - j]
            if width > t:
                product_XS[t:, 1:] += c[t] * poly_XS[: width - t, :-1]
            poly_XS = product_XS
        ways_X = _binomials(size, t + 1)[t] * (poly_XS / np.arange(1, poly_XS.shape[1] + 1)).sum(1)
        ways_N += [ways_X[n - t] if n >= t else 0.0 for n in ns]
    return ways_N / np.array([float(math.comb(total, n)) for n in ns])


@cache
def _binomials(m: int, width: int) -> np.ndarray:
    row = np.array([float(math.comb(m, j)) for j in range(width)])
    row.flags.writeable = False
    return row


def vote_values(pools: Sequence[Sequence[Verdict]], ns: Sequence[int]) -> np.ndarray:
    """`[P, X]`: `majority_values` of every problem at every N."""
    return np.array([majority_values(pool, ns) for pool in pools]).reshape(len(pools), len(ns))


def majority_vote(pools: Sequence[Sequence[Verdict]], n: int) -> Estimate:
    """Accuracy of a majority vote over n samples, from pools of at least n, with an interval clustered by problem."""
    unscorable = sum(v.correct is None for pool in pools for v in pool)
    samples = sum(map(len, pools)) - unscorable
    return share(vote_values(pools, [n])[:, 0].tolist(), samples, unscorable)
