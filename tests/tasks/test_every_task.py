"""What holds for all tasks that ship, or for those whose problems are too many to repeat."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest

from mull.tasks.base import SPLITS, Checked, split_of
from mull.tasks.load import load_task

ALL = ("addition", "chain", "countdown", "matrix", "maze")
LARGE = pytest.mark.parametrize("task", [load_task(name) for name in ("matrix", "maze")], ids=lambda task: task.name)

SCRIPT = """
import random, sys
from mull.tasks.load import load_task
t = load_task(sys.argv[1])
for level in t.levels:
    for p in t.problems(level, "train", 7, 20):
        print(repr(p), t.imperfect(p, random.Random(p.question.id)), t.solve(p), t.red_team(p))
"""


@LARGE
def test_splits_share_no_problem(task: Checked):
    seen: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for seed, level in itertools.product((0, 1, 2), task.levels):
            for problem in itertools.islice(task.stream(level, split, seed), 15 if split == "valid" else 40):
                assert split_of(problem.question.text) == split
                seen[split].add(problem.question.text)
    for a, b in itertools.combinations(SPLITS, 2):
        assert not seen[a] & seen[b]
    assert len(seen["train"]) > 400


@LARGE
def test_level_one_has_enough_different_problems(task: Checked):
    assert len(task.problems(1, "test", 0, 400)) == 400


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_in_every_process(name: str):
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, name],
            env={**os.environ, "PYTHONHASHSEED": s},
            capture_output=True,
            check=True,
        ).stdout
        for s in ("1", "2")
    ]
    assert runs[0] == runs[1] and len(runs[0]) > 1000
    task = load_task(name)
    assert task.problems(2, "train", 7, 20) != task.problems(2, "train", 8, 20)
