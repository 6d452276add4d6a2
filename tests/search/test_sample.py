"""Sampling and sampling with a forced end of thought, on a scripted sampler."""

import asyncio
from functools import cache
from tempfile import TemporaryDirectory

import pytest

from mull.chat import Chat
from mull.engine.scripted import ScriptedSampler
from mull.engine.together import together
from mull.errors import StopReason
from mull.learn.samples import from_rollouts
from mull.ledger import Budget
from mull.models.nano import write_tokenizer
from mull.search.sample import _grow, leaf_cost, sample, sample_forced
from mull.types import Completion, Cost, Question, Span, SpanKind, Trace

QUESTION = Question("q/1", "sums", "2+2?")


@cache
def chat(spelled: bool = False) -> Chat:
    with TemporaryDirectory() as folder:
        write_tokenizer(folder)
        loaded = Chat.load(folder, spell_think=spelled)
    if spelled:  # a tokenizer without the tags
        for tag in ("<think>", "</think>"):
            loaded._controls.pop(tag)
    return loaded


def run(strategy, sampler, budget, **options) -> Trace:
    return asyncio.run(strategy(QUESTION, sampler, sampler.chat, budget, **options))


def four() -> tuple[int, ...]:
    return (ord("4"), chat().turn_end)


def kinds(trace: Trace, leaf: int) -> list[SpanKind]:
    return [span.kind for span in trace.path(leaf)]


def test_every_sample_is_a_leaf_with_its_answer_and_cost():
    sampler = ScriptedSampler(["2 and 2</think>4", "hm</think>5", "never closed"], chat())
    budget = Budget(think_tokens=40, answer_tokens=10, samples=3)
    trace = run(sample, sampler, budget, seed=7)
    assert trace.answers == ["4", "5", ""] and trace.answer == "4" and not trace.exhausted
    assert [trace.spans[leaf].stop for leaf in trace.leaves] == [StopReason.STOP] * 3
    assert trace.cost == budget.spent == sampler.cost and trace.cost.sampled_tokens == 10 + 5 + 13
    assert [leaf_cost(trace, leaf) for leaf in trace.leaves] == [Cost(sampled_tokens=n) for n in (10, 5, 13)]
    [call] = sampler.calls
    assert call.n == 3 and call.params.max_tokens == 50 and call.params.seed == 7
    assert list(call.prefix) == chat().prompt("2+2?") == list(trace.spans[0].tokens)


def test_a_chain_that_is_cut_has_no_answer():
    trace = run(sample, ScriptedSampler(["2</think>4 and"], chat()), Budget(think_tokens=3, answer_tokens=2))
    assert trace.answers == [""] and trace.spans[1].stop is StopReason.LENGTH and not trace.exhausted


def test_a_budget_of_tokens_is_shared_and_never_exceeded():
    script = ["2 and 2</think>4", "2 and 2 is four</think>4"] * 2
    budget = Budget(tokens=24, think_tokens=40, answer_tokens=10, samples=2)
    trace = run(sample, ScriptedSampler(script, chat()), budget)
    assert trace.exhausted and trace.answers == ["4", ""] and budget.spent.sampled_tokens == 10 + 12
    assert run(sample, ScriptedSampler(script, chat()), budget).spans[1].tokens == (ord("2"),), "2 tokens are left"
    assert budget.tokens_left == 0
    trace = run(sample, ScriptedSampler(script, chat()), budget)
    assert trace.exhausted and trace.leaves == [] and len(trace.spans) == 1

    def think(prefix):
        return four() if prefix[-1] in chat().think_close else "thinking on and on"

    budget = Budget(tokens=24, think_tokens=40, answer_tokens=10, samples=2)
    trace = run(sample_forced, ScriptedSampler(think, chat()), budget)
    assert trace.exhausted and trace.answers == ["4", "4"] and budget.spent.sampled_tokens == 2 * (2 + 2)
    poor = run(sample_forced, ScriptedSampler(think, chat()), Budget(tokens=19, answer_tokens=10, samples=2))
    assert poor.exhausted and not poor.leaves


def test_the_end_of_thought_is_forced_once_and_never_trained_on():
    prompt, [close] = chat().prompt("2+2?"), chat().think_close

    def script(prefix):
        thought = prefix[len(prompt) :]
        if close in thought:
            return four()
        return "short</think>" if not thought else None

    budget = Budget(think_tokens=20, answer_tokens=4)
    trace = run(sample_forced, ScriptedSampler(script, chat()), budget)
    assert kinds(trace, trace.leaves[0]) == [SpanKind.PROMPT, SpanKind.SAMPLED, SpanKind.SAMPLED]
    assert trace.answers == ["4"] and trace.cost.sampled_tokens == 6 + 2

    budget = Budget(think_tokens=3, answer_tokens=4)
    trace = run(sample_forced, ScriptedSampler(script, chat()), budget)
    assert kinds(trace, trace.leaves[0]) == [SpanKind.PROMPT, SpanKind.SAMPLED, SpanKind.FORCED, SpanKind.SAMPLED]
    assert trace.answers == ["4"] and trace.spans[1].tokens == tuple(b"sho")
    [learnt] = from_rollouts([trace], [1.0])
    at = len(prompt) + 3
    assert learnt.tokens[at] == close and not learnt.mask[at] and all(learnt.mask[at + 1 :])
    assert sum(learnt.mask) == 3 + 2

    trace = run(sample_forced, ScriptedSampler(script, chat()), Budget(think_tokens=0, answer_tokens=4))
    assert kinds(trace, trace.leaves[0]) == [SpanKind.PROMPT, SpanKind.FORCED, SpanKind.SAMPLED]


def test_a_turn_that_ends_while_thinking_has_no_answer():
    trace = run(sample_forced, ScriptedSampler(["oops"], chat()), Budget(think_tokens=20, samples=1))
    assert trace.answers == [""] and len(trace.spans) == 2


def test_a_spelled_out_closing_tag_ends_the_thought_as_a_whole():
    """Its last token alone, `>`, is an ordinary character of a thought."""
    spelled = chat(True)
    assert len(spelled.think_close) == len("</think>")

    def script(prefix):
        return four() if bytes(t for t in prefix if t < 256).endswith(b"</think>") else tuple(b"3 > 2</think>")

    trace = run(sample_forced, ScriptedSampler(script, spelled), Budget(think_tokens=40))
    assert trace.spans[1].tokens == tuple(b"3 > 2</think>") and trace.answers == ["4"]
    assert kinds(trace, trace.leaves[0]) == [SpanKind.PROMPT, SpanKind.SAMPLED, SpanKind.SAMPLED]


def test_leaves_stand_in_the_order_of_their_seeds_whatever_ends_first():

    def follows(prefix):
        if prefix[-1] not in chat().think_close:
            return {"a</think>": 1, "b, which takes longer,</think>": 1}
        return ord("b" if prefix[-2] == ord(",") else "a"), chat().turn_end

    class Slow(ScriptedSampler):
        async def sample(self, prefix_tokens, params, n=1):
            for _ in range(params.seed % 7):
                await asyncio.sleep(0)
            return await super().sample(prefix_tokens, params, n)

    budget = Budget(think_tokens=40, samples=8)
    quick, slow = (run(sample_forced, kind(follows, chat()), budget, seed=3) for kind in (ScriptedSampler, Slow))
    assert quick.answers == slow.answers and set(quick.answers) == {"a", "b"}


def test_a_failing_chain_stops_the_others():
    sampler = ScriptedSampler(lambda prefix: "x", chat(), fail={2: RuntimeError("no power")}, yields=5)
    with pytest.raises(RuntimeError, match="no power"):
        run(sample_forced, sampler, Budget(think_tokens=30, samples=4))
    assert sampler.running == 0 and any(call.cancelled for call in sampler.calls)

    async def late():
        await asyncio.sleep(10)

    async def bad():
        raise ValueError("bad")

    async def scenario():
        with pytest.raises(ValueError, match="bad"):
            await together([late(), bad()])
        return len(asyncio.all_tasks())

    assert asyncio.run(scenario()) == 1, "nothing is left running"


def test_forced_tokens_of_a_completion_are_a_span_of_their_own():
    trace = Trace(QUESTION, "t", [Span(SpanKind.PROMPT, (1,))])
    completion = Completion((5, 6, 7), (-0.5, -0.6, -0.7), StopReason.STOP, 3, forced=2, cost=Cost(sampled_tokens=1))
    last = _grow(trace, 0, completion, Budget())
    assert [(s.kind, s.tokens, s.logprobs) for s in trace.path(last)[1:]] == [
        (SpanKind.FORCED, (5, 6), ()),
        (SpanKind.SAMPLED, (7,), (-0.7,)),
    ]
    only = Completion((5, 6), (-0.5, -0.6), StopReason.LENGTH, 3, forced=2)
    assert trace.spans[_grow(trace, 0, only, Budget())].kind is SpanKind.FORCED
