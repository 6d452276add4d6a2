"""The run report: one self-contained HTML file, a pure function of one `ReportData` dict. No network; see `page`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from mull.errors import UserError
from mull.evals.page import asset, fill, finite, table, text, write_page
from mull.evals.report_data import (
    Interval,
    ReportData,
    TestCurve,
    TrainCurve,
    duration,
    headline,
    opinions,
    percent,
    power,
)


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Renders `data` into the file `path`, in one piece."""
    return write_page(render(data), path)


def render(data: ReportData) -> str:
    """The whole page. UserError where a top-level field of `ReportData` is missing."""
    missing = [key for key in ReportData.__annotations__ if key in ReportData.__required_keys__ and key not in data]
    if missing:
        raise UserError(f"the report's data lack {', '.join(missing)}; write them again with this version of mull")
    if "controls" not in data["pass_at_1"]:
        raise UserError("the report's data are of another version of mull: write them again with this one")
    data = cast(ReportData, finite(data))
    slots = {
        "css": asset("report.css"),
        "title": text(data["title"]),
        "headline": text(headline(data)),
        "tiles": _tiles(data),
        "note": text(data.get("note", "")),
        "train_note": _train_note(data),
        "train_table": _curve_table((_train_name(c), c["points"]) for c in data["train"]),
        "test_table": _curve_table((_test_name(c), c["points"]) for c in data["test"]),
        "length_table": _length_table(data),
        "behaviour_table": _behaviour_table(data),
        "opinion": _opinion(data),
        "ledger_table": _ledger_table(data),
        "command": text(data["command"]),
        "facts": _facts(data),
    }
    return fill("report.html", ["page.js", "report.js"], data, slots)


# ------------------------------------------------------------------------------------------------ pieces


def _tiles(data: ReportData) -> str:
    p = data["pass_at_1"]
    tiles = [("Before", percent(p["base"]["mean"]), _range(p["base"]), "base")]
    tiles.append(("After", percent(p["trained"]["mean"]), _range(p["trained"]), "trained"))
    if p["gain"] is not None:
        tiles.append(("Gain", _amount(p["gain"]["mean"], "points"), _range(p["gain"], "points"), ""))
    for c in p["controls"]:
        tiles.append((c["name"], percent(c["accuracy"]["mean"]), _range(c["accuracy"]), "control"))
        if c["gain"] is not None:
            tiles.append(("After minus it", _amount(c["gain"]["mean"], "points"), _range(c["gain"], "points"), ""))
    for curve in data["test"]:
        drawn: list[Any] = [q for q in curve["points"] if q["accuracy"] is not None]
        if (curve["task"], curve["model"], curve["method"]) == ("mean", "trained", "vote") and len(drawn) > 1:
            rise = drawn[-1]["accuracy"] - drawn[0]["accuracy"]
            times = drawn[-1]["flops"] / drawn[0]["flops"] if drawn[0]["flops"] else math.nan
            note = f"{drawn[-1]['label']}, {times:,.0f} times the compute" if math.isfinite(times) else ""
            tiles.append(("Voting adds", _amount(rise, "points"), note, ""))
    return "".join(
        f'<div class="tile {kind}"><dt>{text(name)}</dt><dd>{text(value)}<small>{text(note)}</small></dd></div>'
        for name, value, note, kind in tiles
    )


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit in ("points", "difference"):
        return f"{100 * value:+.1f}".replace("-", "−") + (" points" if unit == "points" else " pts")
    return percent(value) if unit == "share" else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _range(interval: Interval, unit: str = "share") -> str:
    if interval["mean"] is None:
        return "not measured"
    low, high = (_amount(interval[side], unit).removesuffix(" points").removesuffix(" pts") for side in ("low", "high"))
    return f"{low.removesuffix('%')} to {high}, n={interval['n']:,}"


def _train_name(curve: TrainCurve) -> str:
    return curve["name"]


def _train_note(data: ReportData) -> str:
    if not any(curve["role"] == "control" for curve in data["train"]):
        return ""
    return "The dashed control was trained alike, with rewards drawn at random."


def _test_name(curve: TestCurve) -> str:
    task = "mean of tasks" if curve["task"] == "mean" else curve["task"]
    method = "majority vote" if curve["method"] == "vote" else "thinking budget"
    return f"{task}, {curve['model']}, {method}"


def _curve_table(curves: Iterable[tuple[str, Sequence[Any]]]) -> str:
    rows: list[Sequence[str]] = []
    for name, points in curves:
        rows.append((text(name),))
        rows += [
            (
                text(p["label"]),
                power(p["flops"]),
                power(p["tokens"]),
                percent(p["accuracy"]),
                f"{percent(p['low']).removesuffix('%')} to {percent(p['high'])}",
                f"{p['n']:,}",
            )
            for p in points
        ]
    return table(("point", "FLOPs", "tokens", "accuracy", "95% interval", "n"), rows, "Every point of the chart")


def _length_table(data: ReportData) -> str:
    rows = []
    for name, tokens in (("before", data["lengths"]["before"]), ("after", data["lengths"]["after"])):
        ordered = sorted(tokens)
        if ordered:
            cuts = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.1, 0.5, 0.9)]
            mean = sum(ordered) / len(ordered)
            rows.append((name, f"{mean:,.1f}", *(f"{c:,}" for c in cuts), f"{ordered[-1]:,}", f"{len(ordered):,}"))
    head = ("tokens", "mean", "10%", "median", "90%", "max", "n")
    return table(head, rows, "Tokens per thought")


def _behaviour_table(data: ReportData) -> str:
    def cell(interval: Interval, unit: str) -> str:
        if interval["mean"] is None:
            return "–"
        span, n = _range(interval, unit).split(", ")
        return f"{text(_amount(interval['mean'], unit))}<small>{text(span)} <span>{text(n)}</span></small>"

    rows = [(text(r["name"]), cell(r["before"], r["unit"]), cell(r["after"], r["unit"])) for r in data["behaviours"]]
    return table(("", "before", "after"), rows, "Behaviours before and after training, with 95% intervals")


def _opinion(data: ReportData) -> str:
    if "opinion" not in data:
        return ""
    return (
        '<figure class="panel wide" id="opinion"><figcaption><h3>What the scorer thinks, and what is true</h3>'
        "<p>of the chains of each step, on training problems</p></figcaption>"
        '<div class="chips"></div><div class="chart"></div>'
        f'<p class="note">{text(opinions(data["opinion"]))} Where the opinion rises and the truth does not follow, the '
        "model has learnt to please the scorer.</p></figure>"
    )


def _ledger_table(data: ReportData) -> str:
    counts = ("sampled_tokens", "prefill_tokens", "cached_tokens", "trained_tokens")
    phases: list[dict[str, Any]] = [{**p} for p in data["ledger"]]
    total = {key: sum(p[key] for p in phases) for key in (*counts, "flops", "seconds")}
    rows = [
        (
            text(p["phase"]),
            *(f"{p[key]:,}" for key in counts),
            power(p["flops"]),
            f"{p['seconds']:,.1f}",
        )
        for p in [*phases, {"phase": "all", **total}]
    ]
    head = ("phase", "sampled", "prefilled", "from cache", "trained on", "FLOPs", "seconds")
    return table(head, rows, "Tokens, FLOPs and seconds by phase", foot=True)


def _facts(data: ReportData) -> str:
    facts = [
        ("Seed", data["seed"]),
        ("Time", duration(data["seconds"])),
        ("Machine", data["machine"]),
        ("Commit", data["commit"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in data["versions"].items())),
        ("Date", data["date"]),
    ]
    return "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts)
