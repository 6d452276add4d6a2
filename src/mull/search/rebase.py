"""REBASE: a budget of paths, shared out at every depth by how good they look."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mull.chat import Chat
from mull.engine.sampler import Sampler
from mull.errors import UserError
from mull.ledger import Budget
from mull.scorers.base import Scorer
from mull.search.beam import Choose, conclude, different, grow, ranked
from mull.search.choose import Aggregate, Canonical, path_score
from mull.search.node import LINES, Steps
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import Tree
from mull.types import Question, Trace


async def rebase(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    scorer: Scorer,
    canonical: Canonical,
    balance: float = 0.2,
    aggregate: Aggregate = "last",
    choose: Choose = "vote",
    steps: Steps = LINES,
) -> Trace:
    """Reward-balanced search (Wu et al. 2408.00724): N = `budget.samples` paths; after each step the paths that are
    still open get shares of the next ones by softmax(score / `balance`). One that finishes takes its place away.

    Low `balance` (the authors' is 0.2) goes on from the best path alone, high balance from all alike. Shares are
    rounded so that they sum to the places that are left (see `widths`). Equal paths go on as one with the shares of
    all: a step that is sampled twice as often has twice the share, as the policy would have it, and rounding takes
    less from it.
    """
    if not balance > 0:
        raise UserError(f"balance={balance} cannot divide scores: set it above 0 (the authors have 0.2)")
    tree = Tree("rebase", question, sampler, chat, budget, decoding, seed, scorer, steps)
    grown = await tree.extend(tree.root, budget.samples)
    finished = []
    while grown:
        copies = Counter(node.tokens for node in grown)
        nodes = different(tree, grown)
        await tree.score(nodes)
        finished += [node for node in nodes if node.done]
        alive = ranked(nodes, aggregate)
        shares = widths(
            [path_score(node, aggregate) for node in alive],
            [copies[node.tokens] for node in alive],
            budget.samples - len(finished),
            balance,
        )
        for node, width in zip(alive, shares, strict=True):
            if width == 0:
                tree.prune(node)
        grown = await grow(tree, alive, shares)
    return await conclude(tree, finished, canonical, aggregate, choose)


def widths(scores: Sequence[float], copies: Sequence[int], slots: int, balance: float) -> list[int]:
    """`slots` shared out in proportion to copies · exp(score / balance), in whole numbers that sum to it.

    By largest remainder, of equal ones the first. The paper rounds each share for itself, which may miss the sum; its
    implementation rounds up, the best first, out of what is left, which favours the best.

    >>> widths([0.9, 0.9, 0.1], [1, 1, 1], 5, balance=0.1), widths([0.5, 0.5], [1, 3], 4, balance=0.1)
    ([3, 2, 0], [1, 3])
    """
    if not scores:
        return []
    top = max(scores)
    weights = [n * math.exp((score - top) / balance) for score, n in zip(scores, copies, strict=True)]
    total = math.fsum(weights)
    shares = [slots * weight / total for weight in weights]
    whole = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (whole[i] - shares[i], i))
    for i in by_remainder[: slots - sum(whole)]:
        whole[i] += 1
    return whole
