"""Learning to correct oneself by reinforcement learning over two turns: SCoRe (arXiv 2409.12917). The loop is
`correct()`.

One step: for each of several questions sample a group of chains of two attempts (the second asked for by a fixed
instruction, the same whether the first was right or wrong), grade both, and take one optimiser step on the tokens that
the model itself sampled. Until `stage1_steps` the second attempt alone is paid and the first is held where it was by a
KL; then both are, with a bonus for getting better. What each turn earns is in `learn/correct.py`.

    method="score"      the above; stage1_steps=0 leaves out stage I, alpha=0 the bonus
    method="first"      plain RL on single attempts, evaluated on two: the paper's "without multi-turn training"
    method="pair_sft"   cross-entropy on right attempts put behind wrong ones, both sampled from the starting model
    method="star"       cross-entropy on the model's own second attempts that mended a wrong first one

Departures: the defaults hold the first attempt more firmly in stage I than the paper's (beta2=0.1, credit="sum"), and
stage I is two thirds of the steps (docs/methods/correct.md says why); every group is learnt from, those with equal
rewards too, for the KL holds there as well; one learning rate and one reference (the starting model) for both stages;
STaR filters and learns in every step, not in a few large rounds.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mull import config as configs
from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import UserError
from mull.evals.correction import correction
from mull.evals.evaluate import Evaluation, evaluate, held_out, thought_tokens
from mull.evals.grade import grade
from mull.files import plain, write_whole
from mull.learn import correct as turns
from mull.learn import losses, optim, samples, shaping
from mull.learn.advantages import mean_centred
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack, to_device
from mull.ledger import Budget, Ledger
from mull.machine import describe as machine
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.models.flops import train_flops
from mull.models.nano import model_folder
from mull.models.transformer import Transformer
from mull.progress import Mode, Progress
from mull.recipes.rollouts import levels_of, totals
from mull.runfolder import RunFolder
from mull.search.sample import Decoding, sample
from mull.search.turns import INSTRUCTION, attempts, bridge, two_turns
from mull.tasks.base import Checked
from mull.tasks.load import load_task
from mull.types import Cost, Sample, Trace


@dataclass(frozen=True)
class CorrectConfig:
    model: str = "nano"  # a Hugging Face folder, or nano for the one that ships
    out: Path = Path("runs/correct")
    tasks: tuple[str, ...] = ("chain",)
    levels: tuple[int, ...] = (1, 2)
    method: Literal["score", "first", "pair_sft", "star"] = "score"
    steps: int = 150  # both stages
    stage1_steps: int = 100  # of them, in stage I (score); 0: no stage I
    alpha: float = 10.0  # of the bonus for a better second attempt, in stage II; 0: none
    beta1: float = 0.01  # weight of the KL to the starting model, on all that is sampled
    beta2: float = 1.0  # in stage I and on the first attempt, added to beta1
    credit: Literal["own", "sum", "shaped"] = "own"  # what the first attempt's tokens earn: see learn/correct.py
    baseline: Literal["group", "attempt"] = "attempt"  # of the second attempt's tokens
    instruction: str = INSTRUCTION  # what asks for the second attempt
    groups: int = 16  # questions of one step
    group_size: int = 16  # chains for each of them
    think_tokens: int = 256  # of each attempt
    answer_tokens: int = 32
    temperature: float = 1.0
    lr: float = 3e-4
    warmup: int = 5
    max_grad_norm: float = 1.0
    eval_every: int = 20  # steps between evaluations besides the first and the last; 0: none
    eval_problems: int = 256  # held out; 0: no evaluation at all
    eval_samples: int = 2
    checkpoint_every: int = 10
    micro_tokens: int = 4096  # tokens of one forward and backward pass, padding included
    max_sequences: int = 512  # that the engine decodes at once
    compile: bool = True
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products in training; weights and sampling are float32
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise UserError("group_size must be at least 2: a group's mean is the baseline of its members")
        if min(self.alpha, self.beta1, self.beta2, self.stage1_steps) < 0:
            raise UserError("alpha, beta1, beta2 and stage1_steps must not be negative")
        if self.method == "score" and self.stage1_steps > self.steps:
            raise UserError(
                f"stage1_steps={self.stage1_steps} is more than steps={self.steps}, and stage II would never come: "
                "set it lower, or equal for stage I alone"
            )
        score = dict.fromkeys(("stage1_steps", "alpha", "beta2", "credit", "baseline"), ("score",))
        configs.refuse_unread(self, "method", {**score, "beta1": ("score", "first")})
        if not self.instruction.strip():
            raise UserError("the instruction is empty: say what asks for the second attempt")

    def stage(self, step: int) -> turns.Stage:
        return 1 if self.method == "score" and step < self.stage1_steps else 2

    def kl(self, step: int) -> turns.Pair:
        """The KL's weights on the tokens of the first and of the second attempt."""
        if self.method in ("pair_sft", "star"):
            return 0.0, 0.0
        return turns.kl_weights(self.stage(step), self.beta1, self.beta2)

    @property
    def budget(self) -> Budget:
        return Budget(think_tokens=self.think_tokens, answer_tokens=self.answer_tokens, samples=self.group_size)


# ------------------------------------------------------------------------------------------------ rollouts


async def collect(
    cfg: CorrectConfig, tasks: Sequence[Checked], sampler: Sampler, chat: Chat, step: int
) -> list[tuple[Trace, list[float | None]]]:
    """One step's graded groups, with a reward per leaf. Question i of a step is a function of (seed, step, i)."""
    decoding = Decoding(cfg.temperature)
    once = cfg.method in ("first", "pair_sft")
    strategy = sample if once else functools.partial(two_turns, instruction=cfg.instruction)

    async def one(i: int) -> tuple[Trace, list[float | None]]:
        rng = random.Random(derive_seed(cfg.seed, step, i))
        task = rng.choice(tasks)
        level = rng.choice([level for level in cfg.levels if level in task.levels])
        problem = next(task.stream(level, "train", rng.getrandbits(62)))
        trace = await strategy(problem.question, sampler, chat, copy.copy(cfg.budget), decoding, rng.getrandbits(62))
        grade(task, problem, trace)
        return trace, list(shaping.zero_truncated(samples.rewards([trace]), samples.truncated([trace])))

    return await together(one(i) for i in range(cfg.groups))


def to_samples(
    cfg: CorrectConfig, chat: Chat, step: int, rollouts: Sequence[tuple[Trace, list[float | None]]]
) -> list[Sample]:
    """What the step learns from: a function of the method and the stage."""
    out: list[Sample] = []
    for group, (trace, rewards) in enumerate(rollouts):
        match cfg.method:
            case "score":
                first, second = attempts(rewards)
                options = (cfg.stage(step), cfg.alpha, cfg.credit, cfg.baseline)
                out += turns.to_samples(trace, turns.turn_advantages(first, second, *options), group)
            case "first":
                out += samples.from_rollouts([trace], mean_centred(rewards), group)
            case "star":
                out += turns.corrections(trace, rewards, group)
            case "pair_sft":
                ended = [trace.spans[leaf].tokens[-1] in chat.end_ids for leaf in trace.leaves]
                between = bridge(chat, cfg.instruction)
                out += turns.pairs(trace, rewards, [between if e else [chat.turn_end, *between] for e in ended], group)
    return out


def learn(
    cfg: CorrectConfig,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    reference: Transformer | None,
    todo: Sequence[Sample],
    step: int,
) -> dict[str, float]:
    """One optimiser step; returns the diagnostics."""
    weights = cfg.kl(step)
    seen: list[losses.Diagnostics] = []
    for batch in pack(todo, cfg.micro_tokens):
        batch = to_device(batch, cfg.device)
        with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
            if any(weights):
                assert reference is not None
                with torch.no_grad():
                    batch.ref_logprobs_BT, _ = batch_logprobs(reference, batch)
            logprobs_BT, entropy_BT = batch_logprobs(model, batch)
        kl = functools.partial(turns.turn_kl, weights=weights)
        loss, micro = losses.loss(batch, logprobs_BT, kl_weight=float(any(weights)), kl=kl, entropy_BT=entropy_BT)
        loss.backward()
        seen.append(micro)
    lr = optim.constant(step, peak=cfg.lr, warmup=cfg.warmup)
    update = optim.step(model, optimizer, lr, cfg.max_grad_norm)
    return {
        **losses.summarise(seen),
        "grad_norm": update.grad_norm,
        "skipped_updates": float(update.skipped),
        "lr": lr,
    }


# ---------------------------------------------------------------------------------------------- measuring


def paired_verdicts(evaluation: Evaluation) -> list[list[tuple]]:
    """(first verdict, second verdict) of every chain of every problem."""
    return [list(zip(*attempts(trace.verdicts), strict=True)) for trace in evaluation.traces]


def measured(cfg: CorrectConfig, held: list, sampler: Sampler, chat: Chat, ledger: Ledger) -> dict[str, Any]:
    """Both attempts on the held-out problems, over all and by task."""
    started = time.perf_counter()
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.eval_samples)
    strategy = functools.partial(two_turns, instruction=cfg.instruction)
    evaluation = asyncio.run(evaluate(held, sampler, chat, budget, strategy, seed=cfg.seed))
    ledger.charge("evaluation", evaluation.cost + Cost(seconds=time.perf_counter() - started))
    names = dict.fromkeys(h.task.name for h in held)
    return {
        "all": correction(paired_verdicts(evaluation)).as_dict(),
        "tasks": {name: correction(paired_verdicts(evaluation.of(name))).as_dict() for name in names},
    }


def describe(
    cfg: CorrectConfig, chat: Chat, rollouts: Sequence[tuple[Trace, list[float | None]]], learnt: int
) -> dict[str, Any]:
    """What the sampled chains were like."""
    traces = [trace for trace, _ in rollouts]
    lengths = [len(trace.spans[leaf].tokens) for trace in traces for leaf in trace.leaves]
    cut = samples.truncated(traces)
    out: dict[str, Any] = {
        "length": sum(lengths) / len(lengths),
        "truncated": sum(cut) / len(cut),
        "samples": learnt,
    }
    rewards = [r for _, of in rollouts for r in of]
    judged = [r for r in rewards if r is not None]
    out["unscorable"] = len(rewards) - len(judged)
    out["reward"] = sum(judged) / len(judged) if judged else None
    if cfg.method in ("score", "star"):
        seen = correction([list(zip(*attempts(trace.verdicts), strict=True)) for trace in traces])
        names = ("first", "second", "mended", "spoiled", "changed")
        out |= {name: getattr(seen, name).mean for name in names}
        out["reward"] = seen.second.mean
    return out


# ------------------------------------------------------------------------------------------------ the loop

SHOWN = ("reward", "first", "second", "mended", "spoiled", "length", "entropy", "grad_norm")


def refuse_impossible(cfg: CorrectConfig, tasks: Sequence[Checked], chat: Chat, context: int) -> None:
    """UserError before anything is written: no thought tags, no such levels, two attempts that do not fit."""
    assert chat.think_open and chat.think_close  # or UserError
    between = len(bridge(chat, cfg.instruction)) + 1
    for task in tasks:
        for level in levels_of(task, cfg.levels):
            prompt = len(chat.prompt(next(task.stream(level, "train", cfg.seed)).question.text))
            needed = prompt + 2 * (cfg.think_tokens + cfg.answer_tokens) + between
            if needed > context:
                raise UserError(
                    f"two attempts at {task.name} level {level} take up to {needed} tokens and the model's context is "
                    f"{context}: lower think_tokens or answer_tokens, which each attempt has, or shorten the "
                    "instruction"
                )


def correct(cfg: CorrectConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Trains; returns the folder of the trained model. OUT/report.json compares both attempts before and after.

    Resuming continues bitwise identically on CPU with the same number of threads.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    tasks = [load_task(name) for name in cfg.tasks]
    held = held_out(tasks, cfg.levels, cfg.eval_problems, "test", cfg.seed) if cfg.eval_problems else []
    source = model_folder(cfg.model)
    chat = Chat.load(source)
    model = hf.load(source, device=cfg.device)
    refuse_impossible(cfg, tasks, chat, model.config.max_positions)
    start = copy.deepcopy(model).requires_grad_(False)
    optimizer = optim.adamw(model, cfg.lr)
    ledger = Ledger()
    step = 0

    with RunFolder.create(
        cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("steps", "threads", "eval_every")
    ) as run:
        if latest := run.latest():
            step, state = latest
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            ledger = Ledger.restore(state["ledger"])
        run.truncate_metrics(step if latest else -1)
        engine = LocalEngine(model, chat, cfg.max_sequences)
        # Pair-SFT's attempts are the starting model's, whatever the model has become.
        sampler = LocalEngine(start, chat, cfg.max_sequences) if cfg.method == "pair_sft" else engine
        compiled = compile_layers(model) if cfg.compile else "training runs eagerly (compile = false)"

        with Progress(f"{cfg.method} on {', '.join(cfg.tasks)}", cfg.steps, start=step, mode=mode) as progress:
            progress.say(compiled)
            if held and step == 0:
                run.log(0, {"eval": measured(cfg, held, engine, chat, ledger), **totals(ledger)})
            while step < cfg.steps:
                started = time.perf_counter()
                engine.restore_version(step)  # and an empty prefix cache, as a resumed run has it
                sampler.forget()
                rollouts = asyncio.run(collect(cfg, tasks, sampler, chat, step))
                sampled = time.perf_counter()
                todo = to_samples(cfg, chat, step, rollouts)
                diagnostics = learn(cfg, model, optimizer, start, todo, step)
                trained = time.perf_counter()

                cost = sum((trace.cost for trace, _ in rollouts), Cost())
                ledger.charge("rollouts", cost + Cost(seconds=sampled - started))
                lengths = [len(s.tokens) for s in todo]
                flops = train_flops(model.config, lengths) * (4 / 3 if any(cfg.kl(step)) else 1)  # the reference's pass
                ledger.charge("training", Cost(trained_tokens=sum(lengths), flops=flops, seconds=trained - sampled))
                metrics: dict[str, Any] = {
                    "stage": cfg.stage(step),
                    **describe(cfg, chat, rollouts, len(todo)),
                    **diagnostics,
                    **totals(ledger),
                    "rollout_seconds": sampled - started,
                    "train_seconds": trained - sampled,
                }
                step += 1
                if held and (step == cfg.steps or (cfg.eval_every and step % cfg.eval_every == 0)):
                    metrics["eval"] = measured(cfg, held, engine, chat, ledger)
                run.log(step, metrics)
                progress.update(step, **{key: metrics.get(key) for key in SHOWN})
                shown, _ = rollouts[step % len(rollouts)]
                run.add_traces(step, [row(shown, chat)])
                if step % cfg.checkpoint_every == 0 or step == cfg.steps:
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "ledger": ledger.state(),
                    }
                    run.save_checkpoint(step, state, lambda f: hf.save(model, f / "hf", source))
        hf.save(model, cfg.out / "model", source=source)
        write_whole(cfg.out / "report.json", report(run, ledger, command).encode())
    return cfg.out / "model"


def row(trace: Trace, chat: Chat) -> dict[str, Any]:
    """One group as a line of the run's trace file: each chain whole, and what its attempts were worth."""
    last = trace.leaves[1::2] if trace.strategy == "two_turns" else trace.leaves
    return {
        "question": trace.question.id,
        "text": trace.question.text,
        "chains": [chat.decode(thought_tokens(trace, leaf)) for leaf in last],
        "correct": [verdict.correct for verdict in trace.verdicts],
    }


def report(run: RunFolder, ledger: Ledger, command: str) -> str:
    """Both attempts at the start and after every evaluation, what it cost, and how to do it again."""
    evaluations = [{"step": line["step"], **line["eval"]} for line in run.metrics() if "eval" in line]
    return json.dumps(
        plain({"command": command, "evaluations": evaluations, "cost": ledger.state(), **machine()}), indent=1
    )
