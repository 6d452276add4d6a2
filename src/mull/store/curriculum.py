"""Which questions to ask next, by how often they were answered rightly. A pure function of counts and a generator.

A question that is always answered rightly, or never, teaches nothing: under a group baseline its gradient is zero, and
the variance of one verdict is p (1 - p). What is known of p is a Beta distribution, uniform before the first verdict,
so a question that was never asked is worth trying, and one that was asked once is not yet given up.

Sources: the choice by p (1 - p) is sampling for learnability (Rutherford et al. 2408.15099; for reasoning Foster et al.
2502.12272), here with its expectation over the posterior in place of a point estimate, and for any target.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mull.errors import UserError
from mull.store.catalogue import Count

Standing = Literal["open", "solved", "never"]


@dataclass(frozen=True, slots=True)
class Curriculum:
    """How to choose. Shares are of what is asked."""

    target: float = 0.5  # pass rate that is worth most
    sharpness: float = 2.0  # how fast the worth falls off beside the target; 0: not at all
    solved: float = 0.9  # pass rate from which a question counts as solved
    evidence: int = 8  # verdicts before a question can count as solved, or as never solved
    solved_share: float = 0.05  # of solved ones, so that forgetting is noticed
    never_share: float = 0.1  # of never-solved ones, which a better policy may solve

    def __post_init__(self) -> None:
        if not (0 < self.target < 1 and 0 < self.solved <= 1 and self.sharpness >= 0 and self.evidence >= 1):
            raise UserError(
                f"target={self.target}, solved={self.solved}, sharpness={self.sharpness}, evidence={self.evidence}: "
                "a target lies between 0 and 1, solved above 0 up to 1, sharpness is not negative, evidence at least 1"
            )
        if not (self.solved_share >= 0 and self.never_share >= 0 and self.solved_share + self.never_share <= 1):
            raise UserError(
                f"solved_share={self.solved_share} and never_share={self.never_share}: give two shares of one whole"
            )

    def standing(self, count: Count) -> Standing:
        if count.judged < self.evidence:
            return "open"
        return "solved" if count.right >= self.solved * count.judged else "never" if count.right == 0 else "open"

    def worth(self, count: Count) -> float:
        """E[p^(s t) (1 - p)^(s (1 - t))] over the posterior Beta(right + 1, wrong + 1), as a share of its value at the
        target t; s is the sharpness. With t = 1/2 and s = 2 it is 4 E[p (1 - p)]: 2/3 for a question never asked."""
        a, b = count.right + 1.0, count.judged - count.right + 1.0
        up, down = self.sharpness * self.target, self.sharpness * (1 - self.target)
        peak = up * math.log(self.target) + down * math.log(1 - self.target)
        return math.exp(_log_beta(a + up, b + down) - _log_beta(a, b) - peak)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def choose(
    counts: Mapping[str, Count],
    n: int,
    rng: random.Random,
    plan: Curriculum = Curriculum(),
) -> list[str]:
    """Up to `n` different question ids to ask next, in random order.

    Questions that were never asked are in `counts` with `Count(0, 0)`. Solved and never-solved ones get at most their
    shares (rounded up or down at random, so that the share holds on average for small `n`); the rest is drawn by
    `worth`. Fewer than `n` come back when too few are open: draw new questions then.
    """
    groups: dict[Standing, list[str]] = {"open": [], "solved": [], "never": []}
    for question in sorted(counts):
        groups[plan.standing(counts[question])].append(question)
    n_solved = min(_rounded(n * plan.solved_share, rng), len(groups["solved"]))
    n_never = min(_rounded(n * plan.never_share, rng), len(groups["never"]), n - n_solved)
    asked = weighted(groups["open"], [plan.worth(counts[q]) for q in groups["open"]], n - n_solved - n_never, rng)
    asked += rng.sample(groups["solved"], n_solved) + rng.sample(groups["never"], n_never)
    rng.shuffle(asked)
    return asked


def weighted(items: Sequence[str], weights: Sequence[float], n: int, rng: random.Random) -> list[str]:
    """Up to `n` different items, each draw in proportion to the weights of those that are left (Efraimidis and
    Spirakis 2006: the largest u^(1/w))."""
    keys = [math.log(rng.random() or 5e-324) / w for w in weights]
    order = sorted(range(len(items)), key=keys.__getitem__, reverse=True)
    return [items[i] for i in order[:n]]


def _rounded(x: float, rng: random.Random) -> int:
    return int(x) + (rng.random() < x - int(x))
