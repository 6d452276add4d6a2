"""Evidence files: every figure that a document shows comes from `docs/evidence/NAME.json`.

A file is a list of rows `{claim, value, low, high, n, seeds, unit, command, commit, machine}`, written by the script
that measured them. `mull.evals.tables` draws the documents' tables from these files and finds drift.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from mull.errors import UserError, nearest
from mull.files import write_whole
from mull.machine import machine

ROOT = Path("docs/evidence")
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class Row(TypedDict):
    """One measured figure."""

    claim: str  # what was measured, in words
    value: float
    low: float | None  # 95% interval; both None where a single measurement has none
    high: float | None
    n: int  # problems, runs or repetitions behind the value
    seeds: list[int]
    unit: str  # "share" (printed as a percentage), "points" (a difference of shares, likewise), "x", "tokens/s" ...
    command: str  # reproduces it
    commit: str
    machine: str  # CPU model and cores, and the GPU if there is one; never a host name


_FIELDS = tuple(Row.__annotations__)


def write(name: str, rows: Sequence[Mapping[str, Any]], root: str | os.PathLike[str] = ROOT) -> Path:
    """Writes `root/NAME.json` in one piece. `commit` and `machine` are filled in where a row lacks them.

    Raises UserError for a row that would not be evidence: a missing or unknown field, a value that is no number or
    lies outside its interval, a host name in `machine`. Nothing is written then.
    """
    path = path_of(name, root)
    if not rows:
        raise UserError(f"evidence {name} has no rows: nothing was measured")
    here: dict[str, Any] = {}
    if any("commit" not in row for row in rows):
        here["commit"] = commit()
    if any("machine" not in row for row in rows):
        here["machine"] = machine()
    checked = [validate({**here, **row}, f"evidence {name}, row {i + 1}") for i, row in enumerate(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(checked, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return path


def read(name: str, root: str | os.PathLike[str] = ROOT) -> list[Row]:
    """The rows of `root/NAME.json`, validated as `write` does."""
    path = path_of(name, root)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = [p.stem for p in Path(root).glob("*.json")]
        raise UserError(f"there is no evidence file {path}{nearest(name, known)}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} must hold a list of rows")
    return [validate(row, f"{path}, row {i + 1}") for i, row in enumerate(rows)]


def path_of(name: str, root: str | os.PathLike[str] = ROOT) -> Path:
    if not _NAME.fullmatch(name):
        raise UserError(f"evidence name {name!r} must be lower-case words joined by hyphens")
    return Path(root) / f"{name}.json"


def validate(row: Mapping[str, Any], where: str) -> Row:
    """`row` with its fields in order; UserError where it is not a `Row`."""
    unknown = [key for key in row if key not in _FIELDS]
    if unknown:
        raise UserError(f"{where} has the unknown field {unknown[0]!r}{nearest(unknown[0], _FIELDS)}")
    missing = [key for key in _FIELDS if key not in row]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}")
    for key in ("claim", "unit", "command", "commit", "machine"):
        if not isinstance(row[key], str) or not row[key].strip():
            raise UserError(f"{where}: {key} must be text that is not empty, not {row[key]!r}")
    if not _is_number(row["value"]):
        raise UserError(f"{where}: value must be a finite number, not {row['value']!r}")
    low, high = row["low"], row["high"]
    if (low is None) != (high is None) or not all(x is None or _is_number(x) for x in (low, high)):
        raise UserError(f"{where}: low and high must be two finite numbers, or both null, not {low!r} and {high!r}")
    if low is not None and not low <= row["value"] <= high:
        raise UserError(f"{where}: the value {row['value']} lies outside its interval {low} to {high}")
    if not _is_integer(row["n"]) or row["n"] < 1:
        raise UserError(f"{where}: n must be a positive whole number, not {row['n']!r}")
    if not isinstance(row["seeds"], list) or not all(map(_is_integer, row["seeds"])):
        raise UserError(f"{where}: seeds must be a list of whole numbers, not {row['seeds']!r}")
    host = socket.gethostname().split(".")[0]
    if len(host) > 3 and host in re.split(r"[\s,;:/()]+", row["machine"]):
        raise UserError(f"{where}: machine names this host ({host}); describe the hardware instead")
    return Row(**{key: row[key] for key in _FIELDS})


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _is_integer(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def commit(root: str | os.PathLike[str] = ".") -> str:
    """The checkout's commit, with "+changes" where tracked code differs from it; "unknown" outside a checkout.

    Unlike `mull.machine.commit` it leaves documents aside: a script that has just written its evidence must not make
    the next script's rows look like the work of changed code.
    """
    head = _output("git", "-C", os.fspath(root), "rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    changed = _output(
        "git", "-C", os.fspath(root), "status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/docs", ":!/*.md"
    )
    return head + ("+changes" if changed else "")


def _output(*command: str) -> str:
    """A command's output; "" where the program is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (subprocess.SubprocessError, OSError):
        return ""
