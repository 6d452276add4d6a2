"""Whose merit was it? From a step's graded chains to one advantage per token, by four methods.

| method  | a token is compared with                        | besides the policy learns | it costs                     |
|---------|-------------------------------------------------|---------------------------|------------------------------|
| ppo     | a value head's expectation, GAE                 | the value model           | reading and training that    |
| prm     | the same, with a scorer's step rewards added    | the value model           | that, and reading the scorer |
| vineppo | K fresh continuations from each step's boundary | nothing                   | the continuations            |
| prime   | the group's other chains, token rewards added   | the implicit reward model | reading and training that    |

Under `random_reward` everything that could know of the answers is chance: outcomes, the verdicts of VinePPO's
continuations, and the scorer's scores.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mull.chat import Chat
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import StopReason
from mull.evals.grade import judge
from mull.learn import gae, optim, prime, process, values, vine
from mull.learn.forward import batch_logprobs
from mull.learn.labels import Complete, Estimated, Rollouts, make_chain
from mull.learn.pack import to_device
from mull.learn.paths import Path, path_of
from mull.models.flops import forward_flops, train_flops
from mull.models.transformer import Transformer
from mull.models.value import ValueModel
from mull.recipes import rollouts
from mull.scorers.base import Scorer
from mull.tasks.base import Checked
from mull.types import Cost, Problem, Sample, SamplingParams

if TYPE_CHECKING:
    from mull.recipes.actor_critic import ActorCriticConfig

Dense = list[list[list[tuple[int, float]]]]  # by group and leaf, (end, reward)


@dataclass(repr=False)  # asyncio.run spells out what it returns (Python 3.11)
class Chains(rollouts.Rollouts):
    """One step's chains; `problems[i]` is what group i answered, and the task that can grade more answers."""

    problems: list[tuple[Checked, Problem]] = field(default_factory=list)


@dataclass(repr=False)
class Lesson:
    """What the critic learns from one chain. A value model: the targets of its states, and what it said of them. An
    implicit reward model: the chain, its outcome, and the reference's log-probability of it."""

    path: Path
    targets: list[float] = field(default_factory=list)
    old: list[float] = field(default_factory=list)
    chain: Sample | None = None
    outcome: float = 0.0
    reference: float = 0.0


@dataclass(repr=False)
class Credit:
    """One advantage per action, by group and leaf (None: left out), and what making them showed and cost."""

    advantages: list[list[list[float] | None]]
    lessons: list[list[Lesson]] = field(default_factory=list)  # by group
    seen: dict[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)


def group_paths(chains: rollouts.Rollouts) -> list[list[Path]]:
    return [[path_of(trace, leaf) for leaf in trace.leaves] for trace, _ in chains.groups]


def mean(numbers: Sequence[float]) -> float | None:
    return math.fsum(numbers) / len(numbers) if numbers else None


# ------------------------------------------------------------------------------------------- a value head


def by_values(
    cfg: ActorCriticConfig, critic: ValueModel, chains: rollouts.Rollouts, dense: Dense | None = None
) -> Credit:
    """GAE over the critic's values of the outcomes, plus the dense rewards where there are any."""
    out = Credit([])
    paid: list[float] = []
    read = seen_keys = 0
    for number, ((_, rewards), paths) in enumerate(zip(chains.groups, group_paths(chains), strict=True)):
        counted = [i for i, (r, p) in enumerate(zip(rewards, paths, strict=True)) if r is not None and p.actions]
        with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
            found, tokens, keys = gae.read_values(critic, [paths[i] for i in counted], cfg.micro_tokens)
        read += tokens
        seen_keys += keys
        advantages: list[list[float] | None] = [None] * len(paths)
        lessons = []
        for i, states in zip(counted, found, strict=True):
            path, outcome = paths[i], cfg.outcome_scale * float(rewards[i] or 0.0)
            goes_on = cfg.truncated == "bootstrap" and path.cut
            paid_now = min(outcome, 0.0) if goes_on else outcome  # a penalty for length stays
            rewarded = path.rewards(paid_now, dense[number][i] if dense else ())
            paid.append(math.fsum(rewarded))
            end = states[-1] if goes_on else 0.0
            advantages[i] = gae.gae(rewarded, states[:-1], cfg.gamma, cfg.gae_lambda, end)
            targets = gae.returns(rewarded, states[:-1], cfg.gamma, cfg.value_lambda, end)
            lessons.append(Lesson(path, targets, states[:-1]))
        out.advantages.append(advantages)
        out.lessons.append(lessons)
    old = [v for lessons in out.lessons for lesson in lessons for v in lesson.old]
    targets = [v for lessons in out.lessons for lesson in lessons for v in lesson.targets]
    out.seen = {"explained_variance": gae.explained_variance(old, targets), "value": mean(old), "paid": mean(paid)}
    out.cost = Cost(scorer_tokens=read, flops=forward_flops(critic.body.config, read, seen_keys, head_tokens=0))
    return out


def learn_values(
    cfg: ActorCriticConfig, critic: ValueModel, optimizer: torch.optim.Optimizer, lessons: Sequence[list[Lesson]]
) -> tuple[dict[str, float], Cost]:
    """`critic_epochs` passes over the groups, in `minibatches` optimiser steps each."""
    losses: list[float] = []
    cost = Cost()
    lessons = [group for group in lessons if group]
    share = max(1, -(-len(lessons) // cfg.minibatches))
    for start in list(range(0, len(lessons), share)) * cfg.critic_epochs:
        chunk = lessons[start : start + share]
        states, total = sum(len(lesson.old) for group in chunk for lesson in group), 0.0
        for group in chunk:
            for batch, part, tokens, keys in gae.state_batches([lesson.path for lesson in group], cfg.micro_tokens):
                batch = values.to_device(batch, cfg.device)
                with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
                    said_N = values.forward(critic, batch)[0]
                nan = [math.nan]  # the end of a path is nobody's state to learn
                targets_N = torch.tensor([v for i in part for v in group[i].targets + nan], device=cfg.device)
                old_N = torch.tensor([v for i in part for v in group[i].old + nan], device=cfg.device)
                known_N = ~targets_N.isnan()
                loss = gae.value_loss(said_N[known_N], targets_N[known_N], old_N[known_N], states, cfg.value_clip)
                loss.backward()
                total += float(loss.detach())
                flops = 3 * forward_flops(critic.body.config, tokens, keys, head_tokens=0)
                cost += Cost(trained_tokens=tokens, flops=flops)
        optim.step(critic, optimizer, cfg.critic_lr, cfg.max_grad_norm)
        losses.append(total)
    return {"value_loss": math.fsum(losses) / max(len(losses), 1)}, cost


# ------------------------------------------------------------------------------------------ a step scorer


async def by_steps(
    cfg: ActorCriticConfig, scorer: Scorer, chat: Chat, chains: rollouts.Rollouts, step: int
) -> tuple[Dense, dict[str, Any], Cost]:
    """Step rewards of every chain: what the scorer says where a step ends. `scorer` is the mean score of whole chains,
    `steps` how many steps they have, `process` what they are paid for them."""
    ends: list[list[Sequence[int]]] = []
    prefixes: list[tuple[int, ...]] = []
    for (trace, _), paths in zip(chains.groups, group_paths(chains), strict=True):
        ends.append([])
        for path, verdict in zip(paths, trace.verdicts, strict=True):
            asked, told = path.tokens[: path.prompt], path.tokens[path.prompt :]
            ends[-1].append(make_chain(chat, asked, told, verdict.correct, cut=path.cut).ends)
            prefixes += [path.tokens[:end] for end in ends[-1][-1]]
    scores = await scorer.score(prefixes)
    found = iter([s.value for s in scores])
    if cfg.random_reward:
        rng = random.Random(derive_seed(cfg.seed, step, 1))
        found = iter([rng.random() for _ in scores])
    dense: Dense = []
    last, paid = [], []
    for (_, rewards), paths, by_leaf in zip(chains.groups, group_paths(chains), ends, strict=True):
        dense.append([])
        for path, reward, its_ends in zip(paths, rewards, by_leaf, strict=True):
            said = [next(found) for _ in its_ends]
            made = process.dense_rewards(path, its_ends, said, cfg.process, cfg.process_temperature)
            dense[-1].append([(end, cfg.process_weight * r) for end, r in made])
            if reward is not None:
                last += [s for s in said[-1:] if not math.isnan(s)]
                paid.append(math.fsum(r for _, r in dense[-1][-1]))
    count = sum(len(its_ends) for by_leaf in ends for its_ends in by_leaf)
    leaves = sum(len(by_leaf) for by_leaf in ends)
    seen = {"scorer": mean(last), "process": mean(paid), "steps": count / max(leaves, 1)}
    return dense, seen, sum((s.cost for s in scores), Cost())


# -------------------------------------------------------------------------------------- fresh continuations


async def by_continuations(cfg: ActorCriticConfig, chains: Chains, sampler: Sampler, chat: Chat, step: int) -> Credit:
    """VinePPO: every state at a step's boundary is worth what `vine_rollouts` continuations from it are."""

    async def group(number: int, paths: list[Path]) -> tuple[list[list[float] | None], Cost, list[float]]:
        trace, rewards = chains.groups[number]
        complete = completer(cfg, *chains.problems[number], sampler, chat, derive_seed(cfg.seed, step, number, 2))

        async def leaf(path: Path, correct: bool | None) -> Estimated:
            asked, told = path.tokens[: path.prompt], path.tokens[path.prompt :]
            chain = make_chain(chat, asked, told, correct, cut=path.cut)
            return await vine.boundary_values(chain, complete, cfg.vine_rollouts)

        counted = [i for i, (r, p) in enumerate(zip(rewards, paths, strict=True)) if r is not None and p.actions]
        found = await together(leaf(paths[i], trace.verdicts[i].correct) for i in counted)
        advantages: list[list[float] | None] = [None] * len(paths)
        for i, estimated in zip(counted, found, strict=True):
            advantages[i] = vine.step_advantages(paths[i], estimated.labels, float(rewards[i] or 0.0))
        cost = sum((estimated.cost for estimated in found), Cost())
        return advantages, cost, [label.value for e in found for label in e.labels[:1]]

    done = await together(group(number, paths) for number, paths in enumerate(group_paths(chains)))
    cost = sum((c for _, c, _ in done), Cost())
    seen = {"value": mean([v for _, _, starts in done for v in starts]), "vine_tokens": cost.sampled_tokens}
    return Credit([advantages for advantages, _, _ in done], seen=seen, cost=cost)


def completer(
    cfg: ActorCriticConfig, task: Checked, problem: Problem, sampler: Sampler, chat: Chat, seed: int
) -> Complete:
    """Verdicts of continuations of prefixes of one question's chains, sampled and graded as the chains themselves are;
    equal prefixes are continued once, and cost nothing again. A prefix has the same continuations in every order."""
    prompt = len(chat.prompt(problem.question.text))
    memory: dict[tuple[int, ...], asyncio.Future[Rollouts]] = {}

    async def draw(prefix: tuple[int, ...], n: int) -> Rollouts:
        own = prefix[prompt:]
        most = max(1, cfg.think_tokens + cfg.answer_tokens - len(own))
        params = SamplingParams(most, cfg.temperature, cfg.top_p, cfg.top_k, seed=derive_seed(seed, *own))
        completions = await sampler.sample(prefix, params, n)
        cost = sum((c.cost for c in completions), Cost())
        if cfg.random_reward:
            rng = random.Random(derive_seed(seed, *own, 1))
            return [rng.random() < 0.5 for _ in completions], cost
        verdicts: list[bool | None] = []
        for c in completions:
            whole = c.stop is StopReason.STOP
            if not whole and cfg.truncated in ("zero", "leave_out"):
                verdicts.append(False if cfg.truncated == "zero" else None)
                continue
            _, answer, closed = chat.split([*own, *c.tokens])
            verdicts.append(judge(task.check, problem, answer if whole and closed else "").correct)
        return verdicts, cost

    async def complete(prefix: Sequence[int], n: int) -> Rollouts:
        key = tuple(prefix)
        if key in memory:
            verdicts, _ = await memory[key]
            return verdicts, Cost()
        memory[key] = asyncio.ensure_future(draw(key, n))
        return await memory[key]

    return complete


# ------------------------------------------------------------------------------------- implicit rewards


def by_implicit(cfg: ActorCriticConfig, phi: Transformer, reference: Transformer, chains: rollouts.Rollouts) -> Credit:
    """PRIME: token rewards from phi against the reference, leave-one-out in both streams. `scorer` is the mean
    probability of being right that phi gives a chain, before it learns from it."""
    out = Credit([])
    believed: list[float] = []
    lengths: list[int] = []
    for (_, rewards), paths in zip(chains.groups, group_paths(chains), strict=True):
        outcomes = [r if p.actions else None for r, p in zip(rewards, paths, strict=True)]
        todo = [prime.chain_sample(path) for path in paths]
        with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
            mine = prime.action_logprobs(phi, todo, cfg.micro_tokens)
            theirs = prime.action_logprobs(reference, todo, cfg.micro_tokens)
        lengths += [len(path.tokens) for path in paths]
        rewarded = [prime.token_rewards(p, q, cfg.prime_beta) for p, q in zip(mine, theirs, strict=True)]
        out.advantages.append(prime.advantages(rewarded, outcomes, cfg.process_weight, cfg.outcome_scale, cfg.gamma))
        out.lessons.append([])
        for path, chain, r, q, outcome in zip(paths, todo, rewarded, theirs, outcomes, strict=True):
            if outcome is None:
                continue
            believed.append(1 / (1 + math.exp(-max(-60.0, min(60.0, math.fsum(r))))))
            label = min(max(outcome, 0.0), 1.0)  # a penalty for length makes nothing wronger than wrong
            out.lessons[-1].append(Lesson(path, chain=chain, outcome=label, reference=math.fsum(q)))
    out.seen = {"scorer": mean(believed)}
    out.cost = Cost(scorer_tokens=2 * sum(lengths), flops=2 * train_flops(phi.config, lengths) / 3)
    return out


def learn_implicit(
    cfg: ActorCriticConfig, phi: Transformer, optimizer: torch.optim.Optimizer, lessons: Sequence[list[Lesson]]
) -> tuple[dict[str, float], Cost]:
    """`critic_epochs` passes over the groups, in `minibatches` optimiser steps each. `critic_right`: the share of
    chains on whose side phi was when it met them."""
    losses, right, met, cost = [], 0, 0, Cost()
    lessons = [group for group in lessons if group]
    share = max(1, -(-len(lessons) // cfg.minibatches))
    for start in list(range(0, len(lessons), share)) * cfg.critic_epochs:
        chunk = [lesson for group in lessons[start : start + share] for lesson in group]
        total, todo = 0.0, [lesson.chain for lesson in chunk if lesson.chain is not None]
        for batch, which in prime.chain_batches(todo, cfg.micro_tokens):
            batch = to_device(batch, cfg.device)
            with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
                logprobs_BT, _ = batch_logprobs(phi, batch)
            reference_B = torch.tensor([chunk[i].reference for i in which], device=cfg.device)
            outcomes_B = torch.tensor([chunk[i].outcome for i in which], device=cfg.device)
            logits_B = cfg.prime_beta * (logprobs_BT.sum(-1) - reference_B)
            loss = prime.outcome_loss(logits_B, outcomes_B, len(todo))
            loss.backward()
            total += float(loss.detach())
            right += int(((logits_B > 0) == (outcomes_B > 0.5)).sum())
            met += len(which)
        optim.step(phi, optimizer, cfg.critic_lr, cfg.max_grad_norm)
        losses.append(total)
        lengths = [len(chain.tokens) for chain in todo]
        cost += Cost(trained_tokens=sum(lengths), flops=train_flops(phi.config, lengths))
    return {"critic_loss": math.fsum(losses) / max(len(losses), 1), "critic_right": right / max(met, 1)}, cost
