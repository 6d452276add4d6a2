"""Running a strategy over held-out problems: pools of graded samples, from which every metric and curve is drawn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from mull.chat import Chat
from mull.chat.effort import Effort, ask
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import UserError
from mull.evals.behaviour import Thought
from mull.evals.curves import Graded
from mull.evals.grade import grade
from mull.evals.metrics import Estimate, pass_at_1
from mull.ledger import Budget
from mull.search.sample import ON_POLICY, Decoding, sample
from mull.tasks.base import Checked, Split
from mull.types import Cost, Problem, SpanKind, Trace

Strategy = Callable[..., Awaitable[Trace]]


@dataclass(frozen=True)
class Held:
    """One held-out problem and the task that checks it."""

    task: Checked
    problem: Problem


@dataclass(repr=False)  # asyncio.run spells out what it returns (Python 3.11): every token of every trace, for nothing
class Evaluation:
    """Traces of one strategy on the same problems in order, graded."""

    held: list[Held]
    traces: list[Trace] = field(default_factory=list)

    @property
    def marks(self) -> list[list[bool | None]]:
        return [[v.correct for v in trace.verdicts] for trace in self.traces]

    @property
    def accuracy(self) -> Estimate:
        """pass@1, averaged over the samples of each problem."""
        return pass_at_1(self.marks)

    @property
    def cost(self) -> Cost:
        return sum((trace.cost for trace in self.traces), Cost())

    @property
    def exhausted(self) -> int:
        """Questions whose budget ran out before the strategy was done."""
        return sum(trace.exhausted for trace in self.traces)

    @property
    def lost(self) -> Counter[str]:
        """What failed on the way, and on how many questions."""
        return Counter(what for trace in self.traces for what in set(trace.lost))

    @property
    def chosen(self) -> Estimate:
        """Accuracy of the strategy's own choice."""
        return pass_at_1([[trace.verdict.correct if trace.verdict else None] for trace in self.traces])

    @property
    def pools(self) -> list[list[Graded]]:
        """Per problem its graded samples, each charged an equal share of the trace's cost."""
        return [[Graded(v, _share(trace.cost, len(trace.leaves))) for v in trace.verdicts] for trace in self.traces]

    def of(self, task: str) -> Evaluation:
        """The part of one task."""
        chosen = [i for i, h in enumerate(self.held) if h.task.name == task]
        return Evaluation([self.held[i] for i in chosen], [self.traces[i] for i in chosen])

    def thoughts(self, chat: Chat, each: int = 2) -> list[Thought]:
        """The first `each` samples of every problem with their steps judged, for the behaviour table."""
        out = []
        for held, trace in zip(self.held, self.traces, strict=True):
            for leaf, verdict in list(zip(trace.leaves, trace.verdicts, strict=True))[:each]:
                tokens = thought_tokens(trace, leaf)
                steps = held.task.check_steps(held.problem, chat.split(tokens)[0])
                out.append(Thought(held.task.name, held.problem.question.id, verdict.correct, steps, len(tokens)))
        return out


def thought_tokens(trace: Trace, leaf: int) -> list[int]:
    """Everything after the prompt on the way to `leaf`."""
    return [token for span in trace.path(leaf) if span.kind is not SpanKind.PROMPT for token in span.tokens]


def held_out(tasks: Sequence[Checked], levels: Sequence[int], n: int, split: Split, seed: int) -> list[Held]:
    """About `n` different problems, spread evenly over the tasks and those of `levels` that a task has."""
    cells = [(task, level) for task in tasks for level in levels if level in task.levels]
    if not cells:
        names = ", ".join(task.name for task in tasks)
        raise UserError(f"none of the tasks {names} has a level among {list(levels)}: choose other levels")
    share = -(-n // len(cells))
    return [Held(task, problem) for task, level in cells for problem in task.up_to(level, split, seed, share)]


async def evaluate(
    held: Sequence[Held],
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    strategy: Strategy = sample,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    on_done: Callable[[int], None] | None = None,
    at_once: int | None = None,
    effort: Effort | None = None,
) -> Evaluation:
    """Runs `strategy` on every problem at once (the sampler does the batching) and grades what comes back.

    Each problem gets a budget of its own, a copy of `budget`, and a seed from (`seed`, its place in the list). With
    `at_once` no more problems than that are under way at any time. When one fails, none of the others is left running.
    `effort` is what every prompt asks for, by words or tokens (see `mull.chat.effort`); graders do not see it.
    """
    done = 0
    entrance = asyncio.Semaphore(at_once or len(held) or 1)

    async def one(i: int, h: Held) -> Trace:
        nonlocal done
        own = Budget(budget.tokens, budget.think_tokens, budget.answer_tokens, budget.samples)
        async with entrance:
            question = ask(h.problem.question, effort)
            trace = await strategy(question, sampler, chat, own, decoding=decoding, seed=derive_seed(seed, i))
        done += 1
        if on_done:
            on_done(done)
        return grade(h.task, h.problem, trace)

    return Evaluation(list(held), await together(one(i, h) for i, h in enumerate(held)))


def _share(cost: Cost, n: int) -> Cost:
    parts = {name: getattr(cost, name) / n for name in cost.__slots__}
    return Cost(**parts)
