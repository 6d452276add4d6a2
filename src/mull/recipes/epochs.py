"""Which lessons each optimiser step takes, where all of them are there before training begins."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from mull.engine.sampler import derive_seed


def in_epochs(sizes: Sequence[int], epochs: int, step_tokens: int, seed: int) -> list[list[int]]:
    """Which lessons each optimiser step takes, `step_tokens` or a little more: all once in every epoch, in a new order
    each time."""
    plan: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(len(sizes)))
        random.Random(derive_seed(seed, epoch)).shuffle(order)
        full = step_tokens
        for i in order:
            if full >= step_tokens:
                plan.append([])
                full = 0
            plan[-1].append(i)
            full += sizes[i]
    return plan


def until(plan: list[list[int]], sizes: Sequence[int], tokens: int) -> list[list[int]]:
    """The steps of a plan, up to the one that reaches `tokens`; all of them for 0.

    >>> until([[0, 1], [2], [0]], sizes=[3, 4, 5], tokens=8)
    [[0, 1], [2]]
    """
    ends = itertools.accumulate(sum(sizes[i] for i in chosen) for chosen in plan)
    return plan[: next((n for n, end in enumerate(ends, 1) if 0 < tokens <= end), len(plan))]
