"""Sequential revision: attempts one after another, each begun where the one before it went wrong."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mull.chat import Chat
from mull.engine.sampler import Sampler
from mull.errors import SamplerLost, UserError
from mull.ledger import Budget
from mull.scorers.base import Scorer
from mull.scorers.critic import Critique
from mull.search.choose import Aggregate, Canonical, Pick, path_score, pick_leaf
from mull.search.node import LINES, Node, Steps
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import Tree
from mull.types import Cost, Question, Trace

RETRY = "Try again."


class Pointer(Protocol):
    """What is needed of a critic here; `mull.scorers.critic.Critic` is one."""

    async def critique(self, prefixes: Sequence[Sequence[int]]) -> list[Critique]: ...


@dataclass(frozen=True, slots=True)
class _Fault:
    """The first wrong step of an attempt."""

    before: Node  # where to go on from
    line: str
    why: str


async def revise(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    canonical: Canonical,
    critic: Pointer | None = None,
    scorer: Scorer | None = None,
    how: Literal["rewind", "turn"] = "rewind",
    pick: Pick = "value",
    enough: float = 0.5,
    threshold: float = 0.5,
    aggregate: Aggregate = "min",
    keep: int = 4,
    steps: Steps = LINES,
) -> Trace:
    """Up to N = `budget.samples` attempts in a row (Snell et al. 2408.03314 §6, whose revisions a model was trained to
    make; here a critic says what is wrong, and needs nothing of the model).

    After each attempt the critic names its first wrong step. The next one goes on from the step before that
    (`how="rewind"`: the tree forks there), or is a further turn of the conversation (`how="turn"`), which shows the
    model its last `keep` answers and what was said of them. Attempts end when the critic's probability of "ok" is
    above `enough`. Where it points at no step, or cannot be read, or was lost, the next attempt starts afresh. Without
    a critic a scorer of steps does its work: the first step whose score is below `threshold` counts as the wrong one,
    and without such a step the attempts end.

    A revision may well spoil a right answer (38% of them in Snell et al.), so the answer is never simply the last one.
    `pick`: that of the highest value, the one with the highest sum of values, or the majority of all attempts. An
    attempt's value is the scorer's (by `aggregate` over its steps) or, without one, the critic's probability of "ok".

    At temperature 0 a rewound attempt repeats the one before it, and N has no use.
    """
    if critic is None and scorer is None:
        raise UserError("revise needs a critic, or a scorer of steps, to say which step is wrong")
    tree = Tree("revise", question, sampler, chat, budget, decoding, seed, scorer, steps)
    attempts: list[Node] = []
    talk: list[dict[str, str]] = []
    start = tree.root
    for i in range(budget.samples):
        tree.visit(start)
        found = await tree.complete(start)
        if found and found[0].done:
            attempts.append(attempt := found[0])
            if pick == "vote" and i + 1 == budget.samples:
                break
            if critic:
                fine, fault = await _by_critic(tree, critic, attempt, enough)
            else:
                fine, fault = await _by_scorer(tree, attempt, threshold)
            if fine:
                break
            start = tree.root
            if fault:
                tree.prune(_child_towards(fault.before, attempt))
                start = fault.before
                if how == "turn":
                    talk = [*talk, *_turns(attempt, fault)][-2 * max(keep, 1) :]
                    start = tree.ask([*(question.messages or [{"role": "user", "content": question.text}]), *talk])
        elif not found and start.open:
            break  # the budget is spent
        while start.parent is not None and not start.open:
            start = start.parent
        if not start.open:
            start = tree.root
        if not start.open:
            break
    if scorer and critic and pick != "vote":
        await tree.score(attempts, whole_path=aggregate != "last")
    value = functools.partial(path_score, how=aggregate if scorer else "last")
    return await tree.finish(pick_leaf(question, attempts, value, canonical, pick))


async def _by_critic(tree: Tree, critic: Pointer, attempt: Node, enough: float) -> tuple[bool, _Fault | None]:
    """(whether the attempt is good enough, the first wrong step where the critic points at one)."""
    try:
        [word] = await critic.critique([tree.as_asked(attempt)])
    except SamplerLost as gone:
        tree.lose(f"the critic was lost: {gone}")
        word = Critique(math.nan, None, "", Cost())
    else:
        tree.charge(word.cost)
        if not math.isfinite(word.ok):
            tree.lose("the critic wrote nothing that can be read of an attempt, which counts as not ok")
    ok = word.ok if math.isfinite(word.ok) else 0.0
    if tree.scorer is None:
        tree.rate(attempt, ok)
    return ok > enough, None if word.step is None else _at_line(tree, attempt, word.step, word.why)


async def _by_scorer(tree: Tree, attempt: Node, threshold: float) -> tuple[bool, _Fault | None]:
    """(whether all steps are good enough, the first that is not)."""
    if not await tree.score([attempt], whole_path=True):
        return False, None
    for step in attempt.path():
        if (step.score or 0.0) < threshold:
            assert step.parent is not None
            line = step.answer or tree.chat.split(tree.trace.spans[step.span].tokens)[0]
            return False, _Fault(step.parent, line, "")
    return True, None


def _at_line(tree: Tree, attempt: Node, step: int, why: str) -> _Fault | None:
    """The fault at the step of that number: a non-empty line of the thought, or the answer behind the last of them."""
    lines = _lines(tree, attempt)
    if step > len(lines) + 1:
        return None
    before = attempt.parent
    while before is not None and len(_lines(tree, before)) >= step:
        before = before.parent
    assert before is not None  # a root has no lines
    return _Fault(before, [*lines, attempt.answer or ""][step - 1], why)


def _lines(tree: Tree, node: Node) -> list[str]:
    thought, _, _ = tree.chat.split(node.tokens[node.asked :])
    return [line for line in thought.split("\n") if line.strip()]


def _child_towards(node: Node, leaf: Node) -> Node:
    while leaf.parent is not None and leaf.parent is not node:
        leaf = leaf.parent
    return leaf


def _turns(attempt: Node, fault: _Fault) -> list[dict[str, str]]:
    """The answer, and what is said of it: thoughts of earlier turns are not shown, so the wrong line is quoted."""
    why = f": {fault.why}" if fault.why else ""
    return [
        {"role": "assistant", "content": attempt.answer or ""},
        {"role": "user", "content": f"{fault.line or 'This'} is wrong{why}. {RETRY}"},
    ]
