"""A process reward model's scores as rewards of steps, next to the outcome.

The outcome is checked; a score is an opinion, and whatever is paid by opinion can be gamed. What differs is how:

| form         | reward of step i               | sum over a chain          | how it can be gamed                     |
|--------------|--------------------------------|---------------------------|-----------------------------------------|
| `potential`  | s_i - s_{i-1}, the last: -s    | 0                         | not at all: it only moves credit        |
| `difference` | s_i - s_{i-1}                  | s of the whole chain      | by ending in what looks good, or never  |
| `min`        | s_i, weighed by softmin        | about the lowest s        | by leaving out what could score low     |
| `sum`        | s_i                            | grows with every step     | by more steps: the control that shows it|

`potential` and `difference` are potential-based shaping (Ng, Harada and Russell 1999) with the score as the potential
and that of the question as 0. With the potential of the end counted as 0, as their theorem asks, no optimum changes;
`difference` lets the last score stand, so that it also teaches, and is bounded by it. `min` is PURE's transform (arXiv
2504.15275): weights exp(-s/T), normalised, so that for small T the sum is the least score.

With a discount below 1 `difference` stays bounded by the highest score, and `potential` is no longer exactly neutral.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from mull.learn.paths import Path

Form = Literal["potential", "difference", "min", "sum"]


def step_rewards(scores: Sequence[float], form: Form, temperature: float = 0.1) -> list[float]:
    """One reward per score, in order. `temperature` is that of `min` alone.

    >>> step_rewards([0.5, 0.75, 0.25], "difference"), step_rewards([0.5, 0.75, 0.25], "potential")
    ([0.5, 0.25, -0.5], [0.5, 0.25, -0.75])
    """
    match form:
        case "sum":
            return list(scores)
        case "difference":
            return [s - before for before, s in pairwise([0.0, *scores])]
        case "potential":
            return [s - before for before, s in pairwise([0.0, *scores[:-1], 0.0][: len(scores) + 1])]
        case "min":
            least = min(scores, default=0.0)
            weights = [math.exp(-(s - least) / temperature) for s in scores]
            return [s * w / math.fsum(weights) for s, w in zip(scores, weights, strict=True)]


def dense_rewards(
    path: Path, ends: Sequence[int], scores: Sequence[float], form: Form, temperature: float = 0.1
) -> list[tuple[int, float]]:
    """(end, reward) for `Path.rewards`. `scores[i]` is of the prefix of `ends[i]` tokens.

    Left out before rewards are made: ends before the first action (nobody did that), and scores that are NaN (nobody
    knows); the steps around one that is left out become one step.
    """
    first = path.actions[0] if path.actions else len(path.tokens)
    kept = [(e, s) for e, s in zip(ends, scores, strict=True) if e > first and not math.isnan(s)]
    rewards = step_rewards([s for _, s in kept], form, temperature)
    return [(end, reward) for (end, _), reward in zip(kept, rewards, strict=True)]
