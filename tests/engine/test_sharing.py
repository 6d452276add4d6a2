"""Sharing to the token: whatever starts like something that was computed before costs only what is new, and comes out
as if there were no cache."""

import asyncio

import numpy as np
import pytest
import torch

from mull.engine.local import LocalEngine
from mull.engine.pages import PAGE
from mull.types import SamplingParams
from tests.engine.small import BOTH, ask, crowd, engine, idle, model, prompts, worst_gap


def common(a, b) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def history(n: int, seed: int, longest: int = 70) -> list[list[int]]:
    """Prefixes of which most fork from the start of an earlier one, at any token."""
    rng = np.random.default_rng(seed)
    made: list[list[int]] = []
    for _ in range(n):
        start = made[rng.integers(len(made))] if made and rng.random() < 0.9 else []
        start = start[: rng.integers(0, len(start) + 1)]
        made.append([*start, *rng.integers(0, 3, rng.integers(1, 25)).tolist()][:longest])
    return made


@BOTH
def test_costs_worked_by_hand(torch_pages):
    built, [t] = model(), prompts(1, shortest=60, longest=61)
    made = engine(built, torch_pages=torch_pages)
    made._end[:] = False
    other = [(x + 1) % 256 for x in t]
    work = (
        (t[:20], 0),  # the pages afterwards: t[:16], and t[16:20] with the first two of three sampled tokens
        (t[:20], 19),  # all but the last: its logits are needed
        (t[:40], 20),  # below a partly filled page
        (t[:19] + other[19:30], 19),  # a fork in the middle of a page
        (t[:19] + other[19:25], 24),
        (t[:19] + other[19:25] + t[25:40], 25),  # below that fork
        (t[:7] + other[7:20], 7),  # a fork in the first page
        (t[:7] + other[7:20] + t[20:50], 20),
        (t[:32] + other[32:40], 32),  # at a page's end
        (t[:16], 15),  # a whole page, which may not be taken whole
        (t[:17], 16),
        (other[:20], 0),
    )
    for seed, (prefix, cached) in enumerate(work):
        [c] = ask(made, prefix, max_tokens=3, seed=seed)
        assert (c.cost.cached_tokens, c.cost.prefill_tokens) == (cached, len(prefix) - cached)
        assert worst_gap(built, prefix, c) < 1e-5
        longer = [*prefix, *c.tokens, seed, seed]
        [below] = ask(made, longer, max_tokens=1)
        assert below.cost.prefill_tokens == 3, "the last sampled token was never read"
        assert worst_gap(built, longer, below) < 1e-5
    assert idle(made)


def test_forced_tokens_are_found_by_those_that_follow():
    made, [t] = engine(), prompts(1, shortest=60, longest=61)
    made._end[:] = False
    ask(made, t[:10], forced=t[10:25], max_tokens=16)
    assert ask(made, t[:30], max_tokens=1)[0].cost.cached_tokens == 25
    [again] = ask(made, t[:10], forced=t[10:25], max_tokens=16)
    assert again.cost.cached_tokens == 9, "their log-probabilities are wanted"


@BOTH
@pytest.mark.parametrize("seed", range(2))
def test_every_request_starts_from_the_longest_start_of_all_before_it(seed, torch_pages):
    built = model()
    roomy, tight = (engine(built, pages=pages, torch_pages=torch_pages) for pages in (600, 9))
    computed: list[list[int]] = []
    evicted = 0
    for i, prefix in enumerate(history(40, seed)):
        params = {"max_tokens": 1 + i % 12, "seed": i}
        [c] = ask(roomy, prefix, **params)
        longest = max([common(prefix, before) for before in computed], default=0)
        assert c.cost.cached_tokens == min(len(prefix) - 1, longest)
        assert c.cost.cached_tokens + c.cost.prefill_tokens == len(prefix)
        assert worst_gap(built, prefix, c) < 1e-5
        computed.append([*prefix, *c.tokens[:-1]])
        [d] = ask(tight, prefix, **params)
        assert d.tokens == c.tokens and d.logprobs == pytest.approx(c.logprobs, abs=1e-5)
        evicted += d.cost.cached_tokens < c.cost.cached_tokens
    assert evicted > 5 and idle(roomy) and idle(tight)


@BOTH
@pytest.mark.parametrize("pages", [9, 400])
def test_crowds_that_share_prefixes_give_what_each_gives_alone(pages, torch_pages):
    """All at once, in any memory: forks, preemption and eviction change no token."""
    built = model()
    work = [
        (prefix, SamplingParams(max_tokens=10 + i % 30, seed=i, forced=(1, 2) * (i % 3)))
        for i, prefix in enumerate(history(24, seed=7))
    ]
    made = engine(built, pages=pages, torch_pages=torch_pages)
    together = crowd(made, work)
    forgetful = engine(built, torch_pages=torch_pages)
    for (prefix, params), c in zip(work, together, strict=True):
        forgetful.restore_version(params.seed)
        [alone] = asyncio.run(forgetful.sample(prefix, params))
        assert alone.cost.cached_tokens == 0
        assert c.tokens == alone.tokens and c.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        assert c.cost.cached_tokens + c.cost.prefill_tokens == len(prefix) + len(params.forced)
    assert (made.preemptions > 0) == (pages < 400) and idle(made)


def test_the_same_program_shares_the_same_bits():
    work = [(p, SamplingParams(max_tokens=30, seed=i)) for i, p in enumerate(history(24, seed=3))]
    assert crowd(engine(pages=16), work) == crowd(engine(pages=16), work)


def test_a_withdrawn_requests_work_is_found():
    made, [t] = engine(), prompts(1, shortest=40, longest=41)
    made._end[:] = False

    async def run():
        task = asyncio.create_task(made.sample(t[:20], SamplingParams(max_tokens=60)))
        while made.steps < 5:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert ask(made, t[:30])[0].cost.cached_tokens == 20 and idle(made)


def change(built) -> None:
    with torch.no_grad():
        built.layers[0].qkv.weight.mul_(1.5)


@pytest.mark.parametrize("length", [10, PAGE, 20])
def test_no_part_of_a_page_outlives_its_weights(length):
    built = model()
    prefix = prompts(1, shortest=30, longest=31)[0][:length]
    made = engine(built)
    ask(made, prefix)
    assert ask(made, prefix)[0].cost.cached_tokens == length - 1
    change(built)
    [c] = ask(made, prefix)
    assert c.cost.cached_tokens == 0 and worst_gap(built, prefix, c) < 1e-5


@pytest.mark.parametrize("length", [10, PAGE, 20])
def test_what_runs_while_weights_change_is_not_taken_for_the_new_ones_work(length):
    """It is withdrawn when the version has already risen: its pages belong to the old one."""
    built = model()
    made = engine(built)
    prefix = prompts(1, shortest=30, longest=31)[0][:length]

    async def run():
        task = asyncio.create_task(made.sample(prefix, SamplingParams(max_tokens=60)))
        while made.steps < 3:
            await asyncio.sleep(0)
        change(built)
        with pytest.raises(RuntimeError, match="weights changed"):
            await task

    asyncio.run(run())
    [c] = ask(made, prefix)
    assert made.policy_version == 1 and c.cost.cached_tokens == 0
    assert worst_gap(built, prefix, c) < 1e-5 and idle(made)


def test_a_step_that_fails_leaves_nothing_to_be_found():
    """Neither what it was about to compute nor a page that was to be copied for it."""
    built = model()
    made: LocalEngine = engine(built)
    [t] = prompts(1, shortest=50, longest=51)
    ask(made, t[:40], max_tokens=1)
    copy, forward = made.memory.copy, built.forward

    def broken(*args):
        raise ValueError("out of memory")

    for where, name in ((made.memory, "copy"), (built, "forward")):
        setattr(where, name, broken)
        with pytest.raises(ValueError, match="out of memory"):
            ask(made, t[:37], max_tokens=1)
        made.memory.copy, built.forward = copy, forward  # pyright: ignore[reportAttributeAccessIssue]
        [c] = ask(made, t, max_tokens=1)
        assert worst_gap(built, t, c) < 1e-5
        [d] = ask(made, [*t[:38], 0], max_tokens=1)
        assert d.cost.cached_tokens == 38 and worst_gap(built, [*t[:38], 0], d) < 1e-5
    assert idle(made)
