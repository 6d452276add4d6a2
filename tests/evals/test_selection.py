"""Best-of-N and weighted votes over a pool, against enumeration."""

from itertools import combinations

import numpy as np
import pytest

from mull.evals.selection import Scored, best_of_n, draw_weights, number_forms, over_optimised, weighted_vote


def pool(scores, correct, forms=None) -> Scored:
    return Scored(
        np.array(scores, float), np.array(correct, float), np.array(forms if forms is not None else range(len(scores)))
    )


def enumerated(p: Scored, n: int) -> tuple[float, float]:
    accuracies, scores = [], []
    for chosen in combinations(range(len(p.scores_M)), n):
        top = max(p.scores_M[i] for i in chosen)
        tied = [i for i in chosen if p.scores_M[i] == top]
        accuracies.append(np.mean([p.correct_M[i] for i in tied]))
        scores.append(top)
    return float(np.mean(accuracies)), float(np.mean(scores))


@pytest.mark.parametrize("seed", range(5))
def test_best_of_n_is_the_mean_over_all_subsets(seed):
    rng = np.random.default_rng(seed)
    p = pool(rng.random(9), rng.integers(0, 2, 9))
    accuracy_X, score_X = best_of_n(p, [1, 2, 5, 9])
    for x, n in enumerate([1, 2, 5, 9]):
        assert (accuracy_X[x], score_X[x]) == pytest.approx(enumerated(p, n))


def test_equal_scores_are_drawn_among_at_random():
    p = pool([0.5, 0.5, 0.5, 0.1], [1, 0, 0, 1])
    accuracy_X, _ = best_of_n(p, [1, 4])
    assert accuracy_X.tolist() == pytest.approx([0.5, 1 / 3])
    assert best_of_n(pool([0.1, 0.5, 0.5, 0.5], [1, 0, 0, 1]), [4])[0][0] == pytest.approx(1 / 3)


def test_chances_sum_to_one_for_large_pools():
    weights = draw_weights(1024, [1, 2, 256, 1023, 1024])
    assert np.isfinite(weights).all() and weights.sum(1) == pytest.approx(np.ones(5))
    assert weights[0] == pytest.approx(np.full(1024, 1 / 1024)) and weights[-1, 0] == 1
    with pytest.raises(ValueError):
        draw_weights(4, [5])


def test_a_weighted_vote_is_the_mean_over_subsets():
    p = pool([0.9, 0.4, 0.4, 0.3, 0.2], [1, 0, 0, 1, 0], [0, 1, 1, 0, -1])
    for n in (1, 2, 3, 5):
        wanted = []
        for chosen in combinations(range(5), n):
            sums = {f: sum(p.scores_M[i] for i in chosen if p.forms_M[i] == f) for f in (0, 1)}
            top = max(sums, key=lambda f: sums[f])
            wanted.append(float(sums[top] > 0 and top == 0))
        [got] = weighted_vote(p, [n], draws=4000)
        assert got == pytest.approx(np.mean(wanted), abs=0.03), n
    assert weighted_vote(p, [5]).tolist() == [1.0]


def test_unreadable_answers_do_not_vote():
    assert weighted_vote(pool([0.9, 0.8], [0, 0], [-1, -1]), [1, 2]).tolist() == [0, 0]
    p = pool([5.0, 0.1], [0, 1], [-1, 0])
    assert weighted_vote(p, [2]).tolist() == [1.0]


def test_forms_and_peaks():
    assert number_forms([None, "a", "a", "b"]).tolist() == [-1, 0, 0, 1]
    assert over_optimised(np.array([0.1, 0.5, 0.4]), [1, 2, 4]) == 2
    assert over_optimised(np.array([0.1, 0.5, 0.6]), [1, 2, 4]) is None
