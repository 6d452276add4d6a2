"""Summaries that the model writes: told in order, quoted where they will not do, counted, bounded, and waited for by
nobody. The answer does not depend on them."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.errors import SamplerLost, UserError
from mull.serve import written
from mull.serve.job import Delta, answered, follow
from mull.serve.summary import Section
from mull.serve.written import INSTRUCTION, RUN, WRITES, patience, understood
from tests.serve.tools import nano
from tests.serve.written_tools import (
    GOOD,
    MANY,
    ONE,
    PARTS,
    QUOTES,
    Model,
    job,
    run,
    said,
    writes,
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
