"""Distillation end to end: students of every kind, both ways to teach them, refusals, and the same after a kill."""

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
from mull.ledger import Ledger
from mull.models import hf
from mull.recipes.distill import DistillConfig, distill, prepared
from mull.tasks.load import load_task
from tests.recipes.test_resume import broken_run, finish, same_run
from tests.recipes.tiny import ENDS, fitting, save_tiny, weights


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "any.py").write_text(ENDS)
    return save_tiny(tmp_path / "base", 3)


def config(base: Path, out: str, **options: Any) -> DistillConfig:
    given: dict[str, Any] = dict(
        teacher=str(base),
        out=base.parent / out,
        traces=base.parent / "traces",
        width=16,
        most_share=0.6,  # of so small a teacher the embedding is nearly all
        tasks=(f"{base.parent / 'any.py'}:Any",),
        levels=(1,),
        problems=6,
        samples=4,
        epochs=4,
        step_tokens=200,
        steps=4,
        groups=4,
        group_size=2,
        think_tokens=24,
        answer_tokens=8,
        lr=1e-2,
        warmup=1,
        eval_problems=4,
        eval_samples=1,
        checkpoint_every=2,
        threads=1,
    )
    return fitting(DistillConfig, given, options)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


# ------------------------------------------------------------------------------------------------ end to end


def test_off_policy_a_fresh_student_learns_the_teacher_s_chains(base: Path):
    cfg = config(base, "run", epochs=15)
    folder = distill(cfg, mode="quiet")
    first, *steps = rows(cfg.out)
    assert first["share"] < 0.6 and first["parameters"] == sum(p.numel() for p in hf.load(folder).parameters())
    assert first["lessons"]["chains"] == first["lessons"]["solved"] > 0 and first["lessons"]["too_long"] == 0
    assert first["teacher"]["all"]["n"] == first["eval"]["all"]["n"] == 4 and first["search_flops"] > 0
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"] and steps[-1]["eval"]["all"]["tokens"] > 0
    assert steps[-1]["trained_tokens"] > 0 and all(row["grad_norm"] > 0 for row in steps)
    config_of = hf.read_config(folder)
    assert (config_of.num_layers, config_of.hidden_size) == (2, 16)


@pytest.mark.parametrize("form", ["exact", "sampled"])
def test_on_policy_the_student_comes_nearer_to_the_teacher(base: Path, form: str):
    start = save_tiny(base.parent / "start", 9)
    options: dict[str, Any] = {"student": str(start), "width": 0, "most_share": 1.0, "method": "on", "form": form}
    cfg = config(base, "run", steps=16, groups=16, eval_problems=0, lr=5e-3, **options)
    distill(cfg, mode="quiet")
    first, *steps = rows(cfg.out)
    assert "lessons" not in first and "search_flops" not in first, "it needs no traces of the teacher"
    mean = [sum(row["kl"] for row in part) / 4 for part in (steps[:4], steps[-4:])]
    assert mean[1] < mean[0], mean
    assert steps[0]["rollout_flops"] > 0 and steps[0]["length"] > 0 and 0 <= steps[0]["reward"] <= 1
    if form == "sampled":
        assert steps[0]["ratio"] == pytest.approx(1.0, abs=1e-4), "it learns from what it has just sampled"


def test_a_student_of_the_teacher_s_layers_and_what_it_costs_to_have_a_teacher(base: Path):
    options: dict[str, Any] = {"width": 0, "layers": 1, "init": "layers", "most_share": 0.9, "eval_problems": 0}
    off, on = config(base, "off", **options, epochs=1, lr=0.0), config(base, "on", **options, method="on", lr=0.0)
    first = distill(off, mode="quiet")
    taken, teacher = hf.load(first).state_dict(), hf.load(base).state_dict()
    assert torch.equal(taken["layers.0.qkv.weight"], teacher["layers.0.qkv.weight"]) and "layers.1.norm" not in taken
    second = distill(on, mode="quiet")
    assert torch.equal(weights(first), weights(second)), "with a rate of 0 nothing moves"
    per_token = [row[-1]["flops"] / row[-1]["trained_tokens"] for row in (rows(off.out), rows(on.out))]
    assert per_token[1] > 1.3 * per_token[0], "the teacher's forward pass is charged"


def test_arms_of_equal_tokens_end_at_the_step_that_reaches_them(base: Path):
    ends = {}
    for keep in ("shortest", "right", "all"):
        cfg = config(base, keep, keep=keep, epochs=40, trained_tokens=1500, eval_problems=0)
        distill(cfg, mode="quiet")
        *_, last = rows(cfg.out)
        ends[keep] = last["trained_tokens"]
        assert last["lr"] < 0.1 * cfg.lr, "the schedule ends there, too"
    assert all(1500 <= tokens < 1500 + 250 for tokens in ends.values()), ends


OFF: list[dict[str, Any]] = [  # of one epoch, unless they say otherwise
    {},
    {"keep": "right"},
    {"keep": "all"},
    {"wishes": "tokens"},
    {"wishes": "words"},
    {"wishes": "words", "longest": 12},
    {"layers": 1},
    {"seed": 1},
    {"optimizer": "muon"},
    {"lr": 2e-4},
    {"warmup": 2},
    {"weight_decay": 5.0},
    {"max_grad_norm": 0.01},
    {"dtype": "bfloat16"},
    {"step_tokens": 30},
    {"epochs": 4, "trained_tokens": 300},
]
SEARCHED: list[dict[str, Any]] = [  # with traces of their own
    {"trace_seed": 5},
    {"problems": 4},
    {"samples": 2},
    {"think_tokens": 12},
    {"answer_tokens": 3},
    {"strategy": "beam:expand=2", "scorer": "logprob"},
    {"strategy": "beam:expand=2", "scorer": "certainty"},
]
ON: list[dict[str, Any]] = [
    {},
    {"form": "sampled"},
    {"direction": "forward"},
    {"group_size": 1},
    {"groups": 3},
    {"steps": 3},
    {"think_tokens": 10},
]
ELSEWHERE = {
    *("teacher", "student", "width", "init", "most_share", "out", "tasks", "levels", "method", "traces"),
    *("micro_tokens", "eval_every", "eval_problems", "eval_samples"),  # below, and in tests/recipes/test_reported.py
    *("checkpoint_every", "threads"),  # whatever they are, the run is the same: the test of kills
    *("compile", "device"),  # tests/models/test_compiled.py, tests/recipes/test_device.py
}


def test_no_option_is_left_untested():
    assert {key for given in (*OFF, *SEARCHED, *ON) for key in given} | ELSEWHERE == {
        f.name for f in fields(DistillConfig)
    }


def test_every_option_of_learning_changes_the_student(base: Path):
    start = distill(config(base, "start", eval_problems=0), mode="quiet")
    on: dict[str, Any] = {"method": "on", "student": str(start), "width": 0}
    options = [
        *({"epochs": 1, **given} for given in OFF),
        *({"epochs": 1, "keep": "all", "traces": None, **given} for given in SEARCHED),
        *({**on, "steps": 2, **given} for given in ON),
    ]
    found = [
        weights(distill(config(base, f"run-{i}", eval_problems=0, **o), mode="quiet")) for i, o in enumerate(options)
    ]
    pairs = [(i, j) for i in range(len(found)) for j in range(i) if found[i].shape == found[j].shape]
    assert not [(options[i], options[j]) for i, j in pairs if torch.allclose(found[i], found[j], atol=1e-7)]


def test_prompts_ask_for_what_the_chain_has(base: Path):
    """As RL will ask: the same last line, the whole chain counted, with its answer and its end."""
    cfg = config(base, "run", keep="all", wishes="tokens")
    chat, ledger = Chat.load(base), Ledger()
    todo, _ = prepared(cfg, [load_task(cfg.tasks[0])], chat, 1000, ledger, "quiet")
    for sample in todo:
        start = next(i for i, weight in enumerate(sample.ce or []) if weight)
        question = chat.decode(list(sample.tokens[:start]))
        assert f"\nthink {len(sample.tokens) - start}<" in question
    words = replace(cfg, wishes="words", longest=12)
    said = [
        chat.decode(list(s.tokens)) for s in prepared(words, [load_task(cfg.tasks[0])], chat, 1000, ledger, "quiet")[0]
    ]
    assert {text.partition("effort: ")[2].partition("<")[0] for text in said} >= {"low", "high"}


@pytest.mark.parametrize("method", ["off", "on"])
def test_killed_and_resumed_is_bitwise_the_same(base: Path, method: str):
    def cfg(name: str) -> DistillConfig:
        more: dict[str, Any] = {"steps": 20}
        if method == "off":
            more = {"epochs": 30, "step_tokens": 80, "optimizer": "muon"}  # whose state is that of two optimisers
        return config(base, name, method=method, traces=None, checkpoint_every=5, **more)

    seconds = finish(distill, cfg("whole"))
    broken_run(distill, cfg("broken"), 3, random.Random(4), seconds / 60)
    same_run(base.parent / "whole", base.parent / "broken")


def test_chains_that_the_student_cannot_hold_are_left_out_whole(base: Path):
    cfg = config(base, "run", eval_problems=0, keep="all", micro_tokens=28)
    distill(cfg, mode="quiet")
    lessons = rows(cfg.out)[0]["lessons"]
    assert lessons["too_long"] > 0 and lessons["chains"] > 0 and lessons["tokens"] <= 25
    with pytest.raises(UserError, match="longer than 9 tokens"):
        distill(replace(cfg, out=base.parent / "none", micro_tokens=10), mode="quiet")


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"most_share": 1 / 3}, "at most 33% are wanted"),
        ({"width": 1}, "too small"),
        ({"student": "somewhere"}, "leave out layers, width and init"),
        ({"init": "layers"}, "say how many by layers"),
        ({"init": "layers", "layers": 9, "width": 0}, "cannot take 9"),
        ({"form": "sampled", "direction": "forward", "method": "on"}, "use form=exact"),
        ({"groups": 0}, "must be 1 or more"),
        ({"trained_tokens": -1}, "must not be negative"),
        ({"longest": 12}, "longest does nothing with wishes=none"),
        ({"wishes": "tokens", "method": "on"}, "wishes does nothing with method=on"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(base: Path, options: dict[str, Any], sentence: str):
    with pytest.raises(UserError) as caught:
        distill(config(base, "run", **options), mode="quiet")
    assert sentence in str(caught.value)
    assert not (base.parent / "run").exists()


def test_another_tokenizer_is_refused_and_so_is_a_teacher_that_solves_nothing(base: Path):
    other = save_tiny(base.parent / "other", 1)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|user|>", "<|user|>Q: "))
    with pytest.raises(UserError, match="another tokenizer or chat template"):
        distill(config(base, "run", student=str(other), width=0, most_share=1.0), mode="quiet")
    with pytest.raises(UserError, match="solved none of 6 questions"):
        distill(config(base, "none", tasks=(f"{base.parent / 'any.py'}:Same",)), mode="quiet")
