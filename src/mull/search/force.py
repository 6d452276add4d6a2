"""Budget forcing both ways: a thought is ended at its budget, and one that ends too early is made to go on."""

from __future__ import annotations

from mull.chat import Chat
from mull.engine.sampler import Sampler
from mull.engine.together import together
from mull.errors import UserError
from mull.ledger import Budget
from mull.search.choose import Canonical, majority_leaf
from mull.search.node import LINES, Node, Steps
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import Tree
from mull.types import Question, Trace


async def wait(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    canonical: Canonical,
    wait: str = "Wait",
    waits: int = 1,
    least: int = 0,
    own_line: bool = True,
    steps: Steps = LINES,
) -> Trace:
    """s1's budget forcing (Muennighoff et al. 2501.19393): N = `budget.samples` chains, whose majority answers.

    Where a chain ends its thought, the end is taken back, and the text `wait` put in its place: up to `waits` times,
    and with `least` above 0 only while the thought has fewer than so many tokens. At `budget.think_tokens` it is
    closed by force. With `own_line` the text stands on a line of its own, for models that think in lines; without, it
    follows the thought as it is, as in s1. `waits` = 0 is `sample_forced` with a vote.

    What was sampled and taken back is charged, and stays in the trace as a pruned branch. A chain that ends its whole
    turn while it thinks is treated alike, and once it may end, gets its answer by force.
    """
    if waits < 0 or least < 0:
        raise UserError(f"waits={waits} and least={least} must both be 0 or more")
    tree = Tree("wait", question, sampler, chat, budget, decoding, seed, steps=steps)

    async def finished(end: Node) -> list[Node]:
        for _ in range(waits):
            if not _ended(tree, end) or (least and end.thought >= least) or not _has_room(tree, end, wait):
                break
            end = tree.take_back(end)
            end = tree.insert(end, tree.chat.encode(_spaced(tree, end, wait) if own_line else wait))
            end = next(iter(await tree.think(end)), end)
        if end.dead and _ended(tree, end):
            end = tree.take_back(end)
        return await tree.force_answer(end) if end.open else []

    if budget.think_tokens > 0:
        thoughts = await tree.think(tree.root, budget.samples)
        leaves = [leaf for found in await together(finished(end) for end in thoughts) for leaf in found]
    else:
        leaves = await tree.force_answer(tree.root, budget.samples)
    return await tree.finish(majority_leaf(question, leaves, canonical))


def _ended(tree: Tree, node: Node) -> bool:
    """Whether the model itself has ended the thought, or its turn."""
    return not node.forced and (node.closed or node.tokens[-1] in tree.chat.end_ids)


def _has_room(tree: Tree, node: Node, text: str) -> bool:
    """Whether a token can be sampled behind the text. (Else the model's own end stays: it costs nothing more.)"""
    around = tree.steps.separator
    words = len(tree.chat.encode(around + text + around))
    return not tree.spent_out and node.thought + words < tree.budget.think_tokens


def _spaced(tree: Tree, node: Node, text: str) -> str:
    """The text as a line behind what has been thought."""
    separator, before = tree.steps.separator, tree.chat.decode(node.tokens[node.asked :])
    return ("" if not before or before.endswith(separator) else separator) + text + separator
