"""Reads the cells of runs/compute_optimal.sh; writes docs/evidence/compute-optimal*.json.

python runs/compute_optimal_evidence.py RUN
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mull import config as configs
from mull.evals import evidence
from mull.evals.comparison import Cells, values
from mull.evals.metrics import percentile_interval
from mull.recipes.compare import CompareConfig, read_cells

COMMAND = "runs/compute_optimal.sh"
CHAINS = (1, 4, 16, 64)  # compute, in units of one plain chain
RESAMPLES = 2000


def main() -> None:
    run = Path(sys.argv[1])
    cfg = configs.load(CompareConfig, run / "compare" / "config.toml")
    cells = read_cells(replace(cfg, out=run / "compare"))
    autos = [read_cells(configs.load(CompareConfig, p)).cells for p in sorted(run.glob("auto-*/config.toml"))]
    cells = Cells([*cells.cells, *(c for found in autos for c in found if c.strategy == "auto")])
    rows = []
    for task in cells.shown_tasks():
        one = cells.mean("vote", max(cfg.budgets), task, "flops") / max(cfg.budgets)
        for strategy in cells.strategies:
            rows += at_equal_flops(cells, strategy, task, one)
    evidence.write("compute-optimal", rows)
    found = []
    for task in cells.shown_tasks():
        for rival in ("best-of-n", "weighted-vote", "vote"):
            for strategy in ("auto", "adaptive-weighted", "rebase", "beam"):
                if strategy in cells.strategies:
                    found.append(saved(cells, strategy, rival, task, -1))
        budgets, found_PX = cells.budgets("best-of-n"), curve(cells, "best-of-n", task)[1]
        if (peak := int(found_PX.mean(0).argmax())) < len(budgets) - 1:  # more of it made it worse
            found.append(saved(cells, "auto", "best-of-n", task, peak))
    evidence.write("compute-optimal-saved", found)


def curve(cells: Cells, strategy: str, task: str) -> tuple[np.ndarray, np.ndarray]:
    """(log2 FLOPs [P, X], accuracy [P, X]) of a strategy's budgets, per problem."""
    budgets = cells.budgets(strategy)
    accuracy_PX = np.nan_to_num(values(cells, strategy, budgets, task))
    flops = []
    for n in budgets:
        by_problem: dict[tuple[str, str], list[float]] = {}
        for c in cells.of(strategy, n, task):
            for row in c.rows:
                by_problem.setdefault((c.task, row["id"]), []).append(row["flops"])
        flops.append([float(np.mean(f)) for f in by_problem.values()])
    return np.array(flops).T, accuracy_PX


def bootstrap(problems: int, f: Callable[[np.ndarray], float]) -> tuple[float, float, float]:
    """(f of all problems, low, high); f gets the weight of each problem."""
    rng = np.random.default_rng(0)
    value = f(np.full(problems, 1 / problems))
    draws = np.array(
        [f(rng.multinomial(problems, np.full(problems, 1 / problems)) / problems) for _ in range(RESAMPLES)]
    )
    low, high = percentile_interval(draws)
    return value, min(low, value), max(high, value)


def at_equal_flops(cells: Cells, strategy: str, task: str, one: float) -> list[dict[str, Any]]:
    """Accuracy at 1, 4, 16 … plain chains' FLOPs: between a strategy's points on a line in log FLOPs, not outside."""
    flops_PX, accuracy_PX = curve(cells, strategy, task)
    rows = []
    for chains in CHAINS:
        target = math.log2(chains * one)

        def at(weights_P: np.ndarray, target: float = target) -> float:
            x_X, y_X = np.log2(weights_P @ flops_PX), weights_P @ accuracy_PX
            order = np.argsort(x_X)
            return float(np.interp(target, x_X[order], y_X[order]))

        inside = np.log2(flops_PX.mean(0))
        if inside.min() - 0.3 <= target <= inside.max() + 0.3:
            value, low, high = bootstrap(len(flops_PX), at)
            rows.append(_row(f"{task} / {strategy} / {chains} chains", value, low, high, len(flops_PX), "share"))
    return rows


def saved(cells: Cells, strategy: str, rival: str, task: str, at: int) -> dict[str, Any]:
    """FLOPs that the rival spends at its budget number `at`, over those at which the strategy first is as accurate."""
    flops_PX, accuracy_PX = curve(cells, strategy, task)
    rival_flops_PX, rival_accuracy_PX = curve(cells, rival, task)

    def ratio(weights_P: np.ndarray) -> float:
        wanted, spent = float(weights_P @ rival_accuracy_PX[:, at]), float(weights_P @ rival_flops_PX[:, at])
        x_X, y_X = np.log2(weights_P @ flops_PX), weights_P @ accuracy_PX
        order = np.argsort(x_X)
        needed = reach(x_X[order], y_X[order], wanted)
        return spent / 2**needed

    value, low, high = bootstrap(len(flops_PX), ratio)
    n = cells.budgets(rival)[at]
    claim = f"{task}: FLOPs of {rival} at N = {n} over those that {strategy} needs for its accuracy"
    return _row(claim, value, low, high, len(flops_PX), "x")


def reach(x_X: np.ndarray, y_X: np.ndarray, wanted: float) -> float:
    """The first x at which the line through the points reaches `wanted`; where it never does, the last x and as many
    doublings more as its overall slope would need (at most 4): a ratio that says "it would need more"."""
    if y_X[0] >= wanted:
        return float(x_X[0])
    for i in range(1, len(x_X)):
        if y_X[i] >= wanted:
            share = (wanted - y_X[i - 1]) / (y_X[i] - y_X[i - 1])
            return float(x_X[i - 1] + share * (x_X[i] - x_X[i - 1]))
    slope = (y_X[-1] - y_X[0]) / (x_X[-1] - x_X[0])
    more = (wanted - y_X.max()) / slope if slope > 0 else 4.0
    return float(x_X[-1] + min(more, 4.0))


def _row(claim: str, value: float, low: float, high: float, n: int, unit: str) -> dict[str, Any]:
    return {
        "claim": claim,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "seeds": [0],
        "unit": unit,
        "command": COMMAND,
    }


if __name__ == "__main__":
    main()
