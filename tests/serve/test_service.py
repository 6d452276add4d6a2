"""Requests through the service: room before tokens, one place that counts, and nothing left behind by any ending."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from mull.chat import Chat
from mull.engine.pages import PAGE
from mull.models.nano import shipped_folder
from mull.search.allocate import Calibration, Point
from mull.search.allocate import Plan as Allotted
from mull.search.sources import opened
from mull.serve.errors import ApiError
from mull.serve.gate import Room
from mull.serve.job import answered, follow
from mull.serve.plan import SINGLE, VOTE, Wish
from mull.serve.served import overhead
from mull.serve.service import Service
from mull.serve.settings import Settings
from mull.serve.weights import source_of
from tests.serve.tools import QUESTION, ask, idle, nano_service, scripted_service, serving, until

TALK = ({"role": "user", "content": QUESTION},)
LOW = Wish(TALK, effort="low")
HIGH = Wish(TALK, effort="high", strategy="vote", samples=16)


def counted(service: Service, name: str, **labels: str) -> float:
    return service.meter.registry.get_sample_value(f"mull_{name}", labels) or 0.0


def empty(service: Service) -> bool:
    gates = [model.gate for model in service.models.values()]
    inside = [gate for gate in gates if gate.reserved != Room() or gate.inside or gate.line]
    return not inside and not service.jobs and not any(m.weights.current.users for m in service.models.values())


async def turns(n: int = 8) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def tokens_of(service: Service, wish: Wish) -> int:
    return len(service.main.tools.chat.prompt(wish.messages))


# -------------------------------------------------------------------------------------------------- counting


def test_an_answered_job_is_counted_where_it_ends():
    service = nano_service()

    async def run():
        async with service.job(replace(LOW, seed=1), "a") as job:
            assert service.jobs == {"a": job} and service.inside == 1 and service.main.gate.reserved.branches == 1
            return await answered(job)

    result = asyncio.run(run())
    assert empty(service) and idle(service)
    assert counted(service, "requests_total", effort="low", outcome="answered") == 1
    assert counted(service, "reasoning_tokens_total") == result.reasoning_tokens > 0
    assert counted(service, "answer_tokens_total") == result.answer_tokens > 0
    assert counted(service, "prompt_tokens_total") == result.prompt_tokens
    assert counted(service, "wasted_tokens_total") == result.wasted_tokens
    assert counted(service, "first_token_seconds_count", effort="low") == 1
    assert counted(service, "answer_seconds_sum", effort="low") >= result.seconds
    assert counted(service, "queue_seconds_count") == 1 and counted(service, "cancelled_total") == 0
    assert counted(service, "tokens_per_second") == pytest.approx(result.completion_tokens, rel=0.9)


def test_tokens_of_a_job_that_was_left_are_counted_as_wasted():
    service = nano_service()

    async def run():
        async with service.job(HIGH, "a") as job:
            async with aclosing(follow(job, tick=0.001)) as events:
                async for _ in events:
                    if job.live.sampled > 40:
                        break
            return job.live.sampled

    sampled = asyncio.run(run())
    assert empty(service) and idle(service)
    assert counted(service, "requests_total", effort="high", outcome="cancelled") == 1
    assert counted(service, "cancelled_total") == 1
    assert counted(service, "wasted_tokens_total") == counted(service, "reasoning_tokens_total") == sampled > 40
    assert counted(service, "answer_seconds_count", effort="high") == 0


def test_early_and_exhausted_answers_and_troubles_are_counted_by_cause():
    service = nano_service(max_seconds=0.01)

    async def run():
        async with service.job(replace(HIGH, samples=64), "a") as job:
            assert (await answered(job)).early == "time"
        service.settings = replace(service.settings, max_seconds=100.0)
        async with service.job(HIGH, "b") as job:
            work = asyncio.ensure_future(answered(job))
            while job.live.sampled < 5:
                await asyncio.sleep(0)
            job.answer_now()
            assert (await work).early == "asked"
        async with service.job(Wish(TALK, effort="high", think_budget=12, samples=8), "c") as job:
            assert (await answered(job)).exhausted

    asyncio.run(run())
    assert counted(service, "early_answers_total", cause="time") == 1
    assert counted(service, "early_answers_total", cause="asked") == 1
    assert counted(service, "exhausted_total") == 1 and empty(service)


# ---------------------------------------------------------------------------------------------------- endings


@pytest.mark.parametrize("ending", ["leave", "bug inside", "bug of the strategy", "cancelled", "never followed"])
def test_nothing_stays_behind_whatever_ends_a_job(ending: str):
    service = nano_service()

    async def run():
        async with service.job(HIGH, "a") as job:
            if ending == "never followed":
                return
            if ending == "bug of the strategy":
                job.tools = replace(job.tools, sampler=Broken(job.tools.sampler))
            async with aclosing(follow(job)) as events:
                async for _ in events:
                    if ending == "leave":
                        return
                    if ending == "bug inside":
                        raise ZeroDivisionError
                    if ending == "cancelled":
                        asyncio.current_task().cancel()  # type: ignore[union-attr]
                        await asyncio.sleep(0)

    bug = "bug" in ending
    if bug or ending == "cancelled":
        with pytest.raises(ZeroDivisionError if bug else asyncio.CancelledError):
            asyncio.run(run())
    else:
        asyncio.run(run())
    assert empty(service) and idle(service)
    assert counted(service, "requests_total", effort="high", outcome="failed" if bug else "cancelled") == 1


class Broken:
    """A sampler that has a bug."""

    policy_version = 0

    def __init__(self, inner):
        self.inner = inner

    async def sample(self, prefix_tokens, params, n=1):
        await asyncio.sleep(0)
        raise ZeroDivisionError


def test_a_client_that_leaves_while_it_waits_leaves_at_once_and_no_one_is_let_in_for_it():
    service = nano_service(max_sequences=16)

    async def work(wish: Wish, name: str):
        async with service.job(wish, name) as job:
            await answered(job)

    async def run():
        async with service.job(HIGH, "a"):  # has all 16 places
            waiting = asyncio.ensure_future(work(LOW, "b"))
            await turns()
            assert (
                len(service.main.gate.line) == 1
                and counted(service, "queue_depth") == 1
                and list(service.jobs) == ["a"]
            )
            waiting.cancel()
            await turns()
            assert waiting.cancelled() and not service.main.gate.line and counted(service, "queue_depth") == 0
            assert counted(service, "running") == 1

    asyncio.run(run())
    assert empty(service)


def test_choices_of_one_request_do_not_hide_each_other():
    service = nano_service()

    async def run():
        async with service.job(LOW, "a", 0) as first, service.job(LOW, "a", 1) as second:
            assert service.jobs == {"a": first, "a/1": second} and first.seed != second.seed
        assert not service.jobs

    asyncio.run(run())


# ----------------------------------------------------------------------------------------------------- room


def test_nothing_is_tokenised_before_there_is_room(monkeypatch: pytest.MonkeyPatch):
    service = nano_service(max_sequences=16, queue=1)
    overhead(service.main.tools.chat)  # what a template writes is known
    prompts = []
    plain = Chat.prompt
    monkeypatch.setattr(Chat, "prompt", lambda self, *given, **more: prompts.append(1) or plain(self, *given, **more))

    async def enter(wish: Wish):
        async with service.job(wish, "x"):
            pass

    async def run():
        async with service.job(HIGH, "a"):
            before = len(prompts)
            assert before
            waiting = asyncio.ensure_future(enter(LOW))
            await turns()
            with pytest.raises(ApiError) as refusal:
                await enter(Wish(({"role": "user", "content": "long " * 200_000},)))
            assert refusal.value.status == 429 and len(prompts) == before
        await waiting
        assert len(prompts) > before

    asyncio.run(run())
    assert counted(service, "refused_total", status="429") == 1 and empty(service)


def test_chains_are_reduced_and_this_is_told_before_anybody_is_sent_away():
    service = nano_service(max_sequences=16, queue=0)

    async def run():
        async with service.job(replace(HIGH, samples=12), "a") as first, service.job(HIGH, "b") as second:
            assert (first.plan.samples, first.plan.wanted) == (12, 0)
            assert (second.plan.samples, second.plan.wanted) == (4, 16)
            with pytest.raises(ApiError) as refusal:
                async with service.job(HIGH, "c"):
                    pass
            assert refusal.value.status == 429
            return await answered(second)

    result = asyncio.run(run())
    assert result.content and result.plan.wanted == 16
    assert counted(service, "reduced_total") == 1 and empty(service)


def test_what_could_never_fit_whole_gets_what_fits_and_what_does_not_fit_at_all_is_a_mistake():
    service = nano_service(think_tokens=600)
    pool = service.main.tools.sampler.pool
    one = service.main.plan(replace(HIGH, samples=1), tokens_of(service, HIGH))
    prompt = tokens_of(service, HIGH)
    pool.num_pages = (prompt + one.branch_tokens) // PAGE * 3
    service.main.resized()

    async def run():
        async with service.job(HIGH, "a") as job:
            assert 1 < job.plan.samples < 4 and job.plan.wanted == 16
        pool.num_pages = 8
        service.main.resized()
        with pytest.raises(ApiError) as refusal:
            async with service.job(replace(HIGH, messages=({"role": "user", "content": QUESTION * 4},)), "b"):
                pass
        assert refusal.value.status == 400 and refusal.value.code == "context_length_exceeded"
        async with service.job(Wish(TALK, think=False, max_tokens=4), "c") as job:  # the bound by bytes is too high
            assert job.plan.strategy == SINGLE

    asyncio.run(run())
    assert counted(service, "refused_total", status="400") == 1 and empty(service)


def test_memory_may_be_promised_more_than_once():
    service = nano_service(overcommit=2.0, max_sequences=16)
    assert service.main.gate.capacity == Room(2 * service.main.tools.sampler.pool.num_pages, 32)

    async def run():
        async with service.job(HIGH, "a") as first, service.job(HIGH, "b") as second:
            assert first.plan.wanted == second.plan.wanted == 0
            return await asyncio.gather(answered(first), answered(second))

    assert all(result.content for result in asyncio.run(run())) and empty(service) and idle(service)


def test_a_model_elsewhere_has_branches_and_no_pages():
    service = scripted_service({}, max_sequences=6)

    async def run():
        async with service.job(Wish(TALK, effort="high", strategy="vote", samples=9), "a") as job:
            assert (job.plan.samples, job.plan.wanted) == (6, 9)
            assert counted(service, "memory_pages_reserved") == 0 and counted(service, "branches_reserved") == 6

    asyncio.run(run())
    assert empty(service)


def test_long_conversations_are_tokenised_without_holding_up_others():
    service = nano_service()
    long = Wish(({"role": "user", "content": "word " * 150_000},))

    async def run():
        beats, ticking = 0, True

        async def tick():
            nonlocal beats
            while ticking:
                beats += 1
                await asyncio.sleep(0.001)

        heart = asyncio.ensure_future(tick())
        await turns()
        before = beats
        with pytest.raises(ApiError) as refusal:
            async with service.job(long, "a"):
                pass
        ticking = False
        await heart
        assert refusal.value.code == "context_length_exceeded" and beats > before + 1

    asyncio.run(run())
    assert empty(service)


def test_raw_completions_take_room_and_are_counted():
    service = nano_service(max_sequences=2)

    async def run():
        async with service.place(100) as tools:
            assert (
                tools is service.main.tools
                and service.main.gate.reserved == Room(8, 1)
                and service.main.weights.current.users == 1
            )
        with pytest.raises(ZeroDivisionError):
            async with service.place(16 * 10**9):  # more than there is: it has all of it, and the engine takes turns
                assert service.main.gate.reserved.pages == service.main.tools.sampler.pool.num_pages
                raise ZeroDivisionError
        service.drain()
        for entering in (service.place(4), service.job(LOW, "a")):
            with pytest.raises(ApiError) as refusal:
                await entering.__aenter__()
            assert refusal.value.status == 503

    asyncio.run(run())
    for outcome in ("answered", "failed", "refused"):
        assert counted(service, "raw_requests_total", outcome=outcome) == 1
    assert counted(service, "refused_total", status="503") == 2 and empty(service)


# --------------------------------------------------------------------------------------------------- efforts


def test_efforts_tell_what_is_planned_and_what_was_spent_of_late():
    service = nano_service()
    told = service.meter.efforts(service.main)
    assert told["default"] == "low" and list(told["efforts"]) == ["none", "low", "medium", "high"]
    assert told["efforts"]["high"]["strategy"] == VOTE and told["efforts"]["high"]["chains"] == 32
    assert told["efforts"]["low"]["most_tokens"] == 64 + 16
    assert all(one["median_tokens"] is None and one["median_seconds"] is None for one in told["efforts"].values())

    async def run():
        found = []
        for seed in range(3):
            async with service.job(replace(LOW, seed=seed), "a") as job:
                found.append((await answered(job)).completion_tokens)
        async with service.job(replace(LOW, max_tokens=9), "b") as job:  # its budget is its own: it says nothing of low
            await answered(job)
        return found

    found = asyncio.run(run())
    low = service.meter.efforts(service.main)["efforts"]["low"]
    assert low["median_tokens"] == sorted(found)[1] and low["requests"] == 3 and low["median_seconds"] > 0
    assert service.meter.efforts(service.main)["efforts"]["high"]["median_tokens"] is None


def test_with_a_calibration_efforts_tell_what_it_expects_and_fewer_chains_are_chains(tmp_path: Path):
    """`auto` at an effort samples what its calibration says, whatever N it is given: with less room, chains vote."""
    points = tuple(Point((Allotted("vote", n),), float(6 * n), 0.1 * n) for n in (4, 8))
    known = Calibration("nano", "", "last", 4, "spread", (), 4.0, points, {"low": 0, "medium": 1, "high": 1})
    known.save(tmp_path / "calibration.json")
    service = nano_service(calibration=str(tmp_path / "calibration.json"), max_sequences=10, queue=0)
    told = service.meter.efforts(service.main)["efforts"]
    assert told["low"]["expected"] == {"chains": 6.0, "accuracy": 0.4} and told["low"]["chains"] == 4
    assert told["high"]["expected"] == {"chains": 12.0, "accuracy": 0.8} and told["none"]["expected"] is None
    wish = Wish(TALK, effort="high")

    async def run():
        async with service.job(wish, "a") as whole, service.job(wish, "b") as reduced:
            assert (whole.plan.strategy, whole.plan.samples) == ("auto:effort=high", 8)
            assert (reduced.plan.strategy, reduced.plan.samples, reduced.plan.wanted) == (VOTE, 2, 8)
            return await answered(reduced)

    result = asyncio.run(run())
    assert sum(n for _, n in result.votes) <= 2 and result.content and empty(service)


# ---------------------------------------------------------------------------------------------- real clients


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_is_gone_at_once_whether_waiting_or_served(stream: bool):
    service = nano_service(max_sequences=16, think_tokens=900)
    endless = {"strategy": "wait:waits=100", "samples": 64}
    body = json.dumps(ask(reasoning_effort="high", stream=stream, mull=endless)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"Content-Type: application/json\r\n\r\n" + body

    def sampled() -> int:
        return sum(job.live.sampled for job in [*service.jobs.values()])

    with serving(service) as server:
        clients = [server.connect() for _ in range(3)]
        clients[0].sendall(request)
        until(lambda: sampled() > 0, 60)
        for n, client in enumerate(clients[1:], 1):
            client.sendall(request)
            until(lambda n=n: len(service.main.gate.line) == n, 60)
        clients[1].close()  # the first in line
        until(lambda: len(service.main.gate.line) == 1, 60)
        assert service.main.gate.inside == 1
        clients[0].close()  # the one inside, whose room goes to the last
        until(lambda: not service.main.gate.line and service.main.gate.inside == 1 and sampled() > 0, 60)
        clients[2].close()
        until(lambda: empty(service) and idle(service), 60)
        assert counted(service, "cancelled_total") == 2


def test_the_more_is_streamed_the_larger_are_its_pieces():
    service = nano_service()

    async def run() -> list[float]:
        found = []
        async with service.job(LOW, "a") as first:
            found.append(first.gather())
            for i in range(1, 400):
                service.jobs[f"b{i}"] = first
                found.append(first.gather())
        return found

    alone, *more = asyncio.run(run())
    assert alone == 0.03 and more == sorted(more) and more[62] == 0.128 and more[-1] == 0.25


def test_the_only_model_of_an_endpoint_keeps_its_name():
    async def names(**more):
        settings = Settings(endpoint=f"{server.url}/v1", tokenizer=str(shipped_folder()), **more)
        async with opened(source_of(settings)) as tools:
            return [*Service(settings, tools).models]

    with serving(nano_service(name="far")) as server:
        assert asyncio.run(names()) == ["far"] and asyncio.run(names(name="mine")) == ["mine"]
