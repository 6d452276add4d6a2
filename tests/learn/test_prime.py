"""PRIME: implicit process rewards, the loss that learns them, and advantages by leave-one-out in two streams."""

from __future__ import annotations

import math

import pytest
import torch

from mull.learn.advantages import rloo
from mull.learn.prime import advantages, keeps, outcome_loss, token_rewards


def test_worked_by_hand():
    """Three chains. Means of r: 1/4, 0 and 1/2."""
    process = [[0.5, 0.0], [0.0], [1.0, 0.5, 0.0]]
    got = advantages(process, [1.0, 0.0, 0.0])
    outcome = rloo([1.0, 0.0, 0.0])
    assert outcome == pytest.approx([1.0, -0.5, -0.5])
    b = [(0 + 0.5) / 2, (0.25 + 0.5) / 2, (0.25 + 0) / 2]
    want = [
        [0.5 - 2 * b[0] + 1.0, 0.0 - b[0] + 1.0],
        [0.0 - b[1] - 0.5],
        [1.5 - 3 * b[2] - 0.5, 0.5 - 2 * b[2] - 0.5, 0.0 - b[2] - 0.5],
    ]
    for values, right in zip(got, want, strict=True):
        assert values == pytest.approx(right)


def test_the_two_streams_and_the_discount():
    process = [[0.5, 0.25], [0.0, 0.75]]
    both = advantages(process, [1.0, 0.0])
    only_process = advantages(process, [1.0, 0.0], outcome_weight=0.0)
    only_outcome = advantages(process, [1.0, 0.0], process_weight=0.0)
    assert only_outcome == [[1.0, 1.0], [-1.0, -1.0]], "without its process rewards it is RLOO"
    for a, b, c in zip(both, only_process, only_outcome, strict=True):
        assert a is not None and b is not None and c is not None
        assert a == pytest.approx([x + y for x, y in zip(b, c, strict=True)])
    double = advantages(process, [1.0, 0.0], process_weight=2.0, outcome_weight=0.0)
    assert double[0] == pytest.approx([2 * x for x in only_process[0] or []])
    last = advantages(process, [1.0, 0.0], gamma=0.0, outcome_weight=0.0)
    assert last[0] == pytest.approx([0.5 - 0.375, 0.25 - 0.375]), "gamma 0: each token for itself, the others' mean off"


def test_what_could_not_be_judged_and_who_has_no_others():
    process = [[0.5], [9.0], [0.0, 1.0]]
    got = advantages(process, [1.0, None, 0.0])
    without = advantages([process[0], process[2]], [1.0, 0.0])
    assert got[1] is None and [got[0], got[2]] == without, "it is in no baseline"
    assert advantages([[0.5, 0.5]], [1.0]) == [[0.0, 0.0]]
    assert advantages([[0.5, 0.5], [1.0]], [1.0, None]) == [[0.0, 0.0], None]
    equal = advantages([[0.0, 0.0], [0.0]], [1.0, 1.0])
    assert equal == [[0.0, 0.0], [0.0]], "a model that is still its reference, and a constant group: nothing"


def test_a_groups_advantages_of_equal_lengths_sum_to_zero():
    process = [[0.1, 0.7, -0.2], [0.4, 0.0, 0.0], [-0.5, 0.2, 0.9]]
    got = advantages(process, [1.0, 0.0, 1.0])
    assert sum(values[0] for values in got if values) == pytest.approx(0)


def test_rewards_and_the_loss_that_learns_them():
    assert token_rewards([-1.0, -2.0], [-1.5, -1.0], 0.5) == [0.25, -0.5]
    with pytest.raises(ValueError):
        token_rewards([-1.0], [-1.5, -1.0], 0.5)
    logits, outcomes = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 1.0, 0.0])
    want = (math.log(2) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 3
    assert float(outcome_loss(logits, outcomes, 3.0)) == pytest.approx(want)
    assert float(outcome_loss(logits, outcomes, 6.0)) == pytest.approx(want / 2), "of the whole step"
    x = torch.randn(7, dtype=torch.float64, requires_grad=True)
    y = torch.rand(7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: outcome_loss(x, y, 7.0), x)


def test_prompts_that_are_kept():
    assert keeps([1.0, 0.0, 0.0, 0.0]) and keeps([1.0, 1.0, 1.0, 0.0])
    assert not keeps([1.0] * 4) and not keeps([0.0] * 4)
    assert not keeps([1.0, *[0.0] * 7]) and keeps([1.0, *[0.0] * 4]), "an eighth is too hard, a fifth is not"
    assert keeps([0.1, 0.2, -0.9, -1.0]) and not keeps([0.1, 0.2, 0.3, 0.4]), "penalties do not say who is right"
    assert keeps([1.0] * 4, high=1.0) and keeps([0.0] * 4, low=0.0)
    assert keeps([1.0, 0.0, None, None]) and not keeps([None, None]) and not keeps([1.0, None])
