"""Length control: every form by hand, what wrong chains may earn, targets in prompts, and long made short."""

from __future__ import annotations

import doctest
import math
import random
from collections import Counter
from typing import Any

import pytest

from mull.chat import effort
from mull.chat.effort import WORDS, ask, asked, parted, tokens_of
from mull.errors import StopReason
from mull.learn import length
from mull.learn.advantages import grpo
from mull.learn.length import cosine, draw_wanted, kimi, lcpo_exact, lcpo_max, shaped, short_pairs, shortest_right
from mull.types import Question
from tests.learn.test_dpo import PROMPT, graded, span

FORMS = {
    "lcpo_exact": {"wanted": 50, "alpha": 0.01},
    "lcpo_max": {"wanted": 50, "alpha": 0.01},
    "kimi": {},
    "cosine": {"limit": 100},
}


@pytest.mark.parametrize("module", [length, effort])
def test_examples(module):
    assert doctest.testmod(module).failed == 0 and doctest.testmod(module).attempted > 2


# ------------------------------------------------------------------------------------------------ rewards


def test_l1_s_own_numbers():
    """alpha 0.0003 over an error of 1000 tokens costs 0.3; max pays delta at the target and 1 far below."""
    assert lcpo_exact(True, 3000, 2000) == pytest.approx(0.7)
    assert lcpo_exact(False, 3000, 2000, paper=True) == pytest.approx(-0.3)
    assert lcpo_max(True, 2000, 2000) == 0.5 and lcpo_max(True, 100, 2000) == 1.0
    assert lcpo_max(True, 3000, 2000) == pytest.approx(0.2) and lcpo_max(True, 3700, 2000) == 0.0
    assert lcpo_max(True, 2000, 2000, delta=0.9) == 0.9


def test_the_linear_branch_of_l1_s_code_is_the_paper_s_form_with_half_the_alpha():
    for n in range(0, 400, 7):
        code = (min(max(0.01 * (100 - n), -1), 1) + 1) / 2
        assert lcpo_max(True, n, 100, alpha=0.005) == pytest.approx(code)


def test_exact_falls_with_the_error_on_both_sides_and_max_on_one():
    exact = [lcpo_exact(True, n, 100, alpha=0.004) for n in range(0, 300, 20)]
    assert exact == sorted(exact[:6]) + sorted(exact[6:], reverse=True) and max(exact) == exact[5] == 1.0
    most = [lcpo_max(True, n, 100, alpha=0.004) for n in range(0, 300, 20)]
    assert most == sorted(most, reverse=True) and len(set(most)) > 10


def test_cosine_by_hand():
    """A quarter of the way the cosine has fallen by (1 - cos 45 degrees) / 2 of the difference."""
    quarter = (1 - math.cos(math.pi / 4)) / 2
    assert cosine(True, 25, 100) == pytest.approx(1 - 0.5 * quarter)
    paper: dict[str, Any] = dict(right=length.PAPER_RIGHT, wrong=length.PAPER_WRONG, exceed=length.PAPER_EXCEED)
    assert cosine(True, 25, 100, **paper) == pytest.approx(2 - quarter)
    assert cosine(False, 25, 100, **paper) == pytest.approx(-10 + 10 * quarter)
    assert cosine(True, 0, 100, **paper) == 2 and cosine(False, 0, 100, **paper) == -10
    assert cosine(True, 100, 100, **paper) == cosine(False, 130, 100, **paper) == -10
    assert cosine(True, 100, 100) == 0.0, "a chain that was cut is not paid for what it happens to say"


def test_kimi_counts_scorable_chains_only_and_nothing_where_all_are_equally_long():
    assert kimi([1.0, None, 0.0], [10, 1, 20], paper=True) == [1.5, None, -0.5]
    assert kimi([1.0, 1.0, 0.0], [10, 10, 10], paper=True) == [1.0, 1.0, 0.0]
    assert kimi([1.0, 1.0], [10, 20], weight=0.2) == pytest.approx([1.1, 0.9])
    assert kimi([None], [5]) == [None] and kimi([], []) == []


@pytest.mark.parametrize("form", FORMS)
def test_wrong_chains_earn_nothing_by_their_length_and_right_ones_never_less(form):
    """The trap: in a group of wrong chains a reward for length is the whole advantage."""
    lengths = [10, 50, 70, 99]
    wrong = shaped([0.0] * 4, lengths, form, **FORMS[form])
    assert wrong == [0.0] * 4 and not any(a or 0.0 for a in grpo(wrong))
    right = shaped([1.0] * 4, lengths, form, **FORMS[form])
    assert len(set(right)) > 1 and all(r is not None and r >= 0 for r in right)
    mixed = shaped([1.0, 0.0, None, 1.0], lengths, form, **FORMS[form])
    assert mixed[1] == 0.0 and mixed[2] is None
    if form != "lcpo_max":  # whose own form is this one
        paper = shaped([0.0] * 4, lengths, form, **FORMS[form], paper=True)
        assert len(set(paper)) > 1 and any(a or 0.0 for a in grpo(paper))
        assert all(p is not None and p <= 0 for p in paper)


def test_every_option_changes_a_reward():
    rewards, lengths = [1.0, 1.0, 0.0], [30, 60, 90]
    cases = [(form, options) for form, options in FORMS.items()]
    cases += [("lcpo_exact", {"wanted": 40, "alpha": 0.01}), ("lcpo_exact", {"wanted": 50, "alpha": 0.005})]
    cases += [("lcpo_max", {"wanted": 40, "alpha": 0.01}), ("lcpo_max", {"wanted": 50, "alpha": 0.005})]
    cases += [("lcpo_max", {"wanted": 50, "alpha": 0.01, "delta": 0.6}), ("kimi", {"weight": 0.5})]
    cases += [("cosine", {"limit": 200}), ("cosine", {"limit": 100, "paper": True}), ("kimi", {"paper": True})]
    found = [tuple(shaped(rewards, lengths, form, **options)) for form, options in cases]
    assert len(set(found)) == len(cases)


@pytest.mark.parametrize(
    ("form", "options"),
    [("lcpo_exact", {}), ("lcpo_max", {}), ("lcpo_exact", {"wanted": 5, "alpha": 0.0}), ("cosine", {})],
)
def test_a_form_without_its_number_is_refused(form, options):
    with pytest.raises(ValueError, match=form):
        shaped([1.0], [5], form, **options)
    with pytest.raises(ValueError):
        shaped([1.0, 0.0], [5], "kimi")


# ------------------------------------------------------------------------------------------------ targets


@pytest.mark.parametrize("wish", [*WORDS, 1, 64, 4000])
def test_a_wish_stands_at_the_end_of_the_question_and_can_be_read_back(wish):
    text = "a=1;a?\nthink 12\neffort: low?"
    assert parted(asked(text, wish)) == (text, wish)
    assert parted(text) == (text, None) and asked(text, None) == text
    question = ask(Question("q/1", "sums", "2+2?", 3), wish)
    assert question.id == "q/1" and question.level == 3 and parted(question.text) == ("2+2?", wish)


@pytest.mark.parametrize("wish", ["", "huge", 0, -3, True, 10**9])
def test_what_is_no_effort_is_refused(wish):
    with pytest.raises(ValueError, match="no effort"):
        asked("2+2?", wish)


def test_targets_are_drawn_evenly_and_words_stand_for_shares():
    rng = random.Random(0)
    drawn = [draw_wanted(rng, 20, 59) for _ in range(4000)]
    counts = Counter(w.tokens for w in drawn)
    assert set(counts) == set(range(20, 60)) and max(counts.values()) < 150, "100 of each are expected"
    assert all(w.effort == w.tokens for w in drawn)
    words = {(w.effort, w.tokens) for w in (draw_wanted(rng, 30, 100, words=True) for _ in range(100))}
    assert words == {("low", 30), ("medium", 50), ("high", 100)}, "no target lies below the lowest length"
    assert [tokens_of(word, 1000) for word in WORDS] == [250, 500, 1000]
    assert draw_wanted(random.Random(5), 1, 1000) == draw_wanted(random.Random(5), 1, 1000)
    with pytest.raises(ValueError):
        draw_wanted(rng, 0, 10)


# ------------------------------------------------------------------------------------------------ long to short


def chains() -> list:
    one = graded(
        [span([10, 11, 12, 99]), span([10, 99]), span([13, 99]), span([14, 15, 99]), span([16])],
        {1: True, 2: True, 3: False, 4: False, 5: None},
    )
    same = graded([span([10, 99]), span([17, 18, 99]), span([19], stop=StopReason.LENGTH)], {1: True, 2: True, 3: True})
    none = graded([span([10, 99])], {1: False}, name="q/2")
    return [one, same, none]


def test_the_shortest_right_chain_of_each_question():
    found = shortest_right(chains())
    assert [(name, path.side.tokens) for name, path in found] == [("q/1", (10, 99))]
    assert [path.side.tokens for _, path in shortest_right(chains(), most=2)] == [(10, 99), (17, 18, 99)]


def test_the_shortest_is_preferred_to_what_is_longer():
    """Of two tokens: longer wrong ones, right ones from three tokens on; not the wrong one that is as short."""
    pairs = short_pairs(chains()[:2])
    assert {p.chosen.tokens for p in pairs} == {(10, 99)} and pairs[0].prompt == PROMPT
    assert [p.rejected.tokens for p in pairs] == [(10, 11, 12, 99), (17, 18, 99), (14, 15, 99)]
    assert [p.rejected.tokens for p in short_pairs(chains()[:2], longer=2.0)] == [(10, 11, 12, 99), (14, 15, 99)]
    assert len(short_pairs(chains()[:2], most=1)) == 1 and short_pairs(chains()[2:]) == []
