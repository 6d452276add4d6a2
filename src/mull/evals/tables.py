"""Draws the documents' tables from their evidence files: `python -m mull.evals.tables README.md docs [--check]`.

A table stands between two lines, each alone on its line and outside code blocks:

    <!-- evidence:NAME -->
    <!-- /evidence -->

Whatever is between them is replaced. `grid:NAME` instead of `evidence:NAME` draws claims of the form
"group / row / column" as one table for each group. With `--check` nothing is written, and a table that differs from its
file is named; the exit code is then 1. A file that cannot be used (no such evidence, a marker without its end) exits
with 2.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from mull.errors import UserError
from mull.evals import evidence
from mull.files import write_whole

_OPEN = re.compile(r"\s*<!-- (evidence|grid):(\S+) -->\s*")
_CLOSE = re.compile(r"\s*<!-- /evidence -->\s*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def table(rows: Sequence[evidence.Row]) -> str:
    """A Markdown table of the rows, and below it each command with its commit and machine. Ends in a newline."""
    lines = ["| what | value | 95% interval | n | seeds |", "|---|--:|:-:|--:|---|"]
    for row in rows:
        interval = "-"
        if row["low"] is not None and row["high"] is not None:
            interval = f"{quantity(row['low'], row['unit'])} to {quantity(row['high'], row['unit'])}"
        seeds = ", ".join(map(str, row["seeds"])) or "-"
        value = quantity(row["value"], row["unit"])
        lines.append(f"| {_cell(row['claim'])} | {_cell(value)} | {_cell(interval)} | {row['n']:,} | {seeds} |")
    return "\n".join([*lines, "", *_origins(rows)]) + "\n"


def grid(rows: Sequence[evidence.Row]) -> str:
    """Claims "group / row / column" as a table for each group, in their order; cells are "value (low–high)".

    Columns that all begin with a number, as "16 chains" does, stand in the order of these numbers: a row may lack some.
    UserError for a claim of another form.
    """
    groups: dict[str, dict[str, dict[str, evidence.Row]]] = {}
    for row in rows:
        parts = row["claim"].split(" / ")
        if len(parts) != 3:
            raise UserError(f"the claim {row['claim']!r} is not of the form 'group / row / column': no grid")
        groups.setdefault(parts[0], {}).setdefault(parts[1], {})[parts[2]] = row
    lines = []
    for name, table_rows in groups.items():
        columns = _in_order(dict.fromkeys(column for cells in table_rows.values() for column in cells))
        n = max(row["n"] for cells in table_rows.values() for row in cells.values())
        lines += [f"| {_cell(name)} (n = {n:,}) | {' | '.join(map(_cell, columns))} |", "|---|" + "--:|" * len(columns)]
        for label, cells in table_rows.items():
            drawn = [_short(cells[column], column) if column in cells else "" for column in columns]
            lines.append(f"| {_cell(label)} | {' | '.join(drawn)} |")
        lines.append("")
    return "\n".join([*lines, *_origins(rows)]) + "\n"


def _in_order(columns: Iterable[str]) -> list[str]:
    found = {column: re.match(r"\d[\d,]*(\.\d+)?", column) for column in columns}
    numbers = {column: float(m.group().replace(",", "")) for column, m in found.items() if m}
    return sorted(found, key=lambda c: numbers[c]) if len(numbers) == len(found) else list(found)


def _short(row: evidence.Row, column: str) -> str:
    """ "61.3 (58–64)" for shares in per cent, "+3.1 (-0.4 to +6.6)" for points; else the quantity, without its unit if
    the column is named so."""
    value, low, high, unit = row["value"], row["low"], row["high"], row["unit"]
    if unit not in ("share", "points"):
        text = quantity(value, unit)
        return text.removesuffix(f" {unit}") if unit == column else text
    sign, digits, between = ("+", 1, " to ") if unit == "points" else ("", 0, "–")
    text = _percent(value, sign, 1)
    if low is None or high is None:
        return text
    return f"{text} ({_percent(low, sign, digits)}{between}{_percent(high, sign, digits)})"


def _percent(value: float, sign: str, digits: int) -> str:
    return f"{round(100 * value, digits) + 0.0:{sign}.{digits}f}"  # a rounded -0.0 becomes 0.0


def _origins(rows: Sequence[evidence.Row]) -> list[str]:
    origins = dict.fromkeys((r["command"], r["commit"], r["machine"]) for r in rows)
    lines = [f"{_code(command)} at {_cell(commit)} on {_cell(machine)}  " for command, commit, machine in origins]
    lines[-1] = lines[-1].rstrip()
    return lines


def quantity(value: float, unit: str) -> str:
    """A value with its unit.

    >>> quantity(0.4215, "share"), quantity(0.2, "points"), quantity(3.456, "x"), quantity(25311.7, "tokens/s")
    ('42.1%', '+20.0 points', '3.46x', '25,312 tokens/s')
    """
    if unit == "share":
        return f"{100 * value:.1f}%"
    if unit == "points":
        return f"{100 * value:+.1f} points"
    size = abs(value)
    if value == int(value) and size < (1e7 if unit.startswith("FLOPs") else 1e15):
        text = f"{int(value):,}"
    elif size >= 1e7 or 0 < size < 1e-3:
        text = f"{value:.2e}"
    else:
        text = f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.3g}"
    return text + (unit if unit in ("x", "%") else f" {unit}")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _code(command: str) -> str:
    command = " ".join(command.split())
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", command)), default=0))
    pad = " " if "`" in command else ""
    return f"{ticks}{pad}{command}{pad}{ticks}"


def redraw(text: str, where: str, root: str | Path = evidence.ROOT) -> tuple[str, list[str]]:
    """`text` with every table drawn anew, and the names of those that changed."""
    out: list[str] = []
    changed: list[str] = []
    draw, name, old, fence = table, "", [], ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        found = _FENCE.match(line)
        if not name and found:
            # a fence ends at a line of at least as many of the same marks and nothing else
            if not fence:
                fence = found[1]
            elif found[1].startswith(fence) and not found[2].strip():
                fence = ""
        opens = None if fence else _OPEN.fullmatch(line)
        closes = None if fence else _CLOSE.fullmatch(line)
        if opens:
            if name:
                raise UserError(f"{where}, line {number}: the table of {name!r} above has no <!-- /evidence -->")
            draw, name, old = {"evidence": table, "grid": grid}[opens[1]], opens[2], []
            out.append(line if line.endswith("\n") else line + "\n")
        elif closes:
            if not name:
                raise UserError(f"{where}, line {number}: <!-- /evidence --> without a table to end")
            new = "\n" + draw(evidence.read(name, root)) + "\n"
            if new != "".join(old):
                changed.append(name)
            out += [new, line]
            name = ""
        elif name:
            old.append(line)
        else:
            out.append(line)
    if name:
        raise UserError(f"{where}: the table of {name!r} has no <!-- /evidence -->")
    return "".join(out), changed


def documents(paths: Iterable[str | Path]) -> list[Path]:
    """The Markdown files named, and those below the folders named."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(path.rglob("*.md"))
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"there is no document {path}")
    return found


def update(paths: Iterable[str | Path], root: str | Path = evidence.ROOT, check: bool = False) -> list[str]:
    """Redraws every table in the documents; returns "FILE: NAME" for each that differed. `check` writes nothing.

    All documents are drawn before any is written, so that a broken one leaves the others alone.
    """
    drift: list[str] = []
    drawn: list[tuple[Path, str]] = []
    for path in documents(paths):
        with path.open(encoding="utf-8", newline="") as file:
            text, changed = redraw(file.read(), str(path), root)
        drift += [f"{path}: {name}" for name in changed]
        if changed:
            drawn.append((path, text))
    if not check:
        for path, text in drawn:
            write_whole(path, text.encode())
    return drift


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mull.evals.tables", description="draw tables from evidence files")
    parser.add_argument("paths", nargs="+", help="Markdown files, or folders of them")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a table has drifted")
    parser.add_argument("--root", default=str(evidence.ROOT), help="folder of the evidence files")
    options = parser.parse_args(arguments)
    try:
        drift = update(options.paths, options.root, options.check)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in drift:
        print(f"{line} differs from its evidence file; run make docs" if options.check else f"{line} redrawn")
    return 1 if drift and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
