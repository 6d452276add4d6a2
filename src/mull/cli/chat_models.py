"""Who is talked to in `mull chat`: what a person wants, what an answer is, and a model in this process.

A talker has `open`, `close`, `check(wants)`, `ask(messages, wants, turn)`, whose events are those of `serve/job.py`
with an `Answer` at their end, and `answer_now`, which says whether it can.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from mull.engine.sampler import derive_seed
from mull.errors import UserError
from mull.search.allocate import load_calibration
from mull.search.choose import same_text
from mull.search.named import named
from mull.search.sources import Opened
from mull.serve.job import Delta, Job, Progress, Result, Thought, follow
from mull.serve.plan import SINGLE, WORDS, Plan, Wish, plan
from mull.serve.settings import Settings
from mull.serve.summary import Section
from mull.serve.vendor import vendor
from mull.types import Question

Messages = Sequence[Mapping[str, str]]


@dataclass
class Wants:
    """What a person asked for on the command line or with /effort. None and "": nothing was said."""

    effort: str = ""
    strategy: str = ""
    samples: int | None = None
    think_tokens: int | None = None
    answer_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    thoughts: bool = False  # raw, in place of their summary


@dataclass
class Answer:
    """The end of a turn. Counts are None where a server does not tell them."""

    content: str
    finish: str = "stop"
    prompt: int | None = None  # tokens
    cached: int | None = None
    completion: int | None = None
    reasoning: int | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict)  # mull's vendor object; empty: it is no mull


Told = Progress | Thought | Section | Delta | Answer


class Talker(Protocol):
    name: str

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def check(self, wants: Wants) -> None:
        """UserError for what cannot be had here."""
        ...

    def ask(self, messages: Messages, wants: Wants, turn: int) -> AsyncGenerator[Told]:
        """UserError for what cannot be answered."""
        ...

    async def answer_now(self) -> bool: ...


class Local:
    """A model in this process."""

    def __init__(self, name: str, tools: Opened, calibration: str = ""):
        self.name, self._tools, self._calibration = name, tools, calibration
        self._chains: dict[str, int] | None = None
        if calibration:
            known = load_calibration(calibration)
            self._chains = {
                level: max((p.samples for p in known.points[at].plans), default=1)
                for level, at in known.efforts.items()
            }
        self._job: Job | None = None

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def check(self, wants: Wants) -> None:
        self._plan(wants, (), 1 << 20)

    async def ask(self, messages: Messages, wants: Wants, turn: int) -> AsyncGenerator[Told]:
        chat, context = self._tools.chat, self._tools.context or 1 << 20
        prompt = len(chat.prompt([*messages]))
        if context - prompt < 2:
            raise UserError(
                f"the conversation has {prompt} tokens and the model's context is {context}: /new begins another"
            )
        question = Question("chat", "free", messages[-1]["content"], messages=tuple(messages))
        made, seed = self._plan(wants, messages, context - prompt), derive_seed(wants.seed or 0, turn)
        job = self._job = Job(question, made, self._tools, seed=seed, calibration=self._calibration)
        held = ""  # an answer whose thought is known with the result, and shown before it
        async with aclosing(follow(job, tick=0.2)) as events:
            async for event in events:
                if isinstance(event, Result):
                    if held and event.thought:
                        yield Thought(event.thought + "\n")
                    if held:
                        yield Delta(held)
                    yield told(event)
                elif isinstance(event, Delta) and wants.thoughts and not made.single:
                    held += event.text
                elif not isinstance(event, Section if wants.thoughts else Thought):
                    yield event

    async def answer_now(self) -> bool:
        if self._job is not None:
            self._job.answer_now()
        return True

    def _plan(self, wants: Wants, messages: Messages, room: int) -> Plan:
        s = Settings()
        wish = Wish(
            tuple(messages),
            effort=WORDS[wants.effort] if wants.effort else None,
            strategy=wants.strategy,
            samples=wants.samples,
            temperature=wants.temperature,
        )
        made = plan(
            wish,
            room=room,
            default=s.effort,
            think_tokens=s.think_tokens if wants.think_tokens is None else wants.think_tokens,
            answer_tokens=wants.answer_tokens or s.answer_tokens,
            most_samples=max(s.max_samples, wants.samples or 0),
            calibration=self._chains,
        )
        if made.strategy != SINGLE:
            self._tools.bind(named(made.strategy), same_text, self._calibration)
        return made


def told(result: Result) -> Answer:
    return Answer(
        result.content,
        result.finish,
        result.prompt_tokens,
        result.cached_tokens,
        result.completion_tokens,
        result.reasoning_tokens,
        vendor(result),
    )
