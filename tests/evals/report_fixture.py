"""A realistic `ReportData`, made up but shaped like a run: saturating curves, honest intervals, worked thoughts."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any, cast

import numpy as np

from mull.evals import curves, report_data
from mull.evals.behaviour import Thought, describe
from mull.evals.curves import CurvePoint
from mull.evals.metrics import wilson
from mull.evals.report_data import ReportData
from mull.types import StepKind, StepVerdict

TASKS = {
    "addition": (0.52, 0.88),
    "chain": (0.37, 0.66),
    "countdown": (0.31, 0.55),
    "maze": (0.28, 0.59),
    "matrix": (0.24, 0.44),
}
N = 400


def interval(p: float, n: int = N) -> dict[str, Any]:
    low, high = wilson(p * n, n)
    return {"mean": p, "low": low, "high": high, "n": n}


def point(flops: float, tokens: float, p: float, label: str, n: int = N) -> CurvePoint:
    low, high = wilson(p * n, n)
    return CurvePoint(flops, tokens, p, low, high, label, n)


def train_curves(rng: np.random.Generator) -> list[dict[str, Any]]:
    steps = [0, 5, 10, 20, 40, 80, 160, 240]
    per_task = {}
    for task, (low, high) in TASKS.items():
        p = [low + (high - low) * (1 - math.exp(-s / 70)) + rng.normal(0, 0.012 if s else 0) for s in steps]
        per_task[task] = [
            point(s * 2.1e11, s * 40_000, min(0.97, max(0.02, x)), f"step {s}") for s, x in zip(steps, p, strict=True)
        ]
    out = [{"name": t, "role": "task", "points": report_data.points(c)} for t, c in per_task.items()]
    mean = curves.mean_curve(list(per_task.values()))
    out.insert(0, {"name": "mean of tasks", "role": "mean", "points": report_data.points(mean)})
    control = [point(s * 2.1e11, s * 40_000, 0.344 + rng.normal(0, 0.008), f"step {s}", 2000) for s in steps]
    out.append({"name": "random rewards", "role": "control", "points": report_data.points(control)})
    return out


def test_curves() -> list[dict[str, Any]]:
    out = []
    for task, (before, after) in {"mean": (0.344, 0.624), **TASKS}.items():
        n = 2000 if task == "mean" else N
        for model, p in (("base", before), ("trained", after)):
            votes = [
                point(
                    2.6e8 * k,
                    92 * k,
                    p + (0.93 - p) * 0.45 * (1 - math.exp(-math.log2(k) / 2.4)),
                    f"{k} vote{'s' if k > 1 else ''}",
                    n,
                )
                for k in (1, 2, 4, 8, 16, 32, 64)
            ]
            fit = {
                "b": (votes[-1].accuracy - p) / 6,
                "low": (votes[-1].accuracy - p) / 6.8,
                "high": (votes[-1].accuracy - p) / 5.3,
                "doublings": 6.0,
            }
            out.append(
                {"task": task, "model": model, "method": "vote", "points": report_data.points(votes), "fit": fit}
            )
            budget = [
                point(2.8e6 * t, float(t), p * (1 - math.exp(-((t / 45) ** 1.6))), f"{t} thinking tokens", n)
                for t in (8, 16, 32, 64, 128, 256)
            ]
            out.append({"task": task, "model": model, "method": "budget", "points": report_data.points(budget)})
    return out


def line(text: str, ok: bool | None = True, kind: str = "work", why: str = "") -> dict[str, Any]:
    return {"text": text, "ok": ok, "kind": kind, "why": why}


def thought(right: bool | None, answer: str, *lines: dict[str, Any]) -> dict[str, Any]:
    return {"right": right, "answer": answer, "tokens": sum(len(x["text"]) + 1 for x in lines), "lines": list(lines)}


def pairs() -> list[dict[str, Any]]:
    chain = {
        "task": "chain",
        "level": 2,
        "question": "a=7;b=a+15;c=b*3;d=c-8;d?",
        "expected": "58",
        "before": thought(
            False,
            "50",
            line("b=7+15=22"),
            line("c=22*3=56", False, why="22*3 is 66"),
            line("d=56-8=48", False, why="c is 66, not 56"),
        ),
        "after": thought(
            True,
            "58",
            line("b=7+15=22"),
            line("c=22*3=56", False, why="22*3 is 66"),
            line("check 22*3=56 no", True, "check"),
            line("c=22*3=66", True, "backtrack"),
            line("check 22*3=66 ok", True, "check"),
            line("d=66-8=58"),
        ),
    }
    maze = {
        "task": "maze",
        "level": 1,
        "question": "S.#.\n.#..\n....\n#..G",
        "expected": "DDRRDR",
        "before": thought(
            False, "RRDDD", line("S00 G33"), line("00 01 02", False, why="02 is a wall"), line("go on", None, "other")
        ),
        "after": thought(
            True,
            "DDRRDR",
            line("S00 G33"),
            line("00 01 back", True, "backtrack"),
            line("00 10 20 21 22 32 33 goal"),
            line("check 6 moves 6 away ok", True, "check"),
        ),
    }
    countdown = {
        "task": "countdown",
        "level": 1,
        "question": "3 7 8 -> 29",
        "expected": "7*3+8",
        "before": thought(
            True,
            "3*7+8",
            line("8*3=24"),
            line("24+7=31 no", True, "check"),
            line("back", None, "backtrack"),
            line("3*7=21"),
            line("21+8=29"),
        ),
        "after": thought(True, "7*3+8", line("7*3=21"), line("21+8=29"), line("check 29 ok", True, "check")),
    }
    both_wrong = {
        "task": "matrix",
        "level": 3,
        "question": "o oo ooo\n# ## ###\n+ ++ ?",
        "expected": "+++",
        "before": thought(False, ""),
        "after": thought(None, "??", line("row 3 counts 1 2 3"), line("the shape stays", None, "other")),
    }
    more = [{**countdown, "question": f"{i} 7 8 -> {7 * i + 8}", "expected": f"7*{i}+8"} for i in (4, 5, 6)]
    return [chain, maze, countdown, both_wrong, *more, {**chain, "before": chain["after"], "after": chain["before"]}]


def behaviour(rng: np.random.Generator, p: float, check: float) -> Any:
    thoughts = []
    for problem in range(150):
        hard = rng.beta(2, 2)
        for _ in range(4):
            steps = [StepVerdict("x", bool(rng.random() < 0.92)) for _ in range(5)]
            if rng.random() < check:
                steps.append(StepVerdict("check 1 " + ("no" if rng.random() < 0.3 else "ok"), True, StepKind.CHECK))
            if rng.random() < check / 3:
                steps.append(StepVerdict("y", True, StepKind.BACKTRACK))
            right = bool(rng.random() < p * (1.3 - 0.6 * hard) + (0.05 if len(steps) > 5 else 0))
            thoughts.append(Thought("chain", str(problem), right, steps, int(rng.gamma(6, 12))))
    return describe(thoughts)


def metrics(rng: np.random.Generator) -> list[dict[str, Any]]:
    steps = list(range(1, 241))
    t = np.array(steps)
    shapes = {
        ("reward", "share"): 0.34 + 0.3 * (1 - np.exp(-t / 70)) + rng.normal(0, 0.025, 240),
        ("thought length", "tokens"): 70 + 24 * (1 - np.exp(-t / 90)) + rng.normal(0, 2, 240),
        ("entropy", "nats"): 0.42 - 0.2 * (1 - np.exp(-t / 60)) + rng.normal(0, 0.012, 240),
        ("ratio of policies", ""): 1 + rng.normal(0, 0.0007, 240),
        ("groups dropped", "share"): np.clip(0.28 + 0.1 * (1 - np.exp(-t / 70)) + rng.normal(0, 0.03, 240), 0, 1),
        ("truncated", "share"): np.clip(0.05 * np.exp(-t / 25) + rng.normal(0, 0.003, 240), 0, 1),
    }
    out = [
        {"name": n, "unit": u, "steps": steps, "values": [float(v) for v in values]}
        for (n, u), values in shapes.items()
    ]
    out[3]["values"][17] = None
    return out


def report() -> ReportData:
    """A fresh copy, to be changed at will."""
    return copy.deepcopy(_report(0))


def opinion(steps: int = 60) -> report_data.Opinion:
    """A scorer that is talked into something: its opinion rises to the end, the truth turns after a third."""
    rise = [0.3 + 0.6 * i / (steps - 1) for i in range(steps)]
    truth: list[float | None] = [0.2 + 0.02 * min(i, steps // 3) - 0.015 * max(0, i - steps // 3) for i in range(steps)]
    truth = [None if i == 7 else max(0.0, v or 0.0) for i, v in enumerate(truth)]  # no answer of a step could be judged
    return {"steps": list(range(1, steps + 1)), "scorer": list(rise), "truth": truth}


@cache
def _report(seed: int) -> ReportData:
    rng = np.random.default_rng(seed)
    phase = {"prefill_tokens": 1_310_000, "cached_tokens": 0, "trained_tokens": 0}
    data = {
        "title": "mull run: demo",
        "model": "nano-base (1.6 M parameters)",
        "method": "reinforcement learning",
        "tasks": list(TASKS),
        "date": "2026-11-20 14:05 UTC",
        "pass_at_1": {
            "base": interval(0.344, 2000),
            "trained": interval(0.624, 2000),
            "gain": {"mean": 0.28, "low": 0.261, "high": 0.299, "n": 2000},
            "controls": [
                {
                    "name": "Random rewards",
                    "accuracy": interval(0.339, 2000),
                    "gain": {"mean": 0.285, "low": 0.262, "high": 0.308, "n": 2000},
                }
            ],
        },
        "train": train_curves(rng),
        "test": test_curves(),
        "thoughts": pairs(),
        "lengths": {
            "before": [int(x) for x in rng.gamma(6, 12, 1500)],
            "after": [int(x) for x in rng.gamma(9, 11, 1500)],
        },
        "behaviours": report_data.behaviour_rows(behaviour(rng, 0.34, 0.12), behaviour(rng, 0.62, 0.46)),
        "metrics": metrics(rng),
        "ledger": [
            {
                **phase,
                "phase": "sampling for training",
                "sampled_tokens": 8_420_113,
                "flops": 2.61e13,
                "seconds": 171.4,
            },
            {
                **phase,
                "phase": "training",
                "prefill_tokens": 0,
                "sampled_tokens": 0,
                "trained_tokens": 9_730_442,
                "flops": 8.9e13,
                "seconds": 203.9,
            },
            {
                **phase,
                "phase": "random-reward control",
                "sampled_tokens": 2_100_400,
                "trained_tokens": 2_420_000,
                "flops": 2.9e13,
                "seconds": 70.2,
            },
            {
                **phase,
                "phase": "measuring",
                "sampled_tokens": 5_900_000,
                "cached_tokens": 880_000,
                "flops": 1.8e13,
                "seconds": 119.0,
            },
        ],
        "seconds": 588.3,
        "command": "mull demo --seed 0 -o rl.steps=240",
        "seed": 0,
        "versions": {"mull": "0.1.0", "torch": "2.13.0", "numpy": "2.3.1", "python": "3.11.7"},
        "machine": "AMD EPYC, 2 cores",
        "commit": "9ccaef8d1e22",
    }
    return cast(ReportData, data)
