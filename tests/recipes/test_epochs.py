"""Which lessons each optimiser step takes."""

import doctest

from mull.recipes import epochs
from mull.recipes.epochs import in_epochs


def test_doctests():
    assert doctest.testmod(epochs).attempted and not doctest.testmod(epochs).failed


def test_every_epoch_takes_every_lesson_once():
    plan = in_epochs([30, 40, 50, 60], 3, 80, seed=1)
    flat = [i for step in plan for i in step]
    epochs = [flat[i : i + 4] for i in (0, 4, 8)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs) and epochs[0] != epochs[1]
    assert plan == in_epochs([30, 40, 50, 60], 3, 80, seed=1) != in_epochs([30, 40, 50, 60], 3, 80, seed=2)
    [one] = in_epochs([5, 5], 1, 100, seed=0)
    assert sorted(one) == [0, 1]


def test_a_step_ends_with_the_lesson_that_fills_it():
    sizes = list(range(1, 40))
    plan = in_epochs(sizes, 3, 100, seed=1)
    flat = [i for step in plan for i in step]
    assert [sorted(flat[e * 39 : e * 39 + 39]) for e in range(3)] == [list(range(39))] * 3
    assert all(sum(sizes[i] for i in step[:-1]) < 100 for step in plan)
