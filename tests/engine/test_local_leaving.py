"""Requests to the local engine come and go with their event loop: nothing that is cancelled, fails or is left behind
stays, and who was answered may ask again before the next step."""

import asyncio

import pytest
import torch

from mull.errors import StopReason
from mull.types import SamplingParams
from tests.engine.small import ask, engine, idle, model, prompts, started, turns


def test_cancelling_frees_slots_and_pages_at_once():
    made = engine(pages=40, max_sequences=6)

    async def run():
        keep = asyncio.create_task(made.sample([1, 2, 3], SamplingParams(max_tokens=60, seed=1)))
        gone = [asyncio.create_task(made.sample(p, SamplingParams(max_tokens=60), 3)) for p in prompts(4)]
        await started(made, steps=3)
        assert len(made.schedule.order) == 6 and made.schedule.waiting, "some run, some wait"
        for task in gone:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        held = made.pool.held, len(made.schedule.order), len(made.schedule.waiting)
        return held, await keep, await asyncio.gather(*gone, return_exceptions=True)

    (pages, running, waiting), [kept], gone = asyncio.run(run())
    assert running == 1 and waiting == 0 and pages <= 2
    assert all(isinstance(g, asyncio.CancelledError) for g in gone)
    assert idle(made) and kept.tokens == ask(engine(), [1, 2, 3], max_tokens=60, seed=1)[0].tokens
    assert made.spent.sampled_tokens > kept.cost.sampled_tokens, "what was abandoned is counted"
    assert made.spent.flops > kept.cost.flops


def test_a_cancelled_owner_of_a_shared_prompt_does_not_stop_its_followers():
    made = engine(max_step_tokens=2)
    prefix = prompts(1, shortest=60, longest=61)[0]

    async def run():
        owner = asyncio.create_task(made.sample(prefix, SamplingParams(max_tokens=5)))
        followers = [asyncio.create_task(made.sample(prefix, SamplingParams(max_tokens=5, seed=i))) for i in (1, 2)]
        await started(made, steps=3)
        assert len(made.schedule.order) == 1 and len(made.schedule.waiting) == 2
        owner.cancel()
        return await asyncio.wait_for(asyncio.gather(*followers), 20)

    found = asyncio.run(run())
    assert [c.tokens for [c] in found] == [ask(engine(), prefix, max_tokens=5, seed=i)[0].tokens for i in (1, 2)]
    assert idle(made)


def test_a_failing_step_reaches_everybody_and_leaves_the_engine_usable():
    built = model()
    made = engine(built, max_sequences=2)
    forward, count = built.forward, 0

    def broken(*args):
        nonlocal count
        count += 1
        if count == 5:
            raise ValueError("the machine caught fire")
        return forward(*args)

    built.forward = broken  # pyright: ignore[reportAttributeAccessIssue]

    async def run():
        work = (made.sample(p, SamplingParams(max_tokens=30), 2) for p in prompts(3))
        failed = await asyncio.gather(*work, return_exceptions=True)
        assert idle(made)
        return failed, await made.sample([1, 2], SamplingParams(max_tokens=3))

    failed, [c] = asyncio.run(run())
    assert [str(f) for f in failed] == ["the machine caught fire"] * 3
    assert len(c.tokens) == 3 or c.stop is StopReason.STOP
    assert idle(made)


def test_diverged_weights_are_an_error_not_a_sample():
    built = model()
    made = engine(built)
    ask(made, [1, 2], max_tokens=3)
    with torch.no_grad():
        built.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="diverged"):
        ask(made, [1, 2], max_tokens=3)
    assert idle(made)


def test_event_loops_may_follow_one_another_and_leave_work_behind():
    made = engine()
    expected = ask(engine(), [1, 2, 3])[0].tokens

    async def abandon():
        asyncio.get_running_loop().create_task(made.sample([5] * 40, SamplingParams(max_tokens=60), 4))
        await made.sample([4], SamplingParams(max_tokens=2))

    for _ in range(3):
        asyncio.run(abandon())
        assert ask(made, [1, 2, 3])[0].tokens == expected
        assert idle(made)

    loop = asyncio.new_event_loop()  # closed without cancelling what runs in it, which asyncio.run would do
    tasks = [loop.create_task(made.sample([5] * 40, SamplingParams(max_tokens=60), 4))]
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    assert made.schedule.busy
    loop.close()
    assert ask(made, [1, 2, 3])[0].tokens == expected and idle(made)
    tasks.extend(asyncio.all_tasks(loop))
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]

    stopped = asyncio.new_event_loop()  # neither closed nor running
    task = stopped.create_task(made.sample([5] * 40, SamplingParams(max_tokens=60), 4))
    stopped.run_until_complete(asyncio.sleep(0))
    assert ask(made, [1, 2, 3])[0].tokens == expected and idle(made)
    with pytest.raises(asyncio.CancelledError):
        stopped.run_until_complete(task)
    stopped.close()


def test_answered_strategies_ask_again_before_the_next_step():
    """Two rounds of questions, the second asked through a `gather` inside a `gather`, share their steps."""
    made = engine()

    async def thought(seed):
        params = SamplingParams(max_tokens=5, seed=seed)
        await made.sample([seed], params)
        await made.sample([seed, 1], params)

    async def question(seed):
        await asyncio.gather(*(thought(seed + i) for i in range(3)))
        await asyncio.gather(*(thought(seed + i) for i in range(3)))

    async def run():
        always_busy = made.sample([99], SamplingParams(max_tokens=4 * 5))  # so that nobody is waited for
        await asyncio.gather(always_busy, *(question(seed) for seed in range(0, 30, 3)))

    made._end[:] = False
    asyncio.run(run())
    assert made.steps == 4 * 5 and turns < 10
