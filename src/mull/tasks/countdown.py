"""Countdown: `3 7 12 -> 33` asks for an expression of all the numbers, each exactly once, with the target's value.

Three numbers on levels 1 (1..9, target 5..40) and 2 (1..20, target 10..99), four on levels 3 (1..9) and 4 (1..20).
The problems are drawn as random expressions whose intermediate results are positive integers, so each has a
solution; answers may be any expression and are checked with exact rationals.

A thought is a search. Each line is an attempt: its operations in order, with the results feeding forward, and a
verdict. `back` gives an attempt up before all numbers are used.

    12*7=84 back
    12-3=9 9*7=63 no
    7*3=21 21+12=33 yes
    check 7*3+12=33 ok

The form of the thoughts follows Stream of Search (2404.03683); its published checker accepted numbers used twice.
"""

from __future__ import annotations

import random
import re
from collections import Counter

from mull.tasks.arithmetic import Node, Op, evaluate, leaves, parse, slip
from mull.tasks.base import Solution, Task
from mull.types import Problem, Question, Reference, StepKind, StepVerdict, Verdict

# Habits of `imperfect`. A writer has one of four, drawn by these weights:
HABITS = {"one try": 0.25, "casual": 0.40, "guided": 0.17, "persistent": 0.18}
# how many attempts a writer runs through in the head before writing down the one that comes nearest; 1: any attempt
EYE = {"one try": 3, "casual": 2, "guided": 6, "persistent": 1}
GO_ON = {"one try": 0.0, "casual": 0.7, "guided": 0.85, "persistent": 0.94}  # chance of another attempt after a failure
MOST_TRIES = {3: 12, 4: 16}  # by how many numbers there are
REMEMBER = 0.7  # an attempt that failed before is noticed before it is written again
BACK_IF_LARGE = 0.5  # an attempt is given up when a result is far above the target
BACK = 0.08  # an attempt is given up for no good reason
FAR_ABOVE = 2.5  # times the target
SLIP = 0.025  # an operation's result is wrong
CHECKS = 0.25  # a writer checks a success
CATCH = 0.85  # such a check finds a false success
LOST_PARENTHESES = 0.04  # the answer is written without its parentheses

LEVELS = {1: (3, 9, 5, 40), 2: (3, 20, 10, 99), 3: (4, 9, 10, 99), 4: (4, 20, 10, 99)}  # count, largest, target range
MOST_CHARS = 420

_OP = re.compile(r"(-?[0-9]{1,6})([-+*/])(-?[0-9]{1,6})=(-?[0-9]{1,6})")
_CHECK = re.compile(r"check ([^=]+)=(-?[0-9]{1,6}) (ok|no)")

Plan = list[tuple[int, str, int]]  # operations on positions: the given numbers come first, then each result


def _read(text: str) -> tuple[list[int], int]:
    numbers, _, target = text.partition(" -> ")
    return [int(n) for n in numbers.split()], int(target)


def _result(left: int, sign: str, right: int) -> int | None:
    """None unless it is a positive integer, and for what changes nothing (division by 1)."""
    if sign == "+":
        return left + right
    if sign == "*":
        return left * right
    if sign == "-":
        return left - right if left > right else None
    return left // right if right > 1 and left % right == 0 else None


def _plan(numbers: list[int], rng: random.Random) -> tuple[Plan, int]:
    """A random way of combining all numbers, the larger operand first, and its value."""
    values, free, plan = list(numbers), list(range(len(numbers))), []
    while len(free) > 1:
        i = free.pop(int(rng.random() * len(free)))
        j = free.pop(int(rng.random() * len(free)))
        if values[i] < values[j]:
            i, j = j, i
        result = None
        while result is None:
            sign = "+-*/"[int(rng.random() * 4)]
            result = _result(values[i], sign, values[j])
        plan.append((i, sign, j))
        free.append(len(values))
        values.append(result)
    return plan, values[-1]


def _tree(numbers: list[int], plan: Plan) -> Node:
    nodes: list[Node] = list(numbers)
    for i, sign, j in plan:
        nodes.append(Op(sign, nodes[i], nodes[j]))
    return nodes[-1]


def _show(node: Node, around: str = "", right: bool = False) -> str:
    """An expression with no more parentheses than it needs, as a side of the operation `around`."""
    if not isinstance(node, Op):
        return str(node)
    text = _show(node.left, node.sign) + node.sign + _show(node.right, node.sign, True)
    loose = around in ("*", "/") and node.sign in "+-"
    reversed_ = right and ((around == "-" and node.sign in "+-") or around == "/")
    return f"({text})" if loose or reversed_ else text


def _operations(node: Node) -> tuple[list[str], int]:
    """The operations of a tree of positive integers in a left-to-right order, and its value."""
    if not isinstance(node, Op):
        assert isinstance(node, int)
        return [], node
    (before, x), (more, y) = _operations(node.left), _operations(node.right)
    value = _result(x, node.sign, y)
    assert value is not None
    return [*before, *more, f"{x}{node.sign}{y}={value}"], value


class _Searcher:
    def __init__(self, problem: Problem, rng: random.Random):
        self.numbers, self.target = _read(problem.question.text)
        self.rng = rng
        self.lines: list[str] = []
        self.failed: list[Plan] = []
        self.nearest: tuple[int, Plan] | None = None  # (distance as believed, attempt)

    def room(self) -> int:
        return MOST_CHARS - sum(len(line) + 1 for line in self.lines)

    def choose(self, eye: int) -> tuple[Plan, int]:
        rounds = [_plan(self.numbers, self.rng) for _ in range(eye)]
        return min(rounds, key=lambda option: abs(option[1] - self.target))

    def attempt(self, plan: Plan) -> bool:
        """Writes an attempt, with slips, as far as it is taken; True when it ends in `yes`."""
        values, words, verdict = list(self.numbers), [], ""
        for step, (i, sign, j) in enumerate(plan):
            result = _result(values[i], sign, values[j])
            if result is None:  # after a slip, this operation may no longer be possible
                verdict = "back"
                break
            if self.rng.random() < SLIP:
                result = slip(sign, values[i], values[j], result, self.rng)
            words.append(f"{values[i]}{sign}{values[j]}={result}")
            values.append(result)
            large = result > FAR_ABOVE * self.target
            if step + 1 < len(plan) and self.rng.random() < (BACK_IF_LARGE if large else BACK):
                verdict = "back"
                break
        if not verdict:
            verdict = "yes" if values[-1] == self.target else "no"
            away = abs(values[-1] - self.target)
            if self.nearest is None or away <= self.nearest[0]:
                self.nearest = (away, plan)
        self.lines.append(" ".join([*words, verdict]))
        return verdict == "yes"

    def checked(self, plan: Plan) -> bool:
        """Whether the writer stands by an attempt that ended in `yes`."""
        if self.rng.random() >= CHECKS:
            return True
        tree = _tree(self.numbers, plan)
        ok = evaluate(tree) == self.target or self.rng.random() >= CATCH
        self.lines.append(f"check {_show(tree)}={self.target} {'ok' if ok else 'no'}")
        return ok

    def search(self, habit: str) -> Plan:
        """The attempt that the writer answers with."""
        line = 10 * (len(self.numbers) - 1) + 4  # what a line takes, roughly; a check as much again
        tries = 0
        while True:
            plan, _ = self.choose(EYE[habit])
            if plan in self.failed and self.rng.random() < REMEMBER:
                plan, _ = self.choose(EYE[habit])
            tries += 1
            if self.attempt(plan) and self.checked(plan):
                return plan
            self.failed.append(plan)
            out = tries == MOST_TRIES[len(self.numbers)] or self.room() < 2 * line
            if out or self.rng.random() >= GO_ON[habit]:
                return self.nearest[1] if self.nearest else plan


class Countdown(Task):
    name = "countdown"
    levels = (1, 2, 3, 4)
    description = "combine all the given numbers with + - * / to reach a target"
    form = r"\b[0-9]+(?: [0-9]+)+ -> [0-9]+\b"
    max_thought = MOST_CHARS

    def draw(self, level: int, rng: random.Random) -> tuple[str, str, Reference]:
        count, largest, low, high = LEVELS[level]
        while True:
            numbers = sorted(rng.randint(1, largest) for _ in range(count))
            plan, target = _plan(numbers, rng)
            if low <= target <= high:
                break
        text = f"{' '.join(map(str, numbers))} -> {target}"
        return text, text, Reference(_show(_tree(numbers, plan)))

    def check(self, problem: Problem, answer: str) -> Verdict:
        numbers, target = _read(problem.question.text)
        node, why = _expression(numbers, answer)
        if node is None:
            return Verdict(False, None, why)
        return Verdict(evaluate(node) == target, _normal(node))

    def canonical(self, question: Question, answer: str) -> str | None:
        node, _ = _expression(_read(question.text)[0], answer)
        return None if node is None else _normal(node)

    def check_steps(self, problem: Problem, thought: str) -> list[StepVerdict]:
        numbers, target = _read(problem.question.text)
        verdicts: list[StepVerdict] = []
        claimed = False
        for text in thought.split("\n"):
            if text.strip():
                verdicts.append(_judge(numbers, target, text, claimed))
                claimed = claimed or text.endswith(" yes")
        return verdicts

    def solve(self, problem: Problem) -> Solution:
        """At most two attempts that come near, then the reference's."""
        numbers, target = _read(problem.question.text)
        searcher = _Searcher(problem, random.Random(problem.question.id))
        lines: list[str] = []
        for _ in range(searcher.rng.randint(0, 2)):
            plan, value = searcher.choose(4)
            line = " ".join([*_operations(_tree(numbers, plan))[0], "no"])
            if value != target and line not in lines:
                lines.append(line)
        tree = _expression(numbers, problem.reference.answer)[0]
        assert tree is not None, f"the reference of {problem.question.id} is not a solution"
        lines.append(" ".join([*_operations(tree)[0], "yes"]))
        return Solution("\n".join(lines), problem.reference.answer)

    def imperfect(self, problem: Problem, rng: random.Random) -> Solution:
        searcher = _Searcher(problem, rng)
        plan = searcher.search(rng.choices(list(HABITS), list(HABITS.values()))[0])
        answer = _show(_tree(searcher.numbers, plan))
        if rng.random() < LOST_PARENTHESES:
            answer = answer.replace("(", "").replace(")", "")
        return Solution("\n".join(searcher.lines), answer)

    def red_team(self, problem: Problem) -> list[str]:
        numbers, target = _read(problem.question.text)
        gold, t = problem.reference.answer, target
        n = numbers[0]
        wide = "".join(chr(0xFF10 + int(c)) if c.isdigit() else c for c in gold)
        power = "**".join(map(str, numbers))
        cheats = [f"{t}", f"{t}={t}", f"{gold}={t}", f"{t}*1", f"{gold}+{n}-{n}", f"({gold})*{n}/{n}", f"{gold}+0"]
        cheats += [f"({gold})*1", f"{t}+0*({'+'.join(map(str, numbers))})", f"{gold}*1.0", f"0{gold}", f"+{gold}"]
        cheats += [f"{gold} yes", f"{gold}\n{gold}", f"{gold};", f"{gold}#", f"({gold}", f"{gold})", f"-(-({gold}))"]
        cheats += [
            f"int('{t}')",
            f"{gold} or {t}",
            wide,
            gold.replace(str(n), f"{n}_0"),
            power,
            "9**9**9",
            "9**9**9**9",
        ]
        cheats += [f"{n}/0", f"{gold}/({n}-{n})", f"{gold}/0", "", " ", "\n", "()", "(" * 5000, "1" * 5000, "None"]
        cheats += [" ".join(map(str, numbers)), "nan", f"len('{'x' * t}')", "+".join(["1"] * t), "abs(-1)", "１２"]
        if len(set(numbers)) > 1:
            cheats += ["+".join([str(numbers[-1])] * len(numbers))]
        return cheats


def _expression(numbers: list[int], text: str) -> tuple[Node | None, str]:
    """The tree of an expression over exactly these numbers, or None and why not."""
    node = parse(text)
    if node is None:
        return None, "not an expression of numbers, + - * / and parentheses"
    used = leaves(node)
    if Counter(used) != Counter(numbers):
        return None, "does not use each number exactly once"
    if evaluate(node) is None:
        return None, "divides by zero"
    return node, ""


def _normal(node: Node) -> str:
    """Equal for expressions that differ by order and grouping alone: `3+(7-2)`, `7+3-2` and `7-(2-3)`."""
    if not isinstance(node, Op):
        return str(node)
    signs = "+-" if node.sign in "+-" else "*/"
    sides: tuple[list[str], list[str]] = ([], [])

    def gather(part: Node, side: int) -> None:
        if isinstance(part, Op) and part.sign in signs:
            gather(part.left, side)
            gather(part.right, side ^ (part.sign == signs[1]))
        else:
            text = _normal(part)
            sides[side].append(f"({text})" if isinstance(part, Op) and signs == "*/" else text)

    gather(node, 0)
    return signs[0].join(sorted(sides[0])) + "".join(signs[1] + text for text in sorted(sides[1]))


def _judge(numbers: list[int], target: int, text: str, claimed: bool) -> StepVerdict:
    if text.startswith("check"):
        return _judge_check(text, claimed)
    words = text.split(" ")
    verdict = words.pop() if words[-1] in ("yes", "no", "back") else ""
    free = Counter(numbers)
    kind = StepKind.BACKTRACK if verdict in ("no", "back") else StepKind.WORK
    last, why = None, ""
    for word in words:
        match = _OP.fullmatch(word)
        if match is None:
            return StepVerdict(text, None, StepKind.OTHER)
        x, y, last = int(match[1]), int(match[3]), int(match[4])
        free.subtract((x, y))
        if why:
            continue
        if min(free[x], free[y]) < 0:
            why = f"{word} takes a number that is not there"
        elif evaluate(Op(match[2], x, y)) != last:
            why = f"{word} is false"
        free[last] += 1
    if last is None:
        return StepVerdict(text, None, StepKind.OTHER)
    solved = +free == Counter({target: 1}) and last == target
    if not why and verdict and solved != (verdict == "yes"):
        why = f"{verdict}: the target is {'' if solved else 'not '}reached"
    return StepVerdict(text, not why, kind, why)


def _judge_check(text: str, claimed: bool) -> StepVerdict:
    """A check of what no attempt claimed is judged, but does not count as checking one's work."""
    match = _CHECK.fullmatch(text)
    node = parse(match[1]) if match else None
    value = None if node is None else evaluate(node)
    if match is None or value is None:
        return StepVerdict(text, None, StepKind.OTHER)
    right = (value == int(match[2])) == (match[3] == "ok")
    return StepVerdict(text, right, StepKind.CHECK if claimed else StepKind.OTHER, "" if right else f"it is {value}")
