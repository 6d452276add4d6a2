"""Pretraining: a small model from scratch on procedurally generated, deliberately imperfect worked solutions.

This is how nano-base was made. The data is a small copy of what a base model learnt from the web: people of
different diligence working problems in the chat format, with slips, dead ends and guesses (see each task's habits).
Documents are endless and never repeat: those of step i are a function of (seed, i), which is also why resuming needs
no data cursor beyond the step number.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from mull import config as configs
from mull.chat import Chat
from mull.engine.sampler import derive_seed
from mull.errors import UserError
from mull.learn import losses, optim
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack, to_device
from mull.learn.samples import supervised
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.models.config import ModelConfig
from mull.models.device import device_of
from mull.models.flops import train_flops
from mull.models.nano import nano_config, write_tokenizer
from mull.progress import Mode, Progress
from mull.runfolder import RunFolder
from mull.tasks.base import Task
from mull.tasks.load import PUZZLES, load_task
from mull.types import Sample


@dataclass(frozen=True)
class PretrainConfig:
    out: Path = Path("runs/pretrain")
    tasks: tuple[str, ...] = PUZZLES
    levels: int = 4  # the easiest so many levels of each task; easier levels are drawn more often
    layers: int = 4  # of the model
    width: int = 128  # of the model, a multiple of 32
    steps: int = 5200
    step_tokens: int = 4096  # tokens of one optimiser step
    micro_tokens: int = 1024  # tokens of one forward and backward pass: small ones pad less and stay in the cache
    optimizer: Literal["adamw", "muon"] = "muon"
    lr: float = 3e-3
    warmup: int = 50
    final_lr: float = 1e-4  # reached by a cosine at the last step
    weight_decay: float = 0.1
    compile: bool = True
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # bfloat16: autocast, the weights stay float32
    checkpoint_every: int = 200
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        if self.layers < 1 or self.width < 32 or self.width % 32:
            raise UserError(f"layers={self.layers}, width={self.width}: give at least 1 layer and a multiple of 32")


def shape(cfg: PretrainConfig) -> ModelConfig:
    """nano's shape in the wanted size; its own heads of 32, and half as many (or one) for keys and values."""
    heads = cfg.width // 32
    return replace(
        nano_config(),
        num_layers=cfg.layers,
        hidden_size=cfg.width,
        intermediate_size=3 * cfg.width,
        num_heads=heads,
        num_kv_heads=heads // 2 if heads % 2 == 0 else 1,
    )


def documents(tasks: list[Task], chat: Chat, levels: int, seed: int) -> Iterator[Sample]:
    """Worked problems of the train split, in the chat format; the question is context, the rest is learnt."""
    rng = random.Random(seed)
    while True:
        task = rng.choice(tasks)
        among = task.levels[:levels]
        level = rng.choices(among, weights=range(len(among), 0, -1))[0]
        problem = next(task.stream(level, "train", rng.getrandbits(62)))
        worked = task.imperfect(problem, rng)
        yield supervised(chat.prompt(problem.question.text), chat.reply(worked.thought, worked.answer))


def writer(name: str) -> Task:
    """The task, which must write worked solutions."""
    task = load_task(name)
    if not isinstance(task, Task):
        raise UserError(f"the task {name} writes no worked solutions to pretrain on: choose among {', '.join(PUZZLES)}")
    return task


def pretrain(cfg: PretrainConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Runs the recipe; returns the folder of the trained model. See `PretrainConfig` for every setting."""
    tasks = [writer(name) for name in cfg.tasks]
    device_of(cfg.device)  # or UserError, before anything is written
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    with RunFolder.create(
        cfg.out,
        configs.to_toml(cfg),
        command,
        cfg.seed,
        resume=resume,
        may_change=("steps", "threads", "checkpoint_every", "precision"),
    ) as run:
        tokenizer = cfg.out / "tokenizer"
        write_tokenizer(tokenizer)
        chat = Chat.load(tokenizer)
        model = hf.init(shape(cfg), cfg.seed, device=cfg.device)
        make = optim.muon if cfg.optimizer == "muon" else optim.adamw
        optimizers = make(model, lr=cfg.lr, weight_decay=cfg.weight_decay)
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        step, flops = 0, 0.0
        if latest := run.latest():
            step, state = latest
            model.load_state_dict(state["model"])
            for one, saved in zip(optimizers, state["optimizers"], strict=True):
                one.load_state_dict(saved)
            flops = state["flops"]
        run.truncate_metrics(step if latest else -1)  # what a run logged after its last checkpoint comes again
        note = compile_layers(model) if cfg.compile else "training runs eagerly (compile = false)"

        with Progress("pretraining nano", cfg.steps, start=step, mode=mode) as progress:
            progress.say(note)
            while step < cfg.steps:
                started = time.perf_counter()
                samples, tokens = [], 0
                for sample in documents(tasks, chat, cfg.levels, derive_seed(cfg.seed, step)):
                    samples.append(sample)
                    tokens += len(sample.tokens)
                    if tokens >= cfg.step_tokens:
                        break
                diagnostics = []
                for batch in pack(samples, cfg.micro_tokens):
                    batch = to_device(batch, cfg.device)
                    with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.precision == "bfloat16"):
                        logprobs_BT, _ = batch_logprobs(model, batch)
                    loss, micro = losses.loss(batch, logprobs_BT)
                    loss.backward()
                    diagnostics.append(micro)
                lr = optim.cosine(step, peak=cfg.lr, total=cfg.steps, warmup=cfg.warmup, floor=cfg.final_lr)
                update = optim.step(model, optimizers, lr)
                step += 1
                flops += train_flops(model.config, [len(s.tokens) for s in samples])
                seconds = time.perf_counter() - started
                metrics = {
                    "loss": losses.summarise(diagnostics)["loss_ce"],
                    "lr": lr,
                    "grad_norm": update.grad_norm,
                    "skipped": update.skipped,
                    "tokens": tokens,
                    "tokens_per_second": tokens / seconds,
                    "flops": flops,
                }
                run.log(step, metrics)
                progress.update(step, **metrics)
                if step % cfg.checkpoint_every == 0 or step == cfg.steps:
                    state = {
                        "model": model.state_dict(),
                        "optimizers": [one.state_dict() for one in optimizers],
                        "flops": flops,
                    }
                    run.save_checkpoint(step, state)
        hf.save(model, cfg.out / "model", source=tokenizer)
    return cfg.out / "model"
