"""What RefAug (Zhang et al. 2024, arXiv 2406.12050) puts behind an answer: another way to it, and a further problem.

The paper asks a large model to write these; here procedural solvers do, and the task's own checkers judge every line
(the tests do so for all of them). For each task:

    chain      substitution from what is asked for, then evaluation from the inside out; one value changes
    countdown  another expression, where there is one, else a check of the same; another target of the same numbers
    addition   in pieces, from the left, in place of columns; both numbers get one digit more

A further problem belongs to the split that is asked for, by its own content: nothing that is trained on behind a
training problem can be a held-out problem.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from mull.errors import UserError
from mull.tasks import addition, chain, countdown
from mull.tasks.arithmetic import Node, Op
from mull.tasks.base import Checked, Solution, Split, Task, split_of
from mull.types import Problem, Question, Reference

TASKS = ("chain", "countdown", "addition")
INLINED = 3  # hops of a chain that one line of substitution takes in at most
TRIES = 200  # draws of a further problem


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A further problem: whole, for its checker; as it is asked of somebody who knows the first; and worked."""

    problem: Problem
    asked: str
    worked: Solution


@dataclass(frozen=True, slots=True)
class Reflection:
    alternative: Solution
    followup: FollowUp | None  # None: no such problem of this split was found


def refuse_without_reflections(task: Checked) -> Task:
    """The task, or UserError for one that nothing is known to reflect on."""
    if not isinstance(task, Task) or task.name not in TASKS:
        raise UserError(f"the task {task.name} has no written reflections: choose among {', '.join(TASKS)}")
    return task


def reflect(task: Checked, problem: Problem, rng: random.Random, split: Split = "train") -> Reflection:
    """Another solution of `problem`, and a further problem of `split` that grows out of it."""
    task = refuse_without_reflections(task)
    write = {"chain": _chain, "countdown": _countdown, "addition": _addition}[task.name]
    alternative, drawn = write(problem, rng, split)
    if drawn is None:
        return Reflection(alternative, None)
    key, level, text, answer, asked = drawn
    digest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
    followup = Problem(Question(f"{task.name}/{level}/{digest}", task.name, text, level), Reference(answer))
    return Reflection(alternative, FollowUp(followup, asked, task.solve(followup)))


def section(reflection: Reflection, alternative: bool = True, followup: bool = True) -> str:
    """The reflection as text, to stand behind an answer; "" when nothing of it is wanted or there."""
    parts = []
    if alternative:
        parts.append(f"Another way:\n{reflection.alternative.thought}\n{reflection.alternative.answer}")
    if followup and (more := reflection.followup) is not None:
        lines = [f"Next: {more.asked}", *more.worked.thought.split("\n"), more.worked.answer]
        parts.append("\n".join(lines))
    return "".join(f"\n{part}" for part in parts)


Drawn = tuple[str, int, str, str, str]  # canonical key, level, question, answer, as it is asked in a conversation


# ------------------------------------------------------------------------------------------------- chain


def _chain(problem: Problem, rng: random.Random, split: Split) -> tuple[Solution, Drawn | None]:
    system = chain._read(problem.question.text)
    lines = [_substitution(system, group) for group in _groups(system)]
    return Solution("\n".join(lines), str(system.values[system.asked])), _changed(problem, system, rng, split)


def _groups(system: chain._System) -> list[list[str]]:
    """The needed hops in order of dependence, cut into lines: a hop joins the line of the next one when that alone
    uses it, and uses it once."""
    groups: list[list[str]] = [[]]
    for i, name in enumerate(system.order):
        groups[-1].append(name)
        users = [other for other in system.order for used in chain._names(system.defs[other]) if used == name]
        joins = users == system.order[i + 1 : i + 2] and len(groups[-1]) < INLINED
        if not joins and i + 1 < len(system.order):
            groups.append([])
    return groups


def _substitution(system: chain._System, group: Sequence[str]) -> str:
    """`k=h*5=(y+14)*5=(1+14)*5=15*5=75` for the hops h, k: definitions from the last hop back, then values."""
    goal = group[-1]
    sides: list[Node] = [system.defs[goal]]
    for name in reversed(group[:-1]):
        sides.append(_replaced(sides[-1], name, system.defs[name]))
    outside = {name for name in _names_in(sides[-1])}
    numbers = sides[-1]
    for name in sorted(outside):
        numbers = _replaced(numbers, name, system.values[name])
    if outside:
        sides.append(numbers)
    for _ in group[:-1]:  # from the inside out: each hop is an operation on numbers by now
        numbers = _evaluated_once(numbers)
        sides.append(numbers)
    return "=".join([goal, *map(_show, sides), str(system.values[goal])])


def _replaced(node: Node, name: str, by: Node) -> Node:
    if isinstance(node, Op):
        return Op(node.sign, _replaced(node.left, name, by), _replaced(node.right, name, by))
    return by if node == name else node


def _names_in(node: Node) -> set[str]:
    if isinstance(node, Op):
        return _names_in(node.left) | _names_in(node.right)
    return {node} if isinstance(node, str) else set()


def _evaluated_once(node: Node) -> Node:
    """With the innermost operation on two numbers replaced by its value. (Each group nests one into the other.)"""
    assert isinstance(node, Op)
    for side in ("left", "right"):
        inner = getattr(node, side)
        if isinstance(inner, Op):
            deeper = isinstance(inner.left, Op) or isinstance(inner.right, Op)
            simpler = _evaluated_once(inner) if deeper else _value(inner)
            return Op(node.sign, simpler, node.right) if side == "left" else Op(node.sign, node.left, simpler)
    raise AssertionError("nothing is nested in it")


def _value(node: Op) -> int:
    assert isinstance(node.left, int) and isinstance(node.right, int)
    return chain._compute(node.sign, node.left, node.right)


def _show(node: Node) -> str:
    if not isinstance(node, Op):
        return str(node)
    left, right = (f"({_show(x)})" if isinstance(x, Op) else str(x) for x in (node.left, node.right))
    return f"{left}{node.sign}{right}"


def _changed(problem: Problem, system: chain._System, rng: random.Random, split: Split) -> Drawn | None:
    """One given value becomes another. All values stay in the task's range, and the answer is another one."""
    used = {name for hop in system.order for name in chain._names(system.defs[hop])}
    options = [
        (n, v) for n, d in system.defs.items() if isinstance(d, int) and n in used for v in range(1, 31) if v != d
    ]
    rng.shuffle(options)
    for name, value in options:
        parts = [f"{name}={value}" if p.startswith(f"{name}=") else p for p in problem.question.text.split(";")]
        text = ";".join(parts)
        after = chain._read(text)
        sound = all(0 <= v <= 99 for v in after.values.values())
        answer = after.values[after.asked]
        key = chain._key(after)
        if sound and answer != system.values[system.asked] and split_of(key) == split:
            return key, problem.question.level, text, str(answer), f"if {name}={value}, {system.asked}?"
    return None


# ---------------------------------------------------------------------------------------------- countdown


def _countdown(problem: Problem, rng: random.Random, split: Split) -> tuple[Solution, Drawn | None]:
    numbers, target = countdown._read(problem.question.text)
    reference = countdown._expression(numbers, problem.reference.answer)[0]
    assert reference is not None, f"the reference of {problem.question.id} is not a solution"
    found = list(_combinations(numbers))
    mine = countdown._normal(reference)
    others = [tree for tree, value in found if value == target and countdown._normal(tree) != mine]
    if others:
        tree = rng.choice(others)
        lines = [" ".join([*countdown._operations(tree)[0], "yes"])]
    else:
        tree = reference
        lines = [f"check {countdown._show(tree)}={target} ok"]
    alternative = Solution("\n".join(lines), countdown._show(tree))

    _, _, low, high = countdown.LEVELS[problem.question.level]
    targets: dict[int, Node] = {}
    rng.shuffle(found)
    for tree, value in found:
        text = f"{' '.join(map(str, numbers))} -> {value}"
        if value != target and low <= value <= high and split_of(text) == split:
            targets.setdefault(value, tree)
    if not targets:
        return alternative, None
    value = rng.choice(list(targets))
    text = f"{' '.join(map(str, numbers))} -> {value}"
    answer = countdown._show(targets[value])
    return alternative, (text, problem.question.level, text, answer, f"and -> {value}?")


def _combinations(numbers: Sequence[int]) -> list[tuple[Node, int]]:
    """Every way of combining all numbers whose results are positive integers, the larger operand first."""
    out: list[tuple[Node, int]] = []

    def combine(parts: list[tuple[Node, int]]) -> None:
        if len(parts) == 1:
            out.append(parts[0])
        for i, j in combinations(range(len(parts)), 2):
            big, small = (parts[i], parts[j]) if parts[i][1] >= parts[j][1] else (parts[j], parts[i])
            rest = [part for at, part in enumerate(parts) if at not in (i, j)]
            for sign in "+-*/":
                if (result := countdown._result(big[1], sign, small[1])) is not None:
                    combine([*rest, (Op(sign, big[0], small[0]), result)])

    combine([(n, n) for n in numbers])
    return out


# ----------------------------------------------------------------------------------------------- addition


def _addition(problem: Problem, rng: random.Random, split: Split) -> tuple[Solution, Drawn | None]:
    a, b, digits = addition._read(problem.question.text)
    total, lines = a, []
    for place in reversed(range(digits)):
        piece = addition._digit(b, place) * 10**place
        if piece or not b:
            lines.append(f"{total}+{piece}={total + piece}")
            total += piece
    return Solution("\n".join([*lines, str(total)]), str(total)), _longer(a, b, digits, rng, split)


def _longer(a: int, b: int, digits: int, rng: random.Random, split: Split) -> Drawn | None:
    if digits + 1 > addition.LEVELS or not (a and b):
        return None
    for _ in range(TRIES):
        d, e = rng.randrange(10), rng.randrange(10)
        more_a, more_b = 10 * a + d, 10 * b + e
        key = f"{min(more_a, more_b)}+{max(more_a, more_b)}"
        if split_of(key) == split:
            return key, digits + 1, f"{more_a}+{more_b}=?", str(more_a + more_b), f"with {d} and {e} at the end?"
    return None
