"""A run folder as a report: of a demo from the data that it stored, of a run from its metrics and its two models.

A run's own files give the curves, the metrics and the ledger. What needs the same question twice (thoughts side
by side, lengths, behaviours) is sampled anew from the model that the run started from and the one that it has now.
"""

from __future__ import annotations

import asyncio
import json
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from mull import __version__
from mull import config as configs
from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import UserError
from mull.evals import behaviour, metrics, report_series
from mull.evals.evaluate import evaluate, held_out
from mull.evals.report import write_report
from mull.evals.report_data import ReportData, behaviour_rows
from mull.files import read_jsonl, write_whole
from mull.ledger import Budget, Ledger
from mull.models import hf
from mull.models.nano import model_folder
from mull.recipes.actor_critic import ActorCriticConfig
from mull.recipes.demo import pick, shown_thought
from mull.recipes.flywheel import FlywheelConfig
from mull.recipes.rl import RLConfig
from mull.recipes.star import StarConfig
from mull.search.sample import ON_POLICY, Decoding
from mull.tasks.load import load_task
from mull.types import Cost

PROBLEMS, SAMPLES = 64, 2  # sampled anew, held out

Reported = RLConfig | ActorCriticConfig | StarConfig | FlywheelConfig
CLASSES: dict[str, tuple[type, ...]] = {  # by the command that leaves such a run
    "mull rl": (RLConfig, ActorCriticConfig),
    "mull star": (StarConfig,),
    "mull flywheel": (FlywheelConfig,),
}


@dataclass(frozen=True)
class Told:
    """What a report has to know of a run besides its folder."""

    command: str
    method: str  # how it was trained, in words
    rows: Sequence[dict[str, Any]]  # its metrics, in the form of `report_series`
    series: report_series.Series
    role: str = "task"  # of its curve
    mean: str = "mean of tasks"  # what the curve over all problems is called
    decoding: Decoding = ON_POLICY  # with which it is measured
    first_tries: dict[str, Any] | None = None  # pass@1, where the run has chosen its model itself


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
    cfg = config_of(run)
    rows = list(read_jsonl(run / "metrics.jsonl"))
    told = told_of(cfg, run, rows)
    if not any(row["step"] > 0 for row in rows):
        raise UserError(f"{run} has no finished step yet: go on with it by {told.command} --out {run} --resume")
    data = run_data(cfg, run, told)
    write_whole(run / "summary.json", (json.dumps(summary(data), indent=1) + "\n").encode())
    return write_report(cast(ReportData, data), run / "report.html")


# ------------------------------------------------------------------------------------------- what a folder is


def config_of(run: Path) -> Reported:
    """The config of a run that a report can be made of; else a UserError that says what the folder is."""
    if not (run / "config.toml").is_file():
        raise UserError(f"{run} holds no run{_instead(run)}")
    problems: dict[type, UserError] = {}
    for cls in (cls for classes in CLASSES.values() for cls in classes):
        try:
            return configs.load(cls, run / "config.toml")
        except UserError as problem:  # a config of another recipe has keys that this one has not
            problems[cls] = problem
    command = _command(run)
    if command in CLASSES:
        told = " or ".join(str(problems[cls]) for cls in CLASSES[command])
        raise UserError(f"{run} is the folder of a run of {command} that this version of mull cannot read: {told}")
    pages = [*sorted(run.glob("*.html")), *(run / name for name in ("report.md", "report.json", "metrics.jsonl"))]
    own = next((f"; what it has to say is in {page}" for page in pages if page.is_file()), "")
    what = f"a run of {command}" if command else "a run of another recipe"
    raise UserError(f"{run} is the folder of {what}, and reports are made of {', '.join(CLASSES)} and mull demo{own}")


def _instead(run: Path) -> str:
    """What a folder without a config is, as the tail of a sentence."""
    inside = sorted(path.parent.name for path in run.glob("*/config.toml"))
    if inside:
        return f" of its own: name one of those inside it ({', '.join(inside[:6])}{', …' if len(inside) > 6 else ''})"
    for name, what in (
        ("scorer.json", "a scorer"),
        ("config.json", "a model"),
        ("catalogue.sqlite", "a store of golden data"),
        ("traces.jsonl", "traces to learn from"),
    ):
        if (run / name).is_file():
            return f", it holds {what}: name the folder that was given to {', '.join(CLASSES)} or mull demo by --out"
    return f": name the folder that was given to {', '.join(CLASSES)} or mull demo by --out"


def _command(run: Path) -> str:
    """ "mull rl" of the command line that began the run; "" where nobody knows."""
    try:
        words = json.loads((run / "run.json").read_text(encoding="utf-8"))["command"].split()
    except (OSError, ValueError, KeyError, AttributeError):
        return ""
    options = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return " ".join(words[: min(options, 3)])


# ------------------------------------------------------------------------------------ what the recipes leave


def told_of(cfg: Reported, run: Path, rows: list[dict[str, Any]]) -> Told:
    match cfg:
        case RLConfig():
            role = "control" if cfg.random_reward else "task"
            method = "reinforcement learning with random rewards" if cfg.random_reward else "reinforcement learning"
            return Told("mull rl", method, rows, report_series.RL, role)
        case ActorCriticConfig():
            names = {"ppo": "PPO", "vineppo": "VinePPO", "prime": "PRIME", "prm": "PPO and a process reward model"}
            method = f"reinforcement learning by {names[cfg.algorithm]}"
            method += ", the outcome not paid," if cfg.process_only else ""
            method += " with random rewards" if cfg.random_reward else ""
            role = "control" if cfg.random_reward else "task"
            return Told("mull rl", method, rows, report_series.ACTOR_CRITIC, role)
        case StarConfig():
            method = f"STaR {'with' if cfg.rationalize else 'without'} rationalization"
            return Told(
                "mull star", method, report_series.star_rows(rows), report_series.STAR, mean="all problems",
                decoding=Decoding(cfg.temperature),
            )  # fmt: skip
        case FlywheelConfig():
            turns = max((row["turn"] for row in rows), default=0)
            method = f"a flywheel of {turns} turn{'s' if turns != 1 else ''} ({cfg.method})"
            split = "test" if cfg.test_problems else "valid"
            return Told(
                "mull flywheel", method, report_series.flywheel_rows(rows), report_series.FLYWHEEL,
                mean=f"{split} problems", first_tries=flywheel_tries(run, split),
            )  # fmt: skip


def flywheel_tries(run: Path, split: str) -> dict[str, Any] | None:
    """pass@1 of the base and of the model that a finished flywheel has chosen; None of an unfinished one."""
    if not (run / "report.json").is_file():
        return None
    found = json.loads((run / "report.json").read_text(encoding="utf-8"))
    base, final = found["turns"][0][split], found["final"]
    return {"base": base, "trained": final[split], "gain": final[f"{split}_gain_over_base"], "control": None}


# --------------------------------------------------------------------------------------------------- the data


def run_data(cfg: Reported, run: Path, told: Told) -> dict[str, Any]:
    """`ReportData` of one run."""
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    start = about["starts"][0]
    before_and_after = compare(cfg, run, told)
    measured = [row["eval"]["all"] for row in told.rows if row.get("eval")]
    first_tries = before_and_after.pop("pass_at_1")
    if told.first_tries is not None:
        first_tries = told.first_tries
    elif len(measured) > 1:  # the run's own evaluations have more problems
        first_tries = {"base": measured[0], "trained": measured[-1], "gain": None, "control": None}
    opinion = report_series.opinion(told.rows)
    phases = ledger(run)
    return {
        "title": f"{told.command}: {run.name}",
        "model": "nano-base" if cfg.model == "nano" else Path(cfg.model).name,
        "method": told.method,
        "tasks": list(cfg.tasks),
        "date": str(start["started"])[:10],
        "pass_at_1": first_tries,
        "train": report_series.train_curves(told.rows, told.role, told.mean),
        "test": [],
        **before_and_after,
        "metrics": report_series.metric_series(told.rows, told.series),
        **({"opinion": opinion} if opinion else {}),
        "ledger": phases,
        "seconds": sum(phase["seconds"] for phase in phases),
        "command": about["command"],
        "seed": about["seed"],
        "versions": {"mull": start.get("version", __version__), "torch": start.get("torch", torch.__version__)}
        | {"python": start.get("python", platform.python_version())},
        "machine": start["machine"],
        "commit": start["commit"],
    }


def compare(cfg: Reported, run: Path, told: Told) -> dict[str, Any]:
    """The same held-out questions before and after: pass@1, thoughts, lengths, behaviours."""
    held = held_out([load_task(name) for name in cfg.tasks], cfg.levels, PROBLEMS, "test", cfg.seed)
    samples = SAMPLES if told.decoding.temperature else 1  # greedy ones would be the same
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=samples)
    marks, shown, thoughts = [], [], []
    for folder in (model_folder(cfg.model), trained_model(run, told.command)):
        chat = Chat.load(folder)
        engine = LocalEngine(hf.load(folder), chat)
        evaluation = asyncio.run(evaluate(held, engine, chat, budget, decoding=told.decoding, seed=cfg.seed))
        marks.append(evaluation.marks)
        shown.append([shown_thought(h, t, chat) for h, t in zip(held, evaluation.traces, strict=True)])
        thoughts.append(evaluation.thoughts(chat, samples))
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


def trained_model(run: Path, command: str) -> Path:
    """The finished model, or that of the newest checkpoint."""
    if (run / "model" / "config.json").is_file():
        return run / "model"
    found = sorted(run.glob("checkpoints/step_*/model/hf/config.json"))
    if not found:
        raise UserError(f"{run} has no checkpoint yet: go on with it by {command} --out {run} --resume")
    return found[-1].parent


def ledger(run: Path) -> list[dict[str, Any]]:
    """What the newest checkpoint says was spent, by phase; the turns of a flywheel together."""
    newest = sorted(run.glob("checkpoints/step_*/state.pt"))
    if not newest:
        return []
    found = Ledger.restore(torch.load(newest[-1], weights_only=True)["ledger"])
    phases: dict[str, Cost] = {}
    for name, cost in found.phases.items():
        name = re.sub(r"^turn \d+ ", "", name)
        phases[name] = phases.get(name, Cost()) + cost
    keys = ("sampled_tokens", "prefill_tokens", "cached_tokens", "trained_tokens", "flops", "seconds")
    return [{"phase": phase, **{key: getattr(cost, key) for key in keys}} for phase, cost in phases.items()]


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
