"""Runs a program's checks and tells how they went, as one line of JSON. Imported by programs that have no pytest."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

TELLS = "checks: "  # what the line begins with


def run(found: dict[str, Any]) -> None:
    """Of `found`, a module's globals, runs every function named check_…, in order. Of each the line has what went
    wrong; nothing where nothing did."""
    told: dict[str, str] = {}
    checks: list[tuple[str, Callable[[], None]]] = [(n, f) for n, f in found.items() if n.startswith("check_")]
    for name, check in checks:
        try:
            check()
            told[name] = ""
        except Exception:
            told[name] = traceback.format_exc()
        print(name, "failed" if told[name] else "passed", file=sys.stderr, flush=True)
    print(TELLS + json.dumps(told))
