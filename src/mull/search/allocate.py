"""`auto`: a few probe chains say how hard a question is, and a calibrated plan says what to spend on it.

The idea is Snell et al.'s compute-optimal scaling (2408.03314): the best strategy depends on the difficulty. Here the
difficulty is estimated from the question's own first chains, whose cost is charged, and the probes are not thrown away:
where the plan is to sample more chains they count among them, and easy questions are answered by them alone.

`mull calibrate` measures on a calibration split and writes the file that holds the plans.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mull.chat import Chat
from mull.engine.sampler import Sampler, derive_seed
from mull.errors import UserError
from mull.files import write_whole
from mull.ledger import Budget
from mull.scorers.base import Scorer
from mull.search.choose import Aggregate, Canonical, best, path_score, weighted_vote
from mull.search.difficulty import bin_of, features
from mull.search.node import LINES, Node, Steps
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import Tree
from mull.types import Question, SpanKind, Trace

Effort = Literal["by-n", "low", "medium", "high"]
FROM_CHAINS = ("vote", "weighted-vote", "best-of-n")  # what these choose from may include the probes


@dataclass(frozen=True)
class Plan:
    """What to do with a question of one difficulty. `samples` counts the probes where chains are voted on."""

    strategy: str  # as in --strategy
    samples: int


@dataclass(frozen=True)
class Point:
    """One way to spend: a plan for each difficulty bin, with what calibration expects of it."""

    plans: tuple[Plan, ...]
    flops: float  # mean per question, probes included
    accuracy: float  # cross-validated


@dataclass(frozen=True)
class Calibration:
    """What `mull calibrate` found for one model and scorer."""

    model: str
    scorer: str  # "" where none was used
    aggregate: Aggregate
    probe: int  # chains
    feature: str  # which of `difficulty.features` says how hard a question is
    edges: tuple[float, ...]  # between the bins, ascending
    chain_flops: float  # of one chain, scored where there is a scorer
    points: tuple[Point, ...]  # by ascending FLOPs
    efforts: dict[str, int]  # low, medium, high: index of a point
    about: dict[str, Any] = field(default_factory=dict)  # tasks, problems, seed, command, commit, machine, table

    def point(self, effort: Effort, n: int) -> Point:
        """That of an effort; "by-n": the most accurate one that costs at most what `n` chains cost on average."""
        if effort != "by-n":
            return self.points[self.efforts[effort]]
        affordable = [p for p in self.points if p.flops <= n * self.chain_flops * 1.001]
        return max(affordable, key=lambda p: p.accuracy, default=self.points[0])

    def save(self, path: Path) -> None:
        write_whole(path, (json.dumps({"mull_calibration": 1, **asdict(self)}, indent=1) + "\n").encode())


@functools.lru_cache(maxsize=8)
def load_calibration(path: str) -> Calibration:
    """Reads a calibration file; UserError when it is none."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        if raw.pop("mull_calibration") != 1:
            raise ValueError("it is of another version")
        points = tuple(
            Point(tuple(Plan(**plan) for plan in p["plans"]), p["flops"], p["accuracy"]) for p in raw.pop("points")
        )
        return Calibration(**{**raw, "edges": tuple(raw["edges"]), "points": points})
    except OSError as problem:
        raise UserError(
            f"the calibration file {path} cannot be read ({problem.strerror}): mull calibrate makes one"
        ) from None
    except (ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{path} is no calibration file ({problem}): mull calibrate makes one") from None


async def auto(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    calibration: str,
    canonical: Canonical,
    strategy_of: Any,
    scorer: Scorer | None = None,
    effort: Effort = "by-n",
    steps: Steps = LINES,
) -> Trace:
    """Probes, then what the calibrated plan says for a question that looks as hard. `budget.samples` chains' worth of
    FLOPs on average (not at most: a hard question may have more, an easy one has less), or an effort's.

    `strategy_of(text)` binds a strategy's name, scorer and all (`search.named` passes itself). With fewer than
    `probe` samples to spend there is nothing to allocate, and those few chains vote.
    """
    known = load_calibration(calibration)
    if known.scorer and scorer is None:
        raise UserError(f"{calibration} was calibrated with the scorer {known.scorer}: give it by --scorer")
    tree = Tree("auto", question, sampler, chat, budget, decoding, seed, scorer if known.scorer else None, steps)
    value = functools.partial(path_score, how=known.aggregate)
    small = effort == "by-n" and budget.samples < known.probe
    probes = await chains(tree, budget.samples if small else known.probe, known.aggregate)

    def choice(ends: Sequence[Node], how: str) -> Node | None:
        leaves = [end for end in ends if end.done]
        if how == "best-of-n":
            return best(leaves, value)
        weigh = value if how == "weighted-vote" and known.scorer else (lambda _: 1.0)
        return weighted_vote(question, leaves, weigh, canonical)

    rule = "weighted-vote" if known.scorer else "vote"
    if small:
        return await tree.finish(choice(probes, rule))
    seen = features(question, probes, canonical, value if known.scorer else None)
    plan = known.point(effort, budget.samples).plans[bin_of(seen[known.feature], known.edges)]
    name = plan.strategy.partition(":")[0]
    if name in FROM_CHAINS:
        more = await chains(tree, plan.samples - known.probe, known.aggregate) if plan.samples > known.probe else []
        return await tree.finish(choice([*probes, *more], name))
    left = None if budget.tokens is None else max(0, budget.tokens_left)
    own = replace(budget, tokens=left, samples=plan.samples, spent=type(budget.spent)())
    if left == 0:
        return await tree.finish(choice(probes, rule))
    sub = await strategy_of(plan.strategy)(question, sampler, chat, own, decoding=decoding, seed=derive_seed(seed, 1))
    tree.charge(replace(sub.cost, seconds=0.0))
    chosen = choice(probes, rule)
    trace = await tree.finish(chosen or sub.answer)
    graft(trace, sub)
    return trace


async def chains(tree: Tree, n: int, aggregate: Aggregate) -> list[Node]:
    """The ends of `n` more whole chains, those that came to no answer among them; scored where there is a scorer."""
    if n < 1:
        return []
    ends = await tree.complete(tree.root, n)
    if tree.scorer is not None:
        await tree.score([end for end in ends if end.done], whole_path=aggregate != "last")
    return ends


def graft(trace: Trace, sub: Trace) -> None:
    """Joins another trace of the same question at the root, and takes its choice if it came to one."""
    shift = len(trace.spans) - 1  # its root is ours
    for span in sub.spans[1:]:
        trace.spans.append(replace(span, parent=0 if span.parent == 0 else span.parent + shift))
    assert sub.spans[0].kind is SpanKind.PROMPT and sub.spans[0].tokens == trace.spans[0].tokens
    trace.leaves += [leaf + shift for leaf in sub.leaves]
    trace.answers += sub.answers
    trace.lost += sub.lost
    trace.exhausted |= sub.exhausted
    if sub.leaves:
        trace.answer, trace.chosen = sub.answer, sub.chosen + shift if sub.chosen >= 0 else -1
