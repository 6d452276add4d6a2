"""The demo on a tiny random model: every stage runs, the summary is complete, a second call re-uses it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mull.errors import UserError
from mull.models import hf
from mull.models.config import ModelConfig
from mull.models.nano import VOCAB_SIZE, write_tokenizer
from mull.recipes.demo import DemoConfig, demo

INTERVAL = {"mean", "low", "high", "n"}
POINT = {"flops", "tokens", "accuracy", "low", "high", "label"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> DemoConfig:
    root: Path = tmp_path_factory.mktemp("demo")
    write_tokenizer(root / "tokenizer")
    shape = ModelConfig("qwen3", VOCAB_SIZE, 32, 64, 2, 2, 1, 16, 256, qk_norm=True)
    hf.save(hf.init(shape, 0), root / "base", source=root / "tokenizer")
    cfg = DemoConfig(
        out=root / "run",
        model=str(root / "base"),
        steps=2,
        control_steps=1,
        groups=1,
        group_size=2,
        think_tokens=24,
        answer_tokens=8,
        problems=8,
        samples=2,
        vote_problems=4,
        votes=4,
        budgets=(4, 8),
        eval_every=1,
        compile=False,
    )
    demo(cfg, "mull demo", mode="quiet")
    return cfg


def test_the_summary_holds_both_curves_and_the_control(finished: DemoConfig) -> None:
    summary = json.loads((finished.out / "summary.json").read_text())
    for entry in (*(summary["pass_at_1"][k] for k in ("base", "trained")), summary["control"]["random_reward"]):
        assert set(entry) >= INTERVAL and entry["n"] == 8
    assert [set(p) for p in summary["train_curve"]] == [POINT] * 3  # before, and after each of two steps
    assert (
        summary["train_curve"][0]["flops"]
        == 0
        < summary["train_curve"][1]["flops"]
        < summary["train_curve"][2]["flops"]
    )
    assert len(summary["vote_curve"]) == 3  # 1, 2 and 4 votes
    flops = [p["flops"] for p in summary["vote_curve"]]
    assert flops == pytest.approx([flops[0], 2 * flops[0], 4 * flops[0]])
    assert len(summary["budget_curve"]) == 2
    flops = [p["flops"] for p in summary["test_curve"]]
    assert flops == sorted(flops) and summary["test_curve"][-3:] == summary["vote_curve"]
    assert summary["seconds"] > 0 and summary["seed"] == 0 and summary["command"] == "mull demo"


def test_it_leaves_a_page_and_a_model_to_talk_to(finished: DemoConfig) -> None:
    assert "mull demo" in (finished.out / "report.html").read_text()
    trained = hf.load(finished.out / "model")
    base = hf.load(finished.model)
    assert trained.config == base.config


def test_a_second_call_measures_nothing_again_and_another_config_is_refused(finished: DemoConfig) -> None:
    stages = {p.name: p.stat().st_mtime_ns for p in (finished.out / "stages").glob("*.json")}
    assert set(stages) == {f"{n}.json" for n in ("base", "trained", "control", "base_test_time", "trained_test_time")}
    demo(finished, "mull demo", resume=True, mode="quiet")
    assert stages == {p.name: p.stat().st_mtime_ns for p in (finished.out / "stages").glob("*.json")}
    with pytest.raises(UserError, match="lr"):
        demo(replace(finished, lr=1.0), "mull demo", resume=True, mode="quiet")
