"""mull's side of `mull bench`: `python -m mull.recipes.bench_mull WORK.json SETTING`, in a process of its own.

The functions that it times are the recipe's own: the engine, the grading, `to_samples` and `learn` of recipes/rl.py.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

import torch

from mull.chat import Chat
from mull.engine import native
from mull.engine.local import LocalEngine
from mull.engine.sampler import derive_seed
from mull.evals.grade import grade
from mull.learn import optim
from mull.ledger import Budget
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.recipes import rl
from mull.recipes.bench_worker import Pipe, Round, read_work, serve
from mull.recipes.rollouts import Rollouts
from mull.search.sample import Decoding, sample
from mull.tasks.load import load_task
from mull.types import SamplingParams


def rollout(work: dict[str, Any]) -> tuple[LocalEngine, Round]:
    """Samples a group of chains for every prompt of a set."""
    chat = Chat.load(work["model"])
    engine = LocalEngine(hf.load(work["model"]), chat)

    async def sample_set(number: int) -> dict[str, Any]:
        groups = await asyncio.gather(
            *(
                engine.sample(
                    p["tokens"],
                    SamplingParams(work["max_tokens"], work["temperature"], seed=derive_seed(work["seed"], number, i)),
                    work["group_size"],
                )
                for i, p in enumerate(work["sets"][number])
            )
        )
        chains = [completion for group in groups for completion in group]
        assert all(len(c.logprobs) == len(c.tokens) for c in chains)
        return {"tokens": sum(len(c.tokens) for c in chains), "chains": len(chains)}

    return engine, lambda number: asyncio.run(sample_set(number))


def rl_step(work: dict[str, Any], setting: dict[str, Any]) -> tuple[LocalEngine, Round]:
    """Samples, grades and takes one optimiser step. Unlike the recipe it drops no group: every chain is trained on."""
    cfg = rl.RLConfig(
        model=work["model"],
        tasks=tuple(work["tasks"]),
        groups=work["groups"],
        group_size=work["group_size"],
        think_tokens=work["think_tokens"],
        answer_tokens=work["answer_tokens"],
        temperature=work["temperature"],
        lr=work["lr"],
        dtype=setting["dtype"],
        seed=work["seed"],
        compile=setting.get("compile", True),
    )
    tasks = {name: load_task(name) for name in work["tasks"]}
    chat = Chat.load(work["model"])
    model = hf.load(work["model"])
    optimizer = optim.adamw(model, cfg.lr, cfg.weight_decay)
    engine = LocalEngine(model, chat, cfg.max_sequences)
    chosen = cfg.method
    if cfg.compile:
        compile_layers(model)

    async def one(row: dict[str, Any]) -> tuple[Any, list[float | None]]:
        task = tasks[row["task"]]
        problem = next(task.stream(row["level"], "train", row["seed"]))
        budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.group_size)
        trace = await sample(problem.question, engine, chat, budget, Decoding(cfg.temperature), row["seed"])
        trace = grade(task, problem, trace)
        return trace, rl.shaped_rewards(cfg, [trace], random.Random(row["seed"]))

    async def sample_set(number: int) -> list[tuple[Any, list[float | None]]]:
        return list(await asyncio.gather(*(one(row) for row in work["sets"][number])))

    def run(number: int) -> dict[str, Any]:
        groups = asyncio.run(sample_set(number))
        todo = rl.to_samples(cfg, chosen, Rollouts(groups, traces=[trace for trace, _ in groups]))
        rl.learn(cfg, chosen, model, optimizer, None, todo, cfg.lr)
        rewards = [reward or 0.0 for _, values in groups for reward in values]
        return {"tokens": sum(sum(s.mask) for s in todo), "chains": len(todo), "rewarded": int(sum(rewards))}

    return engine, run


def main() -> None:
    pipe = Pipe()
    work, setting = read_work(sys.argv)
    torch.set_num_threads(work["threads"])
    torch.manual_seed(work["seed"])
    work["model"] = str(Path(work["model"]))
    engine, run = rollout(work) if work["name"] == "rollout" else rl_step(work, setting)
    if setting.get("profile"):
        from mull.recipes.bench_profile import profile

        torch.set_num_threads(
            1
        )  # one lane: times of threads that work side by side would add up to more than the whole

        return pipe.send(**profile(engine, run, work))
    serve(pipe, work, run, versions={"torch": torch.__version__}, note=native.status())


if __name__ == "__main__":
    main()
