"""Monte-Carlo tree searches that stand still between simulations, and trees of thought for them to search."""

import asyncio

from mull.engine.scripted import ScriptedSampler
from mull.ledger import Budget
from mull.search.branches import Branch, Statistics
from mull.search.mcts import Search
from mull.search.tree import Tree
from tests.search.tools import QUESTION, ScriptedScorer, canonical, chat, thought


def start(sampler, judge=None, budget=None, seed=0, **options) -> Search:
    """A search that has not begun; `judge` scores texts, None: there is no scorer."""
    scorer = None if judge is None else ScriptedScorer(judge)
    tree = Tree("mcts", QUESTION, sampler, chat(), budget or Budget(), seed=seed, scorer=scorer)
    rule = {key: options.pop(key) for key in ("select", "c", "virtual_loss") if key in options}
    return Search(Statistics(tree, canonical, **rule), **options)


def simulate(search: Search, n: int) -> Search:
    asyncio.run(search.run(n))
    return search


def branches(search: Search) -> dict[str, Branch]:
    """Every branch by its text."""
    found, todo = {}, [search.root]
    while todo:
        branch = todo.pop()
        found[thought(branch.node.tokens)] = branch
        todo += branch.children
    return found


def assert_landed(search: Search) -> None:
    """Nothing is in the air: virtual loss is wholly taken back, and no branch waits for an expansion."""
    for text, branch in branches(search).items():
        assert (branch.flying, branch.growing) == (0, False), text


def binary(depth: int, **options) -> ScriptedSampler:
    """`depth` lines "a" or "b", equally likely; the answer is the number of "a"s."""

    def follows(tokens):
        text, closed, answer = thought(tokens).partition("</think>")
        if closed:
            return None if answer else {str(text.count("a")): 1.0}
        return {"</think>": 1.0} if text.count("\n") == depth else {"a\n": 1.0, "b\n": 1.0}

    return ScriptedSampler(follows, chat(), **options)


def in_favour_of_a(text: str) -> float:
    """1 as long as all lines are "a"; .5 after a "b", .2 after a "b" at once."""
    return 0.2 if text.startswith("b") else 0.5 if "b" in text else 1.0


def hidden(tokens: tuple[int, ...]) -> dict[str, float] | None:
    """Six lines; nine of ten that begin with "a" answer 1, those that begin with "b" anything from 2 to 9."""
    text, closed, answer = thought(tokens).partition("</think>")
    if closed:
        return None if answer else {"1": 9.0, "2": 1.0} if text[0] == "a" else {str(n): 1.0 for n in range(2, 10)}
    return {"</think>": 1.0} if text.count("\n") == 6 else {"a\n": 1.0, "b\n": 1.0}
