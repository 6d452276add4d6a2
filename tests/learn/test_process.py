"""Process rewards: what each form pays, what more steps earn in it, and where the rewards land."""

from __future__ import annotations

import math
import random

import pytest

from mull.learn.gae import gae
from mull.learn.paths import Path
from mull.learn.process import Form, dense_rewards, step_rewards

FORMS: tuple[Form, ...] = ("potential", "difference", "min", "sum")


def test_worked_by_hand():
    scores = [0.5, 0.75, 0.25]
    assert step_rewards(scores, "sum") == scores
    assert step_rewards(scores, "difference") == [0.5, 0.25, -0.5]
    assert step_rewards(scores, "potential") == [0.5, 0.25, -0.75]
    w = [math.exp(-2.5), math.exp(-5.0), 1.0]
    want = [s * x / sum(w) for s, x in zip(scores, w, strict=True)]
    assert step_rewards(scores, "min", temperature=0.1) == pytest.approx(want)
    assert step_rewards(scores, "min", temperature=1e-3) == pytest.approx([0.0, 0.0, 0.25]), "all at the lowest"
    assert step_rewards(scores, "min", temperature=1e6) == pytest.approx([s / 3 for s in scores], rel=1e-4), "the mean"
    for form in FORMS:
        assert step_rewards([], form) == []
        assert step_rewards([0.25], form) == ([0.0] if form == "potential" else [0.25])


def test_what_a_chain_is_paid_in_all():
    rng = random.Random(0)
    for _ in range(50):
        scores = [rng.random() for _ in range(rng.randrange(1, 12))]
        paid = {form: sum(step_rewards(scores, form, 0.01)) for form in FORMS}
        assert paid["potential"] == pytest.approx(0, abs=1e-12)
        assert paid["difference"] == pytest.approx(scores[-1])
        assert min(scores) <= paid["min"] <= min(scores) + 0.05
        assert paid["sum"] == pytest.approx(sum(scores))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padding", [1, 5, 50])
def test_padding_with_steps_that_look_right_pays_only_in_the_sum(form: Form, padding: int):
    """The hack: between two real steps, repeat something true that the scorer likes. The end looks as before."""
    honest, padded = [0.6, 0.7, 0.8], [0.6, *[0.9] * padding, 0.7, 0.8]
    gain = sum(step_rewards(padded, form, 0.05)) - sum(step_rewards(honest, form, 0.05))
    if form == "sum":
        assert gain == pytest.approx(0.9 * padding)
    else:
        assert gain == pytest.approx(0, abs=0.01 * padding if form == "min" else 1e-9)


def test_discounting_keeps_differences_bounded():
    rng = random.Random(1)
    for _ in range(50):
        scores = [rng.random() for _ in range(20)]
        rewards = step_rewards(scores, "difference")
        assert sum(0.9**i * r for i, r in enumerate(rewards)) <= max(scores) + 1e-9


def test_potentials_only_move_credit():
    """Ng et al.: with a critic that knows the shaped return, potential shaping leaves lambda=1 advantages alone."""
    path = Path(tuple(range(9)), (2, 3, 4, 5, 6, 7, 8), 2, False)
    scores, values = [0.3, 0.9, 0.6], [0.5, 0.4, 0.6, 0.7, 0.8, 0.2, 0.9]
    plain = gae(path.rewards(1.0), values)
    shaped_rewards = path.rewards(1.0, dense_rewards(path, [4, 6, 9], scores, "potential"))
    potential = [0.0, 0.0, 0.3, 0.3, 0.9, 0.9, 0.9]  # of the last end at or before each action
    shaped_values = [v - p for v, p in zip(values, potential, strict=True)]
    assert gae(shaped_rewards, shaped_values) == pytest.approx(plain)
    assert sum(shaped_rewards) == pytest.approx(1.0), "the chain is paid its outcome and nothing else"
    assert gae(shaped_rewards, values, lam=0.5) != pytest.approx(gae(path.rewards(1.0), values, lam=0.5))


def test_what_nobody_did_and_what_nobody_knows_is_left_out():
    path = Path((1, 2, 3, 4, 5, 6, 7, 8), (4, 5, 7), 2, False)  # tokens 2 and 3 were forced
    got = dense_rewards(path, [3, 4, 5, 6, 8], [0.9, 0.9, 0.2, math.nan, 0.6], "difference")
    assert got == [(5, 0.2), (8, pytest.approx(0.4))], "the step that could not be scored is part of the next"
    assert path.rewards(0.0, got) == pytest.approx([0.2, 0.0, 0.4])
    assert dense_rewards(Path((1, 2), (), 2, True), [2], [0.5], "sum") == []
    with pytest.raises(ValueError):
        dense_rewards(path, [3], [], "sum")
