"""Pretraining: every option changes the model, or only how the work is done."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from mull.recipes.pretrain import PretrainConfig, pretrain
from tests.recipes.tiny import weights

PLAIN: dict[str, Any] = dict(
    tasks=("chain", "addition"),
    levels=1,
    layers=1,
    width=32,
    steps=3,
    step_tokens=600,
    warmup=1,
    compile=False,
    precision="float32",
    threads=1,
)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"tasks": ("chain",)},
    {"levels": 2},
    {"layers": 2},
    {"width": 64},
    {"steps": 5},
    {"step_tokens": 300},
    {"optimizer": "adamw"},
    {"lr": 1e-3},
    {"warmup": 2},
    {"final_lr": 2e-3},
    {"weight_decay": 5.0},
    {"precision": "bfloat16"},
    {"seed": 1},
]


def test_every_option_changes_what_is_learnt(tmp_path: Path):
    def trained(name: str, options: dict[str, Any]) -> torch.Tensor:
        return weights(pretrain(PretrainConfig(out=tmp_path / name, **{**PLAIN, **options}), mode="quiet"))

    found = [trained(f"run{number}", options) for number, options in enumerate(OPTIONS)]
    same = [(OPTIONS[i], OPTIONS[j]) for i in range(len(found)) for j in range(i) if torch.equal(found[i], found[j])]
    assert not same
    apart = (trained("small", {"micro_tokens": 300}) - found[0]).abs().max()
    others = [(one - found[0]).abs().max() for one in found[1:] if one.shape == found[0].shape]
    assert apart < 0.2 * min(others), "how the work is cut up is rounding, and no more"
    elsewhere = {"out", "micro_tokens", "compile", "device", "checkpoint_every", "threads"}
    assert {name for options in OPTIONS for name in options} | elsewhere == {f.name for f in fields(PretrainConfig)}
