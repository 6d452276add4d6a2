"""The Task contract, and what every task shares: splits that cannot overlap, stable ids, self-validation.

A thought is text; its steps are its non-empty lines. A task's `check_steps` judges every line against the problem,
not against one reference solution: any correct way of working is right, and any false line is wrong.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from mull.errors import UserError, nearest
from mull.types import Problem, Question, Reference, StepVerdict, Verdict

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
MAX_MISSES = 5000  # draws in a row outside a split: by chance once in e^322 for the smallest, 1/16


def split_of(key: str) -> Split:
    """The split that a problem belongs to, from a hash of its canonical key: 1/8 test, 1/16 valid, the rest train.

    Membership is a property of the problem, not of the generator's seed, so that no two splits can share a problem.
    """
    h = hashlib.blake2b(key.encode(), digest_size=8).digest()[0]
    return "test" if h < 32 else "valid" if h < 48 else "train"


@dataclass(frozen=True, slots=True)
class Solution:
    """A worked solution: the thought (lines of text, no thought tags) and the final answer."""

    thought: str
    answer: str


@dataclass(slots=True)
class Validation:
    """What `Task.validate` found: every failure is a sentence."""

    checked: int = 0
    failures: list[str] = field(default_factory=list)


@runtime_checkable
class Checked(Protocol):
    """Problems and their checks: all that training, search and evaluation need of a task.

    `Task` below satisfies it, and so do the adapters for data sets and for reasoning-gym, which have no solver and no
    step checks of their own. `problems`, `up_to` and `stream` are as in `Task`.
    """

    # Properties, so that a class may say `levels = (1, 2)`: a protocol's plain attributes must match exactly.
    @property
    def name(self) -> str: ...

    @property
    def levels(self) -> tuple[int, ...]: ...

    @property
    def description(self) -> str: ...

    @property
    def max_thought(self) -> int: ...

    def stream(self, level: int, split: Split, seed: int) -> Iterator[Problem]: ...

    def problems(self, level: int, split: Split, seed: int, n: int) -> list[Problem]: ...

    def up_to(self, level: int, split: Split, seed: int, n: int) -> list[Problem]: ...

    def check(self, problem: Problem, answer: str) -> Verdict: ...

    def check_steps(self, problem: Problem, thought: str) -> list[StepVerdict]: ...

    def canonical(self, question: Question, answer: str) -> str | None: ...


def refuse_unknown(task: Checked, level: int, split: str) -> None:
    """UserError for a level that the task has not, or a split that does not exist."""
    if level not in task.levels:
        known = f"{min(task.levels)} to {max(task.levels)}" if len(task.levels) > 1 else f"only {min(task.levels)}"
        raise UserError(f"task {task.name} has no level {level}; its levels are {known}")
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}{nearest(split, SPLITS)}; the splits are {', '.join(SPLITS)}")


def members(task: Checked, split: Split, drawn: Iterator[tuple[str, Problem]]) -> Iterator[Problem]:
    """Those of the (key, problem) pairs whose key falls into `split`; UserError rather than an endless search."""
    misses = 0  # in a row
    for key, problem in drawn:
        misses = 0 if split_of(key) == split else misses + 1
        if misses == 0:
            yield problem
        elif misses > MAX_MISSES:
            raise UserError(
                f"task {task.name} level {problem.question.level} has no {split} problems: it has too few in all"
            )


def different(stream: Iterator[Problem], n: int) -> list[Problem]:
    """The first `n` different problems of an endless stream, or as many as a long look finds."""
    found: dict[str, Problem] = {}
    nothing_new = 0  # draws in a row
    for problem in stream if n > 0 else ():
        nothing_new = nothing_new + 1 if problem.question.id in found else 0
        found.setdefault(problem.question.id, problem)
        if len(found) == n or nothing_new > 50 * len(found) + 1000:
            break
    return list(found.values())


class Task(ABC):
    """One family of checkable problems with difficulty levels.

    Subclasses are final. They implement `draw` (any problem of a level) and the checks; splits, ids and validation
    are here.
    """

    name: str
    levels: tuple[int, ...]  # ascending difficulty; levels[0] is the easy one
    description: str  # one sentence for people
    form: str = ""  # a regular expression that finds its questions in other text; empty: they have no form of their own
    max_thought: int = 256  # characters that a sensible chain of thought of the hardest level stays below

    @property
    def easy_level(self) -> int:
        """Where training starts: the first level with enough different problems to measure on."""
        return self.levels[0]

    # --- what a task implements

    @abstractmethod
    def draw(self, level: int, rng: random.Random) -> tuple[str, str, Reference]:
        """One problem: (canonical key, question text, reference). Equal problems have equal keys."""

    @abstractmethod
    def check(self, problem: Problem, answer: str) -> Verdict:
        """Judges a final answer. Strict: the answer alone, no superset, no second try."""

    @abstractmethod
    def check_steps(self, problem: Problem, thought: str) -> list[StepVerdict]:
        """Judges every non-empty line of a thought, in order."""

    @abstractmethod
    def canonical(self, question: Question, answer: str) -> str | None:
        """The form that votes are counted by; None when `answer` is not of the task's form. Sees no reference."""

    @abstractmethod
    def solve(self, problem: Problem) -> Solution:
        """The reference solver's clean worked solution: every step right."""

    @abstractmethod
    def imperfect(self, problem: Problem, rng: random.Random) -> Solution:
        """A worked solution as people really write them, for pretraining: see the task for its habits."""

    @abstractmethod
    def red_team(self, problem: Problem) -> list[str]:
        """Wrong answers that a sloppy checker might pay for."""

    def key(self, question: Question) -> str:
        """The canonical key that `draw` gave with this question. Override it where the key is not the text itself."""
        return question.text

    # --- what every task shares

    def problem(self, level: int, rng: random.Random) -> tuple[str, Problem]:
        key, text, reference = self.draw(level, rng)
        digest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
        return key, Problem(Question(f"{self.name}/{level}/{digest}", self.name, text, level), reference)

    def stream(self, level: int, split: Split, seed: int) -> Iterator[Problem]:
        """Endless problems of one level and split, the same for the same seed; repeats are possible."""
        refuse_unknown(self, level, split)
        rng = random.Random(f"{self.name}/{level}/{split}/{seed}")
        yield from members(self, split, (self.problem(level, rng) for _ in itertools.count()))

    def problems(self, level: int, split: Split, seed: int, n: int) -> list[Problem]:
        """`n` different problems; UserError when the level has too few."""
        found = self.up_to(level, split, seed, n)
        if len(found) < n:
            raise UserError(
                f"task {self.name} level {level} has only about {len(found)} different {split} problems, "
                f"{n} were asked for"
            )
        return found

    def up_to(self, level: int, split: Split, seed: int, n: int) -> list[Problem]:
        """`n` different problems, or as many as a long look finds where the level has fewer."""
        return different(self.stream(level, split, seed), n)

    def validate(self, n: int = 50, seed: int = 0) -> Validation:
        """Runs the checker on its own gold answers and solutions, and on the red-team list; a level with fewer than
        `n` problems is checked on those that it has."""
        out = Validation()
        for level in self.levels:
            for problem in self.up_to(level, "train", seed, n):
                out.checked += 1
                where = f"{problem.question.id} {problem.question.text!r}"
                gold = self.solve(problem)
                for answer in {problem.reference.answer, gold.answer}:
                    if self.check(problem, answer).correct is not True:
                        out.failures.append(f"{where}: gold answer {answer!r} is refused")
                    if self.canonical(problem.question, answer) is None:
                        out.failures.append(f"{where}: gold answer {answer!r} has no canonical form")
                for step in self.check_steps(problem, gold.thought):
                    if step.ok is False:
                        out.failures.append(f"{where}: gold step {step.text!r} is refused: {step.why}")
                for wrong in self.red_team(problem):
                    if self.check(problem, wrong).correct is not False:
                        out.failures.append(f"{where}: wrong answer {wrong!r} is paid")
        return out
