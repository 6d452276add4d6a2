"""Reading: hidden states at any positions are what a full forward pass says, through the sampler's pages and steps."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from mull.engine.local import LocalEngine, Reading
from mull.engine.pages import PAGE
from mull.errors import UserError
from mull.models.attention import causal
from mull.models.flops import causal_context, forward_flops
from mull.models.transformer import Transformer
from mull.types import SamplingParams
from tests.engine.small import BOTH, CONFIG, FAMILIES, ask, crowd, engine, idle, model, prompts, worst_gap


def read(made: LocalEngine, *work) -> list[Reading]:
    """Readings (tokens, positions), all at once."""

    async def run():
        return await asyncio.gather(*(made.read(tokens, positions) for tokens, positions in work))

    return asyncio.run(run())


def whole(tokens) -> tuple[list[int], range]:
    return tokens, range(len(tokens))


def gap(built: Transformer, tokens, positions, reading: Reading) -> float:
    with torch.no_grad():
        at = torch.arange(len(tokens))[None]
        hidden = built(torch.tensor([tokens]), at, causal(built.config.sliding_window))[0]
    assert reading.hidden_PE.shape == (len(positions), built.config.hidden_size)
    return float((reading.hidden_PE - hidden[list(positions)]).abs().max())


@BOTH
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_equal_a_full_forward(family, torch_pages):
    built = model(FAMILIES[family])
    rng = np.random.default_rng(0)
    work = []
    for i, tokens in enumerate(prompts(16, longest=70)):
        some = np.flatnonzero(rng.random(len(tokens)) < (0.1, 0.5, 1.0)[i % 3]).tolist()
        work.append((tokens, some or [len(tokens) - 1]))
    for options in ({}, {"max_step_tokens": 7}, {"pages": 9}):
        made = engine(built, torch_pages=torch_pages, **options)
        for (tokens, positions), found in zip(work, read(made, *work), strict=True):
            assert gap(built, tokens, positions, found) < 1e-5
            assert found.hidden_PE.dtype == torch.float32
        assert idle(made)


def test_a_reading_may_be_trained_on():
    [found] = read(engine(), whole([1, 2, 3]))
    head = torch.nn.Linear(CONFIG.hidden_size, 1)
    head(found.hidden_PE).sum().backward()
    assert head.weight.grad is not None


def test_costs_are_the_tokens_that_were_read_and_no_logits():
    [tokens] = prompts(1, shortest=45, longest=46)
    made = engine()
    [first] = read(made, (tokens, [10, 39]))
    assert (first.cost.prefill_tokens, first.cost.cached_tokens, first.cost.scorer_tokens) == (40, 0, 40)
    assert first.cost.sampled_tokens == 0
    assert first.cost.flops == forward_flops(CONFIG, 40, causal_context(0, 40), 0)
    assert made.step_rows == 40, "what follows the last position is not read"
    assert made.spent == first.cost


@BOTH
def test_nested_readings_cost_the_new_tokens(torch_pages):
    """So does a sample below a reading, and a reading below a sample."""
    built, [tokens] = model(), prompts(1, shortest=100, longest=101)
    made = engine(built, torch_pages=torch_pages)
    read(made, (tokens[:21], [20]))
    for start, end in ((21, 30), (30, 48), (48, 49), (49, 70)):
        [child] = read(made, (tokens[:end], range(start, end)))
        assert child.cost.cached_tokens == start and child.cost.scorer_tokens == end - start
        assert gap(built, tokens[:end], range(start, end), child) < 1e-5
    [again] = read(made, (tokens[:70], [0, 69]))
    assert again.cost.cached_tokens == 0, "what is at or after the first position is computed"
    [c] = ask(made, tokens[:80], max_tokens=20)
    assert c.cost.cached_tokens == 70 and worst_gap(built, tokens[:80], c) < 1e-5
    below = [*tokens[:80], *c.tokens]
    [leaf] = read(made, (below, [len(below) - 1]))
    assert leaf.cost.scorer_tokens == 1, "only the last sampled token was never read"
    assert gap(built, below, [len(below) - 1], leaf) < 1e-5


def test_a_prefix_that_readings_share_is_read_once_where_that_is_worth_a_step():
    """They ask together. A waits for what B reads when that is half a page or more, or all it needs of a page."""
    [tokens] = prompts(1, shortest=92, longest=93)
    for shared, first, others in ((80, 83, 3), (8, 11, 3), (7, 10, 10)):
        found = read(engine(), *[(tokens[:shared] + [i] * 3, [shared + 2]) for i in range(8)])
        assert sorted(r.cost.scorer_tokens for r in found) == [others] * 7 + [first]
    for cached, shared, first, others in ((80, 88, 11, 3), (80, 87, 10, 10), (83, 91, 11, 3), (83, 90, 10, 10)):
        made = engine()
        read(made, (tokens[:cached], [cached - 1]))
        found = read(made, *[(tokens[:shared] + [i] * 3, [shared + 2]) for i in range(8)])
        assert sorted(r.cost.scorer_tokens for r in found) == [others] * 7 + [first]
    made = engine()
    found = read(made, *[(tokens[:5], [4])] * 8)
    assert sorted(r.cost.scorer_tokens for r in found) == [1] * 7 + [5] and made.steps == 2


@BOTH
def test_readings_and_samples_share_steps_and_disturb_nobody(torch_pages):
    built = model()
    asked = [(p, SamplingParams(max_tokens=30, seed=i)) for i, p in enumerate(prompts(10, seed=1))]
    alone = crowd(engine(built, torch_pages=torch_pages), asked)
    reads = [(tokens, [len(tokens) // 2, len(tokens) - 1]) for tokens in prompts(10, seed=2, shortest=20, longest=90)]
    for options in ({}, {"pages": 14}, {"max_step_tokens": 5}):
        made = engine(built, torch_pages=torch_pages, **options)

        async def run(made=made):
            sampling = asyncio.gather(*(made.sample(*job) for job in asked))
            return await asyncio.gather(sampling, *(made.read(*job) for job in reads))

        sampled, *readings = asyncio.run(run())
        for a, [b] in zip(alone, sampled, strict=True):
            assert a.tokens == b.tokens and a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
        for (tokens, positions), found in zip(reads, readings, strict=True):
            assert gap(built, tokens, positions, found) < 1e-5
        assert idle(made)


def test_a_preempted_reading_comes_out_right():
    """Older samples outgrow the pool while a long text is read in small pieces: it is interrupted again and again."""
    built = model()
    [tokens] = prompts(1, shortest=96, longest=97)
    work = [(p, SamplingParams(max_tokens=80, seed=i)) for i, p in enumerate(prompts(3, longest=10))]
    made = engine(built, pages=10, max_step_tokens=5)
    made._end[:] = False
    interrupted, preempt = [], made.schedule._preempt

    def noting(slot):
        interrupted.append((made.schedule.reads[slot], len(made.schedule.request(slot).hidden)))
        preempt(slot)

    made.schedule._preempt = noting

    async def run():
        asked = [asyncio.create_task(made.sample(*job)) for job in work]
        await asyncio.sleep(0)  # so that the reading is the youngest
        found = await made.read(*whole(tokens))
        return found, await asyncio.gather(*asked)

    found, _ = asyncio.run(run())
    assert any(reads and pieces for reads, pieces in interrupted), "what it had found must be kept"
    assert gap(built, *whole(tokens), found) < 1e-5
    assert (found.cost.scorer_tokens, found.cost.cached_tokens) == (96, 0)
    assert found.cost.flops >= forward_flops(CONFIG, 96, causal_context(0, 96), 0)
    assert idle(made)


def test_cancelling_a_reading_frees_its_pages():
    made = engine(max_step_tokens=4)
    [tokens] = prompts(1, shortest=90, longest=91)

    async def run():
        task = asyncio.create_task(made.read(tokens, [89]))
        while made.steps < 3:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    assert asyncio.run(run()) and idle(made)
    assert made.spent.scorer_tokens == made.spent.prefill_tokens == made.step_rows > 0, "what was read is counted"
    [found] = read(made, (tokens, [89]))
    assert gap(made.model, tokens, [89], found) < 1e-5


def test_new_weights_are_read_anew():
    built, [tokens] = model(), prompts(1, shortest=45, longest=46)
    made = engine(built)
    read(made, whole(tokens))
    with torch.no_grad():
        built.layers[0].qkv.weight.mul_(1.5)  # pyright: ignore
    [found] = read(made, (tokens, [44]))
    assert made.policy_version == 1 and found.cost.cached_tokens == 0
    assert gap(built, tokens, [44], found) < 1e-5


def test_lanes_read_the_same():
    built = model()
    work = [(tokens, [len(tokens) - 1]) for tokens in prompts(40)]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for (tokens, positions), found in zip(work, read(engine(built), *work), strict=True):
            assert gap(built, tokens, positions, found) < 1e-5
    finally:
        torch.set_num_threads(before)


def test_a_reading_may_fill_the_context_and_the_pool():
    built = model()
    tokens = (prompts(1, shortest=50, longest=51)[0] * 3)[: CONFIG.max_positions]
    made = engine(built, pages=CONFIG.max_positions // PAGE)
    [found] = read(made, whole(tokens))
    assert gap(built, *whole(tokens), found) < 1e-5 and idle(made)


def test_what_cannot_be_read_is_said():
    made = engine(model(replace(CONFIG, max_positions=64)), pages=3)
    for tokens, positions, match in (
        ([], [0], "nothing to read"),
        ([1, 2], [], "positions"),
        ([1, 2], [2], "positions"),
        ([1, 2], [-1], "positions"),
        ([1, 2], [1, 0], "ascend"),
        ([1, 2], [1, 1], "ascend"),
        ([1] * 65, [64], "context is 64"),
        ([1] * 60, [59], "memory pages"),
        ([272], [0], "vocabulary of 272"),
        ([-1], [0], "vocabulary"),
        ([2**40], [0], "vocabulary"),
    ):
        with pytest.raises(UserError, match=match):
            read(made, (tokens, positions))
    assert idle(made)
