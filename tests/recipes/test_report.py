"""Run folders as reports: actor and critic, STaR, the flywheel; and what is said of every other folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull import config as configs
from mull.errors import UserError
from mull.evals import report_series
from mull.models import hf
from mull.models.value import ScorerInfo, ValueModel, save_value
from mull.recipes.actor_critic import ActorCriticConfig, actor_critic
from mull.recipes.flywheel import FlywheelConfig, flywheel
from mull.recipes.report import report
from mull.recipes.reported import CLASSES
from mull.recipes.rl import RLConfig
from mull.recipes.star import StarConfig, star
from tests.recipes.tiny import ENDS, fitting, save_tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "any.py").write_text(ENDS)
    save_tiny(folder / "base")
    save_tiny(folder / "other", 3)
    judge = ValueModel(hf.load(folder / "base"), seed=0)
    with torch.no_grad():
        judge.head.weight.mul_(10)
    save_value(judge, folder / "scorer", ScorerInfo("prm", "product"), folder / "base")
    return folder


def small(home: Path, out: str, model: str = "base") -> dict[str, Any]:
    """What all three configs have."""
    return {
        "model": str(home / model), "out": home / out, "tasks": (f"{home / 'any.py'}:Any",), "levels": (1,),
        "think_tokens": 16, "answer_tokens": 8, "compile": False, "threads": 1, "warmup": 1,
    }  # fmt: skip


def shown(page: Path) -> dict[str, Any]:
    """The data in the page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


def series(data: dict[str, Any], kind: report_series.Series) -> dict[str, Any]:
    """Of a page, by the key that its metrics have them under."""
    keys = {label: key for key, label, _ in kind}
    assert all(any(v is not None for v in m["values"]) for m in data["metrics"])
    return {keys[m["name"]]: m for m in data["metrics"]}


# ------------------------------------------------------------------------------------------- actor and critic


def critic(home: Path, out: str, **more: Any) -> ActorCriticConfig:
    base = dict(
        **small(home, out), steps=3, groups=2, group_size=4, critic_warmup=1, eval_every=1, eval_problems=4,
        eval_samples=1,
    )  # fmt: skip
    return fitting(ActorCriticConfig, base, more)


def test_a_scorers_opinion_stands_beside_the_truth(home: Path):
    cfg = critic(home, "prm", algorithm="prm", scorer=home / "scorer")
    actor_critic(cfg, "mull rl --algorithm prm", mode="quiet")
    page = report(cfg.out)
    data, rows = shown(page), logged(cfg.out)[1:]
    assert data["opinion"] == {"steps": [1, 2, 3], **{key: [r[key] for r in rows] for key in ("scorer", "truth")}}
    assert None not in data["opinion"]["scorer"] and data["opinion"]["scorer"] != data["opinion"]["truth"]
    found = series(data, report_series.ACTOR_CRITIC)
    assert {"truth", "scorer", "explained_variance", "length", "grad_norm"} <= set(found)
    assert found["explained_variance"]["values"] == [r["explained_variance"] for r in rows]
    assert found["grad_norm"]["values"][0] is None  # the critic alone learnt
    assert "critic_right" not in found  # PRIME's
    assert "by PPO and a process reward model on" in page.read_text() and "please the scorer" in page.read_text()
    assert {"rollouts", "scorer", "credit", "critic", "training", "evaluation"} == {p["phase"] for p in data["ledger"]}
    mean = data["train"][0]["points"]
    assert [p["label"] for p in mean] == ["step 0", "step 1", "step 2", "step 3"]
    assert json.loads((cfg.out / "summary.json").read_text())["train_curve"][-1]["flops"] == mean[-1]["flops"]


@pytest.mark.parametrize("algorithm", ["ppo", "vineppo", "prime"])
def test_every_algorithm_shows_what_it_has(home: Path, algorithm: Any):
    own: dict[str, dict[str, Any]] = {
        "ppo": {"critic_warmup": 0},
        "vineppo": {"vine_rollouts": 1},
        "prime": {"critic_warmup": 0, "keep_low": 0.0, "keep_high": 1.0},
    }
    cfg = critic(home, algorithm, algorithm=algorithm, steps=1, **own[algorithm])
    actor_critic(cfg, mode="quiet")
    data = shown(report(cfg.out))
    found = series(data, report_series.ACTOR_CRITIC)
    assert ("opinion" in data) == (algorithm == "prime") == ("scorer" in found) == ("critic_right" in found)
    assert ("explained_variance" in found) == (algorithm == "ppo")
    assert {"ppo": "by PPO", "vineppo": "by VinePPO", "prime": "by PRIME"}[algorithm] in data["method"]


# ------------------------------------------------------------------------------------------------------- star


def test_star(home: Path):
    cfg = StarConfig(
        **small(home, "star"), iterations=2, problems=24, first_steps=2, times=1.0, plus=1, step_tokens=200,
        micro_tokens=256, temperature=1.0, eval_problems=8,
    )  # fmt: skip
    star(cfg, "mull star", mode="quiet")
    data, rows = shown(report(cfg.out)), logged(cfg.out)
    measured = [r["eval"] for r in rows if r.get("eval")]
    assert [c["name"] for c in data["train"]] == ["all problems", "any/1"]
    assert [p["label"] for p in data["train"][0]["points"]] == ["base", "iteration 1", "iteration 2"]
    assert [p["accuracy"] for p in data["train"][1]["points"]] == [e["cells"]["any/1"]["mean"] for e in measured]
    assert data["pass_at_1"]["trained"] == measured[-1]["all"] and data["pass_at_1"]["base"] == measured[0]["all"]
    asked = [r["asked"] for r in rows if "asked" in r]
    solved = series(data, report_series.STAR)["solved"]
    assert [v for v in solved["values"] if v is not None] == [a["right"] / 24 for a in asked] and len(asked) == 2
    assert solved["steps"] == [1, 2, 3, 4, 5]
    assert data["method"] == "STaR with rationalization"
    # a run that asks greedily is measured greedily, once
    written = configs.to_toml(replace(cfg, temperature=0.0, rationalize=False))
    (cfg.out / "config.toml").write_text(written)
    greedy = shown(report(cfg.out))
    assert len(greedy["lengths"]["before"]) == 8 and greedy["method"] == "STaR without rationalization"
    assert greedy["lengths"]["before"] != data["lengths"]["before"]


# --------------------------------------------------------------------------------------------------- flywheel


def turning(home: Path, out: str, **more: Any) -> FlywheelConfig:
    cfg = FlywheelConfig(
        **small(home, out, "other"), turns=2, problems=10, samples=5, step_tokens=150,
        micro_tokens=256, threshold=-1.0, lr=1e-2, valid_problems=8, test_problems=8, eval_samples=1,
    )  # fmt: skip
    return replace(cfg, **more)


def test_flywheel(home: Path):
    cfg = turning(home, "flywheel")
    flywheel(cfg, "mull flywheel", mode="quiet")
    data, rows = shown(report(cfg.out)), logged(cfg.out)
    told = json.loads((cfg.out / "report.json").read_text())
    assert data["pass_at_1"]["trained"] == told["final"]["test"]
    assert data["pass_at_1"]["gain"] == told["final"]["test_gain_over_base"]
    test, valid = data["train"]
    assert test["name"] == "test problems" and [p["label"] for p in test["points"]] == ["base", "turn 1", "turn 2"]
    for n in range(3):
        assert test["points"][n]["accuracy"] == told["turns"][n]["test"]["mean"]
        assert valid["points"][n]["accuracy"] == told["turns"][n]["valid"]["mean"]
    assert test["points"][2]["tokens"] == rows[-1]["total_sampled_tokens"] + rows[-1]["total_trained_tokens"]
    found = series(data, report_series.FLYWHEEL)
    lessons = [v for v in found["learnt"]["values"] if v is not None]
    assert lessons == [told["turns"][n]["learnt"]["lessons"] for n in (1, 2)]
    assert "loss_ce" in found and "loss_pairs" not in found
    assert [p["phase"] for p in data["ledger"]] == ["evaluation", "sampling", "training"]
    sampled = sum(told["turns"][n]["tokens"]["sampled"] for n in (1, 2))
    assert data["ledger"][1]["sampled_tokens"] == sampled > 0
    assert "a flywheel of 2 turns (sft)" in data["method"]


def test_flywheel_by_preferences_and_without_test_problems(home: Path):
    cfg = turning(home, "preferences", method="dpo", test_problems=0, turns=1)
    flywheel(cfg, mode="quiet")
    data = shown(report(cfg.out))
    assert [c["name"] for c in data["train"]] == ["valid problems"]
    assert {"loss_pairs", "right"} <= set(series(data, report_series.FLYWHEEL))
    assert data["pass_at_1"]["trained"]["n"] == 8


# ------------------------------------------------------------------------------------------- what a folder is


def folder(at: Path, command: str | None, config: str, *files: str) -> Path:
    at.mkdir()
    (at / "config.toml").write_text(config)
    if command is not None:
        (at / "run.json").write_text(json.dumps({"command": command, "seed": 0, "starts": []}))
    for name in files:
        (at / name).write_text("")
    return at


def test_what_other_folders_are(tmp_path: Path, home: Path):
    def refused(run: Path, *words: str) -> None:
        with pytest.raises(UserError) as problem:
            report(run)
        assert not [w for w in words if w not in str(problem.value)], str(problem.value)
        assert str(run) in str(problem.value) and not (run / "report.html").exists()

    refused(tmp_path / "gone", "there is no run folder")
    refused(home / "base", "holds no run", "it holds a model")
    refused(home / "scorer", "it holds a scorer")
    scale = folder(tmp_path / "scale", "mull scale train --out x", "targets = [2.0]\n", "scale.html", "metrics.jsonl")
    refused(scale, "a run of mull scale train", f"what it has to say is in {scale / 'scale.html'}")
    aha = folder(tmp_path / "aha", "mull aha --task chain", 'words = ["wait"]\n', "report.json")
    refused(aha, "a run of mull aha, and", f"in {aha / 'report.json'}")
    refused(
        folder(tmp_path / "python", "", "x = 1\n"), "a run of another recipe, and reports are made of mull rl, mull"
    )
    refused(folder(tmp_path / "bare", None, "x = 1\n"), "a run of another recipe")
    refused(tmp_path, "holds no run of its own", "aha, bare, python, scale")
    newer = folder(tmp_path / "newer", "mull star --seed 1", configs.to_toml(StarConfig()) + "wings = 2\n")
    refused(newer, "mull star", "cannot read", "unknown key 'wings'")
    begun = folder(tmp_path / "begun", "mull rl", configs.to_toml(RLConfig()))
    refused(begun, "no finished step yet", "mull rl --out")


def test_a_run_of_two_configs_is_never_taken_for_the_other():
    """The kind of a run is known by its keys: no config may load as another one."""
    written = {cls: configs.to_toml(cls()) for classes in CLASSES.values() for cls in classes}
    for cls, text in written.items():
        keys = {line.partition(" = ")[0] for line in text.splitlines() if " = " in line}
        for other, others in written.items():
            assert cls is other or keys - {line.partition(" = ")[0] for line in others.splitlines()}
