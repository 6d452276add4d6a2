"""The baseline's data, the longer sums, and the tables of runs/star.sh.

python runs/star_evidence.py adds MODEL         whether a base adds one digit, in 95 of 100 sums
python runs/star_evidence.py direct RUN SEED    RUN/direct-SEED.jsonl; prints the steps that the baseline gets
python runs/star_evidence.py longer RUN SEED    RUN/longer-SEED.json: every arm's last model on 1 to 10 digits
python runs/star_evidence.py table RUN          docs/evidence/star*.json
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mull import config as configs
from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.evals import evidence
from mull.evals.evaluate import evaluate, held_out
from mull.evals.metrics import percentile_interval, share_interval
from mull.files import read_jsonl, write_whole
from mull.ledger import Budget
from mull.models import hf
from mull.recipes.star import StarConfig, iteration_file
from mull.recipes.star_data import measured
from mull.search.sample import Decoding, sample, sample_forced
from mull.tasks.base import SPLITS
from mull.tasks.load import load_task

ARMS = {
    "plain": "without rationalization",
    "rationalization": "with rationalization",
    "no-restart": "with rationalization, without restart",
    "clean": "with rationalization, clean lines only",
}
DIRECT = "direct answers, equal steps"
TRAINED, LONGER = (1, 2, 3, 4, 5), (6, 7, 8, 9, 10)
PROBLEMS = 1000  # of the last models' test, over ten lengths
HELD_OUT = 2026  # the seed of these problems: settings were chosen on others
COMMAND = "runs/star.sh"
Marks = dict[str, str]  # by cell ("addition/3"): a letter for each problem, 1 for a right answer


def adds(folder: Path) -> float:
    """The share of right sums among all of one digit, answered greedily."""
    held = [h for split in SPLITS for h in held_out([load_task("addition")], (1,), 55, split, 0)]
    chat = Chat.load(folder)
    engine = LocalEngine(hf.load(folder), chat)
    budget = Budget(think_tokens=128, answer_tokens=32)
    return asyncio.run(evaluate(held, engine, chat, budget, sample, Decoding(0.0))).accuracy.mean


def direct(run: Path, seed: int) -> int:
    """The problems that the rationalizing arm asked, answers alone; returns the steps of all its iterations."""
    arm = run / f"rationalization-{seed}"
    cfg = configs.load(StarConfig, arm / "config.toml")
    lines = []
    for iteration in range(1, cfg.iterations + 1):
        for row in read_jsonl(iteration_file(arm, iteration)):
            a, b = row["question"]["text"].removesuffix("=?").split("+")
            lines.append(json.dumps({"question": row["question"]["text"], "answer": str(int(a) + int(b))}) + "\n")
    write_whole(run / f"direct-{seed}.jsonl", "".join(lines).encode())
    return cfg.ends[-1]


def longer(run: Path, seed: int) -> None:
    """Greedy answers of every arm's last model. The baseline's are given without a thought, as it learnt them."""
    path = run / f"longer-{seed}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    held = held_out([load_task("addition")], (*TRAINED, *LONGER), PROBLEMS, "test", HELD_OUT)
    for arm in ("base", *ARMS, "direct"):
        if arm in found:
            continue
        folder = run / f"{arm}-{seed}" / "model"
        chat = Chat.load(folder)
        engine = LocalEngine(hf.load(folder), chat)
        thinks = arm != "direct"
        budget = Budget(think_tokens=320 if thinks else 0, answer_tokens=32)
        strategy = sample if thinks else sample_forced
        done = asyncio.run(evaluate(held, engine, chat, budget, strategy, Decoding(0.0), seed=seed))
        found[arm] = measured(done, chat)["cells"]
        write_whole(path, json.dumps(found).encode())
        print(f"seed {seed}, {arm}: {[round(cell['mean'], 2) for cell in found[arm].values()]}", flush=True)


# ------------------------------------------------------------------------------------------------- the tables


def cells(levels: Sequence[int]) -> list[str]:
    return [f"addition/{level}" for level in levels]


def interval(
    by_seed: Sequence[Marks], names: Sequence[str], same: bool = False, resamples: int = 2000
) -> tuple[float, float, float, int]:
    """(mean, low, high, problems) over the cells in equal parts: bootstrap over seeds and problems together.

    `same`: all seeds were asked the same problems, whose luck they share; else each seed had its own.
    """
    rng = np.random.default_rng(0)
    values = [[np.array([m == "1" for m in marks[name]], float) for name in names] for marks in by_seed]
    mean = float(np.mean([[v.mean() for v in one] for one in values]))
    draws = []
    for _ in range(resamples):
        seeds = rng.integers(0, len(values), len(values))
        if same:
            picks = [rng.integers(0, len(v), len(v)) for v in values[0]]
            draws.append(np.mean([[v[p].mean() for v, p in zip(values[s], picks, strict=True)] for s in seeds]))
        else:
            draws.append(np.mean([[rng.choice(v, len(v)).mean() for v in values[s]] for s in seeds]))
    low, high = percentile_interval(np.array(draws))
    asked = values[:1] if same else values
    n = sum(len(v) for one in asked for v in one)
    return *share_interval(mean, min(low, mean), max(high, mean), n), n


def counted(pairs: Sequence[tuple[int, int]], resamples: int = 2000) -> tuple[float, float, float, int] | None:
    """Share of some among all, from (some, all) of each seed; bootstrap over seeds. None: there were none."""
    judged = sum(n for _, n in pairs)
    if not judged:
        return None
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        some = [pairs[s] for s in rng.integers(0, len(pairs), len(pairs))]
        n = sum(n for _, n in some)
        draws.append(rng.binomial(n, sum(f for f, _ in some) / n) / n if n else np.nan)
    mean = sum(f for f, _ in pairs) / judged
    low, high = percentile_interval(np.array(draws))
    return mean, min(low, mean), max(high, mean), judged


def row(claim: str, found: tuple[float, float, float, int], seeds: Sequence[int]) -> dict[str, Any]:
    value, low, high, n = found
    return {
        **{"claim": claim, "value": value, "low": low, "high": high, "n": n, "seeds": list(seeds)},
        **{"unit": "share", "command": COMMAND},
    }


def evals(run: Path, arm: str, seed: int) -> dict[int, dict[str, Any]]:
    """By iteration, 0 being the base: the cells of its evaluation."""
    rows = read_jsonl(run / f"{arm}-{seed}" / "metrics.jsonl")
    return {r["iteration"]: r["eval"]["cells"] for r in rows if r.get("eval")}


def asked(run: Path, arm: str, seed: int) -> dict[int, dict[str, Any]]:
    return {r["iteration"]: r["asked"] for r in read_jsonl(run / f"{arm}-{seed}" / "metrics.jsonl") if r.get("asked")}


def table(run: Path) -> None:
    seeds = sorted(int(path.stem.removeprefix("longer-")) for path in run.glob("longer-*.json"))
    by_iteration, lines, data = [], [], []
    for arm, label in ARMS.items():
        found = [evals(run, arm, seed) for seed in seeds]
        for iteration in sorted(set.intersection(*(set(f) for f in found))):
            here = [f[iteration] for f in found]
            marks = [{name: cell["marks"] for name, cell in one.items()} for one in here]
            name = f"iteration {iteration}" if iteration else "base"
            for level in TRAINED:
                digits = f"{level} digit{'s' if level > 1 else ''}"
                value = interval(marks, cells([level]))
                by_iteration.append(row(f"{label} / {name} / {digits}", value, seeds))
            by_iteration.append(row(f"{label} / {name} / all", interval(marks, cells(TRAINED)), seeds))
            wrong = [(sum(c["false"] for c in one.values()), sum(c["lines"] for c in one.values())) for one in here]
            if share := counted(wrong):
                lines.append(row(f"right answers with a false line / {name} / {label}", share, seeds))
        sources = [asked(run, arm, seed) for seed in seeds]
        for iteration in sorted(set.intersection(*(set(s) for s in sources))):
            data += learnt(label, iteration, [s[iteration] for s in sources], seeds)
    evidence.write("star", by_iteration)
    evidence.write("star-lines", lines)
    evidence.write("star-data", data)
    evidence.write("star-longer", last(run, seeds))


def learnt(label: str, iteration: int, counts: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What each iteration had to learn from."""
    shares: dict[str, Callable[[dict[str, Any]], tuple[int, int]]] = {
        "problems solved": lambda c: (c["right"], c["problems"]),
        "failures rationalized": lambda c: (c["rationalized"], c["with_hint"]),
        "rationalizations with a false line": lambda c: (c["rationalized_false"], c["rationalized_lines"]),
    }
    found = [(name, counted([of(c) for c in counts])) for name, of in shares.items()]
    return [row(f"{label} / iteration {iteration} / {name}", share, seeds) for name, share in found if share]


def last(run: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every arm after its last iteration, 1 to 10 digits."""
    found = [json.loads((run / f"longer-{seed}.json").read_text()) for seed in seeds]
    rows = []
    for arm, label in {"base": "base", "direct": DIRECT, **ARMS}.items():
        marks = [{name: cell["marks"] for name, cell in one[arm].items()} for one in found]
        columns = {"1 to 5": TRAINED, "6 to 10": LONGER} | {str(level): (level,) for level in (*TRAINED, *LONGER)}
        rows += [
            row(f"digits / {label} / {name}", interval(marks, cells(of), same=True), seeds)
            for name, of in columns.items()
        ]
    return rows


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "adds":
        share = adds(folder)
        print(f"{folder}: {100 * share:.0f}% of the one-digit sums")
        sys.exit(share < 0.95)
    if what == "direct":
        print(direct(folder, int(sys.argv[3])))
    elif what == "longer":
        longer(folder, int(sys.argv[3]))
    else:
        table(folder)
