"""Strategies at equal compute, on one page: strategies × budgets × seeds × tasks, resumable.

    cells below the held-out budgets ──▶ fits ──▶ predictions, published ──▶ the held-out cells ──▶ page

Every cell is one file in RUN/cells; a stopped comparison goes on with those that are missing. The largest budgets are
predicted before they are run: the file of predictions is written first and refuses to change.
"""

from __future__ import annotations

import asyncio
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from mull import __version__
from mull import config as configs
from mull.errors import UserError
from mull.evals import compare_data as page
from mull.evals import comparison, fits, metrics
from mull.evals.compare_page import write_compare
from mull.evals.comparison import MEAN, Cell, Cells
from mull.evals.evaluate import Evaluation, Held, evaluate, held_out
from mull.files import write_whole
from mull.ledger import Budget
from mull.machine import commit, machine
from mull.models.device import device_of
from mull.progress import Mode, Progress
from mull.runfolder import RunFolder
from mull.search.allocate import FROM_CHAINS
from mull.search.named import STRATEGIES, Named, named
from mull.search.sample import Decoding
from mull.search.sources import Opened, Source, opened
from mull.tasks.load import load_task

GREEDY, BASE = "greedy", "vote"  # a reference line; the strategy whose chains say how hard a problem is


@dataclass(frozen=True)
class CompareConfig:
    out: Path = Path("runs/compare")
    model: str = "nano"  # a Hugging Face folder, or nano for the one that ships
    endpoint: str = ""  # the address of a server instead, with tokenizer
    tokenizer: str = ""  # the folder of the served model's tokenizer
    scorer: str = "logprob"  # a folder that mull reward made, or logprob, certainty
    critic: str = ""  # a folder that mull reward made with kind critic, for revise
    calibration: str = ""  # a file that mull calibrate made, for auto
    tasks: tuple[str, ...] = ("chain", "countdown")
    levels: tuple[int, ...] = (1, 2)
    split: str = "test"
    strategies: tuple[str, ...] = (
        "vote",
        "adaptive",
        "best-of-n",
        "weighted-vote",
        "beam",
        "dvts",
        "rebase",
        "mcts",
        "particles",
    )
    budgets: tuple[int, ...] = (1, 4, 16, 64)  # N of each strategy: chains, beams, particles, simulations
    hold_out: int = 1  # so many of the largest budgets are predicted before they are run
    problems: int = 48  # of each task, over its levels
    seeds: int = 1  # of the sampling
    think_tokens: int = 256
    answer_tokens: int = 32
    temperature: float = 1.0
    trees: int = 3  # of each strategy and task to look at
    latency_problems: int = 4  # asked one at a time
    at_once: int = 64  # questions under way at any time
    device: str = "cpu"  # cpu, cuda or cuda:N: of the model, and of a trained scorer or critic
    dtype: Literal["float32", "bfloat16"] = "float32"  # of their weights
    seed: int = 0  # of the problems, and the first of the sampling
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        if not self.strategies or not self.budgets:
            raise UserError("strategies and budgets must not be empty: there is nothing to compare")
        if min(self.budgets) < 1:
            raise UserError(f"budgets are numbers of chains, from 1 upwards, not {min(self.budgets)}")
        if BASE not in self.strategies:
            raise UserError(
                f"strategies must include {BASE}: its chains say how hard a problem is, and what is possible"
            )
        if len(set(self.strategies)) < len(self.strategies):
            raise UserError("a strategy is named twice in strategies: leave one out")


def compare(cfg: CompareConfig, command: str = "mull compare", resume: bool = False, mode: Mode = "auto") -> Path:
    """Runs what is missing; returns the path of the page."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    chosen = [named(text) for text in cfg.strategies]
    tasks = [load_task(name) for name in cfg.tasks]
    split = cast(Any, cfg.split)
    held = {task.name: held_out([task], cfg.levels, cfg.problems, split, cfg.seed) for task in tasks}
    source = Source(
        cfg.model, cfg.endpoint, cfg.tokenizer, scorer=cfg.scorer, critic=cfg.critic, max_sequences=1024,
        device=cfg.device, dtype=cfg.dtype,
    )  # fmt: skip
    device_of(cfg.device)  # or UserError, before anything is written
    started = time.perf_counter()
    with RunFolder.create(cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("threads",)):
        (cfg.out / "cells").mkdir(exist_ok=True)
        asyncio.run(_run(cfg, chosen, held, source, mode))
        data = page_data(cfg, command, source, time.perf_counter() - started)
        path = cfg.out / "compare.html"
        write_compare(data, path)
        write_whole(cfg.out / "compare.json", (json.dumps({**data, "trees": []}, indent=1) + "\n").encode())
    return path


# -------------------------------------------------------------------------------------------------- running


async def _run(cfg: CompareConfig, chosen: Sequence[Named], held: dict[str, list[Held]], source: Source, mode: Mode):
    budgets = sorted(cfg.budgets)
    known = budgets[: len(budgets) - cfg.hold_out] if cfg.hold_out else budgets
    later = budgets[len(known) :]
    async with opened(source) as tools:
        for task, problems in held.items():
            await _greedy(cfg, tools, task, problems)
        await _cells(cfg, tools, [(one.text, n) for n in known for one in chosen], held, mode, "comparing")
        if later:
            _publish(cfg, known, later)
            await _cells(cfg, tools, [(one.text, n) for n in later for one in chosen], held, mode, "the predicted")
            _observe(cfg, later)
        for task, problems in held.items():
            await _latency(cfg, tools, chosen, task, problems, known[-1] if known else budgets[0])


async def run_cells(
    cfg: CompareConfig, wanted: Sequence[tuple[str, int]], held: dict[str, list[Held]], source: Source, mode: Mode
) -> None:
    """The cells of these (strategy, N) alone."""
    async with opened(source) as tools:
        await _cells(cfg, tools, wanted, held, mode, "measuring")


async def _cells(
    cfg: CompareConfig,
    tools: Opened,
    wanted: Sequence[tuple[str, int]],
    held: dict[str, list[Held]],
    mode: Mode,
    title: str,
) -> None:
    jobs = [(text, n, task, cfg.seed + s) for text, n in wanted for task in held for s in range(cfg.seeds)]
    with Progress(title, len(jobs), mode=mode) as progress:
        for done, (text, n, task, seed) in enumerate(jobs, 1):
            found = await _cell(cfg, tools, named(text), n, task, held[task], seed)
            right = [row["correct"] for row in found.rows if row["correct"] is not None]
            progress.update(done, strategy=text, N=n, task=task, accuracy=f"{sum(right) / max(len(right), 1):.0%}")


async def _cell(
    cfg: CompareConfig, tools: Opened, one: Named, n: int, task: str, problems: list[Held], seed: int
) -> Cell:
    path = cfg.out / "cells" / f"{_file_name(one.text)}-{n}-{_file_name(task)}-{seed}.json"
    if (found := read_cell(path)) is not None:
        return found
    strategy = tools.bind(one, problems[0].task.canonical, cfg.calibration)
    tools.forget()
    started = time.perf_counter()
    evaluation = await evaluate(
        problems, tools.sampler, tools.chat, _budget(cfg, n), strategy, _decoding(cfg), seed, at_once=cfg.at_once
    )
    pools_by = one.options.get("aggregate", tools.aggregate or "last") if one.name in FROM_CHAINS else None
    cell = comparison.cell(one.text, n, seed, evaluation, tools.chat, pools_by)
    cell.seconds = time.perf_counter() - started
    if seed == cfg.seed:
        kept = {
            "trees": shown_trees(evaluation, tools.chat, one.text, n, cfg.trees),
            "lucky": comparison.lucky(evaluation, tools.chat, one.text)[: cfg.trees],
        }
        write_whole(path.with_suffix(".trees"), json.dumps(kept).encode())
    write_whole(path, json.dumps(asdict(cell)).encode())
    return cell


def read_cell(path: Path) -> Cell | None:
    if not path.is_file():
        return None
    try:
        return Cell(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as problem:
        raise UserError(f"{path} is not a cell of a comparison ({problem}): delete it and run again") from None


async def _greedy(cfg: CompareConfig, tools: Opened, task: str, problems: list[Held]) -> None:
    path = cfg.out / f"greedy-{_file_name(task)}.json"
    if path.is_file():
        return
    strategy = named("forced").bind(problems[0].task.canonical)
    evaluation = await evaluate(
        problems, tools.sampler, tools.chat, _budget(cfg, 1), strategy, Decoding(temperature=0.0), cfg.seed
    )
    write_whole(path, json.dumps(asdict(comparison.cell(GREEDY, 1, cfg.seed, evaluation, tools.chat))).encode())


async def _latency(
    cfg: CompareConfig, tools: Opened, chosen: Sequence[Named], task: str, problems: list[Held], n: int
) -> None:
    """Seconds of a question that is asked alone, at one budget."""
    path = cfg.out / f"latency-{_file_name(task)}.json"
    if path.is_file() or not cfg.latency_problems:
        return
    rows = {}
    for one in chosen:
        strategy = tools.bind(one, problems[0].task.canonical, cfg.calibration)
        seconds, flops, tokens, right = [], [], [], []
        some = problems[:: max(1, len(problems) // cfg.latency_problems)][: cfg.latency_problems]
        for i, held in enumerate(some):
            seed = 10_000 + cfg.seed + i
            tools.forget()
            began = time.perf_counter()
            found = await evaluate([held], tools.sampler, tools.chat, _budget(cfg, n), strategy, _decoding(cfg), seed)
            seconds.append(time.perf_counter() - began)
            flops.append(found.traces[0].cost.flops)
            tokens.append(found.traces[0].cost.sampled_tokens)
            right.append(found.traces[0].verdict.correct if found.traces[0].verdict else None)
        rows[one.text] = {"n": n, "seconds": seconds, "flops": flops, "tokens": tokens, "correct": right}
    write_whole(path, json.dumps(rows).encode())


def _budget(cfg: CompareConfig, n: int) -> Budget:
    return Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=n)


def _decoding(cfg: CompareConfig) -> Decoding:
    return Decoding(temperature=cfg.temperature)


def _file_name(text: str) -> str:
    """`beam:expand=8` → `beam-expand8`, for a file."""
    return "".join(c if c.isalnum() or c in "-_." else "" if c == "=" else "-" for c in text)


def shown_trees(evaluation: Evaluation, chat: Any, strategy: str, n: int, many: int) -> list[page.Tree]:
    """Some right and some wrong ones, each with its steps judged."""
    right = [i for i, t in enumerate(evaluation.traces) if t.verdict is not None and t.verdict.correct]
    wrong = [i for i in range(len(evaluation.traces)) if i not in set(right)]
    picked = sorted([*right[: many - many // 2], *wrong[: many // 2]])
    trees = []
    for i in picked:
        held, trace = evaluation.held[i], evaluation.traces[i]
        trees.append(
            page.tree_data(
                trace,
                chat,
                id=f"{strategy}/{n}/{held.problem.question.id}",
                expected=held.problem.reference.answer,
                strategy=strategy,
                budget=f"N = {n}",
                check=lambda thought, held=held: held.task.check_steps(held.problem, thought),
            )
        )
    return trees


# ---------------------------------------------------------------------------------------------- predictions


def _publish(cfg: CompareConfig, known: Sequence[int], later: Sequence[int]) -> None:
    """Says what the held-out budgets will bring, by both laws in N, before any of them is run."""
    cells = read_cells(cfg)
    made, at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), commit()
    new = []
    for strategy in cells.strategies:
        task = cells.shown_tasks()[0]
        for fit in comparison.fits(cells, strategy, task, "samples", up_to=known[-1]):
            for n in later:
                about = {"strategy": strategy, "task": task, "unit": "samples", "made": made, "commit": at}
                new.append(fits.make_prediction(fit, float(n), problems=fit.n, **about))
    fits.publish(cfg.out / "predictions.json", new)


def _observe(cfg: CompareConfig, later: Sequence[int]) -> None:
    cells = read_cells(cfg)
    path = cfg.out / "predictions.json"
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for prediction in fits.read_predictions(path):
        if prediction.compute in later and prediction.observed is None:
            marks = cells.marks(prediction.strategy, int(prediction.compute), prediction.task)
            fits.observe(path, prediction, metrics.pass_at_1(marks), at)


def read_cells(cfg: CompareConfig) -> Cells:
    """In the order of the config, whatever order they were run in."""
    found = [read_cell(path) for path in sorted((cfg.out / "cells").glob("*.json"))]
    place = {text: i for i, text in enumerate(cfg.strategies)}
    tasks = {load_task(name).name: i for i, name in enumerate(cfg.tasks)}
    cells = [c for c in found if c is not None and c.strategy in place]
    return Cells(sorted(cells, key=lambda c: (place[c.strategy], tasks.get(c.task, 0), c.budget, c.seed)))


# ------------------------------------------------------------------------------------------------- the page


def page_data(cfg: CompareConfig, command: str, source: Source, seconds: float) -> page.CompareData:
    cells = read_cells(cfg)
    budgets, shown = sorted(cfg.budgets), cells.shown_tasks()
    held_apart = budgets[len(budgets) - cfg.hold_out] if cfg.hold_out else budgets[-1]
    laws = []
    for strategy in cells.strategies:
        for task in shown:
            laws += [
                cast(page.FitRow, {"strategy": strategy, "task": task, "unit": "flops", **fit.as_dict()})
                for fit in comparison.fits(cells, strategy, task)
            ]
    for task in shown:
        if (fit := comparison.coverage(cells, BASE, task)) is not None:
            laws.append(cast(page.FitRow, {"strategy": "oracle", "task": task, "unit": "samples", **fit.as_dict()}))
    scorers = []
    for task in shown:
        for strategy, vote in (("best-of-n", False), ("weighted-vote", True)):
            if strategy in cells.strategies:
                name = f"{Path(cfg.scorer).name}{', weighted vote' if vote else ''}"
                if (curve := comparison.scorer_curve(cells, strategy, name, task, vote)) is not None:
                    scorers.append(curve)
    hard = [d for task in shown if (d := comparison.difficulty(cells, BASE, held_apart, task)) is not None]
    described = {row["task"]: row for row in map(_latency_of(cfg, cells), cells.tasks) if row["rows"]}
    return page.CompareData(
        title=f"mull compare: {cfg.out.name}",
        model=source.name,
        summary=_summary(cells, budgets[-1], shown[0]),
        tasks=cells.tasks,
        problems=min(len(c.rows) for c in cells.cells),
        seeds=cells.seeds,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        command=command,
        commit=commit(),
        machine=machine(),
        device="" if cfg.endpoint else cfg.device,
        dtype="" if cfg.endpoint else cfg.dtype,
        seconds=max(seconds, sum(c.seconds for c in cells.cells)),
        versions={"mull": __version__, "torch": torch.__version__, "python": platform.python_version()},
        strategies=[page.Strategy(name=s, about=_about(s, cfg)) for s in cells.strategies],
        curves=comparison.curves(cells),
        references=[
            page.Reference(task=task, greedy=_greedy_of(cfg, cells, task), oracle=comparison.oracle(cells, BASE, task))
            for task in shown
        ],
        predictions=[
            cast(page.PredictionRow, p.as_dict()) for p in fits.read_predictions(cfg.out / "predictions.json")
        ],
        scorers=scorers,
        difficulty=hard,
        latency=list(described.values()),
        fits=laws,
        wrong_reasoning=page.WrongReasoning(
            rows=comparison.wrong_reasoning(cells, held_apart), traces=_kept(cfg, "lucky")
        ),
        exit=comparison.exit_summary(cells),
        trees=_kept(cfg, "trees"),
    )


def _about(text: str, cfg: CompareConfig) -> str:
    one = named(text)
    scorer = f"; scorer: {Path(cfg.scorer).name}" if "scorer" in one.needs else ""
    return f"N: {STRATEGIES[one.name][2]}{scorer}"


def _summary(cells: Cells, n: int, task: str) -> list[str]:
    """The best strategy at the largest budget beside one chain, and its paired gain over the plain vote."""
    best = max(cells.strategies, key=lambda s: metrics.pass_at_1(cells.marks(s, n, task)).mean)
    e = metrics.pass_at_1(cells.marks(best, n, task))
    words = [f"At N = {n} the most accurate is {best}: {e.mean:.1%} [{e.low:.1%}, {e.high:.1%}]."]
    if best != BASE:
        gain = metrics.paired_difference(cells.marks(BASE, n, task), cells.marks(best, n, task))
        flops = cells.mean(best, n, task, "flops") / cells.mean(BASE, n, task, "flops")
        words.append(
            f"Against {BASE} at the same N: {100 * gain.mean:+.1f} points "
            f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] on the same problems, at {flops:.2f} times its FLOPs."
        )
    return words


def _greedy_of(cfg: CompareConfig, cells: Cells, task: str) -> Any:
    marks = []
    for name in cells.tasks if task == MEAN else [task]:
        if (found := read_cell(cfg.out / f"greedy-{_file_name(name)}.json")) is not None:
            marks += [[row["correct"]] for row in found.rows]
    return metrics.pass_at_1(marks).as_dict() if marks else None


def _latency_of(cfg: CompareConfig, cells: Cells):
    def of(task: str) -> page.Latency:
        path = cfg.out / f"latency-{_file_name(task)}.json"
        rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        out = []
        for strategy, row in rows.items():
            seconds = metrics.bootstrap_mean([[s] for s in row["seconds"]])
            marks = cells.marks(strategy, row["n"], task)
            out.append(
                page.LatencyRow(
                    strategy=strategy,
                    budget=f"N = {row['n']}",
                    flops=float(np.mean(row["flops"])),
                    tokens=float(np.mean(row["tokens"])),
                    seconds=cast(Any, seconds.as_dict()),
                    p95=float(np.percentile(row["seconds"], 95)) if len(row["seconds"]) >= 20 else None,
                    accuracy=cast(Any, metrics.pass_at_1(marks).as_dict()),
                )
            )
        n = next(iter(rows.values()))["n"] if rows else 0
        return page.Latency(task=task, at=f"N = {n}, one question at a time", rows=out)

    return of


def _kept(cfg: CompareConfig, what: str) -> list[Any]:
    """The stored trees, or right answers by wrong reasoning, of the largest budget of each strategy and task."""
    newest: dict[tuple[str, str], list[Any]] = {}
    for n in sorted(cfg.budgets):
        for text in cfg.strategies:
            for name in cfg.tasks:
                task = load_task(name).name
                path = cfg.out / "cells" / f"{_file_name(text)}-{n}-{_file_name(task)}-{cfg.seed}.trees"
                if path.is_file():
                    newest[text, task] = json.loads(path.read_text(encoding="utf-8"))[what]
    return [kept for some in newest.values() for kept in some]


def show(path: Path) -> None:
    """Prints what the page begins with and ends with: the headline, and what was lost or cut short."""
    data = json.loads(path.with_name("compare.json").read_text(encoding="utf-8"))
    for sentence in data["summary"]:
        print(sentence)
    rows = data["exit"]["rows"]
    if exhausted := sum(row["exhausted"] for row in rows):
        print(f"exhausted: the budget ran out on {exhausted} of {sum(row['questions'] for row in rows)} questions")
    for row in data["exit"]["lost"][:8]:
        print(f"lost, {row['count']} times: {row['sentence']}")
