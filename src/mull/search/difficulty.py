"""How hard a question looks after a few probe chains, as numbers; and bins of such numbers.

Snell et al. (2408.03314) sort questions into quintiles by pass@1 or by the mean final score of 2048 samples, without
charging for them. Here a few chains have to do, whose tokens are in the ledger like any others.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mull.search.choose import Canonical
from mull.search.node import Node
from mull.types import Question


class Ended(Protocol):
    """The end of a chain: a `Node`, or what is left of one in a file."""

    @property
    def answer(self) -> str | None: ...


End = TypeVar("End", bound=Ended)


@dataclass(frozen=True)
class Difficulty:
    """What a few chains say. A chain without a readable answer agrees with no other, and cannot be right."""

    agreement: float  # share of the chains that give the commonest answer: 1 all, 1/n no two, 0 none can be read
    entropy: float  # of the answers, over that of n different ones: 0 all the same, 1 no two
    answered: float  # share of the chains with a readable answer
    mean_score: float | None  # of the chains, 0 for the unreadable; None without scores
    tokens: int  # sampled for the chains, a prefix that several share once


def probe(
    question: Question, leaves: Sequence[Node], canonical: Canonical, value: Callable[[Node], float] | None = None
) -> Difficulty:
    """The difficulty of a question from the ends of some chains of one tree. Give dead ends, too: a chain that came to
    no answer says something. `value` is a leaf's final score."""
    steps = {
        step: step.sampled - (step.parent.sampled if step.parent else 0) for leaf in leaves for step in leaf.path()
    }
    seen = features(question, leaves, canonical, value)
    return Difficulty(seen["agreement"], seen["entropy"], seen["answered"], seen.get("mean_score"), sum(steps.values()))


def features(
    question: Question, leaves: Sequence[End], canonical: Canonical, value: Callable[[End], float] | None = None
) -> dict[str, float]:
    """The numbers of `Difficulty` that lie in [0, 1], by name, to choose a bin by; `mean_score` only with a `value`.

    No chains at all look as hard as can be.
    """
    n = len(leaves)
    forms = [canonical(question, leaf.answer) if leaf.answer else None for leaf in leaves]
    counts = Counter(form for form in forms if form is not None)
    readable = sum(counts.values())
    found = {
        "agreement": max(counts.values(), default=0) / max(1, n),
        "answered": readable / max(1, n),
        "entropy": _entropy([*counts.values(), *[1] * (n - readable)]) if readable else 1.0,
    }
    if value is not None:
        scores = [value(leaf) for leaf, form in zip(leaves, forms, strict=True) if form is not None]
        found["mean_score"] = math.fsum(scores) / max(1, n)
    return found


def quantile_edges(values: Sequence[float], bins: int) -> list[float]:
    """Edges that part `values` into up to `bins` bins of nearly equal numbers, ascending and all different.

    Edges are values themselves: equal values cannot be parted, so few different ones make fewer bins; no bin of
    `bin_of` is empty of these values. ValueError for no values, a NaN among them, or less than one bin.

    >>> quantile_edges([1, 2, 3, 4], 2), quantile_edges([5, 5, 5], 2)
    ([3], [])
    """
    if not values or bins < 1 or any(math.isnan(value) for value in values):
        raise ValueError(f"{bins} bins of {len(values)} values cannot be made: one bin and one number at least, no NaN")
    ordered = sorted(values)
    edges = {ordered[i * len(ordered) // bins] for i in range(1, bins)}
    return sorted(edges - {ordered[0]})


def bin_of(feature: float, edges: Sequence[float]) -> int:
    """The bin from 0 to len(edges) that a number falls into: how many of the ascending edges it reaches.

    >>> [bin_of(x, [0.5, 0.75]) for x in (0.2, 0.5, 0.9)]
    [0, 1, 2]
    """
    if math.isnan(feature):
        raise ValueError("NaN falls into no bin")
    return bisect.bisect_right(edges, feature)


def _entropy(counts: Sequence[int]) -> float:
    """Of a distribution given by counts, over the most that it can be for their sum; 0 for a single count of 1."""
    n = sum(counts)
    if n == 1:
        return 0.0
    # log n - sum c log c / n: exactly 0 for one count, exactly 1 for ones
    return (math.log(n) - math.fsum(c * math.log(c) for c in counts) / n) / math.log(n)
