"""A plausible `ScaleData`, made from points that were drawn around a known law."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, cast

import numpy as np

from mull.evals import fits, sigmoid
from mull.evals.metrics import Estimate
from mull.evals.scale_page import ScaleData

TASKS = ("chain", "countdown")
FIRST, SECOND = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32], [36, 40, 44, 48, 52, 56, 60, 64]
FLOPS = 3e11  # of one step


def at(e: Estimate, compute: float) -> dict[str, float]:
    return {"compute": compute, "value": e.mean, "low": e.low, "high": e.high}


@cache
def _example() -> ScaleData:
    rng = np.random.default_rng(0)
    charts, predictions, rows, errors = [], [], [], []
    steps = np.tile(FIRST + SECOND, 3)
    seeds = np.repeat([0, 1, 2], len(FIRST + SECOND))
    compute = steps * FLOPS * (1 + 0.02 * seeds)
    first = steps <= FIRST[-1]
    up_to = float(compute[first].max())
    grid = np.geomspace(FLOPS / 2, 3 * up_to, 40).tolist()
    for task, top in (("mean", 0.55), ("chain", 0.4), ("countdown", 0.7)):
        truth = 0.18 + (top - 0.18) / (1 + (7 * FLOPS / compute) ** 1.6)
        rates = rng.binomial(4, np.tile(truth, (100, 1))) / 4
        start = rng.binomial(4, 0.18, (100, 3)) / 4
        bent = sigmoid.fit_sigmoid(compute[first], seeds[first], rates[:, first], start, resamples=100)
        line = fits.fit_line(compute[first].tolist(), rates[:, first], resamples=100)
        power = fits.fit_power(compute[first].tolist(), rates[:, first], resamples=100)
        lines = [{"law": "sigmoid", "points": [at(sigmoid.predict(bent, c), c) for c in grid]}]
        lines += [{"law": law.law, "points": [at(fits.predict(law, c), c) for c in grid]} for law in (line, power)]
        lines.append({"law": "refit", "points": lines[0]["points"]})
        points = [
            {"seed": int(s), "step": int(n), "compute": float(c), "accuracy": float(a), "held_out": bool(n > FIRST[-1])}
            for s, n, c, a in zip(seeds, steps, compute, rates.mean(0), strict=True)
        ]
        charts.append(
            {
                "task": task,
                "start": {"mean": 0.18, "low": 0.15, "high": 0.21, "n": 100},
                "points": points,
                "lines": lines,
            }
        )
        for times in (1.5, 2.0):
            e = sigmoid.predict(bent, times * up_to, measured=True)
            value = e.mean + (0.01 if times < 2 else 0.2)
            found = {"mean": value, "low": value - 0.05, "high": value + 0.05, "n": 100}
            predictions.append(
                {
                    "strategy": "mull",
                    "task": task,
                    "unit": "flops",
                    "law": "sigmoid",
                    "up_to": up_to,
                    "compute": times * up_to,
                    **{"value": e.mean, "low": e.low, "high": e.high},
                    **{"made": "2026-11-21T05:00:00Z", "commit": "0123abcd"},
                    "observed": found if task != "chain" else None,
                    "observed_at": "2026-11-21T06:00:00Z" if task != "chain" else None,
                    "inside": times < 2 if task != "chain" else None,
                }
            )
        rows += [{"task": task, **law.as_dict(), "to": "first half"} for law in (bent, line, power)]
        off = {"mean": -0.004, "low": -0.02, "high": 0.011, "n": 100}
        errors += [
            {"task": task, "law": law, "rms": rms, "off": off, "evaluations": 24}
            for law, rms in (("sigmoid", 0.012), ("log", 0.061), ("error", 0.034))
        ]
    data = {
        "title": "mull scale train: law",
        "model": "nano-base",
        "algorithm": "mull",
        "tasks": list(TASKS),
        "summary": ["The law said 54.0% and the runs found 53.2%, inside the interval.", "The asymptote is 55.1%."],
        "seeds": [0, 1, 2],
        "problems": 200,
        "samples": 4,
        "up_to": up_to,
        "published": "2026-11-21T05:00:00Z",
        "begun": "2026-11-21T05:00:04Z",
        "charts": charts,
        "predictions": predictions,
        "fits": rows,
        "errors": errors,
        "seconds": 4000.0,
        "date": "2026-11-21",
        "command": "mull scale train --out law",
        "commit": "0123abcd",
        "machine": "2 × some processor",
        "versions": {"mull": "0.2.0", "torch": "2.9"},
    }
    return cast(Any, data)


def example_data() -> Any:
    return copy.deepcopy(_example())
