"""matrix: progressive matrices in the manner of Raven (1938), as text. Which cell belongs at the `?`

A cell has one to three attributes, one character each: number `1`-`9`, shape `A`-`F`, fill `a`-`f`. Every attribute
follows one rule along all rows (at the hardest level perhaps along all columns). The lines of a thought:

    n 123 234 34? +1 5         the numbers by row, a rule that fits every row, and the value that it gives
    n 123 34? +1 5             the same from one complete row; `n 34? +1 5` from the last row alone
    n col 135 246 35? sum 8    the same by column
    s ABC CDE EA? none         no rule of the family fits these rows
    check 234 +1 ok            one complete row against a rule ("no": it does not fit); `check col 135 sum ok`
    check 345 +1 ok            the same of the last row with a value put in
    redo n 123 234 34? +1 5    replaces an earlier line
    give up                    no claim

Rules: `=` all the same; `+1 -1 +2 -2` steps, without wrapping around; `sum` third = first + second and `dif` third =
first - second (numbers only); `perm` every row has the same three values in some order. These are the rules of
Carpenter, Just and Shell (1990, "What one intelligence test measures") without distribution of two, which wants empty
cells. A problem is kept only if every rule of the family, by row or by column, that fits all that is seen gives the
same missing value: the answer is unique under the family.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mull.tasks.base import Solution, Task
from mull.types import Problem, Question, Reference, StepKind, StepVerdict, Verdict

# Habits of the people who write `imperfect` solutions, as probabilities.
CAREFUL = 0.21  # writes all rows of an attribute before naming a rule
HALF = 0.18  # writes one complete row and the last; everyone else is hurried and looks at the last row only
CHECK = (0.15, 0.35, 0.3)  # checks a rule: hurried, half, careful
FILLED = 0.4  # of those who check: on the last row with the value put in; the others on a complete row
SKIP = (0.25, 0.15, 0.02)  # leaves an attribute out and guesses it from a neighbour: hurried, half, careful
REPAIR = 0.85  # of those whose check fails: redoes the attribute with all rows
MORE = 0.3  # of those whom no rule fits yet: looks at one row more; the others guess
COLUMNS = 0.7  # of those whom no rule fits by row: tries the columns
# Slips, per occasion.
COPY = 0.008  # copies a neighbouring character
FIRST = 0.1  # having seen all rows, names a rule that fits only the first
VALUE = 0.08  # names a value one off, or another value of the row
BLIND = 0.1  # says ok to whatever is being checked

VALUES = {"n": "123456789", "s": "ABCDEF", "f": "abcdef"}
RULES = ("=", "+1", "-1", "+2", "-2", "perm", "sum", "dif")  # the last two for numbers only
ATTRIBUTES = {1: 1, 2: 2, 3: 3, 4: 3}  # per level
DRAWN = {  # rules that a level's problems are made of, the frequent ones repeated
    1: ("=", "+1", "-1", "perm", "perm", "perm", "sum", "sum"),
    2: ("=", "+1", "-1", "perm", "perm", "perm", "sum", "dif"),
    3: ("=", "+1", "-1", "+2", "-2", "perm", "perm", "perm", "perm", "sum", "dif"),
    4: ("+1", "-1", "+2", "-2", "perm", "perm", "perm", "perm", "sum", "dif"),
}
PLAIN = {1: 0.15, 2: 0.15, 3: 0.2, 4: 0.3}  # of the draws whose last row alone gives the answer away, so many are kept
BY_COLUMN = {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.4}  # probability that an attribute's rule acts along columns

_RULE = r"(=|[+-][12]|perm|sum|dif)"
_ATTRIBUTE = re.compile(
    rf"(redo )?([nsf]) (col )?((?:[1-9A-Fa-f]{{3}} ){{0,2}})([1-9A-Fa-f]{{2}})\? (?:{_RULE} (.)|none)"
)
_CHECK = re.compile(rf"check (col )?([1-9A-Fa-f]{{3}}) {_RULE} (ok|no)")
_CLAIM = re.compile(r"(redo |check |[nsf] )")  # how a line begins that means to claim something


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a matrix: per direction ("row", "col") two complete rows and the two known of the last."""

    name: str
    rows: dict[str, tuple[str, str, str]]
    answers: dict[str, dict[str, str]]  # per direction: every rule that fits all that is seen, and its value

    @property
    def values(self) -> set[str]:
        return {value for rules in self.answers.values() for value in rules.values()}


def third(rule: str, pair: str, name: str, row: str = "") -> str | None:
    """The value that `rule` puts after two; None when it cannot follow them. `perm` needs another complete row."""
    values = VALUES[name]
    a, b = values.index(pair[0]), values.index(pair[1])
    if rule == "perm":
        left = set(row) - set(pair)
        return left.pop() if len(set(row)) == 3 and a != b and len(left) == 1 else None
    if rule in ("sum", "dif") and name != "n":
        return None
    step = {"=": 0, "+1": 1, "-1": -1, "+2": 2, "-2": -2}.get(rule)
    if step is not None and b - a != step:
        return None
    c = a + b + 1 if rule == "sum" else a - b - 1 if rule == "dif" else 2 * b - a
    return values[c] if 0 <= c < len(values) else None


def fits(rule: str, row: str, name: str, other: str = "") -> bool:
    """Whether a complete row follows `rule`; `perm` against another complete row (none: three different values)."""
    return third(rule, row[:2], name, other or row) == row[2]


def fitting(rows: Sequence[str], pair: str, name: str) -> dict[str, str]:
    """Every rule that fits the complete rows and can go on after `pair`, with the value that it gives."""
    rules = [rule for rule in RULES if all(fits(rule, row, name, rows[0]) for row in rows)]
    found = {rule: third(rule, pair, name, rows[0] if rows else "") for rule in rules}
    return {rule: value for rule, value in found.items() if value is not None}


def attribute(name: str, cells: str) -> Attribute:
    """From the eight known values in reading order."""
    by_row = (cells[:3], cells[3:6], cells[6:8])
    by_col = (cells[0::3], cells[1::3], cells[2::3])
    rows = {"row": by_row, "col": by_col}
    return Attribute(name, rows, {way: fitting(r[:2], r[2], name) for way, r in rows.items()})


@lru_cache(1024)
def parse(text: str) -> tuple[Attribute, ...]:
    """The attributes of a question's text (made by `draw`), in the order of a cell's characters."""
    cells = text.split()[:8]
    names = ["n" if c in VALUES["n"] else "s" if c in VALUES["s"] else "f" for c in cells[0]]
    return tuple(attribute(name, "".join(cell[i] for cell in cells)) for i, name in enumerate(names))


@lru_cache(1024)
def _suggested(pair: str, name: str) -> frozenset[str]:
    """What somebody who sees no other row may expect after `pair`."""
    return frozenset(fitting((), pair, name).values())


def _draw_row(rule: str, values: str, chosen: list[str], name: str, rng: random.Random) -> str:
    """A complete row that follows `rule`."""
    while True:
        pair = "".join(rng.sample(chosen, 2) if rule == "perm" else rng.choices(values, k=2))
        if (value := third(rule, pair, name, "".join(chosen))) is not None:
            return pair + value


def _draw_cells(name: str, level: int, rng: random.Random) -> str:
    """Nine values of an attribute, in reading order, such that the first eight leave one answer."""
    values = VALUES[name]
    rules = [rule for rule in DRAWN[level] if name == "n" or rule not in ("sum", "dif")]
    rule = rng.choice(rules)
    while True:
        chosen = rng.sample(values, 3)
        cells = "".join(_draw_row(rule, values, chosen, name, rng) for _ in range(3))
        if rng.random() < BY_COLUMN[level]:
            cells = cells[0::3] + cells[1::3] + cells[2::3]
        if _suggested(cells[6:8], name) == {cells[8]} and rng.random() >= PLAIN[level]:
            continue
        if attribute(name, cells[:8]).values == {cells[8]}:
            return cells


class MatrixTask(Task):
    """See the module's docstring. Levels: one, two and three attributes; three with harder rules, also by column."""

    name = "matrix"
    levels = tuple(ATTRIBUTES)
    description = "the missing cell of a 3 by 3 matrix whose attributes follow rules"
    form = r"\S+ \S+ \S+\n\S+ \S+ \S+\n\S+ \S+ \?"
    max_thought = 256

    def draw(self, level: int, rng: random.Random) -> tuple[str, str, Reference]:
        names = sorted(rng.sample("nsf", ATTRIBUTES[level]), key="nsf".index)
        columns = [_draw_cells(name, level, rng) for name in names]
        cells = ["".join(parts) for parts in zip(*columns, strict=True)]
        shown = [*cells[:8], "?"]
        text = "\n".join(" ".join(shown[r : r + 3]) for r in (0, 3, 6))
        return text, text, Reference(cells[8])

    def canonical(self, question: Question, answer: str) -> str | None:
        names = [a.name for a in parse(question.text)]
        right = len(answer) == len(names) and all(c in VALUES[n] for c, n in zip(answer, names, strict=True))
        return answer if right else None

    def check(self, problem: Problem, answer: str) -> Verdict:
        if self.canonical(problem.question, answer) is None:
            return Verdict(False, error="not a cell of this matrix")
        return Verdict(answer == problem.reference.answer, answer)

    def check_steps(self, problem: Problem, thought: str) -> list[StepVerdict]:
        known = {a.name: a for a in parse(problem.question.text)}
        truth = dict(zip(known, problem.reference.answer, strict=True))
        out: list[StepVerdict] = []
        for line in filter(str.strip, thought.split("\n")):
            kind = StepKind.WORK
            if found := _ATTRIBUTE.fullmatch(line):
                if found[1] or not found[6]:
                    kind = StepKind.BACKTRACK  # a correction, or giving up a direction
                name = found[2]
                why = self._named(known[name], truth[name], found) if name in known else "there is no such attribute"
            elif found := _CHECK.fullmatch(line):
                kind, why = StepKind.CHECK, self._checked(known, found)
            elif _CLAIM.match(line):
                why = "not a line of a known form"
            else:
                out.append(StepVerdict(line, None, StepKind.OTHER))
                continue
            out.append(StepVerdict(line, not why, kind, why))
        return out

    @staticmethod
    def _named(known: Attribute, truth: str, found: re.Match[str]) -> str:
        """What is wrong with a line that names a rule; empty when nothing is."""
        *shown, last = known.rows["col" if found[3] else "row"]
        rows, pair, rule, value = found[4].split(), found[5], found[6], found[7]
        if pair != last or any(rows.count(row) > shown.count(row) for row in rows):
            return f"the matrix shows {' '.join(shown)} {last}?"
        rules = fitting(rows, pair, known.name)
        if rule is None:
            return f"{' '.join(rules)} fits" if rules else ""
        if rule not in rules:
            return f"{rule} does not fit"
        if value != rules[rule]:
            return f"{rule} gives {rules[rule]}"
        return "" if value == truth else "the rule does not fit the other rows"

    @staticmethod
    def _checked(known: dict[str, Attribute], found: re.Match[str]) -> str:
        """What is wrong with a check of a rule on a complete row; empty when nothing is."""
        way, row, rule = "col" if found[1] else "row", found[2], found[3]
        for name, a in known.items():
            one, two, last = a.rows[way]
            if row in (one, two) or row[:2] == last:
                right = fits(rule, row, name, two if row == one else one)
                return "" if right == (found[4] == "ok") else f"not {found[4]}"
        return f"{row} is no complete {way}"

    def solve(self, problem: Problem) -> Solution:
        lines, answer = [], ""
        for a in parse(problem.question.text):
            for way, mark in (("row", ""), ("col", "col ")):
                one, two, last = a.rows[way]
                rules = a.answers[way]
                if rules:
                    rule, value = next(iter(rules.items()))
                    lines.append(f"{a.name} {mark}{one} {two} {last}? {rule} {value}")
                    answer += value
                    break
                lines.append(f"{a.name} {mark}{one} {two} {last}? none")
        return Solution("\n".join(lines), answer)

    def imperfect(self, problem: Problem, rng: random.Random) -> Solution:
        lines: list[str] = []
        mood = rng.random()
        quoted = 2 if mood < CAREFUL else 1 if mood < CAREFUL + HALF else 0
        answer = ""
        for a in parse(problem.question.text):
            value = None
            if rng.random() >= SKIP[quoted]:
                value = _work(a, quoted, rng, lines)
            answer += value or rng.choice(a.rows["row"][2])  # a guess: like a cell beside it
        return Solution("\n".join(lines), answer)

    def red_team(self, problem: Problem) -> list[str]:
        gold, text = problem.reference.answer, problem.question.text
        cells = text.split()[:8]
        wrong = [
            "",
            "?",
            gold + " ",
            " " + gold,
            gold + "\n",
            f"{gold} ?",
            f"{gold} or {cells[0]}",
            f"{gold} {cells[0]}",
        ]
        wrong += [f"cell {gold}", f"{gold}.", f"({gold})", gold + gold, gold + gold[0], gold.swapcase(), gold[::-1]]
        wrong += [gold[1:], gold[:-1], gold[1:] + gold[0], " ".join(gold), ",".join(gold), text, *cells]
        for i, a in enumerate(parse(text)):
            wrong += [gold[:i] + value + gold[i + 1 :] for value in VALUES[a.name]]
        return [w for w in dict.fromkeys(wrong) if w != gold]


def _copied(row: str, rng: random.Random) -> str:
    """A row as it is written down: now and then one character is another of the same row."""
    return "".join(rng.choice(row) if rng.random() < COPY else c for c in row)


def _work(
    a: Attribute, quoted: int, rng: random.Random, lines: list[str], way: str = "row", redo: str = ""
) -> str | None:
    """Works one attribute out from `quoted` complete rows and the last, writing into `lines`; None when lost."""
    *shown, last = a.rows[way]
    mark, last = "col " if way == "col" else "", _copied(last, rng)
    while True:
        rows = [_copied(row, rng) for row in (shown if quoted == 2 else rng.sample(shown, quoted))]
        rules = fitting(rows[:1] if rng.random() < FIRST else rows, last, a.name)
        if rules or quoted == 2:
            break
        if rng.random() >= MORE:
            return None
        quoted += 1
    head = " ".join([*rows, last])
    if not rules:
        lines.append(f"{redo}{a.name} {mark}{head}? none")
        if way == "row" and rng.random() < COLUMNS:
            return _work(a, quoted, rng, lines, "col")
        lines.append("give up")
        return None
    rule = rng.choice(list(rules))
    value = rules[rule]
    if rng.random() < VALUE:
        i = VALUES[a.name].index(value)
        value = rng.choice([*VALUES[a.name][max(i - 1, 0) : i + 2], *last])
    lines.append(f"{redo}{a.name} {mark}{head}? {rule} {value}")
    if not redo and rng.random() < CHECK[quoted]:
        row = next((row for row in reversed(shown) if row not in rows), shown[1])  # rather one not looked at
        if rng.random() < FILLED:
            row = last + value
        right = rng.random() < BLIND or fits(rule, row, a.name, shown[0] if row == shown[1] else shown[1])
        lines.append(f"check {mark}{row} {rule} {'ok' if right else 'no'}")
        if not right and rng.random() < REPAIR:
            return _work(a, 2, rng, lines, way, "redo ") or value
    return value
