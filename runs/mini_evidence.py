"""The traces, measurements and tables of the students in runs/mini.sh.

python runs/mini_evidence.py traces RUN QUESTIONS TOKENS   the teacher's chains; epochs of each kind for TOKENS or more
python runs/mini_evidence.py measure RUN ARM SEED          RUN/chain/ARM-SEED.json: 16 chains for each held-out problem
python runs/mini_evidence.py learnt RUN ARM SEED           prints the tokens it learnt from, without those before it
python runs/mini_evidence.py table RUN                     docs/evidence/mini*.json

TEST_PROBLEMS is the number of held-out problems, 256 unless it is set.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mull.chat import Chat
from mull.evals import arms, evidence
from mull.evals.metrics import percentile_interval, share_interval
from mull.files import read_jsonl, write_whole
from mull.learn.distill import Keep, parameters, verified
from mull.ledger import Ledger
from mull.models import hf
from mull.recipes.distill import DistillConfig, prepared
from mull.recipes.search_data import trace_of
from mull.tasks.load import load_task

KEEPS: tuple[Keep, ...] = ("right", "shortest", "all")
SPLIT = "levels 1 and 2"  # one measurement; the tables have each level, too
LEVELS = {SPLIT: (1, 2), "level 1": (1,), "level 2": (2,)}
ARMS = {
    "teacher": "teacher: nano after RL",
    "longer": "nano, RL for as long as the students",
    "fresh-right": "fresh, all right chains",
    "fresh-shortest": "fresh, shortest right chain",
    "fresh-all": "fresh, all chains, unverified",
    "layers": "one of the teacher's layers, all right chains",
    "small-right": "small base, all right chains",
    "on": "small base, all right chains, then on-policy",
    "more": "small base, all right chains, then more of them",
    "rl": "small base, RL alone",
    "small": "small base",
}
LARGE = {"teacher": "of the teacher's pass@1", "longer": "of nano's after longer RL"}  # one model each
BEFORE = {"on": "small-right", "more": "small-right", "small-right": "small", "rl": "small"}  # what an arm goes on from
PAIRS = [
    ("fresh-right", "fresh-all"),
    ("fresh-shortest", "fresh-right"),
    ("small-right", "fresh-right"),
    ("on", "small-right"),
    ("on", "more"),
    ("fresh-right", "longer"),
    ("small-right", "longer"),
    ("rl", "longer"),
    ("small-right", "rl"),
    ("on", "rl"),
    ("rl", "small"),
]


def experiment(run: Path) -> arms.Experiment:
    base, problems = run / "chain" / "teacher" / "model", int(os.environ.get("TEST_PROBLEMS", "256"))
    return arms.Experiment("runs/mini.sh", base, ARMS, {SPLIT: (1, 2)}, PAIRS, problems, chains=16, ks=(1, 16))


def traces(run: str, questions: int, tokens: int) -> None:
    """Fills the folder that all students share, as `mull distill` would, and writes RUN/chain/epochs-KEEP: how often
    the chains of a kind must be learnt for at least so many tokens, prompts included; the last time need not end."""
    home = Path(run) / "chain"
    if all((home / f"epochs-{keep}").exists() for keep in KEEPS):
        return
    teacher = f"{run}/chain/teacher/model"  # as runs/mini.sh spells it: traces of another teacher are refused
    cfg = DistillConfig(teacher=teacher, traces=home / "traces", problems=questions, samples=4, keep="all")
    prepared(cfg, [load_task("chain")], Chat.load(teacher), cfg.micro_tokens, Ledger(), "quiet")
    found = [trace_of(row) for row in read_jsonl(home / "traces" / "traces.jsonl")]
    for keep in KEEPS:
        once = sum(len(lesson.tokens) for lesson in verified(found, keep))
        epochs = max(1, -(-tokens // max(once, 1)))
        print(f"{keep}: {once:,} tokens, {epochs} times", flush=True)
        write_whole(home / f"epochs-{keep}", f"{epochs}\n".encode())


def measure(run: Path, arm: str, seed: str) -> None:
    what, path = experiment(run), run / "chain" / f"{arm}-{seed}.json"
    folder = what.base if arm == "teacher" else run / "chain" / f"{arm}-{seed}" / "model"
    if not path.exists():
        started = time.time()
        found = {split: arms.counts(what, folder, "chain", levels) for split, levels in what.splits.items()}
        write_whole(path, json.dumps(found).encode())
        print(f"{arm}-{seed}: measured in {time.time() - started:.0f} s", flush=True)


# ------------------------------------------------------------------------------------------------ the tables


def there(run: Path) -> list[str]:
    """The arms that were measured: which are wanted is a setting of runs/mini.sh."""
    return [arm for arm in ARMS if list((run / "chain").glob(f"{arm}-[0-9]*.json"))]


def read(run: Path, arm: str, levels: tuple[int, ...]) -> np.ndarray:
    """pass@k of the problems of these levels [S, P, K]."""
    path = sorted((run / "chain").glob(f"{arm}-[0-9]*.json"))[0]
    at_P = [int(p["id"].split("/")[1]) in levels for p in json.loads(path.read_text())[SPLIT]]
    return arms.read(experiment(run), run, "chain", arm, SPLIT)[:, at_P]


def accuracy(run: Path) -> list[dict[str, Any]]:
    """Every arm's pass@1 and pass@16, and its share of the large models' pass@1, on both levels and on each."""
    what, rows = experiment(run), []
    for split, levels in LEVELS.items():
        for arm in there(run):
            found_SPK = read(run, arm, levels)
            values = [share_interval(*value, found_SPK.shape[1]) for value in arms.interval(found_SPK)]
            cells = {f"pass@{k}": value for k, value in zip(what.ks, values, strict=True)}
            for large, column in LARGE.items():
                if arm != large and large in there(run):
                    cells[column] = share_of(found_SPK[:, :, 0], read(run, large, levels)[0, :, 0])
            for column, value in cells.items():
                claim = f"chain, {split} / {ARMS[arm]} / {column}"
                rows.append(arms.row(what, claim, value, *found_SPK.shape[:2]))
    return rows


def share_of(values_SP: np.ndarray, teacher_P: np.ndarray, resamples: int = 2000) -> arms.Interval:
    """The ratio of the means, with its bootstrap interval: seeds and problems are drawn, the same for both models.
    0 of a teacher that solves nothing."""
    if not teacher_P.any():
        return 0.0, 0.0, 0.0
    S, P = values_SP.shape
    rng, draws = np.random.default_rng(0), []
    for _ in range(resamples):
        at_P = rng.integers(0, P, P)
        below = teacher_P[at_P].mean()
        draws.append(values_SP[rng.integers(0, S, S)][:, at_P].mean() / below if below else np.nan)
    value = float(values_SP.mean() / teacher_P.mean())
    low, high = percentile_interval(np.array(draws))
    return value, min(low, value), max(high, value)


def compared(run: Path) -> list[dict[str, Any]]:
    """Differences of pass@1, paired by problem and by seed, on both levels and on each."""
    what, rows = experiment(run), []
    for a, b in PAIRS:
        if a in there(run) and b in there(run):
            for split, levels in LEVELS.items():
                delta_SP1 = (read(run, a, levels) - read(run, b, levels))[:, :, :1]
                [value] = arms.interval(delta_SP1)
                claim = f"chain, pass@1 / {ARMS[a]} minus {ARMS[b]} / {split}"
                rows.append(arms.row(what, claim, value, *delta_SP1.shape[:2], unit="points"))
    return rows


def costs(run: Path) -> list[dict[str, Any]]:
    """Parameters, tokens of a chain, and what was spent on a student and on all that it goes on from; nothing of the
    teacher's training, for which no student pays."""
    what, rows = experiment(run), []
    for arm in there(run):
        label, paths = ARMS[arm], sorted((run / "chain").glob(f"{arm}-[0-9]*.json"))
        folder = what.base if arm == "teacher" else run / "chain" / paths[0].stem / "model"
        size = float(parameters(hf.load(folder)))
        rows.append(arms.row(what, f"{label}: parameters", (size, size, size), len(paths), 1, "parameters"))
        tokens_SP = np.array([[p["tokens"] for p in json.loads(path.read_text())[SPLIT]] for path in paths])
        [value] = arms.interval(tokens_SP[:, :, None])
        rows.append(arms.row(what, f"{label}: tokens of a chain", value, *tokens_SP.shape[:2], unit="tokens"))
        if arm == "teacher":
            continue
        spent = [spent_on(run, arm, path.stem.rpartition("-")[2]) for path in paths]
        for unit, found in zip(("tokens learnt from", "TFLOPs"), zip(*spent, strict=True), strict=True):
            value = (float(np.mean(found)), float(min(found)), float(max(found)))
            claim = f"{label}: {unit}, with the students before it (range over seeds)"
            rows.append(arms.row(what, claim, value, len(found), len(found), unit.split()[0]))
    return rows


def spent_on(run: Path, arm: str, seed: str) -> tuple[float, float]:
    """(tokens learnt from, 10^12 FLOPs with those of sampling), of a run and those that it goes on from. Students share
    the teacher's chains; each is charged all of them, but once."""
    rows = list(read_jsonl(run / "chain" / f"{arm}-{seed}" / "metrics.jsonl"))
    flops = rows[-1]["flops"] + rows[-1].get("rollout_flops", 0.0)
    if arm != "more":  # they are in what it goes on from
        flops += rows[0].get("search_flops", 0.0)
    before = spent_on(run, BEFORE[arm], seed) if arm in BEFORE else (0.0, 0.0)
    return learnt(run, arm, seed) + before[0], flops / 1e12 + before[1]


def learnt(run: Path, arm: str, seed: str) -> float:
    """Tokens learnt from, prompts included."""
    rows = list(read_jsonl(run / "chain" / f"{arm}-{seed}" / "metrics.jsonl"))
    return float(rows[-1]["trained_tokens"] if "trained_tokens" in rows[-1] else sum(row["tokens"] for row in rows))


def main(what: str, run: str, *more: str) -> None:
    if what == "traces":
        traces(run, *map(int, more))
    elif what == "measure":
        measure(Path(run), *more)
    elif what == "learnt":
        print(int(learnt(Path(run), *more)))
    else:
        tables = {"mini": accuracy, "mini-compared": compared, "mini-cost": costs}
        for name, rows in {name: table(Path(run)) for name, table in tables.items()}.items():
            if rows:  # no pair of arms: nothing to compare
                evidence.write(name, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
