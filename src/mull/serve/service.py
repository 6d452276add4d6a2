"""Requests between the APIs and the engine: what each may spend, whether there is room, and who is at work.

    async with service.job(wish, request) as job:
        async for event in follow(job): …

Every API goes through `job`, so limits, admission, counting and cancelling are in one place.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mull.engine.sampler import derive_seed
from mull.errors import UserError
from mull.search.allocate import load_calibration
from mull.search.sources import Opened
from mull.serve.errors import ApiError, going_down, invalid
from mull.serve.job import Job
from mull.serve.plan import SINGLE, Plan, Wish, plan
from mull.serve.settings import Settings
from mull.types import Question

MOST = 128  # of any number in a client's strategy: how many branches a node has, and the like


@dataclass
class Service:
    settings: Settings
    tools: Opened
    created: int = field(default_factory=lambda: int(time.time()))
    jobs: dict[str, Job] = field(default_factory=dict)  # by request id: what "answer now" and the page look up
    draining: bool = False
    number: int = 0  # of requests so far, for seeds

    @property
    def name(self) -> str:
        """What clients call the model."""
        s = self.settings
        return s.name or s.endpoint_model or Path(s.model or "nano").resolve().name

    def public(self, problem: UserError) -> str:
        """What it says, without where the model lies or runs: that is for the operator alone."""
        s, said = self.settings, str(problem)
        for private in sorted({self.tools.chat.name, s.model, s.endpoint.rstrip("/"), s.tokenizer} - {""}, key=len)[
            ::-1
        ]:
            said = said.replace(private, "the model")
        return said

    @asynccontextmanager
    async def job(self, wish: Wish, request: str, choice: int = 0) -> AsyncIterator[Job]:
        """A job for a wish, once there is room for it; ApiError where it cannot be served. Leaving withdraws it.

        `request`: the id under which it is found; `choice`: which of a request's n answers, for its seed.
        """
        if self.draining:
            raise going_down()
        question, plan = self.planned(wish)
        seed = wish.seed if wish.seed is not None else derive_seed(self.settings.seed, self.number)
        self.number += 1
        job = Job(
            question,
            plan,
            self.tools,
            seed=derive_seed(seed, choice),
            stop=wish.stop,
            calibration=self.settings.calibration,
            most_seconds=self.settings.max_seconds,
        )
        self.jobs[request] = job
        try:
            yield job
        finally:
            self.jobs.pop(request, None)

    @asynccontextmanager
    async def place(self, tokens: int) -> AsyncIterator[Opened]:
        """Room for `tokens` tokens, at most, sampled or read without a strategy (/v1/completions); what to do it with.
        ApiError where there is none. Leaving gives the room back."""
        if self.draining:
            raise going_down()
        yield self.tools

    def planned(self, wish: Wish) -> tuple[Question, Plan]:
        """What is asked and what may be spent on it; ApiError for a prompt that does not fit."""
        s = self.settings
        text = str(wish.messages[-1].get("content") or "") if wish.messages else ""
        question = Question("request", "free", text, messages=wish.messages)
        try:
            prompt = len(self.tools.chat.prompt(question.asked))
        except UserError as problem:
            raise invalid(self.public(problem), "messages") from None
        room = (self.tools.context or 1 << 20) - prompt
        if room < 2:
            message = f"The prompt has {prompt} tokens and the model's context is {self.tools.context}: shorten it."
            raise ApiError(400, message, param="messages", code="context_length_exceeded")
        chains = None
        if s.calibration:
            known = load_calibration(s.calibration)
            chains = {
                level: max((p.samples for p in known.points[at].plans), default=1)
                for level, at in known.efforts.items()
            }
        made = plan(
            wish,
            room=room,
            default=s.effort,
            think_tokens=s.think_tokens,
            answer_tokens=s.answer_tokens,
            most_samples=s.max_samples,
            calibration=chains,
        )
        if made.strategy != SINGLE:
            self._refuse_unknown(made)
        return question, made

    def _refuse_unknown(self, made: Plan) -> None:
        from mull.search.named import named

        try:
            strategy = named(made.strategy)
            for key, value in strategy.options.items():
                most = self.settings.think_tokens if key == "least" else max(MOST, self.settings.max_samples)
                if isinstance(value, (int, float)) and not -1 <= value <= most:
                    raise UserError(f"strategy {made.strategy!r}: {key} must lie between -1 and {most} here")
            self.tools.bind(strategy, lambda question, answer: answer, self.settings.calibration)
        except UserError as problem:
            raise invalid(self.public(problem), "mull.strategy") from None
