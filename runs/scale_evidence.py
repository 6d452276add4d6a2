"""Reads the run of runs/scale.sh; writes docs/evidence/scale-predictions.json, scale-law.json and scale-error.json.

python runs/scale_evidence.py RUN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mull.evals import evidence

COMMAND = "runs/scale.sh"
LAWS = {"sigmoid": "sigmoid", "log": "straight line in log compute", "error": "power law of the error"}


def main() -> None:
    data = json.loads((Path(sys.argv[1]) / "scale.json").read_text(encoding="utf-8"))
    evidence.write("scale-predictions", [row(data, **r) for r in predictions(data)])
    evidence.write("scale-law", [row(data, **r) for r in parameters(data)])
    evidence.write("scale-error", [row(data, **r) for r in errors(data)])


def row(data: dict[str, Any], claim: str, value: float, low: float | None, high: float | None, n: int, unit: str):
    about = {"seeds": data["seeds"], "command": COMMAND, "machine": data["machine"]}
    if data["commit"]:  # a run of code that is in no checkout has none: then it is the table's
        about["commit"] = data["commit"]
    return {"claim": claim, "value": value, "low": low, "high": high, "n": n, "unit": unit, **about}


def predictions(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The sigmoid's predictions, each followed by what was found, as two rows."""
    problems = {fit["task"]: fit["n"] for fit in data["fits"]}
    rows = []
    for p in data["predictions"]:
        if p["law"] != "sigmoid":
            continue
        where = f"{name(p['task'])} / {p['compute'] / p['up_to']:g} times the fitted compute"
        interval = {"low": p["low"], "high": p["high"]}
        found, n = p["observed"], problems[p["task"]]
        rows.append({"claim": f"{where} / predicted", "value": p["value"], **interval, "n": n, "unit": "share"})
        if found is not None:
            told = "found, inside" if p["inside"] else "found, outside"
            interval = {"low": found["low"], "high": found["high"]}
            rows.append(
                {"claim": f"{where} / {told}", "value": found["mean"], **interval, "n": found["n"], "unit": "share"}
            )
    return rows


def parameters(data: dict[str, Any]) -> list[dict[str, Any]]:
    """R0, A, B and C_mid of the sigmoid, fitted to the first half and to everything. The row of an asymptote says
    whether the points know it."""
    units = {"R₀": "share", "A": "share", "B": "exponent", "C_mid": "FLOPs"}
    rows = []
    for fit in data["fits"]:
        if fit["law"] != "sigmoid":
            continue
        for p in fit["params"]:
            note = f", {fit['verdict']}" if p["name"] == "A" else ""
            claim = f"{name(fit['task'])} / fitted to {fit['to']} / {p['name']}{note}"
            interval = {"low": p["low"], "high": p["high"]}
            rows.append({"claim": claim, "value": p["value"], **interval, "n": fit["n"], "unit": units[p["name"]]})
    return rows


def errors(data: dict[str, Any]) -> list[dict[str, Any]]:
    """How far each law lies from the held-out half: root mean square, and found minus predicted."""
    rows = []
    for e in data["errors"]:
        where = f"{name(e['task'])} / {LAWS[e['law']]}"
        rms = {"value": e["rms"], "low": None, "high": None, "n": e["evaluations"], "unit": "share"}  # no sign
        rows.append({"claim": f"{where} / root mean square", **rms})
        off = {"value": e["off"]["mean"], "low": e["off"]["low"], "high": e["off"]["high"], "n": e["off"]["n"]}
        rows.append({"claim": f"{where} / found minus predicted", **off, "unit": "points"})
    return rows


def name(task: str) -> str:
    return "all problems" if task == "mean" else task


if __name__ == "__main__":
    main()
