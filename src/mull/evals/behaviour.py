"""What a model's thoughts do: checks, second thoughts, false steps, and whether checking helped.

Everything is counted from `StepVerdict`s, which a task's checker reaches line by line, so none of it is a judge
model's opinion. A false step in a right answer is not a mistake of the grader: the thought may have noticed and
mended it, or been lucky.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from mull.evals.metrics import Estimate, bootstrap_mean, pass_at_1, percentile_interval, resampled_means
from mull.types import StepKind, StepVerdict

_LAST_WORD = re.compile(r"(\w+)\W*$")


@dataclass(frozen=True, slots=True)
class Thought:
    """One graded chain of thought. `problem` ties the samples of one problem together."""

    task: str
    problem: str
    correct: bool | None  # the answer's verdict; None: unscorable
    steps: Sequence[StepVerdict]
    tokens: int  # length of the thought


@dataclass(frozen=True, slots=True)
class Lengths:
    """Thought lengths in tokens: quantiles over all thoughts, and the mean with its interval over problems."""

    mean: Estimate
    p10: float
    median: float
    p90: float
    longest: int


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Counts over many thoughts; each `Estimate` is a mean over problems with an interval clustered by problem."""

    thoughts: int
    unscorable: int
    lines: Estimate  # lines per thought
    lengths: Lengths
    checks_per_thought: Estimate
    checks_per_line: Estimate
    with_check: Estimate  # share of thoughts that check at least once
    backtracks_per_thought: Estimate
    backtracks_per_line: Estimate
    with_backtrack: Estimate
    false_steps: Estimate  # share of the lines with a checkable claim that are false
    right_with_false_step: Estimate  # of the right answers, the share whose thought holds a false step
    accuracy_with_check: Estimate
    accuracy_without_check: Estimate
    check_gain: Estimate  # accuracy with minus without a check, within problems that have thoughts of both kinds
    accuracy_after_no: Estimate  # accuracy of the thoughts with a check that says no
    says_no: Estimate  # share of checks that say no


def last_word(step: StepVerdict) -> str:
    """Of a line, in small letters; "" where it has none."""
    found = _LAST_WORD.search(step.text)
    return found[1].lower() if found else ""


def check_says_no(step: StepVerdict) -> bool:
    """Whether a check line ends in `no`, as the tasks' checks write it ("check 3+4=8 no").

    >>> check_says_no(StepVerdict("check 3+4=8 no", True, StepKind.CHECK))
    True
    """
    return step.kind is StepKind.CHECK and last_word(step) == "no"


def describe(thoughts: Iterable[Thought], says_no: Callable[[StepVerdict], bool] = check_says_no) -> Behaviour:
    """Counts the behaviours of `thoughts`. `says_no` tells whether a check found a mistake."""
    clusters = _by_problem(thoughts)
    flat = [t for cluster in clusters for t in cluster]
    checked = [[t for t in c if _count(t, StepKind.CHECK)] for c in clusters]
    unchecked = [[t for t in c if not _count(t, StepKind.CHECK)] for c in clusters]
    denied = [[t for t in c if any(says_no(s) for s in t.steps)] for c in clusters]
    return Behaviour(
        thoughts=len(flat),
        unscorable=sum(t.correct is None for t in flat),
        lines=bootstrap_mean([[len(t.steps) for t in c] for c in clusters]),
        lengths=_lengths(clusters),
        checks_per_thought=bootstrap_mean([[_count(t, StepKind.CHECK) for t in c] for c in clusters]),
        checks_per_line=_marks(clusters, lambda t: [s.kind is StepKind.CHECK for s in t.steps]),
        with_check=_marks(clusters, lambda t: [_count(t, StepKind.CHECK) > 0]),
        backtracks_per_thought=bootstrap_mean([[_count(t, StepKind.BACKTRACK) for t in c] for c in clusters]),
        backtracks_per_line=_marks(clusters, lambda t: [s.kind is StepKind.BACKTRACK for s in t.steps]),
        with_backtrack=_marks(clusters, lambda t: [_count(t, StepKind.BACKTRACK) > 0]),
        false_steps=_marks(clusters, lambda t: [not s.ok for s in t.steps if s.ok is not None]),
        right_with_false_step=_marks(
            clusters, lambda t: [any(s.ok is False for s in t.steps)] if t.correct is True else []
        ),
        accuracy_with_check=_accuracy(checked),
        accuracy_without_check=_accuracy(unchecked),
        check_gain=_gain(checked, unchecked),
        accuracy_after_no=_accuracy(denied),
        says_no=_marks(clusters, lambda t: [says_no(s) for s in t.steps if s.kind is StepKind.CHECK]),
    )


def by_task(thoughts: Iterable[Thought]) -> dict[str, Behaviour]:
    """`describe` for each task, in the order of their names."""
    ordered = sorted(thoughts, key=lambda t: t.task)
    return {task: describe(list(group)) for task, group in groupby(ordered, key=lambda t: t.task)}


# Names for people, in the order of a table: attribute of `Behaviour`, label, unit ("share" or "count").
ROWS: tuple[tuple[str, str, str], ...] = (
    ("with_check", "Thoughts that check themselves", "share"),
    ("checks_per_thought", "Checks per thought", "count"),
    ("checks_per_line", "Lines that are checks", "share"),
    ("says_no", "Checks that say no", "share"),
    ("with_backtrack", "Thoughts that backtrack", "share"),
    ("backtracks_per_thought", "Backtracks per thought", "count"),
    ("backtracks_per_line", "Lines that backtrack", "share"),
    ("false_steps", "False steps among checkable ones", "share"),
    ("right_with_false_step", "Right answers with a false step", "share"),
    ("accuracy_with_check", "Accuracy of thoughts with a check", "share"),
    ("accuracy_without_check", "Accuracy of thoughts without a check", "share"),
    ("check_gain", "Gain from checking, same problem", "difference"),
    ("accuracy_after_no", "Accuracy after a check that says no", "share"),
    ("lines", "Lines per thought", "count"),
)


# ---------------------------------------------------------------------------------------------- counting


def _by_problem(thoughts: Iterable[Thought]) -> list[list[Thought]]:
    ordered = sorted(thoughts, key=lambda t: (t.task, t.problem))
    return [list(group) for _, group in groupby(ordered, key=lambda t: (t.task, t.problem))]


def _count(thought: Thought, kind: StepKind) -> int:
    return sum(step.kind is kind for step in thought.steps)


def _marks(clusters: Sequence[Sequence[Thought]], marks: Callable[[Thought], list[bool]]) -> Estimate:
    """The share of true marks: pooled within a problem, then the mean over the problems that have any."""
    return _drop_empty([[mark for thought in cluster for mark in marks(thought)] for cluster in clusters])


def _accuracy(clusters: Sequence[Sequence[Thought]]) -> Estimate:
    return _drop_empty([[t.correct for t in cluster] for cluster in clusters])


def _drop_empty(marks: list[list[bool]] | list[list[bool | None]]) -> Estimate:
    """`pass_at_1` of the problems with a mark: a problem that never checks is not "left out" of its checks."""
    return pass_at_1([m for m in marks if m])


def _gain(checked: Sequence[Sequence[Thought]], unchecked: Sequence[Sequence[Thought]]) -> Estimate:
    """Comparing within a problem takes away that hard problems are checked more; what remains is still no proof."""
    deltas, samples = [], 0
    for yes, no in zip(checked, unchecked, strict=True):
        a = [t.correct for t in yes if t.correct is not None]
        b = [t.correct for t in no if t.correct is not None]
        if a and b:
            deltas.append(sum(a) / len(a) - sum(b) / len(b))
            samples += len(a) + len(b)
    if not deltas:
        return Estimate(math.nan, -1.0, 1.0, 0)
    mean = float(np.mean(deltas))
    if len(deltas) == 1:
        return Estimate(mean, -1.0, 1.0, 1, samples)
    low, high = percentile_interval(resampled_means(np.array(deltas)[:, None])[:, 0])
    return Estimate(mean, min(low, mean), max(high, mean), len(deltas), samples)


def _lengths(clusters: Sequence[Sequence[Thought]]) -> Lengths:
    mean = bootstrap_mean([[t.tokens for t in c] for c in clusters])
    tokens = [t.tokens for c in clusters for t in c]
    if not tokens:
        return Lengths(mean, math.nan, math.nan, math.nan, 0)
    p10, median, p90 = (float(q) for q in np.percentile(tokens, [10, 50, 90]))
    return Lengths(mean, p10, median, p90, max(tokens))
