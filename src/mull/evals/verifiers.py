"""How good a scorer is: against the truth of chains and steps, and as what chooses among N of them.

A scorer that knows only which questions are hard ranks chains well over all questions and is of no use within one, so
the AUC is given both ways. Intervals are over problems, as everywhere (`mull.evals.metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mull.evals import selection
from mull.evals.metrics import Estimate, majority_values, percentile_interval, resampled_means, share
from mull.learn.labels import Chain, exact_labels
from mull.search.choose import AGGREGATES, Aggregate, aggregate
from mull.types import Verdict

NO_ANSWER = -1.0  # the score of a chain without an answer: chosen only where there is no other


@dataclass(frozen=True)
class Judged:
    """One problem's chains: verdicts, chains, and a value at each of their steps' ends."""

    verdicts: Sequence[Verdict]
    chains: Sequence[Chain]
    values: Sequence[Sequence[float]]


def auc(scores: Sequence[float], marks: Sequence[bool]) -> float:
    """The chance that a right one has a higher score than a wrong one, ties counting half; NaN without both.

    >>> auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    scores_N, marks_N = np.asarray(scores, np.float64), np.asarray(marks, bool)
    right, wrong = int(marks_N.sum()), int((~marks_N).sum())
    if not right or not wrong:
        return math.nan
    _, place_N, counts_U = np.unique(scores_N, return_inverse=True, return_counts=True)
    rank_U = np.cumsum(counts_U) - (counts_U - 1) / 2  # the mean rank of equal scores
    return float((rank_U[place_N][marks_N].sum() - right * (right + 1) / 2) / (right * wrong))


def auc_over_problems(scores: Sequence[Sequence[float]], marks: Sequence[Sequence[bool]], seed: int = 0) -> Estimate:
    """The AUC over all samples of all problems, with a bootstrap interval over problems."""
    pairs = [(np.asarray(s, np.float64), np.asarray(m, bool)) for s, m in zip(scores, marks, strict=True) if len(s)]
    samples = sum(len(s) for s, _ in pairs)
    if not pairs:
        return Estimate(math.nan, 0.0, 1.0, 0)
    mean = auc(np.concatenate([s for s, _ in pairs]).tolist(), np.concatenate([m for _, m in pairs]).tolist())
    rng, draws = np.random.default_rng(seed), []
    for _ in range(200):
        chosen = rng.integers(0, len(pairs), len(pairs))
        got = [pairs[i] for i in chosen]
        draws.append(auc(np.concatenate([s for s, _ in got]).tolist(), np.concatenate([m for _, m in got]).tolist()))
    low, high = percentile_interval(np.array(draws)) if np.isfinite(draws).any() else (0.0, 1.0)
    return Estimate(mean, low, high, len(pairs), samples)


def auc_within_problems(scores: Sequence[Sequence[float]], marks: Sequence[Sequence[bool]], seed: int = 0) -> Estimate:
    """The mean over problems of each one's own AUC, where it has right and wrong samples."""
    each = [auc(s, m) for s, m in zip(scores, marks, strict=True)]
    known = np.array([a for a in each if math.isfinite(a)])
    if not len(known):
        return Estimate(math.nan, 0.0, 1.0, 0, left_out=len(each))
    low, high = percentile_interval(resampled_means(known[:, None], seed)[:, 0])
    return Estimate(float(known.mean()), low, high, len(known), left_out=len(each) - len(known))


def calibration(scores: Sequence[float], marks: Sequence[bool], bins: int = 10) -> dict[str, Any]:
    """Brier score, expected calibration error over equal-width bins, and per bin (mean score, share right, n)."""
    scores_N, marks_N = np.asarray(scores, np.float64), np.asarray(marks, np.float64)
    if not len(scores_N):
        return {"brier": None, "ece": None, "bins": []}
    bin_N = np.minimum((scores_N * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for b in range(bins):
        inside = bin_N == b
        if inside.any():
            said, was, n = float(scores_N[inside].mean()), float(marks_N[inside].mean()), int(inside.sum())
            rows.append([said, was, n])
            error += abs(said - was) * n / len(scores_N)
    return {"brier": float(((scores_N - marks_N) ** 2).mean()), "ece": error, "bins": rows}


# --------------------------------------------------------------------------------------------- the report


def report(judged: Sequence[Judged], best: Aggregate, n: int, seed: int = 0) -> dict[str, Any]:
    """JSON-able. `best` is the aggregate that suits the scorer; `n` how many chains it chooses among.

    Every pool must hold at least `n` scorable chains to count for the choice; the others are left out and counted.
    """
    finals = [[final(j, i, best) for i in range(len(j.chains))] for j in judged]
    marks = [[bool(v.correct) for v in j.verdicts] for j in judged]
    scores: list[list[float]] = []
    known: list[list[bool]] = []
    for j, said, right in zip(judged, finals, marks, strict=True):
        kept = [i for i, v in enumerate(j.verdicts) if v.correct is not None and j.chains[i].answered]
        scores.append([said[i] for i in kept])
        known.append([right[i] for i in kept])
    flat = [s for row in scores for s in row], [m for row in known for m in row]
    return {
        "auc": auc_over_problems(scores, known, seed).as_dict(),
        "auc_within": auc_within_problems(scores, known, seed).as_dict(),
        **{name: value for name, value in calibration(*flat).items() if name != "bins"},
        "steps": steps_report(judged),
        "choice": choice(judged, best, n, seed),
        "unscorable": sum(v.correct is None for j in judged for v in j.verdicts),
    }


def final(j: Judged, i: int, how: Aggregate) -> float:
    """One number for chain `i`; NaN values count as 0, as in a search."""
    if not j.chains[i].answered:
        return NO_ANSWER
    return aggregate([v if math.isfinite(v) else 0.0 for v in j.values[i]], how)


def steps_report(judged: Sequence[Judged]) -> dict[str, Any]:
    """Values against exact step labels (those up to the first false step), and where the first value below 1/2 stands.

    recall: of the chains with a false step, those with a value below 1/2 anywhere; false_alarms: the same of the
    others; located: of the recalled ones, those whose first such value is at the first false step.
    """
    values, marks, found, alarms, located = [], [], [], [], []
    for j in judged:
        for chain, said in zip(j.chains, j.values, strict=True):
            labels = exact_labels(chain)
            if not labels or len(said) != len(chain.ends):
                continue
            upto = said[: len(labels)]
            values += upto
            marks += [label.value == 1 for label in labels]
            low = next((i for i, v in enumerate(said) if not v >= 0.5), None)
            if labels[-1].value == 1:
                alarms.append(low is not None)
            else:
                found.append(low is not None)
                if low is not None:
                    located.append(low == len(labels) - 1)
    right = [(v >= 0.5) == m for v, m in zip(values, marks, strict=True)]
    return {
        "n": len(values),
        "false": len(marks) - sum(marks),
        "accuracy": _mean(right),
        "auc": _number(auc(values, marks)),
        "recall": _mean(found),
        "false_alarms": _mean(alarms),
        "located": _mean(located),
    }


def choice(judged: Sequence[Judged], best: Aggregate, n: int, seed: int = 0) -> dict[str, Any]:
    """Accuracy of choosing among `n` chains: one at random, a majority vote, the best by each aggregate, a weighted
    vote, and any (the oracle, which no scorer can pass); and the paired difference of best and vote to the majority."""
    rows: dict[str, list[float]] = {}
    left_out = 0
    for j in judged:
        kept = [i for i, v in enumerate(j.verdicts) if v.correct is not None]
        if len(kept) < n:
            left_out += 1
            continue
        verdicts = [j.verdicts[i] for i in kept]
        right_M = np.array([float(bool(v.correct)) for v in verdicts])
        got = {
            "one": float(right_M.mean()),
            "majority": float(majority_values(verdicts, [n])[0]),
            "any": float(selection.draw_weights(len(kept), [n])[0] @ -np.sort(-right_M)),
        }
        forms_M = selection.number_forms([v.answer for v in verdicts])
        for how in AGGREGATES:
            pool = selection.Scored(np.array([final(j, i, how) for i in kept]), right_M, forms_M)
            got[f"best_{how}"] = float(selection.best_of_n(pool, [n])[0][0])
            if how == best:
                positive = selection.Scored(np.maximum(pool.scores_M, 0.0), right_M, forms_M)
                got["weighted_vote"] = float(selection.weighted_vote(positive, [n], seed)[0])
        for name, value in got.items():
            rows.setdefault(name, []).append(value)
    out: dict[str, Any] = {"n": n, "problems": len(judged) - left_out, "left_out": left_out, "aggregate": best}
    for name, values in rows.items():
        out[name] = share(values, len(values), 0).as_dict()
    for name, of in (("best", f"best_{best}"), ("weighted_vote", "weighted_vote")):
        if rows:
            out[f"{name}_minus_majority"] = _difference(rows[of], rows["majority"], seed).as_dict()
    return out


def _difference(a: Sequence[float], b: Sequence[float], seed: int) -> Estimate:
    """Mean of a - b over the same problems, by bootstrap."""
    deltas_P = np.asarray(a) - np.asarray(b)
    low, high = percentile_interval(resampled_means(deltas_P[:, None], seed)[:, 0])
    return Estimate(float(deltas_P.mean()), low, high, len(deltas_P))


def _mean(marks: Sequence[bool]) -> float | None:
    return sum(marks) / len(marks) if marks else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
