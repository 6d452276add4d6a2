"""Budget forcing: the end of a thought is taken back, paid for, and put off; and comes by force when it must."""

import asyncio
from functools import partial

import pytest

from mull.engine.scripted import ScriptedSampler
from mull.errors import UserError
from mull.learn.samples import from_rollouts
from mull.ledger import Budget
from mull.search.force import wait
from mull.search.tree import Tree
from mull.types import SpanKind, Trace
from tests.search import hardships
from tests.search.tools import QUESTION, assert_sound, canonical, chat, run, sampler_of, thought

# The first thought is hasty; made to go on, the model finds its slip.
HASTY = {
    "": {"2+2=5</think>": 1.0},
    "2+2=5</think>": {"5": 1.0},
    "2+2=5\nWait\n": {"2+2=4</think>": 1.0},
    "2+2=5\nWait\n2+2=4</think>": {"4": 1.0},
    "2+2=5\nWait\n2+2=4\nWait\n": {"ok</think>": 1.0},
    "2+2=5\nWait\n2+2=4\nWait\nok</think>": {"4": 1.0},
}


def chain(trace: Trace) -> str:
    return thought([token for span in trace.path(trace.chosen) for token in span.tokens])


def forced(trace: Trace) -> list[str]:
    return [chat().decode(span.tokens) for span in trace.spans if span.kind is SpanKind.FORCED]


def tried(script, budget=None, **options) -> tuple[Trace, ScriptedSampler]:
    sampler, budget = sampler_of(script), budget or Budget()
    trace = run(wait, sampler, budget, canonical=canonical, **options)
    assert_sound(trace, sampler, budget)
    return trace, sampler


def test_an_early_end_is_taken_back_and_the_thought_goes_on():
    for waits, answer, path in [
        (0, "5", "2+2=5</think>5<|end|>"),
        (1, "4", "2+2=5\nWait\n2+2=4</think>4<|end|>"),
        (2, "4", "2+2=5\nWait\n2+2=4\nWait\nok</think>4<|end|>"),
    ]:
        trace, _ = tried(HASTY, waits=waits)
        assert trace.answer == answer and chain(trace) == path and trace.answers == [answer]
        assert forced(trace) == (["\nWait\n"] * waits)


def test_what_is_taken_back_is_paid_for_and_never_learnt_from():
    trace, sampler = tried(HASTY)
    sampled = len("2+2=5") + 1 + len("2+2=4") + 1 + len("4") + 1
    assert trace.cost.sampled_tokens == sampled == sampler.cost.sampled_tokens
    [tag] = [span for span in trace.spans if span.pruned]
    assert list(tag.tokens) == list(chat().think_close) and len(tag.logprobs) == 1
    assert trace.spans[tag.parent].tokens == tuple(b"2+2=5") and len(trace.spans[tag.parent].logprobs) == 5
    [learnt] = from_rollouts([trace], [1.0])
    assert sum(learnt.mask) == sampled - 1, "all that the model said on this path, and neither Wait nor the old tag"
    assert chat().decode(learnt.tokens).count("</think>") == 1


@pytest.mark.parametrize(("least", "count"), [(5, 0), (6, 0), (7, 1), (17, 1), (18, 2), (0, 3), (99, 3)])
def test_least_puts_an_end_off_only_while_the_thought_is_short(least, count):
    script = {"": {"2+2=5</think>": 1.0}}  # the tag is the sixth token of the thought
    for i in range(3):
        script["2+2=5" + "\nWait\n2+2=5" * i + "\nWait\n"] = script[""]
    for i in range(4):
        script["2+2=5" + "\nWait\n2+2=5" * i + "</think>"] = {"7": 1.0}
    trace, _ = tried(script, waits=3, least=least)
    assert len(forced(trace)) == count


def test_the_text_and_its_line_can_be_chosen():
    script = {"": {"so</think>": 1.0}, "so, but": {" no</think>": 1.0}, "so, but no</think>": {"1": 1.0}}
    trace, _ = tried(script, wait=", but", own_line=False)
    assert chain(trace) == "so, but no</think>1<|end|>"
    script = {"": {"so\n</think>": 1.0}, "so\nHm\n": {"no</think>": 1.0}, "so\nHm\nno</think>": {"1": 1.0}}
    assert chain(tried(script, wait="Hm")[0]) == "so\nHm\nno</think>1<|end|>", "no empty line in between"
    script = {"": {"</think>": 1.0}, "Hm\n": {"no</think>": 1.0}, "Hm\nno</think>": {"1": 1.0}}
    trace, _ = tried(script, wait="Hm")
    assert chain(trace) == "Hm\nno</think>1<|end|>" and sum(span.pruned for span in trace.spans) == 1


@pytest.mark.parametrize(
    ("think", "path", "closed"),
    [
        (1, "h", True),
        (5, "hm hm", True),
        (6, "hm hm", False),  # the model's own end, with no room to wait in
        (12, "hm hm", False),
        (13, "hm hm\nWait\nhm", True),
        (17, "hm hm\nWait\nhm hm", False),
        (40, "hm hm\nWait\nhm hm\nWait\nhm hm\nWait\nhm hm", False),
    ],
)
def test_the_budget_of_thought_ends_it_by_force_and_leaves_no_room_to_wait_in(think, path, closed):
    def endless(tokens):
        return {"9": 1.0} if thought(tokens).endswith("</think>") else {"hm hm</think>": 1.0}

    sampler, budget = ScriptedSampler(lambda t: None if thought(t).endswith("9") else endless(t), chat()), Budget()
    budget.think_tokens = think
    trace = run(wait, sampler, budget, canonical=canonical, waits=3)
    assert_sound(trace, sampler, budget)
    assert trace.answers == ["9"] and not trace.exhausted
    assert chain(trace) == path + "</think>9<|end|>" and ("</think>" in forced(trace)) == closed


def test_no_thought_at_all_is_an_answer_at_once():
    trace, sampler = tried({"</think>": {"3": 1.0}}, Budget(think_tokens=0, samples=2))
    assert trace.answers == ["3", "3"] and forced(trace) == ["</think>"] and len(sampler.calls) == 1


def test_a_turn_that_ends_in_the_thought_goes_on_and_is_answered():
    script = {"": {"oops": 1.0}, "oops\nWait\n": {"2": 1.0}, "oops\nWait\n2</think>": {"2": 1.0}}
    trace, _ = tried(script)
    assert chain(trace) == "oops\nWait\n2</think>2<|end|>" and sum(span.pruned for span in trace.spans) == 2
    trace, _ = tried({"": {"oops": 1.0}, "oops</think>": {"1": 1.0}}, waits=0)
    assert trace.answer == "1" and forced(trace) == ["</think>"]


def test_the_majority_of_the_chains_answers():
    script = {"": {"</think>": 1.0}, "Wait\n": {"a</think>": 1.0}, "Wait\na</think>": {"1": 1.0, "2": 3.0}}
    trace, sampler = tried(script, Budget(samples=15), seed=1)
    assert len(trace.answers) == 15 and trace.answers.count("2") > trace.answers.count("1") > 0
    assert trace.answer == "2" and sampler.calls[0].n == 15


def test_a_spelled_out_tag_is_taken_back_whole():
    from tests.search.test_sample import chat as chats

    spelled = chats(True)
    script = {
        "": "2 > 1</think>",
        "2 > 1\nWait\n": "3</think>",
        "2 > 1</think>": "9",
        "2 > 1\nWait\n3</think>": "3",
    }

    def follows(tokens):
        text = spelled.decode(tokens)[len(spelled.decode(spelled.prompt(QUESTION.text))) :]
        found = script.get(text)
        return None if found is None else tuple(found.encode()) + ((spelled.turn_end,) if found.isdigit() else ())

    sampler = ScriptedSampler(follows, spelled)
    trace = asyncio.run(wait(QUESTION, sampler, spelled, Budget(), canonical=canonical))
    assert trace.answer == "3" and [bytes(span.tokens) for span in trace.spans if span.pruned] == [b"</think>"]
    assert trace.cost.sampled_tokens == sampler.cost.sampled_tokens


def test_taking_back_leaves_a_path_as_if_the_end_had_not_been_sampled():
    async def go():
        tree = Tree("t", QUESTION, sampler_of(HASTY), chat(), Budget())
        [end] = await tree.think(tree.root)
        before = end.thought, end.sampled, end.logprob
        back = tree.take_back(end)
        return before, back

    (thoughts, sampled, logprob), back = asyncio.run(go())
    assert back.open and not back.closed and thought(back.tokens) == "2+2=5" and back.thought == thoughts - 1 == 5
    assert back.sampled == sampled - 1 and back.logprob == logprob == 0.0
    [tag] = back.children
    assert tag.dead and thought(tag.tokens) == "2+2=5</think>" and tag.sampled == sampled


@pytest.mark.parametrize("options", [{"waits": -1}, {"least": -1}])
def test_numbers_that_mean_nothing_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        tried(HASTY, **options)


KINDS = {"once": {}, "thrice": {"waits": 3, "least": 9}, "never": {"waits": 0}}


def make(options, sampler, scorer, budget, seed=0):
    return wait(QUESTION, sampler, chat(), budget, seed=seed, canonical=canonical, **options)


@pytest.mark.parametrize(
    "hardship",
    ["keeps_budgets_to_the_token", "bears_a_lost_sampler", "leaves_nothing_running", "depends_on_the_seed_alone"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_hardships(kind, hardship):
    getattr(hardships, hardship)(hardships.strategy_of(partial(make, KINDS[kind])), 4)
