import math

import numpy as np
import pytest

from mull.evals import curves, metrics
from mull.evals.curves import CurvePoint, Graded
from mull.types import Cost, Verdict


def pool(answers: str, tokens: int = 10, flops: float = 100.0) -> list[Graded]:
    """One sample per letter; R is right, ? could not be judged."""
    return [
        Graded(Verdict(None if a == "?" else a == "R", None if a == "?" else a), Cost(tokens, flops=flops))
        for a in answers
    ]


def test_one_pool_yields_every_point():
    pools = [pool("RRxy"), pool("RxxR", tokens=30, flops=300.0)]
    points = curves.votes_curve(pools)
    assert [p.label for p in points] == ["1 vote", "2 votes", "4 votes"]
    assert [p.flops for p in points] == [200.0, 400.0, 800.0]  # N times the mean sample
    assert [p.tokens for p in points] == [20.0, 40.0, 80.0]
    # first problem at 4: R wins; second: a tie, half
    assert points[-1].accuracy == pytest.approx(0.75)
    assert points[0].accuracy == pytest.approx(0.5)
    assert all(p.low <= p.accuracy <= p.high and p.n == 2 for p in points)


def test_the_shared_prompt_is_charged_once():
    points = curves.votes_curve([pool("RR")], prompts=[Cost(prefill_tokens=5, flops=1000.0)])
    assert [p.flops for p in points] == [1100.0, 1200.0]
    with pytest.raises(ValueError, match="prompt costs"):
        curves.votes_curve([pool("RR")], prompts=[])


def test_ragged_pools_stop_at_the_smallest_and_empty_ones_are_refused():
    assert [p.label for p in curves.votes_curve([pool("RRRRR"), pool("RxR")])] == ["1 vote", "2 votes"]
    with pytest.raises(ValueError, match="sample of each"):
        curves.votes_curve([pool("RR"), []])
    with pytest.raises(ValueError):
        curves.powers_of_two(0)


def test_unscorable_samples_cost_but_do_not_count():
    points = curves.votes_curve([pool("R?"), pool("x?")], ns=[1])
    assert (points[0].accuracy, points[0].n, points[0].tokens) == (0.5, 2, 10.0)


def test_budget_curve_is_sorted_and_charged_by_what_was_spent():
    points = curves.budget_curve({64: [pool("RR", 60, 600.0)], 8: [pool("Rx", 8, 80.0)]})
    assert [(p.label, p.accuracy, p.tokens, p.flops) for p in points] == [
        ("8 thinking tokens", 0.5, 8.0, 80.0),
        ("64 thinking tokens", 1.0, 60.0, 600.0),
    ]


def test_mean_of_tasks_by_hand():
    a = [CurvePoint(10, 1, 0.4, 0.3, 0.5, "s", 50)]
    b = [CurvePoint(30, 3, 0.8, 0.7, 0.9, "s", 50)]
    (mean,) = curves.mean_curve([a, b])
    assert (mean.flops, mean.tokens, mean.n) == (20, 2, 100)
    assert mean.accuracy == pytest.approx(0.6)
    assert mean.high - mean.accuracy == pytest.approx(math.sqrt(2) * 0.1 / 2)
    with pytest.raises(ValueError, match="different points"):
        curves.mean_curve([a, [CurvePoint(1, 1, 0.5, 0.4, 0.6, "other")]])


def test_fit_recovers_a_line():
    compute = [1e9 * 2**i for i in range(6)]
    line = [0.1 * math.log2(c) - 2.9 for c in compute]
    values_PX = np.array([line, line, line])
    fit = curves.fit_log(compute, values_PX)
    assert (fit.a, fit.b, fit.low, fit.high) == pytest.approx((-2.9, 0.1, 0.1, 0.1))
    assert (fit.doublings, fit.n) == (5.0, 3)
    assert fit.at(compute[2]) == pytest.approx(line[2])
    assert fit.at(1e30) == 1.0


def test_slope_interval_ignores_what_all_points_share():
    """Problems differ a lot in level and not at all in slope: the slope is certain, the level is not."""
    rng = np.random.default_rng(0)
    level_P = rng.random(40) * 0.5
    values_PX = level_P[:, None] + 0.05 * np.arange(5)
    fit = curves.fit_log([1, 2, 4, 8, 16], values_PX)
    assert (fit.low, fit.high) == pytest.approx((0.05, 0.05))
    noisy = values_PX + rng.normal(0, 0.1, values_PX.shape)
    fit = curves.fit_log([1, 2, 4, 8, 16], noisy, seed=1)
    assert fit.low < 0.05 < fit.high and 0.01 < fit.high - fit.low < 0.05
    assert fit == curves.fit_log([1, 2, 4, 8, 16], noisy, seed=1)


def test_slope_interval_covers_the_truth():
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        p_PX = np.clip(rng.beta(2, 3, size=50)[:, None] + 0.03 * np.arange(6), 0, 1)
        values_PX = (rng.random(p_PX.shape) < p_PX).astype(float)
        fit = curves.fit_log([2.0**i for i in range(6)], values_PX, seed=trial, resamples=300)
        hits += fit.low <= 0.029 <= fit.high  # 0.029: the clip takes a little off
    assert 0.90 <= hits / 200 <= 0.985


def test_fit_leaves_nan_out_and_refuses_one_point():
    fit = curves.fit_log([1, 2], np.array([[0.0, 1.0], [np.nan, 1.0], [0.0, np.nan]]))
    assert fit.b == pytest.approx(1.0)
    for compute in ([1, 1], [0, 1]):
        with pytest.raises(ValueError), np.errstate(divide="ignore", invalid="ignore"):
            curves.fit_log(compute, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="shape"):
        curves.fit_log([1, 2, 4], np.zeros((3, 2)))
    with pytest.raises(ValueError):
        curves.doublings([0.0, 1.0])


def test_points_are_json_able():
    empty = curves.point(metrics.pass_at_1([]), 1.0, 2.0, "nothing")
    assert empty.as_dict() == {
        "flops": 1.0,
        "tokens": 2.0,
        "accuracy": None,
        "low": 0.0,
        "high": 1.0,
        "label": "nothing",
        "n": 0,
    }
