"""Choosing among complete paths: by score, by votes, by votes that weigh their scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from mull.search.node import Node
from mull.types import Question

Canonical = Callable[[Question, str], str | None]
Aggregate = Literal["min", "product", "mean", "last"]
Pick = Literal["value", "weighted", "vote"]
AGGREGATES: tuple[Aggregate, ...] = ("min", "product", "mean", "last")


def same_text(question: Question, answer: str) -> str | None:
    """Free answers are equal when they are the same words: nobody knows their form."""
    return " ".join(answer.split()).casefold() or None


def aggregate(scores: Sequence[float], how: Aggregate) -> float:
    """One number for a path from the scores of its steps, in [0, 1] like them; 0 for no scores.

    min: Math-Shepherd (2312.08935). product: Let's Verify Step by Step (2305.20050). mean: RLHFlow. last: Snell et al.
    (2408.03314); for a scorer that judges the whole prefix, such as an ORM, it is the only one that has a meaning.

    >>> aggregate([0.5, 0.25], "product")
    0.125
    """
    if not scores:
        return 0.0
    match how:
        case "min":
            return min(scores)
        case "product":
            return math.prod(scores)
        case "mean":
            return math.fsum(scores) / len(scores)
        case "last":
            return scores[-1]


def path_score(node: Node, how: Aggregate) -> float:
    """The aggregate over the path's steps that have a score (all of them after `Tree.score(..., whole_path=True)`)."""
    return aggregate([step.score for step in node.path() if step.score is not None], how)


def best(leaves: Sequence[Node], value: Callable[[Node], float]) -> Node | None:
    """The leaf of the highest value, the first of equals."""
    return max(leaves, key=value, default=None)


def weighted_vote(
    question: Question, leaves: Sequence[Node], value: Callable[[Node], float], canonical: Canonical
) -> Node | None:
    """The answer whose leaves' values sum highest, as the best of its leaves; of equal sums the one reached first.

    Unreadable answers have no vote; where no answer can be read, or all values are 0, this is `best`.
    """
    weight: dict[str, float] = {}
    members: dict[str, list[Node]] = {}
    for leaf in leaves:
        form = canonical(question, leaf.answer or "")
        if form is not None:
            weight[form] = weight.get(form, 0.0) + value(leaf)
            members.setdefault(form, []).append(leaf)
    if not weight or max(weight.values()) <= 0:
        return best([leaf for group in members.values() for leaf in group] or leaves, value)
    winner = max(weight, key=lambda form: weight[form])
    return best(members[winner], value)


def majority_leaf(question: Question, leaves: Sequence[Node], canonical: Canonical) -> Node | None:
    """The first leaf of the answer that most leaves give."""
    chosen = weighted_vote(question, leaves, lambda _: 1.0, canonical)
    return chosen


def pick_leaf(
    question: Question, leaves: Sequence[Node], value: Callable[[Node], float], canonical: Canonical, how: Pick
) -> Node | None:
    """The leaf of the highest value, of the answer with the highest sum of values, or of the most frequent answer."""
    match how:
        case "value":
            return best(leaves, value)
        case "weighted":
            return weighted_vote(question, leaves, value, canonical)
        case "vote":
            return majority_leaf(question, leaves, canonical)
