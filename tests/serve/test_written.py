"""Summaries that the model writes: told in order, quoted where they will not do, counted, bounded, and waited for by
nobody. The answer does not depend on them."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.engine.endpoint import EndpointSampler
from mull.engine.pages import PAGE
from mull.engine.scripted import ScriptedSampler
from mull.errors import SamplerLost, UserError
from mull.search.sources import Opened
from mull.serve import written
from mull.serve.gate import Room, needs
from mull.serve.job import Delta, Job, Result, answered, follow
from mull.serve.plan import SINGLE, VOTE, Plan, Wish
from mull.serve.summary import FIRST, Section, Summary, quoted
from mull.serve.weights import Version
from mull.serve.written import INSTRUCTION, READS, RUN, SPARE, WRITES, asked, needed, patience, understood
from mull.types import Question, SamplingParams
from tests.engine.fake_server import FakeServer, Traits
from tests.serve.test_service import TALK, counted, empty
from tests.serve.tools import ask, events, idle, nano, nano_service, post, scripted_service

THOUGHT = "".join(f"{name} is looked at\n" for name in ("fir", "elm", "oak", "ash", "yew", "box", "may", "bay", "fig"))
PARTS = [THOUGHT.splitlines()[0:FIRST], THOUGHT.splitlines()[FIRST : 2 * FIRST], THOUGHT.splitlines()[2 * FIRST :]]
QUOTES = [quoted(lines) for lines in PARTS]
GOOD = [
    Section("First trees", "Four kinds are gone through, one by one."),
    Section("More of them", "The list goes on with four shorter names."),
    Section("The last one", "A single fruit tree ends the whole list."),
]
ONE = Plan("low", SINGLE, 1, 400, 16, None)
MANY = Plan("high", VOTE, 8, 400, 16, None)
MAZE = "#..S...\n..#...#\n#.##.##\n###....\n#....#.\n#......\n..G...."
LONGER = ({"role": "user", "content": MAZE},)  # nano's thoughts about it have many lines


def writes(plan: Plan) -> Plan:
    return replace(plan, summary=needed(nano()[1], plan.think_tokens, 1024))


class Model:
    """Thinks THOUGHT, and answers 7 once `answers` is set; what it writes about part i is `texts[i]`. A number of
    seconds instead of a text is how long it takes for nothing, an exception is raised."""

    policy_version = 0

    def __init__(self, texts: list[Any], answers: asyncio.Event | None = None, tells: bool = False):
        self.texts, self.answers, self.chat = texts, answers, nano()[1]
        self.inner = ScriptedSampler(self._follows, self.chat)
        self.prompts: list[str] = []  # for sections
        self.params: list[SamplingParams] = []
        self.withdrawn = self.sampled = self.writing = self.most = 0

    async def sample(self, prefix_tokens, params, n=1):
        text = self.chat.decode(prefix_tokens)
        if INSTRUCTION not in text:
            if text.endswith("</think>") and self.answers is not None:
                await self.answers.wait()
            return self._counted(await self.inner.sample(prefix_tokens, params, n))
        self.prompts.append(text)
        self.params.append(params)
        self.writing += 1
        self.most = max(self.most, self.writing)
        try:
            await asyncio.sleep(0.001)
            reply = self.texts[len(self.prompts) - 1]
            if isinstance(reply, Exception):
                raise reply
            if isinstance(reply, float):
                await asyncio.sleep(reply)
            return self._counted(await self.inner.sample(prefix_tokens, params, n))
        except asyncio.CancelledError:
            self.withdrawn += 1
            raise
        finally:
            self.writing -= 1

    def _counted(self, completions):
        self.sampled += sum(c.cost.sampled_tokens for c in completions)
        return completions

    def _follows(self, prefix):
        text = self.chat.decode(prefix)
        if text.endswith("<think>"):
            return THOUGHT + "</think>"
        if INSTRUCTION not in text:
            return "7" if text.endswith("</think>") else None
        reply = self.texts[len(self.prompts) - 1]
        return (reply if isinstance(reply, str) else "late") if text.endswith("</think>") else None


def said(section: Section) -> str:
    return f"{section.title}\n{section.text}"


def job(model: Any, plan: Plan, **more: Any) -> Job:
    tools = Opened(model, nano()[1], None, None, None, None, 1024)
    return Job(Question("q", "free", "which tree?"), plan, tools, **more)


def run(texts: list[Any], plan: Plan = ONE, sections: int = 3, **more: Any) -> tuple[Result, Model]:
    """The answer comes once so many sections have been tried."""

    async def all_of_it():
        answers = asyncio.Event()
        model = Model(texts, answers)
        one = job(model, writes(plan), **more)
        work = asyncio.ensure_future(answered(one))
        end = time.monotonic() + 20
        while len(model.prompts) < sections and time.monotonic() < end and not work.done():
            await asyncio.sleep(0.001)
            if not plan.single:
                answers.set()
        for _ in range(8):
            await asyncio.sleep(0.002)
        answers.set()
        result = await work
        assert model.writing == 0
        check(result, one, model)
        return result, model

    return asyncio.run(all_of_it())


def check(result: Result, one: Job, model: Model) -> None:
    """Counts are exact, and the answer is there."""
    assert result.content == "7" and not result.lost
    assert result.completion_tokens == model.sampled == one.sampled
    assert result.completion_tokens == result.reasoning_tokens + result.answer_tokens
    parts = result.path_tokens, result.wasted_tokens, result.summary_tokens, result.answer_tokens
    assert sum(parts) == result.completion_tokens and min(parts) >= 0
    assert one.written is not None and one.written.written + one.written.quoted == len(result.summary) - bool(
        result.summary and "lines of thought" in result.summary[0].title
    )


# --------------------------------------------------------------------------------------------------- one chain


def test_what_the_model_writes_is_told_in_order_and_the_rest_is_quoted():
    result, model = run([said(GOOD[0]), said(GOOD[1])], sections=2)
    assert result.summary == [*GOOD[:2], QUOTES[2]]  # the answer begins where the last part ends
    chat = nano()[1]
    assert result.summary_tokens == sum(len(chat.encode(said(s))) + 1 for s in GOOD[:2])
    assert result.wasted_tokens == 0 and model.most == 1
    assert [all(line in p for line in part) for p, part in zip(model.prompts, PARTS, strict=False)] == [True, True]
    assert all(p.endswith("<think></think>") for p in model.prompts)
    assert all(p.max_tokens == WRITES and p.temperature < 1 for p in model.params)
    assert len({p.seed for p in model.params}) == 2


@pytest.mark.parametrize(
    "rubbish",
    [
        "",
        "\n\n",
        "a title alone",
        "x=1;y=2\n3;4;5;6=7;8",
        "Title\n" + "so it is. " * 8,
        "Fine words\n" + " ".join(PARTS[0]),
    ],
)
def test_rubbish_is_quoted_and_yet_counted(rubbish: str):
    result, _ = run([rubbish, said(GOOD[1])], sections=2)
    assert result.summary == [QUOTES[0], GOOD[1], QUOTES[2]]
    assert result.summary_tokens == sum(min(WRITES, len(nano()[1].encode(t)) + 1) for t in (rubbish, said(GOOD[1])))


def test_what_was_said_before_is_not_said_again():
    result, _ = run([said(GOOD[0]), f"Another title\n{GOOD[0].text}"], sections=2)
    assert result.summary == [GOOD[0], QUOTES[1], QUOTES[2]]


def test_the_answer_does_not_wait_for_a_slow_writer():
    result, model = run([60.0], sections=1)
    assert result.summary == QUOTES and result.seconds < 20
    assert model.withdrawn == 1 and result.summary_tokens == 0


@pytest.mark.parametrize("error", [SamplerLost("gone"), UserError("no room")])
def test_a_writer_that_dies_is_asked_no_more(error: Exception):
    result, model = run([error], sections=1)
    assert result.summary == QUOTES and len(model.prompts) == 1 and result.early == ""


def test_a_mistake_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run([ZeroDivisionError()], sections=1)


@pytest.mark.parametrize(("spare", "asked_for"), [(-1, 0), (0, 1), (WRITES, 2)])
def test_a_budget_is_kept_and_none_of_it_is_taken_from_the_thought(spare: int, asked_for: int):
    """All that a thought may come to have is left to it."""
    texts = ["Title\n" + "and yet more of it is told to nobody " * 5, said(GOOD[1])]
    tokens = ONE.branch_tokens + WRITES + spare
    result, model = run(texts, replace(ONE, tokens=tokens), sections=asked_for)
    assert len(model.prompts) == asked_for
    assert result.summary_tokens <= WRITES + spare and result.completion_tokens <= tokens


def test_leaving_withdraws_the_writer_at_once():
    async def leave():
        model = Model([60.0], asyncio.Event())
        one = job(model, writes(ONE))
        async with aclosing(follow(one, tick=0.001)) as stream:
            async for _ in stream:
                if model.prompts:
                    break
        assert (model.writing, model.withdrawn) == (0, 1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(leave())


def test_answer_now_does_not_wait_for_it():
    async def hurry():
        model = Model([60.0, 60.0])
        model.answers = asyncio.Event()
        one = job(model, writes(ONE))
        work = asyncio.ensure_future(answered(one))
        while not model.prompts:
            await asyncio.sleep(0.001)
        one.answer_now()
        await asyncio.sleep(0.01)
        model.answers.set()
        return await work, model

    result, model = asyncio.run(hurry())
    assert result.content == "7" and result.summary == QUOTES and model.withdrawn >= 1 and result.seconds < 20


def test_sections_come_as_they_are_ready_and_all_before_the_answer():
    async def watch():
        model = Model([said(GOOD[0]), said(GOOD[1])], asyncio.Event())
        seen = []
        async with aclosing(follow(job(model, writes(ONE)), tick=60)) as stream:
            async for event in stream:
                seen.append(event)
                if event == GOOD[0]:
                    assert len(model.prompts) == 1 or len(model.prompts) == 2
                if event == GOOD[1]:
                    assert model.answers is not None
                    model.answers.set()
        return seen

    seen = asyncio.run(watch())
    told = [event for event in seen if isinstance(event, Section | Delta)]
    assert told == [*GOOD[:2], QUOTES[2], Delta("7")] and seen[-1].summary == told[:-1]


# ------------------------------------------------------------------------------------------------ many chains


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy."""
    monkeypatch.setattr(written, "LEAST_WAIT", 3.0)


@pytest.mark.usefixtures("patient")
def test_of_many_chains_the_thought_that_won_is_written_about_at_the_end():
    result, model = run([said(one) for one in GOOD], MANY)
    assert [s.title for s in result.summary[:-3]] and all("lines of thought" in s.title for s in result.summary[:-3])
    assert result.summary[-3:] == GOOD and model.most == 1
    assert result.wasted_tokens == result.reasoning_tokens - result.path_tokens - result.summary_tokens > 0


def test_they_wait_a_short_while_and_no_longer(monkeypatch: pytest.MonkeyPatch):
    assert patience(0.0) == 0.25 and patience(1e6) == 3 and patience(4.0) == 1.0
    monkeypatch.setattr(written, "LEAST_WAIT", 1.0)
    result, model = run([said(GOOD[0]), 60.0], MANY, sections=2)
    assert result.summary[-3:] == [GOOD[0], *QUOTES[1:]] and model.withdrawn == 1
    assert 1.0 <= result.seconds < 15


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("how", ["asked", "time", "late"])
def test_nobody_in_a_hurry_waits(how: str):
    async def hurry():
        answers = asyncio.Event()
        model = Model([60.0], answers)
        one = job(model, writes(MANY), most_seconds=0.05 if how == "time" else None)
        work = asyncio.ensure_future(answered(one))
        if how == "late":  # the thinking is over, and a section is being written
            answers.set()
            while not model.prompts:
                await asyncio.sleep(0.001)
        elif how == "asked":
            await asyncio.sleep(0.02)
        if how != "time":
            one.answer_now()
        started = time.monotonic()
        await asyncio.sleep(0.1 if how == "time" else 0.01)
        answers.set()
        return await work, time.monotonic() - started, model

    result, took, model = asyncio.run(hurry())
    assert result.content == "7" and took < 2 and model.writing == 0
    assert result.summary[-3:] == QUOTES and (result.early == how or how == "late")


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("left", "asked_for"), [(WRITES - 1, 0), (WRITES, 1)])
def test_they_spend_what_a_budget_has_left(left: int, asked_for: int):
    plan = replace(MANY, strategy="vote", samples=2)
    free, _ = run([said(one) for one in GOOD], plan)
    thoughts = free.completion_tokens - free.summary_tokens - free.answer_tokens
    result, model = run(
        ["Title\n" + "words " * 60] * 3, replace(plan, tokens=thoughts + plan.answer_tokens + left), asked_for
    )
    assert len(model.prompts) == asked_for and not result.exhausted
    assert result.completion_tokens <= thoughts + plan.answer_tokens + left


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
    for seed in range(4):
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


# ------------------------------------------------------------------------------------------------ what will do


@pytest.mark.parametrize(
    ("reply", "section"),
    [
        ("Finding b\nThe value of b follows from a.", Section("Finding b", "The value of b follows from a.")),
        ("# **Finding b**\n\nIt follows from a by adding.", Section("Finding b", "It follows from a by adding.")),
        ('Title: "Finding b."\n"It follows from a by adding."', Section("Finding b", "It follows from a by adding.")),
        (
            "Finding b\nOne thing comes.\nThen another thing. And a third.",
            Section("Finding b", "One thing comes. Then another thing."),
        ),
        ("Es geht um b\nAus a wird durch Addition b.", Section("Es geht um b", "Aus a wird durch Addition b.")),
        (
            "求和\n先把两个数字加在一起得到总和。然后检查结果是否正确。",
            Section("求和", "先把两个数字加在一起得到总和。 然后检查结果是否正确。"),
        ),
        ("Sure, here is a title:\nThe value of b follows from a.", None),
        ("The value of b is found by taking the value of a and then adding to it.\nIt is done.", None),
        ("The value of b follows from a.", None),
        ("Finding b\n", None),
        ("Finding b\nFinding b", None),
        ("12\nThe value of b follows from a.", None),
        ("Finding b\n3 + 4 = 7; 7 - 2 = 5; so b", None),
        ("<think>Finding b\nThe value of b follows from a.", None),
        ("Finding b\nThe value\x07 of b follows from a.", None),
        ("Finding b\nThe value \ufffd of b follows from a.", None),
        ("Notes\n" + INSTRUCTION.partition(". ")[2][:60], None),
    ],
)
def test_what_is_taken_for_a_section(reply: str, section: Section | None):
    assert understood(reply) == section


def test_a_sentence_that_was_cut_is_left_out():
    reply = "Finding b\nThe value of b follows from a. It is then che"
    assert understood(reply, cut=True) == Section("Finding b", "The value of b follows from a.")
    assert understood("Finding b\nThe value of b follows fro", cut=True) is None


def test_more_than_so_many_characters_of_the_thought_are_a_copy():
    line = "the red fox jumps over every lazy dog there is"
    for n in (RUN, RUN + 1):
        reply = f"An animal\nQuite {line[:n].upper()}. xxyy it."
        assert (understood(reply, [line]) is None) == (n > RUN), n


@given(st.text(max_size=200), st.booleans())
def test_whatever_a_model_writes_is_harmless(reply: str, cut: bool):
    section = understood(reply, ["a thought"], cut)
    if section is not None:
        assert 0 < len(section.title) <= 80 and 0 < len(section.text) <= 320
        assert section.title.isprintable() and section.text.isprintable() and "**" not in section.title + section.text


# -------------------------------------------------------------------------------------------------- the APIs


def served(texts: list[str], **more: Any) -> Any:
    """A service and its model, which answers once it has been asked for all of these."""

    class Late(Model):
        wanted = True

        async def sample(self, prefix_tokens, params, n=1):
            if self.chat.decode(prefix_tokens).endswith("</think>") and INSTRUCTION not in self.chat.decode(
                prefix_tokens
            ):
                end = time.monotonic() + 10
                while len(self.prompts) < len(texts) and time.monotonic() < end and self.wanted:
                    await asyncio.sleep(0.002)
                await asyncio.sleep(0.02)
            return await super().sample(prefix_tokens, params, n)

    model = Late(texts)
    made = {"summaries": "model", "think_tokens": 400, "effort": "low", **more}
    return scripted_service(lambda prefix: None, sampler=model, **made), model


TOLD = "\n\n".join(f"**{s.title}**\n\n{s.text}" for s in [*GOOD[:2], QUOTES[2]])


@pytest.mark.parametrize("stream", [False, True])
def test_chat_tells_it(stream: bool):
    service, model = served([said(s) for s in GOOD[:2]])
    _, _, body = post(service, "/v1/chat/completions", ask(stream=stream))
    if stream:
        chunks = events(body)[:-1]
        text = "".join(c["choices"][0]["delta"].get("reasoning_content", "") for c in chunks)
        mull = chunks[-1]["mull"]
    else:
        text, mull = body["choices"][0]["message"]["reasoning_content"], body["mull"]
        assert body["usage"]["completion_tokens"] == model.sampled
    assert text == TOLD and mull["wasted_tokens"] == 0
    assert mull["summary_tokens"] == sum(len(nano()[1].encode(said(s))) + 1 for s in GOOD[:2])
    assert counted(service, "summary_tokens_total") == mull["summary_tokens"] and empty(service)
    assert counted(service, "summary_sections_total", how="written") == 2
    assert counted(service, "summary_sections_total", how="quoted") == 1
    assert counted(service, "reasoning_tokens_total") + counted(service, "answer_tokens_total") == model.sampled


def test_responses_and_the_page_tell_it():
    service, _ = served([said(s) for s in GOOD[:2]])
    _, _, body = post(service, "/v1/responses", {"input": "which?", "reasoning": {"summary": "auto"}})
    assert "\n\n".join(part["text"] for part in body["output"][0]["summary"]) == TOLD
    assert body["mull"]["summary_tokens"] > 0
    service, _ = served([said(s) for s in GOOD[:2]], thoughts="shown")  # the page shows both
    _, _, text = post(service, "/mull/ask", ask())
    told = [one for one in events(text) if isinstance(one, dict) and one.keys() == {"title", "text"}]
    assert [Section(**one) for one in told] == [*GOOD[:2], QUOTES[2]]


@pytest.mark.parametrize(
    ("path", "body", "settings"),
    [
        ("/v1/chat/completions", ask(include_reasoning=False), {}),
        ("/v1/chat/completions", ask(), {"thoughts": "shown"}),
        ("/v1/responses", {"input": "which?"}, {}),
        ("/v1/chat/completions", ask(), {"summaries": "quotes"}),
    ],
)
def test_the_apis_have_nothing_written_that_they_do_not_tell(path: str, body: Any, settings: Any):
    service, model = served([], **settings)
    status, _, answer = post(service, path, body)
    assert status == 200 and model.prompts == [] and answer["mull"]["summary_tokens"] == 0


def test_choices_add_up():
    service, model = served([said(s) for s in GOOD[:2]] * 4)
    model.wanted = False
    _, _, body = post(service, "/v1/chat/completions", ask(n=2))
    assert body["usage"]["completion_tokens"] == model.sampled
    assert body["mull"]["summary_tokens"] == counted(service, "summary_tokens_total") > 0


def test_a_job_that_was_left_has_its_sections_counted():
    service, _ = served([said(GOOD[0]), "x", "never asked for"])

    async def leave():
        async with service.job(Wish(TALK, effort="low"), "a") as one, aclosing(follow(one, tick=0.001)) as stream:
            async for event in stream:
                if event == GOOD[0]:
                    return one.live.sampled

    thought = asyncio.run(leave())
    spent = counted(service, "summary_tokens_total")
    assert thought and spent >= len(nano()[1].encode(said(GOOD[0]))) and empty(service)
    assert counted(service, "reasoning_tokens_total") == thought + spent
    assert counted(service, "wasted_tokens_total") == thought and counted(
        service, "requests_total", effort="low", outcome="cancelled"
    )


def test_the_parts_are_those_of_the_quotations():
    summary = Summary(ONE)
    assert [*summary.push(THOUGHT), *summary.rest(THOUGHT, ())] == QUOTES
