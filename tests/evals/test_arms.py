"""Arms of an experiment: measured once, compared by problem and seed, intervals that know both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mull.errors import UserError
from mull.evals import arms
from mull.evals.arms import Experiment
from mull.evals.metrics import wilson
from mull.evals.tables import grid as drawn
from tests.recipes.tiny import ENDS, save_tiny


def experiment(folder: Path, **changes) -> Experiment:
    settings = {
        "command": "runs/x.sh",
        "base": folder / "base",
        "arms": {"base": "base", "a": "arm a"},
        "splits": {"level 1": (1,)},
        "pairs": [("a", "base")],
        "problems": 3,
        "chains": 4,
        "ks": (1, 4),
        "think_tokens": 12,
        "answer_tokens": 8,
        **changes,
    }
    return Experiment(**settings)


def test_hand_worked(tmp_path: Path):
    what = experiment(tmp_path)
    (tmp_path / "t").mkdir()
    for name, right in (("base-0", (0, 2)), ("a-0", (2, 2)), ("a-1", (4, 2))):
        rows = [{"id": str(i), "n": 4, "right": r, "tokens": 5.0} for i, r in enumerate(right)]
        (tmp_path / "t" / f"{name}.json").write_text(json.dumps({"level 1": rows}))
    found = arms.read(what, tmp_path, "t", "a", "level 1")
    assert found.tolist() == [[[0.5, 1.0], [0.5, 1.0]], [[1.0, 1.0], [0.5, 1.0]]]
    rows = arms.grid(what, tmp_path, ["t"])
    assert [(r["claim"], r["value"], r["n"], r["seeds"]) for r in rows] == [
        ("t, level 1 / base / pass@1", 0.25, 2, [0]),
        ("t, level 1 / base / pass@4", 0.5, 2, [0]),
        ("t, level 1 / arm a / pass@1", 0.625, 2, [0, 1]),
        ("t, level 1 / arm a / pass@4", 1.0, 2, [0, 1]),
    ]
    # every problem was solved within 4 chains: nothing to draw, and two problems do not say 100 (100 to 100)
    assert (rows[3]["low"], rows[3]["high"]) == wilson(2, 2) and rows[1]["low"] == 0.0 and rows[1]["high"] == 1.0
    first, last = arms.differences(what, tmp_path, ["t"])
    assert first["claim"] == "t, level 1 / arm a minus base / pass@1" and first["unit"] == "points"
    assert first["value"] == pytest.approx(0.375) and last["value"] == pytest.approx(0.5)
    # problem 1 has no difference, problem 0 has .5 or 1: the extremes of problems and seeds drawn with replacement
    assert (first["low"], first["high"]) == (0.0, 1.0)
    assert "arm a" in drawn([{**r, "commit": "c", "machine": "m"} for r in rows])
    with pytest.raises(UserError, match=r"has no measurement of b: run runs/x\.sh"):
        arms.read(what, tmp_path, "t", "b", "level 1")


def test_an_interval_knows_seeds_and_problems():
    rng = np.random.default_rng(0)
    seeds, problems = rng.normal(0, 1, (3, 1, 1)), rng.normal(0, 1, (1, 400, 1))
    [(_, low, high)] = arms.interval(np.broadcast_to(seeds, (3, 400, 1)))
    assert (low, high) == pytest.approx((seeds.min(), seeds.max())), "problems say nothing here, seeds everything"
    [(mean, low, high)] = arms.interval(np.broadcast_to(problems, (3, 400, 1)))
    assert high - low == pytest.approx(2 * 1.96 * problems.std() / 20, rel=0.1) and low < mean < high
    assert arms.interval(np.full((1, 5, 2), 0.5)) == [(0.5, 0.5, 0.5)] * 2


def test_models_are_measured_once_and_alike(tmp_path: Path):
    (tmp_path / "any.py").write_text(ENDS)
    save_tiny(tmp_path / "base")
    task = f"{tmp_path / 'any.py'}:Any"
    what = experiment(tmp_path)
    run = tmp_path / "run"
    said: list[str] = []
    arms.measure(replace(what, arms={"base": "base"}), run, task, [0], say=lambda text, flush: said.append(text))
    assert len(said) == 1, "the base can be measured before anything is trained"
    arm = run / task / "a-0"
    arm.mkdir(parents=True)
    save_tiny(arm / "model", seed=3)
    arms.measure(what, run, task, [0], say=lambda text, flush: said.append(text))
    assert len(said) == 2
    base, a = (json.loads((run / task / f"{name}-0.json").read_text())["level 1"] for name in ("base", "a"))
    assert [p["id"] for p in base] == [p["id"] for p in a] and len(base) == 3
    assert base != a and all(0 <= p["right"] <= p["n"] == 4 and p["tokens"] > 0 for p in base + a)
    arms.measure(what, run, task, [0], say=lambda text, flush: said.append(text))
    assert len(said) == 2, "nothing is made twice"
    (arm / "metrics.jsonl").write_text('{"step": 0, "once": 7}\n{"step": 1, "flops": 3.0}\n{"step": 2, "flops": 5.0}\n')
    cost, once = arms.spent(what, run, [task], {"flops": "FLOPs", "once": "y", "absent": "x"})
    assert once["value"] == 7
    assert (cost["value"], cost["low"], cost["high"], cost["unit"]) == (5.0, 5.0, 5.0, "FLOPs")
