"""What `mull bench` prints: progress on stderr, then the table, its notes, and where mull's time goes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class Result:
    """What one system did; `rounds` are the workers' messages."""

    name: str
    setting: dict[str, Any]
    tried: list[tuple[dict[str, Any], float]]  # settings and their seconds in the warm-up
    versions: dict[str, str]
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def per_round(self, unit: str) -> list[float]:
        return [r["seconds"] if unit == "s/step" else r["tokens"] / r["seconds"] for r in self.rounds]

    def figure(self, unit: str) -> float:
        return median(self.per_round(unit))


BUSY = 0.15  # cores that others kept busy in a round, from which on it is said

NOTES = {
    "rollout": (
        "A token counts when it belongs to a completion, up to and including its end token: what static batches "
        "compute after a chain has ended does not count.",
        "Every system returns the log-probability of each sampled token.",
    ),
    "rl-step": (
        "A step samples, grades with the task's own check, and takes one optimiser step on every chain, without a KL. "
        "mull's dropping of groups with equal rewards is off here, because TRL trains on those as well: in `mull rl` "
        "they cost no training time.",
        "tokens/s are the step's sampled and trained completion tokens over the whole step's time.",
    ),
}


def progress(stage: str, result: Result) -> None:
    if sys.stderr.isatty():
        done = f"{result.figure('tokens/s'):,.0f} tokens/s so far" if result.rounds else describe(result.setting)
        print(f"{stage}: {result.name}: {done}", file=sys.stderr)


def show(
    name: str, work: dict[str, Any], results: Sequence[Result], absent: Sequence[str], shares: dict[str, Any] | None
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    chains = work["groups"] * work["group_size"]
    title = f"{name}: {chains} chains ({work['groups']} prompts x {work['group_size']}), at most {work['max_tokens']} "
    title += f"tokens each; medians of {work['rounds']} rounds, smallest to largest; {work['threads']} threads"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("system", min_width=24)
    for column in ("tokens/s", "seconds", "tokens\na chain", "mull is", "load,\nothers"):
        table.add_column(column, justify="right")
    mull = results[0]
    unit = "tokens/s" if name == "rollout" else "s/step"
    for r in results:
        a, b = mull.figure(unit), r.figure(unit)
        times = (b / a if unit == "s/step" else a / b) if r is not mull else None
        others = [x["others"] for x in r.rounds if x["others"] is not None]
        table.add_row(
            f"{r.name}\n  {describe(r.setting)}",
            spread(r.per_round("tokens/s"), ",.0f"),
            spread(r.per_round("s/step"), ".2f"),
            f"{median(x['tokens'] / x['chains'] for x in r.rounds):.1f}",
            "" if times is None else f"{times:.2f}x",
            f"{median(x['load_before'] for x in r.rounds):.1f}\n" + (f"{median(others):.2f}" if others else "unknown"),
        )
    console.print(table)
    print("mull is: how many times as fast. load: the machine's load average before a round.")
    print("others: cores that other processes kept busy during one.")
    for note in (*NOTES[name], *absent):
        print(note)
    for r in results:
        if len(r.tried) > 1:
            print(f"{r.name}, warm-ups: " + "; ".join(f"{describe(s)}: {v:,.0f} tokens/s" for s, v in r.tried))
    torches = {r.versions["torch"] for r in results}
    if len(torches) > 1:
        print(f"Mind that the systems ran on different versions of torch: {', '.join(sorted(torches))}.")
    lengths = [sum(x["tokens"] for x in r.rounds) / sum(x["chains"] for x in r.rounds) for r in results]
    if max(lengths) > 1.1 * min(lengths):
        print(
            "Mind that the systems' chains differ in length by more than a tenth: compare tokens/s, and find out why."
        )
    busy = max((x["others"] for r in results for x in r.rounds if x["others"] is not None), default=0.0)
    if busy > BUSY:
        print(f"Other processes kept up to {busy:.1f} cores busy: measure again on a quiet machine.")
    if shares:
        show_shares(console, shares)


def show_shares(console: Any, shares: dict[str, Any]) -> None:
    """`shares`: {phase: {part: share of the whole round}}."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title="where mull's time goes (a separate, slower run with one thread)", title_justify="left", box=SIMPLE_HEAD
    )
    for column in ("phase", "part"):
        table.add_column(column)
    table.add_column("share of all", justify="right")
    parts = [(phase, part, share) for phase, found in shares.items() for part, share in found.items()]
    for phase, part, share in parts:
        if share >= 0.005:
            table.add_row(phase, part, f"{100 * share:.1f}%")
    console.print(table)
    phase, part, share = max(parts, key=lambda p: p[2])
    print(f"What limits mull next: {part} in {phase}, {100 * share:.0f}% of the time.")


def describe(setting: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in setting.items() if k != "system") or "defaults"


def spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}}\n{min(values):{form}}-{max(values):{form}}"
