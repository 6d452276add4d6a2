"""Admission: bounds that hold, order, fewer chains before a refusal, and nothing kept by who has left, however."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.engine.local import LocalEngine
from mull.engine.pages import PAGE
from mull.scorers.confidence import Confidence
from mull.search.sources import Opened
from mull.serve.errors import ApiError, busy
from mull.serve.gate import Gate, Room, needs, needs_at_most, side_by_side
from mull.serve.job import Job, answered
from mull.serve.plan import SINGLE, VOTE, Plan
from mull.tasks.load import load_task
from tests.serve.tools import nano


def gate(pages: int = 10, queue: int = 8, seconds: float = 30.0) -> Gate:
    return Gate(Room(pages, 1000), queue, seconds)


def chains(each: int = 1):
    return lambda n: Room(n * each, n)


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


class Guest:
    """Somebody who comes to a gate, and stays until told to go."""

    def __init__(self, gate: Gate, pages: int, wanted: int = 1):
        self.place, self.leave = None, asyncio.Event()
        self.task = asyncio.ensure_future(self._visit(gate, pages, wanted))

    async def _visit(self, gate: Gate, pages: int, wanted: int) -> None:
        async with gate.enter(chains(pages), wanted) as self.place:
            await self.leave.wait()

    async def go(self) -> None:
        self.leave.set()
        await self.task


# ---------------------------------------------------------------------------------------------- how much is reserved


PLANS = [
    Plan("low", SINGLE, 1, 48, 16, None),
    Plan("none", SINGLE, 1, 0, 16, None),
    Plan("high", VOTE, 12, 48, 16, None),
    Plan("high", "adaptive:batch=2,threshold=1", 6, 48, 16, None),
    Plan("high", "adaptive:batch=9", 6, 48, 16, None),
    Plan("high", "vote", 12, 48, 16, None),
    Plan("high", "vote", 12, 48, 16, 100),
    Plan("high", "wait:waits=2", 5, 48, 16, None),
    Plan("high", "best-of-n", 7, 48, 16, None),
    Plan("high", "beam:expand=2", 6, 48, 16, None),
    Plan("high", "lookahead:expand=3", 6, 48, 16, None),
    Plan("high", "dvts:expand=2", 6, 48, 16, None),
    Plan("high", "rebase", 6, 48, 16, None),
    Plan("high", "mcts:expand=3,parallel=5", 16, 48, 16, None),
    Plan("high", "mcts:value=rollout", 24, 48, 16, None),
    Plan("high", "particles", 6, 48, 16, 300),
    Plan("high", "tot-bfs:expand=3", 3, 48, 16, None),
    Plan("high", "tot-dfs", 5, 48, 16, None),
    Plan("high", "revise:how=turn", 4, 48, 16, None),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.strategy}-{p.samples}-{p.tokens}")
def test_no_strategy_holds_more_than_is_reserved_for_it(plan: Plan):
    """Pages and sequences at every step of the engine, against the bounds."""
    model, chat = nano()
    engine = LocalEngine(model, chat, max_sequences=128, memory_bytes=64 << 20)
    tools = Opened(engine, chat, Confidence(model, engine, chat, "logprob"), None, None, None, 1024)
    question = next(iter(load_task("chain").stream(3, "test", 0))).question
    bound = needs(plan, len(chat.prompt(question.asked)), 1024)
    most, step = Room(), engine._step

    def watched():
        nonlocal most
        done = step()
        now = Room(engine.pool.held, len(engine.schedule.order) + len(engine.schedule.waiting))
        most = Room(max(most.pages, now.pages), max(most.branches, now.branches))
        return done

    engine._step = watched
    result = asyncio.run(answered(Job(question, plan, tools, seed=1)))
    assert result.content and bound.holds(most), (most, bound)
    assert side_by_side(plan) == bound.branches
    if plan.strategy in ("vote", "best-of-n", SINGLE, VOTE) and plan.tokens is None and plan.think_tokens:
        # Not idly large either: a completion that has sampled all it may holds nearly that.
        assert most.branches * 2 >= bound.branches


def test_what_runs_in_turns_reserves_one_turn():
    voting = Plan("high", VOTE, 32, 100, 28, None)
    assert side_by_side(voting) == 4 and side_by_side(replace(voting, strategy="vote")) == 32
    alone = needs(replace(voting, strategy=SINGLE, samples=1), 64, 1024)
    assert needs(voting, 64, 1024).pages == 64 // PAGE + 4 * (alone.pages - 64 // PAGE)


def test_a_budget_over_all_branches_bounds_them_together():
    plan = Plan("high", "vote", 16, 320, 64, None)
    assert needs(replace(plan, tokens=160), 0, 1024).pages < needs(plan, 0, 1024).pages / 5
    assert needs(replace(plan, tokens=1 << 30), 0, 1024) == needs(plan, 0, 1024)


@given(
    st.integers(0, 900), st.integers(0, 5000), st.integers(0, 700), st.sampled_from(["vote", VOTE, SINGLE, "revise"])
)
def test_the_bound_by_bytes_is_never_below_the_exact_one(prompt: int, more: int, think: int, strategy: str):
    plan = Plan("high", strategy, 6, think, 16, None)
    rough, exact = needs_at_most(plan, prompt + more, 1024), needs(plan, prompt, 1024)
    assert rough.holds(exact)
    assert rough.pages <= 7 * 1024 // PAGE + 12


@given(st.sampled_from(PLANS), st.integers(0, 1000))
def test_fewer_chains_never_need_more(plan: Plan, prompt: int):
    found = [needs(plan.reduced(n), prompt, 1024) for n in range(1, plan.samples + 1)]
    assert all(b.holds(a) for a, b in pairwise(found))


# ------------------------------------------------------------------------------------------------------ order


def test_who_comes_first_is_served_first_and_nothing_overtakes_a_large_one():
    async def run():
        at = gate(10, seconds=60)
        first = [Guest(at, 4), Guest(at, 4)]
        await turns()
        large = Guest(at, 9)
        small = [Guest(at, 1) for _ in range(3)]  # there is room for two of them
        await turns()
        assert [g.place is not None for g in (*first, large, *small)] == [True, True, False, False, False, False]
        await first[0].go()
        await turns()
        assert large.place is None and small[0].place is None
        await first[1].go()
        await turns()
        assert large.place is not None and [g.place is not None for g in small] == [True, False, False]
        assert at.reserved == Room(10, 2)
        await large.go()
        await turns()
        assert all(g.place for g in small) and not at.line
        for g in small:
            await g.go()
        assert at.reserved == Room() and at.inside == 0

    asyncio.run(run())


def test_whole_seconds_are_never_too_few():
    for seconds, whole, exact in ((0.0, "1", "1"), (1.4, "2", "1400"), (1.6, "2", "1600"), (7.0, "7", "7000")):
        headers = busy("full", seconds).headers
        assert (headers["Retry-After"], headers["retry-after-ms"]) == (whole, exact)


def test_a_full_queue_sends_away_with_a_time_to_come_again():
    async def run():
        at = gate(4, queue=2, seconds=7)
        inside, *waiting = [Guest(at, 4) for _ in range(3)]
        await turns()
        with pytest.raises(ApiError) as refusal:
            async with at.enter(chains(1), 1):
                raise AssertionError("it was let in")
        assert refusal.value.status == 429 and refusal.value.headers["Retry-After"] == "7"  # nobody has left yet
        assert len(at.line) == 2
        for g in (inside, *waiting):
            await g.go()
        with pytest.raises(ApiError) as refusal:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(at.enter(chains(4), 1))
                line = [Guest(at, 4), Guest(at, 4)]
                await turns()
                await stack.enter_async_context(at.enter(chains(1), 1))
        assert refusal.value.headers["Retry-After"] == "1"  # three have left in no time
        for g in line:
            await g.go()
        assert at.reserved == Room()

    asyncio.run(run())


def test_nobody_waits_longer_than_allowed_and_the_next_one_gets_the_chance():
    async def run():
        at = gate(4, seconds=0.05)
        inside = Guest(at, 3)
        await turns()
        large = Guest(at, 4)
        await asyncio.sleep(0.03)
        small = Guest(at, 1)
        await turns()
        assert small.place is None
        with pytest.raises(ApiError) as refusal:
            await large.task
        await turns()
        assert refusal.value.status == 429 and small.place is not None and small.place.waited > 0
        await small.go()
        await inside.go()
        assert at.reserved == Room() and not at.line

    asyncio.run(run())


def test_a_closed_gate_tells_everybody_who_waits_or_comes():
    async def run():
        at = gate(4)
        inside, waiting = Guest(at, 4), Guest(at, 1)
        await turns()
        at.close()
        late = Guest(at, 1)
        for g in (waiting, late):
            with pytest.raises(ApiError) as refusal:
                await g.task
            assert refusal.value.status == 503 and "Retry-After" in refusal.value.headers
        assert inside.place is not None and at.reserved == Room(4, 1)  # who is inside may finish
        await inside.go()
        assert at.reserved == Room()

    asyncio.run(run())


# ------------------------------------------------------------------------------------------------ fewer chains


def test_what_never_fits_whole_gets_as_many_chains_as_fit():
    async def run():
        at = gate(10)
        async with at.enter(chains(3), 8) as place:  # it counts as all there is, so it is let in
            assert (place.chains, place.room) == (8, Room(10, 8))
            at.fit(place, chains(3), 8)
            assert (place.chains, place.room, at.reserved) == (3, Room(9, 3), Room(9, 3))
        assert at.reserved == Room()

    asyncio.run(run())


def test_the_first_in_line_takes_fewer_chains_before_anybody_is_sent_away():
    async def run():
        at = gate(10, queue=1, seconds=60)
        inside = Guest(at, 6)
        await turns()
        wide = Guest(at, 2, 5)
        await turns()
        assert wide.place is None  # it waits for all five
        small = Guest(at, 1)
        await turns()
        assert wide.place is not None and wide.place.chains == 2 and small.place is None and len(at.line) == 1
        await inside.go()
        await turns()
        assert small.place is not None and wide.place.chains == 2
        for g in (wide, small):
            await g.go()
        assert at.reserved == Room()

    asyncio.run(run())


def test_without_a_queue_fewer_chains_come_before_a_refusal():
    async def run():
        at = gate(10, queue=0)
        inside = Guest(at, 7)
        await turns()
        async with at.enter(chains(1), 8) as place:
            assert place.chains == 3
            with pytest.raises(ApiError):
                async with at.enter(chains(1), 8):
                    pass
        await inside.go()
        assert at.reserved == Room()

    asyncio.run(run())


def test_after_half_of_its_time_the_first_in_line_takes_what_there_is():
    async def run():
        at = gate(10, seconds=0.2)
        inside = Guest(at, 8)
        await turns()
        wide = Guest(at, 1, 5)
        await asyncio.sleep(0.05)
        assert wide.place is None
        await asyncio.wait({wide.task}, timeout=0.1)
        assert wide.place is not None and wide.place.chains == 2 and wide.place.waited >= 0.09
        for g in (inside, wide):
            await g.go()

    asyncio.run(run())


def test_exact_counts_give_room_back_and_chains_with_it_if_nobody_waits():
    async def run():
        at = gate(10, queue=0)
        inside = Guest(at, 6)
        await turns()
        async with at.enter(chains(2), 4) as place:
            assert place.chains == 2
            at.fit(place, chains(1), 4)
            assert place.chains == 4 and at.reserved == Room(10, 5)
        at.queue = 5
        async with at.enter(chains(2), 2) as place:
            waiting = Guest(at, 3)
            await turns()
            assert waiting.place is None
            at.fit(place, chains(1), 2)  # its own room suffices for both
            await turns()
            assert place.chains == 2 and waiting.place is None and at.reserved.pages == 8
            at.fit(place, lambda n: Room(1, n), 2)
            await turns()
            assert waiting.place is not None
        await waiting.go()
        async with at.enter(chains(1), 2) as place:  # a tokenizer that made more of the bytes than there are
            at.fit(place, chains(50), 2)
            assert place.chains == 1 and at.reserved.pages == 56
            late = Guest(at, 1)
            await turns()
            assert late.place is None
        await inside.go()
        await late.go()
        assert at.reserved == Room() and at.inside == 0

    asyncio.run(run())


def test_a_place_may_hold_more_where_there_is_more_and_nobody_waits():
    async def run():
        at = gate(10)
        async with at.enter(chains(4), 1) as place:
            assert not at.more(place, Room(11, 2)) and at.reserved == Room(4, 1)
            assert at.more(place, Room(7, 2)) and place.room == at.reserved == Room(7, 2)
            waiting = Guest(at, 5)
            await turns()
            assert waiting.place is None and not at.more(place, Room(8, 2))
        await turns()
        assert waiting.place is not None and at.reserved == Room(5, 1)
        await waiting.go()
        assert at.reserved == Room()

    asyncio.run(run())


# --------------------------------------------------------------------------------------------------- leaving


def test_a_client_that_goes_away_while_it_waits_leaves_the_queue_at_once():
    async def run():
        at = gate(4)
        inside, large, small = Guest(at, 3), Guest(at, 4), Guest(at, 1)
        await turns()
        assert small.place is None and len(at.line) == 2
        large.task.cancel()
        await turns()
        assert large.task.cancelled() and small.place is not None and not at.line
        for g in (inside, small):
            await g.go()
        assert at.reserved == Room()

    asyncio.run(run())


def test_who_goes_away_in_the_moment_of_being_let_in_keeps_nothing():
    async def run():
        at = gate(4)
        inside, waiting = Guest(at, 4), Guest(at, 4)
        await turns()
        inside.leave.set()
        await turns(1)  # it has left, and the one who waits was let in, without having noticed
        assert at.reserved == Room(4, 1) and waiting.place is None
        waiting.task.cancel()
        await turns()
        assert waiting.task.cancelled() and waiting.place is None
        assert at.reserved == Room() and at.inside == 0
        async with at.enter(chains(4), 1):
            pass

    asyncio.run(run())


@pytest.mark.parametrize("error", [ValueError("a bug"), ApiError(400, "no"), asyncio.CancelledError(), GeneratorExit()])
def test_whatever_happens_inside_the_room_is_given_back(error: BaseException):
    async def run():
        at = gate(4)
        with pytest.raises(type(error)):
            async with at.enter(chains(3), 1):
                raise error
        assert at.reserved == Room() and at.inside == 0

    asyncio.run(run())


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(0, 6), st.booleans()), max_size=24))
def test_nothing_leaks_and_the_bound_holds_whatever_comes_and_goes(visits: list[tuple[int, int, int, bool]]):
    async def run():
        at, over = gate(10, queue=3, seconds=60), []

        async def visit(pages: int, wanted: int, stay: int) -> None:
            try:
                async with at.enter(chains(pages), wanted):
                    over.append(at.reserved.pages > 10)
                    await turns(stay)
            except ApiError as refusal:
                assert refusal.status == 429

        tasks = []
        for pages, wanted, stay, cancel in visits:
            tasks.append(asyncio.ensure_future(visit(pages, wanted, stay)))
            await turns(stay % 3)
            if cancel:
                tasks[-1].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert at.reserved == Room() and at.inside == 0 and not at.line and not any(over)

    asyncio.run(run())
