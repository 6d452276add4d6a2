"""The page of a scaling law: one self-contained HTML file, a pure function of its data. See `mull.evals.page`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from mull.errors import UserError
from mull.evals.compare_data import PredictionRow
from mull.evals.compare_page import LAWS, facts, prediction_table, share_cell
from mull.evals.page import asset, fill, finite, table, text, write_page
from mull.evals.report_data import Interval, duration, listing, power


class Point(TypedDict):
    """One evaluation of one run."""

    seed: int
    step: int
    compute: float  # FLOPs
    accuracy: float
    held_out: bool  # in the half that the law was not fitted to


class Line(TypedDict):
    law: str  # sigmoid, log, error; refit: the sigmoid through all points, made afterwards
    points: list[dict[str, float]]  # {compute, value, low, high}


class Chart(TypedDict):
    task: str  # "mean" for all problems together
    start: Interval  # before training
    points: list[Point]
    lines: list[Line]


class FitRow(TypedDict):
    """`SigmoidFit.as_dict` or `Fit.as_dict`, and what it was fitted to."""

    task: str
    law: str
    formula: str
    params: list[dict[str, Any]]  # {name, value, low, high}
    n: int
    to: str  # "first half" or "everything"


class ErrorRow(TypedDict):
    """How far a published law lies from the held-out half."""

    task: str
    law: str
    rms: float
    off: Interval  # found minus predicted, mean
    evaluations: int


class ScaleData(TypedDict):
    title: str
    model: str
    algorithm: str
    tasks: list[str]
    summary: list[str]  # sentences; the first is the headline
    seeds: list[int]
    problems: int  # held out
    samples: int  # of each, in one evaluation
    up_to: float  # FLOPs of the first half
    published: str  # ISO times
    begun: str | None  # the second half
    charts: list[Chart]
    predictions: list[PredictionRow]
    fits: list[FitRow]
    errors: list[ErrorRow]
    seconds: float  # of training, evaluations not counted
    date: str
    command: str
    commit: str
    machine: str
    versions: dict[str, str]


def write_scale(data: ScaleData, path: str | os.PathLike[str]) -> Path:
    """Renders `data` into the file `path`, in one piece."""
    return write_page(render_scale(data), path)


def render_scale(data: ScaleData) -> str:
    """The whole page. UserError where a top-level field of `ScaleData` is missing."""
    missing = [key for key in ScaleData.__annotations__ if key not in data]
    if missing:
        raise UserError(f"the data of the scaling law lack {', '.join(missing)}; run mull scale train again")
    data = cast(ScaleData, finite(data))
    headline, *rest = data["summary"] or [f"{data['model']} on {listing(data['tasks'])}"]
    begun = data["begun"]
    order = f"{_time(data['published'])}; the second half began {_time(begun)}" if begun else _time(data["published"])
    about = [
        ("Model", data["model"]),
        ("Algorithm", data["algorithm"]),
        ("Tasks", listing(data["tasks"])),
        ("Seeds", ", ".join(map(str, data["seeds"]))),
        ("Problems", f"{data['problems']:,}, held out, {data['samples']} samples of each"),
        ("Published", order),
        ("Training", duration(data["seconds"])),
    ]
    run = [
        ("Date", data["date"]),
        ("Machine", data["machine"]),
        ("Commit", data["commit"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in data["versions"].items())),
    ]
    slots = {
        "css": asset("report.css") + asset("compare.css") + asset("scale.css"),
        "title": text(data["title"]),
        "headline": text(headline),
        "lead": f'<p class="lead">{text(" ".join(rest))}</p>' if rest else "",
        "about": facts(about),
        "command": text(data["command"]),
        "prediction_table": prediction_table(data["predictions"]),
        "error_table": _errors(data["errors"]),
        "fit_table": _fits(data["fits"]),
        "facts": facts(run),
    }
    return fill("scale.html", ["page.js", "scale.js"], data, slots)


def _time(iso: str) -> str:
    return iso[:19].replace("T", " ")


def _name(task: str) -> str:
    return "all problems" if task == "mean" else task


def _amount(name: str, value: float | None) -> str:
    """A parameter as people read it: accuracies in percent, compute as a power of ten."""
    if value is None:
        return "–"
    if name in ("R₀", "A"):
        return f"{value:.1%}"
    return power(value) if name == "C_mid" else f"{value:.3g}".replace("-", "−")


def _fits(rows: Sequence[FitRow]) -> str:
    if not rows:
        return '<p class="note">Nothing was fitted.</p>'
    body = []
    for row in rows:
        law = f"{text(LAWS.get(row['law'], row['law']))}<small>{text(row['formula'])}</small>"
        cells = [
            f"{text(p['name'])} = {_amount(p['name'], p['value'])}"
            f"<small>{_amount(p['name'], p['low'])} to {_amount(p['name'], p['high'])}</small>"
            for p in row["params"]
        ]
        about = f"{text(_name(row['task']))}<small>fitted to {text(row['to'])}</small>"
        body.append((about, law, *cells, *[""] * (4 - len(cells))))
    return table(("", "law", "", "", "", ""), body, "Fitted laws with 95% intervals")


def _errors(rows: Sequence[ErrorRow]) -> str:
    if not rows:
        return '<p class="note">The second half has not been run yet.</p>'
    best = {task: min(r["rms"] for r in rows if r["task"] == task) for task in dict.fromkeys(r["task"] for r in rows)}
    body = []
    for row in rows:
        rms = f"{100 * row['rms']:.1f} points"
        law = text(LAWS.get(row["law"], row["law"]))
        body.append(
            (
                f"{law}<small>{text(_name(row['task']))}</small>",
                f"<b>{rms}</b>" if row["rms"] == best[row["task"]] else rms,
                share_cell(row["off"]).replace("-", "−"),
                f"{row['evaluations']:,}",
            )
        )
    head = ("law", "error, root mean square", "found minus predicted", "evaluations")
    return table(head, body, "How far each law lies from the held-out half")
