"""Measuring a scorer on held-out problems, through the very path by which a search asks it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.engine.sampler import derive_seed
from mull.evals import verifiers
from mull.evals.evaluate import Held, evaluate
from mull.learn.critique import first_wrong
from mull.learn.labels import Chain
from mull.ledger import Budget
from mull.models.transformer import Transformer
from mull.models.value import ValueModel
from mull.recipes.reward_data import Sampled, of_trace
from mull.scorers.base import Score, Scorer
from mull.scorers.critic import Critic
from mull.scorers.value import ValueScorer
from mull.search.choose import Aggregate
from mull.types import Cost

if TYPE_CHECKING:
    from mull.recipes.reward import RewardConfig

CRITIQUED = 4  # chains of each question that a critic writes on


def measured(
    cfg: RewardConfig, held: Sequence[Held], policy: Transformer, model: ValueModel | Transformer, chat: Chat, best: str
) -> tuple[dict[str, Any], Cost]:
    """(the report of `mull.evals.verifiers`, and for a critic that of its critiques; what it cost)."""
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.eval_samples)
    done = asyncio.run(evaluate(held, LocalEngine(policy, chat), chat, budget, seed=derive_seed(cfg.seed, 2)))
    sampled = [of_trace(h.task, h.problem, trace, chat) for h, trace in zip(held, done.traces, strict=True)]
    scorer = (
        ValueScorer(model, LocalEngine(model.body, chat))
        if isinstance(model, ValueModel)
        else Critic(LocalEngine(model, chat), chat)
    )
    judged, cost = asyncio.run(scored(sampled, scorer, chat))
    report = verifiers.report(judged, cast(Aggregate, best), cfg.best_of, cfg.seed)
    cost = cost + done.cost
    if isinstance(scorer, Critic):
        report["critiques"], more = asyncio.run(critiques(sampled, scorer, chat))
        cost = cost + more
    return report, replace(cost, seconds=0.0)


async def scored(sampled: Sequence[Sampled], scorer: Scorer, chat: Chat) -> tuple[list[verifiers.Judged], Cost]:
    """A value at the end of every step of every chain."""
    cost = Cost()

    async def one(s: Sampled) -> tuple[verifiers.Judged, Cost]:
        chains = s.chains(chat)
        prefixes = [chain.tokens[:end] for chain in chains for end in chain.ends]
        scores = iter(await scorer.score(prefixes))
        values = [[next(scores) for _ in chain.ends] for chain in chains]
        spent = sum((score.cost for row in values for score in row), Cost())
        return verifiers.Judged(s.verdicts, chains, [[_value(score) for score in row] for row in values]), spent

    judged = []
    for question, spent in await asyncio.gather(*(one(s) for s in sampled)):
        judged.append(question)
        cost = cost + spent
    return judged, cost


def _value(score: Score) -> float:
    return score.value


async def critiques(sampled: Sequence[Sampled], critic: Critic, chat: Chat) -> tuple[dict[str, Any], Cost]:
    """What the critic writes on whole chains of the policy's own, against the exact checks.

    recall: chains with an error that it finds fault with; false_alarms: the same of flawless ones; located: of the
    recalled, those where it names the first wrong step; unreadable: critiques of neither form.
    """
    work: list[tuple[Chain, int | None]] = []
    for s in sampled:
        chosen = [(chain, i) for i, chain in enumerate(s.chains(chat)) if chain.answered and chain.steps is not None]
        for chain, i in [(c, i) for c, i in chosen if c.correct is not None][:CRITIQUED]:
            wrong = first_wrong(s.lines[i])
            work.append((chain, wrong or (None if chain.correct else len(s.lines[i]) + 1)))
    found = await critic.critique([chain.tokens for chain, _ in work])
    flagged = [(said, wrong) for said, (_, wrong) in zip(found, work, strict=True) if said.step is not None]
    errors = sum(wrong is not None for _, wrong in work)
    recalled = [(said, wrong) for said, wrong in flagged if wrong is not None]
    report = {
        "n": len(work),
        "errors": errors,
        "recall": len(recalled) / errors if errors else None,
        "false_alarms": (len(flagged) - len(recalled)) / (len(work) - errors) if len(work) > errors else None,
        "located": sum(said.step == wrong for said, wrong in recalled) / len(recalled) if recalled else None,
        "unreadable": sum(said.ok != said.ok for said in found),
    }
    return report, sum((said.cost for said in found), Cost())
