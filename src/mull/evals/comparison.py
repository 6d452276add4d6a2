"""From cells (one strategy, budget, task and seed each) to the parts of the compare page.

A cell holds one row per problem and, where the strategy drew whole chains, the pool of their scores and verdicts. The
same problems stand in every cell of a task, in order, so differences between strategies are paired.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mull.evals import compare_data as page
from mull.evals import metrics
from mull.evals.evaluate import Evaluation, Held, thought_tokens
from mull.evals.fits import Fit, fit_coverage, fit_line, fit_power
from mull.evals.report_data import Line
from mull.evals.selection import Scored, best_of_n, number_forms, weighted_vote
from mull.search.choose import Aggregate, aggregate
from mull.types import SpanKind, StepVerdict, Trace

MEAN = "mean"


@dataclass
class Cell:
    """JSON-able results of one strategy at one budget on one task's problems with one seed."""

    strategy: str
    budget: int
    task: str
    seed: int
    rows: list[dict[str, Any]]
    pools: list[list[tuple[float | None, bool | None, str | None]]] = field(default_factory=list)
    seconds: float = 0.0


def cell(
    strategy: str, budget: int, seed: int, evaluation: Evaluation, chat: Any, pools_by: Aggregate | None = None
) -> Cell:
    """What is kept of an evaluation; with `pools_by` the leaves, too, each with its path's score by that aggregate."""
    rows = []
    for held, trace in zip(evaluation.held, evaluation.traces, strict=True):
        verdict, cost = trace.verdict, trace.cost
        steps = winning_steps(held, trace, chat) if verdict is not None and verdict.correct else []
        judged = [step.ok for step in steps if step.ok is not None]
        rows.append(
            {
                "id": held.problem.question.id,
                "level": held.problem.question.level,
                "correct": None if verdict is None else verdict.correct,
                "wrong_step": not all(judged) if judged else None,  # of right answers
                "tokens": cost.sampled_tokens,
                "prefill_tokens": cost.prefill_tokens,
                "cached_tokens": cost.cached_tokens,
                "scorer_tokens": cost.scorer_tokens,
                "flops": cost.flops,
                "exhausted": trace.exhausted,
                "lost": sorted(set(trace.lost)),
            }
        )
    pools = []
    if pools_by is not None:
        for trace in evaluation.traces:
            scores = [leaf_score(trace, leaf, pools_by) for leaf in trace.leaves]
            pool = [(s, v.correct, v.answer) for s, v in zip(scores, trace.verdicts, strict=True)]
            # A chain that came to no answer is one of the N all the same: wrong, and last in any order.
            pools.append(pool + [(0.0, False, None)] * (budget - len(pool)))
    task = evaluation.held[0].task.name
    return Cell(strategy, budget, task, seed, rows, pools)


def leaf_score(trace: Trace, leaf: int, how: Aggregate) -> float | None:
    """The path's score, as the strategies aggregate it; None where no step was scored."""
    scores = [span.score for span in trace.path(leaf) if span.kind is SpanKind.SAMPLED and span.score is not None]
    return aggregate(scores, how) if scores else None


def winning_steps(held: Held, trace: Trace, chat: Any) -> list[StepVerdict]:
    """The judged lines of the thought that gave the answer; none where no single leaf did."""
    if trace.chosen < 0:
        return []
    return held.task.check_steps(held.problem, chat.split(thought_tokens(trace, trace.chosen))[0])


def lucky(evaluation: Evaluation, chat: Any, selector: str) -> list[page.LuckyTrace]:
    """Right answers whose thought holds a false step."""
    out = []
    for held, trace in zip(evaluation.held, evaluation.traces, strict=True):
        if trace.verdict is None or not trace.verdict.correct:
            continue
        steps = winning_steps(held, trace, chat)
        if any(step.ok is False for step in steps):
            out.append(
                page.LuckyTrace(
                    selector=selector,
                    task=trace.question.task,
                    level=trace.question.level,
                    question=trace.question.text,
                    expected=held.problem.reference.answer,
                    answer=trace.answer,
                    tokens=trace.cost.sampled_tokens,
                    lines=[Line(text=s.text, ok=s.ok, kind=str(s.kind), why=s.why) for s in steps],
                )
            )
    return out


class Cells:
    """All cells of a comparison, by strategy, budget and task."""

    def __init__(self, cells: Iterable[Cell]):
        self.cells = list(cells)
        self.tasks = list(dict.fromkeys(c.task for c in self.cells))
        self.strategies = list(dict.fromkeys(c.strategy for c in self.cells))
        self.seeds = sorted({c.seed for c in self.cells})

    def of(self, strategy: str, budget: int, task: str) -> list[Cell]:
        """One per seed and task; `task` may be "mean"."""
        wanted = self.tasks if task == MEAN else [task]
        return [c for c in self.cells if c.strategy == strategy and c.budget == budget and c.task in wanted]

    def budgets(self, strategy: str) -> list[int]:
        return sorted({c.budget for c in self.cells if c.strategy == strategy})

    def marks(self, strategy: str, budget: int, task: str) -> list[list[bool | None]]:
        """Per problem one mark for each seed. The mean over tasks is that over all their problems: as many of each."""
        by_problem: dict[tuple[str, str], list[bool | None]] = {}
        for c in self.of(strategy, budget, task):
            for row in c.rows:
                by_problem.setdefault((c.task, row["id"]), []).append(row["correct"])
        return list(by_problem.values())

    def mean(self, strategy: str, budget: int, task: str, key: str) -> float:
        return float(np.mean([row[key] for c in self.of(strategy, budget, task) for row in c.rows]))

    def shown_tasks(self) -> list[str]:
        return [MEAN, *self.tasks] if len(self.tasks) > 1 else self.tasks


# ------------------------------------------------------------------------------------------------ curves


def point(cells: Cells, strategy: str, budget: int, task: str) -> page.BudgetPoint:
    e = metrics.pass_at_1(cells.marks(strategy, budget, task))
    found = cells.of(strategy, budget, task)
    return page.BudgetPoint(
        budget=f"N = {budget}",
        flops=cells.mean(strategy, budget, task, "flops"),
        tokens=cells.mean(strategy, budget, task, "tokens"),
        seconds=None,
        accuracy=None if math.isnan(e.mean) else e.mean,
        low=e.low,
        high=e.high,
        n=e.n,
        seeds=len({c.seed for c in found}),
        exhausted=sum(row["exhausted"] for c in found for row in c.rows),
    )


def curves(cells: Cells, leave_out: Sequence[str] = ()) -> list[page.Curve]:
    return [
        page.Curve(strategy=s, task=task, points=[point(cells, s, n, task) for n in cells.budgets(s)])
        for s in cells.strategies
        if s not in leave_out
        for task in cells.shown_tasks()
    ]


def pools(cells: Cells, strategy: str, task: str) -> list[list[tuple[float | None, bool | None, str | None]]]:
    """Per problem all samples of the largest budget, over the seeds."""
    budgets = [n for n in cells.budgets(strategy) if any(c.pools for c in cells.of(strategy, n, task))]
    if not budgets:
        return []
    merged: dict[tuple[str, str], list] = {}
    for c in cells.of(strategy, budgets[-1], task):
        for row, pool in zip(c.rows, c.pools, strict=True):
            merged.setdefault((c.task, row["id"]), []).extend(pool)
    return list(merged.values())


def oracle(cells: Cells, strategy: str, task: str) -> list[page.PassAtK]:
    """pass@k from the pools of a strategy that samples whole chains; compute: k times the mean chain's."""
    found = pools(cells, strategy, task)
    if not found or not min(map(len, found)):
        return []
    marks = [[correct for _, correct, _ in pool] for pool in found]
    top = cells.budgets(strategy)[-1]
    flops = cells.mean(strategy, top, task, "flops") / top
    tokens = cells.mean(strategy, top, task, "tokens") / top
    out = []
    for k in (2**i for i in range(min(map(len, marks)).bit_length())):
        out.append(
            page.PassAtK(k=k, flops=k * flops, tokens=k * tokens, accuracy=_interval(metrics.pass_at_k(marks, k)))
        )
    return out


# ---------------------------------------------------------------------------------- scorers, difficulty, fits


def scored_pools(found: Sequence[Sequence[tuple[float | None, bool | None, str | None]]]) -> list[Scored]:
    """Unscorable samples and those without a score are left out; problems without any sample, too."""
    out = []
    for pool in found:
        kept = [(s, c, f) for s, c, f in pool if s is not None and c is not None]
        if kept:
            scores, correct, forms = zip(*kept, strict=True)
            out.append(Scored(np.array(scores, float), np.array(correct, float), number_forms(forms)))
    return out


def scorer_curve(cells: Cells, strategy: str, scorer: str, task: str, vote: bool = False) -> page.ScorerCurve | None:
    """Accuracy of the best of N by the scorer, and what the scorer thinks of it: truth against proxy as N grows."""
    found = scored_pools(pools(cells, strategy, task))
    if not found:
        return None
    m = min(len(pool.scores_M) for pool in found)
    ns = [2**i for i in range(m.bit_length())]
    accuracy_PX = np.array([weighted_vote(p, ns) if vote else best_of_n(p, ns)[0] for p in found])
    score_PX = np.array([best_of_n(p, ns)[1] for p in found])
    points = []
    for x, n in enumerate(ns):
        score = metrics.bootstrap_mean([[v] for v in score_PX[:, x]])
        points.append(
            page.Choice(
                k=n,
                accuracy=_interval(metrics.share(accuracy_PX[:, x].tolist(), n * len(found))),
                score=None if vote else _interval(score),
            )
        )
    return page.ScorerCurve(scorer=scorer, task=task, points=points)


def difficulty(cells: Cells, base: str, budget: int, task: str, bins: int = 5) -> page.Difficulty | None:
    """Accuracy by quantile of the base pass rate, measured on `base`'s chains, hardest first."""
    found = pools(cells, base, task)
    if len(found) < bins:
        return None
    rates = np.array([np.mean([c is True for _, c, _ in pool]) for pool in found])
    order = np.argsort(rates, kind="stable")
    groups = np.array_split(order, bins)
    names = [s for s in cells.strategies if budget in cells.budgets(s)]
    rows = []
    for s in names:
        marks = cells.marks(s, budget, task)
        if len(marks) == len(found):
            accuracy = [_interval(metrics.pass_at_1([marks[i] for i in group])) for group in groups]
            rows.append(page.DifficultyRow(strategy=s, accuracy=accuracy))
    return page.Difficulty(
        task=task,
        budget=f"N = {budget}",
        bins=[page.Bin(low=float(rates[g].min()), high=float(rates[g].max()), n=len(g)) for g in groups],
        rows=rows,
    )


def values(cells: Cells, strategy: str, budgets: Sequence[int], task: str) -> np.ndarray:
    """`[problems, budgets]` accuracies, means over seeds, NaN where nothing could be judged."""
    columns = []
    for n in budgets:
        marks = [[m for m in ms if m is not None] for ms in cells.marks(strategy, n, task)]
        columns.append([sum(ms) / len(ms) if ms else math.nan for ms in marks])
    return np.array(columns).T


def fits(cells: Cells, strategy: str, task: str, unit: str = "flops", up_to: int | None = None) -> list[Fit]:
    """The log-linear law and the power law of the error through a strategy's points; none with fewer than three."""
    budgets = [n for n in cells.budgets(strategy) if up_to is None or n <= up_to]
    if len(budgets) < 3:
        return []
    x = [float(n) if unit == "samples" else cells.mean(strategy, n, task, unit) for n in budgets]
    if len(set(x)) < 3 or min(x) <= 0:
        return []
    table = values(cells, strategy, budgets, task)
    return [fit_line(x, table), fit_power(x, table)]


def coverage(cells: Cells, strategy: str, task: str) -> Fit | None:
    marks = [[c for _, c, _ in pool if c is not None] for pool in pools(cells, strategy, task)]
    if not marks or min(map(len, marks)) < 4:
        return None
    ks = [2**i for i in range(min(map(len, marks)).bit_length())]
    table = np.array([[metrics.pass_at_k_of(len(ms), sum(ms), k) for k in ks] for ms in marks])
    return fit_coverage(ks, table) if table[:, 0].any() else None


# ----------------------------------------------------------------------------------- reasoning, exit summary


def wrong_reasoning(cells: Cells, budget: int) -> list[page.SelectorRow]:
    """Of the right answers that a strategy chose, the share whose thought holds a false step."""
    rows = []
    for s in cells.strategies:
        for task in cells.tasks:
            marks = [
                [row["wrong_step"] for c in cells.of(s, budget, task) for row in c.rows if row["id"] == problem]
                for problem in dict.fromkeys(row["id"] for c in cells.of(s, budget, task) for row in c.rows)
            ]
            marks = [[m for m in ms if m is not None] for ms in marks]
            marks = [ms for ms in marks if ms]
            if marks:
                rows.append(page.SelectorRow(selector=s, task=task, share=_interval(metrics.pass_at_1(marks))))
    return rows


def exit_summary(cells: Cells) -> page.ExitSummary:
    rows, lost = [], Counter()
    for s in cells.strategies:
        found = [row for c in cells.cells if c.strategy == s for row in c.rows]
        lost.update(what for row in found for what in row["lost"])
        rows.append(
            page.ExitRow(
                strategy=s,
                questions=len(found),
                exhausted=sum(row["exhausted"] for row in found),
                lost=sum(bool(row["lost"]) for row in found),
            )
        )
    sentences = [page.LostRow(sentence=what, count=count) for what, count in lost.most_common()]
    return page.ExitSummary(rows=rows, lost=sentences)


def _interval(e: metrics.Estimate) -> Any:
    return e.as_dict()
