"""Beam search over steps, diverse verifier tree search, and lookahead: a scorer decides which paths go on.

Where implementations differ, this one
- counts a finished path as one of the N, so that at most N paths are ever there; a beam that is refilled until N have
  finished samples more than N;
- gives a vote to finished paths only, never to a last step that did not end (search-and-learn issue 57);
- goes on from equal paths as one, with the next steps of all. To drop the copies before ranking, as some do, fills the
  beam with worse paths wherever few different steps are likely: nano's beams then fell behind best-of-N. Copies of a
  finished path all vote: how often an answer is reached is evidence.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from mull.chat import Chat
from mull.engine.sampler import Sampler
from mull.engine.together import together
from mull.errors import UserError
from mull.ledger import Budget
from mull.scorers.base import Scorer
from mull.search.choose import Aggregate, Canonical, best, path_score, weighted_vote
from mull.search.node import LINES, Node, Steps
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import Tree
from mull.types import Question, Trace

Choose = Literal["vote", "best"]
GREEDY = Decoding(temperature=0.0)


async def beam(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    scorer: Scorer,
    canonical: Canonical,
    expand: int = 4,
    lookahead: int = 0,
    aggregate: Aggregate = "last",
    choose: Choose = "vote",
    steps: Steps = LINES,
) -> Trace:
    """Step beam search (Snell et al. 2408.03314): N = `budget.samples` paths; after each step the best N / `expand` by
    their score go on, each with `expand` next steps.

    `lookahead` (ibid.): a step's score is that of the path some greedy steps further on. These are charged, at most
    N (lookahead + 1) steps a round, and decide nothing else: a path that they happen to complete gives the answer only
    where the search itself completed none. `choose`: the answer with the highest sum of path scores, or the best path.
    N = expand = 1 is a plain chain, sampled by steps.
    """
    _check(expand, lookahead)
    tree = Tree("lookahead" if lookahead else "beam", question, sampler, chat, budget, decoding, seed, scorer, steps)
    first = await tree.extend(tree.root, budget.samples)
    finished = await _climb(tree, first, budget.samples, expand, lookahead, aggregate)
    return await conclude(tree, finished, canonical, aggregate, choose)


async def dvts(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    scorer: Scorer,
    canonical: Canonical,
    expand: int = 4,
    lookahead: int = 0,
    aggregate: Aggregate = "last",
    choose: Choose = "vote",
    steps: Steps = LINES,
) -> Trace:
    """Diverse verifier tree search (Beeching et al. 2024, "Scaling test-time compute with open models"): N / `expand`
    separate beams, N = `budget.samples`; each goes on from the best of its `expand` steps alone, all N paths vote.

    Paths of one beam cannot crowd out another's, which keeps the answers diverse. The original ends a beam with its
    best path and drops those behind it; here the best open path goes on beside those that have finished.
    """
    _check(expand, lookahead)
    tree = Tree("dvts", question, sampler, chat, budget, decoding, seed, scorer, steps)
    first = await tree.extend(tree.root, budget.samples)
    roots = [first[i : i + expand] for i in range(0, len(first), expand)]
    beams = await together(_climb(tree, root, len(root), expand, lookahead, aggregate) for root in roots)
    return await conclude(tree, [leaf for one in beams for leaf in one], canonical, aggregate, choose)


async def conclude(
    tree: Tree, finished: Sequence[Node], canonical: Canonical, aggregate: Aggregate, choose: Choose
) -> Trace:
    """The trace with an answer out of the finished paths, or of whatever else the tree has completed."""
    value = functools.partial(path_score, how=aggregate)
    leaves = sorted(finished or tree.leaves, key=lambda leaf: leaf.order)
    if choose == "best":
        return await tree.finish(best(leaves, value))
    return await tree.finish(weighted_vote(tree.trace.question, leaves, value, canonical))


async def _climb(
    tree: Tree, grown: Sequence[Node], paths: int, expand: int, lookahead: int, aggregate: Aggregate
) -> list[Node]:
    """The finished paths, at most `paths` of them, of a beam that begins with the steps `grown`."""
    finished: list[Node] = []
    while grown:
        nodes = different(tree, grown)
        await _judge(tree, nodes, lookahead)
        finished += [node for node in nodes if node.done]
        alive = ranked(nodes, aggregate)
        copies = Counter(node.tokens for node in grown)
        shares = _shares(paths - len(finished), [copies[node.tokens] for node in alive], expand)
        for node in alive[len(shares) :]:
            tree.prune(node)
        grown = await grow(tree, alive, shares)
    return finished


async def grow(tree: Tree, nodes: Sequence[Node], widths: Sequence[int]) -> list[Node]:
    """So many next steps of each node, none where the width is 0 or missing; all at once, in the order of the nodes."""

    async def one(node: Node, width: int) -> list[Node]:
        tree.visit(node)
        return await tree.extend(node, width)

    grown = await together(one(node, width) for node, width in zip(nodes, widths, strict=False) if width > 0)
    return [child for children in grown for child in children]


def _shares(slots: int, copies: Sequence[int], expand: int) -> list[int]:
    """How many next steps each of the best paths gets: at most `expand` for each copy of it that is kept, and no more
    kept than fill the slots. `copies` are in the order of the paths, the best first.

    >>> _shares(slots=7, copies=[1, 1, 1], expand=4), _shares(slots=16, copies=[3, 5, 8], expand=4)
    ([4, 3], [12, 4])
    """
    kept = min(sum(copies), -(-slots // expand))
    whole = min(slots, kept * expand)
    each = [whole // kept + (i < whole % kept) for i in range(kept)]
    ends = itertools.accumulate(copies)
    shares = [sum(each[end - n : end]) for end, n in zip(ends, copies, strict=True)]
    return [share for share in shares if share > 0]


def different(tree: Tree, nodes: Sequence[Node]) -> list[Node]:
    """The nodes without dead ends, and without open paths that are there already; these are marked as pruned."""
    seen: set[tuple[int, ...]] = set()
    out = []
    for node in nodes:
        if node.dead or (node.open and node.tokens in seen):
            tree.prune(node)
        else:
            out.append(node)
            seen.add(node.tokens)
    return out


def ranked(nodes: Sequence[Node], aggregate: Aggregate) -> list[Node]:
    """The open ones, best first; of equals the one that stands first in the tree."""
    alive = [node for node in nodes if node.open]
    return sorted(alive, key=lambda node: (-path_score(node, aggregate), node.order))


async def _judge(tree: Tree, nodes: Sequence[Node], lookahead: int) -> None:
    """Scores the nodes, each by the end of `lookahead` greedy steps from it."""

    async def look(node: Node) -> Node:
        end = node
        for _ in range(lookahead):
            ahead = await tree.extend(end, 1, GREEDY) if end.open else []
            if not ahead:
                break
            if end is node:
                tree.prune(ahead[0])
            end = ahead[0]
        return end

    ends = await together(look(node) for node in nodes)
    await tree.score(ends)
    for node, end in zip(nodes, ends, strict=True):
        if end is not node:
            tree.rate(node, end.score or 0.0)


def _check(expand: int, lookahead: int) -> None:
    if expand < 1:
        raise UserError(f"expand={expand} leaves a beam without next steps: set it to 1 or more")
    if lookahead < 0:
        raise UserError(f"lookahead={lookahead} is no number of steps: set it to 0 or more")
