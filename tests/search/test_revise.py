"""Revision: each attempt begins where the one before it went wrong, and the last one has no privilege."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest

from mull.engine.scripted import ScriptedSampler
from mull.errors import SamplerLost, UserError
from mull.learn.critique import MARKER
from mull.learn.samples import from_rollouts
from mull.ledger import Budget
from mull.scorers.critic import Critic, Critique
from mull.search.node import Steps
from mull.search.revise import revise
from mull.types import Cost, SpanKind, Trace
from tests.search import hardships
from tests.search.tools import QUESTION, ScriptedScorer, assert_sound, canonical, chat, run, sampler_of, thought

# The first line is right or wrong, the second follows from it.
SUMS = {
    "": {"a=1\n": 1.0},
    "a=1\n": {"b=3\n": 0.6, "b=2\n": 0.4},
    "a=1\nb=3\n": {"c=4</think>": 1.0},
    "a=1\nb=2\n": {"c=3</think>": 1.0},
    "a=1\nb=3\nc=4</think>": {"4": 1.0},
    "a=1\nb=2\nc=3</think>": {"3": 0.5, "8": 0.5},
}


@dataclass
class ScriptedCritic:
    """Says what `word` makes of the text of an attempt: (probability of "ok", wrong step, why)."""

    word: Callable[[str], tuple[float, int | None, str]]
    fail: dict[int, BaseException] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)

    async def critique(self, prefixes: Sequence[Sequence[int]]) -> list[Critique]:
        self.read += [thought(prefix) for prefix in prefixes]
        await asyncio.sleep(0)
        if len(self.read) - 1 in self.fail:
            raise self.fail[len(self.read) - 1]
        return [Critique(*self.word(thought(p)), cost=Cost(scorer_tokens=len(p), flops=2.0)) for p in prefixes]


def exact(text: str) -> tuple[float, int | None, str]:
    if "b=3" in text:
        return 0.1, 2, "b is 2"
    return (0.9, None, "") if text.endswith("3<|end|>") else (0.2, 4, "the answer does not follow")


def attempts(trace: Trace) -> list[str]:
    return [thought([token for span in trace.path(leaf) for token in span.tokens]) for leaf in trace.leaves]


def tried(script, budget, **options) -> tuple[Trace, ScriptedSampler]:
    sampler = script if isinstance(script, ScriptedSampler) else sampler_of(script)
    trace = run(revise, sampler, budget, canonical=canonical, **options)
    assert_sound(trace, sampler, budget)
    return trace, sampler


def test_the_next_attempt_goes_on_from_before_the_first_wrong_step():
    kinds = set()
    for seed in range(12):
        critic = ScriptedCritic(exact)
        trace, sampler = tried(SUMS, Budget(samples=30), critic=critic, seed=seed)
        assert trace.answer == "3" and critic.read[-1].endswith("b=2\nc=3</think>3<|end|>")
        asked = [thought(call.prefix) for call in sampler.calls]
        assert asked.count("") == 1, "the right first line is never sampled again"
        for wrong, after in zip(critic.read, critic.read[1:], strict=False):
            if "b=3" in wrong:
                kinds.add("line")
                assert after.startswith("a=1\n")
            else:
                kinds.add("answer")
                assert after.startswith("a=1\nb=2\nc=3</think>"), "the thought was right: only the answer is new"
        assert trace.cost.scorer_tokens > 0 and len(critic.read) == len(trace.leaves)
        pruned = {chat().decode(span.tokens) for span in trace.spans if span.pruned}
        assert pruned <= {"b=3\n", "8<|end|>"} and (len(trace.leaves) == 1 or pruned)
    assert kinds == {"line", "answer"}


def test_attempts_are_at_most_n_and_end_when_the_critic_is_satisfied():
    never = lambda text: (0.3, 1, "no")  # noqa: E731
    for n in range(1, 6):
        critic = ScriptedCritic(never)
        trace, _ = tried(SUMS, Budget(samples=n), critic=critic)
        assert len(trace.leaves) == n == len(critic.read) and not trace.exhausted
        assert trace.spans[0].visits == n, "each began afresh, as its first line was called wrong"
    assert len(tried(SUMS, Budget(samples=5), critic=ScriptedCritic(never), enough=0.2)[0].leaves) == 1
    assert len(tried(SUMS, Budget(samples=5), critic=ScriptedCritic(lambda t: (0.8, None, "")))[0].leaves) == 1
    unsure = ScriptedCritic(lambda t: (0.8, None, ""))
    trace, _ = tried(SUMS, Budget(samples=5), critic=unsure, enough=0.9)
    assert len(trace.leaves) == 5 and trace.spans[0].visits == 5, "not satisfied, yet pointing nowhere: afresh"


def test_a_right_answer_that_was_revised_wrong_is_still_chosen():
    word = {"3": (0.45, 2, ""), "4": (0.2, 2, "")}  # all wrong by the critic, the answer of each
    for pick, answer in {"value": "3", "weighted": "3", "vote": "4"}.items():
        sampler = ScriptedSampler(["x\n</think>", "3", "4", "4"], chat())  # a thought, its answer, two revisions
        critic = ScriptedCritic(lambda text: word[text.removesuffix("<|end|>")[-1]])
        trace, _ = tried(sampler, Budget(samples=3), critic=critic, pick=pick)
        assert trace.answers == ["3", "4", "4"] and trace.answer == answer, pick
        assert trace.chosen == trace.leaves[0 if answer == "3" else 1]
        assert len(critic.read) == (2 if pick == "vote" else 3), "a vote needs no word on the last attempt"


@pytest.mark.parametrize(
    ("step", "expected"),
    [(1, ""), (2, "one\n"), (3, "one\n\ntwo\n"), (4, "one\n\ntwo\nend</think>"), (5, ""), (99, "")],
)
def test_steps_are_counted_as_critics_count_them(step, expected):
    """Non-empty lines; the answer behind the last. A number that is no step points nowhere."""
    script = {
        "": {"one\n": 1.0},
        "one\n": {"\n": 1.0},
        "one\n\n": {"two\n": 1.0},
        "one\n\ntwo\n": {"end</think>": 1.0},
        "one\n\ntwo\nend</think>": {"1": 1.0},
    }
    critic = ScriptedCritic(lambda text: (0.0, step, "no"))
    trace, sampler = tried(script, Budget(samples=2), critic=critic)
    second = sampler.calls[2]
    # The empty line is a step of the tree's, and belongs in front of the line that follows it.
    assert thought(second.prefix) == (expected + "\n" if step == 2 else expected)
    assert len(trace.leaves) == 2


def test_lines_that_were_cut_into_several_steps_are_one_line():
    script = {"": {"a" * 10 + "\n": 1.0}, "a" * 10 + "\n": {"b" * 10 + "</think>": 1.0}}
    script["a" * 10 + "\n" + "b" * 10 + "</think>"] = {"1": 1.0}
    critic = ScriptedCritic(lambda text: (0.0, 2, "no"))
    _, sampler = tried(script, Budget(samples=2), critic=critic, steps=Steps(max_tokens=4))
    assert thought(sampler.calls[2].prefix) == "a" * 10 + "\n"


def test_a_thought_that_was_closed_by_force_is_revised_like_any_other():
    def endless(tokens):
        return {"9": 1.0} if thought(tokens).endswith("</think>") else {"hm\n": 1.0}

    for step, before in ((3, "hm\nhm\n"), (4, "hm\nhm\nhm\n</think>"), (1, "")):
        sampler, budget = ScriptedSampler(endless, chat()), Budget(think_tokens=9, samples=2, answer_tokens=1)
        trace = run(revise, sampler, budget, canonical=canonical, critic=ScriptedCritic(lambda t, s=step: (0.0, s, "")))
        assert_sound(trace, sampler, budget)
        assert thought(sampler.calls[2].prefix) == before and trace.answers == ["9", "9"]


def test_a_scorer_of_steps_points_where_its_score_falls():
    def score(text):
        return 0.2 if "b=3" in text or text.endswith("8<|end|>") else 0.9

    for seed in range(6):
        trace, sampler = tried(SUMS, Budget(samples=30), scorer=ScriptedScorer(score), seed=seed)
        assert trace.answer == "3" and [thought(c.prefix) for c in sampler.calls].count("") == 1
        assert all(span.score is not None for span in trace.path(trace.chosen)[1:])
    low = tried(SUMS, Budget(samples=3), scorer=ScriptedScorer(lambda t: 0.4), threshold=0.5)[0]
    assert len(low.leaves) == 3 and low.spans[0].visits == 3
    assert len(tried(SUMS, Budget(samples=3), scorer=ScriptedScorer(lambda t: 0.4), threshold=0.4)[0].leaves) == 1


def test_with_both_the_critic_points_and_the_scorer_judges():
    scorer = ScriptedScorer(lambda text: 0.9 if text.endswith("8<|end|>") else 0.1)
    for seed in range(20):
        critic = ScriptedCritic(lambda text: (0.0, 4, "no"))
        trace, _ = tried(SUMS, Budget(samples=6), critic=critic, scorer=scorer, aggregate="last", seed=seed)
        assert trace.answer == ("8" if "8" in trace.answers else trace.answers[0])
    with pytest.raises(UserError, match="a critic, or a scorer"):
        tried(SUMS, Budget(samples=3))


def test_a_further_turn_shows_the_answer_and_what_was_said_of_it():
    prompts = {}

    def follows(tokens):
        text = chat().decode(tokens)
        turn = text.count("<|user|>")
        prompts.setdefault(turn, text)
        if text.endswith("<think>"):
            return "b=3</think>" if turn < 3 else "b=2</think>"
        return ("3" if turn < 3 else "2") if text.endswith("</think>") else None

    def word(text):
        return (0.9, None, "") if "b=2" in text else (0.1, 1, "b is 2")

    critic = ScriptedCritic(word)
    sampler, budget = ScriptedSampler(follows, chat()), Budget(samples=5)
    trace, _ = tried(sampler, budget, critic=critic, how="turn")
    assert trace.answers == ["3", "3", "2"] and trace.answer == "2"
    told = "<|assistant|>3<|end|><|user|>b=3 is wrong: b is 2. Try again.<|end|>"
    asked = "<|user|>2+2?<|end|>"
    assert [prompts[k] for k in (1, 2, 3)] == [asked + told * k + "<|assistant|><think>" for k in range(3)]
    roots = [span for span in trace.spans if span.parent == -1]
    assert len(roots) == 3 and {span.kind for span in roots} == {SpanKind.PROMPT}
    assert critic.read == ["b=3</think>3<|end|>"] * 2 + ["b=2</think>2<|end|>"], "as answers to the question itself"
    assert trace.path(trace.chosen)[0] is roots[2]
    learnt = from_rollouts([trace], [1.0, 1.0, 1.0])
    assert [sum(one.mask) for one in learnt] == [6, 6, 6]


def test_the_conversation_keeps_the_latest_turns():
    def follows(tokens):
        text = chat().decode(tokens)
        if text.endswith("<think>"):
            return "b</think>"
        return str(text.count("<|user|>")) if text.endswith("</think>") else None

    sampler = ScriptedSampler(follows, chat())
    critic = ScriptedCritic(lambda text: (0.1, 1, "no"))
    tried(sampler, Budget(samples=6), critic=critic, how="turn", keep=2)
    turns = [chat().decode(call.prefix).count("<|user|>") for call in sampler.calls[::2]]
    assert turns == [1, 2, 3, 3, 3, 3]
    last = chat().decode(sampler.calls[-2].prefix)
    assert last.startswith("<|user|>2+2?<|end|><|assistant|>3<|end|>"), "the question stays, the first answers go"


def test_a_critic_that_cannot_be_read_or_is_lost_means_afresh():
    for critic in (
        ScriptedCritic(lambda text: (math.nan, None, "")),
        ScriptedCritic(exact, fail=dict.fromkeys(range(9), SamplerLost("gone"))),
    ):
        trace, _ = tried(SUMS, Budget(samples=4), critic=critic)
        assert len(trace.leaves) == 4 and trace.spans[0].visits == 4 and trace.answer in ("3", "4", "8")
        unread = "the critic wrote nothing that can be read of an attempt, which counts as not ok"
        assert trace.lost == ["the critic was lost: gone" if critic.fail else unread] * 4


def test_attempts_without_an_answer_are_not_the_end():
    script = {**SUMS, "": {"a=1\n": 0.5, "stop": 0.5}}
    answered = 0
    for seed in range(8):
        trace, _ = tried(script, Budget(samples=12), critic=ScriptedCritic(exact), seed=seed)
        answered += trace.answer == "3"
    assert answered == 8
    trace, _ = tried({"": {"stop": 1.0}, "</think>": {"5": 1.0}}, Budget(samples=3), critic=ScriptedCritic(exact))
    assert trace.answer == "5", "forced, as none of the attempts came to an answer"


def test_a_real_critic_works_here():
    """`Critic` on a model of its own: it reads the attempt and the marker, and writes its word."""

    def writes(tokens):
        read, _, written = chat().decode(tokens).rpartition(MARKER)
        return None if written else "ok" if "b=2" in read and read.endswith("3<|end|>") else "2 b is 2"

    model = ScriptedSampler(writes, chat())
    trace, sampler = tried(SUMS, Budget(samples=30), critic=Critic(model, chat()), seed=2)
    assert trace.answer == "3"
    assert trace.cost.scorer_tokens == model.cost.prefill_tokens + model.cost.sampled_tokens > 0
    assert trace.cost.flops == sampler.cost.flops + model.cost.flops


def hashed(text: str) -> tuple[float, int | None, str]:
    value = hardships.chance(text)
    return value, None if value > 0.8 else 1 + int(value * 97) % 4, "no"


class JudgedBy:
    """A critic that fails, and counts, as the scorer of a trial does."""

    def __init__(self, scorer):
        self.scorer = scorer

    async def critique(self, prefixes):
        scores = await self.scorer.score(prefixes)
        return [
            Critique(s.value, None if math.isnan(s.value) else hashed(thought(p))[1], "no", s.cost)
            for p, s in zip(prefixes, scores, strict=True)
        ]


def make(options, sampler, scorer, budget, seed=0):
    judge = {"scorer": scorer} if options.get("by_scorer") else {"critic": JudgedBy(scorer)}
    more = {key: value for key, value in options.items() if key != "by_scorer"}
    return revise(QUESTION, sampler, chat(), budget, seed=seed, canonical=canonical, enough=0.9, **judge, **more)


def conversing(options, sampler, *rest, **more):
    """The wild model in a conversation: it knows the question by its last turn alone."""
    follows = sampler._follows
    sampler._follows = lambda tokens: follows((*chat().prompt(QUESTION.text), *_after_prompt(tokens)))
    return make(options, sampler, *rest, **more)


def _after_prompt(tokens):
    [open_tag] = chat().think_open
    return tokens[len(tokens) - tokens[::-1].index(open_tag) :]


KINDS = {
    "rewind": partial(make, {}),
    "rewind, by steps' scores": partial(make, {"by_scorer": True, "pick": "weighted", "threshold": 0.3}),
    "turn": partial(conversing, {"how": "turn"}),
    "turn, vote": partial(conversing, {"how": "turn", "pick": "vote", "by_scorer": True}),
}


@pytest.mark.parametrize(
    "hardship",
    [
        "keeps_budgets_to_the_token",
        "bears_a_lost_sampler",
        "bears_a_lost_scorer",
        "leaves_nothing_running",
        "depends_on_the_seed_alone",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_hardships(kind, hardship):
    getattr(hardships, hardship)(hardships.strategy_of(KINDS[kind]), 4)
