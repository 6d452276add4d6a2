"""The pools, scores and tables of runs/verifiers.sh.

    python runs/verifiers_evidence.py pools RUN          256 chains for each held-out problem
    python runs/verifiers_evidence.py scores RUN TASK    every trained scorer on every chain
    python runs/verifiers_evidence.py table RUN          docs/evidence/verifiers*.json

Everything is written by the block of problems, and what is there is not made again.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.evals import evidence, selection
from mull.evals.evaluate import evaluate, held_out, thought_tokens
from mull.evals.metrics import majority_values, percentile_interval
from mull.files import read_jsonl, write_whole
from mull.learn.labels import make_chain
from mull.ledger import Budget
from mull.models import hf
from mull.models.nano import shipped_folder
from mull.models.value import read_info
from mull.scorers.value import load_scorer
from mull.search.choose import AGGREGATES, Aggregate, aggregate
from mull.tasks.load import load_task
from mull.types import Verdict

TASKS = {"chain": (1, 2), "addition": (3, 4)}
PROBLEMS, CHAINS, BLOCK = 512, 256, 32
NS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
SEEDS = [0, 1, 2]
KINDS = {"orm": "ORM", "prm": "PRM, exact labels", "prm-rollouts": "PRM, rollouts", "critic": "critic"}
HELD_OUT = 2026  # the seed of the problems: settings were chosen on others
COMMAND = "runs/verifiers.sh"


def pools(run: Path) -> None:
    """RUN/TASK/pool/BLOCK.jsonl: a line for each problem, with its different chains and how often each came."""
    folder = shipped_folder()
    chat = Chat.load(folder)
    for name, levels in TASKS.items():
        task = load_task(name)
        held = held_out([task], levels, PROBLEMS, "test", HELD_OUT)
        (run / name / "pool").mkdir(parents=True, exist_ok=True)
        for at in range(0, len(held), BLOCK):
            path = run / name / "pool" / f"{at:04}.jsonl"
            if path.exists():
                continue
            started = time.time()
            some = held[at : at + BLOCK]
            engine = LocalEngine(hf.load(folder), chat, max_sequences=1024)
            budget = Budget(think_tokens=256, answer_tokens=32, samples=CHAINS)
            found = asyncio.run(evaluate(some, engine, chat, budget, seed=1000 + at))
            lines = []
            for h, trace in zip(found.held, found.traces, strict=True):
                number: dict[tuple[int, ...], int] = {}
                which, chains = [], []
                for leaf, verdict in zip(trace.leaves, trace.verdicts, strict=True):
                    tokens = tuple(thought_tokens(trace, leaf))
                    if tokens not in number:
                        number[tokens] = len(chains)
                        steps = task.check_steps(h.problem, chat.split(tokens)[0])
                        chains.append(
                            {
                                "tokens": list(tokens),
                                "correct": verdict.correct,
                                "form": verdict.answer,
                                "wrong_step": any(s.ok is False for s in steps),
                            }
                        )
                    which.append(number[tokens])
                prompt = list(trace.spans[0].tokens)
                lines.append({"id": h.problem.question.id, "prompt": prompt, "which": which, "chains": chains})
            write_whole(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
            print(f"{name}: chains of problems {at} to {at + len(some)} in {time.time() - started:.0f} s", flush=True)


def blocks(run: Path, task: str) -> list[Path]:
    return sorted((run / task / "pool").glob("*.jsonl"))


def scores(run: Path, task: str) -> None:
    """RUN/TASK/KIND-SEED/scores/BLOCK.json: for each problem and different chain the values at its step ends."""
    chat = Chat.load(shipped_folder())
    for kind in KINDS:
        for seed in SEEDS:
            folder = run / task / f"{kind}-{seed}"
            out = folder / "scores"
            todo = [path for path in blocks(run, task) if not (out / f"{path.stem}.json").exists()]
            if not todo:
                continue
            if not (folder / "model" / "scorer.json").is_file():
                print(f"{folder} is not trained yet", flush=True)
                continue
            out.mkdir(exist_ok=True)
            scorer, _ = load_scorer(folder / "model")
            for path in todo:
                started = time.time()
                rows = asyncio.run(_scored(list(read_jsonl(path)), scorer, chat))
                scorer.forget()  # type: ignore[attr-defined]
                write_whole(out / f"{path.stem}.json", json.dumps(rows).encode())
                print(f"{task}, {kind}-{seed}: problems {path.stem}… in {time.time() - started:.0f} s", flush=True)


async def _scored(problems: Sequence[dict[str, Any]], scorer: Any, chat: Chat) -> list[list[list[float]]]:
    async def one(problem: dict[str, Any]) -> list[list[float]]:
        chains = [make_chain(chat, problem["prompt"], c["tokens"], c["correct"]) for c in problem["chains"]]
        found = iter(await scorer.score([chain.tokens[:end] for chain in chains for end in chain.ends]))
        return [[round(next(found).value, 6) for _ in chain.ends] for chain in chains]

    return list(await asyncio.gather(*(one(problem) for problem in problems)))


# ------------------------------------------------------------------------------------------------- the table


class Pool:
    """One problem's 256 chains."""

    def __init__(self, line: dict[str, Any]):
        chains = line["chains"]
        kept = [i for i in line["which"] if chains[i]["correct"] is not None]
        self.which = np.array(kept)
        self.verdicts = [Verdict(chains[i]["correct"], chains[i]["form"]) for i in kept]
        self.correct = np.array([float(chains[i]["correct"]) for i in kept])
        self.wrong_step = np.array([float(chains[i]["wrong_step"]) for i in kept])
        self.forms = selection.number_forms([chains[i]["form"] for i in kept])

    def scored(self, values: Sequence[Sequence[float]], how: Aggregate) -> selection.Scored:
        """NaN counts as 0, and so does a chain without an answer, as in a search."""
        each = [aggregate([v if v == v else 0.0 for v in row], how) for row in values]
        scores = np.where(self.forms >= 0, np.array(each)[self.which], -1.0)
        return selection.Scored(scores, self.correct, self.forms)


def interval(values_SPX: np.ndarray, resamples: int = 2000) -> Iterator[tuple[float, float, float]]:
    """(mean, low, high) of each column: bootstrap over training seeds and over problems together."""
    S, P, _ = values_SPX.shape
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        seeds = rng.integers(0, S, S) if S > 1 else np.zeros(1, int)
        problems = np.bincount(rng.integers(0, P, P), minlength=P) / P
        draws.append(problems @ values_SPX[seeds].mean(0))
    table = np.array(draws)
    for x in range(values_SPX.shape[2]):
        mean = float(values_SPX[:, :, x].mean())
        low, high = percentile_interval(table[:, x])
        yield mean, min(low, mean), max(high, mean)


def chosen_wrong(pool: Pool, scored: selection.Scored, n: int) -> tuple[float, float]:
    """(chance that best-of-n is right, chance that it is right and its thought holds a false step)."""
    lucky = selection.Scored(scored.scores_M, scored.correct_M * pool.wrong_step, scored.forms_M)
    return float(selection.best_of_n(scored, [n])[0][0]), float(selection.best_of_n(lucky, [n])[0][0])


def table(run: Path) -> None:
    grid, compared, lucky_rows, kinds_rows = [], [], [], []
    for task in TASKS:
        problems = [Pool(line) for path in blocks(run, task) for line in read_jsonl(path)]
        curves: dict[str, np.ndarray] = {
            "one chain": np.array([[[p.correct.mean()] * len(NS) for p in problems]]),
            "majority": np.array(
                [[majority_values(p.verdicts, [min(n, len(p.verdicts)) for n in NS]) for p in problems]]
            ),
        }
        lucky: dict[str, list[np.ndarray]] = {"one chain": [_plain_luck(problems)], "majority": [_vote_luck(problems)]}
        for kind, label in KINDS.items():
            by_seed, votes, luck = [], [], []
            for seed in SEEDS:
                folder = run / task / f"{kind}-{seed}"
                how = cast(Aggregate, read_info(folder / "model").aggregate)
                values = [row for path in blocks(run, task) for row in _scores(folder, path)]
                rows = [p.scored(v, how) for p, v in zip(problems, values, strict=True)]
                by_seed.append([selection.best_of_n(r, [min(n, len(r.scores_M)) for n in NS])[0] for r in rows])
                luck.append(np.array([chosen_wrong(p, r, 64) for p, r in zip(problems, rows, strict=True)]))
                positive = [selection.Scored(np.maximum(r.scores_M, 0), r.correct_M, r.forms_M) for r in rows]
                votes.append(
                    [selection.weighted_vote(r, [min(n, len(r.scores_M)) for n in NS], 0, 32) for r in positive]
                )
                if kind.startswith("prm"):
                    for other in AGGREGATES:
                        again = [p.scored(v, other) for p, v in zip(problems, values, strict=True)]
                        best = np.array([selection.best_of_n(r, [64])[0][0] for r in again])
                        kinds_rows.append((task, label, other, seed, best))
            curves[f"{label}, best of N"] = np.array(by_seed)
            curves[f"{label}, weighted vote"] = np.array(votes)
            lucky[label] = luck
        curves["any (oracle)"] = np.array([[[1 - _none(p, n) for n in NS] for p in problems]])
        for label, values in curves.items():
            for n, (mean, low, high) in zip(NS, interval(values), strict=True):
                grid.append(_row(f"{task} / {label} / {n}", mean, low, high, len(problems), values.shape[0]))
        compared += list(_differences(task, curves, len(problems)))
        for label, seeds in lucky.items():
            shares = np.array(seeds)
            draws = _ratio(shares)
            lucky_rows.append(
                _row(
                    f"{task}: right answers with a false step, {label}" + (" of 64" if label != "one chain" else ""),
                    *draws,
                    len(problems),
                    len(seeds),
                )
            )
    evidence.write("verifiers", grid)
    evidence.write("verifiers-compared", compared)
    evidence.write("verifiers-wrong-reasoning", lucky_rows)
    rows = []
    for task, label, other in dict.fromkeys((t, k, o) for t, k, o, _, _ in kinds_rows):
        values = np.array([[[v] for v in best] for t, k, o, _, best in kinds_rows if (t, k, o) == (task, label, other)])
        [(mean, low, high)] = interval(values)
        rows.append(_row(f"{task} / {label} / {other}", mean, low, high, values.shape[1], values.shape[0]))
    evidence.write("verifiers-aggregates", rows)


def _scores(folder: Path, block: Path) -> list[list[list[float]]]:
    return json.loads((folder / "scores" / f"{block.stem}.json").read_text())


def _none(p: Pool, n: int) -> float:
    from mull.evals.metrics import pass_at_k_of

    m = len(p.correct)
    return 1 - pass_at_k_of(m, int(p.correct.sum()), min(n, m))


def _plain_luck(problems: Sequence[Pool]) -> np.ndarray:
    return np.array([(p.correct.mean(), (p.correct * p.wrong_step).mean()) for p in problems])


def _vote_luck(problems: Sequence[Pool]) -> np.ndarray:
    """Of a majority of 64 that is right: the chance that a chain drawn from its camp holds a false step."""
    rows = []
    for p in problems:
        right = float(majority_values(p.verdicts, [min(64, len(p.verdicts))])[0])
        camp = p.correct.sum()
        rows.append((right, right * float((p.correct * p.wrong_step).sum() / camp) if camp else 0.0))
    return np.array(rows)


def _ratio(shares_SP2: np.ndarray, resamples: int = 2000) -> tuple[float, float, float]:
    """Share of right choices that hold a false step, with a bootstrap over seeds and problems."""
    S, P, _ = shares_SP2.shape
    rng = np.random.default_rng(0)
    mean = shares_SP2.mean((0, 1))
    value = float(mean[1] / mean[0]) if mean[0] else 0.0
    draws = []
    for _ in range(resamples):
        seeds = rng.integers(0, S, S) if S > 1 else np.zeros(1, int)
        right, luck = shares_SP2[seeds][:, rng.integers(0, P, P)].mean((0, 1))
        draws.append(luck / right if right else np.nan)
    low, high = percentile_interval(np.array(draws))
    return value, min(low, value), max(high, value)


def _differences(task: str, curves: dict[str, np.ndarray], n: int) -> Iterator[dict[str, Any]]:
    """Paired differences between selectors, and what becomes of a curve behind its peak."""
    at = {N: i for i, N in enumerate(NS)}
    best = {k: f"{label}, best of N" for k, label in KINDS.items()}
    pairs = [
        (best["orm"], "majority"), (best["prm"], "majority"), (best["prm"], best["orm"]),
        (best["prm-rollouts"], best["orm"]), (best["prm"], best["prm-rollouts"]), (best["critic"], best["prm"]),
        ("PRM, exact labels, weighted vote", best["prm"]),
    ]  # fmt: skip
    for N in (16, 256):
        for a, b in pairs:
            delta = curves[a][:, :, [at[N]]] - curves[b][:, :, [at[N]]]
            [(mean, low, high)] = interval(delta)
            yield _row(f"{task}, N = {N}: {a} minus {b}", mean, low, high, n, delta.shape[0], "points")
    for label, values in curves.items():
        mean_X = values.mean((0, 1))
        peak = int(mean_X.argmax())
        if label in ("one chain", "any (oracle)") or peak == len(NS) - 1:
            continue  # a curve that still rises at its end has not been seen to fall
        delta = values[:, :, [len(NS) - 1]] - values[:, :, [peak]]
        [(mean, low, high)] = interval(delta)
        what = f"{task}, {label}: accuracy at N = {NS[-1]} minus that at its peak, N = {NS[peak]}"
        yield _row(what, mean, low, high, n, values.shape[0], "points")


def _row(claim: str, value: float, low: float, high: float, n: int, seeds: int, unit: str = "share") -> dict[str, Any]:
    return {
        "claim": claim, "value": value, "low": low, "high": high, "n": n,
        "seeds": SEEDS[:seeds] if seeds > 1 else [0], "unit": unit, "command": COMMAND,
    }  # fmt: skip


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "pools":
        pools(folder)
    elif what == "scores":
        scores(folder, sys.argv[3])
    else:
        table(folder)
