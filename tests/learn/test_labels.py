"""Labels: where they stand, what they say, and what must have none."""

from __future__ import annotations

import asyncio
import math
import random
from itertools import pairwise

import pytest

from mull.chat.steps import chain_ends, separator_tokens, step_ends, thought_end
from mull.learn import labels as lab
from mull.learn.labels import Chain, Label
from mull.tasks.chain import Chain as ChainTask
from mull.types import Cost, Problem, Question, Reference, StepVerdict
from tests.engine.small import chat

QUESTION = "a=7;b=a+15;c=b*3;d=c-8;d?"
PROBLEM = Problem(Question("q", "chain", QUESTION, 1), Reference("58"))
TASK = ChainTask()


def made(thought: str, answer: str | None = "58", cut: bool = False, correct: bool | None = False) -> Chain:
    """A chain as the model would write it; without an answer the thought is left open."""
    c = chat()
    completion = c.encode(thought) if answer is None else c.reply(thought, answer)
    verdict = TASK.check(PROBLEM, answer).correct if answer is not None and correct is not None else correct
    steps = TASK.check_steps(PROBLEM, c.split(completion)[0] if answer is not None else thought.strip())
    return lab.make_chain(c, c.prompt(QUESTION), completion, verdict, steps, "q", cut)


def said(chain: Chain, labels) -> list[tuple[str, float]]:
    """(text of the step that each label ends, value)."""
    ends = [chain.prompt, *chain.ends]
    return [(chat().decode(chain.tokens[max(e for e in ends if e < end) : end]), value) for end, value in labels]


# ------------------------------------------------------------------------------------------------- steps


def test_steps_end_behind_lines_the_closing_tag_and_the_answer():
    c = chat()
    completion = c.reply("b=22\nc=66", "58")
    ends, answered = chain_ends(c, completion)
    pieces = [c.decode(completion[a:b]) for a, b in pairwise([0, *ends])]
    assert pieces == ["b=22\n", "c=66</think>", "58<|end|>"] and answered
    assert chain_ends(c, completion[:-5]) == ([5, 8], False)
    assert chain_ends(c, []) == ([], False)
    assert chain_ends(c, c.encode("b\n")) == ([2], False), "no empty step behind a last line break"
    assert thought_end(c, completion) == 10 and thought_end(c, c.encode("x")) is None
    assert step_ends(c, c.encode("a--b--"), "--") == [3, 6]
    assert separator_tokens(c) == (10,)


# ---------------------------------------------------------------------------------------------- exact labels


def test_exact_labels_are_one_up_to_the_first_false_line_and_none_behind_it():
    right = made("b=7+15=22\nc=22*3=66\nd=66-8=58")
    assert said(right, lab.exact_labels(right)) == [
        ("b=7+15=22\n", 1.0),
        ("c=22*3=66\n", 1.0),
        ("d=66-8=58</think>", 1.0),
        ("58<|end|>", 1.0),
    ]
    wrong = made("b=7+15=22\nc=22*3=56\nd=66-8=58")
    assert wrong.correct is True, "a right answer by wrong reasoning"
    assert said(wrong, lab.exact_labels(wrong)) == [("b=7+15=22\n", 1.0), ("c=22*3=56\n", 0.0)]


def test_the_answer_is_the_last_step():
    copied = made("b=7+15=22\nc=22*3=66\nd=66-8=58", "57")
    assert said(copied, lab.exact_labels(copied))[-1] == ("57<|end|>", 0.0)
    guess = made("", "58")
    assert said(guess, lab.exact_labels(guess)) == [("</think>", 1.0), ("58<|end|>", 1.0)]
    unknown = made("b=7+15=22", "58", correct=None)
    assert said(unknown, lab.exact_labels(unknown)) == [("b=7+15=22</think>", 1.0)], "unscorable is not wrong"


def test_lines_without_a_claim_and_blank_lines_are_neutral():
    chain = made("\nwell now\nb=7+15=22\n\nc=22*3=56\nhm", "50")
    assert said(chain, lab.exact_labels(chain)) == [
        ("\n", 1.0),
        ("well now\n", 1.0),
        ("b=7+15=22\n", 1.0),
        ("\n", 1.0),
        ("c=22*3=56\n", 0.0),
    ]


def test_a_step_that_was_cut_is_no_step():
    chain = made("b=7+15=22\nc=22*3=6", None, cut=True)
    assert said(chain, lab.exact_labels(chain)) == [("b=7+15=22\n", 1.0)] and not chain.answered
    whole = made("b=7+15=22\nc=22*3=56\n", None, cut=True)
    assert said(whole, lab.exact_labels(whole)) == [("b=7+15=22\n", 1.0), ("c=22*3=56\n", 0.0)]


def test_a_turn_that_ended_while_thinking_is_wrong():
    c = chat()
    completion = [*c.encode("b=7+15=22\nc=22*3=66"), c.turn_end]
    steps = TASK.check_steps(PROBLEM, "b=7+15=22\nc=22*3=66")
    chain = lab.make_chain(c, c.prompt(QUESTION), completion, False, steps)
    assert [label.value for label in lab.exact_labels(chain)] == [1.0, 0.0] and not chain.answered


def test_verdicts_that_belong_to_no_line_make_no_labels():
    c = chat()
    chain = lab.make_chain(c, c.prompt("?"), c.reply("a\nb", "1"), True, [StepVerdict("a", True)])
    assert chain.steps is None and lab.exact_labels(chain) == []
    assert lab.outcome_labels(chain), "its verdict is known all the same"


def test_a_label_spreads_over_its_own_step_only():
    wrong = made("b=7+15=22\nc=22*3=56\nd=66-8=58")
    labels = lab.exact_labels(wrong)
    spread = lab.spread(wrong, labels)
    assert [label.end for label in spread] == list(range(wrong.prompt + 1, labels[-1].end + 1))
    assert [label for label in spread if label.end in wrong.ends] == labels
    assert [label.value for label in spread] == [1.0] * len("b=7+15=22\n") + [0.0] * len("c=22*3=56\n")
    assert lab.spread(wrong, [Label(wrong.ends[1], 0.5)])[0] == Label(wrong.ends[0] + 1, 0.5)


# ---------------------------------------------------------------------------------------------- outcome labels


def test_outcome_labels_are_the_verdict_at_every_token_behind_the_prompt():
    """The verdict, not equality with a reference answer's text."""
    for answer, value in (("58", 1.0), ("57", 0.0), (" 58 ", float(TASK.check(PROBLEM, "58").correct or 0))):
        chain = made("b=7+15=22", answer)
        labels = lab.outcome_labels(chain)
        assert [label.end for label in labels] == list(range(chain.prompt + 1, len(chain.tokens) + 1))
        assert {label.value for label in labels} == {value}
    assert lab.outcome_labels(made("", "1", correct=None)) == [], "unscorable is not wrong"


# ---------------------------------------------------------------------------------------------- rollout labels


class Completer:
    """Completions of a prefix are right with a share that depends on the number of steps in it."""

    def __init__(self, chain: Chain, shares: list[float | None]):
        self.share = dict(zip(chain.ends, shares, strict=False))
        self.chain, self.asked = chain, []

    async def __call__(self, prefix, k):
        assert tuple(prefix) == self.chain.tokens[: len(prefix)]
        self.asked.append(len(prefix))
        share = self.share[len(prefix)]
        if share is None:
            return [None] * k, Cost(sampled_tokens=k)
        right = round(share * k)
        return [True] * right + [False] * (k - right), Cost(sampled_tokens=10 * k)


def numbered(steps: int, correct: bool | None) -> Chain:
    tokens = tuple(range(3 + 2 * steps))
    ends = tuple(range(5, 4 + 2 * steps, 2))
    return Chain(tokens, 3, ends, correct)


def test_rollout_labels_are_shares_and_the_end_is_the_verdict():
    chain = numbered(4, False)
    complete = Completer(chain, [1.0, 0.25, None])
    got = asyncio.run(lab.rollout_labels(chain, complete, 4))
    assert got.labels == [Label(5, 1.0), Label(7, 0.25), Label(11, 0.0)], "nothing known of the third: left out"
    assert complete.asked == [5, 7, 9], "a complete chain is not completed"
    assert got.rollouts == 12 and got.cost.sampled_tokens == 84
    assert lab.hard(got.labels) == [Label(5, 1.0), Label(7, 1.0), Label(11, 0.0)]
    some = asyncio.run(lab.rollout_labels(numbered(4, None), Completer(chain, [1.0, 0.5, 0.5]), 4, most=2))
    assert some.labels == [Label(5, 1.0), Label(7, 0.5)]


def test_unjudged_rollouts_count_on_neither_side():
    chain = numbered(2, True)

    async def complete(prefix, k):
        return [True, None, None, False], Cost()

    assert asyncio.run(lab.rollout_labels(chain, complete, 4)).labels[0] == Label(5, 0.5)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 16])
def test_omega_finds_the_first_wrong_step_in_few_probes(steps):
    for first in range(steps):
        chain = numbered(steps, False)
        complete = Completer(chain, [0.5 if i < first else 0.0 for i in range(steps)])
        got = asyncio.run(lab.omega_labels(chain, complete, 8))
        assert got.labels == [*(Label(e, 1.0) for e in chain.ends[:first]), Label(chain.ends[first], 0.0)]
        assert len(complete.asked) <= math.ceil(math.log2(steps)) and got.rollouts == 8 * len(complete.asked)
        assert chain.ends[-1] not in complete.asked


def test_omega_asks_nothing_about_right_or_unknown_chains():
    right = numbered(5, True)
    got = asyncio.run(lab.omega_labels(right, Completer(right, []), 8))
    assert [label.value for label in got.labels] == [1.0] * 5 and got.rollouts == 0
    assert asyncio.run(lab.omega_labels(numbered(5, None), Completer(right, []), 8)).labels == []
    lost = numbered(4, False)
    assert asyncio.run(lab.omega_labels(lost, Completer(lost, [None] * 4), 8)).labels == []


def test_omega_does_not_call_the_last_whole_step_of_a_cut_chain_wrong_unasked():
    cut = Chain(tuple(range(20)), 3, (5, 9), False)
    complete = Completer(cut, [1.0, 0.5])
    assert [x.value for x in asyncio.run(lab.omega_labels(cut, complete, 2)).labels] == [1.0, 1.0]
    assert 9 in complete.asked


# -------------------------------------------------------------------------------------------------- pairs


def test_outcome_pairs_prefer_right_to_wrong_and_come_once():
    chains = [Chain((1, i), 1, (2,), correct) for i, correct in enumerate([True, False, None, True, False, False])]
    pairs = lab.outcome_pairs(chains, random.Random(0), most=100)
    assert {(p.better[1], p.worse[1]) for p in pairs} == {(r, w) for r in (0, 3) for w in (1, 4, 5)}
    assert len(pairs) == 6
    four = lab.outcome_pairs([*chains, Chain((1, 9), 1, (2,), True)], random.Random(1), most=4)
    assert len(four) == 4 and {p.worse[1] for p in four} == {1, 4, 5}, "every chain is used before any comes again"
    assert lab.outcome_pairs(chains[:1], random.Random(0)) == []


def test_sibling_pairs_share_a_right_parent():
    good, slip = made("b=7+15=22\nc=22*3=66\nd=66-8=58"), made("b=7+15=22\nc=22*3=56\nd=56-8=48", "48")
    other = made("b=7+15=32\nc=32*3=96", "96")
    pairs = lab.sibling_pairs([good, slip, other], random.Random(0))
    tail = {(chat().decode(p.better)[-10:], chat().decode(p.worse)[-10:]) for p in pairs}
    assert tail == {("b=7+15=22\n", "b=7+15=32\n"), ("c=22*3=66\n", "c=22*3=56\n")}
