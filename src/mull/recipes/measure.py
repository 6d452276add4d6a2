"""Measuring a model on held-out problems: pass@1, votes, length and cost, by task and level, with 95% intervals."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from mull.chat import Chat
from mull.chat.effort import asked, effort_of
from mull.errors import UserError
from mull.evals import metrics
from mull.evals.evaluate import Evaluation, Held, evaluate, held_out
from mull.files import write_whole
from mull.learn.samples import truncated
from mull.ledger import Budget
from mull.machine import describe
from mull.models.device import DType
from mull.progress import Mode, Progress
from mull.search.named import Named, named
from mull.search.sample import Decoding, leaf_cost
from mull.search.sources import Source, opened
from mull.tasks.base import Split, refuse_unknown
from mull.tasks.load import load_task

INDEPENDENT = ("sample", "sample_forced", "vote")  # traces whose leaves are independent chains


@dataclass(frozen=True)
class Measure:
    """What to measure. `levels` empty: all levels of each task."""

    model: str
    tasks: tuple[str, ...]
    levels: tuple[int, ...] = ()
    problems: int = 256  # of each task
    samples: int = 4  # the strategy's N
    strategy: str = "sample"  # see search/named.py
    think_tokens: int = 512
    answer_tokens: int = 64
    tokens: int = 0  # that one question may sample in all; 0: no limit
    temperature: float = 1.0
    split: str = "test"
    seed: int = 0
    at_once: int = 256  # questions under way at any time
    endpoint: str = ""
    tokenizer: str = ""
    endpoint_model: str = ""
    endpoint_params: float = 0
    scorer: str = ""
    critic: str = ""
    generator: str = ""
    calibration: str = ""
    effort: str = ""  # that every prompt asks for: low, medium, high, or tokens
    device: str = "cpu"  # cpu, cuda or cuda:N
    dtype: DType = "float32"  # of the weights

    @property
    def source(self) -> Source:
        served = (self.endpoint, self.tokenizer, self.endpoint_model)
        judges = (self.scorer, self.critic, self.endpoint_params, self.generator)
        return Source(self.model, *served, *judges, device=self.device, dtype=self.dtype)


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
    chosen, source = named(wanted.strategy), wanted.source
    effort_of(wanted.effort)  # or UserError, before anything is loaded
    started = time.perf_counter()
    evaluations, troubles = asyncio.run(_evaluations(wanted, chosen, source, held_by_task, mode))
    rows = []
    for spec, evaluation in evaluations.items():
        rows.append(row(spec, None, evaluation))
        by_level: dict[int, list[int]] = {}
        for i, h in enumerate(evaluation.held):
            by_level.setdefault(h.problem.question.level, []).append(i)
        if len(by_level) > 1:
            for level, picked in sorted(by_level.items()):
                part = Evaluation([evaluation.held[i] for i in picked], [evaluation.traces[i] for i in picked])
                rows.append(row(spec, level, part))
    return {
        **asdict(wanted),
        "seconds": time.perf_counter() - started,
        "rows": rows,
        "troubles": troubles,
        **describe(),
    }


async def _evaluations(
    wanted: Measure, chosen: Named, source: Source, held_by_task: dict[str, list[Held]], mode: Mode
) -> tuple[dict[str, Evaluation], dict[str, int]]:
    """One for each task, in one event loop (a server's connections live in it); and the server's troubles."""
    out, done = {}, 0
    budget = Budget(wanted.tokens or None, wanted.think_tokens, wanted.answer_tokens, wanted.samples)
    async with opened(source) as tools:
        if tools.context is not None:
            refuse_too_long(wanted, held_by_task, tools.chat, tools.context)
        with Progress("measuring", sum(map(len, held_by_task.values())), mode=mode, file=sys.stderr) as progress:
            for spec, held in held_by_task.items():
                strategy = tools.bind(chosen, held[0].task.canonical, wanted.calibration)
                out[spec] = await evaluate(
                    held,
                    tools.sampler,
                    tools.chat,
                    budget,
                    strategy,
                    Decoding(temperature=wanted.temperature),
                    wanted.seed,
                    on_done=lambda n, before=done: progress.update(before + n),
                    at_once=wanted.at_once,
                    effort=effort_of(wanted.effort),
                )
                done += len(held)
        return out, tools.troubles()


def refuse_too_long(wanted: Measure, held_by_task: dict[str, list[Held]], chat: Chat, context: int) -> None:
    """A prompt that does not fit is an error before anything is sampled, not after an hour."""
    for spec, held in held_by_task.items():
        longest = max(held, key=lambda h: len(h.problem.question.text)).problem.question
        prompt = len(chat.prompt(asked(longest.text, effort_of(wanted.effort))))
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
    accuracy, cost, many = evaluation.accuracy, evaluation.cost, len(traces)
    alike = all(trace.strategy in INDEPENDENT for trace in traces)
    return {
        "task": spec,
        "level": level,
        "answer": evaluation.chosen.as_dict(),
        "pass_at_1": accuracy.as_dict(),
        "votes": samples,
        "vote": metrics.majority_vote(verdicts, samples).as_dict() if samples > 1 and alike else None,
        "problems": many,
        "samples": len(tokens),
        "tokens": sum(tokens) / max(len(tokens), 1),
        "truncated": sum(cut) / max(len(cut), 1),
        "unscorable": accuracy.unscorable,
        "exhausted": evaluation.exhausted,
        "lost": dict(evaluation.lost.most_common()),
        "tokens_per_problem": cost.sampled_tokens / many,
        "scorer_tokens_per_problem": cost.scorer_tokens / many,
        "cached_share": cost.cached_tokens / max(cost.cached_tokens + cost.prefill_tokens, 1),
        "flops_per_problem": cost.flops / many if cost.flops else None,  # a server's may be unknown
    }


def show(result: dict[str, Any]) -> None:
    """Prints the rows as a table that fits into 80 columns, and what was lost or cut short."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def share(e: dict[str, Any] | None) -> str:
        if e is None or e["mean"] is None:
            return "–"
        return f"{100 * e['mean']:.1f}% ({100 * e['low']:.0f}–{100 * e['high']:.0f})"

    plain = named(result["strategy"]).name in ("sample", "forced", "vote")
    where = result["endpoint"] or result["model"]
    title = f"{where}: {result['split']} problems, strategy {result['strategy']}, 95% intervals"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("task", overflow="fold", min_width=10)
    votes = max(r["votes"] for r in result["rows"])
    names = ("pass@1", f"vote of {votes}", "tokens", "cut") if plain else ("answer", "of a leaf", "tokens", "scorer")
    for name in ("n", *names, "unsc.", "FLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for r in result["rows"]:
        name = r["task"] if r["level"] is None else f" level {r['level']}"
        if plain:
            cells = (share(r["pass_at_1"]), share(r["vote"]), f"{r['tokens']:.0f}", f"{100 * r['truncated']:.0f}%")
        else:
            spent = (f"{r['tokens_per_problem']:.0f}", f"{r['scorer_tokens_per_problem']:.0f}")
            cells = (share(r["answer"]), share(r["pass_at_1"]), *spent)
        flops = "unknown" if r["flops_per_problem"] is None else f"{r['flops_per_problem']:.0e}"
        figures = (f"{r['problems']}", *cells, f"{r['unscorable']}", flops)
        table.add_row(Text(name), *figures, style="" if r["level"] is None else "dim")
    Console(highlight=False).print(table)
    if plain:
        print("tokens: sampled, mean of a chain; cut: out of tokens; unsc.: unscorable; FLOPs: of one problem, in all")
    else:
        print("tokens, scorer: sampled by the model and read by the scorer, and FLOPs: of one problem, all branches")
    whole = [r for r in result["rows"] if r["level"] is None]
    if exhausted := sum(r["exhausted"] for r in whole):
        print(f"exhausted: the budget ran out on {exhausted} of {sum(r['problems'] for r in whole)} problems")
    for what, count in sum((Counter(r["lost"]) for r in whole), Counter()).most_common(8):
        print(f"lost, on {count} problem{'s' if count > 1 else ''}: {what}")
    for what, count in result["troubles"].items():
        print(f"the server: {count} {what}")


def write_json(result: dict[str, Any], command: str, path: Path) -> None:
    try:
        write_whole(path, (json.dumps({"command": command, **result}, indent=1) + "\n").encode())
    except OSError as problem:
        raise UserError(f"{path} cannot be written: {problem.strerror or problem}") from problem
