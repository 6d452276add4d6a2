"""The flywheel's rule: what a turn gained, whether it paid, which turn is the best, and when the turns end."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mull.evals.metrics import Marks
from mull.recipes.flywheel_report import points
from mull.recipes.flywheel_rule import Turn, best_of, judged, stopped


def marks(right: int, of: int = 100) -> Marks:
    return [[i < right] for i in range(of)]


def turns(*right_and_flops: tuple[int, float]) -> list[Turn]:
    return [Turn(n, marks(right), flops) for n, (right, flops) in enumerate(right_and_flops)]


def test_gains_are_weighed_against_doublings_of_compute():
    found = judged(turns((50, 0), (60, 1e9), (66, 2e9), (66, 8e9)), threshold=0.06)
    assert [t.gain.mean for t in found] == pytest.approx([0.1, 0.06, 0.0])
    assert [t.doublings for t in found] == [1, 1, 2], "the first turn counts as one; the last spent four times as much"
    assert [t.paid for t in found] == [True, True, False]
    assert found[0].per_doubling and found[0].per_doubling[0] == pytest.approx(0.1)
    slower = judged(turns((50, 0), (60, 1e9), (66, 4e9)), threshold=0.06)
    assert slower[1].doublings == 2 and not slower[1].paid, "the same gain for twice the doublings"


def test_a_dip_that_is_made_good_is_no_gain():
    """Over the turn before, turn 3 would have gained ten points."""
    found = judged(turns((50, 0), (60, 1e9), (50, 2e9), (60, 4e9), (64, 8e9)), threshold=0.01)
    assert [t.best for t in found] == [0, 1, 1, 1]
    assert found[2].gain.mean == pytest.approx(0.1) and found[2].over_best.mean == 0 and not found[2].paid
    assert [t.doublings for t in found] == [1, 1, 2, 3] and found[3].paid


@pytest.mark.parametrize(("evidence", "paid"), [("low", False), ("mean", True), ("high", True)])
def test_the_evidence_is_the_mean_or_an_end_of_the_interval(evidence: Any, paid: bool):
    found = judged(turns((50, 0), (56, 1e9)), threshold=0.05, evidence=evidence)
    assert found[0].over_best.low < 0.05 < found[0].over_best.mean and found[0].paid is paid
    found = judged(turns((50, 0), (54, 1e9)), threshold=0.05, evidence=evidence)
    assert found[0].paid is (evidence == "high")


def test_patience_counts_turns_in_a_row():
    history = turns((50, 0), (50, 1e9), (60, 2e9), (60, 4e9), (60, 8e9))
    for patience, end in [(1, 1), (2, 4)]:
        ends = [stopped(history[: n + 1], 0.01, "mean", patience, 9) is not None for n in range(len(history))]
        assert ends.index(True) == end
    kind, sentence = stopped(history, 0.01, "mean", 2, 9) or ("", "")
    assert kind == "stopped paying" and sentence.startswith("turn 4 gained 0.0 points over turn 2 on valid problems")
    assert sentence.endswith("below the threshold of 1.0; 2 turns in a row did not pay")
    assert stopped(history, 0.01, "mean", 3, 9) is None
    assert stopped(history, 0.01, "mean", 3, 4) == ("all turns done", "all 4 turns are done")
    assert stopped(history[:3], 0.01, "mean", 3, 2) == ("all turns done", "all 2 turns are done, and the last one paid")


def test_the_best_is_the_earliest_of_equals_and_never_one_that_nobody_could_judge():
    assert best_of(turns((50, 0), (60, 1), (60, 2), (59, 3))) == 1
    blind = Turn(1, [[None]] * 100, 1e9)
    assert best_of([blind, *turns((0, 0))]) == 1
    [found] = judged([*turns((50, 0)), blind], threshold=-1.0)
    assert not found.paid and math.isnan(found.gain.mean)
    assert points(found.gain.mean) == "?" and points(-0.0001) == "0.0"
