"""Reward shaping against hand-worked cases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.learn import shaping


def test_overlong_penalty_is_daposs_ramp():
    penalty = [shaping.overlong_penalty(n, limit=20, buffer=4) for n in (0, 16, 17, 18, 20, 21, 99)]
    assert penalty == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 100))
def test_overlong_penalty_never_rises_with_length(limit, buffer, n):
    if buffer > limit:
        with pytest.raises(ValueError):
            shaping.overlong_penalty(n, limit, buffer)
    else:
        here, next_ = (shaping.overlong_penalty(k, limit, buffer) for k in (n, n + 1))
        assert -1.0 <= next_ <= here <= 0.0


def test_truncation_policies_differ_where_they_should():
    rewards, cut = [1.0, 1.0, None, 0.0], [False, True, True, False]
    assert shaping.keep_truncated(rewards, cut) == [1.0, 1.0, None, 0.0]
    assert shaping.zero_truncated(rewards, cut) == [1.0, 0.0, 0.0, 0.0]
    assert shaping.leave_out_truncated(rewards, cut) == [1.0, None, None, 0.0]
    assert shaping.mask_truncated([0.5, -0.5, None, 0.0], cut) == [0.5, None, None, 0.0]
    assert rewards == [1.0, 1.0, None, 0.0], "inputs are not changed"


def test_lists_of_different_lengths_are_refused():
    for function in (shaping.keep_truncated, shaping.zero_truncated, shaping.leave_out_truncated):
        with pytest.raises(ValueError):
            function([1.0, 0.0], [False])
    with pytest.raises(ValueError):
        shaping.with_penalty([1.0], [0.0, 0.0])


def test_penalty_and_bonus():
    assert shaping.with_penalty([1.0, 0.0, None], [-0.5, -1.0, -1.0]) == [0.5, -1.0, None]
    assert shaping.with_bonus([1.0, 0.0, None], [0.1, 0.1, 0.1]) == [1.1, 0.0, None]
