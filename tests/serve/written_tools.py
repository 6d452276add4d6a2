"""A model that writes what a test says, and jobs whose summaries it writes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from mull.engine.scripted import ScriptedSampler
from mull.search.sources import Opened
from mull.serve.job import Job, Result, answered
from mull.serve.plan import SINGLE, VOTE, Plan
from mull.serve.summary import FIRST, Section, quoted
from mull.serve.written import INSTRUCTION, needed
from mull.types import Question, SamplingParams
from tests.serve.tools import nano

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
