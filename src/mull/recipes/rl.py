"""Reinforcement learning on the model's own chains of thought. The loop is `rl()`; everything it calls is a function.

One step: sample a group of chains for each of several questions, grade the answers exactly, turn rewards into
advantages, and take one optimiser step (or `minibatches` of them) on the tokens that the model itself sampled.

Default: advantages are rewards minus their group's mean, without a division by the standard deviation (Dr.GRPO); the
loss is averaged over all tokens of the step (DAPO); the sampler's own log-probabilities anchor the importance ratio,
which is truncated (TIS); groups whose rewards are all equal teach nothing, are dropped and replaced.

Where this departs from papers: a step keeps *every* mixed group that it sampled, so its size varies a little around
`groups`; how many questions to ask in the first round follows from how many groups were mixed lately.
"""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mull import config as configs
from mull.chat import Chat
from mull.chat.effort import Effort, ask
from mull.engine import native
from mull.engine.local import LocalEngine
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import UserError
from mull.evals.collapse import CollapseDetector, scan
from mull.evals.evaluate import held_out, thought_tokens
from mull.evals.grade import grade
from mull.learn import advantages, length, losses, optim, samples, shaping
from mull.learn.advantages import Rewards, constant
from mull.learn.algorithms import Algorithm, Method, method
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack, to_device
from mull.ledger import Budget, Ledger
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.models.flops import train_flops
from mull.models.nano import model_folder
from mull.models.transformer import Transformer
from mull.progress import Mode, Progress
from mull.recipes.rollouts import (
    Rollouts,
    describe,
    is_done,
    is_evaluated,
    refuse_impossible,
    report_eval,
    totals,
    trace_row,
)
from mull.runfolder import RunFolder
from mull.search.sample import Decoding, sample
from mull.tasks.base import Checked
from mull.tasks.load import load_task
from mull.types import Cost, Sample, Trace


@dataclass(frozen=True)
class RLConfig:
    model: str = "nano"  # a Hugging Face folder, or nano for the one that ships
    out: Path = Path("runs/rl")
    tasks: tuple[str, ...] = ("chain", "countdown")
    levels: tuple[int, ...] = (1, 2)
    steps: int = 100
    trained_tokens: int = 0  # stop before `steps` once so many tokens were learnt from, prompts included; 0: do not
    sampled_tokens: int = 0  # stop before `steps` once so many tokens were sampled for training; 0: do not
    flops: float = 0.0  # stop before `steps` once rollouts and training have cost so many; 0: do not
    groups: int = 24  # questions with mixed rewards to learn from in one step
    group_size: int = 16  # chains for each question
    think_tokens: int = 256
    answer_tokens: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    algorithm: Algorithm = "mull"
    truncated: Literal["zero", "leave_out", "mask", "keep"] = "zero"  # chains that ran out of tokens: see learn/shaping
    overlong_buffer: int = 0  # DAPO's soft penalty over the last so many tokens; 0: none
    length: Literal["none", "lcpo_exact", "lcpo_max", "kimi", "cosine"] = "none"  # by chains' lengths: see learn/length
    wanted: tuple[int, int] = (16, 128)  # prompts ask for a number of tokens drawn between these (lcpo)
    effort_words: bool = False  # they ask by the words low, medium and high instead, shares of the second (lcpo)
    length_alpha: float = 0.005  # reward that a token too many (or too few) costs (lcpo)
    length_weight: float = 1.0  # of the length's share in the reward (kimi)
    length_paper: bool = False  # the reward of a wrong chain depends on its length, too, as in the papers
    ratio_cap: float = 2.0  # of the truncated importance ratio (mull, rloo) and of cispo
    clip_low: float = 0.2
    clip_high: float | None = None  # none: 0.28 for dapo (clip-higher), 0.2 for the others
    kl: float = 0.0  # weight of the KL to the starting model
    minibatches: int = 1  # optimiser steps on one step's chains
    lr: float = 3e-4
    warmup: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    random_reward: bool = False  # the control: rewards are coin flips, and nothing may improve
    eval_every: int = 0  # steps between evaluations on held-out problems (and after 1, 2, 4, 8 …); 0: none
    eval_problems: int = 256
    eval_samples: int = 2
    eval_seed: int | None = None  # of the choice of these problems, to be shared by runs of several seeds; none: seed
    checkpoint_every: int = 10
    micro_tokens: int = 4096  # tokens of one forward and backward pass, padding included
    max_sequences: int = 512  # that the engine decodes at once
    memory_gib: float = 0.0  # for keys and values; 0: the engine's default
    compile: bool = True
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = (
        "float32"  # of the matrix products in training; weights and sampling are float32
    )
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise UserError("group_size must be at least 2: a group's mean is the baseline of its members")
        self.refuse_unread()
        if self.overlong_buffer >= self.think_tokens + self.answer_tokens:
            raise UserError("overlong_buffer must be smaller than think_tokens + answer_tokens")
        if self.asks_for_length and not (0 < self.wanted[0] <= self.wanted[1] and self.length_alpha > 0):
            raise UserError(
                f"{self.length} needs wanted=[low, high] with 0 < low <= high and a length_alpha above 0, not "
                f"{list(self.wanted)} and {self.length_alpha}"
            )
        if self.asks_for_length and self.wanted[1] > self.think_tokens + self.answer_tokens:
            raise UserError(
                f"wanted={list(self.wanted)} asks for more tokens than a chain may have, think_tokens + answer_tokens ="
                f" {self.think_tokens + self.answer_tokens}: lower it, or raise these"
            )

    @property
    def asks_for_length(self) -> bool:
        return self.length.startswith("lcpo")

    def refuse_unread(self) -> None:
        """UserError for settings that the algorithm, or the way of paying for lengths, does not read."""
        asked = ("lcpo_exact", "lcpo_max")
        configs.refuse_unread(
            self,
            "length",
            {
                **dict.fromkeys(("wanted", "length_alpha", "effort_words"), asked),
                "length_weight": ("kimi",),
                "length_paper": ("lcpo_exact", "kimi", "cosine"),
            },
        )
        clipped = ("grpo", "dr_grpo", "reinforce_pp", "dapo")
        readers = {"ratio_cap": ("mull", "rloo", "cispo"), "clip_low": clipped, "clip_high": clipped}
        configs.refuse_unread(self, "algorithm", readers)

    @property
    def most_effort(self) -> Effort | None:
        """What evaluations ask for, where the model learns to be asked: as much as it was ever asked for."""
        return None if not self.asks_for_length else "high" if self.effort_words else self.wanted[1]

    @property
    def method(self) -> Method:
        longest = self.think_tokens + self.answer_tokens
        return method(self.algorithm, self.ratio_cap, self.clip_low, self.clip_high, longest)


# ------------------------------------------------------------------------------------------------ rewards


def judged(cfg: RLConfig, traces: Sequence[Trace], rng: random.Random) -> list[float | None]:
    """One group's rewards: the graders' (or the control's coin flips), after the truncation policy."""
    rewards = samples.rewards(traces)
    if cfg.random_reward:
        rewards = list(advantages.random_rewards(len(rewards), rng))
    cut = samples.truncated(traces)
    if cfg.truncated == "zero" and not cfg.random_reward:
        rewards = shaping.zero_truncated(rewards, cut)
    if cfg.truncated == "leave_out":
        rewards = shaping.leave_out_truncated(rewards, cut)
    return list(rewards)


def penalised(cfg: RLConfig, traces: Sequence[Trace], rewards: Rewards) -> list[float | None]:
    """The overlong penalty. It comes last: a chain cut at the limit is never better off than one that ended late, and
    a length reward, which asks who is right, is not answered by a penalty."""
    if cfg.overlong_buffer:
        limit = cfg.think_tokens + cfg.answer_tokens
        lengths = [len(thought_tokens(t, leaf)) for t in traces for leaf in t.leaves]
        penalties = [shaping.overlong_penalty(n, limit, cfg.overlong_buffer) for n in lengths]
        rewards = shaping.with_penalty(rewards, penalties)
    return list(rewards)


def shaped_rewards(cfg: RLConfig, traces: Sequence[Trace], rng: random.Random) -> list[float | None]:
    """Both, for those who have no length reward between them."""
    return penalised(cfg, traces, judged(cfg, traces, rng))


def shaped_by_length(cfg: RLConfig, trace: Trace, rewards: list[float | None], wanted: int) -> list[float | None]:
    if cfg.length == "none":
        return rewards
    return length.shaped(
        rewards,
        [len(thought_tokens(trace, leaf)) for leaf in trace.leaves],
        cfg.length,
        wanted=wanted,
        limit=cfg.think_tokens + cfg.answer_tokens,
        alpha=cfg.length_alpha,
        weight=cfg.length_weight,
        paper=cfg.length_paper,
    )


# ------------------------------------------------------------------------------------------------ rollouts


async def collect(
    cfg: RLConfig,
    tasks: Sequence[Checked],
    sampler: Sampler,
    chat: Chat,
    step: int,
    mixed_share: float,
    useless: Callable[[Rewards], bool] = constant,
) -> Rollouts:
    """Rounds of questions until `cfg.groups` groups that teach something are there (by default those with mixed
    rewards), or four times as many were asked.

    Question i of a step is a function of (seed, step, i), and a round is submitted whole, so that a resumed run asks
    and samples exactly what the interrupted one would have.
    """
    out = Rollouts([], traces=[])
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.group_size)
    decoding = Decoding(cfg.temperature, cfg.top_p, cfg.top_k)

    async def one(i: int) -> tuple[Trace, list[float | None]]:
        rng = random.Random(derive_seed(cfg.seed, step, i))
        task = rng.choice(tasks)
        level = rng.choice([level for level in cfg.levels if level in task.levels])
        problem = next(task.stream(level, "train", rng.getrandbits(62)))
        wish = length.draw_wanted(rng, *cfg.wanted, cfg.effort_words) if cfg.asks_for_length else None
        question = ask(problem.question, wish.effort if wish else None)
        trace = await sample(question, sampler, chat, copy.copy(budget), decoding, rng.getrandbits(62))
        rewards = judged(cfg, [grade(task, problem, trace)], rng)
        rewards = shaped_by_length(cfg, trace, rewards, wish.tokens if wish else 0)
        return trace, penalised(cfg, [trace], rewards)

    while len(out.groups) < cfg.groups and out.asked < 4 * cfg.groups:
        wanted = max(2, round((cfg.groups - len(out.groups)) / max(mixed_share, 0.25)))
        wanted = min(wanted, 4 * cfg.groups - out.asked)
        for trace, rewards in await together(one(out.asked + i) for i in range(wanted)):
            out.traces.append(trace)
            if useless(rewards):
                out.constant += 1
            else:
                out.groups.append((trace, rewards))
        out.asked += wanted
    return out


def to_samples(cfg: RLConfig, chosen: Method, rollouts: Rollouts) -> list[Sample]:
    """Advantages for every group, then samples. Groups stay whole: nothing is filtered after advantages."""
    by_group = chosen.advantages([rewards for _, rewards in rollouts.groups])
    out: list[Sample] = []
    for number, ((trace, _), values) in enumerate(zip(rollouts.groups, by_group, strict=True)):
        if cfg.truncated == "mask":
            values = shaping.mask_truncated(values, samples.truncated([trace]))
        out += samples.from_rollouts([trace], values, group=number)
    return out


# ------------------------------------------------------------------------------------------------ learning


def learn(
    cfg: RLConfig,
    chosen: Method,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    reference: Transformer | None,
    todo: Sequence[Sample],
    lr: float,
) -> dict[str, float]:
    """`cfg.minibatches` optimiser steps on the samples, in order of their groups; returns the diagnostics."""
    seen: list[losses.Diagnostics] = []
    norms: list[float] = []
    skipped = 0
    share = max(1, -(-len(todo) // cfg.minibatches))  # nothing to learn from makes no update, not an error
    for start in range(0, len(todo), share):
        for batch in pack(todo[start : start + share], cfg.micro_tokens):
            batch = to_device(batch, cfg.device)
            with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
                if reference is not None:
                    with torch.no_grad():
                        batch.ref_logprobs_BT, _ = batch_logprobs(reference, batch)
                logprobs_BT, entropy_BT = batch_logprobs(model, batch)
            loss, micro = losses.loss(
                batch,
                logprobs_BT,
                policy=chosen.policy,
                aggregate=chosen.aggregate,
                kl_weight=cfg.kl,
                entropy_BT=entropy_BT,
            )
            loss.backward()
            seen.append(micro)
        update = optim.step(model, optimizer, lr, cfg.max_grad_norm)
        norms.append(update.grad_norm)
        skipped += update.skipped
    return {**losses.summarise(seen), "grad_norm": sum(norms) / max(len(norms), 1), "skipped_updates": skipped}


# ------------------------------------------------------------------------------------------------ the loop

MAY_CHANGE = ("steps", "trained_tokens", "sampled_tokens", "flops", "threads", "eval_every")  # when a run is resumed
SHOWN = ("reward", "length", "truncated", "entropy", "grad_norm")  # in the terminal; metrics.jsonl has everything


def rl(cfg: RLConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Trains; returns the folder of the trained model.

    Resuming continues bitwise identically on CPU with the same number of threads.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    tasks = [load_task(name) for name in cfg.tasks]
    problems = cfg.seed if cfg.eval_seed is None else cfg.eval_seed
    held = held_out(tasks, cfg.levels, cfg.eval_problems, "test", problems) if cfg.eval_every else []
    source = model_folder(cfg.model)
    chat = Chat.load(source)
    model = hf.load(source, device=cfg.device)
    refuse_impossible(cfg, tasks, chat, model.config.max_positions, cfg.most_effort)
    reference = copy.deepcopy(model).requires_grad_(False) if cfg.kl else None
    chosen = cfg.method
    optimizer = optim.adamw(model, cfg.lr, cfg.weight_decay)
    ledger, detector = Ledger(), CollapseDetector()
    step, mixed_share = 0, 0.5

    with RunFolder.create(
        cfg.out,
        configs.to_toml(cfg),
        command,
        cfg.seed,
        resume,
        may_change=MAY_CHANGE,
    ) as run:
        if latest := run.latest():
            step, state = latest
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            ledger = Ledger.restore(state["ledger"])
            mixed_share = state["mixed_share"]
        run.truncate_metrics(step if latest else -1)  # what a run logged after its last checkpoint comes again
        scan(run.metrics(), detector)
        memory = int(cfg.memory_gib * 2**30) or None
        engine = LocalEngine(model, chat, cfg.max_sequences, memory)
        compiled = compile_layers(model) if cfg.compile else "training runs eagerly (compile = false)"

        title = f"{'random rewards' if cfg.random_reward else cfg.algorithm} on {', '.join(cfg.tasks)}"
        with Progress(title, cfg.steps, start=step, mode=mode) as progress:
            progress.say(f"{native.status()}; {compiled}")
            done = is_done(cfg, step, ledger)
            while not done:
                if cfg.eval_every and step == 0:
                    run.log(
                        0, {"eval": report_eval(cfg, held, engine, chat, ledger, cfg.most_effort), **totals(ledger)}
                    )
                started = time.perf_counter()
                engine.restore_version(step)  # and an empty prefix cache, as a resumed run has it
                rollouts = asyncio.run(collect(cfg, tasks, engine, chat, step, mixed_share, chosen.useless))
                sampled = time.perf_counter()
                todo = to_samples(cfg, chosen, rollouts)
                lr = optim.constant(step, peak=cfg.lr, warmup=cfg.warmup)
                diagnostics = learn(cfg, chosen, model, optimizer, reference, todo, lr)
                trained = time.perf_counter()

                step += 1
                mixed_share = 0.8 * mixed_share + 0.2 * len(rollouts.groups) / rollouts.asked
                cost = sum((t.cost for t in rollouts.traces), Cost())
                ledger.charge("rollouts", cost + Cost(seconds=sampled - started))
                lengths = [len(s.tokens) for s in todo]
                flops = train_flops(model.config, lengths) * (4 / 3 if cfg.kl else 1)  # the reference's forward pass
                ledger.charge("training", Cost(trained_tokens=sum(lengths), flops=flops, seconds=trained - sampled))
                metrics = {
                    **describe(rollouts, chat),
                    **diagnostics,
                    **totals(ledger),
                    "lr": lr,
                    "mixed_share": mixed_share,
                    "rollout_seconds": sampled - started,
                    "train_seconds": trained - sampled,
                    "sampled_tokens_per_second": cost.sampled_tokens / (sampled - started),
                    "tokens_per_second": cost.sampled_tokens / (trained - started),
                }
                done = is_done(cfg, step, ledger)
                if cfg.eval_every and (done or is_evaluated(step, cfg.eval_every)):
                    metrics["eval"] = report_eval(cfg, held, engine, chat, ledger, cfg.most_effort)
                run.log(step, metrics)
                if alarm := detector.update(
                    step, metrics["reward"], metrics.get("entropy"), metrics["length"], metrics["truncated"]
                ):
                    progress.say(f"{alarm} (the best checkpoint is kept)", important=True)
                if metrics["reward"] is None:
                    why = next((v.error for t in rollouts.traces for v in t.verdicts), "")
                    progress.say(f"no answer of step {step} could be judged: {why}", important=True)
                shown_metrics = {key: metrics.get(key) for key in SHOWN}
                progress.update(
                    step,
                    **shown_metrics,
                    unscorable=metrics["unscorable"] or None,
                    tokens_per_s=metrics["tokens_per_second"],
                )
                shown = rollouts.traces[step % len(rollouts.traces)]
                run.add_traces(step, [trace_row(shown, chat)])
                thought, answer, _ = chat.split(thought_tokens(shown, shown.leaves[0]))
                progress.sample(shown.question.text, thought, answer, shown.verdicts[0].correct)
                if step % cfg.checkpoint_every == 0 or done:
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "ledger": ledger.state(),
                        "mixed_share": mixed_share,
                    }
                    recent = [row["reward"] for row in run.metrics() if row["step"] > max(0, step - 10)]
                    recent = [r for r in recent if r is not None]
                    score = sum(recent) / len(recent) if recent else 0.0
                    run.save_checkpoint(step, state, lambda f: hf.save(model, f / "hf", source), score)
        hf.save(model, cfg.out / "model", source=source)
    return cfg.out / "model"
