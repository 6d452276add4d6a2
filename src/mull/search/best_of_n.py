"""Best-of-N and weighted voting: whole chains, judged by a scorer."""

from __future__ import annotations

import functools

from mull.chat import Chat
from mull.engine.sampler import Sampler
from mull.ledger import Budget
from mull.scorers.base import Scorer
from mull.search.choose import Aggregate, Canonical, best, path_score, weighted_vote
from mull.search.node import LINES, Steps
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import Tree
from mull.types import Question, Trace


async def best_of_n(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    scorer: Scorer,
    canonical: Canonical,
    aggregate: Aggregate = "last",
    vote: bool = False,
    steps: Steps = LINES,
) -> Trace:
    """The best of `budget.samples` whole chains by the scorer (Cobbe et al. 2110.14168); with `vote` the answer whose
    chains' scores sum highest (weighted best-of-N, Li et al. 2206.02336).

    Scores of steps become one of a chain by `aggregate`. Only "last" saves reading scores inside the chain.
    """
    name = "weighted_vote" if vote else "best_of_n"
    tree = Tree(name, question, sampler, chat, budget, decoding, seed, scorer, steps)
    leaves = [leaf for leaf in await tree.complete(tree.root, budget.samples) if leaf.done]
    await tree.score(leaves, whole_path=aggregate != "last")
    value = functools.partial(path_score, how=aggregate)
    return await tree.finish(weighted_vote(question, leaves, value, canonical) if vote else best(leaves, value))
