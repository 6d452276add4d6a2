"""A request at work: it always ends in an answer, counts what it cost, and leaves nothing behind."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from functools import cache

import pytest

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.engine.scripted import ScriptedSampler
from mull.errors import SamplerLost, StopReason
from mull.models import hf
from mull.models.nano import shipped_folder
from mull.scorers.confidence import Confidence
from mull.search.sources import Opened
from mull.search.tree import NO_ANSWER
from mull.serve.job import Delta, Job, Progress, Result, Thought, answered, follow, until
from mull.serve.plan import SINGLE, VOTE, Plan
from mull.serve.summary import Section
from mull.tasks.load import load_task
from mull.types import Completion, Cost, Question

LOW = Plan("low", SINGLE, 1, 200, 32, None)
HIGH = Plan("high", VOTE, 8, 200, 32, None)
PLANS = [
    LOW,
    HIGH,
    replace(LOW, think_tokens=0),
    replace(LOW, think_tokens=7, answer_tokens=1),
    replace(HIGH, strategy="vote"),
    replace(HIGH, strategy="beam:expand=2"),
    replace(HIGH, strategy="mcts", tokens=150),
    replace(HIGH, strategy="best-of-n", tokens=3),
    replace(HIGH, tokens=1),
]


@cache
def nano():
    folder = shipped_folder()
    return hf.load(folder), Chat.load(folder)


def tools(sampler=None) -> Opened:
    model, chat = nano()
    sampler = sampler or LocalEngine(model, chat, max_sequences=64, memory_bytes=64 << 20)
    scorer = Confidence(sampler.model, sampler, chat, "logprob") if isinstance(sampler, LocalEngine) else None
    return Opened(sampler, chat, scorer, None, None, None, 1024)


@cache
def question() -> Question:
    task = load_task("chain")
    return next(iter(task.stream(2, "test", 0))).question


def job(made: Opened, plan: Plan, seed: int = 0, **options) -> Job:
    return Job(question(), plan, made, seed=seed, **options)


def idle(made: Opened) -> bool:
    engine = made.sampler
    return not engine.schedule.busy and engine.pool.available == engine.pool.num_pages


def check(result: Result, plan: Plan) -> None:
    assert result.content and result.content.strip() == result.content
    assert result.completion_tokens == result.reasoning_tokens + result.answer_tokens
    assert min(result.reasoning_tokens, result.answer_tokens, result.wasted_tokens, result.path_tokens) >= 0
    assert plan.tokens is None or result.completion_tokens <= plan.tokens
    assert result.completion_tokens <= plan.most_tokens or "mcts" in plan.strategy
    assert result.first_token is None or result.first_token <= result.seconds


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.strategy}-{p.think_tokens}-{p.tokens}")
def test_every_plan_ends_in_an_answer_and_counts_what_the_engine_sampled(plan):
    made = tools()

    async def run():
        before = made.sampler.spent
        result = await answered(job(made, plan, seed=3))
        return result, made.sampler.spent.sampled_tokens - before.sampled_tokens

    result, sampled = asyncio.run(run())
    check(result, plan)
    assert result.completion_tokens == sampled and result.early == "" and idle(made)
    assert result.trace is not None and result.trace.cost.sampled_tokens == sampled
    assert result.prompt_tokens == len(made.chat.prompt(question().asked))


@pytest.mark.parametrize("plan", [LOW, HIGH, PLANS[5]], ids=lambda p: p.strategy)
@pytest.mark.parametrize("after", [0, 1, 5, 40, 120])
def test_an_answer_at_once_comes_from_what_there_is(plan, after):
    """Whatever had been sampled stays counted, also what was under way when the thinking ended."""
    made = tools()

    async def run():
        one = job(made, plan, seed=after)
        work = asyncio.ensure_future(answered(one))
        while one.live.sampled < after and not work.done():
            await asyncio.sleep(0)
        one.answer_now()
        one.answer_now()
        return await work

    result = asyncio.run(run())
    check(result, replace(plan, answer_tokens=2 * plan.answer_tokens))
    assert result.early in ("asked", "") and result.content != NO_ANSWER and idle(made)
    assert result.completion_tokens == made.sampler.spent.sampled_tokens
    assert result.early == "" or result.completion_tokens < after + 600
    assert not result.early or not result.votes or result.content in dict(result.votes)


@pytest.mark.parametrize("strategy", ["vote", "best-of-n", VOTE, "beam:expand=2"])
def test_tokens_of_thought_and_answer_are_told_apart_whatever_the_spans(strategy):
    made = tools()
    result = asyncio.run(answered(job(made, replace(HIGH, strategy=strategy), seed=2)))
    chat = made.chat
    assert result.answer_tokens == len(chat.encode(result.content)) + 1  # and the end of the turn
    assert result.path_tokens == len(chat.encode(result.thought)) + 1  # and the closing tag


def test_an_answer_that_is_being_said_is_not_taken_back():
    made = tools(Dripping("a\n", "it is forty two and no less"))

    async def run():
        one, said = job(made, LOW), ""
        async with aclosing(follow(one, tick=0.001)) as stream:
            async for event in stream:
                if isinstance(event, Delta):
                    said += event.text
                    one.answer_now()
                if isinstance(event, Result):
                    return event, said

    result, said = asyncio.run(run())
    assert result.content == said == "it is forty two and no less"


def test_time_runs_out():
    made = tools()
    result = asyncio.run(answered(job(made, replace(HIGH, strategy="mcts", samples=64), most_seconds=0.02)))
    assert result.early == "time" and result.content and idle(made)


def test_leaving_withdraws_everything_at_once():
    made = tools()

    async def run(events: int):
        one = job(made, replace(HIGH, strategy="beam:expand=2", samples=16))
        async with aclosing(follow(one, tick=0.001)) as stream:
            seen = 0
            async for _ in stream:
                seen += 1
                if seen > events:
                    break
        assert idle(made)
        for _ in range(20):  # the engine looks round for more work before it rests
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    for events in (0, 1, 3):
        asyncio.run(run(events))


def test_cancelling_the_caller_withdraws_everything():
    made = tools()

    async def run():
        work = asyncio.ensure_future(answered(job(made, HIGH)))
        while made.sampler.steps < 3:
            await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert idle(made)

    asyncio.run(run())


async def events_of(one: Job) -> list:
    one.gather = lambda: 0.0
    async with aclosing(follow(one, tick=0.002)) as stream:
        return [event async for event in stream]


@pytest.mark.parametrize("plan", [LOW, HIGH, PLANS[2]], ids=["low", "high", "none"])
def test_what_is_streamed_is_what_is_returned(plan):
    made = tools()
    for seed in range(4):
        events = asyncio.run(events_of(job(made, plan, seed)))
        result = events[-1]
        assert isinstance(result, Result) and sum(isinstance(e, Result) for e in events) == 1
        assert "".join(e.text for e in events if isinstance(e, Delta)) == result.content
        assert [e for e in events if isinstance(e, Section)] == result.summary
        thought = "".join(e.text for e in events if isinstance(e, Thought))
        assert thought.strip() == (result.thought if plan.single else "")
        counts = [e.tokens for e in events if isinstance(e, Progress)]
        assert counts == sorted(counts) and all(n <= result.completion_tokens for n in counts)
        kinds = [type(e) for e in events if isinstance(e, Section | Delta)]
        assert kinds == sorted(kinds, key=lambda k: k is Delta), "the summary comes before the answer"
        assert bool(result.summary) == bool(result.thought or not plan.single)


@pytest.mark.parametrize("plan", [LOW, HIGH, *PLANS[5:7]], ids=lambda p: p.strategy)
def test_progress_counts_up_to_what_the_plan_may_have(plan):
    """As its tokens do. An adaptive vote begins four chains first, and goes on to eight where they do not agree."""
    told = [e for e in asyncio.run(events_of(job(tools(), plan, 3))) if isinstance(e, Progress)]
    assert told and all(e.done <= e.branches for e in told)
    assert {e.branches for e in told if e.done < plan.samples} == {plan.samples}


def test_the_first_text_comes_with_the_first_token_and_later_text_is_gathered():
    made = tools()

    async def run() -> list[tuple[int, str]]:
        one, found = job(made, LOW, seed=1, gather=lambda: 60.0), []
        async with aclosing(follow(one)) as stream:
            async for event in stream:
                if isinstance(event, Thought | Delta):
                    found.append((one.live.sampled, event.text))
        return found

    (first, text), *later = asyncio.run(run())
    assert first == 1 and text
    assert len(later) <= 2  # the rest of the thought, and the answer: the end is not waited for


def test_the_same_seed_gives_the_same_answer_alone_and_among_others():
    made = tools()
    alone = [asyncio.run(answered(job(made, plan, seed))) for plan in (LOW, HIGH) for seed in (1, 2)]

    async def crowd():
        others = [answered(job(made, HIGH, seed)) for seed in range(20, 30)]
        wanted = [answered(job(made, plan, seed)) for plan in (LOW, HIGH) for seed in (1, 2)]
        return (await asyncio.gather(*wanted, *others))[:4]

    for one, other in zip(alone, asyncio.run(crowd()), strict=True):
        assert (one.content, one.thought, one.votes) == (other.content, other.thought, other.votes)
        assert one.completion_tokens == other.completion_tokens


# ------------------------------------------------------------------------------------- scripted samplers


def scripted(script, **options) -> Opened:
    return tools(ScriptedSampler(script, nano()[1], **options))


def test_stop_strings_cut_the_answer_and_nothing_of_them_is_streamed():
    made = scripted(["one\ntwo</think>", "say 42 END and more"])
    events = asyncio.run(events_of(job(made, LOW, stop=(" END", "42 ENDING"))))
    assert events[-1].content == "say 42" and events[-1].finish == "stop"
    assert "".join(e.text for e in events if isinstance(e, Delta)) == "say 42"
    assert until("abc", ()) == ("abc", False) and until("abc", ("c", "bc")) == ("a", True)


class Dripping:
    """Gives one token at each turn of the loop, and tells who watches: an engine whose words are known."""

    policy_version = 7

    def __init__(self, *texts: str):
        self.texts, self.chat = list(texts), nano()[1]

    async def sample(self, prefix, params, n=1, watch=None):
        tokens, out, stop = self.chat.encode(self.texts.pop(0)), [], StopReason.LENGTH
        tag, end = self.chat.think_close[0], self.chat.turn_end
        if self.texts or tag in params.stop_tokens:
            tokens = [*tokens, tag] if tag in params.stop_tokens else tokens
        for token in [*tokens, end][: params.max_tokens]:
            await asyncio.sleep(0)
            out.append(token)
            if watch is not None and watch(0, token):
                break
            if token in (tag, end):
                stop = StopReason.STOP
                break
        cost = Cost(sampled_tokens=len(out))
        return [Completion(tuple(out), (0.0,) * len(out), stop, 7, cost=cost)]


def test_an_answer_is_passed_on_token_by_token_but_never_half_a_stop_string():
    made = tools(Dripping("a\nb\n", "  It is 4.  STO  STOP not this"))
    events = asyncio.run(events_of(job(made, LOW, stop=("STOP",))))
    said = [e.text for e in events if isinstance(e, Delta)]
    assert "".join(said) == events[-1].content == "It is 4.  STO"
    assert len(said) > 2 and not any("STOP" in "".join(said[:i]) for i in range(len(said)))
    assert events[-1].policy_version == 7


def test_a_thought_that_goes_round_in_circles_is_closed_and_answered():
    made = tools(Dripping("it is so. " * 300, "4"))
    result = asyncio.run(answered(job(made, replace(LOW, think_tokens=2000))))
    assert result.looped == 1 and result.content == "4" and result.completion_tokens < 300
    made = tools(Dripping("a varied thought, of which no part is said twice: 0123456789abcdefghijklmnopq" * 1, "4"))
    assert asyncio.run(answered(job(made, LOW))).looped == 0


def test_an_answer_that_is_cut_off_says_so():
    made = tools(Dripping("a\n", "1234567890" * 9))
    result = asyncio.run(answered(job(made, replace(LOW, answer_tokens=5))))
    assert (result.content, result.finish) == ("12345", "length")


@pytest.mark.parametrize("plan", [LOW, HIGH], ids=["low", "high"])
def test_a_lost_sampler_still_gives_an_answer(plan):
    gone = SamplerLost("the server has gone")
    for k in range(6):
        for failing in ({k: gone}, dict.fromkeys(range(k, 99), gone)):
            made = scripted(lambda tokens: _thought(tokens), fail=failing)
            result = asyncio.run(answered(job(made, plan)))
            assert result.content in ("12", "7", NO_ANSWER) and (result.lost or result.content != NO_ANSWER)


def _thought(tokens):
    text = nano()[1].decode(tokens).rpartition("<think>")[2]
    if text.endswith("</think>"):
        return {"12": 0.6, "7": 0.4}
    return None if "</think>" in text else {"</think>": 1.0} if text.count("\n") >= 3 else {"a\n": 0.5, "b\n": 0.5}


def test_an_empty_answer_is_never_returned():
    made = scripted(lambda tokens: {"": 1.0})  # ends its turn whatever is asked
    for plan in (LOW, HIGH):
        result = asyncio.run(answered(job(made, plan)))
        assert result.content == NO_ANSWER and result.finish == "length"
