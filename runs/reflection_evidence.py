"""The measurements and tables of runs/reflection.sh.

python runs/reflection_evidence.py passes RUN TASK SEED          reflect: the control with more passes over its problems
python runs/reflection_evidence.py attempts RUN HELD ARM SEED    correct: both attempts at HELD problems of each split
python runs/reflection_evidence.py table RUN PIECE SEED…         docs/evidence/PIECE*.json: reflect, correct or aha
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mull import config as configs
from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.evals import arms, evidence
from mull.evals.correction import correction
from mull.evals.evaluate import evaluate, held_out
from mull.evals.metrics import percentile_interval, share_interval
from mull.files import plain, read_jsonl, write_whole
from mull.ledger import Budget
from mull.models import hf
from mull.models.nano import shipped_folder
from mull.recipes.correct import paired_verdicts
from mull.recipes.reflect import ReflectConfig, exam, train
from mull.search.turns import two_turns
from mull.tasks.load import load_task

COMMAND = "runs/reflection.sh"
Row = dict[str, Any]


def row(claim: str, value: arms.Interval, n: int, seeds: Sequence[int], unit: str, command: str = COMMAND) -> Row:
    mean, low, high = value
    return {
        "claim": claim, "value": mean, "low": low, "high": high, "n": n,
        "seeds": list(seeds), "unit": unit, "command": command,
    }  # fmt: skip


def over_seeds(values: Sequence[float]) -> arms.Interval:
    return float(np.mean(values)), min(values), max(values)


# -------------------------------------------------------------------------------------------------- reflect

REFLECT = {
    "base": "base",
    "reflect": "with reflections",
    "plain": "without, equal examples",
    "plain_tokens": "without, equal tokens, more problems",
    "passes": "without, equal tokens, more passes",
}
REFLECT_TASKS = {
    "chain": {"in_distribution": "levels 1 and 2", "harder": "level 3 (not trained)", "further": "second turn"},
    "addition": {"in_distribution": "2 and 3 digits", "harder": "5 digits (not trained)", "further": "second turn"},
}


def passes(run: Path, task: str, seed: int) -> None:
    """`mull reflect` has one control at equal tokens a run: this is the other, on the same held-out problems."""
    folder = run / "reflect" / f"{task}-{seed}"
    if (folder / "passes.json").exists():
        return
    cfg = configs.load(ReflectConfig, folder / "config.toml")
    cfg = replace(cfg, control="passes", out=folder / "passes")
    result = train(cfg, "plain_tokens", exam(cfg), COMMAND, "quiet")
    write_whole(folder / "passes.json", json.dumps(plain(result)).encode())


def shares(result: Mapping[str, Any], measurement: str) -> np.ndarray:
    """Each problem's share of right samples [P]; NaN where none could be judged."""
    of = [[m for m in marks if m is not None] for marks in result["marks"][measurement]]
    return np.array([np.mean(m) if m else np.nan for m in of])


def nested(values: Sequence[np.ndarray], resamples: int = 2000) -> arms.Interval:
    """The mean over seeds of the mean over each seed's own problems. The bootstrap draws seeds, and problems within."""
    known = [v[np.isfinite(v)] for v in values]
    rng = np.random.default_rng(0)
    draws = [
        np.mean([rng.choice(known[s], len(known[s])).mean() for s in rng.integers(0, len(known), len(known))])
        for _ in range(resamples)
    ]
    mean = float(np.mean([v.mean() for v in known]))
    low, high = percentile_interval(np.array(draws))
    return mean, min(low, mean), max(high, mean)


def reflect_tables(run: Path, seeds: Sequence[int]) -> None:
    table, compared, spent = list[Row](), list[Row](), list[Row]()
    for task, measurements in REFLECT_TASKS.items():
        found = {
            arm: [json.loads((run / "reflect" / f"{task}-{s}" / f"{arm}.json").read_text()) for s in seeds]
            for arm in REFLECT
        }
        for key, label in measurements.items():
            by_arm = {arm: [shares(result, key) for result in results] for arm, results in found.items()}
            n = sum(map(len, by_arm["base"]))
            for arm, name in REFLECT.items():
                value = share_interval(*nested(by_arm[arm]), n)
                table.append(row(f"{task} / {name} / {label}", value, n, [] if arm == "base" else seeds, "share"))
                if arm != "reflect":
                    delta = [ours - theirs for ours, theirs in zip(by_arm["reflect"], by_arm[arm], strict=True)]
                    claim = f"{task}: {REFLECT['reflect']} minus / {name} / {label}"
                    compared.append(row(claim, nested(delta), n, seeds, "points"))
        for arm, name in REFLECT.items():
            if arm != "base":
                tokens = [result["cost"]["training"]["trained_tokens"] for result in found[arm]]
                claim = f"{task}: training tokens {name} (range over seeds)"
                spent.append(row(claim, over_seeds(tokens), len(seeds), seeds, "tokens"))
    evidence.write("reflect", table)
    evidence.write("reflect-compared", compared)
    evidence.write("reflect-spent", spent)


# -------------------------------------------------------------------------------------------------- correct

TASK = "chain"
CORRECT = arms.Experiment(
    command=COMMAND,
    base=shipped_folder(),
    arms={
        "base": "base",
        "score": "SCoRe",
        "stage1": "stage I alone",
        "no-stage1": "without stage I",
        "no-bonus": "without the bonus",
        "first": "RL on single attempts",
        "star": "STaR on corrections",
        "pair_sft": "pair-SFT",
    },
    splits={"level 1": (1,), "level 2 (not trained)": (2,)},
    pairs=[("score", other) for other in ("stage1", "no-stage1", "no-bonus", "first", "star", "pair_sft", "base")]
    + [("stage1", "base")],
    chains=4,
)
COLUMNS = {
    "first": "first attempt",
    "second": "second attempt",
    "delta": "second minus first",
    "mended": "wrong, then right",
    "spoiled": "right, then wrong",
    "changed": "another answer",
}


def attempts(run: Path, problems: int, arm: str, seed: int) -> None:
    """Per held-out problem, the mean of each of COLUMNS over its chains; the same problems for every model."""
    place = run / "correct" / TASK / f"{arm}-{seed}"
    if (path := place.with_name(f"{place.name}.json")).exists():
        return
    folder = CORRECT.base if arm == "base" else place / "model"
    chat, model, what = Chat.load(folder), hf.load(folder), CORRECT
    budget = Budget(think_tokens=what.think_tokens, answer_tokens=what.answer_tokens, samples=what.chains)
    found = {}
    for split, levels in what.splits.items():
        held = held_out([load_task(TASK)], levels, problems, "test", what.held_out)
        seen = asyncio.run(evaluate(held, LocalEngine(model, chat, 512), chat, budget, two_turns, seed=1000))
        one_by_one = [correction([pairs]) for pairs in paired_verdicts(seen)]
        found[split] = [{key: getattr(of, key).mean for key in COLUMNS} for of in one_by_one]
    write_whole(path, json.dumps(found).encode())


def measured_attempts(run: Path, arm: str, split: str, seeds: Sequence[int]) -> np.ndarray:
    """[S, P, len(COLUMNS)]; the base has one seed."""
    paths = [run / "correct" / TASK / f"{arm}-{seed}.json" for seed in ((0,) if arm == "base" else seeds)]
    return np.array([[[p[key] for key in COLUMNS] for p in json.loads(path.read_text())[split]] for path in paths])


def correct_tables(run: Path, seeds: Sequence[int]) -> None:
    table, compared = list[Row](), list[Row]()
    for split in CORRECT.splits:
        found = {arm: measured_attempts(run, arm, split, seeds) for arm in CORRECT.arms}
        for arm, label in CORRECT.arms.items():
            trained = [] if arm == "base" else seeds
            for (key, column), value in zip(COLUMNS.items(), arms.interval(found[arm]), strict=True):
                unit = "points" if key == "delta" else "share"
                if unit == "share":
                    value = share_interval(*value, found[arm].shape[1])
                claim = f"{TASK}, {split} / {label} / {column}"
                table.append(row(claim, value, found[arm].shape[1], trained, unit))
        for a, b in CORRECT.pairs:
            values = arms.interval(found[a] - found[b])
            for (key, column), value in zip(COLUMNS.items(), values, strict=True):
                if key in ("first", "second", "delta"):
                    claim = f"{TASK}, {split}: {CORRECT.arms[a]} minus / {CORRECT.arms[b]} / {column}"
                    compared.append(row(claim, value, found[a].shape[1], seeds, "points"))
    evidence.write("correct", table)
    evidence.write("correct-compared", compared)
    keys = {"total_sampled_tokens": "sampled tokens", "trained_tokens": "training tokens", "flops": "FLOPs"}
    evidence.write("correct-spent", arms.spent(CORRECT, run / "correct", [TASK], keys))


# ------------------------------------------------------------------------------------------------------ aha

AHA_TASKS = ("chain", "countdown")
KINDS = {"base": "base", "sft": "SFT", "rl": "RL"}
OFTEN = {"with_check": "check", "says_no": "checks that say no", "with_backtrack": "backtrack"}
WITHIN = {"check": "check", "backtrack": "backtrack", "either": "either"}
AROUND = {
    "stopped": "stopping there",
    "checking": "going on",
    "without": "going on without it",
    "gain": "with minus without",
    "mended": "wrong, then right",
    "spoiled": "right, then wrong",
}
Model = tuple[str, int | None, dict[str, Any], str]  # what a table calls it, its seed, its results, the command


def aha_models(run: Path, task: str, seeds: Sequence[int]) -> list[Model]:
    out = []
    for seed in seeds:
        report = json.loads((run / "aha" / f"{task}-{seed}" / "report.json").read_text())
        for kind, result in report["models"].items():
            label = KINDS[kind] if kind == "base" else f"{KINDS[kind]}, seed {seed}"
            given = (run / "aha" / "models" / f"{kind}-{task}-{seed}").is_symlink()
            command = f"runs/rl_against_sft.sh && {COMMAND}" if given else COMMAND
            out.append((label, None if kind == "base" else seed, result["tasks"][task], command))
    return sorted(out, key=lambda model: list(KINDS.values()).index(model[0].split(",")[0]))


def cell(claim: str, estimate: Mapping[str, Any], model: Model, unit: str) -> Iterator[Row]:
    """A row; none where there was nothing to measure (no chain has the word)."""
    if estimate["mean"] is not None and estimate["n"]:
        value = (estimate["mean"], estimate["low"], estimate["high"])
        _, seed, _, command = model
        yield row(claim, value, estimate["n"], [] if seed is None else [seed], unit, command)


def aha_tables(run: Path, seeds: Sequence[int]) -> None:
    often, again, within, banned, around, spent = (list[Row]() for _ in range(6))
    for task in AHA_TASKS:
        models = aha_models(run, task, seeds)
        for model in models:
            label, _, found, _ = model
            often += cell(f"{task} / {label} / right", found["accuracy"], model, "share")
            for key, column in OFTEN.items():
                often += cell(f"{task} / {label} / {column}", found["behaviour"][key], model, "share")
            again += cell(f"{task}, {label}: new approaches of a chain", found["approaches"], model, "a chain")
            for key, column in WITHIN.items():
                within += cell(f"{task} / {label} / {column}", found["within"][key], model, "points")
            for words, what in found["banned"].items():
                name = "all of them" if " " in words else words
                banned += cell(f"{task} / {label} / {name}", what["drop"], model, "points")
            for word, what in found["around"].items():
                for key, column in AROUND.items():
                    estimate = what["going_on"][key] if key in ("mended", "spoiled") else what[key]
                    unit = "points" if key == "gain" else "share"
                    around += cell(f"{task}, at {word} / {label} / {column}", estimate, model, unit)
        for kind in ("sft", "rl"):
            folders = [run / "aha" / "models" / f"{kind}-{task}-{seed}" for seed in seeds]
            tokens = [[r["trained_tokens"] for r in read_jsonl(f / "metrics.jsonl") if r.get("trained_tokens")][-1]
                      for f in folders]  # fmt: skip
            own = COMMAND if not folders[0].is_symlink() else "runs/rl_against_sft.sh"
            claim = f"{task}: training tokens of {KINDS[kind]} (range over seeds)"
            spent.append(row(claim, over_seeds(tokens), len(seeds), seeds, "tokens", own))
    evidence.write("aha", often)
    evidence.write("aha-approaches", again)
    evidence.write("aha-within", within)
    evidence.write("aha-banned", banned)
    evidence.write("aha-around", around)
    evidence.write("aha-models", spent)


def main(what: str, run: Path, *more: str) -> None:
    if what == "passes":
        passes(run, more[0], int(more[1]))
    elif what == "attempts":
        attempts(run, int(more[0]), more[1], int(more[2]))
    else:
        tables = {"reflect": reflect_tables, "correct": correct_tables, "aha": aha_tables}
        tables[more[0]](run, [int(seed) for seed in more[1:]])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
