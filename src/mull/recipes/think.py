"""Asking a model one question: chains of thought, the answer that was chosen, and what all of it cost."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import UserError
from mull.evals.evaluate import thought_tokens
from mull.evals.grade import grade
from mull.learn.samples import truncated
from mull.ledger import Budget
from mull.models import hf
from mull.progress import printable
from mull.recipes.rl import model_folder
from mull.search.sample import Decoding, sample, sample_forced
from mull.search.vote import majority, vote
from mull.tasks.base import Checked
from mull.tasks.load import load_task
from mull.types import Problem, Question, SpanKind, StepVerdict, Trace

DEMO = Path("runs/demo/model")  # where `mull demo` leaves its model


@dataclass(frozen=True)
class Ask:
    """What to ask and how long to think about it. With a `task` its problem is the question."""

    text: str = ""
    task: str | None = None
    level: int | None = None  # None: the easiest
    samples: int = 1
    budget: int | None = None  # thinking tokens of each chain; None: 512, or what the context leaves
    strategy: str = "sample"  # sample, vote or forced
    temperature: float = 1.0
    seed: int = 0
    answer_tokens: int = 64


@dataclass
class Chain:
    """One chain of thought, as text and as counts of sampled tokens (control tokens among them)."""

    raw: str
    thought: str
    answer: str  # "" when the chain ended without one
    think_tokens: int
    answer_tokens: int
    forced: bool  # its thought was ended by force
    steps: list[StepVerdict]  # judged lines, with a task


@dataclass
class Thinking:
    trace: Trace
    chains: list[Chain]
    prompt_tokens: int
    seconds: float
    problem: Problem | None


def default_model() -> tuple[str, str]:
    """(what to load, how to call it): the demo's model where there is one, else the one that ships."""
    if (DEMO / "config.json").is_file():
        return str(DEMO), f"{DEMO} (trained by mull demo)"
    return "nano", "nano (ships with mull; mull demo trains a better one)"


def think(ask: Ask, model: str) -> Thinking:
    """Loads the model and runs the strategy. UserError for what cannot be asked (an over-long prompt among it)."""
    task, problem = draw(ask) if ask.task is not None else (None, None)
    question = problem.question if problem else Question("free", "free", ask.text)
    folder = model_folder(model)
    chat = Chat.load(folder)
    engine = LocalEngine(hf.load(folder), chat, max_sequences=min(ask.samples, 256))
    prompt = chat.prompt(question.text)
    room = engine.config.max_positions - len(prompt) - ask.answer_tokens - len(chat.think_close)
    budget = min(512, max(room, 1)) if ask.budget is None else ask.budget
    if ask.strategy == "forced" and budget > room:
        raise UserError(
            f"a prompt of {len(prompt)} tokens, {budget} of thinking and {ask.answer_tokens} of answer do not fit into "
            f"the model's context of {engine.config.max_positions}: ask for at most {max(room, 0)} thinking tokens"
        )
    limits = Budget(think_tokens=budget, answer_tokens=ask.answer_tokens, samples=ask.samples)
    decoding = Decoding(temperature=ask.temperature)
    canonical = task.canonical if task else same_text
    started = time.perf_counter()
    if ask.strategy == "vote":
        trace = asyncio.run(vote(question, engine, chat, limits, decoding, ask.seed, canonical=canonical))
    elif ask.strategy == "forced":
        trace = asyncio.run(sample_forced(question, engine, chat, limits, decoding, ask.seed))
        trace.answer = majority(trace, canonical)
    else:
        trace = asyncio.run(sample(question, engine, chat, limits, decoding, ask.seed))
    seconds = time.perf_counter() - started
    if task and problem:
        grade(task, problem, trace)
    chains = [chain(trace, i, chat, task, problem) for i in range(len(trace.leaves))]
    return Thinking(trace, chains, len(prompt), seconds, problem)


def draw(ask: Ask) -> tuple[Checked, Problem]:
    """A held-out problem of the task, another one for every seed."""
    task = load_task(ask.task or "")
    level = task.levels[0] if ask.level is None else ask.level
    return task, next(task.stream(level, "test", ask.seed))


def same_text(question: Question, answer: str) -> str | None:
    """Free answers are equal when they are the same words: nobody knows their form."""
    return " ".join(answer.split()).casefold() or None


def chain(trace: Trace, i: int, chat: Chat, task: Checked | None, problem: Problem | None) -> Chain:
    leaf = trace.leaves[i]
    spans = [span for span in trace.path(leaf) if span.kind is not SpanKind.PROMPT]
    tokens = thought_tokens(trace, leaf)
    sampled = [span.kind is SpanKind.SAMPLED for span in spans for _ in span.tokens]
    ends = _end_of_thought(tokens, chat.think_close)
    thought, _, _ = chat.split(tokens)
    return Chain(
        raw=chat.decode(tokens),
        thought=thought,
        answer=trace.answers[i],
        think_tokens=sum(sampled[:ends]),
        answer_tokens=sum(sampled[ends:]),
        forced=any(span.kind is SpanKind.FORCED for span in spans),
        steps=task.check_steps(problem, thought) if task and problem else [],
    )


def _end_of_thought(tokens: Sequence[int], close: Sequence[int]) -> int:
    """The index behind the closing tag; the length where the thought was never closed."""
    for at in range(len(tokens) - len(close) + 1):
        if tuple(tokens[at : at + len(close)]) == tuple(close):
            return at + len(close)
    return len(tokens)


# ----------------------------------------------------------------------------------------------- showing


def usage(thinking: Thinking) -> str:
    """What was spent, over all chains."""
    cost, chains = thinking.trace.cost, thinking.chains
    many = f"{len(chains)} chains: " if len(chains) > 1 else ""
    return (
        f"{many}{sum(c.think_tokens for c in chains)} thinking tokens, {sum(c.answer_tokens for c in chains)} answer "
        f"tokens, {thinking.prompt_tokens} prompt tokens, {thinking.seconds:.2f} s, {cost.flops:.3g} FLOPs"
    )


def show(thinking: Thinking, model: str, raw: bool = False) -> None:
    """Prints it: the thought dim where the terminal can, a model's text never as control codes or markup."""
    if raw:
        for one in thinking.chains:
            print(one.raw)
        print(usage(thinking), file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)

    def put(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style=style))

    put(f"model: {model}", "dim")
    if thinking.problem is not None:
        question = thinking.problem.question
        put(f"{question.task}, level {question.level}, held out", "dim")
        put(question.text, "bold")
    for number, one in enumerate(thinking.chains, 1):
        if len(thinking.chains) > 1:
            put(f"— chain {number} of {len(thinking.chains)}", "dim")
        if one.steps:
            marks = {True: ("✓ ", "green dim"), False: ("✗ ", "red"), None: ("  ", "dim")}
            for step in one.steps:
                mark, style = marks[step.ok]
                put(f"{mark}{step.text}{f'   ({step.why})' if step.why else ''}", style)
        elif one.thought:
            put(one.thought, "dim")
        if one.forced:
            put("(the thought was ended at its budget)", "dim")
        if len(thinking.chains) > 1:
            put(f"→ {one.answer or '(no answer)'}", "dim")
    if thinking.trace.answer:
        put(thinking.trace.answer, "bold")
    else:
        cut = any(truncated([thinking.trace]))
        put(
            f"(no answer: {'the chain ran out of tokens' if cut else 'the model ended its turn without one'})", "yellow"
        )
    if thinking.problem is not None and (verdict := thinking.trace.verdict) is not None:
        expected = f"; a right answer is {thinking.problem.reference.answer}"
        words = {
            True: ("right", "green"),
            False: (f"wrong{expected}", "red"),
            None: (f"could not be judged ({verdict.error}){expected}", "yellow"),
        }
        put(*words[verdict.correct])
    put(usage(thinking), "dim")
