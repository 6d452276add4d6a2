"""What the recipes that sample chains share: what is refused before a run, and what is told of a step and of a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mull.chat import Chat
from mull.chat.effort import Effort, asked, parted
from mull.engine.sampler import Sampler
from mull.errors import UserError
from mull.evals.evaluate import Evaluation, Held, evaluate, thought_tokens
from mull.learn import samples
from mull.ledger import Budget, Ledger
from mull.tasks.base import Checked
from mull.types import Cost, Trace


class Asking(Protocol):
    """The part of a recipe's config that says what is asked, and how much may be written."""

    @property
    def levels(self) -> tuple[int, ...]: ...
    @property
    def think_tokens(self) -> int: ...
    @property
    def answer_tokens(self) -> int: ...
    @property
    def seed(self) -> int: ...


class Evaluating(Asking, Protocol):
    @property
    def eval_samples(self) -> int: ...


class Limited(Protocol):
    """How long to train; 0 of what is counted in tokens or FLOPs: without that limit."""

    @property
    def steps(self) -> int: ...
    @property
    def trained_tokens(self) -> int: ...
    @property
    def sampled_tokens(self) -> int: ...
    @property
    def flops(self) -> float: ...


@dataclass(repr=False)  # asyncio.run spells out what it returns (Python 3.11): every token of every chain, for nothing
class Rollouts:
    """One step's chains: the groups to learn from, and what was seen on the way."""

    groups: list[tuple[Trace, list[float | None]]]  # mixed groups: one trace with a leaf per chain, and rewards
    asked: int = 0
    constant: int = 0
    traces: list[Trace] = None  # type: ignore[assignment]  # all of them, constant groups included


# ------------------------------------------------------------------------------------------- before a run


def levels_of(task: Checked, levels: Sequence[int]) -> list[int]:
    """Those of `levels` that the task has; UserError where it has none of them."""
    found = [level for level in levels if level in task.levels]
    if not found:
        raise UserError(f"the task {task.name} has no level among {list(levels)}: its levels are {list(task.levels)}")
    return found


def refuse_impossible(
    cfg: Asking, tasks: Sequence[Checked], chat: Chat, context: int, effort: Effort | None = None
) -> None:
    """What cannot be trained on is a UserError before anything is written: a tokenizer without thought tags, a task
    without such levels or without problems to train on, and chains that do not fit into the model's context."""
    assert chat.think_open and chat.think_close  # or UserError
    for task in tasks:
        for level in levels_of(task, cfg.levels):
            prompt = len(chat.prompt(asked(next(task.stream(level, "train", cfg.seed)).question.text, effort)))
            if prompt + cfg.think_tokens + cfg.answer_tokens > context:
                raise UserError(
                    f"a prompt of {task.name} level {level} ({prompt} tokens), think_tokens={cfg.think_tokens} and "
                    f"answer_tokens={cfg.answer_tokens} do not fit into the model's context of {context}: lower them"
                )


# ------------------------------------------------------------------------------------- of a step and of a run


def describe(rollouts: Rollouts, chat: Chat) -> dict[str, Any]:
    """What the sampled chains were like. Also under random rewards `reward` is the graders': it is what is watched."""
    verdicts = [v for t in rollouts.traces for v in t.verdicts]
    scored = [v.reward for v in verdicts if v.reward is not None]
    lengths = [len(thought_tokens(t, leaf)) for t in rollouts.traces for leaf in t.leaves]
    cut = samples.truncated(rollouts.traces)
    wishes = [(len(thought_tokens(t, leaf)), parted(t.question.text)[1]) for t in rollouts.traces for leaf in t.leaves]
    errors = [abs(n - wish) / wish for n, wish in wishes if isinstance(wish, int)]
    by_task: dict[str, list[float]] = {}
    for trace in rollouts.traces:
        by_task.setdefault(trace.question.task, []).extend(v.reward for v in trace.verdicts if v.reward is not None)
    return {
        "reward": sum(scored) / len(scored) if scored else None,
        "reward_by_task": {name: sum(values) / len(values) for name, values in sorted(by_task.items()) if values},
        "length": sum(lengths) / len(lengths),
        **({"length_error": sum(errors) / len(errors)} if errors else {}),  # |n - wanted| / wanted
        "truncated": sum(cut) / len(cut),
        "unscorable": len(verdicts) - len(scored),
        "asked": rollouts.asked,
        "constant_groups": rollouts.constant / rollouts.asked,
        "groups": len(rollouts.groups),
    }


def totals(ledger: Ledger) -> dict[str, float]:
    """The x-axis of the train curve: what training has cost so far, evaluations not counted."""
    spent = sum((cost for phase, cost in ledger.phases.items() if phase != "evaluation"), Cost())
    return {"flops": spent.flops, "total_sampled_tokens": spent.sampled_tokens, "trained_tokens": spent.trained_tokens}


def is_done(cfg: Limited, step: int, ledger: Ledger) -> bool:
    """Whether the steps, or what they may cost, are used up."""
    spent = totals(ledger)
    limits = (
        (cfg.trained_tokens, spent["trained_tokens"]),
        (cfg.sampled_tokens, spent["total_sampled_tokens"]),
        (cfg.flops, spent["flops"]),
    )
    return step >= cfg.steps or any(0 < limit <= used for limit, used in limits)


def is_evaluated(step: int, every: int) -> bool:
    """Every `every` steps, and after 1, 2, 4, 8 … steps: the train curve's axis is logarithmic. And at the end."""
    return step % every == 0 or step & (step - 1) == 0


def report_eval(
    cfg: Evaluating, held: list[Held], sampler: Sampler, chat: Chat, ledger: Ledger, effort: Effort | None = None
) -> dict[str, Any]:
    """pass@1 on the held-out problems, over all and by task, with intervals; and each problem's own share of right
    samples (None: no sample could be judged), for what needs problems to resample."""
    started = time.perf_counter()
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.eval_samples)
    evaluation: Evaluation = asyncio.run(evaluate(held, sampler, chat, budget, seed=cfg.seed, effort=effort))
    ledger.charge("evaluation", evaluation.cost + Cost(seconds=time.perf_counter() - started))
    names = dict.fromkeys(h.task.name for h in held)
    return {
        "all": evaluation.accuracy.as_dict(),
        "tasks": {name: evaluation.of(name).accuracy.as_dict() for name in names},
        "rates": {name: problem_rates(evaluation.of(name)) for name in names},
    }


def problem_rates(evaluation: Evaluation) -> dict[str, float | None]:
    """Question id → the share of its scorable samples that are right."""
    scored = [[m for m in marks if m is not None] for marks in evaluation.marks]
    return {
        held.problem.question.id: sum(marks) / len(marks) if marks else None
        for held, marks in zip(evaluation.held, scored, strict=True)
    }


def trace_row(trace: Trace, chat: Chat) -> dict[str, Any]:
    """One group as a line of the run's trace file."""
    return {
        "question": trace.question.id,
        "text": trace.question.text,
        "chains": [
            {"text": chat.decode(thought_tokens(trace, leaf)), "correct": verdict.correct, "answer": answer}
            for leaf, answer, verdict in zip(trace.leaves, trace.answers, trace.verdicts, strict=True)
        ],
    }
