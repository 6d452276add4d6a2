"""What a scorer is worth, on cases small enough to count by hand."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from mull.evals import verifiers
from mull.evals.verifiers import Judged, auc, auc_over_problems, auc_within_problems, calibration
from mull.learn.labels import Chain
from mull.types import Verdict


def chain(steps: list[bool | None], correct: bool | None = True, answered: bool = True) -> Chain:
    n = len(steps)
    return Chain(tuple(range(n + 1)), 1, tuple(range(2, n + 2)), correct, tuple(steps), answered)


def problem(*chains: tuple[str | None, bool | None, list[float]], answered: bool = True) -> Judged:
    """(canonical answer, whether it is right, the values of its steps; all steps but the answer are true)."""
    verdicts = [Verdict(correct, answer) for answer, correct, _ in chains]
    made = [chain([True] * (len(v) - 1) + [c], c, a is not None and answered) for a, c, v in chains]
    return Judged(verdicts, made, [v for _, _, v in chains])


def test_auc_is_the_chance_of_the_right_order():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, marks = rng.integers(0, 4, 12).tolist(), (rng.random(12) < 0.5).tolist()
        pairs = [
            (a, b) for (a, m), (b, n) in itertools.product(zip(scores, marks, strict=True), repeat=2) if m and not n
        ]
        if pairs:
            expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
            assert auc(scores, marks) == pytest.approx(expected)
    assert math.isnan(auc([1.0], [True])) and math.isnan(auc([], []))


def test_a_scorer_that_knows_only_hard_questions_is_found_out():
    """Right within no question, and yet a high AUC over all of them."""
    scores = [[0.9] * 10, [0.1] * 10]
    marks = [[True] * 9 + [False], [False] * 9 + [True]]
    assert auc_over_problems(scores, marks).mean == pytest.approx(0.9)
    within = auc_within_problems(scores, marks)
    assert within.mean == 0.5 and within.n == 2
    alone = auc_within_problems([[0.1, 0.2]], [[True, True]])
    assert math.isnan(alone.mean) and alone.left_out == 1


def test_calibration_by_hand():
    found = calibration([0.05, 0.15, 0.95, 1.0], [False, True, True, True])
    assert found["brier"] == pytest.approx((0.05**2 + 0.85**2 + 0.05**2) / 4)
    assert found["ece"] == pytest.approx((0.05 + 0.85 + 2 * 0.025) / 4)
    assert [n for _, _, n in found["bins"]] == [1, 1, 2]
    assert calibration([], [])["ece"] is None


def test_choosing_by_hand():
    a = problem(("1", True, [0.9, 0.2]), ("2", False, [0.5, 0.5]), ("2", False, [0.4, 0.4]))
    got = verifiers.choice([a], "min", 3)
    values = {name: value["mean"] for name, value in got.items() if isinstance(value, dict)}
    assert values["one"] == pytest.approx(1 / 3) and values["majority"] == 0.0 and values["any"] == 1.0
    assert values["best_min"] == 0.0 and values["best_mean"] == 1.0
    assert values["best_product"] == 0.0 and values["best_last"] == 0.0
    b = problem(("1", True, [0.9]), ("2", False, [0.3]), ("2", False, [0.3]))
    got = verifiers.choice([a, b], "last", 3)
    assert got["weighted_vote"]["mean"] == 0.5 and got["best_last"]["mean"] == 0.5
    assert got["best_minus_majority"]["mean"] == 0.5 and got["problems"] == 2


def test_a_choice_of_fewer_is_the_mean_over_all_ways_to_draw_them():
    pool = problem(("1", True, [0.9]), ("2", False, [0.5]), ("3", True, [0.1]))
    got = verifiers.choice([pool], "last", 2)
    assert got["best_last"]["mean"] == pytest.approx(2 / 3) and got["any"]["mean"] == 1.0


def test_unscorable_chains_are_left_out_and_unanswered_ones_come_last():
    pool = problem(("1", True, [0.2]), (None, False, [0.99]), ("3", None, [0.95]))
    got = verifiers.choice([pool], "last", 2)
    assert got["problems"] == 1 and got["best_last"]["mean"] == 1.0, "an unfinished chain is no candidate"
    assert verifiers.choice([pool], "last", 3)["left_out"] == 1
    report = verifiers.report([pool], "last", 2)
    assert report["unscorable"] == 1 and report["auc"]["n"] == 1
    json.dumps(report, allow_nan=False)


def test_nan_is_the_lowest_value():
    pool = problem(("1", True, [0.2]), ("2", False, [math.nan]))
    assert verifiers.choice([pool], "last", 2)["best_last"]["mean"] == 1.0


def test_steps_are_judged_up_to_the_first_false_one():
    good, bad = chain([True, None, True]), chain([True, False, True, False], False)
    found = verifiers.steps_report([Judged([], [good, bad], [[0.9, 0.8, 0.4], [0.7, 0.3, 0.1, 0.1]])])
    assert (found["n"], found["false"]) == (5, 1)
    assert found["accuracy"] == 4 / 5 and found["auc"] == 1.0
    assert (found["recall"], found["false_alarms"], found["located"]) == (1.0, 1.0, 1.0)
    early = verifiers.steps_report([Judged([], [bad], [[0.2, 0.9, 0.9, 0.9]])])
    assert early["recall"] == 1.0 and early["located"] == 0.0
    none = verifiers.steps_report([Judged([], [Chain((1, 2), 1, (2,), True)], [[0.5]])])
    assert none["n"] == 0 and none["accuracy"] is None


def test_nothing_at_all_is_reported_as_nothing():
    report = verifiers.report([], "last", 8)
    assert report["auc"]["mean"] is None and report["choice"]["problems"] == 0
    json.dumps(report, allow_nan=False)
