"""Asking a model one question: chains of thought, the answer that was chosen, and what all of it cost."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mull.chat import Chat, effort
from mull.errors import UserError
from mull.evals.evaluate import thought_tokens
from mull.evals.grade import grade
from mull.learn.samples import truncated
from mull.ledger import Budget
from mull.progress import printable
from mull.search.choose import same_text
from mull.search.named import named, of_the_problem
from mull.search.sample import Decoding
from mull.search.sources import Opened, Source, opened
from mull.search.vote import majority
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
    strategy: str = "sample"  # see search/named.py
    temperature: float = 1.0
    seed: int = 0
    answer_tokens: int = 64
    tokens: int | None = None  # that may be sampled in all
    calibration: str = ""  # for the strategy auto
    effort: str = ""  # that the prompt asks for: low, medium, high, or tokens


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


def think(ask: Ask, source: Source | str) -> Thinking:
    """Loads the model and runs the strategy. UserError for what cannot be asked (an over-long prompt among it)."""
    task, problem = draw(ask) if ask.task is not None else (None, None)
    plain = problem.question if problem else Question("free", "free", ask.text)
    question = effort.ask(plain, effort.effort_of(ask.effort))
    chosen = named(ask.strategy)
    source = Source(source) if isinstance(source, str) else source
    canonical = of_the_problem(task.canonical) if task else same_text

    async def ask_it() -> Thinking:
        async with opened(replace(source, max_sequences=min(max(ask.samples, 1), 256))) as tools:
            chat = tools.chat
            prompt = chat.prompt(question.asked)
            limits = Budget(ask.tokens, _think_tokens(ask, tools, len(prompt)), ask.answer_tokens, ask.samples)
            strategy = tools.bind(chosen, canonical, ask.calibration)
            started = time.perf_counter()
            decoding = Decoding(temperature=ask.temperature)
            trace = await strategy(question, tools.sampler, chat, limits, decoding=decoding, seed=ask.seed)
            seconds = time.perf_counter() - started
            if chosen.name == "forced":
                trace.answer = majority(trace, canonical)
            if task and problem:
                grade(task, problem, trace)
            chains = [chain(trace, i, chat, task, problem) for i in range(len(trace.leaves))]
            return Thinking(trace, chains, len(prompt), seconds, problem)

    return asyncio.run(ask_it())


def _think_tokens(ask: Ask, tools: Opened, prompt: int) -> int:
    """The thinking budget of one chain: as asked, or 512, or what the model's context leaves."""
    if tools.context is None:
        return 512 if ask.budget is None else ask.budget
    room = tools.context - prompt - ask.answer_tokens - len(tools.chat.think_close)
    if ask.budget is None:
        return min(512, max(room, 1))
    if ask.strategy != "sample" and ask.strategy != "vote" and ask.budget > room:
        raise UserError(
            f"a prompt of {prompt} tokens, {ask.budget} of thinking and {ask.answer_tokens} of answer do not fit into "
            f"the model's context of {tools.context}: ask for at most {max(room, 0)} thinking tokens"
        )
    return ask.budget


def draw(ask: Ask) -> tuple[Checked, Problem]:
    """A held-out problem of the task, another one for every seed."""
    task = load_task(ask.task or "")
    level = task.levels[0] if ask.level is None else ask.level
    return task, next(task.stream(level, "test", ask.seed))


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


PLAIN = ("sample", "sample_forced", "vote")  # strategies whose leaves share nothing but the prompt


def usage(thinking: Thinking) -> str:
    """What was spent, over all chains or the whole tree."""
    cost, chains = thinking.trace.cost, thinking.chains
    end = f"{thinking.prompt_tokens} prompt tokens, {thinking.seconds:.2f} s"
    end += f", {cost.flops:.3g} FLOPs" if cost.flops else ", FLOPs unknown"
    if thinking.trace.strategy in PLAIN:
        many = f"{len(chains)} chains: " if len(chains) > 1 else ""
        thought, answer = sum(c.think_tokens for c in chains), sum(c.answer_tokens for c in chains)
        return f"{many}{thought} thinking tokens, {answer} answer tokens, {end}"
    scored = f"{cost.scorer_tokens} read by the scorer, " if cost.scorer_tokens else ""
    return (
        f"{thinking.trace.strategy}: {len(thinking.trace.spans) - 1} steps, {len(chains)} answers, "
        f"{cost.sampled_tokens} sampled tokens, {scored}{end}"
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
    plain = thinking.trace.strategy in PLAIN
    shown = thinking.chains if plain else winner(thinking)
    for number, one in enumerate(shown, 1):
        if len(shown) > 1:
            put(f"— chain {number} of {len(shown)}", "dim")
        if one.steps:
            marks = {True: ("✓ ", "green dim"), False: ("✗ ", "red"), None: ("  ", "dim")}
            for step in one.steps:
                mark, style = marks[step.ok]
                put(f"{mark}{step.text}{f'   ({step.why})' if step.why else ''}", style)
        elif one.thought:
            put(one.thought, "dim")
        if one.forced:
            put("(the thought was ended at its budget)", "dim")
        if len(shown) > 1:
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
    if not plain and len(counts := Counter(thinking.trace.answers)) > 1:
        put("answers: " + ", ".join(f"{a or '(none)'} × {n}" for a, n in counts.most_common(6)), "dim")
    if thinking.trace.exhausted:
        put("(the budget ran out before the strategy was done)", "yellow")
    for what, n in Counter(thinking.trace.lost).most_common(6):
        put(f"lost{f' ({n} times)' if n > 1 else ''}: {what}", "yellow")
    put(usage(thinking), "dim")


def winner(thinking: Thinking) -> list[Chain]:
    """The path that gave the answer, if a single one did."""
    trace = thinking.trace
    return [thinking.chains[trace.leaves.index(trace.chosen)]] if trace.chosen in trace.leaves else []
