"""device and dtype of the commands that use a model: what is computed in, what is written down, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.chat import Chat
from mull.errors import UserError
from mull.models import hf
from mull.recipes import distill, dpo, flywheel
from mull.recipes.calibrate import CalibrateConfig, calibrate
from mull.recipes.compare import CompareConfig, compare
from mull.recipes.measure import Measure, measure
from mull.recipes.pretrain import PretrainConfig, pretrain
from mull.recipes.rl import RLConfig, rl
from mull.recipes.think import Ask, think
from mull.search.sources import Source
from tests.models.test_device import machine
from tests.recipes.tiny import ENDS, save_tiny

GRID: dict[str, Any] = {"model": "tiny", "tasks": ("any.py:Any",), "levels": (1,), "problems": 6}
GRID |= {"think_tokens": 12, "answer_tokens": 6}
COMPARE = {**GRID, "strategies": ("vote",), "budgets": (8,), "hold_out": 0, "latency_problems": 0, "trees": 0}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny")
    (tmp_path / "any.py").write_text(ENDS)
    return tmp_path


def cells(folder: str) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted(Path(folder, "cells").glob("*.json"))]


def test_a_comparison_in_bfloat16(home: Path):
    for name, dtype in (("exact", "float32"), ("rounded", "bfloat16"), ("again", "bfloat16")):
        compare(CompareConfig(out=Path(name), dtype=dtype, **COMPARE), mode="quiet")  # type: ignore[arg-type]
    assert [c["pools"] for c in cells("rounded")] == [c["pools"] for c in cells("again")]
    assert [c["pools"] for c in cells("rounded")] != [c["pools"] for c in cells("exact")]
    written = json.loads(Path("rounded/compare.json").read_text())
    assert (written["device"], written["dtype"]) == ("cpu", "bfloat16")
    assert "bfloat16 on cpu" in Path("rounded/compare.html").read_text()
    assert "float32 on cpu" in Path("exact/compare.html").read_text()
    with pytest.raises(UserError, match="differs in dtype"):
        compare(CompareConfig(out=Path("rounded"), **COMPARE), resume=True, mode="quiet")


def test_a_calibration_in_bfloat16(home: Path):
    about: dict[str, Any] = {**GRID, "strategies": (), "budgets": (8,), "probe": 2, "bins": 1, "efforts": (2, 4, 8)}
    about["split"] = "train"
    for name, dtype in (("exact", "float32"), ("rounded", "bfloat16")):
        calibrate(CalibrateConfig(out=Path(name), dtype=dtype, **about), mode="quiet")  # type: ignore[arg-type]
    assert [c["pools"] for c in cells("rounded")] != [c["pools"] for c in cells("exact")]
    written = json.loads(Path("rounded/calibration.json").read_text())["about"]
    assert (written["device"], written["dtype"]) == ("cpu", "bfloat16")
    with pytest.raises(UserError, match="differs in dtype"):
        calibrate(CalibrateConfig(out=Path("rounded"), **about), resume=True, mode="quiet")


def test_eval_and_think_in_bfloat16(home: Path):
    wanted = {k: v for k, v in GRID.items() if k != "problems"}
    exact, rounded = (
        measure(Measure(**wanted, problems=12, samples=8, dtype=d), "quiet") for d in ("float32", "bfloat16")
    )
    assert (rounded["device"], rounded["dtype"], exact["dtype"]) == ("cpu", "bfloat16", "float32")
    [a], [b] = exact["rows"], rounded["rows"]
    assert (a["tokens"], a["pass_at_1"]) != (b["tokens"], b["pass_at_1"])
    ask = Ask("1+1?", samples=16, budget=24, strategy="vote")
    chains = [[c.raw for c in think(ask, Source("tiny", dtype=d)).chains] for d in ("float32", "bfloat16")]
    assert chains[0] != chains[1]


def test_flops_are_those_of_the_model_whatever_its_numbers(home: Path):
    ask = Ask("1+1?", budget=8, strategy="sample", temperature=0.0, answer_tokens=4)
    costs = [think(ask, Source("tiny", dtype=d)).trace.cost for d in ("float32", "bfloat16")]
    assert costs[0].sampled_tokens == costs[1].sampled_tokens > 0 and costs[0].flops == costs[1].flops


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch, home: Path):
    machine(monkeypatch, 0)
    for recipe, cfg in (
        (pretrain, PretrainConfig(device="cuda", out=Path("run"))),
        (rl, RLConfig(device="cuda", out=Path("run"))),
        (compare, CompareConfig(device="cuda", out=Path("run"), **COMPARE)),
        (calibrate, CalibrateConfig(device="cuda", out=Path("run"), **GRID)),
    ):
        with pytest.raises(UserError, match="torch sees no GPU here"):
            recipe(cfg, mode="quiet")  # type: ignore[operator]
        assert not Path("run").exists(), recipe
    with pytest.raises(UserError, match="torch sees no GPU here"):
        measure(Measure("tiny", ("any.py:Any",), device="cuda"), "quiet")


def test_an_endpoint_has_its_own_device(home: Path):
    there: dict[str, Any] = {"endpoint": "http://localhost:9/v1", "tokenizer": "tiny", "device": "cuda"}
    for recipe, cfg in (
        (compare, CompareConfig(out=Path("run"), **{**COMPARE, **there})),
        (calibrate, CalibrateConfig(out=Path("run"), **{**GRID, **there})),
    ):
        with pytest.raises(UserError, match="leave them out"):
            recipe(cfg, mode="quiet")  # type: ignore[operator]
        assert not Path("run").exists(), recipe
    with pytest.raises(UserError, match="leave them out"):
        measure(Measure("", ("any.py:Any",), **there), "quiet")


class Asked(Exception):
    """With the source that a recipe wanted tools of."""


@pytest.mark.parametrize("recipe", [dpo, distill, flywheel])
def test_what_a_recipe_searches_with_is_on_its_device(monkeypatch: pytest.MonkeyPatch, home: Path, recipe: Any):
    def asked(source: Source) -> None:
        raise Asked(source)

    load = hf.load
    monkeypatch.setattr(hf, "load", lambda folder, dtype=torch.float32, device="cpu": load(folder, dtype))
    monkeypatch.setattr(recipe, "tools_of", asked)
    with pytest.raises(Asked) as caught:
        if recipe is dpo:
            grid: dict[str, Any] = {"tasks": ("any.py:Any",), "levels": (1,), "think_tokens": 12, "eval_problems": 0}
            dpo.dpo(dpo.DPOConfig("tiny", **grid, scorer="orm", device="cuda:3"))
        elif recipe is distill:
            cfg = distill.DistillConfig("tiny", tasks=("any.py:Any",), scorer="orm", device="cuda:3")
            tasks = [distill.load_task("any.py:Any")]
            distill.prepared(cfg, tasks, Chat.load(home / "tiny"), 64, distill.Ledger(), "quiet")
        else:
            cfg = flywheel.FlywheelConfig("tiny", scorer="orm", device="cuda:3")
            flywheel.tools_on(cfg, home / "tiny", load(home / "tiny"), Chat.load(home / "tiny"))
    [source] = caught.value.args
    assert (source.scorer, source.device, source.dtype) == ("orm", "cuda:3", "float32")
