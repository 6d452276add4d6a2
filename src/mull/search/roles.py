"""Generator, reasoner, evaluator: one model proposes how to begin, a second works it out, a third judges."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mull.chat import Chat
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import UserError
from mull.ledger import Budget
from mull.scorers.base import Score, Scorer
from mull.search.choose import Aggregate, Canonical, Pick, path_score, pick_leaf
from mull.search.node import LINES, Node, Steps
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import Tree
from mull.types import Question, Trace


@dataclass(frozen=True)
class Role:
    """A model: what samples from it, and how one talks to it."""

    sampler: Sampler
    chat: Chat


async def roles(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    generator: Role,
    scorer: Scorer,
    canonical: Canonical,
    evaluator_chat: Chat | None = None,
    opening: int = 1,
    chains: int = 1,
    pick: Pick = "weighted",
    aggregate: Aggregate = "last",
    steps: Steps = LINES,
) -> Trace:
    """The generator writes N = `budget.samples` openings, the first `opening` steps of a thought; the reasoner
    (`sampler`, `chat`) continues each to `chains` answers; the evaluator (`scorer`, a critic is one) judges these.

    `pick`: the answer of the highest value, of the highest sum of values, or of most chains. `evaluator_chat` is the
    chat whose tokens the scorer reads, the reasoner's unless given.

    Tokens pass from model to model unchanged where their tokenizers agree, and as text where they do not. All costs are
    in the one budget and trace. In the trace the generator's steps are a root of their own; below the reasoner's prompt
    they stand as forced tokens, which nothing trains on. An opening that already ends the thought is gone on from in
    front of its end; one that ends the turn is dropped, and the reasoner takes its chains from the question itself.
    """
    if opening < 1 or chains < 1:
        raise UserError(f"opening={opening} and chains={chains} must both be 1 or more")
    started = time.perf_counter()
    judge = _Interpreted(scorer, question, chat, evaluator_chat) if evaluator_chat else scorer
    ideas = Tree(
        "roles", question, generator.sampler, generator.chat, budget, decoding, derive_seed(seed, 1), steps=steps
    )
    wanted = Counter(translated(tokens, generator.chat, chat) for tokens in await _openings(ideas, opening))
    wanted[()] += budget.samples - wanted.total()
    tree = Tree("roles", question, sampler, chat, budget, decoding, seed, judge, steps)

    async def answered(tokens: tuple[int, ...], many: int) -> list[Node]:
        start = tree.insert(tree.root, tokens) if tokens else tree.root
        tree.visit(start)
        return [leaf for leaf in await tree.complete(start, many * chains) if leaf.done]

    found = await together(answered(tokens, many) for tokens, many in wanted.items() if many > 0)
    leaves = [leaf for some in found for leaf in some]
    if pick != "vote":
        await tree.score(leaves, whole_path=aggregate != "last")
    value = functools.partial(path_score, how=aggregate)
    trace = await tree.finish(pick_leaf(question, leaves, value, canonical, pick))
    _append(trace, ideas.trace)
    trace.cost = replace(trace.cost, seconds=time.perf_counter() - started)
    return trace


def translated(tokens: Sequence[int], source: Chat, target: Chat) -> tuple[int, ...]:
    """What follows a prompt (a thought, its end, an answer, the end of the turn, as far as they are there) in the
    tokens and the spacing of another model; unchanged where both have the same tokens."""
    if not tokens or source.speaks_like(target):
        return tuple(tokens)
    thought, answer, closed = source.split(tokens)
    if closed:
        reply = target.reply(thought, answer)
        return tuple(reply if any(token in source.end_ids for token in tokens) else reply[:-1])
    # Where a template sets thoughts apart by line breaks, an empty thought shows how: the last one closes it.
    before = target.decode(target.reply("", "")).partition(target.decode(target.think_close))[0][:-1]
    after = "\n" if source.decode(tokens).endswith("\n") else ""
    return tuple(target.encode(before + thought + after))


async def _openings(tree: Tree, depth: int) -> list[tuple[int, ...]]:
    """The tokens of up to `budget.samples` openings of up to `depth` steps each, without an end of the thought."""

    async def longer(node: Node) -> tuple[int, ...]:
        for _ in range(depth - 1):
            if not node.open or node.closed or node.thought >= tree.budget.think_tokens:
                break
            node = next(iter(await tree.extend(node)), node)
        if node.tokens[-1] in tree.chat.end_ids:
            return ()
        if node.closed:
            node = tree.take_back(node)
        return node.tokens[node.asked :]

    first = await tree.extend(tree.root, tree.budget.samples) if tree.budget.think_tokens > 0 else []
    return await together(longer(node) for node in first)


def _append(trace: Trace, other: Trace) -> None:
    """Puts the spans of another trace behind, as a tree of their own, with what they cost and what was lost."""
    shift = len(trace.spans)
    for span in other.spans:
        trace.spans.append(replace(span, parent=span.parent + shift if span.parent >= 0 else -1))
    trace.cost = trace.cost + other.cost
    trace.lost += other.lost
    trace.exhausted |= other.exhausted


class _Interpreted:
    """A scorer that reads the tokens of another chat than the paths are written in."""

    def __init__(self, scorer: Scorer, question: Question, source: Chat, target: Chat):
        self.scorer, self.source, self.target = scorer, source, target
        self.asked, self.prompt = len(source.prompt(question.asked)), tuple(target.prompt(question.asked))

    async def score(self, prefixes: Sequence[Sequence[int]]) -> list[Score]:
        said = (translated(prefix[self.asked :], self.source, self.target) for prefix in prefixes)
        return await self.scorer.score([(*self.prompt, *tokens) for tokens in said])
