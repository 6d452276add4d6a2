"""Tree of Thoughts (Yao et al. 2305.10601): breadth-first with the best few, or depth-first with backtracking.

Where the paper has a prompted model propose and judge thoughts, steps are sampled here and a scorer judges them. Its
fixed depth becomes the chain's own end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mull.chat import Chat
from mull.engine.sampler import Sampler
from mull.engine.together import together
from mull.errors import UserError
from mull.ledger import Budget
from mull.scorers.base import Scorer
from mull.search.choose import Canonical, best, weighted_vote
from mull.search.node import LINES, Node, Steps
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import Tree
from mull.types import Question, Trace

Choose = Literal["best", "vote"]


async def tot_bfs(
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
    choose: Choose = "best",
    steps: Steps = LINES,
) -> Trace:
    """Keeps the `budget.samples` best of all candidates at each depth (algorithm 1; b is budget.samples, k `expand`).

    Every kept path gives `expand` candidates; equal ones are one. Finished paths stay among the kept as long as they
    are good enough, and the search ends when all kept ones are finished. Among those `choose` takes the best, or the
    answer whose values sum highest.
    """
    _refuse("tot_bfs", expand)
    tree = Tree("tot_bfs", question, sampler, chat, budget, decoding, seed, scorer, steps)
    kept = [tree.root]
    while growing := [node for node in kept if node.open]:
        grown = [child for children in await together(tree.extend(n, expand) for n in growing) for child in children]
        if not grown:
            break
        candidates = [node for node in kept if node.done] + _distinct(tree, grown)
        await tree.score(candidates)
        kept = sorted(candidates, key=_value, reverse=True)[: budget.samples]
        for node in candidates:
            if node in kept:
                tree.visit(node)
            else:
                tree.prune(node)
    return await tree.finish(_choice(tree, [node for node in kept if node.done], choose, canonical))


async def tot_dfs(
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
    threshold: float = 0.5,
    enough: float = 0.9,
    limit: int = 100,
    choose: Choose = "best",
    steps: Steps = LINES,
) -> Trace:
    """Goes on with the best child while its value is above `threshold`, else backtracks (algorithm 2).

    Ends at the first finished path whose value is `enough` or more, after `budget.samples` finished paths, or when
    `limit` steps were expanded (100 in the paper). `choose` is among the finished paths that it came to. Where it came
    to none, the most promising step that it left behind is completed.
    """
    _refuse("tot_dfs", expand, limit)
    tree = Tree("tot_dfs", question, sampler, chat, budget, decoding, seed, scorer, steps)
    stack, reached = [tree.root], []
    while stack and len(reached) < budget.samples:
        if stack[-1].open and limit == 0:
            break
        node = stack.pop()
        tree.visit(node)
        if node.done:
            reached.append(node)
            if _value(node) >= enough:
                break
            continue
        limit -= 1
        grown = await tree.extend(node, expand)
        if not grown and not node.dead:
            break  # the budget is spent
        children = _distinct(tree, grown)
        await tree.score(children)
        promising = []
        for child in sorted(children, key=_value):  # the best last: it is the next to be popped
            if _value(child) > threshold:
                promising.append(child)
            else:
                tree.prune(child)
        stack += promising
    for node in stack:
        tree.prune(node)
    if not reached and not tree.leaves:
        rest = [node for node in tree.nodes if node.open]
        hope = max(rest, key=lambda node: (_value(node), node.thought), default=None)
        reached = [] if hope is None else [node for node in await tree.complete(hope) if node.done]
        await tree.score(reached)
    return await tree.finish(_choice(tree, reached, choose, canonical))


def _refuse(name: str, expand: int, limit: int = 1) -> None:
    for knob, number in (("expand", expand), ("limit", limit)):
        if number < 1:
            raise UserError(f"{name} cannot run with {knob}={number}: it must be 1 or more")


def _value(node: Node) -> float:
    return 0.0 if node.dead else node.score or 0.0


def _distinct(tree: Tree, nodes: Sequence[Node]) -> list[Node]:
    """Nodes that can go on or have ended well, the first of equal ones; the others are pruned."""
    first: dict[tuple[int, ...], Node] = {}
    for node in nodes:
        if node.dead or first.setdefault(node.tokens, node) is not node:
            tree.prune(node)
    return list(first.values())


def _choice(tree: Tree, paths: Sequence[Node], choose: Choose, canonical: Canonical) -> Node | None:
    """Among the finished paths that the search kept; where there are none among all that finished."""
    leaves = paths or tree.leaves
    return weighted_vote(tree.trace.question, leaves, _value, canonical) if choose == "vote" else best(leaves, _value)
