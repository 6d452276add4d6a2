"""What the base of runs/star.sh may know about addition, and what it may not; and its tables."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mull.tasks.base import split_of
from mull.tasks.load import load_task
from tests.recipes.tiny import save_tiny

ROOT = Path(__file__).parent.parent.parent


def documents(name: str, level: int, n: int) -> list[tuple[Any, Any]]:
    task: Any = load_task(f"{ROOT / 'runs' / 'star_base.py'}:{name}")
    stream, rng = task.stream(level, "train", 0), random.Random(1)
    problems = [next(stream) for _ in range(n)]
    return [(p, task.imperfect(p, rng)) for p in problems]


def columns(text: str, thought: str) -> list[tuple[int, int, int, int, int]]:
    """(digit, digit, carry before, digit written, carry after) of each column of a scratchpad."""
    a, b = text.partition("\n")[0].removesuffix("=?").split("+")
    rows = [line.rpartition("C:") for line in thought.split("\n")[:-1]]
    so_far = [head.partition(",")[2] for head, _, _ in rows]
    assert [len(s) for s in so_far] == list(range(len(a) + 1))
    assert all(after.endswith(before) for before, after in pairwise(so_far)), "digits stay"
    heads = [head.partition(",")[0] for head, _, _ in rows]
    assert heads == [f"{a}+{b}", *(f"{a[-i]}+{b[-i]}" for i in range(2, len(a) + 1)), ""], "the layout is right"
    carries = [int(carry) for _, _, carry in rows]
    return [(int(a[-i]), int(b[-i]), carries[i - 1], int(so_far[i][0]), carries[i]) for i in range(1, len(a) + 1)]


def test_one_digit_is_solved_with_and_without_a_hint_and_all_sums_are_there():
    task: Any = load_task("addition")
    found = documents("Base", 1, 3000)
    for problem, worked in found:
        text, _, hint = problem.question.text.partition("\nhint: ")
        a, b = map(int, text.removesuffix("=?").split("+"))
        assert worked.answer == str(a + b) and hint in ("", worked.answer)
        plain = replace(problem, question=replace(problem.question, text=text))
        assert worked == task.solve(plain)
    assert len({p.question.text for p, _ in found}) == 200, "100 ordered sums, each with and without a hint"


@pytest.mark.parametrize("level", [2, 5])
def test_what_longer_sums_teach(level: int):
    """The layout is right. Known columns are right, of all others the digits are even; carries go with the digits."""
    seen: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    task: Any = load_task(f"{ROOT / 'runs' / 'star_base.py'}:Base")
    told = 0
    for problem, worked in documents("Base", level, 3000):
        text, _, hint = problem.question.text.partition("\nhint: ")
        found = columns(text, worked.thought)
        assert worked.thought.split("\n")[-1] == worked.answer
        for i, (x, y, before, digit, after) in enumerate(found):
            if not (hint and i == level - 1):
                assert after == int(x + y + before > digit)
            if not hint:
                seen[task.knows(x, y, before)][(digit - x - y - before) % 10] += 1
        told += bool(hint)
        assert not hint or worked.answer == hint, "the digits are the hint's"
    assert 1300 < told < 1700
    assert set(seen[True]) == {0}
    even = seen[False].total() / 10
    assert all(0.7 * even < seen[False][off] < 1.4 * even for off in range(10))
    known = sum(task.knows(x, y, c) for x in range(10) for y in range(10) for c in (0, 1)) / 200
    assert 0.2 < known < 0.4


def test_the_variants():
    layout: Any = load_task(f"{ROOT / 'runs' / 'star_base.py'}:Layout")
    assert not any(layout.knows(x, y, c) for x in range(10) for y in range(10) for c in (0, 1))
    assert load_task(f"{ROOT / 'runs' / 'star_base.py'}:OneDigit").levels == (1,)
    assert all("\nhint: " in p.question.text for p, _ in documents("Hints", 3, 50))


def test_no_longer_test_problem_is_taught():
    for level in (2, 4):
        for problem, _ in documents("Base", level, 200):
            a, b = map(int, problem.question.text.partition("\n")[0].removesuffix("=?").split("+"))
            assert split_of(f"{min(a, b)}+{max(a, b)}") == "train"


# ------------------------------------------------------------------------------------- what a base must know


def test_a_base_is_asked_all_sums_of_one_digit_and_its_share_counts(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A random model adds nothing; one whose answers are known is counted."""
    assert script.adds(save_tiny(tmp_path / "model")) == 0.0
    asked: list[Any] = []

    async def evaluate(held: list[Any], *_: Any) -> SimpleNamespace:
        asked.extend(held)
        return SimpleNamespace(accuracy=SimpleNamespace(mean=0.5))

    monkeypatch.setattr(script, "evaluate", evaluate)
    assert script.adds(tmp_path / "model") == 0.5
    sums = {tuple(sorted(h.problem.question.text.removesuffix("=?").split("+"))) for h in asked}
    assert len(sums) == 55, "all pairs of digits"


# ------------------------------------------------------------------------------------------------- the tables


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("star_evidence", ROOT / "runs" / "star_evidence.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["star_evidence"] = module
    spec.loader.exec_module(module)
    return module


def test_means_weigh_lengths_equally_and_intervals_hold_them(script: ModuleType):
    marks = [
        {"addition/1": "11111", "addition/2": "0" * 90 + "1" * 10},
        {"addition/1": "11110", "addition/2": "1" * 100},
    ]
    mean, low, high, n = script.interval(marks, script.cells((1, 2)))
    assert mean == pytest.approx((1 + 0.1 + 0.8 + 1) / 4) and n == 210
    assert low < 0.6 and high > 0.85, "two seeds far apart"
    mean, low, high, n = script.interval([marks[1]] * 2, script.cells((2,)))
    assert (mean, high, n) == (1.0, 1.0, 200) and 0.97 < low < 0.99, "200 of 200 does not say 100 to 100"
    half = [{"addition/2": "10" * 50}] * 3
    apart, together = (script.interval(half, script.cells((2,)), same=same) for same in (False, True))
    assert together[2] - together[1] > 1.5 * (apart[2] - apart[1]), "the same problems again are no new ones"
    assert (apart[3], together[3]) == (300, 100)
    share, low, high, n = script.counted([(1, 10), (3, 10)])
    assert (share, n) == (0.2, 20) and low < 0.12 < 0.28 < high
    assert script.counted([(0, 0)]) is None


def test_the_tables_of_a_run(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: dict[str, list[dict[str, Any]]] = {}
    monkeypatch.setattr(script.evidence, "write", lambda name, rows: written.update({name: rows}))
    monkeypatch.setattr(script, "interval", partial(script.interval, resamples=50))

    def cells(mark: str) -> dict[str, Any]:
        return {f"addition/{i}": {"marks": mark * 4, "lines": 4, "false": int(mark)} for i in range(1, 11)}

    counts = {"problems": 10, "right": 4, "with_hint": 6, "rationalized": 3, "rationalized_false": 1}
    for seed in (0, 1):
        for arm in script.ARMS:
            (tmp_path / f"{arm}-{seed}").mkdir()
            rows = [
                {"step": 0, "iteration": 0, "eval": {"cells": cells("0")}},
                {"step": 1, "iteration": 1, "asked": {**counts, "rationalized_lines": 3}},
                {"step": 2, "iteration": 1, "eval": {"cells": cells("1")}},
            ]
            (tmp_path / f"{arm}-{seed}" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        ends = {arm: cells("1") for arm in (*script.ARMS, "base", "direct")}
        (tmp_path / f"longer-{seed}.json").write_text(json.dumps(ends))
    script.table(tmp_path)
    assert set(written) == {"star", "star-lines", "star-data", "star-longer"}
    values = {row["claim"]: row["value"] for rows in written.values() for row in rows}
    assert values["with rationalization / base / 3 digits"] == 0.0
    assert values["without rationalization / iteration 1 / all"] == 1.0
    assert values["right answers with a false line / iteration 1 / with rationalization"] == 0.25
    assert values["with rationalization / iteration 1 / failures rationalized"] == 0.5
    assert values["digits / direct answers, equal steps / 6 to 10"] == 1.0
    assert all(
        row["seeds"] == [0, 1] and row["low"] <= row["value"] <= row["high"] for r in written.values() for row in r
    )
