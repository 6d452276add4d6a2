"""What the compare page is a pure function of: one JSON-able dict; and how a `Trace` becomes a tree in it.

Numbers of compute are means per question, everything charged: abandoned branches, scorers, difficulty probes.
A `task` is a task's name, or "mean" for the unweighted mean over tasks. `strategy` is always a `Strategy.name`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NotRequired, Protocol, TypedDict

from mull.evals.report_data import Interval, Line
from mull.types import Span, SpanKind, StepVerdict, Trace

OPEN, CLOSE = "<think>", "</think>"


class Strategy(TypedDict):
    name: str  # as in `--strategy`, with the scorer if that tells two apart: "best-of-n, prm"
    about: str  # one sentence for people, or ""


class BudgetPoint(TypedDict):
    """One strategy at one budget. `accuracy` is None where nothing could be judged."""

    budget: str  # what people read: "16 samples"
    flops: float
    tokens: float  # sampled
    seconds: float | None
    accuracy: float | None
    low: float
    high: float
    n: int  # problems
    seeds: int
    exhausted: int  # questions (over all seeds) whose budget ran out first


class Curve(TypedDict):
    strategy: str
    task: str
    points: list[BudgetPoint]


class PassAtK(TypedDict):
    """Oracle pass@k: picks by the reference answer, so it bounds what selection could reach. No strategy."""

    k: int
    flops: float
    tokens: float
    accuracy: Interval


class Reference(TypedDict):
    task: str
    greedy: Interval | None
    oracle: list[PassAtK]


class PredictionRow(TypedDict):
    """A `fits.Prediction`, as `Prediction.as_dict` gives it, with the strategy and task that it is about."""

    strategy: str
    task: str
    unit: str  # what `up_to` and `compute` count: flops, tokens or samples
    law: str  # log, power or coverage
    up_to: float  # the largest compute that the fit has seen
    compute: float  # where it predicts
    value: float
    low: float
    high: float
    made: str  # ISO time
    commit: str
    observed: Interval | None
    observed_at: str | None  # ISO time
    inside: bool | None  # whether the observed mean lies in [low, high]; None before it is known


class Choice(TypedDict):
    """Best of k by one scorer."""

    k: int
    accuracy: Interval
    score: Interval | None  # the scorer's mean value of what it chose; None for a vote


class ScorerCurve(TypedDict):
    scorer: str
    task: str
    points: list[Choice]


class Bin(TypedDict):
    low: float  # the base model's pass rate, of the problems in the bin
    high: float
    n: int  # problems


class DifficultyRow(TypedDict):
    strategy: str
    accuracy: list[Interval]  # one per bin


class Difficulty(TypedDict):
    """Accuracy by difficulty at one level of compute. `bins` go from the hardest to the easiest."""

    task: str
    budget: str  # what is held equal: "about 16 samples' compute"
    bins: list[Bin]
    rows: list[DifficultyRow]


class LatencyRow(TypedDict):
    strategy: str
    budget: str
    flops: float
    tokens: float
    seconds: Interval  # per question, wall-clock; bounds in seconds
    p95: float | None  # seconds
    accuracy: Interval


class Latency(TypedDict):
    task: str
    at: str  # what is held equal: "about 3.2 × 10⁹ FLOPs"
    rows: list[LatencyRow]


class Parameter(TypedDict):
    name: str  # as in the law: "a", "b"
    value: float
    low: float
    high: float


class FitRow(TypedDict):
    """A `fits.Fit` as its `as_dict` gives it, with what it is about."""

    strategy: str
    task: str
    unit: str
    law: str
    formula: str
    params: list[Parameter]
    n: int  # problems


class SelectorRow(TypedDict):
    """Of the right answers that a selector chose, the share whose thought holds a false step."""

    selector: str
    task: str
    share: Interval


class LuckyTrace(TypedDict):
    """A right answer by wrong reasoning."""

    selector: str
    task: str
    level: int
    question: str
    expected: str
    answer: str
    tokens: int
    lines: list[Line]


class WrongReasoning(TypedDict):
    rows: list[SelectorRow]
    traces: list[LuckyTrace]


class ExitRow(TypedDict):
    strategy: str
    questions: int  # over all tasks, budgets and seeds
    exhausted: int
    lost: int  # questions on which anything was lost


class LostRow(TypedDict):
    sentence: str
    count: int


class ExitSummary(TypedDict):
    rows: list[ExitRow]
    lost: list[LostRow]


NodeKind = Literal["prompt", "sampled", "forced", "tool"]


class Node(TypedDict):
    """A span. Parents come before their children."""

    parent: int  # -1 for a root
    text: str
    kind: str  # a NodeKind
    score: float | None
    visits: int
    pruned: bool
    tokens: int
    logprob: float | None  # sum over the span's tokens; None where none were kept
    stop: str | None
    ok: bool | None  # False: it ends a false line; True: only true ones; None: no claim


class Leaf(TypedDict):
    node: int
    answer: str
    correct: bool | None


class Tree(TypedDict):
    id: str  # unique on the page
    strategy: str
    task: str
    level: int
    budget: NotRequired[str]
    question: str
    answer: str
    correct: bool | None
    expected: str
    tokens: int
    flops: float
    exhausted: bool
    lost: list[str]
    nodes: list[Node]
    leaves: list[Leaf]
    winner: int  # a node, -1: none


class CompareData(TypedDict):
    title: str
    model: str
    summary: list[str]  # one or two sentences; the first is the headline
    tasks: list[str]
    problems: int  # per task
    seeds: list[int]
    date: str
    command: str
    commit: str
    machine: str
    device: str  # that the model ran on: cpu, cuda …; "" at an endpoint
    dtype: str  # of its weights; "" at an endpoint
    seconds: float  # wall-clock of the whole run
    versions: dict[str, str]
    strategies: list[Strategy]  # in the order of the legend
    curves: list[Curve]
    references: list[Reference]
    predictions: list[PredictionRow]
    scorers: list[ScorerCurve]
    difficulty: list[Difficulty]
    latency: list[Latency]
    fits: list[FitRow]
    wrong_reasoning: WrongReasoning
    exit: ExitSummary
    trees: list[Tree]


# ------------------------------------------------------------------------------------------------- trees


class Decodes(Protocol):
    """All that is needed of a `Chat`."""

    def decode(self, tokens: Iterable[int]) -> str: ...


def tree_data(
    trace: Trace,
    chat: Decodes,
    *,
    id: str,
    expected: str = "",
    strategy: str | None = None,
    budget: str = "",
    check: Callable[[str], Sequence[StepVerdict]] | None = None,
) -> Tree:
    """A graded trace as the page's tree viewer wants it.

    `check` judges the lines of a thought (`lambda thought: task.check_steps(problem, thought)`); without it no node
    has a verdict. `strategy` is the name in the page's legend where that is not `trace.strategy`.
    """
    texts = [chat.decode(span.tokens) for span in trace.spans]
    oks: list[bool | None] = step_oks(trace, texts, check) if check else [None] * len(texts)
    marks = [v.correct for v in trace.verdicts] or [None] * len(trace.leaves)
    return Tree(
        id=id,
        strategy=strategy or trace.strategy,
        task=trace.question.task,
        level=trace.question.level,
        budget=budget,
        question=trace.question.text,
        answer=trace.answer,
        correct=trace.verdict.correct if trace.verdict else None,
        expected=expected,
        tokens=trace.cost.sampled_tokens,
        flops=trace.cost.flops,
        exhausted=trace.exhausted,
        lost=list(trace.lost),
        nodes=[_node(*row) for row in zip(trace.spans, texts, oks, strict=True)],
        leaves=[
            Leaf(node=node, answer=answer, correct=correct)
            for node, answer, correct in zip(trace.leaves, trace.answers, marks, strict=True)
        ],
        winner=winner_of(trace),
    )


def _node(span: Span, text: str, ok: bool | None) -> Node:
    return Node(
        parent=span.parent,
        text=text,
        kind=str(span.kind),
        score=_known(span.score),
        visits=span.visits,
        pruned=span.pruned,
        tokens=len(span.tokens),
        logprob=_known(math.fsum(span.logprobs)) if span.logprobs else None,
        stop=None if span.stop is None else str(span.stop),
        ok=ok,
    )


def _known(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def winner_of(trace: Trace) -> int:
    """The leaf that stands for the trace's answer: of those that say the same (by their canonical forms where they
    were graded) the one with the best score, then the most visits, then the first; -1 when none does."""

    form = trace.verdict.answer if trace.verdict else None

    def same(i: int) -> bool:
        graded = form is not None and i < len(trace.verdicts)
        return trace.answers[i] == trace.answer or (graded and trace.verdicts[i].answer == form)

    def rank(i: int) -> tuple[float, int, int]:
        span = trace.spans[trace.leaves[i]]
        score = _known(span.score)
        return (-math.inf if score is None else score, span.visits, -i)

    saying = [i for i in range(len(trace.leaves)) if same(i)]
    return trace.leaves[max(saying, key=rank)] if saying and trace.answer else -1


def step_oks(trace: Trace, texts: list[str], check: Callable[[str], Sequence[StepVerdict]]) -> list[bool | None]:
    """A verdict per span: False where a false line ends in it, True where only true ones do, None without a claim.

    Every path from the root to a childless span is one thought, checked once. A line is charged to the span that
    holds its last character; an unfinished last line (the path was cut) is charged to none.
    """
    parents = {span.parent for span in trace.spans}
    oks: list[bool | None] = [None] * len(trace.spans)
    for end in range(len(trace.spans)):
        if end in parents:
            continue
        path: list[int] = []
        at = end
        while at >= 0:
            if trace.spans[at].kind is not SpanKind.PROMPT:
                path.insert(0, at)
            at = trace.spans[at].parent
        text = "".join([texts[i] for i in path])
        owners = [i for i in path for _ in texts[i]]  # one per character
        start = text.index(OPEN) + len(OPEN) if text.lstrip().startswith(OPEN) else 0
        stop = text.find(CLOSE, start)
        thought = text[start:] if stop < 0 else text[start:stop]
        lines = thought.split("\n")  # a thought's steps are its non-empty lines
        charged: list[int | None] = []
        position = start
        for number, line in enumerate(lines):
            if line.strip():
                finished = stop >= 0 or number < len(lines) - 1
                charged.append(owners[position + len(line.rstrip()) - 1] if finished else None)
            position += len(line) + 1
        for owner, verdict in zip(charged, check(thought.strip()), strict=False):
            if owner is not None and verdict.ok is not None:
                oks[owner] = verdict.ok and oks[owner] is not False
    return oks
