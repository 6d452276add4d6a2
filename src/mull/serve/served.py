"""One model that is served: its name, the weights that answer, what may be spent on a question, and who may come in.

Several stand beside each other in one service, each with an engine, a tokenizer, a context and a gate of its own, so
that nothing of one reaches a question to another. `service.py` finds the one that a request names.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mull.chat import Chat
from mull.chat.template import strings
from mull.engine.pages import PAGE
from mull.errors import UserError
from mull.search.allocate import Calibration, load_calibration
from mull.search.sources import Opened, Source
from mull.serve.errors import ApiError, invalid
from mull.serve.gate import UNBOUNDED, Gate, Place, Room, needs, needs_at_most
from mull.serve.plan import SINGLE, Plan, Wish, plan
from mull.serve.settings import Settings
from mull.serve.weights import Weights
from mull.serve.written import needed
from mull.types import Question

if TYPE_CHECKING:
    from mull.serve.meter import Record

MOST = 128  # of any number in a client's strategy: how many branches a node has, and the like
LONG = 1 << 14  # bytes of a conversation from which on it is tokenised in a thread, so that nobody waits for that


class Served:
    """`main`: the name of the main model, where this is another one. The calibration file is that one's alone."""

    def __init__(self, settings: Settings, name: str, source: Source, tools: Opened, main: str = ""):
        self.settings, self.name, self.source, self.main = settings, name, source, main
        self.calibration = "" if main else settings.calibration
        self.weights = Weights(source, tools)
        self.gate = Gate(self._capacity(), settings.queue, settings.queue_seconds)

    @property
    def tools(self) -> Opened:
        """What new requests work with."""
        return self.weights.current.tools

    def public(self, problem: UserError) -> str:
        """What it says, without where the model lies or runs: that is for the operator alone."""
        s, said = self.source, str(problem)
        folder = "" if s.endpoint or not (self.main or self.settings.model) else s.model
        for private in sorted({self.tools.chat.name, folder, s.endpoint.rstrip("/"), s.tokenizer} - {""}, key=len)[
            ::-1
        ]:
            said = said.replace(private, "the model")
        return said

    def resized(self) -> None:
        """The engine is another one: its memory counts."""
        self.gate.resize(self._capacity())

    # ------------------------------------------------------------------------------------------ what is asked

    @property
    def calibrated(self) -> Calibration | None:
        """What was measured of its efforts."""
        return load_calibration(self.calibration) if self.calibration else None

    def plan(self, wish: Wish, prompt: int, tools: Opened | None = None) -> Plan:
        """What may be spent on a wish whose prompt has so many tokens; ApiError for a strategy that cannot run."""
        s, tools = self.settings, tools or self.tools
        chains = None
        if known := self.calibrated:
            chains = {
                level: max((p.samples for p in known.points[at].plans), default=1)
                for level, at in known.efforts.items()
            }
        made = plan(
            wish,
            room=max(2, (tools.context or 1 << 20) - prompt),
            default=s.effort,
            think_tokens=s.think_tokens,
            answer_tokens=s.answer_tokens,
            most_samples=s.max_samples,
            calibration=chains,
        )
        if made.strategy != SINGLE:
            self._refuse_unknown(made)
        return made

    @asynccontextmanager
    async def admitted(self, wish: Wish, record: Record) -> AsyncIterator[tuple[Question, Plan, Opened]]:
        """The question, its plan and what to run it on, with room for it. Nothing is tokenised before there is room,
        for which the bytes of the conversation bound the tokens."""
        question, rough, context = asked(wish), self.plan(wish, 0), self.tools.context or 1 << 20
        size = sum(len(text.encode("utf-8", "replace")) for text in strings(wish.messages))
        around, each = overhead(self.tools.chat)
        bound = size + around + each * len(wish.messages)
        # More than the model's context is refused once it is tokenised; until then it counts as all of it.
        async with self.gate.enter(
            lambda n: needs_at_most(rough.reduced(n), min(bound, context), context), rough.samples
        ) as place:
            record.admitted, record.waited = True, place.waited
            with self.weights.in_use() as tools:
                if size < LONG:
                    prompt = self._tokens(tools.chat, question)
                else:
                    prompt = await asyncio.to_thread(self._tokens, tools.chat, question)
                self._refuse_longer(prompt, tools)
                made, context = self.plan(wish, prompt, tools), tools.context or 1 << 20

                def exact(n: int) -> Room:
                    return needs(made.reduced(n), prompt, context)

                if not self._alone().holds(exact(1)):
                    message = (
                        f"The request needs {exact(1).pages} pages of memory, of {PAGE} tokens each, and the server"
                        f" has {self._alone().pages}: shorten the prompt or lower max_completion_tokens."
                    )
                    raise ApiError(400, message, param="messages", code="context_length_exceeded")
                self.gate.fit(place, exact, made.samples)
                record.plain = is_plain(wish)
                made = made.reduced(place.chains)
                if wish.summary and self.settings.summaries == "model":
                    made = self._written(made, place, prompt, tools)
                yield question, made, tools

    def _written(self, made: Plan, place: Place, prompt: int, tools: Opened) -> Plan:
        """With a summary that the model writes, where room is left for that: no chain gives way to it, so that answers
        do not depend on it, and nobody is sent away for it."""
        context = tools.context or 1 << 20
        full = replace(made, summary=needed(tools.chat, made.think_tokens, context))
        return full if full.summary and self.gate.more(place, needs(full, prompt, context)) else made

    def _tokens(self, chat: Chat, question: Question) -> int:
        try:
            return len(chat.prompt(question.asked))
        except UserError as problem:
            raise invalid(self.public(problem), "messages") from None

    def _refuse_longer(self, prompt: int, tools: Opened) -> None:
        if (tools.context or 1 << 20) - prompt < 2:
            raise ApiError(400, too_long(prompt, tools.context), param="messages", code="context_length_exceeded")

    def _refuse_unknown(self, made: Plan) -> None:
        from mull.search.named import named

        try:
            strategy = named(made.strategy)
            for key, value in strategy.options.items():
                most = self.settings.think_tokens if key == "least" else max(MOST, self.settings.max_samples)
                if isinstance(value, (int, float)) and not -1 <= value <= most:
                    raise UserError(f"strategy {made.strategy!r}: {key} must lie between -1 and {most} here")
            self._refuse_what_is_the_mains(strategy.name, strategy.needs)
            self.tools.bind(strategy, lambda question, answer: answer, self.calibration)
        except UserError as problem:
            raise invalid(self.public(problem), "mull.strategy") from None

    def _refuse_what_is_the_mains(self, strategy: str, wanted: set[str]) -> None:
        """The server has it, but not for this model."""
        s = self.settings
        scorer = s.scorer if self.tools.scorer is None else ""
        have = {"scorer": scorer, "critic": s.critic, "calibration": s.calibration}
        if self.main and (missing := sorted(need for need in wanted if have.get(need))):
            raise UserError(
                f"the strategy {strategy} needs a {missing[0]}, and this server's is for the model {self.main!r} alone:"
                " ask that one, or take another strategy"
            )

    # ------------------------------------------------------------------------------------------------- memory

    def _capacity(self) -> Room:
        """What requests may reserve together. A model that runs elsewhere has no pages here."""
        s = self.settings
        pool: Any = getattr(self.tools.sampler, "pool", None)
        pages = UNBOUNDED if pool is None else max(1, int(pool.num_pages * s.overcommit))
        return Room(pages, max(1, int(s.max_sequences * s.overcommit)))

    def _alone(self) -> Room:
        """What one request may need: memory that is promised twice is still there once."""
        pool: Any = getattr(self.tools.sampler, "pool", None)
        return self.gate.capacity if pool is None else self.gate.capacity.capped(Room(pool.num_pages, UNBOUNDED))


def asked(wish: Wish) -> Question:
    text = str(wish.messages[-1].get("content") or "") if wish.messages else ""
    return Question("request", "free", text, messages=wish.messages)


def too_long(prompt: int, context: int | None) -> str:
    """Of tokens. OpenAI's words, by which LiteLLM and others find out that another model may do."""
    return f"This model's maximum context length is {context} tokens, and the prompt has {prompt}: shorten it."


def is_plain(wish: Wish) -> bool:
    """Whether a wish says no more of what it may spend than an effort."""
    return not wish.strategy and (wish.samples, wish.think_budget, wish.max_tokens) == (None, None, None)


@functools.lru_cache(maxsize=8)
def overhead(chat: Chat) -> tuple[int, int]:
    """(tokens of a prompt around its text, more for each message), with room to spare."""

    def tokens(*roles: str) -> int:
        try:
            return len(chat.prompt([{"role": role, "content": "a"} for role in roles]))
        except UserError:
            return 64 * len(roles)  # a template with a will of its own

    one, three = tokens("user"), tokens("user", "assistant", "user")
    return one + 16, max(8, three - one)
