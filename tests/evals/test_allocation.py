"""Plans by difficulty and price, on outcomes whose best plans are known."""

import numpy as np
import pytest

from mull.evals.allocation import Outcomes, apply, best_feature, choose, frontier, spearman


def outcomes(problems: int = 400, seed: int = 0) -> Outcomes:
    """Easy problems: all plans are right. Middling: the dear one alone. Hopeless: none. The second feature knows."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(rng.integers(0, 3, problems), 4)
    problem = np.repeat(np.arange(problems), 4)
    feature = np.stack([rng.random(len(kind)), kind + 0.2 * rng.random(len(kind))], axis=1)
    accuracy = np.stack([kind == 0, kind <= 1], axis=1).astype(float)
    flops = np.tile([4.0, 64.0], (len(kind), 1))
    return Outcomes(problem, feature, accuracy, flops)


def test_the_feature_that_knows_is_chosen():
    o = outcomes()
    assert best_feature(o, o.accuracy_RC.mean(1)) == 1
    assert spearman(np.array([1.0, 1, 2]), np.array([3.0, 3, 3])) == 0
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([4.0, 3, 3, 1])) == pytest.approx(-1)


def test_each_bin_takes_what_pays_for_it():
    o = outcomes()
    assert choose(o, 1, (0.9, 1.9), price=0.001) == (0, 1, 0)  # easy: cheap; middling: dear; hopeless: cheap
    assert choose(o, 1, (0.9, 1.9), price=1.0) == (0, 0, 0)
    accuracy_R, flops_R = apply(o, 1, (0.9, 1.9), (0, 1, 0))
    assert accuracy_R.mean() == pytest.approx(o.accuracy_RC[:, 1].mean())
    assert flops_R.mean() == pytest.approx(4 + 60 * np.mean((o.feature_RF[:, 1] > 0.9) & (o.feature_RF[:, 1] < 1.9)))


def test_the_frontier_reaches_the_dear_plan_s_accuracy_for_less():
    edges, points = frontier(outcomes(), 1, bins=12)
    assert len(edges) == 11 and [p.flops for p in points] == sorted(p.flops for p in points)
    assert points[0].flops == pytest.approx(4)
    reached = [p for p in points if p.accuracy > outcomes().accuracy_RC[:, 1].mean() - 0.04]
    assert min(p.flops for p in reached) < 32


def test_expectations_are_cross_validated():
    """Plans of pure noise: in sample the best of them looks good, held out it does not."""
    rng = np.random.default_rng(1)
    problems = 60
    o = Outcomes(
        np.arange(problems),
        rng.random((problems, 1)),
        (rng.random((problems, 30)) < 0.5).astype(float),
        np.tile(np.linspace(1, 2, 30), (problems, 1)),
    )
    _, points = frontier(o, 0, bins=3)
    in_sample = max(o.accuracy_RC.mean(0))
    assert in_sample > 0.6 and max(p.accuracy for p in points) < in_sample
