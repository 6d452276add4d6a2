"""Every training command leaves a report that says how much better, at what cost, against which control: the figures
of the page are those of the run's own evaluations, and what is paired is paired by problem."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mull import config as configs
from mull.errors import UserError
from mull.evals import report_series
from mull.models.nano import model_folder
from mull.recipes.correct import CorrectConfig, correct
from mull.recipes.distill import DistillConfig, distill
from mull.recipes.dpo import DPOConfig, dpo
from mull.recipes.reflect import ReflectConfig, reflect
from mull.recipes.report import control, report
from mull.recipes.rl import RLConfig, rl
from mull.recipes.sft import SFTConfig, sft
from tests.recipes.test_report import logged, series, shown, small
from tests.recipes.tiny import ENDS, save_tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    (folder / "any.py").write_text(ENDS)
    save_tiny(folder / "base")
    save_tiny(folder / "other", 3)
    return folder


def common(home: Path, out: str) -> dict[str, Any]:
    return {**small(home, out), "eval_problems": 6, "eval_samples": 2}


def rl_config(home: Path, out: str, **more: Any) -> RLConfig:
    return RLConfig(**{**common(home, out), "steps": 2, "groups": 2, "group_size": 4, "eval_every": 1, **more})


def rates(row: dict[str, Any]) -> list[float]:
    [of] = row["eval"]["rates"].values()
    return list(of.values())


def test_rl_pairs_the_models_by_problem(home: Path):
    cfg = rl_config(home, "rl", lr=1e-2)
    rl(cfg, mode="quiet")
    data, rows = shown(report(cfg.out)), logged(cfg.out)
    found = data["pass_at_1"]
    assert found["base"] == rows[0]["eval"]["all"] and found["trained"] == rows[-1]["eval"]["all"]
    deltas = [b - a for a, b in zip(rates(rows[0]), rates(rows[-1]), strict=True)]
    assert found["gain"]["n"] == 6 and found["gain"]["mean"] == pytest.approx(sum(deltas) / 6)
    assert found["controls"] == [] and "note" not in data and len(data["lengths"]["after"]) == 12
    # without evaluations of its own it is measured all the same
    silent = rl_config(home, "silent", lr=1e-2, eval_every=0)
    rl(silent, mode="quiet")
    assert shown(report(silent.out))["pass_at_1"] == found


def test_a_control_answers_the_same_problems(home: Path):
    cfg, other = rl_config(home, "held", lr=1e-2), rl_config(home, "random", lr=1e-2, random_reward=True)
    rl(cfg, mode="quiet")
    rl(other, mode="quiet")
    page = report(cfg.out, [other.out, home / "other"])
    first, second = shown(page)["pass_at_1"]["controls"]
    assert first["name"] == "random" and first["accuracy"] == logged(other.out)[-1]["eval"]["all"]
    deltas = [a - b for a, b in zip(rates(logged(cfg.out)[-1]), rates(logged(other.out)[-1]), strict=True)]
    assert first["gain"]["mean"] == pytest.approx(sum(deltas) / 6)
    assert second["name"] == "other" and second["accuracy"] != first["accuracy"]
    assert page.read_text().count("After minus it") == 2
    assert json.loads((cfg.out / "summary.json").read_text())["pass_at_1"]["controls"] == [first, second]
    assert control(Path("nano")) == model_folder("nano")
    with pytest.raises(UserError, match="neither a run nor a model"):
        report(cfg.out, [home])


def test_who_learns_to_be_asked_is_asked(home: Path):
    cfg = rl_config(home, "asked", length="lcpo_exact", wanted=(4, 20))
    rl(cfg, mode="quiet")
    data, rows = shown(report(cfg.out)), logged(cfg.out)
    assert (
        data["pass_at_1"]["base"] == rows[0]["eval"]["all"] and data["pass_at_1"]["trained"] == rows[-1]["eval"]["all"]
    )
    assert "training ever asked for: 20" in data["note"]


def test_distill_stands_beside_its_teacher(home: Path):
    given = {key: value for key, value in common(home, "distill").items() if key != "model"}
    given |= {"teacher": str(home / "base"), "most_share": 0.6, "micro_tokens": 256}
    cfg = DistillConfig(**given, width=16, problems=6, samples=4, epochs=2, step_tokens=200)
    distill(cfg, mode="quiet")
    data, rows = shown(report(cfg.out)), logged(cfg.out)
    [teacher] = data["pass_at_1"]["controls"]
    keys = ("mean", "low", "high", "n")

    def same(shown: dict[str, Any], own: dict[str, Any]) -> bool:
        return [shown[k] for k in keys] == [own[k] for k in keys]

    assert same(teacher["accuracy"], rows[0]["teacher"]["all"]) and teacher["name"] == "The teacher, base"
    assert same(data["pass_at_1"]["base"], rows[0]["eval"]["all"])
    assert same(data["pass_at_1"]["trained"], rows[-1]["eval"]["all"])
    gap = rows[-1]["eval"]["all"]["mean"] - rows[0]["teacher"]["all"]["mean"]
    assert teacher["gain"]["mean"] == pytest.approx(gap)
    assert data["model"] == "a fresh student" and "% of the teacher's parameters" in data["note"]
    points = data["train"][0]["points"]
    assert points[0]["flops"] == rows[0]["search_flops"] > 0  # the teacher's chains are charged
    assert points[-1]["flops"] == rows[-1]["flops"] + rows[0]["search_flops"]
    assert {"loss", "grad_norm"} <= set(series(data, report_series.DISTILL))
    assert {"search", "training", "evaluation"} == {phase["phase"] for phase in data["ledger"]}
    given |= {"out": home / "on", "student": str(cfg.out / "model")}
    on = DistillConfig(**given, method="on", steps=2, groups=2)
    distill(on, mode="quiet")
    data = shown(report(on.out))
    assert {"kl", "reward", "length"} <= set(series(data, report_series.DISTILL)) and data["model"] == "distill"
    assert same(data["pass_at_1"]["base"], logged(on.out)[0]["eval"]["all"])


def test_correct_counts_second_attempts(home: Path):
    cfg = CorrectConfig(
        **common(home, "correct"), steps=2, stage1_steps=1, groups=2, group_size=4, lr=1e-2, instruction="again",
        eval_every=1,
    )  # fmt: skip
    correct(cfg, mode="quiet")
    data = shown(report(cfg.out))
    own = json.loads((cfg.out / "report.json").read_text())["evaluations"]
    found = data["pass_at_1"]
    assert found["base"] == own[0]["all"]["second"] and found["trained"] == own[-1]["all"]["second"]
    assert found["gain"]["mean"] == pytest.approx(found["trained"]["mean"] - found["base"]["mean"])
    assert [c["name"] for c in data["train"]] == ["second attempts", "first attempts"]
    assert data["train"][1]["points"][-1]["accuracy"] == own[-1]["all"]["first"]["mean"]
    assert len(data["lengths"]["before"]) == 12  # of first attempts
    assert "second attempts" in data["note"] and {"first", "second"} <= set(series(data, report_series.CORRECT))


def test_reflect_stands_beside_its_other_arms(home: Path):
    cfg = ReflectConfig(
        **{**common(home, "reflect"), "tasks": ("chain",), "levels": (1,)}, hard_levels=(2,), problems=9, examples=4,
        lr=1e-2,
    )  # fmt: skip
    reflect(cfg, mode="quiet")
    data, own = shown(report(cfg.out)), json.loads((cfg.out / "report.json").read_text())
    found = data["pass_at_1"]
    assert found["base"] == own["arms"]["base"]["in_distribution"]
    assert found["trained"] == own["arms"]["reflect"]["in_distribution"]
    assert found["gain"] == own["reflect_minus"]["base"]["in_distribution"]
    assert [c["accuracy"] for c in found["controls"]] == [
        own["arms"][arm]["in_distribution"] for arm in ("plain", "plain_tokens")
    ]
    assert found["controls"][1]["gain"] == own["reflect_minus"]["plain_tokens"]["in_distribution"]
    assert {"reflect: training", "plain: training", "plain_tokens: training"} <= {p["phase"] for p in data["ledger"]}
    (cfg.out / "report.json").unlink()
    with pytest.raises(UserError, match="has not measured all arms yet"):
        report(cfg.out)


def test_dpo_and_sft(home: Path):
    searching = DPOConfig(
        **common(home, "dpo"), strategy="sample", problems=6, samples=4, epochs=1, step_tokens=200, micro_tokens=256,
        method="sft",
    )  # fmt: skip
    dpo(searching, mode="quiet")
    copying = SFTConfig(**{**common(home, "sft"), "tasks": ("chain",)}, steps=2, step_tokens=300)
    sft(copying, mode="quiet")
    for cfg, kind in ((searching, report_series.DPO), (copying, report_series.SFT)):
        data, rows = shown(report(cfg.out)), logged(cfg.out)
        assert data["pass_at_1"]["base"]["mean"] == rows[0]["eval"]["all"]["mean"]
        assert data["pass_at_1"]["trained"]["mean"] == rows[-1]["eval"]["all"]["mean"]
        assert {"grad_norm", "tokens_per_second"} <= set(series(data, kind))
    nowhere = replace(copying, tasks=(), data=Path("rows.jsonl"))
    (copying.out / "config.toml").write_text(configs.to_toml(nowhere))
    with pytest.raises(UserError, match=r"rows.jsonl and names no task"):
        report(copying.out)
