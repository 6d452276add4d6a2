"""What tests of the actor-critic recipe stand on: a tiny base, a scorer, tasks, and a small config."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.models import hf
from mull.models.value import ScorerInfo, ValueModel, save_value
from mull.recipes import credit
from mull.recipes.actor_critic import ActorCriticConfig, collect
from mull.scorers.base import Score
from mull.tasks.load import load_task
from mull.types import Cost
from tests.recipes.tiny import ENDS, fitting, save_tiny

ALGORITHMS = ("ppo", "prm", "vineppo", "prime")
PRM, PRIME, VINE = {"algorithm": "prm"}, {"algorithm": "prime"}, {"algorithm": "vineppo"}
DONE = '''

class Done(Any):
    """Any answer is right that comes in time: a random model finds one in five times, and can learn to."""
    name = "done"

    def check(self, problem, answer):
        return Verdict(bool(answer), answer)
'''


def save_home(folder: Path) -> Path:
    (folder / "any.py").write_text(ENDS + DONE)
    for name, seed in (("base", 0), ("other", 5)):
        save_tiny(folder / name, seed)
        judge = ValueModel(hf.load(folder / name), seed=seed)
        with torch.no_grad():
            judge.head.weight.mul_(10)  # opinions that differ
        save_value(judge, folder / f"scorer-{name}", ScorerInfo("prm", "product"), folder / "base")
    return folder


def config(home: Path, **changes: Any) -> ActorCriticConfig:
    if changes.get("algorithm") == "prm":
        changes = {"scorer": home / "scorer-base", **changes}
    base: dict[str, Any] = dict(
        model=str(home / "base"),
        tasks=(f"{home / 'any.py'}:Any",),
        levels=(1,),
        steps=2,
        groups=2,
        group_size=4,
        think_tokens=12,
        answer_tokens=8,
        critic_lr=0.01,
        critic_warmup=0,
        minibatches=2,
        lr=0.005,
        warmup=1,
        max_grad_norm=100.0,
        compile=False,
        threads=1,
    )
    return fitting(ActorCriticConfig, base, changes)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


def gathered(home: Path, cfg: ActorCriticConfig, step: int = 0) -> tuple[LocalEngine, Chat, credit.Chains]:
    chat = Chat.load(cfg.model)
    engine = LocalEngine(hf.load(cfg.model), chat)
    return engine, chat, asyncio.run(collect(cfg, [load_task(t) for t in cfg.tasks], engine, chat, step, 1.0))


class Likes:
    """A scorer with a fixed opinion of prefixes."""

    def __init__(self, opinion: Any):
        self.opinion = opinion

    async def score(self, prefixes: Sequence[Sequence[int]]) -> list[Score]:
        return [Score(self.opinion(list(p)), Cost(scorer_tokens=len(p))) for p in prefixes]
