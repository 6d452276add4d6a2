"""A plausible `CompareData`, made up but shaped like a run: strategies that saturate, scorers that over-optimise."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np

from mull.evals import fits
from mull.evals.compare_data import CompareData, Node, Tree
from mull.evals.metrics import Estimate, wilson
from mull.evals.report_data import percent

TASKS = ("chain", "countdown")
N = 200
TOKENS = 46.0  # of one thought
FLOPS = 1.9e8  # of one thought
NS = (1, 2, 4, 8, 16, 32, 64)

# name: (accuracy at one sample, ceiling, doublings to get near it, compute of a step relative to sampling, seconds)
STRATEGIES = {
    "majority": (0.44, 0.68, 3.2, 1.0, 1.0),
    "best of N, ORM": (0.44, 0.74, 2.8, 1.15, 1.1),
    "best of N, PRM": (0.44, 0.80, 2.7, 1.2, 1.1),
    "weighted vote, PRM": (0.44, 0.82, 2.9, 1.2, 1.1),
    "beam, PRM": (0.47, 0.86, 2.2, 1.3, 2.2),
    "DVTS, PRM": (0.46, 0.87, 2.8, 1.3, 1.9),
    "REBASE, PRM": (0.46, 0.88, 2.5, 1.3, 1.8),
    "MCTS, PRM": (0.42, 0.90, 3.4, 1.5, 3.6),
    "particles, PRM": (0.45, 0.85, 2.6, 1.25, 1.7),
    "revision, critic": (0.40, 0.66, 2.9, 1.6, 2.8),
    "wait": (0.44, 0.55, 1.6, 1.0, 1.4),
    "auto": (0.49, 0.90, 2.0, 1.1, 1.3),
}
HARDER = {"chain": 0.0, "countdown": 0.11}


def interval(p: float, n: int = N) -> dict[str, Any]:
    p = min(0.995, max(0.005, p))
    low, high = wilson(p * n, n)
    return {"mean": p, "low": low, "high": high, "n": n}


def spread(value: float, share: float = 0.12, n: int = N) -> dict[str, Any]:
    return {"mean": value, "low": value * (1 - share), "high": value * (1 + share), "n": n}


def accuracy(strategy: str, n: int, task: str) -> float:
    start, top, pace, _, _ = STRATEGIES[strategy]
    if task == "mean":
        return float(np.mean([accuracy(strategy, n, t) for t in TASKS]))
    return start + (top - start) * (1 - math.exp(-math.log2(n) / pace)) - HARDER[task] * (1.2 - n / 200)


def curve(strategy: str, task: str, rng: np.random.Generator) -> dict[str, Any]:
    _, _, _, extra, slow = STRATEGIES[strategy]
    points = []
    for n in NS:
        share = interval(accuracy(strategy, n, task) + rng.normal(0, 0.008), N * (2 if task == "mean" else 1))
        points.append(
            {
                "budget": f"{n} sample{'s' if n > 1 else ''}",
                "flops": FLOPS * n * extra,
                "tokens": TOKENS * n * (extra + 1) / 2,
                "seconds": 0.05 * n**0.6 * slow,
                "accuracy": share["mean"],
                "low": share["low"],
                "high": share["high"],
                "n": share["n"],
                "seeds": 3,
                "exhausted": int(rng.integers(0, 4)) if strategy == "MCTS, PRM" else 0,
            }
        )
    return {"strategy": strategy, "task": task, "points": points}


def reference(task: str) -> dict[str, Any]:
    base = accuracy("majority", 1, task)
    oracle = [
        {"k": n, "flops": FLOPS * n, "tokens": TOKENS * n, "accuracy": interval(math.exp(math.log(base) * n**-0.62))}
        for n in NS
    ]
    return {"task": task, "greedy": interval(base + 0.06), "oracle": oracle}


def scorer_curves() -> list[dict[str, Any]]:
    out = []
    for task in ("mean", *TASKS):
        for scorer, (top, turn, level) in {
            "ORM": (0.74, 0.004, 0.62),
            "PRM": (0.83, 0.0, 0.70),
            "log-probability": (0.60, 0.02, None),
            "critic": (0.70, 0.011, 0.55),
        }.items():
            points = []
            for n in (*NS, 128, 256):
                d = math.log2(n)
                p = (
                    0.44
                    + (top - 0.44) * (1 - math.exp(-d / 2.6))
                    - turn * max(0.0, d - 4) ** 1.6
                    - HARDER.get(task, 0.05)
                )
                score = None if level is None else spread(level + (0.98 - level) * (1 - math.exp(-d / 3)), 0.02)
                points.append({"k": n, "accuracy": interval(p), "score": score})
            out.append({"scorer": scorer, "task": task, "points": points})
    return out


def difficulty() -> list[dict[str, Any]]:
    cuts = [(0.0, 0.02), (0.02, 0.18), (0.18, 0.45), (0.45, 0.8), (0.8, 1.0)]
    out = []
    for task in TASKS:
        for n in (4, 64):
            rows = []
            for i, name in enumerate(STRATEGIES):
                level = accuracy(name, n, task)
                shares = [interval(level**k, N // 5) for k in (6.5 + i % 3, 2.8, 1.2, 0.5, 0.18)]
                rows.append({"strategy": name, "accuracy": shares})
            bins = [{"low": a, "high": b, "n": N // 5} for a, b in cuts]
            out.append({"task": task, "budget": f"about {n} samples' compute", "bins": bins, "rows": rows})
    return out


def latency() -> list[dict[str, Any]]:
    out = []
    for task in TASKS:
        rows = []
        for name, (_, _, _, extra, slow) in STRATEGIES.items():
            seconds = 0.6 * slow
            rows.append(
                {
                    "strategy": name,
                    "budget": "16 samples",
                    "flops": FLOPS * 16 * (0.9 + 0.1 * extra),
                    "tokens": TOKENS * 16 / extra,
                    "seconds": spread(seconds),
                    "p95": seconds * 2.1,
                    "accuracy": interval(accuracy(name, 16, task)),
                }
            )
        out.append({"task": task, "at": "about 3.0 × 10⁹ FLOPs", "rows": rows})
    return out


def fitted() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Fits to all points but the last two doublings, and predictions for the last."""
    rng = np.random.default_rng(7)
    rows, predictions = [], []
    for name, (_, _, _, extra, _) in STRATEGIES.items():
        compute = [FLOPS * n * extra for n in NS]
        p_X = np.array([accuracy(name, n, "mean") for n in NS])
        values_PX = (rng.random((2 * N, len(NS))) < p_X).astype(float)
        for fit in (fits.fit_line(compute[:5], values_PX[:, :5]), fits.fit_power(compute[:5], values_PX[:, :5])):
            rows.append({"strategy": name, "task": "mean", "unit": "flops", **fit.as_dict()})
            if name in ("majority", "beam, PRM", "MCTS, PRM") and fit.law == "error":
                made = fits.make_prediction(
                    fit, compute[6], strategy=name, task="mean", unit="flops", made="2026-11-21T09:10:00+00:00",
                    commit="5ab8de11", problems=2 * N,
                )  # fmt: skip
                found = p_X[6] + rng.normal(0, 0.01)
                low, high = wilson(found * 2 * N, 2 * N)
                seen = None if name == "MCTS, PRM" else Estimate(found, low, high, 2 * N)
                predictions.append(
                    replace(made, observed=seen, observed_at=seen and "2026-11-21T10:40:00+00:00").as_dict()
                )
    covered = np.array([[math.exp(math.log(p) * n**-0.62) for n in NS] for p in rng.uniform(0.2, 0.8, N)])
    coverage = fits.fit_coverage(NS, (rng.random(covered.shape) < covered).astype(float))
    rows.append({"strategy": "oracle pass@k", "task": "mean", "unit": "samples", **coverage.as_dict()})
    return rows, predictions


def tree(i: int, strategy: str, nodes: int, task: str = "chain", seed: int = 0) -> Tree:
    """A random tree that was grown best-first, with a correct winner when `i` is even."""
    rng = np.random.default_rng(seed + i)
    made: list[Node] = [node(-1, f"<|user|>a={i};b=a+{i + 2};c=b*3;c=?<|assistant|><think>", "prompt", None, nodes)]
    depth = [0]
    width = 4 if nodes < 500 else 7
    children = [0]
    while len(made) < nodes:
        open_nodes = [
            j for j in range(max(0, len(made) - 12 * width), len(made)) if depth[j] < 7 and children[j] < width
        ]
        parent = int(rng.choice(open_nodes)) if open_nodes else 0
        score = float(np.clip((made[parent]["score"] or 0.55) + rng.normal(0, 0.14), 0.01, 0.99))
        value = int(rng.integers(2, 99))
        kind = "forced" if rng.random() < 0.04 else "sampled"
        words = "Wait\n" if kind == "forced" else f"{'bcdefgh'[depth[parent] % 7]}={value}+{i}={value + i}\n"
        made.append(node(parent, words, kind, score, 1 + int(rng.exponential(nodes / 40)), bool(rng.random() < 0.25)))
        made[-1]["ok"] = None if kind == "forced" else bool(rng.random() < 0.2 + 0.75 * score)
        depth.append(depth[parent] + 1)
        children.append(0)
        children[parent] += 1
    ends = [j for j in range(len(made)) if children[j] == 0 and not made[j]["pruned"]]
    winner = max(ends, key=lambda j: (depth[j], made[j]["score"] or 0))
    at = winner
    while at >= 0:
        made[at]["pruned"] = False
        at = made[at]["parent"]
    right = i % 2 == 0
    answers = [
        {"node": j, "answer": str(30 + (0 if j == winner else j % 5)), "correct": right and j == winner} for j in ends
    ]
    tokens = sum(n["tokens"] for n in made[1:])
    return cast(
        Tree,
        {
            "id": f"{task}-{strategy}-{i}",
            "strategy": strategy,
            "task": task,
            "level": 1 + i % 4,
            "budget": "16 samples",
            "question": f"a={i};b=a+{i + 2};c=b*3;c=?",
            "answer": "30",
            "correct": right,
            "expected": "30" if right else "31",
            "tokens": tokens,
            "flops": tokens * FLOPS / TOKENS,
            "exhausted": i % 5 == 3,
            "lost": ["the scorer gave NaN for 2 prefixes: they count as the lowest score"] if i % 5 == 4 else [],
            "nodes": made,
            "leaves": answers,
            "winner": winner,
        },
    )


def node(parent: int, text: str, kind: str, score: float | None, visits: int, pruned: bool = False) -> Node:
    ends = kind == "sampled"
    return {
        "parent": parent,
        "text": text,
        "kind": kind,
        "score": score,
        "visits": visits,
        "pruned": pruned,
        "tokens": len(text),
        "logprob": -0.31 * len(text) if ends else None,
        "stop": "stop" if ends else None,
        "ok": None,
    }


def wrong_reasoning() -> dict[str, Any]:
    shares = {"majority": 0.21, "best of N, ORM": 0.24, "best of N, PRM": 0.07, "beam, PRM": 0.05}
    rows = [
        {"selector": name, "task": task, "share": interval(p + 0.04 * (task == "countdown"), 140)}
        for name, p in shares.items()
        for task in TASKS
    ]
    lines = [
        {"text": "b=3+5=9", "ok": False, "kind": "work", "why": "3+5 is 8"},
        {"text": "b=8", "ok": True, "kind": "backtrack", "why": ""},
        {"text": "so c is three times b", "ok": None, "kind": "other", "why": ""},
        {"text": "c=8*3=24", "ok": True, "kind": "work", "why": ""},
    ]
    traces = [
        {
            "selector": name,
            "task": "chain",
            "level": 1 + i % 3,
            "question": f"a=3;b=a+5;c=b*3;c=? ({i})",
            "expected": "24",
            "answer": "24",
            "tokens": 41,
            "lines": lines,
        }
        for i, name in enumerate([*shares, *shares])
    ]
    return {"rows": rows, "traces": traces}


@cache
def _made() -> CompareData:
    rng = np.random.default_rng(4)
    rows, predictions = fitted()
    best = accuracy("MCTS, PRM", 64, "mean")
    return cast(
        CompareData,
        {
            "title": "mull compare",
            "model": "nano-demo",
            "summary": [
                f"At the compute of 64 samples, tree search with a process reward model answers {percent(best, 0)} of "
                f"held-out problems, majority vote {percent(accuracy('majority', 64, 'mean'), 0)}.",
                "The allocator needs 4.1 times fewer FLOPs than best of N for best of N's accuracy at its largest "
                "budget (95% interval 3.2 to 5.3), its difficulty estimates charged.",
            ],
            "tasks": list(TASKS),
            "problems": N,
            "seeds": [0, 1, 2],
            "date": "2026-11-21",
            "command": "mull compare --model runs/demo/model --task chain,countdown --out runs/compare",
            "commit": "5ab8de11",
            "machine": "2 cores, 8 GiB",
            "device": "cpu",
            "dtype": "float32",
            "seconds": 811.0,
            "versions": {"mull": "0.2.0", "torch": "2.9.0"},
            "strategies": [{"name": name, "about": f"What {name} does."} for name in STRATEGIES],
            "curves": [curve(name, task, rng) for name in STRATEGIES for task in ("mean", *TASKS)],
            "references": [reference(task) for task in ("mean", *TASKS)],
            "predictions": predictions,
            "scorers": scorer_curves(),
            "difficulty": difficulty(),
            "latency": latency(),
            "fits": rows,
            "wrong_reasoning": wrong_reasoning(),
            "exit": {
                "rows": [
                    {
                        "strategy": name,
                        "questions": 6 * N * len(NS),
                        "exhausted": 31 if name.startswith("MCTS") else 0,
                        "lost": 4 if name == "revision, critic" else 0,
                    }
                    for name in STRATEGIES
                ],
                "lost": [
                    {"sentence": "the scorer gave NaN for a prefix: it counts as the lowest score", "count": 3},
                    {"sentence": "the critic did not end its line: cut after 64 tokens", "count": 1},
                ],
            },
            "trees": [
                tree(i, name, size, task)
                for i, (name, size, task) in enumerate(
                    [
                        ("beam, PRM", 41, "chain"),
                        ("MCTS, PRM", 240, "chain"),
                        ("MCTS, PRM", 90, "countdown"),
                        ("DVTS, PRM", 65, "chain"),
                        ("particles, PRM", 33, "countdown"),
                        ("majority", 17, "chain"),
                    ]
                )
            ],
        },
    )


def example_data() -> CompareData:
    """A fresh copy that a test may change."""
    return copy.deepcopy(_made())
