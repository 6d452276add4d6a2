"""Actor and critic: reinforcement learning that tells the tokens of a chain apart. The loop is `actor_critic()`.

    ppo      PPO with a value head and GAE (arXiv 1707.06347, 1506.02438); the critic starts from the policy's weights
    prm      the same, with a scorer's opinion of each step as a dense reward next to the outcome
    vineppo  values are sampled: K continuations from every step's boundary (arXiv 2410.01679)
    prime    an implicit process reward, learnt online from outcomes alone (arXiv 2502.01456)

`recipes/credit.py` has the methods, `rl.py` the same loop for methods that compare a chain with its group. Questions
whose chains are all right, or all wrong, teach here too: a critic says what was to be expected. Only `prime` drops
those outside of [keep_low, keep_high] and asks others instead.

Reward hacking is visible in every step's line: `truth` is the share of right answers, `scorer` what the scorer (prm) or
the implicit reward model (prime) thinks of the same chains. The outcome is the only term that cannot be talked into
anything; `process_only` takes it away, as the control that shows what then happens.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from mull import config as configs
from mull.chat import Chat
from mull.engine import native
from mull.engine.local import LocalEngine
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import UserError
from mull.evals.collapse import CollapseDetector, scan
from mull.evals.evaluate import held_out, thought_tokens
from mull.evals.grade import grade
from mull.learn import advantages, gae, losses, optim, prime, samples
from mull.learn.algorithms import Method
from mull.learn.process import Form
from mull.ledger import Budget, Ledger
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.models.flops import train_flops
from mull.models.nano import model_folder
from mull.models.transformer import Transformer
from mull.models.value import ValueModel
from mull.progress import Mode, Progress
from mull.recipes import credit, rl, rollouts
from mull.recipes.credit import Chains, Credit
from mull.runfolder import RunFolder
from mull.scorers.base import Scorer
from mull.scorers.value import load_scorer
from mull.search.sample import Decoding, sample
from mull.tasks.base import Checked
from mull.tasks.load import load_task
from mull.types import Cost, Problem, Sample, Trace

Algorithm = Literal["ppo", "prm", "vineppo", "prime"]


@dataclass(frozen=True)
class ActorCriticConfig:
    model: str = "nano"  # a Hugging Face folder, or nano for the one that ships
    out: Path = Path("runs/actor_critic")
    tasks: tuple[str, ...] = ("chain", "countdown")
    levels: tuple[int, ...] = (1, 2)
    algorithm: Algorithm = "ppo"
    steps: int = 100
    trained_tokens: int = 0  # stop before `steps` once so many tokens were learnt from, prompts included; 0: do not
    sampled_tokens: int = 0  # stop before `steps` once so many tokens were sampled, vineppo's among them; 0: do not
    flops: float = 0.0  # stop before `steps` once rollouts and training have cost so many; 0: do not
    groups: int = 24  # questions of one step; prime: questions that it keeps
    group_size: int = 16  # chains for each question
    think_tokens: int = 256
    answer_tokens: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    truncated: Literal["zero", "bootstrap", "leave_out", "mask", "keep"] = "zero"  # see learn/shaping and learn/gae
    overlong_buffer: int = 0  # DAPO's soft penalty over the last so many tokens; 0: none
    gamma: float = 1.0  # discount per token (ppo, prm, prime)
    gae_lambda: float = 0.95  # of the policy's advantages (ppo, prm)
    value_lambda: float = 1.0  # of the critic's targets; 1: the return itself
    value_clip: float = 0.2  # how far a value may move on one step's chains; 0: no limit
    whiten: bool = True  # advantages to mean 0 and deviation 1 over the tokens of the step
    critic_lr: float = 6e-4  # of the value model (ppo, prm) or the implicit reward model (prime: twice lr, as there)
    critic_epochs: int = 1  # passes of the critic over one step's chains
    critic_warmup: int = 5  # first steps, in which the critic alone learns
    scorer: Path | None = None  # prm: a folder that mull reward wrote
    process: Form = "potential"  # how scores become rewards of steps: see learn/process
    process_temperature: float = 0.1  # of process=min
    process_weight: float = 1.0  # of the process reward (prm, prime)
    outcome_weight: float = 1.0  # of the outcome beside it
    process_only: bool = False  # the control that shows hacking: the outcome pays nothing (prm, prime)
    vine_rollouts: int = 4  # continuations from each boundary (the paper has 9): most of what vineppo costs
    prime_beta: float = 0.05  # reward = beta (log implicit model - log starting model)
    keep_low: float = 0.2  # prime keeps questions whose share of right answers
    keep_high: float = 0.8  # lies between these
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.0  # weight of the KL to the starting model
    epochs: int = 1  # passes of the policy over one step's chains
    minibatches: int = 1  # optimiser steps of one pass
    lr: float = 3e-4
    warmup: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    random_reward: bool = False  # the control: rewards and scores are chance, and nothing may improve
    eval_every: int = 0  # steps between evaluations on held-out problems (and after 1, 2, 4, 8 …); 0: none
    eval_problems: int = 256
    eval_samples: int = 2
    checkpoint_every: int = 10
    micro_tokens: int = 4096  # tokens of one forward and backward pass, padding included
    max_sequences: int = 512  # that the engine decodes at once
    memory_gib: float = 0.0  # for keys and values; 0: the engine's default
    compile: bool = True
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products in training; weights and sampling are float32
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        if self.groups < 1 or self.group_size < 1 + (self.algorithm == "prime"):
            raise UserError("groups and group_size must be 1 or more; prime compares a chain with others: 2 or more")
        if self.overlong_buffer >= self.think_tokens + self.answer_tokens:
            raise UserError("overlong_buffer must be smaller than think_tokens + answer_tokens")
        if self.algorithm == "prm" and self.scorer is None:
            raise UserError("algorithm prm needs a scorer: train one with mull reward and set scorer to its folder")
        values, learnt, judged = ("ppo", "prm"), ("ppo", "prm", "prime"), ("prm", "prime")
        readers = {
            **dict.fromkeys(("gae_lambda", "value_lambda", "value_clip"), values),
            **dict.fromkeys(("gamma", "outcome_weight", "critic_lr", "critic_epochs", "critic_warmup"), learnt),
            **dict.fromkeys(("scorer", "process", "process_temperature"), ("prm",)),
            "process_weight": judged,
            "vine_rollouts": ("vineppo",),
            **dict.fromkeys(("prime_beta", "keep_low", "keep_high"), ("prime",)),
        }
        configs.refuse_unread(self, "algorithm", readers)
        configs.refuse_unread(self, "process", {"process_temperature": ("min",)})
        if self.process_only and self.algorithm not in ("prm", "prime"):
            raise UserError(f"process_only leaves {self.algorithm} without any reward: it is for prm and prime")
        if self.process_only and self.algorithm == "prm" and self.process == "potential":
            raise UserError("process=potential pays a chain 0 in all, process_only nothing else: set sum or difference")
        if self.truncated == "bootstrap" and self.algorithm not in ("ppo", "prm"):
            raise UserError("truncated=bootstrap takes the value of an unfinished chain from a critic: ppo or prm")
        if self.overlong_buffer and self.algorithm == "vineppo":
            raise UserError("vineppo's continuations are right or wrong, without overlong_buffer: leave it at 0")
        if self.vine_rollouts < 1 or self.epochs < 1 or self.critic_epochs < 1 or self.minibatches < 1:
            raise UserError("vine_rollouts, epochs, critic_epochs and minibatches must be 1 or more")
        if not 0 <= self.gamma <= 1 or not 0 <= self.gae_lambda <= 1 or not 0 <= self.value_lambda <= 1:
            raise UserError("gamma, gae_lambda and value_lambda must lie between 0 and 1")
        if self.process_temperature <= 0 or self.prime_beta <= 0:
            raise UserError("process_temperature and prime_beta must be above 0")

    @property
    def outcome_scale(self) -> float:
        return 0.0 if self.process_only else self.outcome_weight


# ------------------------------------------------------------------------------------------------ rollouts


def teaches(cfg: ActorCriticConfig, rewards: advantages.Rewards) -> bool:
    if cfg.algorithm == "prime":
        return prime.keeps(rewards, cfg.keep_low, cfg.keep_high)
    return any(r is not None for r in rewards)


async def collect(
    cfg: ActorCriticConfig, tasks: Sequence[Checked], sampler: Sampler, chat: Chat, step: int, kept_share: float
) -> Chains:
    """Rounds of questions until `cfg.groups` that teach are there, or four times as many were asked. Only `prime` is
    choosy, so for the others it is one round. Question i of a step is a function of (seed, step, i)."""
    out = Chains([], traces=[])
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.group_size)
    decoding = Decoding(cfg.temperature, cfg.top_p, cfg.top_k)

    async def one(i: int) -> tuple[Checked, Problem, Trace, list[float | None]]:
        rng = random.Random(derive_seed(cfg.seed, step, i))
        task = rng.choice(tasks)
        level = rng.choice([level for level in cfg.levels if level in task.levels])
        problem = next(task.stream(level, "train", rng.getrandbits(62)))
        trace = await sample(problem.question, sampler, chat, copy.copy(budget), decoding, rng.getrandbits(62))
        grade(task, problem, trace)
        return task, problem, trace, rl.shaped_rewards(cast(Any, cfg), [trace], rng)

    while len(out.groups) < cfg.groups and out.asked < 4 * cfg.groups:
        wanted = max(1, round((cfg.groups - len(out.groups)) / max(kept_share, 0.25)))
        wanted = min(wanted, 4 * cfg.groups - out.asked)
        for task, problem, trace, rewards in await together(one(out.asked + i) for i in range(wanted)):
            out.traces.append(trace)
            out.constant += advantages.constant(rewards)
            if teaches(cfg, rewards):
                out.groups.append((trace, rewards))
                out.problems.append((task, problem))
        out.asked += wanted
    return out


# ------------------------------------------------------------------------------------------------ learning


def to_samples(cfg: ActorCriticConfig, chains: Chains, made: Credit) -> list[Sample]:
    """Whitened over the step, spread over the tokens of each path, then samples."""
    flat = [values for group in made.advantages for values in group]
    if cfg.truncated == "mask":
        cut = samples.truncated([trace for trace, _ in chains.groups])
        flat = [None if c else values for values, c in zip(flat, cut, strict=True)]
    found = iter(gae.whiten(flat) if cfg.whiten else flat)
    out: list[Sample] = []
    for number, ((trace, _), paths) in enumerate(zip(chains.groups, credit.group_paths(chains), strict=True)):
        own = [next(found) for _ in paths]
        spread = [None if a is None else path.spread(a) for a, path in zip(own, paths, strict=True)]
        out += samples.from_tokens([trace], spread, group=number)
    return out


def learn(
    cfg: ActorCriticConfig,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    reference: Transformer | None,
    todo: Sequence[Sample],
    lr: float,
) -> dict[str, float]:
    """PPO's clipped loss over all tokens of the step, `epochs` times `minibatches` optimiser steps."""
    clipped = functools.partial(losses.ppo_clip, low=cfg.clip_low, high=cfg.clip_high)
    ppo = Method(lambda groups: [list(group) for group in groups], clipped, losses.token_mean)
    passes = replace(cfg, minibatches=cfg.minibatches * cfg.epochs)
    return rl.learn(cast(Any, passes), ppo, model, optimizer, reference, list(todo) * cfg.epochs, lr)


# ------------------------------------------------------------------------------------------------ the loop

SHOWN = ("truth", "scorer", "length", "truncated", "entropy", "explained_variance", "grad_norm")


def load_judge(cfg: ActorCriticConfig, chat: Chat) -> Scorer | None:
    """The scorer of prm. UserError when it reads other tokens than the policy writes."""
    if cfg.scorer is None:
        return None
    scorer, _ = load_scorer(cfg.scorer, device=cfg.device)
    if not Chat.load(cfg.scorer).speaks_like(chat):
        raise UserError(f"the scorer {cfg.scorer} has another tokenizer than {cfg.model}, whose chains it is to judge")
    return scorer


def actor_critic(cfg: ActorCriticConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Trains; returns the folder of the trained model. What the critic is stays in the checkpoints.

    Resuming continues bitwise identically on CPU with the same number of threads.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    tasks = [load_task(name) for name in cfg.tasks]
    held = held_out(tasks, cfg.levels, cfg.eval_problems, "test", cfg.seed) if cfg.eval_every else []
    source = model_folder(cfg.model)
    chat = Chat.load(source)
    model = hf.load(source, device=cfg.device)
    rollouts.refuse_impossible(cfg, tasks, chat, model.config.max_positions)
    scorer = load_judge(cfg, chat)
    reference = copy.deepcopy(model).requires_grad_(False) if cfg.kl or cfg.algorithm == "prime" else None
    critic: ValueModel | Transformer | None = None
    if cfg.algorithm in ("ppo", "prm"):
        critic = ValueModel(copy.deepcopy(model), cfg.seed)
    elif cfg.algorithm == "prime":
        critic = copy.deepcopy(model)
    optimizer = optim.adamw(model, cfg.lr, cfg.weight_decay)
    critic_optimizer = optim.adamw(critic, cfg.critic_lr, cfg.weight_decay) if critic is not None else None
    ledger, detector = Ledger(), CollapseDetector()
    step, kept_share = 0, 0.5 if cfg.algorithm == "prime" else 1.0

    with RunFolder.create(cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=rl.MAY_CHANGE) as run:
        if latest := run.latest():
            step, state = latest
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if critic is not None and critic_optimizer is not None:
                critic.load_state_dict(state["critic"])
                critic_optimizer.load_state_dict(state["critic_optimizer"])
            ledger = Ledger.restore(state["ledger"])
            kept_share = state["kept_share"]
        run.truncate_metrics(step if latest else -1)  # what a run logged after its last checkpoint comes again
        scan(run.metrics(), detector)
        engine = LocalEngine(model, chat, cfg.max_sequences, int(cfg.memory_gib * 2**30) or None)
        compiled = compile_layers(model) if cfg.compile else "training runs eagerly (compile = false)"

        title = f"{cfg.algorithm}{' with random rewards' if cfg.random_reward else ''} on {', '.join(cfg.tasks)}"
        with Progress(title, cfg.steps, start=step, mode=mode) as progress:
            progress.say(f"{native.status()}; {compiled}")
            done = rollouts.is_done(cfg, step, ledger)
            while not done:
                if cfg.eval_every and step == 0:
                    result = rollouts.report_eval(cfg, held, engine, chat, ledger)
                    run.log(0, {"eval": result, **rollouts.totals(ledger)})
                began = time.perf_counter()
                engine.restore_version(step)  # and an empty prefix cache, as a resumed run has it
                chains = asyncio.run(collect(cfg, tasks, engine, chat, step, kept_share))
                cost = sum((t.cost for t in chains.traces), Cost())
                ledger.charge("rollouts", cost + Cost(seconds=(sampled := time.perf_counter()) - began))

                seen: dict[str, Any] = {}
                if isinstance(critic, ValueModel):
                    dense = None
                    if scorer is not None:
                        if hasattr(scorer, "forget"):
                            scorer.forget()  # type: ignore[attr-defined] # as a resumed run has it
                        dense, seen, spent = asyncio.run(credit.by_steps(cfg, scorer, chat, chains, step))
                        ledger.charge("scorer", spent)
                    made = credit.by_values(cfg, critic, chains, dense)
                elif critic is not None and reference is not None:
                    made = credit.by_implicit(cfg, critic, reference, chains)
                else:
                    made = asyncio.run(credit.by_continuations(cfg, chains, engine, chat, step))
                todo = to_samples(cfg, chains, made)
                ledger.charge("credit", made.cost + Cost(seconds=(judged := time.perf_counter()) - sampled))

                if critic is not None and critic_optimizer is not None:
                    if isinstance(critic, ValueModel):
                        learnt, spent = credit.learn_values(cfg, critic, critic_optimizer, made.lessons)
                    else:
                        learnt, spent = credit.learn_implicit(cfg, critic, critic_optimizer, made.lessons)
                    seen |= learnt
                    ledger.charge("critic", spent + Cost(seconds=time.perf_counter() - judged))
                warming = critic is not None and step < cfg.critic_warmup
                lr = 0.0
                if not warming:
                    trained_before = time.perf_counter()
                    first = cfg.critic_warmup if critic is not None else 0
                    lr = optim.constant(step - first, peak=cfg.lr, warmup=cfg.warmup)
                    seen |= learn(cfg, model, optimizer, reference if cfg.kl else None, todo, lr)
                    lengths = [len(s.tokens) for s in todo] * cfg.epochs
                    flops = train_flops(model.config, lengths) * (4 / 3 if cfg.kl else 1)  # the reference's pass
                    spent = Cost(trained_tokens=sum(lengths), flops=flops)
                    ledger.charge("training", spent + Cost(seconds=time.perf_counter() - trained_before))

                step += 1
                kept_share = 0.8 * kept_share + 0.2 * len(chains.groups) / chains.asked
                metrics = {
                    **rollouts.describe(chains, chat),
                    **made.seen,
                    **seen,
                    **rollouts.totals(ledger),
                    "lr": lr,
                    "kept_share": kept_share,
                    "rollout_seconds": sampled - began,
                    "train_seconds": time.perf_counter() - sampled,
                    "tokens_per_second": cost.sampled_tokens / (time.perf_counter() - began),
                }
                metrics["truth"] = metrics["reward"]  # the graders' word, whatever is paid
                done = rollouts.is_done(cfg, step, ledger)
                if cfg.eval_every and (done or rollouts.is_evaluated(step, cfg.eval_every)):
                    metrics["eval"] = rollouts.report_eval(cfg, held, engine, chat, ledger)
                run.log(step, metrics)
                if alarm := detector.update(
                    step, metrics["reward"], metrics.get("entropy"), metrics["length"], metrics["truncated"]
                ):
                    progress.say(f"{alarm} (the best checkpoint is kept)", important=True)
                if metrics["reward"] is None:
                    why = next((v.error for t in chains.traces for v in t.verdicts), "")
                    progress.say(f"no answer of step {step} could be judged: {why}", important=True)
                progress.update(step, **{key: metrics.get(key) for key in SHOWN})
                shown = chains.traces[step % len(chains.traces)]
                run.add_traces(step, [rollouts.trace_row(shown, chat)])
                thought, answer, _ = chat.split(thought_tokens(shown, shown.leaves[0]))
                progress.sample(shown.question.text, thought, answer, shown.verdicts[0].correct)
                if step % cfg.checkpoint_every == 0 or done:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    if critic is not None and critic_optimizer is not None:
                        state |= {"critic": critic.state_dict(), "critic_optimizer": critic_optimizer.state_dict()}
                    state |= {"ledger": ledger.state(), "kept_share": kept_share}
                    recent = [row["reward"] for row in run.metrics() if row["step"] > max(0, step - 10)]
                    recent = [r for r in recent if r is not None]
                    score = sum(recent) / len(recent) if recent else 0.0
                    run.save_checkpoint(step, state, lambda f: hf.save(model, f / "hf", source), score)
        hf.save(model, cfg.out / "model", source=source)
    return cfg.out / "model"
