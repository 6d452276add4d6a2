"""A run folder as a report: of a demo from the data that it stored, of a run from its metrics and its two models.

A run's own files give the curves, the metrics and the ledger. What needs the same question twice (the gain and its
interval, thoughts side by side, lengths, behaviours, controls) is sampled anew: from the model that the run started
from, from the one that it has now, and from its controls, on the problems of the run's own evaluations.
"""

from __future__ import annotations

import asyncio
import gc
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from mull import __version__
from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import UserError
from mull.evals import behaviour, metrics, report_series
from mull.evals.evaluate import Evaluation, Held, evaluate, held_out
from mull.evals.report import write_report
from mull.evals.report_data import ReportData, behaviour_rows
from mull.files import write_whole
from mull.ledger import Budget
from mull.models import hf
from mull.models.nano import model_folder
from mull.models.transformer import Transformer
from mull.progress import Mode, Progress
from mull.recipes.demo import pick, shown_thought
from mull.recipes.reported import Phases, Reported, Told, config_of, named, told_of, trained_model
from mull.search.sample import sample
from mull.search.turns import attempts, two_turns
from mull.tasks.load import load_task


def report(run: Path, controls: Sequence[Path] = (), mode: Mode = "quiet") -> Path:
    """Writes RUN/report.html and RUN/summary.json; returns the page. UserError for a folder that holds no such run.

    controls: run folders, or models, that are measured on the same problems.
    """
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}")
    stored = run / "report_data.json"
    if stored.is_file():
        if controls:
            raise UserError(f"{run} is a demonstration, which has its own control: leave out --control")
        try:
            data = json.loads(stored.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise UserError(f"{stored} is not valid JSON ({problem}): run mull demo --resume again") from None
        return write_report(cast(ReportData, data), run / "report.html")
    cfg = config_of(run)
    told = told_of(cfg, run)
    if not any(row["step"] > 0 for row in told.rows):
        raise UserError(f"{run} has no finished step yet: go on with it by {told.command} --out {run} --resume")
    told = replace(told, controls=[*told.controls, *((named(str(path)), control(path)) for path in controls)])
    data = run_data(cfg, run, told, mode)
    write_whole(run / "summary.json", (json.dumps(summary(data), indent=1) + "\n").encode())
    return write_report(cast(ReportData, data), run / "report.html")


def control(path: Path) -> Path:
    """The model of a run folder, or the folder of a model itself; nano is the one that ships."""
    if str(path) == "nano":
        return model_folder("nano")
    if (path / "config.toml").is_file():
        return trained_model(path, "the command that began it")
    if not (path / "config.json").is_file():
        raise UserError(f"--control {path} holds neither a run nor a model: name the folder of one")
    return path


# --------------------------------------------------------------------------------------------------- the data


def run_data(cfg: Reported, run: Path, told: Told, mode: Mode) -> dict[str, Any]:
    """`ReportData` of one run."""
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    start = about["starts"][0]
    before_and_after = compare(cfg, run, told, mode)
    opinion = report_series.opinion(told.rows)
    phases = ledger(told.phases)
    return {
        "title": f"{told.command}: {run.name}",
        "model": told.model,
        "method": told.method,
        "tasks": list(cfg.tasks),
        "date": str(start["started"])[:10],
        "train": report_series.train_curves(told.rows, told.role, told.mean),
        "test": [],
        **before_and_after,
        "metrics": report_series.metric_series(told.rows, told.series),
        **({"opinion": opinion} if opinion else {}),
        **({"note": told.note} if told.note else {}),
        "ledger": phases,
        "seconds": sum(phase["seconds"] for phase in phases),
        "command": about["command"],
        "seed": about["seed"],
        "versions": {"mull": start.get("version", __version__), "torch": start.get("torch", torch.__version__)}
        | {"python": start.get("python", platform.python_version())},
        "machine": start["machine"],
        "commit": start["commit"],
    }


def compare(cfg: Reported, run: Path, told: Told, mode: Mode = "quiet") -> dict[str, Any]:
    """The same held-out questions before and after, and of every control: pass@1 and what is paired by question;
    thoughts, lengths, behaviours."""
    held = held_out([load_task(name) for name in cfg.tasks], cfg.levels, told.problems, "test", told.held_seed)
    chat = Chat.load(told.chat)
    models: list[tuple[str, Chat, Callable[[], Transformer]]] = [("before", chat, told.start)]
    for name, folder in (("after", trained_model(run, told.command)), *told.controls):
        models.append((name, Chat.load(folder), partial(hf.load, folder, device=cfg.device)))
    marks, shown, thoughts = [], [], []
    with Progress("measuring for the report", len(models) * len(held), mode=mode) as progress:
        for i, (_, own, load) in enumerate(models):
            firsts, judged = measure(
                cfg, told, held, LocalEngine(load(), own), own, lambda done, i=i: progress.update(i * len(held) + done)
            )
            marks.append(judged)
            if i < 2:
                shown.append([shown_thought(h, t, own) for h, t in zip(held, firsts.traces, strict=True)])
                thoughts.append(firsts.thoughts(own, told.samples))
            gc.collect()  # a model's pages hang on cycles
    question, thought = ("task", "level", "question", "expected"), ("right", "answer", "tokens", "lines")
    pairs = [
        {
            **{key: before[key] for key in question},
            "before": {key: before[key] for key in thought},
            "after": {key: after[key] for key in thought},
        }
        for before, after in zip(*shown, strict=True)
    ]
    found = told.tries or {
        "base": metrics.pass_at_1(marks[0]).as_dict(),
        "trained": metrics.pass_at_1(marks[1]).as_dict(),
        "gain": metrics.paired_difference(marks[0], marks[1]).as_dict(),
        "controls": [],
    }
    beside = [
        {
            "name": name,
            "accuracy": metrics.pass_at_1(own).as_dict(),
            "gain": metrics.paired_difference(own, marks[1]).as_dict(),
        }
        for (name, _, _), own in zip(models[2:], marks[2:], strict=True)
    ]
    return {
        "pass_at_1": {**found, "controls": [*found["controls"], *beside]},
        "thoughts": pick(pairs),
        "lengths": {"before": [t.tokens for t in thoughts[0]], "after": [t.tokens for t in thoughts[1]]},
        "behaviours": behaviour_rows(behaviour.describe(thoughts[0]), behaviour.describe(thoughts[1])),
    }


def measure(
    cfg: Reported, told: Told, held: list[Held], engine: LocalEngine, chat: Chat, on_done: Callable[[int], None]
) -> tuple[Evaluation, list[list[bool | None]]]:
    """(first attempts to look at, the marks that count: of second attempts, where the run is about these)."""
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=told.samples)
    strategy = partial(two_turns, instruction=told.instruction) if told.instruction else sample
    found = asyncio.run(
        evaluate(
            held, engine, chat, budget, strategy, told.decoding, seed=cfg.seed, on_done=on_done, effort=told.effort
        )
    )
    if not told.instruction:
        return found, found.marks
    firsts = [replace(t, leaves=t.leaves[::2], answers=t.answers[::2], verdicts=t.verdicts[::2]) for t in found.traces]
    return Evaluation(held, firsts), [attempts(marks)[1] for marks in found.marks]


def ledger(phases: Phases) -> list[dict[str, Any]]:
    keys = ("sampled_tokens", "prefill_tokens", "cached_tokens", "trained_tokens", "flops", "seconds")
    return [{"phase": phase, **{key: getattr(cost, key) for key in keys}} for phase, cost in phases.items()]


def summary(data: dict[str, Any]) -> dict[str, Any]:
    """The figures of the run, for programs."""
    keep = ("flops", "tokens", "accuracy", "low", "high")
    curve = next((c["points"] for c in data["train"] if c["role"] in ("mean", "control")), [])
    return {
        "pass_at_1": data["pass_at_1"],
        "train_curve": [{key: point[key] for key in keep} for point in curve],
        "flops": sum(phase["flops"] for phase in data["ledger"]),
        **{key: data[key] for key in ("tasks", "seconds", "seed", "command", "commit", "machine")},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
