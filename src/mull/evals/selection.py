"""What a selector makes of N samples, in expectation: best of N by score, weighted votes, and how they over-optimise.

A pool is all samples of one problem, each with its verdict and a score. One pool of M samples gives the accuracy at
every N up to M: best-of-N exactly, over all ways to draw N of M; a weighted vote by random draws, as its value has no
closed form (prm800k subsamples in the same way).

Axis letters: P problems, M samples of a pool, X values of N, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Scored:
    """One problem's pool. `forms_M` numbers the canonical answers, -1 for one that cannot be read."""

    scores_M: np.ndarray  # float64, higher is better
    correct_M: np.ndarray  # float64: 1, 0; unscorable samples are left out before
    forms_M: np.ndarray  # int64


def draw_weights(m: int, ns: Sequence[int]) -> np.ndarray:
    """`[X, M]`: the chance that the item of rank r (0: the best of m) is the best of N drawn without replacement.

    C(m-1-r, N-1) / C(m, N), built up as a product of ratios so that no binomial overflows.

    >>> draw_weights(3, [1, 2]).round(3).tolist()
    [[0.333, 0.333, 0.333], [0.667, 0.333, 0.0]]
    """
    weights_XM = np.zeros((len(ns), m))
    for x, n in enumerate(ns):
        if not 1 <= n <= m:
            raise ValueError(f"best of {n} from a pool of {m}")
        chance = n / m  # of rank 0
        for rank in range(m - n + 1):
            weights_XM[x, rank] = chance
            if m - 1 - rank > 0:
                chance *= (m - rank - n) / (m - 1 - rank)
    return weights_XM


def best_of_n(pool: Scored, ns: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(accuracy [X], score [X]) of the best of N by score, in expectation. Equal scores are drawn among at random."""
    m = len(pool.scores_M)
    order_M = np.argsort(-pool.scores_M, kind="stable")
    scores_M, correct_M = pool.scores_M[order_M], pool.correct_M[order_M].astype(np.float64)
    # Within a run of equal scores every order is as likely: each member stands for the run's mean.
    starts = np.flatnonzero(np.r_[True, scores_M[1:] != scores_M[:-1]])
    sizes = np.diff(np.r_[starts, m])
    correct_M = np.repeat(np.add.reduceat(correct_M, starts) / sizes, sizes)
    weights_XM = draw_weights(m, ns)
    return weights_XM @ correct_M, weights_XM @ scores_M


def weighted_vote(pool: Scored, ns: Sequence[int], seed: int = 0, draws: int = 100) -> np.ndarray:
    """`[X]` accuracy of the answer whose scores sum highest among N samples, over `draws` random subsets of each size.

    At N = M the one subset is enough. Unreadable answers do not vote; a subset without a vote is wrong. Equal sums go
    to the form of the lower number.
    """
    m = len(pool.scores_M)
    rng = np.random.default_rng(seed)
    forms = int(pool.forms_M.max(initial=-1)) + 1
    right_F = np.zeros(max(forms, 1))
    right_F[pool.forms_M[pool.forms_M >= 0]] = pool.correct_M[pool.forms_M >= 0]
    out_X = np.zeros(len(ns))
    for x, n in enumerate(ns):
        if forms == 0:
            continue
        many = 1 if n == m else draws
        rows_DN = rng.random((many, m)).argsort(axis=1)[:, :n]
        sums_DF = np.zeros((many, forms))
        forms_DN, scores_DN = pool.forms_M[rows_DN], pool.scores_M[rows_DN]
        draw_DN = np.broadcast_to(np.arange(many)[:, None], forms_DN.shape)
        voting_DN = forms_DN >= 0
        np.add.at(sums_DF, (draw_DN[voting_DN], forms_DN[voting_DN]), scores_DN[voting_DN])
        votes_D = sums_DF.max(axis=1) > 0
        out_X[x] = float(np.mean(np.where(votes_D, right_F[sums_DF.argmax(axis=1)], 0.0)))
    return out_X


def number_forms(forms: Sequence[str | None]) -> np.ndarray:
    """Canonical forms as numbers in order of appearance, -1 for None.

    >>> number_forms(["7", None, "8", "7"]).tolist()
    [0, -1, 1, 0]
    """
    known: dict[str, int] = {}
    return np.array([-1 if f is None else known.setdefault(f, len(known)) for f in forms], dtype=np.int64)


def over_optimised(accuracy_X: np.ndarray, ns: Sequence[int]) -> int | None:
    """The N from which more samples make the choice worse: where accuracy peaks, if that is before the last N."""
    peak = int(np.argmax(accuracy_X))
    return None if peak == len(ns) - 1 else int(ns[peak])
