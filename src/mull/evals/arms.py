"""Arms of an experiment: several ways to train from one base, over several seeds, measured alike and compared.

    RUN/TASK/ARM-SEED/model      what an arm left (the base has none: it is given)
    RUN/TASK/ARM-SEED.json       right chains of each held-out problem, by split: written whole, made once

Every model is asked the same problems with the same seeds, so differences are paired by problem. Intervals are by
bootstrap over training seeds and problems together: a seed's luck is part of what is not known.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import UserError
from mull.evals.evaluate import evaluate, held_out, thought_tokens
from mull.evals.metrics import pass_at_k_of, percentile_interval, share_interval
from mull.files import read_jsonl, write_whole
from mull.ledger import Budget
from mull.models import hf
from mull.tasks.load import load_task

Interval = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Experiment:
    command: str  # that regenerates it
    base: Path
    arms: Mapping[str, str]  # folder's name -> what a table calls it; "base" is the base
    splits: Mapping[str, tuple[int, ...]]  # what a table calls it -> levels
    pairs: Sequence[tuple[str, str]]  # differences that are of interest: first minus second
    problems: int = 96  # held out, of each split
    chains: int = 256  # of each
    ks: tuple[int, ...] = (1, 4, 16, 64, 256)
    think_tokens: int = 256
    answer_tokens: int = 32
    held_out: int = 2027  # the seed of the problems: settings were chosen on others


def measure(what: Experiment, run: Path, task: str, seeds: Iterable[int], say: Any = print) -> None:
    """Every arm's model of every seed, unless it was measured before."""
    models = {"base-0": what.base} if "base" in what.arms else {}
    for seed in seeds:
        models |= {f"{arm}-{seed}": run / task / f"{arm}-{seed}" / "model" for arm in what.arms if arm != "base"}
    for name, folder in models.items():
        path = run / task / f"{name}.json"
        if not path.exists():
            started = time.time()
            found = {split: counts(what, folder, task, levels) for split, levels in what.splits.items()}
            path.parent.mkdir(parents=True, exist_ok=True)  # the base is measured before anything is trained
            write_whole(path, json.dumps(found).encode())
            say(f"{task}, {name}: measured in {time.time() - started:.0f} s", flush=True)


def counts(
    what: Experiment,
    folder: Path,
    name: str,
    levels: tuple[int, ...],
    block: int = 32,
    split: Literal["test", "valid"] = "test",
) -> list[dict[str, Any]]:
    """Per problem: chains that could be judged, right ones, and the mean tokens of a chain."""
    chat, task = Chat.load(folder), load_task(name)
    held = held_out([task], levels, what.problems, split, what.held_out)
    budget = Budget(think_tokens=what.think_tokens, answer_tokens=what.answer_tokens, samples=what.chains)
    engine = LocalEngine(hf.load(folder), chat, max_sequences=1024)
    rows = []
    for at in range(0, len(held), block):
        found = asyncio.run(evaluate(held[at : at + block], engine, chat, budget, seed=1000 + at))
        for trace, marks in zip(found.traces, found.marks, strict=True):
            known = [m for m in marks if m is not None]
            tokens = float(np.mean([len(thought_tokens(trace, leaf)) for leaf in trace.leaves]))
            rows.append({"id": trace.question.id, "n": len(known), "right": sum(known), "tokens": tokens})
    del engine
    gc.collect()  # its pages hang on cycles that Python, which sees a few small objects, would leave for long
    return rows


def read(what: Experiment, run: Path, task: str, arm: str, split: str) -> np.ndarray:
    """pass@k of each problem [S, P, K]; the base has one seed. UserError where nothing was measured."""
    paths = sorted((run / task).glob(f"{arm}-[0-9]*.json"))
    if not paths:
        raise UserError(f"{run / task} has no measurement of {arm}: run {what.command}")
    tables = [json.loads(path.read_text())[split] for path in paths]
    return np.array([[[pass_at_k_of(p["n"], p["right"], min(k, p["n"])) for k in what.ks] for p in t] for t in tables])


def interval(values_SPX: np.ndarray, resamples: int = 2000) -> list[Interval]:
    """The mean of each column with its 95% bootstrap interval, seeds and problems drawn together."""
    S, P, _ = values_SPX.shape
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        weights_P = np.bincount(rng.integers(0, P, P), minlength=P) / P
        draws.append(weights_P @ values_SPX[rng.integers(0, S, S)].mean(0))
    out = []
    for x, column in enumerate(np.array(draws).T):
        mean = float(values_SPX[:, :, x].mean())
        low, high = percentile_interval(column)
        out.append((mean, min(low, mean), max(high, mean)))
    return out


# ------------------------------------------------------------------------------------------------ the tables


def row(what: Experiment, claim: str, value: Interval, seeds: int, n: int, unit: str = "share") -> dict[str, Any]:
    mean, low, high = value
    return {
        "claim": claim, "value": mean, "low": low, "high": high, "n": n,
        "seeds": list(range(seeds)), "unit": unit, "command": what.command,
    }  # fmt: skip


def grid(what: Experiment, run: Path, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """ "task, split / arm / pass@k" for every arm: see `tables.grid`."""
    rows = []
    for task in tasks:
        for split in what.splits:
            for arm, label in what.arms.items():
                found = read(what, run, task, arm, split)
                for k, value in zip(what.ks, interval(found), strict=True):
                    value = share_interval(*value, found.shape[1])
                    rows.append(row(what, f"{task}, {split} / {label} / pass@{k}", value, *found.shape[:2]))
    return rows


def differences(what: Experiment, run: Path, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Of each pair at the smallest and the largest k, paired by problem; seeds with seeds, the base with each.

    Claims are those of a grid: "task, split / pair / pass@k".
    """
    rows = []
    for task in tasks:
        for split in what.splits:
            for a, b in what.pairs:
                delta_SPK = read(what, run, task, a, split) - read(what, run, task, b, split)
                for k in dict.fromkeys((what.ks[0], what.ks[-1])):
                    [value] = interval(delta_SPK[:, :, [what.ks.index(k)]])
                    claim = f"{task}, {split} / {what.arms[a]} minus {what.arms[b]} / pass@{k}"
                    rows.append(row(what, claim, value, *delta_SPK.shape[:2], unit="points"))
    return rows


def spent(what: Experiment, run: Path, tasks: Sequence[str], keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """What training an arm cost: the last value that its metrics have of each of `keys`, with the range over seeds.

    `keys`: name in metrics.jsonl -> unit. An arm without such a value has no row.
    """
    rows = []
    for task in tasks:
        for arm, label in what.arms.items():
            ends = [list(read_jsonl(p)) for p in sorted((run / task).glob(f"{arm}-[0-9]*/metrics.jsonl"))]
            for key, unit in keys.items():
                found = [[r[key] for r in end if r.get(key) is not None] for end in ends]
                values = [float(one[-1]) for one in found if one]
                if values:
                    value = (float(np.mean(values)), min(values), max(values))
                    claim = f"{task}, what training cost, mean over seeds / {label} / {unit}"
                    rows.append(row(what, claim, value, len(values), len(values), unit))
    return rows
