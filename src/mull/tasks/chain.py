"""Multi-hop variable arithmetic: `a=7;b=a+15;c=b*3;d=c-8;d?`. Every value is an integer from 0 to 99.

A hop is a definition that the answer needs and that takes an operation: 2-3 on level 1, 4-5 on level 2, 6-7 on
level 3, 8-10 on level 4. From level 2 on some definitions are not needed; from level 3 on their order is scrambled.

The careful way of working is one line a hop, in order of dependence:

    b=7+15=22
    c=22*3=66
    check 22*3=66 ok
    d=66-8=58

A hurried writer merges hops (`c=(7+15)*3=66`). A check repeats an equation and says whether it is true (`ok`, `no`);
after `no` the line is written again, and so is every line that used it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from mull.tasks.arithmetic import Node, Op, evaluate, integer, parse, slip
from mull.tasks.base import Solution, Task
from mull.types import Problem, Question, Reference, StepKind, StepVerdict, Verdict

# Habits of `imperfect`. A writer has one of four, drawn by these weights:
HABITS = {"careful": 0.22, "checking": 0.11, "hurried": 0.43, "guessing": 0.24}
CAREFUL_SLIP = 0.03  # a careful or checking writer gets a line wrong
HURRIED_SLIP = 0.15  # a hurried writer gets a one-hop line wrong
MERGED_SLIP = 0.28  # each of the hops that a hurried writer merges into one line goes wrong
MISREAD = 0.02  # a hurried line takes the value of a wrong variable
MERGE = 0.5  # a hurried writer merges a hop into the line of the next one
GIVE_UP = 0.04  # after a line, a hurried writer does the rest in the head, as a guesser does
GUESS_SLIP = 0.55  # each hop done in the head goes wrong
GUESS_LINE = 0.5  # a guesser writes the guess as a line; else the thought is empty
ALL_LINES = 0.15  # a writer works out what is not needed, too, as it becomes known
CHECK_AT_END = 0.4  # a checking writer checks after the last line; else after each line
CHECK_LINE = 0.6  # such a writer checks a given line
CATCH = 0.85  # a check finds a wrong equation wrong
FALSE_ALARM = 0.01  # a check finds a right equation wrong

HOPS = {1: (2, 3), 2: (4, 5), 3: (6, 7), 4: (8, 10)}
UNNEEDED = {1: (0, 0), 2: (1, 2), 3: (1, 3), 4: (2, 3)}
SCRAMBLED_FROM = 3

_LINE = re.compile(r"([a-z])=((?:[^=]+=)*)(-?[0-9]{1,6})")
_CHECK = re.compile(r"check ([^=]+)=(-?[0-9]{1,6}) (ok|no)")


@dataclass(slots=True)
class _System:
    """A question, read: the definitions in the order of the text, who is asked for, and the true values."""

    defs: dict[str, Node]
    asked: str
    values: dict[str, int] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)  # the hops that the answer needs, in order of dependence
    all_hops: list[str] = field(default_factory=list)  # every hop, each after what it uses, else as in the text


def _names(node: Node) -> list[str]:
    return [x for x in (node.left, node.right) if isinstance(x, str)] if isinstance(node, Op) else []


def _read(text: str) -> _System:
    *parts, asked = text.split(";")
    defs: dict[str, Node] = {}
    for part in parts:
        name, _, formula = part.partition("=")
        node = parse(formula)
        assert node is not None, f"not a chain question: {text!r}"
        defs[name] = node
    system = _System(defs, asked.rstrip("?"))

    def visit(name: str, order: list[str]) -> None:
        formula = defs[name]
        if isinstance(formula, int):
            system.values[name] = formula
        elif isinstance(formula, Op) and name not in order:
            for other in _names(formula):
                visit(other, order)
            system.values[name] = int(evaluate(formula, system.values) or 0)
            order.append(name)

    visit(system.asked, system.order)
    for name in defs:
        visit(name, system.all_hops)
    return system


def _compute(sign: str, left: int, right: int) -> int:
    return left + right if sign == "+" else left - right if sign == "-" else left * right


def _hop(names: list[str], values: dict[str, int], name: str, rng: random.Random) -> Op:
    """An operation on `name` whose value stays within 0..99; the other operand is a variable or a small number."""
    while True:
        sign = rng.choice("++--**")
        if len(names) > 1 and rng.random() < 0.3:
            other = rng.choice([n for n in names if n != name])
            left, right = (name, other) if rng.random() < 0.5 else (other, name)
            result = _compute(sign, values[left], values[right])
        else:
            left, right = name, rng.randint(2, 9) if sign == "*" else rng.randint(1, 20)
            result = _compute(sign, values[name], right)
        if 0 <= result <= 99 and (sign != "*" or result > 0):
            return Op(sign, left, right)


def _show(node: Node) -> str:
    return f"{node.left}{node.sign}{node.right}" if isinstance(node, Op) else str(node)


class _Writer:
    """One imperfect writer at work: what is on the page, and what the writer believes."""

    def __init__(self, system: _System, habit: str, rng: random.Random):
        self.system, self.habit, self.rng = system, habit, rng
        self.lines: list[str] = []
        self.believed = {n: d for n, d in system.defs.items() if isinstance(d, int)}
        self.written: dict[str, tuple[str, int, int]] = {}  # name: its equation, the value written, the true value

    def take(self, operand: Node, inline: dict[str, tuple[str, int]]) -> tuple[str, int]:
        if isinstance(operand, str) and operand in inline:
            text, value = inline[operand]
            return f"({text})", value
        value = self.believed[operand] if isinstance(operand, str) else operand
        assert isinstance(value, int)
        if self.habit == "hurried" and isinstance(operand, str) and self.rng.random() < MISREAD:
            value = self.rng.choice(list(self.believed.values()))
        return str(value), value

    def work(self, name: str, inline: dict[str, tuple[str, int]], slips: float) -> tuple[str, int, int]:
        """(equation's left side, value as computed, value that it really has)."""
        formula = self.system.defs[name]
        assert isinstance(formula, Op)
        left, x = self.take(formula.left, inline)
        right, y = self.take(formula.right, inline)
        right_value = _compute(formula.sign, x, y)
        value = slip(formula.sign, x, y, right_value, self.rng) if self.rng.random() < slips else right_value
        return f"{left}{formula.sign}{right}", value, right_value

    def line(self, name: str, inline: dict[str, tuple[str, int]] | None = None, slips: float = CAREFUL_SLIP) -> None:
        text, value, true = self.work(name, inline or {}, slips)
        self.lines.append(f"{name}={text}={value}")
        self.believed[name] = value
        self.written[name] = (text, value, true)

    def check(self, name: str) -> bool:
        """Writes a check of `name`'s equation; corrects the line if the check says no. True: corrected."""
        text, value, true = self.written[name]
        ok = self.rng.random() >= (FALSE_ALARM if value == true else CATCH)
        self.lines.append(f"check {text}={value} {'ok' if ok else 'no'}")
        if not ok:
            self.line(name)
        return not ok

    def rest_in_head(self, todo: list[str]) -> None:
        for name in todo:
            self.believed[name] = self.work(name, {}, GUESS_SLIP)[1]

    def careful(self, todo: list[str]) -> None:
        checking = self.habit == "checking"
        at_end = checking and self.rng.random() < CHECK_AT_END
        for name in todo:
            self.line(name)
            if checking and not at_end and self.rng.random() < CHECK_LINE:
                self.check(name)
        changed: set[str] = set()  # what a correction at the end touched: all that used it is written again
        for name in todo if at_end else ():
            if changed.intersection(_names(self.system.defs[name])):
                self.line(name)
                changed.add(name)
            elif self.rng.random() < CHECK_LINE and self.check(name):
                changed.add(name)

    def hurried(self, todo: list[str]) -> None:
        defs, inline = self.system.defs, {}
        for i, name in enumerate(todo):
            uses = sum(_names(defs[other]).count(name) for other in todo)
            next_uses = i + 1 < len(todo) and name in _names(defs[todo[i + 1]])
            mergeable = name != self.system.asked and uses == 1 and next_uses and not inline
            if mergeable and self.rng.random() < MERGE:
                text, value, _ = self.work(name, {}, MERGED_SLIP)
                inline = {name: (text, value)}
                continue
            self.line(name, inline, MERGED_SLIP if inline else HURRIED_SLIP)
            inline = {}
            if self.rng.random() < GIVE_UP:
                return self.rest_in_head(todo[i + 1 :])

    def write(self) -> Solution:
        todo = list(self.system.order)
        if self.habit == "guessing":
            self.rest_in_head(todo)
            if self.rng.random() < GUESS_LINE:
                self.lines.append(f"{self.system.asked}={self.believed[self.system.asked]}")
        else:
            if self.rng.random() < ALL_LINES:
                todo = list(self.system.all_hops)
            (self.hurried if self.habit == "hurried" else self.careful)(todo)
        return Solution("\n".join(self.lines), str(self.believed[self.system.asked]))


class Chain(Task):
    name = "chain"
    levels = (1, 2, 3, 4)
    description = "multi-hop variable arithmetic with values from 0 to 99"
    form = r"\b[a-z]=(?:[-+*a-z0-9]+;[a-z]=)*[-+*a-z0-9]+;[a-z]\?"
    max_thought = 360

    def draw(self, level: int, rng: random.Random) -> tuple[str, str, Reference]:
        hops, unneeded = rng.randint(*HOPS[level]), rng.randint(*UNNEEDED[level])
        bases = 1 if level == 1 else 2
        letters = rng.sample("abcdefghijklmnopqrstuvwxyz", bases + hops + unneeded)
        defs: dict[str, Node] = {}
        values: dict[str, int] = {}
        names = letters[:bases]
        for name in names:
            values[name] = rng.randint(1, 30)
            defs[name] = values[name]
        last = names[-1]
        for name in letters[bases : bases + hops]:
            defs[name] = hop = _hop(names, values, last, rng)
            values[name] = int(evaluate(hop, values) or 0)
            names, last = [*names, name], name
        asked = last
        for name in letters[bases + hops :]:
            defs[name] = hop = _hop(names, values, rng.choice(names), rng)
            values[name] = int(evaluate(hop, values) or 0)
            names = [*names, name]
        order = list(defs)
        if level >= SCRAMBLED_FROM:
            rng.shuffle(order)
        elif unneeded:  # what is not needed stands anywhere after what it uses
            for name in letters[bases + hops :]:
                order.remove(name)
                after = max(order.index(n) for n in _names(defs[name]))
                order.insert(rng.randint(after + 1, len(order)), name)
        text = ";".join(f"{name}={_show(defs[name])}" for name in order) + f";{asked}?"
        return _key(_read(text)), text, Reference(str(values[asked]))

    def key(self, question: Question) -> str:
        return _key(_read(question.text))

    def check(self, problem: Problem, answer: str) -> Verdict:
        value = integer(answer)
        if value is None:
            return Verdict(False, None, "not an integer")
        return Verdict(str(value) == problem.reference.answer, str(value))

    def canonical(self, question: Question, answer: str) -> str | None:
        value = integer(answer)
        return None if value is None else str(value)

    def check_steps(self, problem: Problem, thought: str) -> list[StepVerdict]:
        system = _read(problem.question.text)
        claimed: dict[str, int] = {}
        equations: set[str] = set()
        verdicts: list[StepVerdict] = []
        for text in thought.split("\n"):
            if not text.strip():
                continue
            if text.startswith("check"):
                verdicts.append(_judge_check(text, equations))
                continue
            match = _LINE.fullmatch(text)
            if match is None:
                verdicts.append(StepVerdict(text, None, StepKind.OTHER))
                continue
            name, sides, last = match[1], match[2].split("=")[:-1], match[3]
            value = int(last)
            kind = StepKind.WORK
            if name in claimed:
                kind = StepKind.CHECK if claimed[name] == value else StepKind.BACKTRACK
            claimed[name] = value
            equations.update(f"{side}={last}" for side in sides)
            why = _judge_line(system, name, sides, value)
            verdicts.append(StepVerdict(text, not why, kind, why))
        return verdicts

    def solve(self, problem: Problem) -> Solution:
        system = _read(problem.question.text)
        writer = _Writer(system, "careful", random.Random(0))
        for name in system.order:
            writer.line(name, slips=0.0)
        return Solution("\n".join(writer.lines), str(system.values[system.asked]))

    def imperfect(self, problem: Problem, rng: random.Random) -> Solution:
        habit = rng.choices(list(HABITS), list(HABITS.values()))[0]
        return _Writer(_read(problem.question.text), habit, rng).write()

    def red_team(self, problem: Problem) -> list[str]:
        a, system = problem.reference.answer, _read(problem.question.text)
        near = [str(int(a) + d) for d in (-1, 1, -10, 10, 100)]
        others = [str(v) for v in system.values.values() if str(v) != a]
        wide = "".join(chr(0xFF10 + int(c)) for c in a)
        arabic = "".join(chr(0x660 + int(c)) for c in a)
        forms = [f"{system.asked}={a}", f"{a}={a}", f"{a}.0", f"0{a}", f"+{a}", f"{a}?", f"{a}+0", f"{a[0]}_{a}"]
        more = [f"{a} {a}", f"{a}\n{near[1]}", f"{near[0]} or {a}", f"not {a}", "", " ", system.asked, "-", "None"]
        return [*near, *others, wide, arabic, *forms, *more, " ".join(map(str, range(100)))]


def _key(system: _System) -> str:
    """The same for questions that differ only in names, order, operands swapped, and what is not needed."""
    number = {name: f"#{i}" for i, name in enumerate(system.order)}

    def operand(node: Node) -> str:
        if isinstance(node, str):
            base = system.defs[node]
            return number[node] if isinstance(base, Op) else str(base)
        return str(node)

    hops = []
    for name in system.order:
        formula = system.defs[name]
        assert isinstance(formula, Op)
        pair = [operand(formula.left), operand(formula.right)]
        hops.append(formula.sign.join(pair if formula.sign == "-" else sorted(pair)))
    return "chain " + ";".join(hops)


def _is_way(system: _System, node: Node, target: Node) -> bool:
    """Whether `node` is `target` with some names replaced by their values or their definitions."""
    if isinstance(target, int) or isinstance(node, str):
        return node == target
    if isinstance(target, str):
        if isinstance(node, int):
            return node == system.values[target]
        return _is_way(system, node, system.defs[target])
    if not isinstance(node, Op) or node.sign != target.sign:
        return False
    if _is_way(system, node.left, target.left) and _is_way(system, node.right, target.right):
        return True
    return node.sign != "-" and _is_way(system, node.left, target.right) and _is_way(system, node.right, target.left)


def _judge_line(system: _System, name: str, sides: list[str], value: int) -> str:
    """Why the line `name=side=...=value` is false; empty when it is true."""
    if name not in system.values:
        return f"{name} is not defined"
    for side in sides:
        node = parse(side)
        if node is None or not _is_way(system, node, name):
            return f"{side} is not how {name} is defined, or uses a wrong value"
    return "" if value == system.values[name] else f"{name} is {system.values[name]}"


def _judge_check(text: str, equations: set[str]) -> StepVerdict:
    """A check of an equation that no line stated is judged, but does not count as checking one's work."""
    match = _CHECK.fullmatch(text)
    node = parse(match[1]) if match else None
    value = None if node is None else evaluate(node)
    if match is None or value is None:
        return StepVerdict(text, None, StepKind.OTHER)
    kind = StepKind.CHECK if f"{match[1]}={match[2]}" in equations else StepKind.OTHER
    right = (value == int(match[2])) == (match[3] == "ok")
    return StepVerdict(text, right, kind, "" if right else f"{match[1]} is {value}")
