"""Trees whose every path, and so the exact target of a particle filter, can be written down."""

import asyncio
import math
from collections import Counter

from mull.ledger import Budget
from mull.search.particles import Cloud, log_potential, particles, propagate
from mull.search.tree import Tree
from mull.types import Trace
from tests.search.tools import QUESTION, ScriptedScorer, canonical, chat, run, sampler_of

# Paths of one to four steps; one dies while thinking; a good beginning that ends badly, and the other way round.
PATHS = {
    "": {"a\n": 0.5, "b\n": 0.3, "q</think>": 0.1, "stop": 0.1},
    "a\n": {"c\n": 0.6, "</think>": 0.4},
    "a\nc\n": {"d</think>": 0.7, "stop": 0.3},
    "b\n": {"e</think>": 0.5, "f</think>": 0.5},
    "q</think>": {"1": 0.5, "2": 0.5},
    "a\n</think>": {"1": 1.0},
    "a\nc\nd</think>": {"2": 0.8, "3": 0.2},
    "b\ne</think>": {"3": 1.0},
    "b\nf</think>": {"1": 0.25, "2": 0.75},
    **{cut + "</think>": {"1": 1.0} for cut in ("", "b\n", "a\nc\n")},  # where every particle died: thoughts cut short
}
SCORES = {
    "a\n": 0.9,
    "b\n": 0.2,
    "q</think>": 0.5,
    "a\nc\n": 0.8,
    "a\n</think>": 0.3,
    "a\nc\nd</think>": 0.95,
    "b\ne</think>": 0.9,
    "b\nf</think>": 0.1,
    "q</think>1<|end|>": 0.7,
    "q</think>2<|end|>": 0.2,
    "a\n</think>1<|end|>": 0.05,
    "a\nc\nd</think>2<|end|>": 0.3,
    "a\nc\nd</think>3<|end|>": 0.9,
    "b\ne</think>3<|end|>": 0.85,
    "b\nf</think>1<|end|>": 0.6,
    "b\nf</think>2<|end|>": 0.02,
}


def complete_paths(text: str = "", p: float = 1.0) -> list[tuple[str, float]]:
    """Every path that ends in an answer, with the policy's probability."""
    if text.endswith("<|end|>"):
        return [(text, p)]
    found = []
    for step, q in PATHS.get(text, {}).items():
        grown = text + step + ("<|end|>" if text.endswith("</think>") else "")
        found += complete_paths(grown, p * q)
    return found


def scored(text: str) -> float:
    return SCORES[text]


def exact(potential: str, temperature: float = 1.0) -> tuple[float, dict[str, float]]:
    """Z, and the target's distribution over answers."""
    mass: Counter[str] = Counter()
    for text, p in complete_paths():
        s = SCORES[text]
        phi = s if potential == "probability" else s / (1 - s)
        mass[text.removesuffix("<|end|>")[-1]] += p * phi ** (1 / temperature)
    total = math.fsum(mass.values())
    return total, {answer: m / total for answer, m in mass.items()}


def search(n: int, seed: int = 0, value=scored, tree=PATHS, **options) -> Trace:
    scorer = ScriptedScorer(value)
    return run(particles, sampler_of(tree), Budget(samples=n), scorer=scorer, canonical=canonical, seed=seed, **options)


def cloud_of(n: int, seed: int, ess: float = 0.5) -> Cloud:
    async def go():
        tree = Tree("t", QUESTION, sampler_of(PATHS), chat(), Budget(), seed=seed, scorer=ScriptedScorer(scored))
        return await propagate(tree, n, lambda s: log_potential(s, "probability"), ess)

    return asyncio.run(go())
