"""Summaries that a real engine writes: the answer stays, nothing is left behind, and a writer needs room."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.engine.endpoint import EndpointSampler
from mull.engine.pages import PAGE
from mull.serve.gate import Room, needs
from mull.serve.job import answered, follow
from mull.serve.plan import Wish
from mull.serve.weights import Version
from mull.serve.written import INSTRUCTION, READS, SPARE, WRITES, asked, needed
from tests.engine.fake_server import FakeServer, Traits
from tests.serve.test_service import TALK, empty
from tests.serve.tools import idle, nano, nano_service, scripted_service
from tests.serve.written_tools import (
    GOOD,
    LONGER,
    MANY,
    ONE,
    QUOTES,
    THOUGHT,
    Model,
    job,
    said,
    writes,
)

# ----------------------------------------------------------------------------------------- with a real engine


@pytest.mark.parametrize("level", ["low", "medium"])
def test_the_answer_is_the_same_with_a_summary_and_the_engine_is_empty_after(level: Any):
    async def both(seed: int):
        results = []
        for summaries in ("quotes", "model"):
            service = nano_service(summaries=summaries, think_tokens=200)
            engine: Any = service.main.tools.sampler
            async with service.job(Wish(LONGER, effort=level, seed=seed), "a") as one:
                result = await answered(one)
            assert idle(service) and empty(service) and engine.spent.sampled_tokens == result.completion_tokens
            assert engine.spent.flops >= result.flops > 0
            results.append(result)
        return results

    tried = 0
    for seed in range(2):
        quotes, model = asyncio.run(both(seed))
        assert (quotes.content, quotes.thought, quotes.votes) == (model.content, model.thought, model.votes)
        assert quotes.completion_tokens == model.completion_tokens - model.summary_tokens
        assert quotes.summary_tokens == 0 and quotes.wasted_tokens == model.wasted_tokens
        assert quotes.summary[-1:] == model.summary[-1:]  # nano writes nothing that will do
        tried += model.summary_tokens
    assert tried > 0


def test_leaving_while_it_writes_leaves_the_engine_empty():
    service = nano_service(summaries="model", think_tokens=200)

    async def read(one):
        async with aclosing(follow(one)) as stream:
            async for _ in stream:
                pass

    async def work():
        for seed in range(20):
            async with service.job(Wish(LONGER, effort="low", seed=seed), "a") as one:
                reading = asyncio.ensure_future(read(one))
                while not (writes := one.written is not None and bool(one.written.live.running)) and not reading.done():
                    await asyncio.sleep(0)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            assert idle(service) and empty(service)
            if writes:
                return True

    assert asyncio.run(work())


def test_no_more_memory_is_held_than_was_admitted():
    service = nano_service(summaries="model", think_tokens=200)
    engine: Any = service.main.tools.sampler
    most, step = Room(), engine._step

    def watched():
        nonlocal most
        done = step()
        now = Room(engine.pool.held, len(engine.schedule.order) + len(engine.schedule.waiting))
        most = Room(max(most.pages, now.pages), max(most.branches, now.branches))
        assert service.main.gate.reserved.holds(now), (now, service.main.gate.reserved)
        return done

    engine._step = watched

    async def work():
        for level in ("low", "medium"):
            for seed in range(3):
                async with service.job(Wish(LONGER, effort=level, seed=seed), "a") as one:
                    assert one.plan.summary
                    await answered(one)

    asyncio.run(work())
    assert most.branches > 1 and idle(service) and empty(service)


def test_a_job_writes_with_the_weights_that_it_began_with():
    old, new = Model([said(one) for one in GOOD], asyncio.Event()), Model([])
    service = scripted_service(lambda prefix: None, sampler=old, summaries="model", think_tokens=400)

    async def work():
        async with service.job(Wish(TALK, effort="low"), "a") as one:
            running = asyncio.ensure_future(answered(one))
            while old.inner.running or not old.inner.calls:
                await asyncio.sleep(0)
            tools = service.main.tools
            service.main.weights.before.append(service.main.weights.current)
            service.main.weights.current = Version(replace(tools, sampler=new))
            while len(old.prompts) < 2:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            assert old.answers is not None
            old.answers.set()
            return await running

    assert asyncio.run(work()).summary == [*GOOD[:2], QUOTES[2]] and not new.prompts and not new.inner.calls


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("traits", [Traits(), Traits(ids=False, routes=("/chat/completions",), splits_thought=True)])
def test_a_model_that_runs_elsewhere_writes_as_well(traits: Traits):
    chat, sections = nano()[1], iter(GOOD)

    def says(prompt: str, seed: int) -> str:
        if INSTRUCTION in prompt:
            return said(next(sections)) + "<|end|>"
        return THOUGHT + "</think>7<|end|>" if prompt.endswith("<think>") else "7<|end|>"

    with FakeServer(chat, says, traits) as server:

        async def work():
            async with EndpointSampler(server.url, None, chat) as sampler:
                plan = replace(MANY, strategy="vote", samples=2)
                return await answered(job(sampler, writes(plan))), sampler.spent

        result, spent = asyncio.run(work())
    assert result.content == "7" and result.summary[-3:] == GOOD
    assert result.completion_tokens == spent.sampled_tokens and result.summary_tokens > 100


# --------------------------------------------------------------------------------------------------- admission


def test_room_for_a_writer_is_one_more_branch_beside_one_chain_and_none_behind_many():
    for plan in (ONE, MANY):
        alone, both = needs(plan, 40, 1024), needs(writes(plan), 40, 1024)
        pages = -(-writes(plan).summary // PAGE)
        assert pages * PAGE >= writes(plan).summary > WRITES
        assert both == (alone + Room(pages, 1) if plan.single else Room(max(alone.pages, pages), alone.branches))


def test_no_chain_gives_way_to_a_writer_and_nobody_is_sent_away_for_it():
    service = nano_service(summaries="model", max_sequences=1)

    async def work():
        async with service.job(Wish(TALK, effort="low", seed=1), "a") as one:
            assert one.plan.summary == 0 and one.plan.wanted == 0 and service.main.gate.reserved.branches == 1
        service.main.gate.resize(Room(service.main.gate.capacity.pages, 3))
        async with service.job(Wish(TALK, effort="low", seed=1), "a") as one:
            assert one.plan.summary and service.main.gate.reserved.branches == 2
            async with service.job(Wish(TALK, effort="low", seed=1), "b") as two:
                assert two.plan.summary == 0 and service.main.gate.reserved.branches == 3
        async with service.job(Wish(TALK, effort="none"), "c") as none:
            assert none.plan.summary == 0

    asyncio.run(work())
    assert empty(service)


def test_nothing_is_written_that_nobody_sees():
    for wish, settings in ((Wish(TALK, summary=False), {}), (Wish(TALK), {"summaries": "none"})):
        service = nano_service(**{"summaries": "model", **settings})

        async def plan(service=service, wish=wish):
            async with service.job(wish, "a") as one:
                return one.plan

        assert asyncio.run(plan()).summary == 0


@given(st.text(st.sampled_from("ab \n<|>é木"), max_size=4000), st.integers(1, 2000), st.integers(500, 4000))
def test_a_prompt_and_what_follows_it_fit_into_what_was_reserved(text: str, think: int, context: int):
    chat = nano()[1]
    most = needed(chat, think, context)
    if not most:
        return
    assert most <= context and most <= READS + WRITES + SPARE + len(chat.prompt(INSTRUCTION, think=False))
    prompt = asked(chat, text.split("\n"), most)
    assert prompt is None or len(prompt) + WRITES <= most
    assert prompt is not None  # bytes of a broken character make a few tokens more


def test_of_a_long_part_the_beginning_and_the_end_are_shown():
    chat = nano()[1]
    prompt = asked(chat, [f"line number {i}" for i in range(400)], needed(chat, 5000, 4000))
    assert prompt is not None
    shown = chat.decode(prompt)
    assert "line number 0\n" in shown and "line number 399" in shown and "\n…\n" in shown and "number 200" not in shown


def test_a_model_that_cannot_be_asked_is_quoted():
    assert needed(nano()[1], 400, 300) == 0  # the context has no room for the question
