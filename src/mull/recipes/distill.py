"""A small model from a large one of the same tokenizer. The loop is `distill()`.

    off   the student imitates the teacher's own verified chains: of each question the shortest right one, all right
          ones, or (the ablation) all that ended; the traces stay in a folder of their own, as those of `mull dpo` do
    on    the student samples, and at every token of its chains learns towards the teacher by the reverse KL: exactly
          over the vocabulary, or by the policy gradient on the sampled token. Start it from a student that was made
          off-policy (`student=OUT/model`): one that cannot write a chain yet visits nothing worth learning

The student is a folder, or a fresh model of a smaller shape, or some of the teacher's layers; at most a third of the
teacher's parameters, unless `most_share` allows more (1 and keep=shortest make a long thinker short). Both are measured
on the same held-out problems, with pass@1 and tokens.
"""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from mull import config as configs
from mull.chat import Chat
from mull.chat.effort import Effort, ask, word_of
from mull.engine.local import LocalEngine
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import UserError
from mull.evals.evaluate import held_out
from mull.evals.grade import grade
from mull.learn import losses, optim
from mull.learn.distill import (
    Direction,
    Keep,
    exact_loss,
    of_layers,
    parameters,
    refuse_other_tokens,
    smaller,
    verified,
    with_teacher,
)
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack, to_device
from mull.learn.samples import from_rollouts, truncated
from mull.ledger import Budget, Ledger
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.models.flops import train_flops
from mull.models.nano import model_folder
from mull.models.transformer import Transformer
from mull.progress import Mode, Progress
from mull.recipes.dpo import measured
from mull.recipes.epochs import in_epochs, until
from mull.recipes.rollouts import refuse_impossible
from mull.recipes.search_data import searched, tools_of
from mull.recipes.sft import spent
from mull.runfolder import RunFolder
from mull.search.named import named
from mull.search.sample import ON_POLICY, sample
from mull.search.sources import Source
from mull.tasks.base import Checked
from mull.tasks.load import load_task
from mull.types import Cost, Question, Sample, Trace


@dataclass(frozen=True)
class DistillConfig:
    teacher: str = "nano"  # a Hugging Face folder, or nano
    student: str = ""  # a folder to start from; empty: a fresh one
    layers: int = 0  # of a fresh student; 0: as many as the teacher's
    width: int = 0  # of a fresh student; 0: half the teacher's, or the teacher's own with init=layers
    init: Literal["random", "layers"] = "random"  # a fresh student's weights: random, or layers of the teacher
    most_share: float = 1 / 3  # of the teacher's parameters, that a student may have
    out: Path = Path("runs/distill")
    tasks: tuple[str, ...] = ("chain",)
    levels: tuple[int, ...] = (1, 2)
    method: Literal["off", "on"] = "off"
    keep: Keep = "shortest"  # of the teacher's chains (off)
    wishes: Literal["none", "tokens", "words"] = (
        "none"  # prompts ask for the length that a chain turned out to have (off)
    )
    longest: int = 0  # tokens that the word high stands for (words); 0: think_tokens + answer_tokens
    strategy: str = "sample"  # that the teacher's chains are made with: see search/named.py (off)
    scorer: str = ""  # for strategies that need one (off)
    traces: Path | None = None  # a folder of the teacher's traces, filled if it is empty; none: OUT/search (off)
    trace_seed: int = 0  # of the questions and the chains (off)
    problems: int = 2048  # questions to the teacher (off)
    samples: int = 8  # the strategy's N: chains for each question (off)
    epochs: int = 8  # over the chains (off)
    trained_tokens: int = 0  # stop within them once so many were learnt from, prompts included; 0: do not (off)
    step_tokens: int = 8192  # tokens of one optimiser step (off)
    form: Literal["exact", "sampled"] = "exact"  # of the gradient: see learn/distill (on)
    direction: Direction = "reverse"  # of the exact KL (on)
    steps: int = 100  # optimiser steps (on)
    groups: int = 64  # questions of a step (on)
    group_size: int = 2  # the student's chains for each (on)
    think_tokens: int = 256
    answer_tokens: int = 32
    micro_tokens: int = 4096  # tokens of one forward and backward pass, padding included
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon learns about twice as fast from fresh weights
    lr: float = 1e-3
    warmup: int = 10
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    eval_every: int = 0  # steps between evaluations besides the first and the last; 0: none
    eval_problems: int = 256  # held out; 0: no evaluation at all
    eval_samples: int = 2
    checkpoint_every: int = 50
    compile: bool = False
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products; the weights stay float32
    seed: int = 0  # of fresh weights, the order of learning, the student's chains, and the evaluation
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        if min(self.problems, self.samples, self.epochs, self.steps, self.groups, self.group_size) < 1:
            raise UserError("problems, samples, epochs, steps, groups and group_size must be 1 or more")
        if self.trained_tokens < 0:
            raise UserError("trained_tokens must not be negative: 0 learns all epochs to their end")
        if self.student and (self.layers or self.width or self.init != "random"):
            raise UserError(
                f"the student {self.student} has its own size and weights: leave out layers, width and init"
            )
        if self.init == "layers" and (self.width or not self.layers):
            raise UserError("init=layers takes layers of the teacher as they are: say how many by layers, and no width")
        if self.longest < 0:
            raise UserError("longest must not be negative: it is a number of tokens, or 0 for all a chain may have")
        configs.refuse_unread(self, "wishes", {"longest": ("words",)})
        off = ("keep", "wishes", "strategy", "scorer", "traces", "trace_seed", "problems", "samples")
        off += ("epochs", "trained_tokens", "step_tokens")
        on = ("form", "direction", "steps", "groups", "group_size")
        configs.refuse_unread(self, "method", {**dict.fromkeys(off, ("off",)), **dict.fromkeys(on, ("on",))})
        if self.form == "sampled" and self.direction == "forward":
            raise UserError("the sampled form is of the reverse KL: use form=exact for the forward one")


# ------------------------------------------------------------------------------------------------ the loop


def distill(cfg: DistillConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Trains; returns the student's folder. Resuming continues bitwise identically on CPU."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    tasks = [load_task(name) for name in cfg.tasks]
    held = held_out(tasks, cfg.levels, cfg.eval_problems, "test", cfg.seed) if cfg.eval_problems else []
    above = model_folder(cfg.teacher)
    source = model_folder(cfg.student) if cfg.student else above
    teacher = hf.load(above, device=cfg.device).requires_grad_(False)
    student = hf.load(source, device=cfg.device) if cfg.student else fresh(cfg, teacher)
    chat = Chat.load(source)
    refuse_other_tokens(Chat.load(above), chat, (teacher.config.vocab_size, student.config.vocab_size))
    share = parameters(student) / parameters(teacher)
    if share > cfg.most_share + 1e-9:
        raise UserError(
            f"the student has {share:.0%} of the teacher's parameters, and at most {cfg.most_share:.0%} are wanted: "
            "give fewer layers or a smaller width, or raise most_share"
        )
    context = min(teacher.config.max_positions, student.config.max_positions)
    refuse_impossible(cfg, tasks, chat, context)
    make = optim.muon if cfg.optimizer == "muon" else optim.adamw
    optimizers = make(student, cfg.lr, cfg.weight_decay)
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    ledger = Ledger()
    step = 0

    with RunFolder.create(
        cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("threads", "checkpoint_every")
    ) as run:
        about = {"parameters": parameters(student), "share": share}
        todo: list[Sample] = []
        plan: list[list[int]] = [[] for _ in range(cfg.steps)]
        if cfg.method == "off":
            most = min(context, cfg.micro_tokens // 8 * 8 + 1)  # rows are padded to 8, and the last token is no input
            todo, found = prepared(cfg, tasks, chat, most, ledger, mode)
            sizes = [len(s.tokens) for s in todo]
            plan = until(in_epochs(sizes, cfg.epochs, cfg.step_tokens, cfg.seed), sizes, cfg.trained_tokens)
            about |= {"lessons": found, "search_flops": ledger.phases["search"].flops}
        if latest := run.latest():
            step, state = latest
            student.load_state_dict(state["model"])
            for one, saved in zip(optimizers, state["optimizers"], strict=True):
                one.load_state_dict(saved)
            ledger = Ledger.restore(state["ledger"])
        run.truncate_metrics(step if latest else -1)
        if step == 0:
            if held:
                about |= {"teacher": measured(cfg, held, teacher, chat, ledger)}
                about |= {"eval": measured(cfg, held, student, chat, ledger)}
            run.log(0, {**about, **spent(ledger)})
        engine = LocalEngine(student, chat)
        told = compile_layers(student) if cfg.compile else "training runs eagerly (compile = false)"
        with Progress(f"distilling {cfg.method}-policy", len(plan), start=step, mode=mode) as progress:
            progress.say(told)
            while step < len(plan):
                began = time.perf_counter()
                seen: dict[str, Any] = {}
                if cfg.method == "on":
                    engine.restore_version(step)  # and an empty prefix cache, as a resumed run has it
                    traces = asyncio.run(collect(cfg, tasks, engine, chat, step))
                    seconds = time.perf_counter() - began
                    ledger.charge("rollouts", sum((t.cost for t in traces), Cost()) + Cost(seconds=seconds))
                    chosen = from_rollouts(traces, [0.0] * sum(len(t.leaves) for t in traces))
                    seen = described(traces)
                    began = time.perf_counter()
                else:
                    chosen = [todo[i] for i in plan[step]]
                learnt = learn(cfg, student, teacher, chosen)
                lr = optim.cosine(step, peak=cfg.lr, total=len(plan), warmup=cfg.warmup)
                update = optim.step(student, optimizers, lr, cfg.max_grad_norm)
                step += 1
                seconds = time.perf_counter() - began
                lengths = [len(s.tokens) for s in chosen]
                flops = train_flops(student.config, lengths)
                if cfg.method == "on":  # the teacher's forward pass
                    flops += train_flops(teacher.config, lengths) / 3
                ledger.charge("training", Cost(trained_tokens=sum(lengths), flops=flops, seconds=seconds))
                metrics: dict[str, Any] = {
                    **seen,
                    **learnt,
                    "lr": lr,
                    "grad_norm": update.grad_norm,
                    "skipped_updates": int(update.skipped),
                    "tokens_per_second": sum(lengths) / seconds,
                    "rollout_flops": ledger.phases.get("rollouts", Cost()).flops,
                    **spent(ledger),
                }
                if held and (step == len(plan) or (cfg.eval_every and step % cfg.eval_every == 0)):
                    metrics["eval"] = measured(cfg, held, student, chat, ledger)
                run.log(step, metrics)
                progress.update(step, **{k: v for k, v in metrics.items() if not isinstance(v, dict)})
                if step % cfg.checkpoint_every == 0 or step == len(plan):
                    state = {
                        "model": student.state_dict(),
                        "optimizers": [one.state_dict() for one in optimizers],
                        "ledger": ledger.state(),
                    }
                    run.save_checkpoint(step, state, lambda folder: hf.save(student, folder / "hf", source))
        hf.save(student, cfg.out / "model", source=source)
    return cfg.out / "model"


def fresh(cfg: DistillConfig, teacher: Transformer) -> Transformer:
    c = teacher.config
    if cfg.init == "layers":
        return of_layers(teacher, cfg.layers)
    shape = smaller(c, cfg.layers or c.num_layers, cfg.width or c.hidden_size // 2)
    return hf.init(shape, cfg.seed, teacher.dtype, teacher.device)


# ------------------------------------------------------------------------------------------------ off-policy


def prepared(
    cfg: DistillConfig, tasks: list, chat: Chat, most: int, ledger: Ledger, mode: Mode
) -> tuple[list[Sample], dict[str, Any]]:
    """The teacher's chains to imitate, and what they are worth; what they cost is charged to the ledger.

    A chain of more than `most` tokens, which the student could not hold, is left out whole and counted: cut, it would
    teach to stop in the midst of a thought, or never.
    """
    questions = held_out(tasks, cfg.levels, cfg.problems, "train", cfg.trace_seed)
    keys = ("teacher", "tasks", "levels", "strategy", "scorer", "problems", "samples", "think_tokens", "answer_tokens")
    settings = {key: getattr(cfg, key) for key in (*keys, "trace_seed")}
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.samples)
    tools = tools_of(Source(cfg.teacher, scorer=cfg.scorer, device=cfg.device))
    with Progress("the teacher's chains", len(questions), mode=mode) as progress:
        done = searched(
            cfg.traces or cfg.out / "search", settings, questions, tools, named(cfg.strategy), budget, ON_POLICY,
            cfg.trace_seed, progress.update,
        )  # fmt: skip
    ledger.charge("search", done.cost)
    samples = verified(done.traces, cfg.keep, None if cfg.wishes == "none" else partial(asking, cfg, chat))
    fitting = [s for s in samples if len(s.tokens) <= most]
    found = {
        "chains": len(fitting),
        "too_long": len(samples) - len(fitting),
        "questions": len(questions),
        "solved": len({s.group for s in samples}) if cfg.keep != "all" else None,
        "teacher_accuracy": done.accuracy.as_dict(),  # on the questions of the train split
        "tokens": sum(len(s.tokens) for s in fitting) / max(len(fitting), 1),
    }
    if not fitting:
        raise UserError(
            f"none of the teacher's chains on {len(questions)} questions can be imitated ({len(samples)} kept, all "
            f"longer than {most} tokens): give easier levels, more samples, or more micro_tokens"
            if samples
            else f"the teacher {cfg.teacher} solved none of {len(questions)} questions: give easier levels, or more "
            "samples"
        )
    return fitting, found


def asking(cfg: DistillConfig, chat: Chat, question: Question, tokens: int) -> list[int]:
    """The prompt that asks for so many tokens, or for the word that stands for them."""
    longest = cfg.longest or cfg.think_tokens + cfg.answer_tokens
    wish: Effort = word_of(tokens, longest) if cfg.wishes == "words" else tokens
    return chat.prompt(ask(question, wish).asked)


# ------------------------------------------------------------------------------------------------ on-policy


async def collect(cfg: DistillConfig, tasks: Sequence[Checked], sampler: Sampler, chat: Chat, step: int) -> list[Trace]:
    """The student's graded chains of one step. Question i of a step is a function of (seed, step, i).

    Grades teach nothing here: they are there to be looked at.
    """
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.group_size)

    async def one(i: int) -> Trace:
        rng = random.Random(derive_seed(cfg.seed, step, i))
        task = rng.choice(tasks)
        level = rng.choice([level for level in cfg.levels if level in task.levels])
        problem = next(task.stream(level, "train", rng.getrandbits(62)))
        own = copy.copy(budget)
        return grade(task, problem, await sample(problem.question, sampler, chat, own, seed=rng.getrandbits(62)))

    return await together(one(i) for i in range(cfg.groups))


def described(traces: Sequence[Trace]) -> dict[str, Any]:
    rewards = [v.reward for trace in traces for v in trace.verdicts if v.reward is not None]
    cut = truncated(traces)
    sampled = sum(len(trace.spans[leaf].tokens) for trace in traces for leaf in trace.leaves)
    return {
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "length": sampled / len(cut),
        "truncated": sum(cut) / len(cut),
    }


# ------------------------------------------------------------------------------------------------ learning


def learn(cfg: DistillConfig, student: Transformer, teacher: Transformer, chosen: Sequence[Sample]) -> dict[str, float]:
    """Forward and backward over one step's samples, in micro-batches. `kl`: nats per token, exact, or estimated from
    the sampled tokens."""
    seen: list[dict[str, torch.Tensor]] = []
    kl = tokens = 0.0
    for batch in pack(chosen, cfg.micro_tokens):
        batch = to_device(batch, cfg.device)
        with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
            if cfg.method == "on" and cfg.form == "exact":
                loss, found = exact_loss(student, teacher, batch, cfg.direction)
                kl, tokens = kl + float(found["kl"]), tokens + float(found["tokens"])
            else:
                if cfg.method == "on":
                    batch = with_teacher(batch, teacher)
                    kl -= float(batch.advantages_BT.sum())
                    tokens += float(batch.mask_BT.sum())
                logprobs_BT, _ = batch_logprobs(student, batch)
                loss, micro = losses.loss(batch, logprobs_BT)
                seen.append(micro)
        loss.backward()
    if cfg.method == "off":
        return {"loss": losses.summarise(seen)["loss_ce"]}
    ratio = {"ratio": losses.summarise(seen)["ratio"]} if seen else {}
    return {"kl": kl / max(tokens, 1.0), **ratio}
