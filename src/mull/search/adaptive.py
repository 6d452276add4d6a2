"""Adaptive self-consistency: chains are sampled until the majority is clear (Aggarwal et al. 2305.11860)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mull.chat import Chat
from mull.engine.sampler import Sampler
from mull.errors import UserError
from mull.ledger import Budget
from mull.scorers.base import Scorer
from mull.search.choose import Canonical, weighted_vote
from mull.search.node import LINES, Node, Steps
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import Tree
from mull.types import Question, Trace


async def adaptive_vote(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    canonical: Canonical,
    scorer: Scorer | None = None,
    scored: bool = False,
    batch: int = 4,
    threshold: float = 0.95,
    steps: Steps = LINES,
) -> Trace:
    """The majority answer of at most `budget.samples` chains, `batch` at a time until it is clear which it is.

    It is clear when `lead(a, b)`, for the votes a and b of the two most frequent answers, is at least `threshold`: the
    posterior probability that the first is the likelier of the two. (With the default, 4 equal votes suffice, and 3
    do not; looking often does not weaken this: over questions whose p is uniform, as the prior says, at least that
    share of the early answers are the policy's likelier ones.) Chains whose answer cannot be read have no vote.

    With `scored` votes weigh their scores, as in `weighted_vote`, and the rule is the same on `relative_votes`. When
    the scorer is lost all chains weigh the same again.
    """
    if scored and scorer is None:
        raise UserError("adaptive: scored=true weighs votes by a scorer's word: give a scorer, or leave scored away")
    if not 0.5 < threshold <= 1:
        raise UserError(f"adaptive: threshold={threshold:g} is no confidence: give a number above 0.5 and up to 1")
    if batch < 1:
        raise UserError(f"adaptive: batch={batch} would never sample: give 1 or more chains at a time")
    name = "adaptive_weighted" if scored else "adaptive"
    tree = Tree(name, question, sampler, chat, budget, decoding, seed, scorer, steps)
    votes: dict[Node, float] = {}
    leaves: list[Node] = []
    asked = 0
    while asked < budget.samples and tree.root.open:
        n = min(batch, budget.samples - asked)
        ends = await tree.complete(tree.root, n)
        asked += n
        new = [end for end in ends if end.done]
        leaves += new
        scored = scored and await tree.score(new)
        values = [leaf.score or 0.0 for leaf in leaves] if scored else [1.0] * len(leaves)
        forms = [canonical(question, leaf.answer or "") for leaf in leaves]
        votes = dict(zip(leaves, relative_votes(forms, values), strict=True))
        if lead(*top_two(forms, list(votes.values()))) >= threshold:
            break
    return await tree.finish(weighted_vote(question, leaves, lambda leaf: votes[leaf], canonical))


def relative_votes(forms: Sequence[str | None], values: Sequence[float]) -> list[float]:
    """How many votes each chain counts as: its value relative to the highest one, so at most 1.

    A chain of weight v enters the posterior as v observations (a likelihood to the power v). Weights relative to the
    highest make the rule depend on what the weighted vote depends on, and on nothing else: a scorer that says 0.1 for
    0.8 throughout changes neither. Equal scores are plain counts. No score makes a chain more than one observation, so
    that a scorer alone cannot end the sampling before as many chains agree as plain counts would need, and one
    outstanding chain prolongs it. Where all values are 0, all chains count alike. The unreadable (None) have 0 votes.
    """
    top = max((value for form, value in zip(forms, values, strict=True) if form is not None), default=0.0)
    relative = [value / top if top > 0 else 1.0 for value in values]
    return [0.0 if form is None else vote for form, vote in zip(forms, relative, strict=True)]


def top_two(forms: Sequence[str | None], votes: Sequence[float]) -> tuple[float, float]:
    """The votes of the two answers that have most, 0 where there is none."""
    counts: dict[str, list[float]] = {}
    for form, vote in zip(forms, votes, strict=True):
        if form is not None:
            counts.setdefault(form, []).append(vote)
    first, second, *_ = [*sorted((math.fsum(v) for v in counts.values()), reverse=True), 0.0, 0.0]
    return first, second


def lead(a: float, b: float) -> float:
    """P(p > 1/2) for p ~ Beta(a + 1, b + 1): how sure it is, after a votes against b, a >= b >= 0, that the first of
    two answers is the likelier one. The prior is uniform.

    For whole a and b it is the share of coin-toss sequences of length a + b + 1 with at most a heads: exact.

    >>> lead(3, 0), lead(4, 0)
    (0.9375, 0.96875)
    """
    if float(a).is_integer() and float(b).is_integer():
        tosses = int(a) + int(b) + 1
        return sum(math.comb(tosses, heads) for heads in range(int(a) + 1)) / 2**tosses
    return 1.0 - _below_half(a + 1, b + 1)


def _below_half(alpha: float, beta: float) -> float:
    """The regularised incomplete beta function at 1/2, for alpha >= beta (DLMF 8.17.8: a series of positive terms):

    I_x(alpha, beta) = x^alpha (1-x)^beta / (alpha B(alpha, beta)) * sum_k x^k prod_{j<k} (alpha+beta+j)/(alpha+1+j).
    """
    total = term = 1.0
    k = 0
    while term > 1e-17 * total:
        term *= 0.5 * (alpha + beta + k) / (alpha + 1 + k)
        total += term
        k += 1
    log_beta = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    return math.exp((alpha + beta) * math.log(0.5) - log_beta - math.log(alpha)) * total
