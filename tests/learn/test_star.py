"""STaR's pure parts: the hint goes in and is never learnt, what is kept, the order of documents, the schedule."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from mull.chat import Chat
from mull.errors import StopReason, UserError
from mull.learn.star import (
    HINT,
    Asked,
    Kept,
    Mixture,
    Tried,
    hinted,
    keep,
    quotes_hint,
    refuse_bad_hint,
    steps_of,
    tried,
)
from mull.models.nano import write_tokenizer
from mull.types import Question, Span, SpanKind, Trace, Verdict

QUESTION = Question("addition/2/x", "addition", "61+39=?", 2)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Chat.load(folder)


def chain(correct: bool | None, tokens: tuple[int, ...] = (7, 8), **more) -> Tried:
    return Tried(tokens, more.pop("ended", True), correct, "", **more)


def asked(plain: Tried, with_hint: Tried | None = None, level: int = 2) -> Asked:
    return Asked(replace(QUESTION, level=level), (1, 2, 3), plain, with_hint)


# ------------------------------------------------------------------------------------------------- the hint


def test_a_hint_changes_the_text_alone_and_holds_what_it_is_given_as_it_is():
    told = hinted(QUESTION, "100")
    assert told.text == "61+39=?\nhint: 100" and replace(told, text=QUESTION.text) == QUESTION
    odd = replace(QUESTION, text="what is {answer}?")  # a question about templates
    assert hinted(odd, r"{question}\1", "{question} ({answer})").text == r"what is {answer}? ({question}\1)"


@pytest.mark.parametrize("bad", ["", "{question}", "{answer}", "{answer} {question}", "{question}{answer}{answer}"])
def test_a_template_without_question_and_answer_is_refused(bad: str):
    with pytest.raises(UserError, match="hint="):
        refuse_bad_hint(bad)


@pytest.mark.parametrize(
    ("text", "template", "quotes"),
    [
        ("6+3,0C:1\n100", HINT, False),  # reaching the answer is the point
        ("the hint: 100 says so", HINT, True),
        ("a hint: I use it", HINT, True),  # the words that introduce a hint, without it
        ("so it is (100)", "{question} ({answer})", True),
        ("(6+3)*10", "{question} ({answer})", False),  # a bracket is no quotation
        ("100", "{question} {answer}", False),
        ("the answer is\n100", "{question} {answer}", False),
    ],
)
def test_a_thought_that_quotes_the_hint_is_found(text: str, template: str, quotes: bool):
    assert quotes_hint(text, "100", template) is quotes


def contains(tokens, part) -> bool:
    tokens, part = list(tokens), list(part)
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens) - len(part) + 1))


def test_no_sample_holds_a_token_of_the_hint(chat: Chat):
    """The trap of rationalization: a model that learnt from hinted prompts would need the answer to find the answer.

    Every problem failed without a hint and was solved with it; half of the thoughts quote the hint."""
    everything = []
    for i in range(20):
        question = replace(QUESTION, text=f"{i}+{i}=?")
        told = hinted(question, str(2 * i))
        thought = f"{i}+{i},C:0\n" + (f"as the hint: {2 * i} says\n" if i % 2 else "")
        traces = []
        for q, prompt, answer in ((question, question.text, "x"), (told, told.text, str(2 * i))):
            reply = chat.reply(thought, answer)
            spans = [
                Span(SpanKind.PROMPT, tuple(chat.prompt(prompt))),
                Span(SpanKind.SAMPLED, tuple(reply), 0, (-0.1,) * len(reply), stop=StopReason.STOP),
            ]
            traces.append(Trace(q, "sample", spans, [1], [answer], [Verdict(answer != "x", answer)]))
        texts = [chat.decode(t.spans[1].tokens) for t in traces]
        first = tried(traces[0], texts[0], [])
        second = tried(traces[1], texts[1], [], str(2 * i), HINT)
        assert contains(traces[1].spans[0].tokens, chat.encode("hint:")), "the hint was never asked with"
        everything.append(Asked(question, traces[0].spans[0].tokens, first, second))
    samples = [one.sample() for one in keep(everything)]
    assert len(samples) == 10, "those that quote the hint are left out"
    for i, sample in zip(range(0, 20, 2), samples, strict=True):
        for part in (f"\nhint: {2 * i}", f"hint: {2 * i}", "hint:"):
            assert not contains(sample.tokens, chat.encode(part))
        prompt = chat.prompt(f"{i}+{i}=?")
        assert list(sample.tokens) == [*prompt, *chat.reply(f"{i}+{i},C:0\n", str(2 * i))], "as sampled, token by token"
        assert sample.ce is not None
        assert [w > 0 for w in sample.ce] == [False] * len(prompt) + [True] * (len(sample.tokens) - len(prompt))
        assert sample.tokens[-1] == chat.turn_end and sample.ce[-1] == 1.0, "the end token is learnt"


# ---------------------------------------------------------------------------------------------- what is kept


def test_right_chains_and_rationalizations_of_failures_are_kept_and_nothing_else():
    right, wrong, unknown = chain(True), chain(False), chain(None)
    cut = chain(True, ended=False)  # a grader that likes the empty answer of a chain that was cut off
    rows = [
        asked(right),
        asked(wrong),
        asked(wrong, chain(True, (9,))),
        asked(wrong, wrong),
        asked(wrong, chain(True, (9,), quotes_hint=True)),
        asked(unknown),
        asked(unknown, chain(True, (9,))),  # not asked again by the recipe; not learnt either
        asked(cut),
        asked(cut, cut),
        asked(cut, chain(True, (5,))),
        asked(right, chain(True, (9,))),
    ]
    assert [(k.tokens, k.rationalized) for k in keep(rows)] == [
        ((7, 8), False),
        ((9,), True),
        ((5,), True),
        ((7, 8), False),
    ]
    assert all(k.prompt == (1, 2, 3) and k.cell == "addition/2" for k in keep(rows))
    assert (right.failed, wrong.failed, unknown.failed, cut.failed) == (False, True, False, True)


def test_clean_lines_leaves_out_right_answers_with_a_false_line():
    rows = [
        asked(chain(True, false_lines=0)),
        asked(chain(True, (1,), false_lines=2)),
        asked(chain(True, (2,))),  # a task that judges no lines
        asked(chain(False), chain(True, (3,), false_lines=1)),
    ]
    assert [k.tokens for k in keep(rows)] == [(7, 8), (1,), (2,), (3,)]
    assert [k.tokens for k in keep(rows, clean_lines=True)] == [(7, 8), (2,)]


def test_a_share_of_the_rationalizations():
    rows = [asked(chain(True, (0,)))] + [asked(chain(False), chain(True, (i + 1,))) for i in range(400)]
    some = keep(rows, seed=3, rationalized_share=0.25)
    assert 70 < sum(k.rationalized for k in some) < 130 and some[0].tokens == (0,)
    assert some == keep(rows, seed=3, rationalized_share=0.25) != keep(rows, seed=4, rationalized_share=0.25)
    assert len(keep(rows, rationalized_share=0.0)) == 1 and len(keep(rows)) == 401
    # the draw belongs to the problem: another one before it that is right changes nothing
    later = keep([*rows[:1], *[replace(r, plain=chain(True)) for r in rows[1:50]], *rows[50:]], 3, 0.25)
    assert [k for k in later if k.rationalized] == [k for k in some if k.rationalized and k.tokens[0] >= 50]


def test_a_chain_that_was_judged():
    spans = [Span(SpanKind.PROMPT, (1,)), Span(SpanKind.SAMPLED, (5, 6), 0, (-1.0, -1.0), stop=StopReason.STOP)]
    trace = Trace(QUESTION, "sample", spans, [1], ["42"], [Verdict(None, error="the grader crashed")])
    found = tried(trace, "text", [True, None, False, False])
    assert found == Tried((5, 6), True, None, "42", 2, False, "the grader crashed")
    assert tried(trace, "text", [None]).false_lines is None and tried(trace, "text", [True]).false_lines == 0
    assert tried(trace, "hint: 42", [], "42", HINT).quotes_hint and not tried(trace, "hint: 42", []).quotes_hint
    spans[1].stop = StopReason.LENGTH
    assert not tried(trace, "text", []).ended
    with pytest.raises(ValueError, match="2 chains"):
        tried(replace(trace, leaves=[1, 1], verdicts=trace.verdicts * 2), "text", [])


# ------------------------------------------------------------------------------------------------- the order


def kept_chains(levels: str) -> list[Kept]:
    return [Kept(f"addition/{level}", (1,), (i,), False) for i, level in enumerate(levels)]


def test_every_epoch_holds_every_chain_once_in_a_new_order():
    chains = kept_chains("1112345555")
    mixture = Mixture(chains, seed=5)
    epochs = [[mixture(10 * e + i).tokens[0] for i in range(10)] for e in range(4)]
    assert all(sorted(e) == list(range(10)) for e in epochs) and len(set(map(tuple, epochs))) == 4
    again = Mixture(chains, seed=5)
    assert [again(i).tokens[0] for i in range(20, 40)] == epochs[2] + epochs[3], "a resumed run reads on"
    assert [again(i).tokens[0] for i in range(10)] == epochs[0], "and may look back"
    assert [Mixture(chains, seed=6)(i).tokens[0] for i in range(10)] != epochs[0]


def test_balance_takes_levels_in_turn():
    mixture = Mixture(kept_chains("1" * 90 + "2" * 9 + "3"), seed=0, balance=True)
    seen = [mixture(i) for i in range(270)]
    assert Counter(k.cell[-1] for k in seen) == {"1": 90, "2": 90, "3": 90}
    assert Counter(k.tokens[0] for k in seen if k.cell[-1] == "2") == {i: 10 for i in range(90, 99)}
    assert len({k.tokens for k in seen if k.cell[-1] == "1"}) == 90, "epochs of its own: each once"


def test_the_paper_s_two_schedules():
    assert [steps_of(n, 40, times=1.2) for n in range(1, 7)] == [40, 48, 58, 69, 83, 100]
    assert [steps_of(n, 300, plus=20) for n in (1, 2, 3, 20)] == [300, 320, 340, 680]
    assert steps_of(3, 10, times=2.0, plus=5) == 50 and steps_of(9, 10, times=0.5) == 1
