"""One iteration of STaR as rows: problems drawn, asked without and with a hint, judged, written, and counted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mull.chat import Chat
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import UserError
from mull.evals.evaluate import Evaluation, Held, thought_tokens
from mull.evals.grade import grade
from mull.evals.metrics import pass_at_1
from mull.learn.star import Asked, Kept, Tried, hinted, tried
from mull.ledger import Budget
from mull.search.sample import Decoding, sample
from mull.tasks.base import Checked
from mull.types import Problem, Question, Trace

ROUND = 512  # problems asked at once, and written at once


def drawn(tasks: Sequence[Checked], levels: Sequence[int], seed: int, iteration: int, i: int) -> Held:
    """Problem i of an iteration: tasks and levels take turns, the problem is a function of (seed, iteration, i)."""
    cells = [(task, level) for task in tasks for level in levels if level in task.levels]
    task, level = cells[i % len(cells)]
    return Held(task, next(task.stream(level, "train", derive_seed(seed, iteration, i))))


async def ask_all(
    problems: Sequence[Held],
    seeds: Sequence[int],
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding,
    hint: str | None,
) -> list[dict[str, Any]]:
    """A row for each problem. `hint`: how a failed problem is asked again; None: it is not.

    The hinted question goes to the sampler alone: both chains are judged as answers to the plain problem.
    """

    async def chain(h: Held, question: Question, seed: int, template: str = "") -> tuple[Trace, Tried]:
        trace = await sample(question, sampler, chat, copy.copy(budget), decoding, seed)
        grade(h.task, h.problem, trace)
        tokens = thought_tokens(trace, trace.leaves[0])
        judged = _judged(h.task, h.problem, chat.split(tokens)[0])
        return trace, tried(trace, chat.decode(tokens), judged, h.problem.reference.answer, template)

    async def one(h: Held, seed: int) -> dict[str, Any]:
        trace, first = await chain(h, h.problem.question, derive_seed(seed, 0))
        asked, cost = Asked(h.problem.question, trace.spans[0].tokens, first), trace.cost
        if hint is not None and first.failed:
            question = hinted(h.problem.question, h.problem.reference.answer, hint)
            again, second = await chain(h, question, derive_seed(seed, 1), hint)
            asked, cost = Asked(asked.question, asked.prompt, first, second), cost + again.cost
        return {**asdict(asked), "cost": asdict(cost)}

    return await together(one(h, seed) for h, seed in zip(problems, seeds, strict=True))


def _judged(task: Checked, problem: Problem, thought: str) -> list[bool | None]:
    """Whether each line is true; nothing is known of a thought that the task's checker fails on."""
    try:
        return [step.ok for step in task.check_steps(problem, thought)]
    except UserError:
        raise
    except Exception:  # one sample's trouble
        return []


def asked_of(row: dict[str, Any]) -> Asked:
    """A row as it was."""
    first, second = row["plain"], row["hinted"]
    chains = [Tried(**{**c, "tokens": tuple(c["tokens"])}) if c else None for c in (first, second)]
    assert chains[0] is not None
    return Asked(Question(**row["question"]), tuple(row["prompt"]), chains[0], chains[1])


# ------------------------------------------------------------------------------------------------- counting


def summary(asked: Sequence[Asked], kept: Sequence[Kept]) -> dict[str, Any]:
    """Counts of one iteration, over all and by task and level."""
    cells = dict.fromkeys(f"{one.question.task}/{one.question.level}" for one in asked)
    by_cell = {
        cell: _counts([a for a in asked if f"{a.question.task}/{a.question.level}" == cell]) for cell in sorted(cells)
    }
    learnt = {"learnt": len(kept), "learnt_rationalized": sum(k.rationalized for k in kept)}
    return {**_counts(asked), **learnt, "cells": by_cell}


def _counts(asked: Sequence[Asked]) -> dict[str, int]:
    """`…_lines`: those whose thought was judged; `…_false`: those of them with a false line."""
    right = [one.plain for one in asked if one.plain.right]
    hints = [one.hinted for one in asked if one.hinted]
    rationalized = [c for c in hints if c.right and not c.quotes_hint]
    every = [*(one.plain for one in asked), *hints]
    return {
        "problems": len(asked),
        "right": len(right),
        "right_lines": sum(c.false_lines is not None for c in right),
        "right_false": sum(bool(c.false_lines) for c in right),
        "with_hint": len(hints),
        "rationalized": len(rationalized),
        "rationalized_lines": sum(c.false_lines is not None for c in rationalized),
        "rationalized_false": sum(bool(c.false_lines) for c in rationalized),
        "quoting": sum(c.quotes_hint for c in hints),
        "cut": sum(not c.ended for c in every),
        "unscorable": sum(c.ended and c.correct is None for c in every),
    }


def measured(found: Evaluation, chat: Chat) -> dict[str, Any]:
    """Accuracy by task and level with intervals; `mean` weighs these equally, as a uniform draw of lengths does.

    `lines` and `false` count right answers whose thought was judged and those of them that hold a false line. `marks`
    has a letter for each problem: 1 right, 0 wrong, ? not judged.
    """
    cells: dict[str, list[int]] = {}
    for i, h in enumerate(found.held):
        cells.setdefault(f"{h.problem.question.task}/{h.problem.question.level}", []).append(i)
    out: dict[str, Any] = {}
    for name, places in cells.items():
        estimate = pass_at_1([found.marks[i] for i in places]).as_dict()
        right = [t for i in places for t in _right_thoughts(found, i, chat)]
        marks = "".join({True: "1", False: "0", None: "?"}[found.marks[i][0]] for i in places)
        out[name] = {**estimate, "marks": marks, "lines": len(right), "false": sum(False in judged for judged in right)}
    means = [cell["mean"] for cell in out.values() if cell["mean"] is not None]
    return {"mean": sum(means) / len(means) if means else 0.0, "all": found.accuracy.as_dict(), "cells": out}


def _right_thoughts(found: Evaluation, i: int, chat: Chat) -> list[list[bool | None]]:
    """The judged lines of the right answers to problem i, where the task judged any."""
    h, trace = found.held[i], found.traces[i]
    out = []
    for leaf, verdict in zip(trace.leaves, trace.verdicts, strict=True):
        if verdict.correct:
            judged = _judged(h.task, h.problem, chat.split(thought_tokens(trace, leaf))[0])
            out += [judged] if any(ok is not None for ok in judged) else []
    return out
