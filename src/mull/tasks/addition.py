"""Addition of two n-digit numbers, `624+259=?`, with the scratchpad of STaR (2203.14465; after Nye et al. 2112.00114).

The paper's lines, without the spaces that it put between digits for the sake of GPT-J's tokenizer:

    624+259,C:0     the problem, no digit of the answer yet, carry 0
    2+5,3C:1        the next two digits to add, the answer so far, the carry
    6+2,83C:0
    ,883C:0         nothing is left to add
    883             the carry, unless it is 0, in front of the answer so far

The level is the number of digits: 1 to 5 for training, 6 to 10 out of distribution. The other way of working adds in
pieces, from the left, which is also how an answer is checked:

    624+200=824
    824+50=874
    874+9=883
    883             (as a check: `check 883 ok`, or `check 873 no` of an answer that came out differently)
"""

from __future__ import annotations

import random
import re

from mull.tasks.arithmetic import integer
from mull.tasks.base import Solution, Task
from mull.types import Problem, Question, Reference, StepKind, StepVerdict, Verdict

# Habits of `imperfect`. A writer has one of five, drawn by these weights:
HABITS = {"careful": 0.17, "checking": 0.09, "hurried": 0.36, "pieces": 0.11, "direct": 0.27}
# how often a column's digit is wrong, and how often a carry is forgotten, by habit
DIGIT_SLIP = {"careful": 0.015, "checking": 0.02, "hurried": 0.11, "pieces": 0.05, "direct": 0.25}
CARRY_LOST = {"careful": 0.03, "checking": 0.03, "hurried": 0.28, "pieces": 0.1, "direct": 0.45}
SKIP_LINE = 0.2  # a hurried writer does two columns in one line
SKIPPED_SLIP = 0.15  # the digit of a column without a line of its own is wrong
DIRECT_LINE = 0.5  # a direct answer is also the thought's one line; else the thought is empty
LEVELS = 10

_SCRATCH = re.compile(r"(?:([0-9]{1,12})\+([0-9]{1,12}))?,([0-9]{0,12})C:([0-9]{1,2})")
_SUM = re.compile(r"([0-9]{1,12})\+([0-9]{1,12})=([0-9]{1,13})")
_CHECK = re.compile(r"check ([0-9]{1,13}) (ok|no)")
_SHARES = ((0, 0), (1, 0), (0, 1))  # a digit is part of neither number, of the left one, or of the right one


def _read(text: str) -> tuple[int, int, int]:
    """The operands and their number of digits."""
    a, b = text.removesuffix("=?").split("+")
    return int(a), int(b), len(a)


def _digit(number: int, place: int) -> int:
    return number // 10**place % 10


class _Writer:
    def __init__(self, a: int, b: int, digits: int, habit: str, rng: random.Random):
        self.a, self.b, self.digits, self.habit, self.rng = a, b, digits, habit, rng
        self.lines: list[str] = []

    def slips(self, rate: dict[str, float]) -> bool:
        return self.rng.random() < rate[self.habit]

    def column(self, place: int, carry: int) -> tuple[int, int]:
        """(digit, carry) as the writer gets them."""
        total = _digit(self.a, place) + _digit(self.b, place) + carry
        digit, out = total % 10, total // 10
        if self.slips(DIGIT_SLIP):
            digit = (digit + self.rng.choice((-1, 1))) % 10
        if out and self.slips(CARRY_LOST):
            out = 0
        return digit, out

    def scratchpad(self) -> int:
        so_far, carry = "", 0
        self.lines.append(f"{self.a}+{self.b},C:0")
        for place in range(self.digits):
            digit, carry = self.column(place, carry)
            last = place + 1 == self.digits
            skipped = self.habit == "hurried" and not last and self.rng.random() < SKIP_LINE
            if skipped and self.rng.random() < SKIPPED_SLIP:
                digit = (digit + self.rng.choice((-1, 1))) % 10
            so_far = f"{digit}{so_far}"
            if not skipped:
                ahead = "" if last else f"{_digit(self.a, place + 1)}+{_digit(self.b, place + 1)}"
                self.lines.append(f"{ahead},{so_far}C:{carry}")
        self.lines.append(str(int(f"{carry}{so_far}")))
        return int(self.lines[-1])

    def pieces(self) -> int:
        """Adds the second operand to the first, digit by digit from the left."""
        total = self.a
        for place in reversed(range(self.digits)):
            piece = _digit(self.b, place) * 10**place
            if not piece and self.b:
                continue
            wrong = 0
            if self.slips(DIGIT_SLIP):
                wrong = self.rng.choice((-1, 1)) * 10**place
            elif _digit(total, place) + _digit(self.b, place) > 9 and self.slips(CARRY_LOST):
                wrong = -(10 ** (place + 1))
            result = max(total + piece + wrong, 0)
            self.lines.append(f"{total}+{piece}={result}")
            total = result
        return total

    def direct(self) -> int:
        so_far, carry = "", 0
        for place in range(self.digits):
            digit, carry = self.column(place, carry)
            so_far = f"{digit}{so_far}"
        answer = int(f"{carry}{so_far}")
        if self.rng.random() < DIRECT_LINE:
            self.lines.append(str(answer))
        return answer

    def write(self) -> Solution:
        if self.habit == "direct":
            answer = self.direct()
        elif self.habit == "pieces":
            answer = self.pieces()
            self.lines.append(str(answer))
        else:
            answer = self.scratchpad()
        if self.habit == "checking":
            again = self.pieces()
            self.lines.append(f"check {answer} {'ok' if again == answer else 'no'}")
            if again != answer:
                answer = self.scratchpad()
        return Solution("\n".join(self.lines), str(answer))


class Addition(Task):
    name = "addition"
    levels = tuple(range(1, LEVELS + 1))
    description = "addition of two n-digit numbers with a scratchpad"
    form = r"\b[0-9]+\+[0-9]+=\?"
    max_thought = 320

    @property
    def easy_level(self) -> int:
        """Levels 1 and 2 are learnt by heart: level 1 has 55 problems in all, 5 of them in the test split."""
        return 3

    def draw(self, level: int, rng: random.Random) -> tuple[str, str, Reference]:
        low = 10 ** (level - 1) if level > 1 else 0
        a, b = rng.randint(low, 10**level - 1), rng.randint(low, 10**level - 1)
        return f"{min(a, b)}+{max(a, b)}", f"{a}+{b}=?", Reference(str(a + b))

    def key(self, question: Question) -> str:
        a, b, _ = _read(question.text)
        return f"{min(a, b)}+{max(a, b)}"

    def check(self, problem: Problem, answer: str) -> Verdict:
        value = integer(answer)
        if value is None:
            return Verdict(False, None, "not an integer")
        return Verdict(str(value) == problem.reference.answer, str(value))

    def canonical(self, question: Question, answer: str) -> str | None:
        value = integer(answer)
        return None if value is None else str(value)

    def check_steps(self, problem: Problem, thought: str) -> list[StepVerdict]:
        a, b, digits = _read(problem.question.text)
        verdicts: list[StepVerdict] = []
        columns: dict[int, str] = {}  # what was last written of so many digits
        answers: list[int] = []  # the numbers that stood alone on a line
        for text in thought.split("\n"):
            if not text.strip():
                continue
            kind, why = StepKind.WORK, None
            if match := _SCRATCH.fullmatch(text):
                why = _why_scratch(a, b, digits, text, match)
                before = columns.get(len(match[3]))
                if before is not None:
                    kind = StepKind.CHECK if before == text else StepKind.BACKTRACK
                columns[len(match[3])] = text
            elif match := _SUM.fullmatch(text):
                x, y, z = int(match[1]), int(match[2]), int(match[3])
                why = "" if x + y == z else f"{x}+{y} is {x + y}"
                if not why and not _are_parts(a, b, digits, x, y):
                    why = f"{x} and {y} are not parts of the problem"
                kind = StepKind.CHECK if answers else StepKind.WORK
            elif match := _CHECK.fullmatch(text):
                value = int(match[1])
                why = "" if (value == a + b) == (match[2] == "ok") else f"the sum is {a + b}"
                kind = StepKind.CHECK if value in answers else StepKind.OTHER
            elif (value := integer(text)) is not None:
                why = "" if value == a + b else f"the sum is {a + b}"
                if answers:
                    kind = StepKind.CHECK if value == answers[-1] else StepKind.BACKTRACK
                answers.append(value)
            if why is None:
                verdicts.append(StepVerdict(text, None, StepKind.OTHER))
            else:
                verdicts.append(StepVerdict(text, not why, kind, why))
        return verdicts

    def solve(self, problem: Problem) -> Solution:
        a, b, digits = _read(problem.question.text)
        carry, lines = 0, [f"{a}+{b},C:0"]
        for done in range(1, digits + 1):
            carry = (a % 10**done + b % 10**done) // 10**done
            ahead = f"{_digit(a, done)}+{_digit(b, done)}" if done < digits else ""
            lines.append(f"{ahead},{(a + b) % 10**done:0{done}}C:{carry}")
        return Solution("\n".join([*lines, str(a + b)]), str(a + b))

    def imperfect(self, problem: Problem, rng: random.Random) -> Solution:
        habit = rng.choices(list(HABITS), list(HABITS.values()))[0]
        return _Writer(*_read(problem.question.text), habit, rng).write()

    def red_team(self, problem: Problem) -> list[str]:
        a, b, digits = _read(problem.question.text)
        s = str(a + b)
        near = [str(a + b + d) for d in (-1, 1, 10, -(10**digits), 10**digits)]
        carryless = str(int("".join(str((_digit(a, p) + _digit(b, p)) % 10) for p in reversed(range(digits)))))
        wide = "".join(chr(0xFF10 + int(c)) for c in s)
        forms = [f"0{s}", f"+{s}", f"{s}.0", f"{s}.", f"{a}+{b}", f"{a}+{b}={s}", f"={s}", f"{s}=?", f"{s[0]}_{s}"]
        more = [
            f"{s} {s}",
            f"{s}\n{near[1]}",
            f"{near[1]} {s}",
            f"{s[:1]} {s[1:]}0",
            f"{int(s):,}.",
            f"{s}e0",
            f"'{s}'",
        ]
        wrong = [w for w in [carryless, s[::-1], s[1:], s + s] if w != s]
        return [*near, *wrong, wide, *forms, *more, "", " ", "?", "-", "9" * 5000]


def _why_scratch(a: int, b: int, digits: int, text: str, match: re.Match[str]) -> str:
    """Why a scratchpad line is false; empty when it is true."""
    done = len(match[3])
    if done > digits:
        return f"{digits} digits have no column {done}"
    if done == 0:
        ahead = {(str(a), str(b)), (str(b), str(a))}
    elif done == digits:
        ahead = {(None, None)}
    else:
        x, y = str(_digit(a, done)), str(_digit(b, done))
        ahead = {(x, y), (y, x)}
    if (match[1], match[2]) not in ahead:
        return "these are not the digits to add next"
    if done and int(match[3]) != (a + b) % 10**done:
        return f"the answer ends in {(a + b) % 10**done:0{done}}"
    carry = (a % 10**done + b % 10**done) // 10**done
    return "" if match[4] == str(carry) else f"the carry is {carry}"


def _are_parts(a: int, b: int, digits: int, x: int, y: int) -> bool:
    """Whether x and y are sums of digits of a and b at their places, no digit in both: `624+200` and `70+13` are
    parts of 624+259, `500+383` is not. Place by place, for all the ways to share out the two digits there."""
    states = {(x, y)}  # what is left of x and y, in units of the place
    for place in range(digits):
        p, q = _digit(a, place), _digit(b, place)
        shares = {(i * p + j * q, k * p + m * q) for i, k in _SHARES for j, m in _SHARES}
        states = {
            ((left - s) // 10, (right - t) // 10)
            for left, right in states
            for s, t in shares
            if left >= s and right >= t and (left - s) % 10 == 0 and (right - t) % 10 == 0
        }
    return (0, 0) in states
