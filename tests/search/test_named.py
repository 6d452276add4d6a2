"""Strategies by name: every one runs, its options are those of its function, and mistakes are one sentence."""

import asyncio
from dataclasses import replace

import pytest

from mull.engine.scripted import ScriptedSampler
from mull.errors import UserError
from mull.ledger import Budget
from mull.scorers.critic import Critique
from mull.search.named import STRATEGIES, named, options_of
from mull.search.roles import Role
from mull.types import Cost
from tests.search.test_tree import FORK
from tests.search.tools import QUESTION, ScriptedScorer, canonical, chat, sampler_of


class Critic:
    async def critique(self, prefixes):
        return [Critique(0.2, 1, "no", Cost(scorer_tokens=1)) for _ in prefixes]


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n != "auto"])
def test_every_name_runs(name):
    strategy = named("wait:waits=0" if name == "wait" else name).bind(
        canonical, ScriptedScorer(lambda t: 0.5), Critic(), generator=Role(sampler_of(FORK), chat())
    )
    budget = Budget(samples=4)
    trace = asyncio.run(strategy(QUESTION, sampler_of(FORK), chat(), budget, seed=1))
    assert trace.answer in ("1", "2") and budget.spent.sampled_tokens == trace.cost.sampled_tokens > 0
    assert trace.chosen in trace.leaves and trace.answers[trace.leaves.index(trace.chosen)] == trace.answer


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n != "auto"])
def test_every_strategy_asks_in_the_conversation_where_there_is_one(name):
    said = ("be brief", "1+1?", "2", "2+2?")
    roles = ("system", "user", "assistant", "user")
    talk = tuple({"role": role, "content": text} for role, text in zip(roles, said, strict=True))

    def follows(tokens):
        thought, closed, answer = chat().decode(tokens).rpartition("<think>")[2].partition("</think>")
        if closed:
            return None if answer else {"4": 1.0}
        return {"</think>": 1.0} if thought.count("\n") >= 2 else {"a\n": 0.5, "b\n": 0.5}

    policy, generator = ScriptedSampler(follows, chat()), ScriptedSampler(follows, chat())
    strategy = named("wait:waits=0" if name == "wait" else name).bind(
        canonical, ScriptedScorer(lambda t: 0.5), Critic(), generator=Role(generator, chat())
    )
    question = replace(QUESTION, messages=talk)
    trace = asyncio.run(strategy(question, policy, chat(), Budget(samples=4), seed=1))
    asked = tuple(chat().prompt(talk))
    until = len(asked) - len(chat().think_open) - 1  # revise may go on in a new turn
    calls = [*policy.calls, *generator.calls]
    assert trace.answer == "4" and calls and all(call.prefix[:until] == asked[:until] for call in calls)
    assert trace.spans[0].tokens == asked


def test_options_are_read_by_their_types():
    one = named("beam:expand=2,aggregate=min,lookahead=1")
    assert one.options == {"expand": 2, "aggregate": "min", "lookahead": 1} and one.name == "beam"
    assert named("adaptive:threshold=0.9").options == {"threshold": 0.9}
    assert named("wait:own_line=False").options == {"own_line": False}
    assert set(options_of("beam")) >= {"expand", "aggregate", "lookahead"}
    assert "lookahead" not in options_of("lookahead")  # what a name fixes cannot be set beside it


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bean", "unknown strategy 'bean'; did you mean 'beam'?; it is one of sample"),
        ("beam:expnad=2", "did you mean 'expand'?"),
        ("beam:expand", "'expand' is no option of beam"),
        ("beam:expand=two", "expand must be a whole number, not 'two'"),
        ("beam:aggregate=max", "aggregate is one of min, product, mean, last, not 'max'"),
        ("wait:own_line=1", "own_line is true or false, not '1'"),
        ("vote:n=3", "it has no options"),
    ],
)
def test_mistakes_are_one_sentence(text, sentence):
    with pytest.raises(UserError) as e:
        named(text)
    assert sentence in str(e.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("beam", "--scorer logprob"),
        ("mcts", "--scorer logprob"),
        ("adaptive-weighted", "needs a scorer"),
        ("auto", "mull calibrate makes one"),
    ],
)
def test_what_is_missing_is_named(name, sentence):
    with pytest.raises(UserError, match=sentence):
        named(name).bind(canonical)


def test_rollouts_need_no_scorer():
    strategy = named("mcts:value=rollout").bind(canonical)
    trace = asyncio.run(strategy(QUESTION, sampler_of(FORK), chat(), Budget(samples=8), seed=1))
    assert trace.answer in ("1", "2")


def test_the_scorer_s_own_aggregate_yields_to_a_typed_one():
    scorer = ScriptedScorer(lambda t: 0.5)
    assert named("beam").bind(canonical, scorer, aggregate="min").keywords["aggregate"] == "min"
    assert named("beam:aggregate=mean").bind(canonical, scorer, aggregate="min").keywords["aggregate"] == "mean"
    assert "aggregate" not in named("vote").bind(canonical, scorer, aggregate="min").keywords
