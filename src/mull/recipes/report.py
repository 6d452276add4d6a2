"""A run folder as a report: of a demo from the data that it stored, of an rl run from its metrics and its two models.

An rl run's own files give the curves, the metrics and the ledger. What needs the same question twice (thoughts side
by side, lengths, behaviours) is sampled anew from the model that the run started from and the one that it has now.
"""

from __future__ import annotations

import asyncio
import json
import platform
import time
from pathlib import Path
from typing import Any, cast

import torch

from mull import __version__
from mull import config as configs
from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import UserError
from mull.evals import behaviour, metrics
from mull.evals.evaluate import evaluate, held_out
from mull.evals.report import write_report
from mull.evals.report_data import ReportData, behaviour_rows
from mull.files import read_jsonl, write_whole
from mull.ledger import Budget, Ledger
from mull.models import hf
from mull.models.nano import model_folder
from mull.recipes.demo import metric_series, pick, shown_thought, train_curves
from mull.recipes.rl import RLConfig
from mull.tasks.load import load_task

PROBLEMS, SAMPLES = 64, 2  # sampled anew, held out


def report(run: Path) -> Path:
    """Writes RUN/report.html and RUN/summary.json; returns the page. UserError for a folder that holds no such run."""
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}")
    stored = run / "report_data.json"
    if stored.is_file():
        try:
            data = json.loads(stored.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise UserError(f"{stored} is not valid JSON ({problem}): run mull demo --resume again") from None
        return write_report(cast(ReportData, data), run / "report.html")
    if not (run / "config.toml").is_file():
        raise UserError(f"{run} holds no run: name the folder that was given to mull rl or mull demo by --out")
    try:
        cfg = configs.load(RLConfig, run / "config.toml")
    except UserError as problem:
        raise UserError(f"{run} is not the folder of an rl run or a finished demo ({problem})") from None
    rows = list(read_jsonl(run / "metrics.jsonl"))
    if not any(row["step"] > 0 for row in rows):
        raise UserError(f"{run} has no finished step yet: go on with it by mull rl --out {run} --resume")
    data = rl_data(cfg, run, rows)
    write_whole(run / "summary.json", (json.dumps(summary(data), indent=1) + "\n").encode())
    return write_report(cast(ReportData, data), run / "report.html")


def rl_data(cfg: RLConfig, run: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`ReportData` of one rl run."""
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    start = about["starts"][0]
    before_and_after = compare(cfg, run)
    measured = [row["eval"]["all"] for row in rows if row.get("eval")]
    first_tries = before_and_after.pop("pass_at_1")
    if len(measured) > 1:  # the run's own evaluations have more problems
        first_tries = {"base": measured[0], "trained": measured[-1], "gain": None, "control": None}
    role = "control" if cfg.random_reward else "task"
    return {
        "title": f"mull rl: {run.name}",
        "model": "nano-base" if cfg.model == "nano" else Path(cfg.model).name,
        "method": "reinforcement learning with random rewards" if cfg.random_reward else "reinforcement learning",
        "tasks": list(cfg.tasks),
        "date": str(start["started"])[:10],
        "pass_at_1": first_tries,
        "train": train_curves(rows, role),
        "test": [],
        **before_and_after,
        "metrics": metric_series(rows),
        "ledger": ledger(run),
        "seconds": sum(phase["seconds"] for phase in ledger(run)),
        "command": about["command"],
        "seed": about["seed"],
        "versions": {"mull": start.get("version", __version__), "torch": start.get("torch", torch.__version__)}
        | {"python": start.get("python", platform.python_version())},
        "machine": start["machine"],
        "commit": start["commit"],
    }


def compare(cfg: RLConfig, run: Path) -> dict[str, Any]:
    """The same held-out questions before and after: pass@1, thoughts, lengths, behaviours."""
    held = held_out([load_task(name) for name in cfg.tasks], cfg.levels, PROBLEMS, "test", cfg.seed)
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=SAMPLES)
    marks, shown, thoughts = [], [], []
    for folder in (model_folder(cfg.model), trained_model(run)):
        chat = Chat.load(folder)
        evaluation = asyncio.run(evaluate(held, LocalEngine(hf.load(folder), chat), chat, budget, seed=cfg.seed))
        marks.append(evaluation.marks)
        shown.append([shown_thought(h, t, chat) for h, t in zip(held, evaluation.traces, strict=True)])
        thoughts.append(evaluation.thoughts(chat, SAMPLES))
    question, thought = ("task", "level", "question", "expected"), ("right", "answer", "tokens", "lines")
    pairs = [
        {
            **{key: before[key] for key in question},
            "before": {key: before[key] for key in thought},
            "after": {key: after[key] for key in thought},
        }
        for before, after in zip(*shown, strict=True)
    ]
    return {
        "pass_at_1": {
            "base": metrics.pass_at_1(marks[0]).as_dict(),
            "trained": metrics.pass_at_1(marks[1]).as_dict(),
            "gain": metrics.paired_difference(marks[0], marks[1]).as_dict(),
            "control": None,
        },
        "thoughts": pick(pairs),
        "lengths": {"before": [t.tokens for t in thoughts[0]], "after": [t.tokens for t in thoughts[1]]},
        "behaviours": behaviour_rows(behaviour.describe(thoughts[0]), behaviour.describe(thoughts[1])),
    }


def trained_model(run: Path) -> Path:
    """The finished model, or that of the newest checkpoint."""
    if (run / "model" / "config.json").is_file():
        return run / "model"
    found = sorted(run.glob("checkpoints/step_*/model/hf/config.json"))
    if not found:
        raise UserError(f"{run} has no checkpoint yet: go on with it by mull rl --out {run} --resume")
    return found[-1].parent


def ledger(run: Path) -> list[dict[str, Any]]:
    """What the newest checkpoint says was spent, by phase."""
    newest = sorted(run.glob("checkpoints/step_*/state.pt"))
    if not newest:
        return []
    found = Ledger.restore(torch.load(newest[-1], weights_only=True)["ledger"])
    keys = ("sampled_tokens", "prefill_tokens", "cached_tokens", "trained_tokens", "flops", "seconds")
    return [{"phase": phase, **{key: getattr(cost, key) for key in keys}} for phase, cost in found.phases.items()]


def summary(data: dict[str, Any]) -> dict[str, Any]:
    """The figures of the run, for programs."""
    keep = ("flops", "tokens", "accuracy", "low", "high")
    curve = next((c["points"] for c in data["train"] if c["role"] in ("mean", "control")), [])
    return {
        "pass_at_1": data["pass_at_1"],
        "train_curve": [{key: point[key] for key in keep} for point in curve],
        **{key: data[key] for key in ("tasks", "seconds", "seed", "command", "commit", "machine")},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
