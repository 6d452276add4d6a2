"""Advantages against hand-worked cases."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.learn import advantages as adv

GROUP = [adv.mean_centred, adv.grpo, adv.rloo]
finite = st.floats(-10, 10).map(lambda x: round(x, 3))
rewards = st.lists(st.none() | finite, min_size=1, max_size=8)


def test_hand_worked():
    r = [1.0, 0.0, 0.0, 0.0]
    assert adv.mean_centred(r) == [0.75, -0.25, -0.25, -0.25]
    assert adv.rloo(r) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])  # 1 - 0; 0 - mean(1, 0, 0)
    # sample variance: (0.75^2 + 3 * 0.25^2) / 3 = 0.25, so std = 0.5
    assert adv.grpo(r) == pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3])


def test_reinforce_pp_hand_worked():
    groups = [[1.0, 0.0], [0.0, 0.0, None]]
    # whole batch: mean 1/4, deviations .75, -.25 three times: std 0.5
    assert adv.reinforce_pp(groups)[0] == pytest.approx([0.75 / 0.5001, -0.25 / 0.5001])
    assert adv.reinforce_pp(groups)[1] == [*[pytest.approx(-0.25 / 0.5001)] * 2, None]
    # group means first: .5, -.5, 0, 0: mean 0, std = sqrt(0.5 / 3)
    std = math.sqrt(0.5 / 3) + 1e-4
    assert adv.reinforce_pp_baseline(groups) == [pytest.approx([0.5 / std, -0.5 / std]), [0.0, 0.0, None]]


def test_reinforce_pp_on_equal_rewards_and_tiny_batches():
    assert adv.reinforce_pp([[0.1] * 3, [0.1]]) == [[0.0] * 3, [0.0]]
    assert adv.reinforce_pp_baseline([[0.1] * 3, [0.7]]) == [[0.0] * 3, [0.0]]
    assert adv.reinforce_pp_baseline([[2.0]]) == [[0.0]]
    assert adv.reinforce_pp([]) == [] and adv.reinforce_pp_baseline([[], [None]]) == [[], [None]]


def test_only_right_chains_are_learnt_from_by_expert_iteration():
    assert adv.positive([1.0, 0.0, None, 0.5, -1.0]) == [1.0, None, None, 0.5, None]
    with pytest.raises(ValueError, match="not finite"):
        adv.positive([math.nan])


@pytest.mark.parametrize("function", GROUP)
@given(rewards)
def test_none_stays_none_and_changes_nobody_else(function, r):
    out = function(r)
    assert [a is None for a in out] == [x is None for x in r]
    known = [x for x in r if x is not None]
    if known:
        assert [a for a in out if a is not None] == function(known)
        assert math.fsum(a for a in out if a is not None) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("function", GROUP)
@given(rewards, finite)
def test_shifting_rewards_changes_nothing(function, r, shift):
    moved = function([None if x is None else x + shift for x in r])
    assert [a for a in moved if a is not None] == pytest.approx([a for a in function(r) if a is not None], abs=1e-6)


@given(finite, st.integers(1, 8))
def test_constant_groups_are_exactly_zero(value, n):
    assert adv.constant([value] * n)
    for function in GROUP:
        assert function([value] * n) == [0.0] * n


def test_constant():
    assert adv.constant([]) and adv.constant([None, None]) and adv.constant([None, 1.0])
    assert adv.constant([0.1 + 0.2, 0.3]), "rounding is no difference"
    assert not adv.constant([0.3, 0.3001])
    assert adv.constant([1e9, 1e9 + 1]) and not adv.constant([1e9, 1.1e9])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_refused(bad):
    for function in [*GROUP, adv.constant]:
        with pytest.raises(ValueError, match="not finite"):
            function([1.0, bad])


def test_random_rewards_are_reproducible_coin_flips():
    drawn = adv.random_rewards(4000, random.Random(0))
    assert drawn == adv.random_rewards(4000, random.Random(0)) != adv.random_rewards(4000, random.Random(1))
    assert set(drawn) == {0.0, 1.0}
    assert sum(drawn) / 4000 == pytest.approx(0.5, abs=0.04)
