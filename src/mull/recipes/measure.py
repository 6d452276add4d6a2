"""Measuring a model on held-out problems: pass@1, votes, length and cost, by task and level, with 95% intervals."""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import UserError
from mull.evals import metrics
from mull.evals.evaluate import Evaluation, Held, evaluate, held_out
from mull.files import write_whole
from mull.learn.samples import truncated
from mull.ledger import Budget
from mull.machine import describe
from mull.models import hf
from mull.progress import Mode, Progress
from mull.recipes.rl import model_folder
from mull.search.sample import Decoding, leaf_cost, sample, sample_forced
from mull.search.vote import vote
from mull.tasks.base import Split, refuse_unknown
from mull.tasks.load import load_task


@dataclass(frozen=True)
class Measure:
    """What to measure. `levels` empty: all levels of each task."""

    model: str
    tasks: tuple[str, ...]
    levels: tuple[int, ...] = ()
    problems: int = 256  # of each task
    samples: int = 4
    strategy: str = "sample"  # sample, vote or forced
    think_tokens: int = 512
    answer_tokens: int = 64
    temperature: float = 1.0
    split: str = "test"
    seed: int = 0


def measure(wanted: Measure, mode: Mode = "auto") -> dict[str, Any]:
    """JSON-able: the settings, the machine, and one row for each task and, where it has several, each level."""
    held_by_task: dict[str, list[Held]] = {}
    for spec in wanted.tasks:
        task = load_task(spec)
        for level in wanted.levels:
            refuse_unknown(task, level, wanted.split)
        levels = wanted.levels or task.levels
        refuse_unknown(task, levels[0], wanted.split)
        held = held_out([task], levels, wanted.problems, cast(Split, wanted.split), wanted.seed)
        if not held:
            raise UserError(f"the task {spec} has no {wanted.split} problems of level {', '.join(map(str, levels))}")
        held_by_task[spec] = held
    folder = model_folder(wanted.model)
    chat = Chat.load(folder)
    engine = LocalEngine(hf.load(folder), chat)
    refuse_too_long(wanted, held_by_task, chat, engine.config.max_positions)

    rows, started, done = [], time.perf_counter(), 0
    with Progress("measuring", sum(map(len, held_by_task.values())), mode=mode, file=sys.stderr) as progress:
        for spec, held in held_by_task.items():
            budget = Budget(
                think_tokens=wanted.think_tokens, answer_tokens=wanted.answer_tokens, samples=wanted.samples
            )
            strategies = {
                "sample": sample,
                "forced": sample_forced,
                "vote": functools.partial(vote, canonical=held[0].task.canonical),
            }
            evaluation = asyncio.run(
                evaluate(
                    held,
                    engine,
                    chat,
                    budget,
                    strategies[wanted.strategy],
                    Decoding(temperature=wanted.temperature),
                    wanted.seed,
                    on_done=lambda n, before=done: progress.update(before + n),
                )
            )
            done += len(held)
            rows.append(row(spec, None, evaluation))
            by_level: dict[int, list[int]] = {}
            for i, h in enumerate(held):
                by_level.setdefault(h.problem.question.level, []).append(i)
            if len(by_level) > 1:
                for level, chosen in sorted(by_level.items()):
                    part = Evaluation([held[i] for i in chosen], [evaluation.traces[i] for i in chosen])
                    rows.append(row(spec, level, part))
    return {**asdict(wanted), "seconds": time.perf_counter() - started, "rows": rows, **describe()}


def refuse_too_long(wanted: Measure, held_by_task: dict[str, list[Held]], chat: Chat, context: int) -> None:
    """A prompt that does not fit is an error before anything is sampled, not after an hour."""
    for spec, held in held_by_task.items():
        longest = max(held, key=lambda h: len(h.problem.question.text)).problem.question
        prompt = len(chat.prompt(longest.text))
        needed = 1
        if wanted.strategy == "forced":
            needed = wanted.think_tokens + len(chat.think_close) + wanted.answer_tokens
        if prompt + needed > context:
            raise UserError(
                f"the task {spec} has a prompt of {prompt} tokens ({longest.id}), which with {needed} more does not "
                f"fit into the model's context of {context}: lower --budget or choose easier levels"
            )


def row(spec: str, level: int | None, evaluation: Evaluation) -> dict[str, Any]:
    """The figures of one task or level. Tokens are sampled ones, means over chains; FLOPs are means over problems."""
    traces = evaluation.traces
    verdicts = [trace.verdicts for trace in traces]
    samples = min(map(len, verdicts))
    cut = truncated(traces)
    tokens = [leaf_cost(trace, leaf).sampled_tokens for trace in traces for leaf in trace.leaves]
    accuracy = evaluation.accuracy
    return {
        "task": spec,
        "level": level,
        "pass_at_1": accuracy.as_dict(),
        "votes": samples,
        "vote": metrics.majority_vote(verdicts, samples).as_dict() if samples > 1 else None,
        "problems": len(traces),
        "samples": len(tokens),
        "tokens": sum(tokens) / len(tokens),
        "truncated": sum(cut) / len(cut),
        "unscorable": accuracy.unscorable,
        "flops_per_problem": evaluation.cost.flops / len(traces),
    }


def show(result: dict[str, Any]) -> None:
    """Prints the rows as a table that fits into 80 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def share(e: dict[str, Any] | None) -> str:
        if e is None or e["mean"] is None:
            return "–"
        return f"{100 * e['mean']:.1f}% ({100 * e['low']:.0f}–{100 * e['high']:.0f})"

    title = f"{result['model']}: {result['split']} problems, strategy {result['strategy']}, 95% intervals"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("task", overflow="fold", min_width=10)
    votes = max(r["votes"] for r in result["rows"])
    for name in ("n", "pass@1", f"vote of {votes}", "tokens", "cut", "unsc.", "FLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in result["rows"]:
        name = r["task"] if r["level"] is None else f" level {r['level']}"
        figures = (f"{r['tokens']:.0f}", f"{100 * r['truncated']:.0f}%", f"{r['unscorable']}")
        cells = (f"{r['problems']}", share(r["pass_at_1"]), share(r["vote"]), *figures)
        table.add_row(Text(name), *cells, f"{r['flops_per_problem']:.0e}", style="" if r["level"] is None else "dim")
    Console(highlight=False).print(table)
    print("tokens: sampled, mean of a chain; cut: out of tokens; unsc.: unscorable; FLOPs: for one problem, all chains")


def write_json(result: dict[str, Any], command: str, path: Path) -> None:
    try:
        write_whole(path, (json.dumps({"command": command, **result}, indent=1) + "\n").encode())
    except OSError as problem:
        raise UserError(f"{path} cannot be written: {problem.strerror or problem}") from problem
