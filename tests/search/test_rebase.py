"""REBASE: shares by hand, and where they come from in a tree. What every scored search must bear: `test_beam.py`."""

import math
import random

import pytest

from mull.errors import UserError
from mull.ledger import Budget
from mull.search.rebase import rebase, widths
from tests.search.tools import ScriptedScorer, assert_sound, canonical, run, sampler_of, texts, thought


def test_widths_by_hand():
    # exp of 0, -1, -2 (scores over .1 apart): 1, .3679, .1353; shares of 8 by them: 5.32, 1.96, .72
    assert widths([0.5, 0.4, 0.3], [1, 1, 1], 8, 0.1) == [5, 2, 1]
    # Shares of 10: 6.65, 2.45, .90. Rounded up, the best first, out of what is left: 7, 3, 0.
    assert widths([0.5, 0.4, 0.3], [1, 1, 1], 10, 0.1) == [7, 2, 1]
    # Three alike, 4 places: 1.33 each. Rounding each for itself would lose a place.
    assert widths([0.7, 0.7, 0.7], [1, 1, 1], 4, 0.1) == [2, 1, 1]
    assert widths([0.7, 0.7, 0.7], [1, 1, 1], 2, 0.1) == [1, 1, 0]
    # Eight copies of each of two, a tenth apart: 16 · e / (e + 1) = 11.70. As 16 nodes they would get one place each.
    assert widths([0.6, 0.5], [8, 8], 16, 0.1) == [12, 4]
    assert widths([0.6] * 8 + [0.5] * 8, [1] * 16, 16, 0.1) == [1] * 16
    assert widths([0.2, 0.9], [1, 1], 6, 1e-9) == [0, 6] and widths([0.2, 0.9], [1, 1], 6, 1e9) == [3, 3]
    assert widths([0.3], [2], 5, 0.1) == [5] and widths([], [], 5, 0.1) == []
    assert widths([0.3, 0.2], [1, 1], 0, 0.1) == [0, 0]


def test_widths_always_sum_to_the_places():
    rng = random.Random(0)
    for _ in range(2000):
        scores = [rng.random() for _ in range(rng.randint(1, 40))]
        slots, balance = rng.randint(0, 64), 10 ** rng.uniform(-12, 12)
        copies = [rng.randint(1, 5) for _ in scores]
        given = widths(scores, copies, slots, balance)
        assert sum(given) == slots and min(given) >= 0
        top = max(scores)
        weights = [n * math.exp((score - top) / balance) for score, n in zip(scores, copies, strict=True)]
        exact = [slots * weight / math.fsum(weights) for weight in weights]
        assert all(abs(width - share) < 1 for width, share in zip(given, exact, strict=True))


def test_places_go_to_paths_by_their_scores_and_leave_with_those_that_finish():
    """Scores of the three first steps are known, so the next requests can be said."""
    script = {
        "": {"a\n": 1.0, "b\n": 1.0, "</think>": 1.0},
        "a\n": {"</think>": 1.0},
        "b\n": {"b\n": 1.0},
        "b\nb\n": {"</think>": 1.0},
        "</think>": {"1": 1.0},
        "a\n</think>": {"2": 1.0},
        "b\nb\n</think>": {"3": 1.0},
    }
    value = {"a\n": 0.5, "b\n": 0.4, "</think>": 0.3}
    finishing = set()
    for seed in range(10):
        scorer = ScriptedScorer(lambda text: value.get(text, 0.5))
        sampler, budget = sampler_of(script), Budget(samples=9)
        trace = run(rebase, sampler, budget, scorer=scorer, canonical=canonical, seed=seed)
        first = texts(trace)[:9]
        firsts = [text for text in value if text in first]  # the best first
        shares = widths([value[text] for text in firsts], [first.count(text) for text in firsts], 9, 0.2)
        second = [(text, width) for text, width in zip(firsts, shares, strict=True) if width]
        asked = [(thought(call.prefix), call.n) for call in sampler.calls]
        assert asked[0] == ("", 9) and asked[1 : 1 + len(second)] == second
        # Those that ended the thought at once have answered now, and their places are gone. Of the others each goes on
        # as one path with as many places as it had: there is one way on, and the scores are all alike.
        third = asked[1 + len(second) :][: sum(text != "</think>" for text, _ in second)]
        on = {"a\n": "a\n</think>", "b\n": "b\nb\n"}
        assert sorted(third) == [(on[text], width) for text, width in second if text in on]
        assert len(trace.leaves) == 9 and trace.answers.count("1") == dict(second).get("</think>", 0)
        finishing.add(trace.answers.count("1"))
        assert_sound(trace, sampler, budget)
    assert len(finishing) > 1


def test_one_path_is_a_plain_chain():
    script = {"": {"a\n": 1.0}, "a\n": {"</think>": 1.0}, "a\n</think>": {"7": 1.0}}
    trace = run(rebase, sampler_of(script), Budget(), scorer=ScriptedScorer(lambda t: 0.0), canonical=canonical)
    assert trace.answer == "7" and len(trace.spans) == 4 and trace.cost.sampled_tokens == 2 + 1 + 2


def test_balance_trades_the_best_path_against_all():
    script = {"": {"a\n": 1.0, "b\n": 1.0}}
    for line, answer in (("a\n", "1"), ("b\n", "2")):
        script |= {line: {"</think>": 1.0}, line + "</think>": {answer: 1.0}}
    value = lambda text: 0.6 if text.startswith("b") else 0.5  # noqa: E731
    answers = {
        balance: run(
            rebase,
            sampler_of(script),
            Budget(samples=16),
            scorer=ScriptedScorer(value),
            canonical=canonical,
            balance=balance,
        ).answers
        for balance in (1e-3, 0.1, 1e3)
    }
    assert set(answers[1e-3]) == {"2"} and set(answers[0.1]) == set(answers[1e3]) == {"1", "2"}
    assert answers[0.1].count("2") > answers[1e3].count("2")


@pytest.mark.parametrize("balance", [0.0, -1.0, math.nan])
def test_a_balance_that_cannot_divide_is_refused(balance):
    with pytest.raises(UserError, match="balance"):
        run(
            rebase,
            sampler_of({"": {"a\n": 1.0}}),
            Budget(),
            scorer=ScriptedScorer(lambda t: 0.0),
            canonical=canonical,
            balance=balance,
        )
