"""The compare page: every strategy at every budget on one self-contained HTML file, a pure function of its data.

No network; what a model wrote is guarded as `page` says. The tables are in the page as it is, its scripts draw the
charts and the trees (`assets/compare.js`, `tree.js`, `panels.js`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from mull.errors import UserError
from mull.evals.compare_data import CompareData, FitRow, PredictionRow
from mull.evals.page import asset, fill, finite, table, text, write_page
from mull.evals.report_data import Interval, duration, listing, percent, power

UNITS = {"flops": "FLOPs", "tokens": "tokens", "samples": "samples"}
LAWS = {
    "log": "log-linear",
    "error": "power law of the error",
    "accuracy": "power law",
    "coverage": "coverage",
    "sigmoid": "sigmoid",
}


def write_compare(data: CompareData, path: str | os.PathLike[str]) -> Path:
    """Renders `data` into the file `path`, in one piece."""
    return write_page(render_compare(data), path)


def render_compare(data: CompareData) -> str:
    """The whole page. UserError where a top-level field of `CompareData` is missing."""
    missing = [key for key in CompareData.__annotations__ if key not in data]
    if missing:
        raise UserError(f"the comparison's data lack {', '.join(missing)}; run mull compare again")
    data = cast(CompareData, finite(data))
    headline, *rest = data["summary"] or [f"{data['model']} on {listing(data['tasks'])}"]
    points = [(c["strategy"], c["task"], p) for c in data["curves"] for p in c["points"]]
    slots = {
        "css": asset("report.css") + asset("compare.css"),
        "title": text(data["title"]),
        "headline": text(headline),
        "lead": f'<p class="lead">{text(" ".join(rest))}</p>' if rest else "",
        "about": facts(_about(data)),
        "command": text(data["command"]),
        "latency_table": _latency(data),
        "wrong_table": _wrong(data),
        "prediction_table": prediction_table(data["predictions"]),
        "point_count": f"{len(points):,}",
        "points_table": _points(points),
        "fit_count": f"{len(data['fits']):,}",
        "fits_table": _fits(data["fits"]),
        "exit_summary": _exit(data),
        "facts": facts(_run(data)),
    }
    return fill("compare.html", ["page.js", "compare.js", "tree.js", "panels.js"], data, slots)


# ------------------------------------------------------------------------------------------------- facts


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    return "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs)


def _about(data: CompareData) -> list[tuple[str, object]]:
    return [
        ("Model", data["model"]),
        ("Tasks", listing(data["tasks"])),
        ("Problems", f"{data['problems']:,} of each task, held out"),
        ("Seeds", ", ".join(map(str, data["seeds"]))),
        ("Time", duration(data["seconds"])),
        ("Date", data["date"]),
    ]


def _run(data: CompareData) -> list[tuple[str, object]]:
    return [
        ("Machine", data["machine"]),
        ("Weights", f"{data['dtype']} on {data['device']}" if data["device"] else "at the endpoint"),
        ("Commit", data["commit"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in data["versions"].items())),
    ]


# ------------------------------------------------------------------------------------------------- cells


def _task(name: str) -> str:
    return "mean of tasks" if name == "mean" else name


def _amount(value: float | None) -> str:
    """A number of no known size, short."""
    if value is None:
        return "–"
    shown = f"{value:.3g}" if abs(value) < 1e4 else power(value)
    return shown.replace("-", "−")


def _seconds(value: float | None) -> str:
    return (
        "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
    )


def _compute(value: float | None) -> str:
    return "–" if value is None else power(value)


def share_cell(i: Interval | None) -> str:
    """An accuracy over its interval."""
    if i is None or i["mean"] is None:
        return "–"
    return f"{percent(i['mean'])}<small>{percent(i['low']).removesuffix('%')} to {percent(i['high'])}</small>"


def _note(sentence: str) -> str:
    return f'<p class="note">{text(sentence)}</p>'


# ------------------------------------------------------------------------------------------------ tables


def _latency(data: CompareData) -> str:
    if not data["latency"]:
        return _note("No times were taken.")
    rows: list[Sequence[str]] = []
    for group in data["latency"]:
        rows.append((f"{text(_task(group['task']))}, {text(group['at'])}",))
        for row in sorted(group["rows"], key=lambda r: (r["seconds"]["mean"] is None, r["seconds"]["mean"])):
            s = row["seconds"]
            seconds = _seconds(s["mean"])
            if s["mean"] is not None:
                seconds += f"<small>{_seconds(s['low'])} to {_seconds(s['high'])}</small>"
            cells = (seconds, _seconds(row["p95"]), _compute(row["flops"]), _compute(row["tokens"]))
            rows.append((text(row["strategy"]), text(row["budget"]), *cells, share_cell(row["accuracy"])))
    head = ("strategy", "budget", "seconds per question", "95th percentile", "FLOPs", "tokens", "accuracy")
    return table(head, rows, "Seconds per question at comparable compute")


def _wrong(data: CompareData) -> str:
    rows = data["wrong_reasoning"]["rows"]
    if not rows:
        return _note("No task here has a checker of single lines.")
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    shares = {(r["selector"], r["task"]): r["share"] for r in rows}
    body = []
    for selector in dict.fromkeys(r["selector"] for r in rows):
        found = [shares.get((selector, task)) for task in tasks]
        cells = [share_cell(i).replace("</small>", f", n={i['n']:,}</small>") if i else "–" for i in found]
        body.append((text(selector), *cells))
    return table(
        ("chosen by", *(text(_task(t)) for t in tasks)), body, "Right answers whose thought holds a false line"
    )


def prediction_table(rows: Sequence[PredictionRow]) -> str:
    if not rows:
        return _note("No prediction was published for this run.")
    body = []
    for p in rows:
        unit = UNITS.get(p["unit"], p["unit"])
        predicted = share_cell(Interval(mean=p["value"], low=p["low"], high=p["high"], n=0))
        told = {True: '<span class="right">inside</span>', False: '<span class="wrong">outside</span>', None: "–"}
        body.append(
            (
                f"{text(p['strategy'])}<small>{text(_task(p['task']))}, {text(LAWS.get(p['law'], p['law']))}</small>",
                f"{_compute(p['up_to'])}<small>{text(unit)}</small>",
                f"{_compute(p['compute'])}<small>{text(unit)}</small>",
                predicted,
                f"{text(p['made'][:16].replace('T', ' '))}<small>{text(p['commit'])}</small>",
                share_cell(p["observed"]) if p["observed"] else "not yet run",
                told[p["inside"]],
            )
        )
    known = [p["inside"] for p in rows if p["inside"] is not None]
    score = f"{sum(known)} of {len(known)} observations fell inside the predicted 95% interval." if known else ""
    head = ("strategy", "fitted up to", "predicted at", "prediction", "published", "observed", "")
    return table(head, body, "Predictions and what was observed") + (_note(score) if score else "")


def _fits(rows: Sequence[FitRow]) -> str:
    if not rows:
        return _note("Nothing was fitted.")
    body = []
    for fit in rows:
        unit = UNITS.get(fit["unit"], fit["unit"])
        about = f"{text(fit['strategy'])}<small>{text(_task(fit['task']))}, {text(unit)}</small>"
        cells = [
            f"{text(p['name'])} = {_amount(p['value'])}<small>{_amount(p['low'])} to {_amount(p['high'])}</small>"
            for p in fit["params"]
        ]
        cells += [""] * (2 - len(cells))
        law = f"{text(LAWS.get(fit['law'], fit['law']))}<small>{text(fit['formula'])}</small>"
        body.append((about, law, *cells, f"{fit['n']:,}"))
    return table(("strategy", "law", "", "", "problems"), body, "Fitted laws with 95% intervals")


def _points(points: Sequence[tuple[str, str, Any]]) -> str:
    """A table that `compare.js` makes sortable, by the `data-v` of its cells."""
    heads = (
        "strategy",
        "task",
        "budget",
        "accuracy",
        "95% interval",
        "FLOPs",
        "tokens",
        "seconds",
        "n",
        "seeds",
        "exhausted",
    )
    caption = "Every strategy at every budget"
    out = []
    for strategy, task, p in points:
        cells = [
            (_task(task), _task(task), ""),
            (_leading_number(p["budget"]), p["budget"], ""),
            (p["accuracy"], percent(p["accuracy"]), "num"),
            (p["low"], f"{percent(p['low']).removesuffix('%')} to {percent(p['high'])}", "num"),
            (p["flops"], _compute(p["flops"]), "num"),
            (p["tokens"], _compute(p["tokens"]), "num"),
            (p["seconds"], _seconds(p["seconds"]), "num"),
            (p["n"], f"{p['n']:,}", "num"),
            (p["seeds"], p["seeds"], "num"),
            (p["exhausted"], p["exhausted"], "num"),
        ]
        first = f'<th scope="row" data-v="{text(strategy)}">{text(strategy)}</th>'
        rest = "".join(
            f'<td class="{kind}" data-v="{text("" if value is None else value)}">{text(shown)}</td>'
            for value, shown, kind in cells
        )
        out.append(f"<tr>{first}{rest}</tr>")
    columns = "".join(f'<th scope="col"{" class=num" if i > 2 else ""}>{text(h)}</th>' for i, h in enumerate(heads))
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{caption}"><table id="points">'
        f'<caption class="sr-only">{caption}</caption><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(out)}</tbody></table></div>"
    )


def _leading_number(budget: str) -> str:
    """ "64 samples" sorts by 64, a budget without a number by its text."""
    word = budget.split(" ")[0].replace(",", "")
    return word if word.replace(".", "", 1).isdecimal() else budget


def _exit(data: CompareData) -> str:
    rows = [r for r in data["exit"]["rows"] if r["exhausted"] or r["lost"]]
    questions = sum(r["questions"] for r in data["exit"]["rows"])
    if not rows and not data["exit"]["lost"]:
        return _note(f"Nothing: all {questions:,} questions were answered within their budgets.")
    body = [
        (
            text(r["strategy"]),
            f"{r['questions']:,}",
            *(f"{n:,}<small>{percent(n / max(1, r['questions']), 2)}</small>" for n in (r["exhausted"], r["lost"])),
        )
        for r in rows
    ]
    head = ("strategy", "questions", "budget ran out", "something lost")
    rest = len(data["exit"]["rows"]) - len(rows)
    note = (
        _note(f"The other {rest} strategies lost nothing." if rest > 1 else "The other strategy lost nothing.")
        if rest
        else ""
    )
    items = "".join(
        f"<li><b>{r['count']:,}</b><span>{text(r['sentence'])}</span></li>"
        for r in sorted(data["exit"]["lost"], key=lambda r: -r["count"])
    )
    sentences = f'<ul class="lost-list">{items}</ul>' if items else ""
    return (table(head, body, "Questions that ran out of budget or lost something") if body else "") + sentences + note
