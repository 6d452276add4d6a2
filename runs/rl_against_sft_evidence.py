"""The measurements and tables of runs/rl_against_sft.sh.

    python runs/rl_against_sft_evidence.py measure RUN TASK SEED…   256 chains for each held-out problem, every model
    python runs/rl_against_sft_evidence.py table RUN                docs/evidence/rl-against-sft*.json

A model's counts are written whole, and what is there is not made again.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.evals import evidence
from mull.evals.evaluate import evaluate, held_out, thought_tokens
from mull.evals.metrics import pass_at_k_of, percentile_interval
from mull.files import read_jsonl, write_whole
from mull.ledger import Budget
from mull.models import hf
from mull.models.nano import shipped_folder
from mull.tasks.load import load_task

TASKS = ("chain", "countdown")
LEVELS = {"trained": (1, 2), "harder": (3,)}
ARMS = {
    "base": "base",
    "sft": "SFT on the solver's solutions",
    "rl": "RL on its own chains",
    "expert": "SFT on its own verified chains",
    "random": "RL on random rewards",
}
PROBLEMS, CHAINS, BLOCK = 96, 256, 32
KS = (1, 4, 16, 64, 256)
HELD_OUT = 2027  # the seed of the problems: settings were chosen on others
COMMAND = "runs/rl_against_sft.sh"


def measure(run: Path, task: str, seeds: list[int]) -> None:
    models = {"base-0": shipped_folder()}
    models |= {
        f"{arm}-{seed}": run / task / f"{arm}-{seed}" / "model" for seed in seeds for arm in ARMS if arm != "base"
    }
    for name, folder in models.items():
        path = run / task / f"{name}.json"
        if not path.exists():
            started = time.time()
            found = {split: counts(folder, task, levels) for split, levels in LEVELS.items()}
            write_whole(path, json.dumps(found).encode())
            print(f"{task}, {name}: measured in {time.time() - started:.0f} s", flush=True)


def counts(folder: Path, name: str, levels: tuple[int, ...]) -> list[dict[str, Any]]:
    """Per problem: chains that could be judged, right ones, and how long a thought and its answer are on average."""
    chat, task = Chat.load(folder), load_task(name)
    held = held_out([task], levels, PROBLEMS, "test", HELD_OUT)
    budget = Budget(think_tokens=256, answer_tokens=32, samples=CHAINS)
    rows = []
    for at in range(0, len(held), BLOCK):
        engine = LocalEngine(hf.load(folder), chat, max_sequences=1024)
        found = asyncio.run(evaluate(held[at : at + BLOCK], engine, chat, budget, seed=1000 + at))
        for trace, marks in zip(found.traces, found.marks, strict=True):
            known = [m for m in marks if m is not None]
            tokens = float(np.mean([len(thought_tokens(trace, leaf)) for leaf in trace.leaves]))
            rows.append({"id": trace.question.id, "n": len(known), "right": sum(known), "tokens": tokens})
    return rows


# ------------------------------------------------------------------------------------------------- the table


def read(run: Path, task: str, arm: str, split: str) -> np.ndarray:
    """pass@k of each problem [S, P, K]; base has one seed."""
    paths = sorted((run / task).glob(f"{arm}-[0-9]*.json"))
    if not paths:
        raise SystemExit(f"{run / task} has no measurement of {arm}: run {COMMAND}")
    tables = [json.loads(path.read_text())[split] for path in paths]
    return np.array([[[pass_at_k_of(p["n"], p["right"], min(k, p["n"])) for k in KS] for p in t] for t in tables])


def interval(values_SPX: np.ndarray, resamples: int = 2000) -> Iterator[tuple[float, float, float]]:
    """(mean, low, high) of each column: bootstrap over training seeds and over problems together."""
    S, P, _ = values_SPX.shape
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        weights_P = np.bincount(rng.integers(0, P, P), minlength=P) / P
        draws.append(weights_P @ values_SPX[rng.integers(0, S, S)].mean(0))
    for x, column in enumerate(np.array(draws).T):
        mean = float(values_SPX[:, :, x].mean())
        low, high = percentile_interval(column)
        yield mean, min(low, mean), max(high, mean)


def table(run: Path) -> None:
    grid, compared, spent = [], [], []
    for task in TASKS:
        for split in LEVELS:
            found = {arm: read(run, task, arm, split) for arm in ARMS}
            where = f"{task}, level{'s 1 and 2' if split == 'trained' else ' 3 (not trained)'}"
            for arm, label in ARMS.items():
                for k, e in zip(KS, interval(found[arm]), strict=True):
                    grid.append(row(f"{where} / {label} / pass@{k}", *e, *found[arm].shape[:2]))
            for a, b in (("rl", "sft"), ("rl", "expert"), ("rl", "base"), ("random", "base"), ("sft", "base")):
                for k in (1, 256):
                    delta = (found[a] - found[b])[:, :, [KS.index(k)]]  # the base's one seed goes with every other
                    claim = f"{where}, pass@{k}: {ARMS[a]} minus {ARMS[b]}"
                    compared.append(row(claim, *next(interval(delta)), *delta.shape[:2], "points"))
        for arm, label in ARMS.items():
            if arm == "base":
                continue
            ends = [list(read_jsonl(p))[-1] for p in sorted((run / task).glob(f"{arm}-[0-9]*/metrics.jsonl"))]
            for key, unit in (("trained_tokens", "tokens"), ("flops", "FLOPs")):
                values = [end[key] for end in ends]
                claim = f"{task}: {unit} spent by {label} (range over seeds)"
                spent.append(row(claim, float(np.mean(values)), min(values), max(values), len(values), 0, unit))
    evidence.write("rl-against-sft", grid)
    evidence.write("rl-against-sft-compared", compared)
    evidence.write("rl-against-sft-spent", spent)


def row(
    claim: str, value: float, low: float, high: float, seeds: int, problems: int, unit: str = "share"
) -> dict[str, Any]:
    return {
        "claim": claim, "value": value, "low": low, "high": high, "n": problems or seeds,
        "seeds": list(range(seeds)), "unit": unit, "command": COMMAND,
    }  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(Path(sys.argv[2]), sys.argv[3], [int(seed) for seed in sys.argv[4:]])
    else:
        table(Path(sys.argv[2]))
