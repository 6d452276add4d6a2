"""A flywheel that was killed, in any phase: resumed, it ends as one that nobody stopped."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mull.recipes import flywheel as recipe
from mull.recipes import flywheel_data
from mull.recipes.flywheel import FlywheelConfig, flywheel
from tests.recipes.flywheel_tools import config, same_result, save_base
from tests.recipes.test_resume import broken_run, finish, same_run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def resumable(base: Path, out: Path, **more: Any) -> FlywheelConfig:
    return config(base, out, turns=2, checkpoint_every=2, **more)


def test_killed_and_resumed_is_bitwise_the_same(base: Path, tmp_path: Path):
    whole, broken = resumable(base, tmp_path / "whole"), resumable(base, tmp_path / "broken")
    seconds = finish(flywheel, whole)
    broken_run(flywheel, broken, 4, random.Random(1), seconds / 8)
    same_run(whole.out, broken.out)
    same_result(whole, broken)


class Killed(BaseException):
    pass


PHASES = {  # in the order in which a run comes to them
    "the second round, sampled": (flywheel_data, "evaluate", 2),
    "a round, committed and not noted": (flywheel_data, "asked_row", 5),
    "curation": (flywheel_data, "outcome_pairs", 1),
    "the first step": (recipe, "learn", 1),
    "a step behind a checkpoint": (recipe, "learn", 4),
    "evaluation": (recipe, "evaluate", 2),
    "the second turn's questions": (recipe, "candidates", 1),
    "a step of the second turn": (recipe, "learn", -1),
    "export": (recipe, "exported", 1),
    "report": (recipe, "write_report", 1),
}


def interrupted(original: Any, nth: int, cfg: FlywheelConfig) -> Any:
    """The function, until its `nth` call; -1: its fourth call in the second turn's training."""
    calls = 0

    def function(*parts: Any, **options: Any) -> Any:
        nonlocal calls
        calls += nth > 0 or [json.loads(line) for line in (cfg.out / "metrics.jsonl").open()][-1]["turn"] == 2
        if calls == (nth if nth > 0 else 4):
            raise Killed
        return original(*parts, **options)

    return function


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_interrupted_in_any_phase_it_ends_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any
):
    """One run, stopped once in every phase. The model that DPO starts a turn from is its reference for all of it."""
    monkeypatch.setattr(flywheel_data, "ROUND", 4)
    whole, broken = (
        resumable(base, tmp_path / name, method=method, restart=method == "sft", step_tokens=60)
        for name in ("whole", "broken")
    )
    flywheel(whole, mode="quiet")
    steps = [row["turn"] for row in map(json.loads, (whole.out / "metrics.jsonl").open())]
    assert steps.count(1) > 4 and steps.count(2) > 5, "too few steps to be interrupted in"
    for phase, (module, name, nth) in PHASES.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, name, interrupted(getattr(module, name), nth, broken))
            with pytest.raises(Killed):
                flywheel(broken, resume=True, mode="quiet")
                pytest.fail(f"nothing was interrupted in: {phase}")
    flywheel(broken, resume=True, mode="quiet")
    same_run(whole.out, broken.out)
    same_result(whole, broken)
