"""What the report page is a pure function of: one JSON-able dict, and the words that are drawn from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

from mull.evals.behaviour import ROWS, Behaviour
from mull.evals.curves import CurvePoint, LogFit


class Interval(TypedDict):
    """A mean over n problems with its 95% interval, as `Estimate.as_dict` gives it. Shares lie in [0, 1]."""

    mean: float | None
    low: float
    high: float
    n: int


class Point(TypedDict):
    """A `CurvePoint`: totals of training, or means per problem at test time. Points of zero compute are not drawn."""

    flops: float
    tokens: float
    accuracy: float | None
    low: float
    high: float
    label: str
    n: int


class TrainCurve(TypedDict):
    name: str  # the task's, or what the mean and the control are called
    role: Literal["task", "mean", "control"]
    points: list[Point]


class Fit(TypedDict):
    """A `LogFit`: accuracy gained per doubling of compute, with its interval."""

    b: float
    low: float
    high: float
    doublings: float


class TestCurve(TypedDict):
    task: str  # "mean" for the mean over tasks
    model: Literal["base", "trained"]
    method: Literal["vote", "budget"]  # majority vote over samples, or a thinking budget with forced ending
    points: list[Point]
    fit: NotRequired[Fit | None]


class Line(TypedDict):
    """A `StepVerdict`. `ok` is None for a line without a checkable claim."""

    text: str
    ok: bool | None
    kind: str  # work, check, backtrack, other
    why: str


class Thought(TypedDict):
    right: bool | None  # None: the answer could not be judged
    answer: str
    tokens: int
    lines: list[Line]


class Pair(TypedDict):
    """One held-out question, thought about before and after training."""

    task: str
    level: int
    question: str
    expected: str  # a correct answer
    before: Thought
    after: Thought


class BehaviourRow(TypedDict):
    name: str
    unit: Literal["share", "count", "difference"]
    before: Interval
    after: Interval


class Metric(TypedDict):
    """One quantity over training steps. A None value is a step at which it was not measured."""

    name: str
    unit: str  # "share" is shown as a percentage; otherwise the unit, or empty
    steps: list[int]
    values: list[float | None]


class Phase(TypedDict):
    """One line of the ledger."""

    phase: str
    sampled_tokens: int
    prefill_tokens: int
    cached_tokens: int
    trained_tokens: int
    flops: float
    seconds: float


class Control(TypedDict):
    """A model that the trained one is held against, on the same problems."""

    name: str  # "Random rewards"
    accuracy: Interval
    gain: Interval | None  # the trained one minus it, paired, in shares


class PassAt1(TypedDict):
    base: Interval
    trained: Interval
    gain: Interval | None  # paired, in shares (0.2 is 20 points)
    controls: list[Control]


class Lengths(TypedDict):
    before: list[int]  # tokens of each thought
    after: list[int]


class Opinion(TypedDict):
    """What a scorer thinks of the chains of each step, beside what is true of them, both as shares."""

    steps: list[int]
    scorer: list[float | None]
    truth: list[float | None]


class Extra(TypedDict, total=False):
    """What some runs have."""

    opinion: Opinion
    note: str  # what a reader must know of the figures


class ReportData(Extra):
    title: str
    model: str  # as people call it: "nano-base (1.6 M parameters)"
    method: str  # how it was trained: "reinforcement learning"
    tasks: list[str]
    date: str
    pass_at_1: PassAt1  # over all tasks, held out
    train: list[TrainCurve]
    test: list[TestCurve]
    thoughts: list[Pair]
    lengths: Lengths
    behaviours: list[BehaviourRow]
    metrics: list[Metric]
    ledger: list[Phase]
    seconds: float  # wall-clock of the whole run
    command: str
    seed: int
    versions: dict[str, str]
    machine: str
    commit: str


# ------------------------------------------------------------------------------------------- from results


def points(curve: Sequence[CurvePoint]) -> list[dict[str, Any]]:
    return [p.as_dict() for p in curve]


def fit(found: LogFit) -> Fit:
    return Fit(b=found.b, low=found.low, high=found.high, doublings=found.doublings)


def behaviour_rows(before: Behaviour, after: Behaviour) -> list[dict[str, Any]]:
    """The behaviours table: every row of `behaviour.ROWS`, before and after training."""
    return [
        {
            "name": name,
            "unit": unit,
            "before": getattr(before, attribute).as_dict(),
            "after": getattr(after, attribute).as_dict(),
        }
        for attribute, name, unit in ROWS
    ]


# ------------------------------------------------------------------------------------------------- words


def opinions(found: Opinion, part: int = 5) -> str:
    """What the scorer thought and what was true, over the first and over the last steps, in one sentence.

    >>> opinions({"steps": [1, 2], "scorer": [0.25, 0.75], "truth": [0.5, None]}, part=1)
    'The scorer: 25.0% at first, 75.0% at last (means of 1 step). The truth: 50.0%, then –.'
    """

    def ends(values: Sequence[float | None]) -> list[str]:
        known = [[v for v in some if v is not None] for some in (values[:part], values[-part:])]
        return [percent(sum(some) / len(some)) if some else "–" for some in known]

    scorer, truth = ends(found["scorer"]), ends(found["truth"])
    steps = min(part, len(found["steps"]))
    means = f"means of {steps} step{'s' if steps > 1 else ''}"
    return f"The scorer: {scorer[0]} at first, {scorer[1]} at last ({means}). The truth: {truth[0]}, then {truth[1]}."


def headline(data: ReportData) -> str:
    """What was trained, on what, how much better it became and in how long, in one sentence.

    It claims a change only where the interval of the paired gain excludes zero (without one: where the two
    intervals are apart).
    """
    base, trained, gain = data["pass_at_1"]["base"], data["pass_at_1"]["trained"], data["pass_at_1"]["gain"]
    start = f"In a run of {duration(data['seconds'])}, {data['method']} on {listing(data['tasks'])}"
    before, after = percent(base["mean"], 0), percent(trained["mean"], 0)
    if gain is not None and gain["mean"] is not None:
        changed = gain["low"] > 0 or gain["high"] < 0
    else:
        changed = trained["low"] > base["high"] or trained["high"] < base["low"]
    if changed:
        return f"{start} took {data['model']} from {before} to {after} of held-out problems right at the first try."
    return f"{start} left {data['model']} about where it was on held-out problems: {before} before, {after} after."


def listing(words: Sequence[str]) -> str:
    """
    >>> listing(["addition", "chain", "maze"])
    'addition, chain and maze'
    """
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def duration(seconds: float) -> str:
    """
    >>> duration(492), duration(47.2), duration(7500)
    ('8 min 12 s', '47 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}%"


def power(value: float) -> str:
    """A large number for people.

    >>> power(1.234e13), power(0), power(8200)
    ('1.23 × 10¹³', '0', '8,200')
    """
    if abs(value) < 1e6:
        return f"{value:,.0f}"
    exponent = math.floor(math.log10(abs(value)))
    mantissa = value / 10**exponent
    if f"{abs(mantissa):.2f}" == "10.00":
        mantissa, exponent = mantissa / 10, exponent + 1
    return f"{mantissa:.2f} × 10{str(exponent).translate(str.maketrans('0123456789-', '⁰¹²³⁴⁵⁶⁷⁸⁹⁻'))}"
