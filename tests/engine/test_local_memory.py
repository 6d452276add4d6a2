"""The local engine's memory: a prompt is read once, a pool that is too small changes no token, and what is not needed
is not held."""

import asyncio
import gc
import mmap
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mull.engine import memory
from mull.engine.pages import PAGE
from mull.errors import StopReason, UserError
from mull.types import SamplingParams
from tests.engine.small import BOTH, CONFIG, ask, crowd, engine, idle, jobs, model, prompts, started, worst_gap


@pytest.mark.parametrize("length", [2, PAGE - 1, PAGE, PAGE + 1, 45])
def test_samples_of_one_prompt_read_it_once(length):
    prefix = prompts(1, shortest=45, longest=46)[0][:length]
    made = engine()
    made._end[:] = False
    costs = [c.cost for c in ask(made, prefix, n=16, max_tokens=2)]
    assert sorted(c.prefill_tokens for c in costs) == [1] * 15 + [length], "but for its last token: each needs logits"
    assert sum(c.cached_tokens for c in costs) == 15 * (length - 1)
    assert made.step_rows == length + 15 + 16, "and each sample but its last token"


@BOTH
def test_a_tiny_pool_gives_the_same_tokens_with_preemption(torch_pages):
    built = model()
    work = [
        (prefix, replace(params, forced=(9,) * (i % 3), **({"top_p": 0.9} if i % 2 else {})))
        for i, (prefix, params) in enumerate(jobs(16, max_tokens=60))
    ]
    small, large = (engine(built, pages=pages, torch_pages=torch_pages) for pages in (12, 400))
    tight, roomy = crowd(small, work), crowd(large, work)
    assert small.preemptions > 5 and large.preemptions == 0
    for (prefix, params), a, b in zip(work, tight, roomy, strict=True):
        assert a.tokens == b.tokens and a.stop == b.stop and a.forced == b.forced
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
        assert worst_gap(built, prefix, a) < 1e-5
        assert (a.kept is None) == (b.kept is None) == (params.top_p == 1)
        for one, other in zip(a.kept or (), b.kept or (), strict=True):
            assert one.tolist() == other.tolist()
        assert a.cost.sampled_tokens == b.cost.sampled_tokens == len(a.tokens) - a.forced
        assert a.cost.prefill_tokens + a.cost.cached_tokens == len(prefix) + a.forced
    assert sum(c.cost.flops for c in tight) > sum(c.cost.flops for c in roomy), "computing it again is not free"
    assert idle(small) and idle(large)


def test_groups_that_share_prompts_finish_in_a_tiny_pool():
    """Twins wait for each other's pages while memory is short: nobody may wait for ever."""
    made = engine(pages=9, max_sequences=3)
    shared = prompts(1, shortest=60, longest=61)[0]
    work = [(shared[: 30 + i], SamplingParams(max_tokens=60, seed=i)) for i in range(20)]
    work += [(shared, SamplingParams(max_tokens=60, seed=5))] * 4
    found = crowd(made, work)
    assert len({c.tokens for c in found[-4:]}) == 1 and idle(made)


def test_one_request_may_fill_the_whole_pool():
    made = engine(pages=2)
    [c] = ask(made, [1] * 10, max_tokens=2 * PAGE - 10, stop_tokens=(), seed=4)
    assert len(c.tokens) == 2 * PAGE - 10 or c.stop is StopReason.STOP
    [c] = ask(made, [1] * PAGE, max_tokens=PAGE, forced=tuple(range(PAGE)))
    assert c.tokens == tuple(range(PAGE))
    with pytest.raises(UserError, match="memory pages"):
        ask(made, [1] * 10, max_tokens=2 * PAGE - 8)
    with pytest.raises(UserError, match="not one page"):
        engine(pages=0)


def test_an_engine_that_nobody_needs_frees_its_memory_at_once():
    """Not when Python happens to look for cycles: a page pool is gigabytes, and to Python a small object."""

    def used(how) -> weakref.ref:
        made = engine()
        how(made)
        return weakref.ref(made.memory)

    def alone(made):
        ask(made, prompts(1)[0])

    def cancelled(made):
        async def run():
            work = asyncio.ensure_future(made.sample(prompts(1)[0], SamplingParams(20)))
            await started(made, 3)
            work.cancel()

        asyncio.run(run())

    gc.disable()
    try:
        assert used(alone)() is None and used(cancelled)() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads what the system has mapped from /proc")
def test_pages_that_were_never_used_cost_no_memory():
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = mapped()
    made = engine(memory_bytes=1 << 30, max_sequences=1 << 14)
    ask(made, prompts(1)[0])
    assert made.pool.num_pages * memory.page_bytes(CONFIG, torch.float32) > 500 << 20
    assert mapped() - before < 200 << 20
