"""Admission: who may start, who waits and who is sent away, decided before a prompt is tokenised. No torch.

What a request reserves is the most that it can hold at one moment: pages of keys and values (its branches share the
full pages of their prompt), and places for branches that are decoded side by side. Strategies that run their branches
in turns reserve one turn of them (see `side_by_side`). The engine keeps its own bounds whatever is admitted; this gate
keeps requests from pushing one another out of memory, and an overload from making everybody wait for ever.

Requests come in in the order of their arrival, a large one before the small ones behind it. The first in line waits for
room for all its chains; it takes as many as there is room for once it has waited for half of the time that it may, or
when somebody would have to be sent away otherwise.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from mull.engine.pages import PAGE
from mull.search.named import named, options_of
from mull.serve.errors import busy, going_down
from mull.serve.plan import Plan

TAGS = 8  # tokens that a strategy may write into a chain itself: a closing tag, above all
RECENT = 60.0  # seconds of departures that an estimate of the wait looks back on
UNBOUNDED = 1 << 60  # where there is nothing to count


@dataclass(frozen=True)
class Room:
    """An amount of what requests share."""

    pages: int = 0  # of PAGE tokens
    branches: int = 0  # sequences that are decoded side by side

    def __add__(self, other: Room) -> Room:
        return Room(self.pages + other.pages, self.branches + other.branches)

    def __sub__(self, other: Room) -> Room:
        return Room(self.pages - other.pages, self.branches - other.branches)

    def holds(self, other: Room) -> bool:
        return other.pages <= self.pages and other.branches <= self.branches

    def capped(self, other: Room) -> Room:
        return Room(min(self.pages, other.pages), min(self.branches, other.branches))


Need = Callable[[int], Room]  # of so many chains, 1 or more; never less for more chains


@functools.lru_cache(maxsize=256)
def _read(strategy: str) -> tuple[str, dict[str, Any]]:
    """(name, all options) of a strategy."""
    known = named(strategy)
    return known.name, {key: p.default for key, p in options_of(known.name).items()} | known.options


def side_by_side(plan: Plan) -> int:
    """How many branches a plan decodes at the same time, at most. (`auto`: what its calibration samples at most.)"""
    (name, options), n = _read(plan.strategy), plan.samples
    match name:
        case "adaptive" | "adaptive-weighted":
            return min(n, options["batch"])
        case "mcts":
            return max(1, min(options["parallel"], n // 4)) * options["expand"]
        case "tot-bfs":
            return n * options["expand"]
        case "tot-dfs":
            return options["expand"]
        case "roles":
            return n * options["chains"]
        case "revise":
            return 1
    return n


def needs(plan: Plan, prompt: int, context: int) -> Room:
    """The most that a plan holds at one moment, for a prompt of so many tokens and a model of that context."""
    n, shared = side_by_side(plan), prompt // PAGE
    inside = plan.branch_tokens + TAGS
    if _read(plan.strategy)[0] == "revise":  # earlier attempts may stand in its prompt
        inside = context
    each = -(-min(prompt % PAGE + inside, context - shared * PAGE) // PAGE)
    pages = n * max(1, each)
    if plan.tokens is not None:  # all branches share the budget; each may leave two pages half empty
        pages = min(pages, 2 * n + -(-(plan.tokens + n * TAGS) // PAGE))
    room = Room(shared + pages, n)
    if plan.summary:  # beside a single chain, but behind many
        writer = Room(-(-plan.summary // PAGE), 1)
        return room + writer if plan.single else Room(max(room.pages, writer.pages), n)
    return room


def needs_at_most(plan: Plan, prompt: int, context: int) -> Room:
    """The same, where the prompt may have fewer tokens. (A longer one may need less: more of it is shared.)"""
    prompt = max(0, min(prompt, context - plan.branch_tokens - TAGS))
    return needs(plan, prompt // PAGE * PAGE + PAGE - 1, context + prompt + PAGE)  # no chain is cut short


@dataclass(eq=False)
class Place:
    """What a request holds while it is inside."""

    chains: int
    room: Room
    waited: float  # seconds


@dataclass(eq=False)
class _Waiting:
    need: Need
    wanted: int
    admitted: asyncio.Future[Place]
    since: float


@dataclass
class Gate:
    """`capacity` is what all who are inside may hold together; at most `queue` wait, at most `seconds` each."""

    capacity: Room
    queue: int
    seconds: float
    reserved: Room = Room()
    inside: int = 0
    closed: bool = False
    line: deque[_Waiting] = field(default_factory=deque)
    _departures: deque[float] = field(default_factory=lambda: deque(maxlen=256))

    @asynccontextmanager
    async def enter(self, need: Need, wanted: int) -> AsyncIterator[Place]:
        """Room for `wanted` chains or fewer, as soon as there is; what is held is given back at the end, however that
        comes. ApiError: 429 when too many wait already or this one has waited too long, 503 once the gate is closed.

        What does not even fit alone must not be asked for: it counts as all there is.
        """
        place = await self._admitted(lambda n: need(n).capped(self.capacity), wanted)
        try:
            yield place
        finally:
            self.reserved -= place.room
            self.inside -= 1
            self._departures.append(time.monotonic())
            self._serve()

    def fit(self, place: Place, need: Need, wanted: int) -> None:
        """Reserves what is needed now that it is known exactly. Chains that an estimate had cost may come back, though
        not before those who wait. A need that has grown is granted for one chain whatever there is."""
        limit = place.room if self.line else self.capacity - (self.reserved - place.room)
        place.chains = _most(need, wanted, limit) or 1
        self.reserved += need(place.chains) - place.room
        place.room = need(place.chains)
        self._serve()

    def more(self, place: Place, room: Room) -> bool:
        """Lets a place hold so much, if there is that much and nobody waits for it; whether it may."""
        if self.line or not (self.capacity - (self.reserved - place.room)).holds(room):
            return False
        self.reserved += room - place.room
        place.room = room
        return True

    def close(self) -> None:
        """Nobody comes in any more, and who waits is told so."""
        self.closed = True
        while self.line:
            _refuse(self.line.popleft())

    def resize(self, capacity: Room) -> None:
        self.capacity = capacity
        self._serve()

    def wait(self) -> float:
        """Seconds, from 1 to 60, after which one more request may find a place: by the departures of late."""
        now = time.monotonic()
        late = [at for at in self._departures if now - at < RECENT]
        if not late:
            return min(RECENT, max(1.0, self.seconds))
        each = max(now - late[0], 1.0) / len(late)
        return min(RECENT, max(1.0, each * (len(self.line) + 1)))

    async def _admitted(self, need: Need, wanted: int) -> Place:
        if self.closed:
            raise going_down()
        loop = asyncio.get_running_loop()
        one = _Waiting(need, wanted, loop.create_future(), time.monotonic())
        self.line.append(one)
        self._serve()
        if len(self.line) > self.queue and not one.admitted.done():
            self.line.remove(one)
            raise busy(f"{len(self.line)} requests are waiting already: try again later.", self.wait())
        hurry = loop.call_later(self.seconds / 2, self._serve)
        try:
            await asyncio.wait({one.admitted}, timeout=self.seconds)
        except asyncio.CancelledError:
            if one.admitted.done() and not one.admitted.exception():  # it came in as its client went away
                self.reserved -= one.admitted.result().room
                self.inside -= 1
            self._withdraw(one)
            raise
        finally:
            hurry.cancel()
        if not one.admitted.done():
            self._withdraw(one)
            raise busy(f"There was no room for this request within {self.seconds:g} s.", self.wait())
        return one.admitted.result()

    def _withdraw(self, one: _Waiting) -> None:
        if one in self.line:
            self.line.remove(one)
        self._serve()

    def _serve(self) -> None:
        """Lets in whoever is next, as long as there is room."""
        while self.line and not self.closed:
            one, waited = self.line[0], time.monotonic() - self.line[0].since
            free = self.capacity - self.reserved
            pressed = len(self.line) > self.queue or waited >= 0.499 * self.seconds
            chains = _most(one.need, one.wanted, free) if pressed else one.wanted * free.holds(one.need(one.wanted))
            if not chains:
                return
            self.line.popleft()
            place = Place(chains, one.need(chains), waited)
            self.reserved += place.room
            self.inside += 1
            one.admitted.set_result(place)


def _most(need: Need, wanted: int, limit: Room) -> int:
    """The most chains up to `wanted` that fit into the limit; 0: not even one."""
    return next((n for n in range(wanted, 0, -1) if limit.holds(need(n))), 0)


def _refuse(one: _Waiting) -> None:
    one.admitted.set_exception(going_down())
    one.admitted.exception()  # seen, whether or not somebody still waits for it
