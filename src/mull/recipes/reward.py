"""Training a scorer from a model's own traces: outcome and process reward models, preferences, a critic.

The loop is `reward()`: sample traces of the train split (or read a folder of them), make labels, learn, and measure on
held-out problems: against the truth of chains and steps, and as what chooses among N chains. The traces and labels that
take sampling stay in a folder of their own, so several kinds and seeds can learn from the same ones.

    orm           every token learns the chain's verdict, beside the language model's loss (Cobbe et al. 2021)
    prm           step ends learn exact labels, up to the first false step (Lightman et al. 2023)
    prm-rollouts  step ends learn the share of right completions (Math-Shepherd)
    omega         step ends learn labels from bisection for the first wrong step (OmegaPRM)
    pairwise      right chains and right steps against wrong ones of the same question (Bradley-Terry)
    critic        writes whether a prefix is right, else its first wrong step and why; half of the errors are planted
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mull import config as configs
from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import UserError
from mull.evals.evaluate import held_out
from mull.learn import losses, optim, values
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack
from mull.learn.pack import to_device as batch_to_device
from mull.ledger import Budget, Ledger
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.models.deepen import deepen
from mull.models.flops import forward_flops
from mull.models.nano import model_folder
from mull.models.transformer import Transformer
from mull.models.value import ScorerInfo, ValueModel, save_critic, save_value
from mull.progress import Mode, Progress
from mull.recipes import reward_data as data
from mull.recipes.epochs import in_epochs
from mull.recipes.reward_eval import measured
from mull.recipes.reward_lessons import Lesson, lessons, work_of
from mull.recipes.rollouts import refuse_impossible
from mull.recipes.sft import spent
from mull.runfolder import RunFolder
from mull.tasks.load import load_task
from mull.types import Cost

Kind = Literal["orm", "prm", "prm-rollouts", "omega", "pairwise", "critic"]
AGGREGATE = {"orm": "last", "prm": "product", "prm-rollouts": "last", "omega": "product", "pairwise": "last",
             "critic": "last"}  # fmt: skip


@dataclass(frozen=True)
class RewardConfig:
    kind: Kind = "orm"
    model: str = "nano"  # the policy whose traces are judged: a Hugging Face folder, or nano
    init: str = ""  # the model that the scorer starts from; empty: the policy
    more_layers: int = 2  # on top of it, for a scorer that can look at what the policy expected: see models/deepen
    out: Path = Path("runs/reward")
    tasks: tuple[str, ...] = ("chain",)
    levels: tuple[int, ...] = (1, 2)
    traces: Path | None = None  # a folder of traces to learn from, filled if it is empty; none: OUT/traces
    trace_seed: int = 0  # of the questions and their chains, and of what labels them
    problems: int = 2048  # questions to learn from
    samples: int = 8  # chains for each
    think_tokens: int = 256
    answer_tokens: int = 32
    rollouts: int = 8  # completions of each prefix that is labelled by them (prm-rollouts, omega)
    rollout_chains: int = 4  # chains of each question that are labelled by rollouts
    hard: bool = False  # rollout labels are 1 where any completion was right, instead of the share
    loss: Literal["bce", "mse"] = "bce"  # of values; pairs have their own
    lm_weight: float = 0.3  # of the language model's loss beside that of values: keeps what the policy knew
    every_token: bool = True  # of a step, not its end alone, learns the step's label (prm, prm-rollouts, omega)
    epochs: int = 3
    max_steps: int = 0  # stop after so many optimiser steps, before `epochs` are over; 0: do not
    step_tokens: int = 2048  # tokens of one optimiser step; what chains of a question share counts once
    micro_tokens: int = 2048  # tokens of one forward and backward pass, padding included: small ones pad less
    lr: float = 1e-3
    warmup: int = 10
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    eval_problems: int = 256  # held out; 0: no evaluation
    eval_samples: int = 16  # chains of each, from which every choice of `best_of` is averaged
    best_of: int = 8
    checkpoint_every: int = 50
    compile: bool = False
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products; the weights stay float32
    seed: int = 0  # of the head, the order of learning, planted errors, and the evaluation
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        if self.samples < 2 or self.problems < 1:
            raise UserError("a scorer needs problems=1 or more with samples=2 or more chains each to learn from")
        if self.eval_problems and not 1 <= self.best_of <= self.eval_samples:
            raise UserError(f"best_of={self.best_of} must be between 1 and eval_samples={self.eval_samples}")
        if self.more_layers < 0:
            raise UserError(f"more_layers={self.more_layers} must be 0 or more")
        if self.max_steps < 0:
            raise UserError(f"max_steps={self.max_steps} must be 0 or more")
        steps, continued = ("prm", "prm-rollouts", "omega"), ("prm-rollouts", "omega")
        readers = {
            **dict.fromkeys(("rollouts", "rollout_chains"), continued),
            "hard": ("prm-rollouts",),
            "loss": ("orm", *steps),
            "lm_weight": ("orm", *steps),
            "every_token": steps,
        }
        configs.refuse_unread(self, "kind", readers)
        if self.rollouts < 1 or self.rollout_chains < 1 or self.epochs < 1:
            raise UserError("rollouts, rollout_chains and epochs must be 1 or more")


# ------------------------------------------------------------------------------------------------ the loop


def reward(cfg: RewardConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Trains; returns the folder of the scorer. Resuming continues bitwise identically on CPU."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    tasks = [load_task(name) for name in cfg.tasks]
    held = held_out(tasks, cfg.levels, cfg.eval_problems, "test", cfg.seed) if cfg.eval_problems else []
    source = model_folder(cfg.model)
    start = model_folder(cfg.init) if cfg.init else source
    chat = Chat.load(source)
    policy = hf.load(source, device=cfg.device).requires_grad_(False)
    if cfg.init and Chat.load(start).encode("0123 abc\n") != chat.encode("0123 abc\n"):
        raise UserError(f"{start} has another tokenizer than {source}, whose tokens it is to judge")
    body = deepen(hf.load(start, device=cfg.device), cfg.more_layers, cfg.seed)
    model = body if cfg.kind == "critic" else ValueModel(body, cfg.seed)
    refuse_impossible(cfg, tasks, chat, min(policy.config.max_positions, body.config.max_positions))
    optimizer = optim.adamw(model, cfg.lr, cfg.weight_decay)
    ledger = Ledger()
    step = 0

    with RunFolder.create(
        cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("threads", "checkpoint_every")
    ) as run:
        todo, made = prepared(cfg, tasks, policy, chat, ledger, mode)
        work = [work_of(lesson) for lesson in todo]
        plan = in_epochs([tokens for tokens, _ in work], cfg.epochs, cfg.step_tokens, cfg.seed)
        plan = plan[: cfg.max_steps or None]
        if latest := run.latest():
            step, state = latest
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            ledger = Ledger.restore(state["ledger"])
        run.truncate_metrics(step if latest else -1)
        if step == 0:
            run.log(0, {"labels": made, **{f"{k}_flops": c.flops for k, c in ledger.phases.items()}})
        told = compile_layers(body) if cfg.compile else "training runs eagerly (compile = false)"
        with Progress(f"{cfg.kind} on {', '.join(cfg.tasks)}", len(plan), start=step, mode=mode) as progress:
            progress.say(told)
            while step < len(plan):
                began = time.perf_counter()
                chosen = [todo[i] for i in plan[step]]
                tokens, keys = (sum(numbers) for numbers in zip(*(work[i] for i in plan[step]), strict=True))
                learnt = learn(cfg, model, chosen)
                lr = optim.cosine(step, peak=cfg.lr, total=len(plan), warmup=cfg.warmup)
                update = optim.step(model, optimizer, lr, cfg.max_grad_norm)
                step += 1
                seconds = time.perf_counter() - began
                flops = 3 * forward_flops(body.config, tokens, keys)
                ledger.charge("training", Cost(trained_tokens=tokens, flops=flops, seconds=seconds))
                metrics: dict[str, Any] = {
                    **learnt,
                    "lr": lr,
                    "grad_norm": update.grad_norm,
                    "skipped_updates": int(update.skipped),
                    "tokens_per_second": tokens / seconds,
                    **spent(ledger),
                }
                if step == len(plan) and held:
                    began = time.perf_counter()
                    metrics["eval"], cost = measured(cfg, held, policy, model, chat, AGGREGATE[cfg.kind])
                    ledger.charge("evaluation", cost + Cost(seconds=time.perf_counter() - began))
                run.log(step, metrics)
                progress.update(step, **{k: v for k, v in metrics.items() if not isinstance(v, dict)})
                if step % cfg.checkpoint_every == 0 or step == len(plan):
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "ledger": ledger.state(),
                    }
                    run.save_checkpoint(step, state)
        info = ScorerInfo(cfg.kind, AGGREGATE[cfg.kind], cfg.model, cfg.init or cfg.model, cfg.tasks, cfg.levels, made)
        if isinstance(model, ValueModel):
            save_value(model, cfg.out / "model", info, source)
        else:
            save_critic(model, cfg.out / "model", info, source)
    return cfg.out / "model"


def prepared(
    cfg: RewardConfig, tasks: list, policy: Transformer, chat: Chat, ledger: Ledger, mode: Mode
) -> tuple[list[Lesson], dict[str, Any]]:
    """What is to be learnt, and how many labels of what kind it holds; what it cost is charged to the ledger."""
    questions = held_out(tasks, cfg.levels, cfg.problems, "train", cfg.trace_seed)
    folder = cfg.traces or cfg.out / "traces"
    engine = LocalEngine(policy, chat)
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.samples)
    keys = ("model", "tasks", "levels", "problems", "samples", "think_tokens", "answer_tokens", "trace_seed")
    settings = {key: getattr(cfg, key) for key in keys}
    with Progress(f"{cfg.samples} chains for each question", len(questions), mode=mode) as progress:
        sampled = data.traces(folder, settings, questions, engine, chat, budget, cfg.trace_seed, progress.update)
    ledger.charge("traces", sum((s.cost for s in sampled), Cost()))
    labelled = None
    if cfg.kind in ("prm-rollouts", "omega"):
        by_name = {task.name: task for task in tasks}
        how = (cfg.kind, cfg.rollouts, cfg.rollout_chains)
        with Progress(f"labels from {cfg.rollouts} rollouts each", len(sampled), mode=mode) as progress:
            labelled = data.sampled_labels(
                folder, *how, sampled, by_name, engine, chat, budget, cfg.trace_seed, progress.update
            )
        ledger.charge("labels", sum((one.cost for one in labelled), Cost()))
    todo, made = lessons(cfg, tasks, chat, sampled, labelled)
    if not todo:
        raise UserError(
            f"the traces hold nothing that a {cfg.kind} scorer could learn from ({made}): sample other questions, or"
            " choose another kind"
        )
    return todo, made


def learn(cfg: RewardConfig, model: ValueModel | Transformer, chosen: Sequence[Lesson]) -> dict[str, float]:
    """Forward and backward over the lessons of one step, in micro-batches; returns losses and the share that was on
    the right side."""
    seen: dict[str, float] = {}
    if isinstance(model, Transformer):
        parts = []
        for batch in pack([lesson for lesson in chosen if not isinstance(lesson, tuple)], cfg.micro_tokens):
            batch = batch_to_device(batch, cfg.device)
            with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
                logprobs_BT, _ = batch_logprobs(model, batch)
            loss, micro = losses.loss(batch, logprobs_BT)
            loss.backward()
            parts.append(micro)
        return {"loss": losses.summarise(parts)["loss_ce"]}
    kind = "pairs" if cfg.kind == "pairwise" else cfg.loss
    for batch in values.pack_values([lesson for lesson in chosen if isinstance(lesson, tuple)], cfg.micro_tokens):
        batch = values.to_device(batch, cfg.device)
        with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
            parts = values.loss(model, batch, kind, cfg.lm_weight)
        parts["loss"].backward()
        for name, part in parts.items():
            seen[name] = seen.get(name, 0.0) + float(part.detach())
    return {**seen, "right": seen["right"] / max(seen["labels"], 1.0)}
