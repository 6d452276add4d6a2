"""Many simulations of one tree at once: they overlap, virtual loss sends them different ways and leaves the answers as
they were, and whatever goes wrong, it is taken back."""

import asyncio
from collections import Counter

import pytest

from mull.errors import SamplerLost
from mull.ledger import Budget
from mull.search.mcts import mcts
from tests.search import hardships
from tests.search.hardships import search
from tests.search.simulations import assert_landed, binary, in_favour_of_a, simulate, start
from tests.search.tools import chat

# --------------------------------------------------------------------------------------------------------- many at once


def rounds(parallel: int, value: str) -> tuple[int, int, int]:
    """(turns of the event loop, most requests at once, simulations) of one search whose requests take 20 turns."""

    async def go():
        sampler = binary(9, yields=20)
        s = start(sampler, hardships.chance, value=value, parallel=parallel, expand=3)
        task = asyncio.create_task(s.run(64))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        await task
        assert_landed(s)
        return turns, sampler.peak, s.root.visits

    return asyncio.run(go())


@pytest.mark.parametrize("value", ["scorer", "rollout", "both"])
def test_simulations_overlap(value):
    one, eight = rounds(1, value), rounds(8, value)
    assert one[1:] == (1, 64) and 7 <= eight[1] <= 8 and eight[2] == 64
    assert eight[0] < one[0] / 3, (one, eight)


def test_virtual_loss_sends_them_different_ways():
    """Without it, or any exploration, simulations that begin together agree on where to go, and wait for each other."""

    def peak(virtual_loss: float) -> int:
        sampler = binary(9, yields=20)
        value = lambda text: 0.4 + 0.2 * hardships.chance(text)  # noqa: E731
        simulate(start(sampler, value, parallel=8, virtual_loss=virtual_loss, c=0.0), 48)
        return sampler.peak

    assert peak(1.0) == 8 and peak(0.0) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("value", ["scorer", "rollout", "both"])
def test_virtual_loss_leaves_the_distribution_of_answers(value):
    """Answers over 200 seeds, one simulation at a time and eight at once.

    Tolerance: not told apart by chi-square at the 1% level, and no answer's share differs by more than 10 in 100.
    """

    def noisy(text: str) -> float:
        return 0.5 * in_favour_of_a(text) + 0.5 * hardships.chance(text)

    def answers(parallel: int) -> Counter:
        options = {"parallel": parallel, "value": value, "expand": 3}
        return Counter(
            search(mcts, binary(3), Budget(samples=32), noisy, seed=seed, **options).answer for seed in range(200)
        )

    one, eight = answers(1), answers(8)
    kinds = sorted(one.keys() | eight.keys())
    chi2 = sum((one[k] - eight[k]) ** 2 / (one[k] + eight[k]) for k in kinds)
    assert chi2 < {3: 9.21, 4: 11.34}[len(kinds)], (one, eight)
    assert max(abs(one[k] - eight[k]) for k in kinds) <= 0.1 * 200, (one, eight)


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("value", ["scorer", "rollout", "both"])
@pytest.mark.parametrize("error", [RuntimeError("a bug"), SamplerLost("gone")])
def test_virtual_loss_is_taken_back_when_simulations_fail(value, error):
    for k in range(0, 40, 3):
        s = start(hardships.Unordered(hardships.lines, chat(), fail={k: error}), hardships.chance, value=value)
        try:
            simulate(s, 20)
            assert k >= len(s.tree.sampler.calls) or isinstance(error, SamplerLost)
        except RuntimeError:
            assert str(error) == "a bug"
        assert_landed(s)
        assert s.tree.sampler.running == 0


@pytest.mark.parametrize("value", ["scorer", "rollout", "both"])
def test_virtual_loss_is_taken_back_when_the_search_is_cancelled(value):
    async def cancelled(after: int) -> bool:
        s = start(hardships.Unordered(hardships.lines, chat()), hardships.chance, value=value)
        task = asyncio.create_task(s.run(20))
        for _ in range(after):
            await asyncio.sleep(0)
        if task.done():
            return False
        in_the_air = s.root.flying
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_landed(s)
        assert s.tree.sampler.running == s.tree.scorer.running == 0
        return in_the_air > 0 or after == 0

    after = 0
    while asyncio.run(cancelled(after)):
        after += 1
    assert after > 20


def test_virtual_loss_is_taken_back_when_the_budget_ends():
    for tokens in range(2, 120, 7):
        for value in ("scorer", "rollout", "both"):
            s = start(hardships.wild(), hardships.chance, Budget(tokens=tokens, answer_tokens=4), value=value)
            simulate(s, 50)
            assert_landed(s)
