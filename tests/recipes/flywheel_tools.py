"""What tests of the flywheel stand on: a tiny base with tasks beside it, a small config, and what a run wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mull.models import hf
from mull.recipes.flywheel import FlywheelConfig
from tests.recipes.test_resume import equal
from tests.recipes.tiny import ENDS, save_tiny

MORE = '''

class Sure(Any):
    """Whatever anybody says is right, so nothing can be learnt that makes it better."""
    name = "sure"

    def check(self, problem, answer):
        return Verdict(True, answer)


class Lines(Any):
    """Lines that are false in every other thought."""
    name = "lines"

    def check_steps(self, problem, thought):
        return [StepVerdict(thought, len(thought) % 2 == 0)]


class Fading(Any):
    """Everything is right until more questions were judged than a first turn has: 16 held out and 10 asked."""
    name = "fading"

    def check(self, problem, answer):
        self.seen = getattr(self, "seen", set()) | {problem.question.id}
        return Verdict(len(self.seen) <= 26, answer)


class Few(Any):
    """A hundred questions in all."""
    name = "few"

    def draw(self, level, rng):
        text = str(rng.randrange(100))
        return text, text, Reference("x")
'''


def save_base(folder: Path) -> Path:
    """A tiny model in the folder, beside a file of tasks for it."""
    (folder / "any.py").write_text(ENDS + MORE)
    return save_tiny(folder / "base", 3)


def config(base: Path, out: Path, task: str = "Any", **more: Any) -> FlywheelConfig:
    small = FlywheelConfig(
        model=str(base),
        out=out,
        tasks=(f"{base.parent / 'any.py'}:{task}",),
        levels=(1,),
        turns=1,
        problems=10,
        again=0.5,
        samples=5,
        think_tokens=24,
        answer_tokens=8,
        each=2,
        step_tokens=150,
        micro_tokens=256,
        lr=1e-2,
        warmup=1,
        threshold=-1.0,  # so that every turn pays
        valid_problems=8,
        test_problems=8,
        eval_samples=1,
        threads=1,
    )
    return replace(small, **more)


def report(cfg: FlywheelConfig) -> dict[str, Any]:
    return json.loads((cfg.out / "report.json").read_text())


def file(cfg: FlywheelConfig, turn: int, name: str) -> Any:
    return json.loads((cfg.out / "turns" / f"{turn:02d}" / name).read_text())


def asked(cfg: FlywheelConfig, turn: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cfg.out / "turns" / f"{turn:02d}" / "asked.jsonl").open()]


def without(rows: tuple[dict[str, Any], dict[str, Any]], *keys: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = ({k: v for k, v in row.items() if k not in keys} for row in rows)
    return one, two


def weights(cfg: FlywheelConfig) -> torch.Tensor:
    return torch.cat([p.flatten() for p in hf.load(cfg.out / "model").parameters()])


def same_result(one: FlywheelConfig, two: FlywheelConfig) -> None:
    assert torch.equal(weights(one), weights(two))
    for row, other in zip(report(one)["turns"], report(two)["turns"], strict=True):
        equal(*without((row, other), "seconds"))
