"""The run report: one self-contained HTML file, a pure function of one `ReportData` dict. No network.

Thoughts and answers are a model's output, so they are hostile until escaped. They enter the page twice over guarded:
as JSON in which no `<` survives, which the page's script shows as text nodes only; and under a content security
policy that runs the page's three scripts by their hashes and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from mull.errors import UserError
from mull.evals.report_data import (
    Interval,
    ReportData,
    TestCurve,
    TrainCurve,
    duration,
    headline,
    percent,
    power,
)
from mull.files import write_whole

_SLOT = re.compile(r"\{\{(\w+)\}\}")
_JSON_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Renders `data` into the file `path`, in one piece."""
    page = render(data).encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
    return path


def render(data: ReportData) -> str:
    """The whole page. UserError where a top-level field of `ReportData` is missing."""
    missing = [key for key in ReportData.__annotations__ if key not in data]
    if missing:
        raise UserError(f"the report's data lack {', '.join(missing)}; write them again with this version of mull")
    data = cast(ReportData, _finite(data))
    scripts = {"d3": _asset("d3.min.js"), "plot": _asset("plot.umd.min.js"), "js": _asset("report.js")}
    slots = {
        **scripts,
        "css": _asset("report.css"),
        "script_hashes": " ".join(map(_csp_hash, scripts.values())),
        "title": _text(data["title"]),
        "headline": _text(headline(data)),
        "tiles": _tiles(data),
        "train_note": _train_note(data),
        "train_table": _curve_table((_train_name(c), c["points"]) for c in data["train"]),
        "test_table": _curve_table((_test_name(c), c["points"]) for c in data["test"]),
        "length_table": _length_table(data),
        "behaviour_table": _behaviour_table(data),
        "ledger_table": _ledger_table(data),
        "command": _text(data["command"]),
        "facts": _facts(data),
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False).translate(_JSON_ESCAPES),
    }
    # one pass, so that nothing inside a slot is taken for a slot
    return _SLOT.sub(lambda found: slots[found[1]], _asset("report.html"))


@cache
def _asset(name: str) -> str:
    return files("mull.evals").joinpath("assets", name).read_text(encoding="utf-8")


def _csp_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities as None, which JSON and the page know; lone surrogates cannot be encoded."""
    if isinstance(value, dict):
        return {_finite(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


# ------------------------------------------------------------------------------------------------ pieces


def _tiles(data: ReportData) -> str:
    p = data["pass_at_1"]
    tiles = [("Before", percent(p["base"]["mean"]), _range(p["base"]), "base")]
    tiles.append(("After", percent(p["trained"]["mean"]), _range(p["trained"]), "trained"))
    if p["gain"] is not None:
        tiles.append(("Gain", _amount(p["gain"]["mean"], "points"), _range(p["gain"], "points"), ""))
    if p["control"] is not None:
        tiles.append(("Random rewards", percent(p["control"]["mean"]), _range(p["control"]), "control"))
    for curve in data["test"]:
        drawn: list[Any] = [q for q in curve["points"] if q["accuracy"] is not None]
        if (curve["task"], curve["model"], curve["method"]) == ("mean", "trained", "vote") and len(drawn) > 1:
            rise = drawn[-1]["accuracy"] - drawn[0]["accuracy"]
            times = drawn[-1]["flops"] / drawn[0]["flops"] if drawn[0]["flops"] else math.nan
            note = f"{drawn[-1]['label']}, {times:,.0f} times the compute" if math.isfinite(times) else ""
            tiles.append(("Voting adds", _amount(rise, "points"), note, ""))
    return "".join(
        f'<div class="tile {kind}"><dt>{_text(name)}</dt><dd>{_text(value)}<small>{_text(note)}</small></dd></div>'
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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, foot: bool = False) -> str:
    """A table of ready-made cells: names, then numbers. A row of one cell is a heading; `foot`: the last is a sum."""

    def row(cells: Sequence[str], tag: str = "td", scope: str = "") -> str:
        if len(cells) == 1:
            return f'<tr class="heading"><th scope="rowgroup" colspan="{len(head)}">{cells[0]}</th></tr>'
        rest = "".join(f'<{tag}{scope} class="num">{cell}</{tag}>' for cell in cells[1:])
        first = scope or ' scope="row"'
        return f"<tr><th{first}>{cells[0]}</th>{rest}</tr>"

    body = [row(cells) for cells in rows]
    tail = f"<tfoot>{body.pop()}</tfoot>" if foot and body else ""
    columns = row(head, "th", ' scope="col"')
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{_text(caption)}"><table>'
        f'<caption class="sr-only">{_text(caption)}</caption><thead>{columns}</thead>'
        f"<tbody>{''.join(body)}</tbody>{tail}</table></div>"
    )


def _curve_table(curves: Iterable[tuple[str, Sequence[Any]]]) -> str:
    rows: list[Sequence[str]] = []
    for name, points in curves:
        rows.append((_text(name),))
        rows += [
            (
                _text(p["label"]),
                power(p["flops"]),
                power(p["tokens"]),
                percent(p["accuracy"]),
                f"{percent(p['low']).removesuffix('%')} to {percent(p['high'])}",
                f"{p['n']:,}",
            )
            for p in points
        ]
    return _table(("point", "FLOPs", "tokens", "accuracy", "95% interval", "n"), rows, "Every point of the chart")


def _length_table(data: ReportData) -> str:
    rows = []
    for name, tokens in (("before", data["lengths"]["before"]), ("after", data["lengths"]["after"])):
        ordered = sorted(tokens)
        if ordered:
            cuts = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.1, 0.5, 0.9)]
            mean = sum(ordered) / len(ordered)
            rows.append((name, f"{mean:,.1f}", *(f"{c:,}" for c in cuts), f"{ordered[-1]:,}", f"{len(ordered):,}"))
    head = ("tokens", "mean", "10%", "median", "90%", "max", "n")
    return _table(head, rows, "Tokens per thought")


def _behaviour_table(data: ReportData) -> str:
    def cell(interval: Interval, unit: str) -> str:
        if interval["mean"] is None:
            return "–"
        span, n = _range(interval, unit).split(", ")
        return f"{_text(_amount(interval['mean'], unit))}<small>{_text(span)} <span>{_text(n)}</span></small>"

    rows = [(_text(r["name"]), cell(r["before"], r["unit"]), cell(r["after"], r["unit"])) for r in data["behaviours"]]
    return _table(("", "before", "after"), rows, "Behaviours before and after training, with 95% intervals")


def _ledger_table(data: ReportData) -> str:
    counts = ("sampled_tokens", "prefill_tokens", "cached_tokens", "trained_tokens")
    phases: list[dict[str, Any]] = [{**p} for p in data["ledger"]]
    total = {key: sum(p[key] for p in phases) for key in (*counts, "flops", "seconds")}
    rows = [
        (
            _text(p["phase"]),
            *(f"{p[key]:,}" for key in counts),
            power(p["flops"]),
            f"{p['seconds']:,.1f}",
        )
        for p in [*phases, {"phase": "all", **total}]
    ]
    head = ("phase", "sampled", "prefilled", "from cache", "trained on", "FLOPs", "seconds")
    return _table(head, rows, "Tokens, FLOPs and seconds by phase", foot=True)


def _facts(data: ReportData) -> str:
    facts = [
        ("Seed", data["seed"]),
        ("Time", duration(data["seconds"])),
        ("Machine", data["machine"]),
        ("Commit", data["commit"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in data["versions"].items())),
        ("Date", data["date"]),
    ]
    return "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts)
