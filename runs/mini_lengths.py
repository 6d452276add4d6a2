"""The measurements, tables and picture of the lengths in runs/mini.sh.

python runs/mini_lengths.py measure RUN ARM SEED   RUN/countdown/lengths/ARM-SEED.json: 8 chains at every length
python runs/mini_lengths.py table RUN              docs/evidence/length*.json, docs/img/length.svg

TEST_PROBLEMS is the number of held-out problems, 256 unless it is set.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mull.chat import Chat
from mull.chat.effort import WORDS, Effort
from mull.engine.local import LocalEngine
from mull.evals import arms, evidence
from mull.evals.evaluate import evaluate, held_out, thought_tokens
from mull.evals.metrics import percentile_interval, share_interval
from mull.files import write_whole
from mull.ledger import Budget
from mull.models import hf
from mull.search.sample import sample, sample_forced
from mull.tasks.load import load_task

ARMS = {
    "start": "where all arms start",
    "plain": "RL, no length in its reward",
    "exact": "LCPO-exact",
    "max": "LCPO-max",
    "paper": "LCPO-exact in the paper's form",
    "words": "effort words",
    "taught-right": "hindsight, right chains",
    "taught": "hindsight, all chains",
    "paper-taught": "hindsight, then the paper's LCPO-exact",
    "exact-taught": "hindsight, then LCPO-exact",
    "max-taught": "hindsight, then LCPO-max",
    "said": "hindsight, effort words",
    "words-said": "hindsight, then the paper's, effort words",
    "kimi": "Kimi's length reward",
    "cosine": "cosine reward",
    "overlong": "overlong buffer",
    "shortest": "long-to-short, imitation",
    "pairs": "long-to-short, DPO",
    "pairs-nll": "long-to-short, DPO and imitation",
}
TARGETS = (24, 48, 96, 144, 192)
ASKED: dict[str, Sequence[Effort]] = {
    **dict.fromkeys(
        ("exact", "max", "paper", "taught-right", "taught", "paper-taught", "exact-taught", "max-taught"), TARGETS
    ),
    **dict.fromkeys(("words", "said", "words-said"), WORDS),
}
FORCED = (4, 12, 24, 48, 96, 144, 192)  # tokens of thought, after which it is closed; the answer comes behind
CUT = (24, 36, 48, 72, 96, 144, 192)  # tokens in all, after which the chain is over
THINK_TOKENS, ANSWER_TOKENS, CHAINS = 256, 32, 8
CUT_OFF, CLOSED = "chain cut off", "thought closed by force"  # what needs no training
WHAT = arms.Experiment("runs/mini.sh", Path(), ARMS, {}, [], int(os.environ.get("TEST_PROBLEMS", "256")))


def measure(run: Path, arm: str, seed: str) -> None:
    """By what was asked for ("" for nothing, "forced 24" for closed thoughts): every chain's mark and tokens."""
    path = run / "countdown" / "lengths" / f"{arm}-{seed}.json"
    folder = run / "countdown" / ("teacher" if arm == "start" else f"{arm}-{seed}") / "model"
    if path.exists():
        return
    started, found = time.time(), {}
    for effort in ASKED.get(arm, [None]):
        found[str(effort or "")] = chains(folder, THINK_TOKENS, sample, effort)
    for budget in FORCED if arm == "plain" else ():
        found[f"forced {budget}"] = chains(folder, budget, sample_forced, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(found).encode())
    print(f"{arm}-{seed}: measured in {time.time() - started:.0f} s", flush=True)


def chains(folder: Path, think: int, strategy: Callable[..., Any], effort: Effort | None) -> list[dict[str, Any]]:
    chat = Chat.load(folder)
    held = held_out([load_task("countdown")], (1, 2), WHAT.problems, "test", WHAT.held_out)
    budget = Budget(think_tokens=think, answer_tokens=ANSWER_TOKENS, samples=CHAINS)
    engine = LocalEngine(hf.load(folder), chat)
    done = asyncio.run(evaluate(held, engine, chat, budget, strategy, seed=1000, effort=effort))
    return [
        {
            "id": trace.question.id,
            "right": [v.correct is True for v in trace.verdicts],  # countdown can judge every answer
            "tokens": [len(thought_tokens(trace, leaf)) for leaf in trace.leaves],
        }
        for trace in done.traces
    ]


# ------------------------------------------------------------------------------------------------ the tables

Point = tuple[str, str, np.ndarray, np.ndarray]  # method, what was asked of it, right [S, P, C], tokens [S, P, C]


def points(run: Path) -> Iterator[Point]:
    for arm, label in ARMS.items():
        seeds = [json.loads(p.read_text()) for p in sorted((run / "countdown" / "lengths").glob(f"{arm}-[0-9]*.json"))]
        for asked in seeds[0] if seeds else ():
            right_SPC = np.array([[p["right"] for p in seed[asked]] for seed in seeds], float)
            tokens_SPC = np.array([[p["tokens"] for p in seed[asked]] for seed in seeds], float)
            if asked.startswith("forced "):
                yield CLOSED, f"at {asked.split()[1]} tokens", right_SPC, tokens_SPC
            else:
                words = f"effort: {asked}" if asked in WORDS else f"think {asked}" if asked else ""
                yield label, words, right_SPC, tokens_SPC
            if arm == "plain" and not asked:  # the same chains, ended there: what has no answer by then is wrong
                for cut in CUT:
                    ended = right_SPC * (tokens_SPC <= cut)
                    yield CUT_OFF, f"at {cut} tokens", ended, np.minimum(tokens_SPC, cut)


def grid(run: Path) -> list[dict[str, Any]]:
    rows = []
    for name, asked, right_SPC, tokens_SPC in points(run):
        for column, values_SPC, unit in (("right", right_SPC, "share"), ("tokens used", tokens_SPC, "tokens")):
            [value] = arms.interval(values_SPC.mean(2, keepdims=True))
            if unit == "share":
                value = share_interval(*value, values_SPC.shape[1])
            claim = f"countdown, levels 1 and 2 / {name}{', ' * bool(asked)}{asked} / {column}"
            rows.append(arms.row(WHAT, claim, value, *values_SPC.shape[:2], unit=unit))
    return rows


def at_equal_tokens(run: Path) -> list[dict[str, Any]]:
    """Every way minus those that need no training, paired by problem, where they use as many tokens: between two
    lengths at which these were measured, and the model's own, their accuracy on each problem is interpolated. No row
    for what uses fewer tokens than the shortest of them, or more than the model that nobody stops."""
    found, rows = list(points(run)), []
    curves: dict[str, list[tuple[float, np.ndarray]]] = {CUT_OFF: [], CLOSED: []}
    for name, _, right_SPC, tokens_SPC in found:
        for curve in [name] if name in curves else list(curves) if name == ARMS["plain"] else []:
            curves[curve].append((float(tokens_SPC.mean()), right_SPC.mean(2)))
    for name, asked, right_SPC, tokens_SPC in found:
        for curve, measured in curves.items() if name not in (*curves, ARMS["plain"]) else ():
            if (there_SP := interpolated(measured, float(tokens_SPC.mean()))) is not None:
                delta_SP = right_SPC.mean(2) - there_SP
                [value] = arms.interval(delta_SP[:, :, None])
                claim = f"countdown, at equal tokens / {name}{', ' * bool(asked)}{asked} / minus {curve}"
                rows.append(arms.row(WHAT, claim, value, *delta_SP.shape, unit="points"))
    return rows


def interpolated(curve: list[tuple[float, np.ndarray]], at: float) -> np.ndarray | None:
    """What lies on the line between the two neighbours of `at`; None outside of the curve."""
    curve = sorted(curve, key=lambda point: point[0])
    for (low, one), (high, other) in pairwise(curve):
        if low <= at <= high:
            share = (at - low) / (high - low) if high > low else 0.0
            return (1 - share) * one + share * other
    return None


def obeyed(run: Path) -> list[dict[str, Any]]:
    """How far a chain is from what it was asked for, and whether who is asked for more uses more."""
    rows = []
    for arm in ASKED:
        found = [(asked, tokens_SPC) for name, asked, _, tokens_SPC in points(run) if name == ARMS[arm]]
        for asked, tokens_SPC in found if ASKED[arm] == TARGETS else ():
            wanted, most = int(asked.split()[1]), arm.startswith("max")
            off_SPC = np.maximum(tokens_SPC - wanted, 0) if most else np.abs(tokens_SPC - wanted)
            [value] = arms.interval(off_SPC.mean(2, keepdims=True) / wanted)
            where = "above" if most else "away from"
            claim = f"{ARMS[arm]}, {asked}: tokens {where} the target, as a share of it"
            rows.append(arms.row(WHAT, claim, value, *tokens_SPC.shape[:2]))
        if found:
            used_ASP = np.stack([tokens_SPC.mean(2) for _, tokens_SPC in found])
            claim = f"{ARMS[arm]}: Spearman's correlation of tokens asked for and used"
            rows.append(arms.row(WHAT, claim, rank_correlation(used_ASP), *used_ASP.shape[1:], unit="rho"))
    return rows


def rank_correlation(used_ASP: np.ndarray, resamples: int = 500) -> arms.Interval:
    """Spearman's correlation between what is asked for (A, ascending) and a problem's mean tokens, over all problems;
    the interval by bootstrap over seeds and problems. 0 where all chains are equally long."""
    A, S, P = used_ASP.shape
    rng = np.random.default_rng(0)

    def of(used_ASP: np.ndarray) -> float:
        asked_N = np.repeat(np.arange(A), used_ASP[0].size)
        return float(np.corrcoef(ranks(asked_N), ranks(used_ASP.ravel()))[0, 1]) if np.ptp(used_ASP) else 0.0

    draws = [of(used_ASP[:, rng.integers(0, S, S)][:, :, rng.integers(0, P, P)]) for _ in range(resamples)]
    value = of(used_ASP)
    low, high = percentile_interval(np.array(draws))
    return value, min(low, value), max(high, value)


def ranks(values_N: np.ndarray) -> np.ndarray:
    """From 1; equal values share the mean of their ranks.

    >>> ranks(np.array([5, 9, 5, 1])).tolist()
    [2.5, 4.0, 2.5, 1.0]
    """
    _, which_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which_N]


# ------------------------------------------------------------------------------------------------ the picture

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 840, 430, 50, 270, 14, 40  # the legend is in the right margin


def picture(run: Path) -> str:
    """Accuracy against mean tokens as an SVG: a line for what can be asked for several lengths, a spot for the rest."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, _, right_SPC, tokens_SPC in points(run):
        lines.setdefault(name, []).append((float(tokens_SPC.mean()), float(right_SPC.mean())))
    most = 1.05 * max(x for line in lines.values() for x, _ in line)
    best = 1.1 * max(0.1, max(y for line in lines.values() for _, y in line))

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / most * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / best * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"',
        f' font-size="11"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}">right answers against mean tokens of a chain, countdown</text>',
    ]
    for i in range(5):
        x, y = at(most * i / 4, best * i / 4)
        parts.append(f'<path d="M{LEFT} {y:.0f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{most * i / 4:.0f}</text>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.0f}" text-anchor="end">{100 * best * i / 4:.0f}%</text>')
    for i, (name, line) in enumerate(lines.items()):
        colour, spots = COLOURS[i % len(COLOURS)], [at(*point) for point in sorted(line)]
        dash = ' stroke-dasharray="5 3"' if i >= len(COLOURS) else ""
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
        mark = (colour, "white", "#bbb")[i // len(COLOURS) % 3]
        for x, y in (*spots, (WIDTH - RIGHT + 16, 20 + 17 * i)):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{mark}" stroke="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 25}" y="{24 + 17 * i}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main(what: str, run: Path, *more: str) -> None:
    if what == "measure":
        measure(run, *more)
        return
    tables = {"length": grid(run), "length-equal": at_equal_tokens(run), "length-obeyed": obeyed(run)}
    for name, rows in tables.items():
        if rows:  # no arm that can be asked: nothing to obey
            evidence.write(name, rows)
    image = Path("docs/img/length.svg")
    image.parent.mkdir(parents=True, exist_ok=True)
    write_whole(image, picture(run).encode())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
