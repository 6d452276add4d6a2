"""The reflection recipe: what each arm learns from, what every option does, the comparison, and a kill."""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.chat import Chat
from mull.errors import UserError
from mull.learn import losses
from mull.learn.pack import pack
from mull.models import hf
from mull.recipes.reflect import ARMS, ReflectConfig, averaging, exam, lessons, reflect, train, worked
from mull.tasks.base import split_of
from tests.recipes.test_resume import finish, same_run, start
from tests.recipes.tiny import save_tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reflect")
    save_tiny(folder / "base", max_positions=640)
    save_tiny(folder / "other", seed=5, max_positions=640)
    return folder


def config(home: Path, **changes: Any) -> ReflectConfig:
    return replace(
        ReflectConfig(
            model=str(home / "base"),
            levels=(1,),
            hard_levels=(2,),
            problems=9,
            passes=2,
            examples=4,
            lr=0.003,
            warmup=1,
            max_grad_norm=100.0,
            eval_problems=2,
            eval_samples=1,
            think_tokens=12,
            answer_tokens=8,
            checkpoint_every=2,
            compile=False,
            threads=1,
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def chat(home: Path) -> Chat:
    return Chat.load(home / "base")


# ------------------------------------------------------------------------------------------------ the arms


def test_equal_examples_and_equal_tokens(home: Path, chat: Chat):
    for control in ("problems", "passes"):
        cfg = config(home, problems=20, control=control)
        got = {arm: lessons(cfg, chat, arm, 640) for arm in ARMS}
        assert got["reflect"].total == got["plain"].total == 40

        def texts(arm, picked) -> list[str]:
            return [chat.decode(got[arm][i].tokens) for i in picked]  # noqa: B023

        for one, other in zip(texts("plain", range(40)), texts("reflect", range(40)), strict=True):
            assert other.startswith(one) and len(other) > len(one) + 20, "the same problem at the same place"
        tokens = {arm: sum(len(of[i].tokens) for i in range(of.total)) for arm, of in got.items()}
        last = len(got["plain_tokens"][got["plain_tokens"].total - 1].tokens)
        assert tokens["reflect"] <= tokens["plain_tokens"] < tokens["reflect"] + last
        assert tokens["plain"] < 0.8 * tokens["reflect"]
        first = set(texts("plain", range(20)))
        seen = set(texts("plain_tokens", range(got["plain_tokens"].total)))
        assert first <= seen and (len(seen) > len(first)) == (control == "problems")


def test_all_once_in_every_pass_and_in_a_new_order(home: Path, chat: Chat):
    of = lessons(config(home), chat, "plain", 640)
    passes = [[tuple(of[i].tokens) for i in range(9 * k, 9 * k + 9)] for k in range(2)]
    assert passes[0] != passes[1] and set(passes[0]) == set(passes[1]) and len(set(passes[0])) == 9


def test_the_parts_of_a_reflection(home: Path, chat: Chat):
    for parts, (way, more) in {"both": (1, 1), "alternative": (1, 0), "followup": (0, 1)}.items():
        document = worked(config(home, parts=parts), chat, 1, True, 640)[0]
        text = chat.decode(document.tokens)
        assert text.count("Another way:") == way and text.count("Next: if") == more
        assert text.count("<|end|>") == 3


def test_several_tasks_and_levels_take_turns(home: Path, chat: Chat):
    cfg = config(home, tasks=("chain", "addition"), levels=(1, 3))
    questions = [chat.decode(s.tokens).split("<|end|>")[0] for s in worked(cfg, chat, 8, False, 640)]
    assert ["+" in q and "=?" in q for q in questions] == [False, False, True, True] * 2


def test_nothing_that_is_held_out_is_learnt(home: Path, chat: Chat):
    from mull.tasks import chain

    cfg = config(home, problems=60, eval_problems=60)
    on = exam(cfg)
    learnt = "".join(chat.decode(s.tokens) for s in worked(cfg, chat, 60, True, 640))
    for h in (*on.held, *on.hard, *on.further):
        assert split_of(chain._key(chain._read(h.problem.question.text))) == "test"
        assert h.problem.question.text not in learnt
    assert len(on.further) > 40 and {h.problem.question.id for h in on.further} == set(on.talks)
    h = on.further[0]
    first, answer, asked = on.talks[h.problem.question.id]
    assert asked["content"].startswith("if ") and answer["content"] != h.problem.reference.answer
    name, _, value = asked["content"].removeprefix("if ").partition(",")[0].partition("=")
    assert f"{name}={value};" in h.problem.question.text + ";" and f"{name}=" in first["content"]


# ---------------------------------------------------------------------------------------------- options

runs: dict[str, torch.Tensor] = {}


def trained(home: Path, tmp_path: Path, arm: Any = "reflect", **changes: Any) -> torch.Tensor:
    key = arm + repr(sorted(changes.items()))
    if key not in runs:
        named = {**changes, **({"model": str(home / changes["model"])} if "model" in changes else {})}
        cfg = config(home, **{"out": tmp_path / f"run{len(runs)}", **named})
        train(cfg, arm, exam(cfg), mode="quiet")
        parameters = hf.load(cfg.out / arm / "model").parameters()
        runs[key] = torch.cat([p.detach().flatten() for p in parameters])
    return runs[key]


CHANGES: list[tuple[str, Any, str]] = [
    ("model", "other", "reflect"),
    ("tasks", ("addition",), "reflect"),
    ("levels", (2,), "reflect"),
    ("problems", 12, "reflect"),
    ("passes", 1, "reflect"),
    ("examples", 3, "reflect"),
    ("parts", "alternative", "reflect"),
    ("parts", "followup", "reflect"),
    ("weight", 0.3, "reflect"),
    ("average", "mean", "reflect"),
    ("control", "passes", "plain_tokens"),
    ("lr", 0.001, "reflect"),
    ("warmup", 4, "reflect"),
    ("final_lr", 0.002, "reflect"),
    ("max_grad_norm", 0.01, "reflect"),
    ("dtype", "bfloat16", "reflect"),
    ("seed", 1, "reflect"),
]
ELSEWHERE = {
    *("out", "threads", "compile", "device", "hard_levels", "eval_problems", "eval_samples", "think_tokens"),
    *("answer_tokens", "checkpoint_every"),
}


@pytest.mark.parametrize(("option", "value", "arm"), CHANGES, ids=str)
def test_every_option_changes_what_is_learnt(home: Path, tmp_path: Path, option: str, value: Any, arm: Any):
    with_it, without = trained(home, tmp_path, arm, **{option: value}), trained(home, tmp_path, arm)
    assert torch.isfinite(with_it).all() and (with_it - without).abs().max() > 1e-4


def test_what_only_changes_how_the_work_is_done_changes_nothing_else(home: Path, tmp_path: Path):
    small = {"lr": 1e-4, "passes": 1}
    one, other = (trained(home, tmp_path, **small, micro_tokens=n) for n in (8192, 640))
    assert torch.allclose(one, other, atol=2e-5)


def test_no_option_is_left_untested():
    assert {name for name, *_ in CHANGES} | {"micro_tokens"} | ELSEWHERE == {f.name for f in fields(ReflectConfig)}


def test_a_reflection_without_weight_trains_the_same_model_as_none(home: Path, tmp_path: Path):
    small = {"lr": 1e-4, "passes": 1}
    for average in ("sum", "mean"):
        none = trained(home, tmp_path, "plain", **small, average=average)
        weightless = trained(home, tmp_path, "reflect", **small, average=average, weight=0.0)
        assert torch.allclose(none, weightless, atol=2e-5)


def test_summed_losses_keep_the_weight_of_an_answer(home: Path, chat: Chat):
    """The derivative of a step's loss by the log-probability of an answer's token, with and without reflections."""

    def weight_of_first_token(average: Any, reflected: bool) -> float:
        cfg = config(home, average=average)
        aggregate = averaging(cfg, chat, 640)
        [batch] = pack(worked(cfg, chat, 9, reflected, 640), 1 << 14)
        logprobs_BT = torch.zeros_like(batch.ce_BT, requires_grad=True)
        losses.loss(batch, logprobs_BT, aggregate=aggregate)[0].backward()
        assert logprobs_BT.grad is not None
        found = logprobs_BT.grad[batch.ce_BT != 0].unique()
        assert len(found) == 1
        return -float(found)

    plain, summed = weight_of_first_token("mean", False), weight_of_first_token("sum", False)
    assert plain == pytest.approx(summed), "without reflections the two are the same"
    assert weight_of_first_token("sum", True) == pytest.approx(summed)
    assert weight_of_first_token("mean", True) < 0.6 * plain


# ------------------------------------------------------------------------------------------- all together


def test_the_report_compares_the_arms_on_the_same_problems(home: Path, tmp_path: Path):
    cfg = config(home, out=tmp_path / "run", eval_problems=5, eval_samples=2)
    folder = reflect(cfg, command="mull reflect …", mode="quiet")
    report = json.loads((cfg.out / "report.json").read_text())
    assert set(report["arms"]) == {"base", *ARMS} and set(report["reflect_minus"]) == {"base", "plain", "plain_tokens"}
    for arm, seen in report["arms"].items():
        assert seen["in_distribution"]["n"] == seen["harder"]["n"] == 5 and 0 < seen["further"]["n"] <= 5
        assert seen["cost"]["evaluation"]["sampled_tokens"] > 0
        assert (arm == "base") == ("training" not in seen["cost"])
    trained_tokens = {arm: report["arms"][arm]["cost"]["training"]["trained_tokens"] for arm in ARMS}
    assert trained_tokens["plain"] < trained_tokens["reflect"] <= trained_tokens["plain_tokens"]
    for arm, gain in report["reflect_minus"].items():
        for name, d in gain.items():
            ours, theirs = report["arms"]["reflect"][name]["mean"], report["arms"][arm][name]["mean"]
            assert d["mean"] == pytest.approx(ours - theirs) and d["low"] <= d["mean"] <= d["high"]
    for one, other in ((folder, cfg.out / "reflect" / "model"),):
        a, b = (torch.cat([p.detach().flatten() for p in hf.load(f).parameters()]) for f in (one, other))
        assert torch.equal(a, b)
    with pytest.raises(UserError, match="already holds a run"):
        reflect(cfg, mode="quiet")
    before = (cfg.out / "report.json").read_text()
    reflect(cfg, command="mull reflect …", resume=True, mode="quiet")
    assert json.loads(before)["arms"] == json.loads((cfg.out / "report.json").read_text())["arms"]


def test_killed_and_resumed_is_bitwise_the_same(home: Path, tmp_path: Path):
    def cfg(name: str) -> ReflectConfig:
        return config(home, out=tmp_path / name)

    seconds = finish(reflect, cfg("whole"))
    # The arms are folders of their own: kills by the clock, which fall into each of them.
    rng = random.Random(4)
    for _ in range(4):
        process = start(reflect, cfg("broken"))
        process.join(seconds * rng.uniform(0.2, 0.7))
        process.kill()
        process.join()
    finish(reflect, cfg("broken"))
    for arm in ARMS:
        same_run(tmp_path / "whole" / arm, tmp_path / "broken" / arm)
    marks = [
        {arm: json.loads((tmp_path / name / f"{arm}.json").read_text())["marks"] for arm in ("base", *ARMS)}
        for name in ("whole", "broken")
    ]
    assert marks[0] == marks[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("maze",)}, "maze has no written reflections"),
        ({"levels": (9,)}, "has a level among"),
        ({"passes": 0}, "must be at least 1"),
        ({"weight": -1.0}, "weight must not be negative"),
        ({"micro_tokens": 50}, "with its reflection has .* tokens, and at most 50 fit"),
        ({"think_tokens": 700}, "do not fit into the model's context of 640"),
        ({"tasks": ("addition",), "problems": 500}, "there are only"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(home, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        reflect(config(home, out=tmp_path / "run", **changes), mode="quiet")
    assert not (tmp_path / "run").exists()
