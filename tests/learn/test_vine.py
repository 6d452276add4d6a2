"""VinePPO's values are sampled: in a tree that can be solved by hand they must be right on average, for every K."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from mull.engine.sampler import derive_seed
from mull.engine.scripted import ScriptedSampler
from mull.learn.labels import Chain, Label, Rollouts
from mull.learn.paths import Path
from mull.learn.vine import boundary_values, step_advantages
from mull.types import Cost, SamplingParams

# Prompt 9, then the first step (1 or 2) and the second (3 or 4), then the end token. What is right: 1 then 3, or 2 then
# 4. After 1 the policy takes 3 with 3/4; after 2 it takes 4 with 1/4.
FOLLOWS = {9: {(1,): 0.5, (2,): 0.5}, 1: {(3,): 0.75, (4,): 0.25}, 2: {(3,): 0.75, (4,): 0.25}}
RIGHT = {(1, 3), (2, 4)}
TRUE_V = {(): 0.5, (1,): 0.75, (2,): 0.25}


def script(prefix: tuple[int, ...]) -> dict[tuple[int, ...], float] | None:
    return FOLLOWS.get(prefix[-1])


def completer(seed: int, sampler: ScriptedSampler, unjudged: Sequence[tuple[int, ...]] = ()):
    async def complete(prefix: Sequence[int], n: int) -> Rollouts:
        params = SamplingParams(8, seed=derive_seed(seed, *prefix))
        done = await sampler.sample(prefix, params, n)
        verdicts = [(*prefix, *c.tokens)[1:3] in RIGHT for c in done]
        cost = sum((c.cost for c in done), Cost())
        return ([None] * n if tuple(prefix[1:]) in unjudged else verdicts), cost

    return complete


def chain(first: int, second: int) -> tuple[Chain, Path]:
    tokens = (9, first, second, 0)
    right = (first, second) in RIGHT
    return Chain(tokens, 1, (2, 4), right), Path(tokens, (1, 2, 3), 1, False)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_advantages_are_unbiased_for_every_k(k: int):
    n = 1500
    for first, second in itertools.product((1, 2), (3, 4)):
        judged, path = chain(first, second)
        outcome = float(judged.correct or False)
        want = [TRUE_V[(first,)] - TRUE_V[()], outcome - TRUE_V[(first,)], outcome - TRUE_V[(first,)]]
        sums = [0.0, 0.0, 0.0]
        for seed in range(n):
            got = asyncio.run(boundary_values(judged, completer(seed, ScriptedSampler(script)), k))
            assert got.rollouts == 2 * k and [label.end for label in got.labels] == [1, 2]
            values = step_advantages(path, got.labels, outcome)
            assert values is not None
            assert values[0] + values[1] == pytest.approx(outcome - got.labels[0].value), "steps telescope"
            sums = [a + b for a, b in zip(sums, values, strict=True)]
        assert [s / n for s in sums] == pytest.approx(want, abs=4 * (0.5 / k / n) ** 0.5)


def test_every_rollout_is_charged():
    judged, _ = chain(1, 3)
    sampler = ScriptedSampler(script)
    got = asyncio.run(boundary_values(judged, completer(0, sampler), 4))
    assert got.cost == sampler.cost and got.cost.sampled_tokens == 4 * (3 + 2) and got.rollouts == 8


def test_the_chains_own_ending_is_not_in_its_values():
    """Two chains that differ in their verdict alone get the same values: nothing of the ending leaks backwards."""
    right, _ = chain(1, 3)
    wrong = Chain(right.tokens, 1, right.ends, False)
    unjudged = Chain(right.tokens, 1, right.ends, None)
    got = [asyncio.run(boundary_values(c, completer(3, ScriptedSampler(script)), 2)).labels for c in (right, wrong)]
    assert got[0] == got[1]
    assert asyncio.run(boundary_values(unjudged, completer(3, ScriptedSampler(script)), 2)).labels == got[0]


def test_worked_by_hand_with_forced_tokens():
    path = Path((9, 1, 1, 7, 7, 2, 2, 0), (1, 2, 5, 6, 7), 1, False)  # 7 7 was forced
    values = [Label(1, 0.5), Label(3, 0.75), Label(6, 0.25)]
    assert step_advantages(path, values, 1.0) == [0.25, 0.25, -0.5, 0.75, 0.75]
    assert step_advantages(path, [Label(1, 0.5)], 0.0) == [-0.5] * 5, "no boundary inside: REINFORCE with a baseline"
    early = [Label(1, 0.5), Label(4, 0.75)]
    assert step_advantages(path, early, 1.0) == [0.25, 0.25, 0.25, 0.25, 0.25], "a boundary among forced tokens"


def test_boundaries_that_could_not_be_judged():
    judged, path = chain(1, 3)
    inner = asyncio.run(boundary_values(judged, completer(0, ScriptedSampler(script), [(1,)]), 2))
    assert [label.end for label in inner.labels] == [1] and inner.rollouts == 4, "one step now, and still paid for"
    values = step_advantages(path, inner.labels, 1.0)
    assert values == [1.0 - inner.labels[0].value] * 3
    start = asyncio.run(boundary_values(judged, completer(0, ScriptedSampler(script), [()]), 2))
    assert [label.end for label in start.labels] == [2]
    assert step_advantages(path, start.labels, 1.0) is None, "nothing to subtract for the first step"
    assert step_advantages(Path((9,), (), 1, True), inner.labels, 0.0) is None
