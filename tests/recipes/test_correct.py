"""The self-correction recipe: what every option does, what each method learns from, and that a kill costs nothing."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import UserError
from mull.evals.correction import correction
from mull.models import hf
from mull.recipes.correct import CorrectConfig, collect, correct, to_samples
from mull.search.turns import attempts
from mull.tasks.load import load_task
from mull.types import StopReason, Verdict
from tests.recipes.test_resume import broken_run, finish, same_run
from tests.recipes.tiny import ENDS, fitting, save_tiny, weights

LEVELS = """

class Levels(Any):
    name, levels = "levels", (1, 2)

    def draw(self, level, rng):
        text = "x" * level + str(rng.randrange(10**6))
        return text, text, Reference("x")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("correct")
    (folder / "any.py").write_text(ENDS + LEVELS)
    save_tiny(folder / "base")
    save_tiny(folder / "other", seed=5)
    return folder


def config(home: Path, **changes: Any) -> CorrectConfig:
    base: dict[str, Any] = dict(
        model=str(home / "base"),
        tasks=(f"{home / 'any.py'}:Any",),
        levels=(1,),
        steps=3,
        stage1_steps=1,
        beta2=0.1,
        credit="sum",
        baseline="group",
        instruction="again",
        groups=3,
        group_size=6,
        think_tokens=12,
        answer_tokens=8,
        lr=0.005,
        warmup=1,
        max_grad_norm=100.0,
        eval_problems=0,
        compile=False,
        threads=1,
    )
    return fitting(CorrectConfig, base, changes)


runs: dict[str, torch.Tensor] = {}


def trained(home: Path, tmp_path: Path, **changes: Any) -> torch.Tensor:
    """The weights after a run with these changes."""
    key = repr(sorted(changes.items()))
    if key not in runs:
        named = dict(changes)
        if "model" in named:
            named["model"] = str(home / named["model"])
        if "tasks" in named:
            named["tasks"] = (f"{home / 'any.py'}:{named['tasks']}",)
        cfg = config(home, **{"out": tmp_path / f"run{len(runs)}", **named})
        runs[key] = weights(correct(cfg, mode="quiet"))
    return runs[key]


CHANGES: list[tuple[str, Any, dict[str, Any]]] = [
    *[("method", name, {}) for name in ("first", "pair_sft", "star")],
    ("stage1_steps", 0, {}),
    ("stage1_steps", 2, {}),
    ("alpha", 0.0, {}),
    ("beta1", 0.5, {}),
    ("beta1", 0.5, {"method": "first"}),
    ("beta2", 2.0, {"stage1_steps": 3}),
    ("credit", "own", {}),
    ("credit", "shaped", {}),
    ("baseline", "attempt", {}),
    ("instruction", "Is that so?", {}),
    ("model", "other", {}),
    ("tasks", "Picky", {}),
    ("levels", (2,), {"tasks": "Levels"}),
    ("steps", 4, {}),
    ("groups", 4, {}),
    ("group_size", 7, {}),
    ("think_tokens", 8, {}),
    ("answer_tokens", 2, {}),
    ("temperature", 0.7, {}),
    ("lr", 0.01, {}),
    ("warmup", 8, {}),
    ("max_grad_norm", 0.01, {}),
    ("dtype", "bfloat16", {"beta1": 0.5}),
    ("seed", 1, {}),
]
SAME: list[tuple[str, Any]] = [
    ("eval_problems", 2),
    ("checkpoint_every", 1),
    ("max_sequences", 3),
    ("micro_tokens", 128),
]
ELSEWHERE = {"out", "threads", "compile", "device", "eval_every", "eval_samples"}


@pytest.mark.parametrize(("option", "value", "also"), CHANGES, ids=lambda x: str(x) if not isinstance(x, dict) else "")
def test_every_option_changes_what_is_learnt(home: Path, tmp_path: Path, option: str, value: Any, also: dict[str, Any]):
    with_it, without = trained(home, tmp_path, **{**also, option: value}), trained(home, tmp_path, **also)
    assert torch.isfinite(with_it).all()
    assert (with_it - without).abs().max() > 1e-4
    if option not in ("model", "warmup", "max_grad_norm"):
        assert (with_it - weights(home / "base")).abs().max() > 1e-3, "nothing was learnt at all"


@pytest.mark.parametrize(("option", "value"), SAME)
def test_what_only_changes_how_the_work_is_done_changes_nothing_else(
    home: Path, tmp_path: Path, option: str, value: Any
):
    small = {"steps": 1, "lr": 1e-4, "stage1_steps": 0}
    assert torch.allclose(
        trained(home, tmp_path, **{**small, option: value}), trained(home, tmp_path, **small), atol=2e-5
    )


def test_no_option_is_left_untested():
    tested = {name for name, *_ in CHANGES} | {name for name, _ in SAME} | ELSEWHERE
    assert tested == {f.name for f in fields(CorrectConfig)}


# ------------------------------------------------------------------------------------------ what is learnt


def rollouts(home: Path, cfg: CorrectConfig):
    chat = Chat.load(cfg.model)
    engine = LocalEngine(hf.load(cfg.model), chat)
    return asyncio.run(collect(cfg, [load_task(t) for t in cfg.tasks], engine, chat, 0)), chat


def test_stage_one_pays_the_second_attempt_alone(home: Path):
    cfg = config(home, credit="own", group_size=12)
    got, chat = rollouts(home, cfg)
    for step, first_is_paid in ((0, False), (1, True)):
        samples = to_samples(cfg, chat, step, got)
        firsts = [next(a for a, on in zip(s.advantages, s.mask, strict=True) if on) for s in samples]
        assert any(a != 0 for a in firsts) == first_is_paid
        assert any(s.advantages[-1] != 0 for s in samples)
    assert cfg.kl(0) == (cfg.beta1 + cfg.beta2, cfg.beta1) and cfg.kl(1) == (cfg.beta1, cfg.beta1)
    for method in ("pair_sft", "star"):
        assert config(home, method=method).kl(0) == (0, 0)
    assert config(home, method="first").stage(0) == 2, "stage I belongs to score"


def test_a_cut_attempt_earns_nothing_although_its_answer_would(home: Path):
    """The task pays the empty answer of an attempt that was cut off."""
    got, _ = rollouts(home, config(home, group_size=12))
    seen = set()
    for trace, rewards in got:
        for leaf, verdict, reward in zip(trace.leaves, trace.verdicts, rewards, strict=True):
            if trace.spans[leaf].stop is not StopReason.STOP:
                assert verdict.correct and reward == 0
                seen.add(trace.leaves.index(leaf) % 2)
    assert seen == {0, 1}


def test_what_the_baselines_of_the_paper_learn_from(home: Path):
    cfg = config(home, method="first", group_size=12)
    got, chat = rollouts(home, cfg)
    assert all(trace.strategy == "sample" for trace, _ in got)
    samples = to_samples(cfg, chat, 0, got)
    assert len(samples) == 36 and all(s.ce is None for s in samples)
    assert len(to_samples(replace(cfg, method="pair_sft"), chat, 0, got)) == sum(
        min(rewards.count(0), rewards.count(1)) for _, rewards in got
    )
    cfg = replace(cfg, method="star")
    got, chat = rollouts(home, cfg)
    mended = sum(a == 0 and b == 1 for _, rewards in got for a, b in zip(*attempts(rewards), strict=True))
    assert len(to_samples(cfg, chat, 0, got)) == mended > 0


def test_a_step_with_nothing_to_learn_from_changes_nothing_and_goes_on(home: Path, tmp_path: Path):
    cfg = config(home, out=tmp_path / "run", tasks=(f"{home / 'any.py'}:Same",), method="star")
    assert torch.equal(weights(correct(cfg, mode="quiet")), weights(home / "base"))
    rows = [json.loads(line) for line in (cfg.out / "metrics.jsonl").open()]
    assert [row["samples"] for row in rows] == [0, 0, 0] and [row["trained_tokens"] for row in rows] == [0, 0, 0]


# -------------------------------------------------------------------------------------------------- report


def test_the_report_compares_both_attempts_before_and_after(home: Path, tmp_path: Path):
    cfg = config(home, out=tmp_path / "run", eval_problems=6, eval_every=2, eval_samples=3)
    correct(cfg, command="mull correct …", mode="quiet")
    report = json.loads((cfg.out / "report.json").read_text())
    assert [e["step"] for e in report["evaluations"]] == [0, 2, 3] and report["command"] == "mull correct …"
    assert set(report["cost"]) == {"rollouts", "training", "evaluation"}
    for phase, tokens in (("rollouts", "sampled_tokens"), ("training", "trained_tokens"), ("evaluation", "flops")):
        assert report["cost"][phase][tokens] > 0
    for e in report["evaluations"]:
        seen = e["all"]
        assert seen["delta"]["mean"] == pytest.approx(seen["second"]["mean"] - seen["first"]["mean"])
        assert seen["delta"]["mean"] == pytest.approx(seen["mended"]["mean"] - seen["spoiled"]["mean"])
        assert seen["first"]["n"] == 6 and seen["unscorable"] == 0 and set(e["tasks"]) == {"any"}
    rows = [json.loads(line) for line in (cfg.out / "metrics.jsonl").open()]
    assert [row.get("stage") for row in rows] == [None, 1, 2, 2]
    assert rows[1]["ratio"] == pytest.approx(1, abs=1e-5) and rows[2]["max_ratio"] == pytest.approx(1, abs=1e-4)
    assert rows[1]["loss_kl"] == pytest.approx(0, abs=1e-7) and rows[3]["loss_kl"] > 1e-7
    assert all(0 <= row["mended"] <= row["second"] <= 1 for row in rows[1:])


def test_correction_by_hand():
    def v(correct: bool | None, answer: str = "") -> Verdict:
        return Verdict(correct, answer or str(correct))

    pairs = [
        [(v(False), v(True)), (v(True), v(True, "another right one"))],
        [(v(True), v(False)), (v(None), v(True)), (v(False), v(False))],
    ]
    seen = correction(pairs)
    assert (seen.first.mean, seen.second.mean, seen.delta.mean) == (0.5, 0.5, 0.0)
    assert (seen.mended.mean, seen.spoiled.mean) == (0.25, 0.25)
    assert seen.changed.mean == pytest.approx((1.0 + 0.5) / 2) and seen.unscorable == 1
    assert seen.delta.low < 0 < seen.delta.high


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"beta1": -1.0}, "must not be negative"),
        ({"instruction": " "}, "the instruction is empty"),
        ({"steps": 2, "stage1_steps": 3}, "stage1_steps=3 is more than steps=2"),
        ({"levels": (7,)}, "has no level among"),
        ({"think_tokens": 120}, "two attempts at any level 1 take up to"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(home, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        correct(config(home, out=tmp_path / "run", **changes), mode="quiet")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["score", "pair_sft"])
def test_killed_and_resumed_is_bitwise_the_same(home: Path, tmp_path: Path, method: Any):
    def cfg(name: str) -> CorrectConfig:
        changes: dict[str, Any] = {"out": tmp_path / name, "method": method, "steps": 6}
        changes |= {"stage1_steps": 3} if method == "score" else {}
        return config(home, **changes, eval_problems=3, eval_every=2, eval_samples=1, checkpoint_every=2)

    seconds = finish(correct, cfg("whole"))
    broken_run(correct, cfg("broken"), 4, random.Random(1), seconds / 8)
    same_run(tmp_path / "whole", tmp_path / "broken")
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "broken")]
    assert reports[0]["evaluations"] == reports[1]["evaluations"]
