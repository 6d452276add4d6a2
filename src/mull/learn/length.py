"""Length control: rewards that know how long a chain was, targets to train towards, and long chains made short.

| form         | of a right chain of n tokens                | of a wrong one, in the paper | after               |
|--------------|---------------------------------------------|------------------------------|---------------------|
| `lcpo_exact` | 1 - alpha abs(n - wanted)                   | -alpha abs(n - wanted)       | L1, 2503.04697      |
| `lcpo_max`   | clip(alpha (wanted - n) + delta, 0, 1)      | 0                            | L1, 2503.04697      |
| `kimi`       | 1 + weight (1/2 - (n - min) / (max - min))  | weight min(0, the same)      | 2501.12599          |
| `cosine`     | half a cosine from r_0 at 0 to r_L at limit | the same between two others  | 2502.03373          |

Wrong chains. In the paper's form of all but `lcpo_max` a wrong chain's reward depends on its length. In a group of
wrong chains that is the only difference, and centring (worse: division by the standard deviation) makes a full-size
advantage of it: the model is paid for being wrong at the wanted length. So here a wrong chain has reward 0 in every
form, and a right one never less (with a `weight` of up to 2); `paper=True` gives the papers' forms.

Traps of L1's code, which is not its paper: the script for `max` sets no reward at all, so that correctness alone is
trained unless the flags are given by hand; its linear branch is (clip(alpha (wanted - n), -1, 1) + 1) / 2, which is the
paper's form with half the alpha; and `sigmoid_exact` *rises* with the error. `alpha` is of chains of thousands of
tokens: a reward falls by 1 over 1 / alpha tokens, so with 0.0003 nobody whose chains have 200 would see a difference.
Give it about 1 / (the longest that is allowed).

In a training loop these take the place of the graders' rewards of one group, one line behind them:
`rewards = shaped(rewards, lengths, form, wanted=...)`. The wish must also stand in the prompt (`mull.chat.effort`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mull.chat.effort import WORDS, Effort, tokens_of
from mull.learn.advantages import Rewards
from mull.learn.pairs import Pair, Path, Tokens, paths_of
from mull.types import Trace

Form = Literal["lcpo_exact", "lcpo_max", "kimi", "cosine"]
Ends = tuple[float, float]  # rewards at length 0 and at the limit

PAPER_RIGHT, PAPER_WRONG, PAPER_EXCEED = (2.0, 1.0), (-10.0, 0.0), -10.0  # of the cosine form


# ------------------------------------------------------------------------------------------------ rewards


def lcpo_exact(correct: bool, length: int, wanted: int, alpha: float = 3e-4, paper: bool = False) -> float:
    """Right, less a penalty for every token away from the wanted length. Without `paper`: at least 0, and 0 if wrong.

    >>> [round(lcpo_exact(True, n, 100, alpha=0.01), 6) for n in (100, 60, 250)]
    [1.0, 0.6, 0.0]
    >>> lcpo_exact(False, 60, 100, alpha=0.01), lcpo_exact(False, 60, 100, alpha=0.01, paper=True)
    (0.0, -0.4)
    """
    reward = float(correct) - alpha * abs(length - wanted)
    return reward if paper else max(0.0, reward) if correct else 0.0


def lcpo_max(correct: bool, length: int, wanted: int, alpha: float = 3e-4, delta: float = 0.5) -> float:
    """Right within a budget: `delta` at exactly the wanted length, more below it, less beyond.

    >>> [round(lcpo_max(True, n, 100, alpha=0.01), 6) for n in (100, 80, 20, 140, 200)]
    [0.5, 0.7, 1.0, 0.1, 0.0]
    """
    return min(max(alpha * (wanted - length) + delta, 0.0), 1.0) if correct else 0.0


def kimi(rewards: Rewards, lengths: Sequence[int], weight: float = 1.0, paper: bool = False) -> list[float | None]:
    """The group's rewards, and for each right chain weight x (1/2 at the group's shortest to -1/2 at its longest).

    Shortest and longest are over the scorable chains, right or wrong; nothing is added where all are equally long. With
    `paper` the long half of the wrong chains loses as much as right ones would.

    >>> kimi([1.0, 1.0, 0.0, 0.0], [10, 20, 30, 50])
    [1.5, 1.25, 0.0, 0.0]
    >>> kimi([1.0, 1.0, 0.0, 0.0], [10, 20, 30, 50], paper=True)
    [1.5, 1.25, 0.0, -0.5]
    """
    known = [n for r, n in zip(rewards, lengths, strict=True) if r is not None]
    low, high = min(known, default=0), max(known, default=0)

    def bonus(right: bool, length: int) -> float:
        value = 0.5 - (length - low) / (high - low) if high > low else 0.0
        return weight * (value if right else min(0.0, value) if paper else 0.0)

    return [None if r is None else r + bonus(r > 0, n) for r, n in zip(rewards, lengths, strict=True)]


def cosine(
    correct: bool, length: int, limit: int, right: Ends = (1.0, 0.5), wrong: Ends = (0.0, 0.0), exceed: float = 0.0
) -> float:
    """From the first to the second of `right` (or `wrong`) over lengths from 0 to `limit`, flat at both ends; `exceed`
    for a chain that reached the limit, whatever it says.

    The paper's constants, `PAPER_RIGHT` and so on, pay right chains for being short and wrong ones for being long.

    >>> [round(cosine(True, n, 100), 6) for n in (0, 50, 99, 100)]
    [1.0, 0.75, 0.500123, 0.0]
    >>> [cosine(False, n, 100, wrong=PAPER_WRONG, exceed=PAPER_EXCEED) for n in (0, 50, 100)]
    [-10.0, -5.0, -10.0]
    """
    if length >= limit:
        return exceed
    start, end = right if correct else wrong
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * length / limit))


def shaped(
    rewards: Rewards,
    lengths: Sequence[int],
    form: Form,
    *,
    wanted: int = 0,
    limit: int = 0,
    alpha: float = 3e-4,
    delta: float = 0.5,
    weight: float = 1.0,
    paper: bool = False,
) -> list[float | None]:
    """One group's rewards, shaped by the lengths of its chains (tokens behind the prompt). None stays None.

    A reward above 0 is right. `wanted` is for the two lcpo forms, with `alpha` (and `delta` for max); `limit` for
    cosine, `weight` for kimi. ValueError where the form's own number is missing.
    """
    if form.startswith("lcpo") and (wanted < 1 or alpha <= 0):
        raise ValueError(f"{form} needs a wanted length and an alpha above 0, not {wanted} and {alpha}")
    if form == "cosine" and limit < 1:
        raise ValueError(f"cosine needs the limit of the lengths, not {limit}")
    if form == "kimi":
        return kimi(rewards, lengths, weight, paper)

    def one(right: bool, n: int) -> float:
        if form == "lcpo_exact":
            return lcpo_exact(right, n, wanted, alpha, paper)
        if form == "lcpo_max":
            return lcpo_max(right, n, wanted, alpha, delta)
        ends = (PAPER_RIGHT, PAPER_WRONG, PAPER_EXCEED) if paper else ((1.0, 0.5), (0.0, 0.0), 0.0)
        return cosine(right, n, limit, *ends)

    return [None if r is None else one(r > 0, n) for r, n in zip(rewards, lengths, strict=True)]


# ------------------------------------------------------------------------------------------------ targets


@dataclass(frozen=True)
class Wanted:
    """What a prompt asks for, and the length that the reward measures against."""

    effort: Effort
    tokens: int


def draw_wanted(rng: random.Random, low: int, high: int, words: bool = False) -> Wanted:
    """The wish of one group: tokens uniform in [low, high] (L1 draws 100 to 4000), or one of the effort words, which
    stand for shares of `high`. All chains of a group share it, since they share their prompt."""
    if not 0 < low <= high:
        raise ValueError(f"targets are drawn between two lengths, not {low} and {high}")
    effort: Effort = rng.choice(WORDS) if words else rng.randint(low, high)
    return Wanted(effort, max(low, tokens_of(effort, high)))


# ------------------------------------------------------------------------------------------------ long to short


def shortest_right(traces: Sequence[Trace], most: int = 1) -> list[tuple[str, Path]]:
    """Up to `most` of the shortest right paths of every question that has one, with the question's id; each once."""
    found: dict[str, dict[Tokens, Path]] = {}
    for trace in traces:
        for path in paths_of(trace):
            if path.correct and not path.cut:
                found.setdefault(trace.question.id, {}).setdefault(path.side.tokens, path)
    ranked = {name: sorted(paths.values(), key=lambda p: len(p.side.tokens)) for name, paths in found.items()}
    return [(name, path) for name, paths in ranked.items() for path in paths[:most]]


def short_pairs(traces: Sequence[Trace], longer: float = 1.5, most: int = 4) -> list[Pair]:
    """Each question's shortest right chain over its longer ones: Kimi k1.5's long-to-short DPO (2501.12599).

    Rejected are wrong chains that are longer, and right ones at least `longer` times as long; at most `most` for each
    prompt, the longest first. A chain that was cut counts with the tokens that it has.
    """
    by_prompt: dict[Tokens, dict[Tokens, Path]] = {}
    for path in (path for trace in traces for path in paths_of(trace)):
        if path.side.trained and path.correct is not None:
            by_prompt.setdefault(path.prompt, {}).setdefault(path.side.tokens, path)
    pairs: list[Pair] = []
    for prompt, unique in by_prompt.items():
        paths = sorted(unique.values(), key=lambda p: len(p.side.tokens))
        best = next((p for p in paths if p.correct and not p.cut), None)
        if best is None:
            continue
        n = len(best.side.tokens)
        worse = [
            p
            for p in reversed(paths)
            if p is not best and len(p.side.tokens) > n and (not p.correct or len(p.side.tokens) >= longer * n)
        ]
        pairs += [Pair(prompt, best.side, p.side) for p in worse[:most]]
    return pairs
