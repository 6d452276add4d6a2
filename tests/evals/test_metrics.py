"""Every number here was worked out by hand, enumerated by brute force, or is a property that must hold."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.evals import metrics as m
from mull.types import Verdict


def v(answer: str | None, correct: bool | None) -> Verdict:
    return Verdict(correct, answer)


# ------------------------------------------------------------------------------------------- intervals


def test_wilson_by_hand():
    # 8 of 10 with z = 1.96: centre (0.8 + .19207) / 1.38415 = .71674, half .22654
    assert m.wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)
    assert m.wilson(0, 20) == pytest.approx((0.0, 3.8415 / 23.8415), abs=1e-4)  # z^2 / (n + z^2)
    assert m.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        m.wilson(3, 2)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_proportion_and_mirrors(n, data):
    k = data.draw(st.integers(0, n))
    low, high = m.wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    mirrored = m.wilson(n - k, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


def test_one_sample_per_problem_is_plain_wilson():
    estimate = m.pass_at_1([[True]] * 8 + [[False]] * 2)
    assert (estimate.low, estimate.high) == pytest.approx(m.wilson(8, 10))
    assert (estimate.mean, estimate.n, estimate.samples) == (0.8, 10, 10)


def test_samples_of_one_problem_are_not_independent_evidence():
    # 10 problems, always or never solved, 64 samples each: 10 pieces of evidence, not 640
    clustered = m.pass_at_1([[True] * 64] * 8 + [[False] * 64] * 2)
    assert (clustered.low, clustered.high) == pytest.approx(m.wilson(8, 10))
    # problems that are all alike: the samples do count, up to one each
    alike = m.pass_at_1([[True, False]] * 10)
    assert (alike.low, alike.high) == pytest.approx(m.wilson(10, 20))


def coverage(interval, trials: int = 600) -> float:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(trials):
        p_P = rng.beta(0.6, 0.9, size=60)  # mean 0.4, problems very unlike each other
        marks_PK = rng.random((60, 8)) < p_P[:, None]
        low, high = interval(marks_PK.tolist())
        hits += low <= 0.4 <= high
    return hits / trials


def test_interval_covers_the_truth_and_the_naive_one_does_not():
    def ours(marks):
        estimate = m.pass_at_1(marks)
        return estimate.low, estimate.high

    def bootstrap(marks):
        estimate = m.bootstrap_mean(marks, seed=1, resamples=300)
        return estimate.low, estimate.high

    def naive(marks):
        flat = [x for row in marks for x in row]
        return m.wilson(sum(flat), len(flat))

    assert 0.93 <= coverage(ours) <= 0.975
    assert 0.91 <= coverage(bootstrap) <= 0.975
    assert coverage(naive) < 0.80


def test_bootstrap_is_seeded_and_paired_across_columns():
    values_PX = np.random.default_rng(0).random((20, 2))
    values_PX[:, 1] = values_PX[:, 0] + 0.25
    draws_RX = m.resampled_means(values_PX, seed=3, resamples=50)
    assert np.array_equal(draws_RX, m.resampled_means(values_PX, seed=3, resamples=50))
    assert not np.array_equal(draws_RX, m.resampled_means(values_PX, seed=4, resamples=50))
    assert np.allclose(draws_RX[:, 1] - draws_RX[:, 0], 0.25)  # the same problems in both columns
    with pytest.raises(ValueError):
        m.resampled_means(np.zeros((0, 1)))


def test_bootstrap_leaves_nan_out():
    draws_RX = m.resampled_means(np.array([[1.0], [np.nan], [1.0]]), resamples=200)
    assert np.nanmin(draws_RX) == np.nanmax(draws_RX) == 1.0


def test_bootstrap_mean_counts_problems_equally():
    estimate = m.bootstrap_mean([[10.0] * 9, [0.0]])
    assert (estimate.mean, estimate.n, estimate.samples) == (5.0, 2, 10)
    assert math.isnan(m.bootstrap_mean([[], []]).mean)


# ------------------------------------------------------------------------------------------ accuracies


def test_unscorable_is_in_neither_numerator_nor_denominator():
    estimate = m.pass_at_1([[True, None], [False, False], [None, None]])
    assert (estimate.mean, estimate.n, estimate.samples, estimate.unscorable, estimate.left_out) == (0.5, 2, 3, 3, 1)


def test_nothing_to_measure():
    for empty in ([], [[None]], [[]]):
        estimate = m.pass_at_1(empty)
        assert math.isnan(estimate.mean) and (estimate.low, estimate.high, estimate.n) == (0.0, 1.0, 0)
        assert estimate.as_dict() == {"mean": None, "low": 0.0, "high": 1.0, "n": 0}


def test_pass_at_k_by_hand():
    assert m.pass_at_k_of(4, 1, 2) == pytest.approx(0.5)  # 1 - C(3,2)/C(4,2) = 1 - 3/6
    assert m.pass_at_k_of(5, 2, 3) == pytest.approx(0.9)  # 1 - C(3,3)/C(5,3) = 1 - 1/10
    assert m.pass_at_k_of(3, 1, 3) == 1.0
    assert m.pass_at_k_of(3, 0, 2) == 0.0
    for bad in ((3, 4, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(ValueError):
            m.pass_at_k_of(*bad)


def test_pass_at_k_survives_pools_whose_binomials_overflow():
    assert m.pass_at_k_of(5000, 3, 2500) == pytest.approx(1 - math.comb(4997, 2500) / math.comb(5000, 2500))


@given(st.integers(1, 40), st.data())
def test_pass_at_k_equals_the_binomial_formula(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert m.pass_at_k_of(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-12)


def test_pass_at_k_over_problems():
    marks = [[True, False, False, False], [False] * 4, [True, None, None, None]]
    estimate = m.pass_at_k(marks, 2)  # the third has one scorable sample only
    assert (estimate.mean, estimate.n, estimate.left_out, estimate.unscorable) == (0.25, 2, 1, 3)
    assert m.pass_at_k(marks, 1).mean == pytest.approx(m.pass_at_1(marks).mean)


def test_paired_difference_by_hand():
    # 10 problems, one sample each: b wins 5, a wins 1, 4 alike. Bonett-Price: p = (6, 2) / 12, mean 4/12,
    # variance 8/12 - (4/12)^2 = 0.5556, half 1.96 * sqrt(0.5556 / 12) = 0.4217
    a = [[False]] * 5 + [[True]] * 5
    b = [[True]] * 5 + [[False]] + [[True]] * 4
    d = m.paired_difference(a, b)
    assert d.mean == pytest.approx(0.4)
    assert (d.low, d.high) == pytest.approx((1 / 3 - 0.4217, 1 / 3 + 0.4217), abs=1e-3)


def test_paired_difference_is_narrower_than_two_separate_intervals_and_never_sure_of_nothing():
    rng = np.random.default_rng(1)
    p_P = rng.beta(0.5, 0.5, size=80)
    a = (rng.random((80, 8)) < 0.9 * p_P[:, None]).tolist()
    b = (rng.random((80, 8)) < 0.9 * p_P[:, None] + 0.1).tolist()
    d, left, right = m.paired_difference(a, b), m.pass_at_1(a), m.pass_at_1(b)
    assert d.low > 0 and left.high > right.low
    assert d.mean == pytest.approx(right.mean - left.mean)
    same = m.paired_difference([[True]] * 12, [[True]] * 12)
    assert same.mean == 0 and same.low < -0.1 and same.high > 0.1


def test_paired_difference_leaves_out_what_one_side_lacks():
    d = m.paired_difference([[True, None], [None], [False]], [[True], [True], [True]])
    assert (d.mean, d.n, d.left_out, d.unscorable) == (0.5, 2, 1, 2)
    with pytest.raises(ValueError, match="same problems"):
        m.paired_difference([[True]], [])


# --------------------------------------------------------------------------------------- majority vote


def brute_force(pool: list[Verdict], n: int) -> float:
    """Every subset, every fair tie break."""
    right = known = 0.0
    for subset in itertools.combinations(pool, n):
        votes = Counter(x.answer for x in subset if x.answer is not None)
        if not votes:
            winners = [x.correct for x in subset]
        else:
            best = max(votes.values())
            winners = []
            for answer in (a for a, c in votes.items() if c == best):
                marks = [x.correct for x in pool if x.answer == answer and x.correct is not None]
                winners.append(sum(marks) / len(marks) if marks else None)
        right += sum(float(w) for w in winners if w is not None) / len(winners)
        known += sum(w is not None for w in winners) / len(winners)
    return right / known if known else math.nan


def test_majority_by_hand():
    pool = [v("7", True), v("7", True), v("8", False)]
    # N=1: 2/3. N=2: {7,7} wins, {7,8} twice a tie: (1 + .5 + .5) / 3. N=3: 7 wins
    assert m.majority_values(pool, [1, 2, 3]) == pytest.approx([2 / 3, 2 / 3, 1.0])


def test_none_never_wins_unless_alone():
    assert m.majority_values([v(None, False), v(None, False), v("7", True)], [3]) == pytest.approx([1.0])
    assert m.majority_values([v(None, False)] * 3, [1, 3]) == pytest.approx([0.0, 0.0])
    assert np.isnan(m.majority_values([v(None, None)] * 3, [2])).all()


def test_unscorable_winner_is_left_out():
    pool = [v("7", True), v("8", None), v("9", False)]
    assert m.majority_values(pool, [1]) == pytest.approx([0.5])  # of the two scorable
    known = [v("7", True), v("7", None), v("9", False)]  # one verdict settles its equals
    assert m.majority_values(known, [3]) == pytest.approx([1.0])


verdicts = st.tuples(st.sampled_from([None, "a", "b", "c", "d"]), st.booleans())


@settings(max_examples=150, deadline=None)
@given(st.lists(verdicts, min_size=1, max_size=8), st.sets(st.sampled_from(["a", "b"])), st.data())
def test_majority_equals_enumeration(drawn, right, data):
    pool = [v(a, None if lost else a in right) for a, lost in drawn]
    n = data.draw(st.integers(1, len(pool)))
    expected = brute_force(pool, n)
    assert m.majority_values(pool, [n])[0] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert m.majority_values(pool, list(range(1, n + 1)))[-1] == pytest.approx(expected, abs=1e-9, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([None, "x", "y", "z", "w"]), min_size=1, max_size=64))
def test_one_vote_is_pass_at_1(answers):
    pool = [v(a, a == "x") for a in answers]
    assert m.majority_values(pool, [1])[0] == pytest.approx(sum(a == "x" for a in answers) / len(answers))


def test_majority_of_64_against_simulation():
    rng = np.random.default_rng(2)
    answers = rng.choice(["r", "s", "t", "u", "q"], p=[0.3, 0.25, 0.2, 0.15, 0.1], size=64)
    pool = [v(str(a), a == "r") for a in answers]
    exact = m.majority_values(pool, [8])[0]
    hits = 0.0
    for _ in range(4000):
        votes = Counter(rng.choice(answers, size=8, replace=False).tolist())
        best = [a for a, c in votes.items() if c == max(votes.values())]
        hits += ("r" in best) / len(best)
    assert exact == pytest.approx(hits / 4000, abs=0.03)


def test_majority_over_problems_and_its_limits():
    pools = [[v("7", True), v("7", True), v("8", False)], [v("1", False)] * 3]
    estimate = m.majority_vote(pools, 3)
    assert (estimate.mean, estimate.n, estimate.samples) == (0.5, 2, 6)
    with pytest.raises(ValueError, match="pool of at least 4"):
        m.majority_vote(pools, 4)
    with pytest.raises(ValueError, match="limit"):
        m.majority_values([v("1", True)] * 1001, [2])
    big = [v("1", True)] * 400 + [v("2", False)] * 350 + [v("3", False)] * 250
    assert 0.9 < m.majority_values(big, [500])[0] <= 1.0
