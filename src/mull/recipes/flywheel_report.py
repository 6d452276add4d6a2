"""What a flywheel leaves behind: report.json, report.md and the export. The one place where test results are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mull.evals.metrics import Estimate, Marks, paired_difference, pass_at_1
from mull.files import plain, read_jsonl, write_whole
from mull.ledger import Ledger
from mull.recipes import flywheel_rule as rule
from mull.recipes.flywheel_data import read, summary, turn_file
from mull.recipes.flywheel_rule import Judged, Turn, points
from mull.store import Store, export
from mull.types import Cost

if TYPE_CHECKING:
    from mull.recipes.flywheel import FlywheelConfig


def spent(ledger: Ledger, turn: int) -> float:
    """FLOPs of sampling and training up to the end of a turn; measuring is not counted."""
    phases = [f"turn {n} {what}" for n in range(1, turn + 1) for what in ("sampling", "training")]
    return sum(ledger.phases[phase].flops for phase in phases if phase in ledger.phases)


def totals(ledger: Ledger, turn: int) -> dict[str, float]:
    costs = [cost for phase, cost in ledger.phases.items() if not phase.endswith("evaluation")]
    total = sum(costs, Cost())
    return {
        "flops": spent(ledger, turn),
        "total_sampled_tokens": total.sampled_tokens,
        "total_trained_tokens": total.trained_tokens,
    }


def exported(cfg: FlywheelConfig, store: Store, turn: int) -> None:
    """OUT/export: what the last turn that found anything kept of all turns, in the forms that other trainers read."""
    files = [turn_file(cfg.out, n, "lessons.json") for n in range(turn, 0, -1)]
    lessons = next((found for file in files if file.exists() and (found := read(file))["kept"]), None)
    if lessons is None:
        return
    rows = {(row.trace, row.leaf): row for row in store.chains()}
    kept = [rows[trace, leaf] for trace, leaf in lessons["kept"]]
    pairs = [(rows[a, i], rows[b, j]) for a, i, b, j in lessons["pairs"]]
    for form in cfg.export:
        folder = cfg.out / "export"
        export.write(folder / f"chains.{form}", export.chain_rows(store, kept), "chains")
        export.write(folder / f"chat.{form}", export.chat_rows(store, kept), "chat")
        export.write(folder / f"pairs.{form}", export.preference_rows(store, pairs), "preference")


def reported(cfg: FlywheelConfig, history: Sequence[Turn], ledger: Ledger, reason: tuple[str, str]) -> dict[str, Any]:
    """Everything that was decided, and only now what the test problems say."""
    test = [read(turn_file(cfg.out, turn.number, "test.json")) for turn in history]
    judged = {turn.number: turn for turn in rule.judged(history, cfg.threshold, cfg.evidence)}
    rows = []
    for n in range(len(history) + (reason[0] == "nothing to learn")):
        costs = {what: ledger.phases.get(f"turn {n} {what}", Cost()) for what in ("sampling", "training", "evaluation")}
        row: dict[str, Any] = {
            "turn": n,
            "tokens": {"sampled": costs["sampling"].sampled_tokens, "trained": costs["training"].trained_tokens},
            "flops": {what: cost.flops for what, cost in costs.items()},
            "spent_flops": spent(ledger, n),
            "seconds": {what: cost.seconds for what, cost in costs.items()},
        }
        if n < len(history):
            row["valid"] = figures(pass_at_1(history[n].valid))
            if test[n]:
                row["test"] = figures(pass_at_1(test[n]))
        if n in judged:
            row |= judged_row(judged[n])
        if n:
            asked, lessons = (read(turn_file(cfg.out, n, name)) for name in ("questions.json", "lessons.json"))
            row["asked"] = summary(asked, list(read_jsonl(turn_file(cfg.out, n, "asked.jsonl"))))
            row["curated"] = lessons["counts"]
            row["contaminated"] = lessons["contaminated"]
            row["learnt"] = read(turn_file(cfg.out, n, "learnt.json"))
            row["pass_rates"] = lessons["pass_rates"]
        rows.append(row)
    chosen = history[rule.best_of(history)].number
    return {
        "tasks": list(cfg.tasks),
        "levels": list(cfg.levels),
        "method": cfg.method,
        "strategy": cfg.strategy,
        "seed": cfg.seed,
        "final": final_row(chosen, [turn.valid for turn in history], test, reason, cfg.threshold),
        "turns": rows,
        "ledger": ledger.state(),
    }


def figures(e: Estimate) -> dict[str, Any]:
    return plain(e.as_dict())


def judged_row(turn: Judged) -> dict[str, Any]:
    rate = turn.per_doubling
    return {
        "gain": figures(turn.gain),
        "over_best": {"turn": turn.best, **figures(turn.over_best)},
        "doublings": turn.doublings,
        "per_doubling": None if rate is None else plain(dict(zip(("mean", "low", "high"), rate, strict=True))),
        "paid": turn.paid,
    }


def final_row(
    number: int, valid: Sequence[Marks], test: Sequence[Marks], reason: tuple[str, str], threshold: float
) -> dict[str, Any]:
    """The chosen model's own figures; `valid` and `test` have one entry per turn, the base first."""
    row: dict[str, Any] = {"turn": number, "stopped": reason[0], "reason": reason[1], "threshold": threshold}
    for name, marks in (("valid", valid), ("test", test)):
        if marks and marks[0]:
            row[name] = figures(pass_at_1(marks[number]))
            row[f"{name}_gain_over_base"] = figures(paired_difference(marks[0], marks[number]))
    return row


def write_report(out: Path, report: Mapping[str, Any]) -> None:
    """OUT/report.json and OUT/report.md."""
    write_whole(out / "report.json", (json.dumps(plain(report), indent=1) + "\n").encode())
    write_whole(out / "report.md", markdown(report).encode())


def markdown(report: Mapping[str, Any]) -> str:
    final = report["final"]
    lines = [
        f"# A flywheel on {', '.join(report['tasks'])}",
        "",
        f"Stopped because {final['reason']}.",
        f"The model is that of turn {final['turn']}" + (" (the base)." if final["turn"] == 0 else "."),
    ]
    if "test" in final:
        gain = final["test_gain_over_base"]
        lines.append(
            f"Its accuracy on {final['test']['n']} test problems, which decided nothing, is {_interval(final['test'])} "
            f"percent, {_interval(gain)} points above the base's."
        )
    lines += [
        "",
        "| turn | valid, % | gain, points | a doubling | test, % | asked new + again | right of sampled | learnt | "
        "sampled tokens | FLOPs so far |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["turns"]:
        rate = row.get("per_doubling")
        asked, learnt = row.get("asked"), row.get("learnt")
        cells = [
            str(row["turn"]) if row["turn"] else "base",
            _interval(row.get("valid")),
            _interval(row.get("gain")),
            "" if rate is None else points(_number(rate["mean"])),
            _interval(row.get("test")),
            "" if asked is None else f"{asked['new']} + {asked['again']}",
            "" if asked is None else f"{asked['right']} of {asked['chains']}",
            "" if learnt is None else str(learnt["lessons"]),
            f"{row['tokens']['sampled']}",
            f"{row['spent_flops']:.2e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Intervals are 95%, over problems; gains are paired, over the turn before, on the same problems.", ""]
    return "\n".join(lines)


def _interval(e: Mapping[str, Any] | None) -> str:
    if e is None:
        return ""
    return f"{points(_number(e['mean']))} ({points(e['low'])} to {points(e['high'])})"


def _number(x: float | None) -> float:
    return math.nan if x is None else x
