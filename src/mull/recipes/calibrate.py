"""Learning what to spend on a question of which difficulty: the file that `--strategy auto` and the server use.

    calibration problems × strategies × budgets ──▶ outcomes ──▶ plans by difficulty and price ──▶ calibration.json

The strategies are measured like those of a comparison, in cells that a stopped run goes on with. Chains of one large
pool stand for the probes, many times over, and for everything that votes on chains.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import torch

from mull import config as configs
from mull.errors import UserError
from mull.evals import allocation
from mull.evals.allocation import Outcomes
from mull.evals.comparison import Cell
from mull.evals.evaluate import Held, held_out
from mull.machine import commit, machine
from mull.models.device import device_of
from mull.models.value import read_info
from mull.progress import Mode
from mull.recipes.compare import CompareConfig, read_cells, run_cells
from mull.runfolder import RunFolder
from mull.search.allocate import FROM_CHAINS, Calibration, Plan, Point
from mull.search.choose import Aggregate
from mull.search.difficulty import features
from mull.search.named import named
from mull.search.sources import UNTRAINED, Source
from mull.tasks.load import load_task
from mull.types import Question

DRAWS = 16  # of the probes from a problem's pool


@dataclass(frozen=True)
class CalibrateConfig:
    out: Path = Path("runs/calibrate")
    model: str = "nano"  # a Hugging Face folder, or nano for the one that ships
    endpoint: str = ""  # the address of a server instead, with tokenizer
    tokenizer: str = ""  # the folder of the served model's tokenizer
    scorer: str = ""  # a folder that mull reward made, or logprob, certainty; none: votes alone
    tasks: tuple[str, ...] = ("chain", "countdown")
    levels: tuple[int, ...] = (1, 2)
    split: str = "valid"  # never the one that results are reported on
    strategies: tuple[str, ...] = ("beam", "dvts", "rebase", "particles")  # besides votes and best-of-n on chains
    budgets: tuple[int, ...] = (4, 16, 64)  # N of each
    probe: int = 4  # chains that say how hard a question is
    bins: int = 4  # of difficulty
    efforts: tuple[int, ...] = (4, 16, 64)  # low, medium, high: mean compute, in chains
    problems: int = 96  # of each task, over its levels
    think_tokens: int = 256
    answer_tokens: int = 32
    temperature: float = 1.0
    at_once: int = 64
    device: str = "cpu"  # cpu, cuda or cuda:N: of the model, and of a trained scorer
    dtype: Literal["float32", "bfloat16"] = "float32"  # of their weights
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        if len(self.efforts) != 3 or list(self.efforts) != sorted(self.efforts):
            raise UserError("efforts are three ascending numbers of chains: low, medium, high")
        if not 2 <= self.probe <= max(self.budgets):
            raise UserError(f"probe must be from 2 to the largest budget, {max(self.budgets)}: it is {self.probe}")
        for text in self.strategies:
            if named(text).name in (*FROM_CHAINS, "auto"):
                raise UserError(f"strategies: {text} is always among the candidates, or cannot be one: leave it out")


def calibrate(cfg: CalibrateConfig, command: str = "mull calibrate", resume: bool = False, mode: Mode = "auto") -> Path:
    """Measures what is missing; returns the path of calibration.json."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    tasks = [load_task(name) for name in cfg.tasks]
    held = {task.name: held_out([task], cfg.levels, cfg.problems, cfg.split, cfg.seed) for task in tasks}  # type: ignore[arg-type]
    source = Source(
        cfg.model, cfg.endpoint, cfg.tokenizer, scorer=cfg.scorer, max_sequences=1024,
        device=cfg.device, dtype=cfg.dtype,
    )  # fmt: skip
    device_of(cfg.device)  # or UserError, before anything is written
    pool = "weighted-vote" if cfg.scorer else "vote"
    grid = CompareConfig(
        out=cfg.out,
        scorer=cfg.scorer,
        tasks=cfg.tasks,
        strategies=tuple(dict.fromkeys(("vote", pool, *cfg.strategies))),
        budgets=cfg.budgets,
        think_tokens=cfg.think_tokens,
        answer_tokens=cfg.answer_tokens,
        temperature=cfg.temperature,
        at_once=cfg.at_once,
        trees=0,
        seed=cfg.seed,
    )
    with RunFolder.create(
        cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("threads", "bins", "efforts")
    ):
        (cfg.out / "cells").mkdir(exist_ok=True)
        wanted = [(pool, max(cfg.budgets)), *((text, n) for text in cfg.strategies for n in cfg.budgets)]
        asyncio.run(run_cells(grid, wanted, held, source, mode))
        cells = {(c.strategy, c.budget, c.task): c for c in read_cells(grid).cells}
        found = plans(cfg, cells, pool, held, source.name, command)
        path = cfg.out / "calibration.json"
        found.save(path)
    return path


def plans(
    cfg: CalibrateConfig,
    cells: dict[tuple[str, int, str], Cell],
    pool: str,
    held: dict[str, list[Held]],
    model: str,
    command: str,
) -> Calibration:
    """The frontier of plans from the measured cells."""
    top = max(cfg.budgets)
    rules = ("vote", "weighted-vote", "best-of-n") if cfg.scorer else ("vote",)
    doublings = {cfg.probe << i for i in range(1, 32) if cfg.probe << i <= top}  # cost nothing: the pool is there
    sizes = sorted({cfg.probe, *(n for n in cfg.budgets if n > cfg.probe), *doublings})
    candidates = [Plan(rule, n) for n in sizes for rule in (rules if n > cfg.probe else rules[:2][-1:])]
    candidates += [Plan(text, n) for text in cfg.strategies for n in sorted(cfg.budgets)]
    names = sorted(features(Question("", "", ""), [], lambda _, answer: answer, _score if cfg.scorer else None))
    rows: list[tuple[int, list[float], list[float], list[float], float]] = []
    rng = np.random.default_rng(cfg.seed)
    chain_flops = []
    for t, task in enumerate(held):
        chains = cells[pool, top, task]
        for p, (row, drawn) in enumerate(zip(chains.rows, chains.pools, strict=True)):
            one = row["flops"] / top
            chain_flops.append(one)
            leaves = [SimpleNamespace(answer=f or "", score=s or 0.0, correct=c is True) for s, c, f in drawn]
            rate = float(np.mean([leaf.correct for leaf in leaves])) if leaves else 0.0
            fixed = {
                (text, n): (
                    float(cells[text, n, task].rows[p]["correct"] is True),
                    cells[text, n, task].rows[p]["flops"],
                )
                for text in cfg.strategies
                for n in cfg.budgets
            }
            for _ in range(DRAWS):
                mixed = [leaves[i] for i in rng.permutation(len(leaves))]
                seen = features(
                    Question("", "", ""), mixed[: cfg.probe], lambda _, a: a or None, _score if cfg.scorer else None
                )
                accuracy, flops = [], []
                for plan in candidates:
                    if plan.strategy in FROM_CHAINS:
                        accuracy.append(float(_decided(plan.strategy, mixed[: plan.samples])))
                        flops.append(one * plan.samples)
                    else:
                        right, cost = fixed[plan.strategy, plan.samples]
                        accuracy.append(right)
                        flops.append(one * cfg.probe + cost)
                rows.append((t * 1_000_000 + p, [seen[name] for name in names], accuracy, flops, rate))
    outcomes = Outcomes(*(np.array(column) for column in zip(*[r[:4] for r in rows], strict=True)))
    feature = allocation.best_feature(outcomes, np.array([r[4] for r in rows]))
    edges, spent = allocation.frontier(outcomes, feature, cfg.bins, cfg.seed)
    points = tuple(Point(tuple(candidates[i] for i in s.picked), s.flops, s.accuracy) for s in spent)
    mean_chain = float(np.mean(chain_flops))
    efforts = {
        name: max((i for i, p in enumerate(points) if p.flops <= n * mean_chain * 1.001), default=0)
        for name, n in zip(("low", "medium", "high"), cfg.efforts, strict=True)
    }
    table = [
        {"strategy": c.strategy, "samples": c.samples, "accuracy": float(a), "flops": float(f)}
        for c, a, f in zip(candidates, outcomes.accuracy_RC.mean(0), outcomes.flops_RC.mean(0), strict=True)
    ]
    return Calibration(
        model=model,
        scorer=cfg.scorer,
        aggregate=aggregate_of(cfg.scorer),
        probe=cfg.probe,
        feature=names[feature],
        edges=edges,
        chain_flops=mean_chain,
        points=points,
        efforts=efforts,
        about={
            "tasks": list(cfg.tasks),
            "levels": list(cfg.levels),
            "split": cfg.split,
            "problems": sum(map(len, held.values())),
            "seed": cfg.seed,
            "command": command,
            "commit": commit(),
            "machine": machine(),
            "device": "" if cfg.endpoint else cfg.device,
            "dtype": "" if cfg.endpoint else cfg.dtype,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "candidates": table,
        },
    )


def aggregate_of(scorer: str) -> Aggregate:
    """Of step scores, as the scorer's folder says; untrained scorers judge the whole prefix."""
    return cast(Aggregate, read_info(scorer).aggregate) if scorer and scorer not in UNTRAINED else "last"


def _score(leaf: Any) -> float:
    return leaf.score


def _decided(rule: str, leaves: Sequence[Any]) -> bool:
    """Whether the rule picks a right answer among these chains."""
    if not leaves:
        return False
    if rule == "best-of-n":
        return max(leaves, key=_score).correct
    weight: dict[str, float] = {}
    for leaf in leaves:
        if leaf.answer:
            weight[leaf.answer] = weight.get(leaf.answer, 0.0) + (leaf.score if rule == "weighted-vote" else 1.0)
    if not weight:
        return False
    winner = max(weight, key=lambda form: weight[form])
    return next(leaf.correct for leaf in leaves if leaf.answer == winner)


def show(path: Path) -> None:
    """Prints the efforts and what they are expected to bring."""
    from mull.search.allocate import load_calibration

    found = load_calibration(str(path))
    print(f"difficulty: {found.feature} of {found.probe} probes, edges {', '.join(f'{e:.2f}' for e in found.edges)}")
    for name, i in found.efforts.items():
        p = found.points[i]
        what = ", ".join(f"{plan.strategy} {plan.samples}" for plan in p.plans)
        print(f"{name}: {p.flops / found.chain_flops:.1f} chains' compute, {100 * p.accuracy:.1f}% expected: {what}")
