"""Monte-Carlo tree search over whole steps of thought (Kocsis & Szepesvári 2006; Silver et al. 2017), many simulations
of one tree at once.

What a simulation does: from the root down the children that the rule prefers, to a step that was not gone on from yet;
sample next steps there; value one; add that value to every step on the way. The trees of language models differ from
those of games in that children must be sampled (equal ones are one child then, whose prior counts how often it came)
and that no game says who won: values come from a scorer, or from how far finished chains agree.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Literal

from mull.chat import Chat
from mull.engine.sampler import Sampler
from mull.errors import UserError
from mull.ledger import Budget
from mull.scorers.base import Scorer
from mull.search.branches import Branch, Rollout, Select, Statistics
from mull.search.choose import Canonical, best, weighted_vote
from mull.search.node import LINES, Node, Steps
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import Tree
from mull.types import Question, Trace

Value = Literal["scorer", "rollout", "both"]
Choose = Literal["vote", "visits"]


@dataclass(eq=False, slots=True)
class Flight:
    """A simulation on its way."""

    path: list[Branch]
    work: asyncio.Future[list[Node]] | None = None  # None: not begun, or waiting for another's expansion
    rolls: bool = False  # whether `work` is a rollout
    grown: bool = False  # whether it has expanded a branch: each simulation does that once at most


class Search:
    """The state of one search; `run` simulates, `answer` chooses.

    Simulations overlap, but their results are taken in a fixed order, whichever arrived first: a seed gives one tree,
    whatever else the engine does. (A token budget that runs out is the exception: who gets the last tokens depends on
    who is there.)
    """

    def __init__(
        self, stats: Statistics, value: Value = "scorer", expand: int = 4, mix: float = 0.5, parallel: int = 8
    ):
        self.stats, self.tree = stats, stats.tree
        self.value, self.expand, self.mix, self.parallel = value, expand, mix, parallel
        self.root = Branch(self.tree.root)
        self.stopped = False  # nothing more can be sampled

    async def run(self, simulations: int) -> None:
        """Simulates; ends early when the tree is solved or nothing more can be sampled."""
        flights: deque[Flight] = deque()
        try:
            while True:
                flights = deque(flight for flight in flights if flight.work is not None or self._descend(flight))
                while simulations > 0 and len(flights) < self.parallel and not self.stopped and not self.root.solved:
                    simulations -= 1
                    self.root.flying += 1
                    flight = Flight([self.root])
                    if self._descend(flight):
                        flights.append(flight)
                if not flights:
                    return
                flight = flights[0]  # it never waits for another's expansion: all before it have landed
                assert flight.work is not None
                nodes = await flight.work
                flights.popleft()
                if self._arrive(flight, nodes):
                    flights.append(flight)
        finally:
            works = [flight.work for flight in flights if flight.work is not None]
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
            for flight in flights:
                self._take_back(flight)

    # ------------------------------------------------------------------------------------------------ a simulation

    def _descend(self, flight: Flight) -> bool:
        """Goes on down; False once the simulation is over, True while it waits for something."""
        while True:
            here = flight.path[-1]
            if here.node.done or here.node.dead:
                return self._land(flight, *self.stats.worth(here.node))
            if here.expanded:
                child = self.stats.preferred(here)
                child.flying += 1
                flight.path.append(child)
                continue
            if flight.grown and self.value == "scorer":
                return self._land(flight, here.node.score or 0.0, None)
            if self.stopped:
                return self._take_back(flight)
            earlier = here.visits + here.flying - 1  # simulations that came as far, landed or not
            if self.value != "scorer" and (earlier == 0 or flight.grown):
                flight.rolls = True
                flight.work = asyncio.ensure_future(self._roll_out(here.node))
            elif not here.growing:
                here.growing, flight.rolls = True, False
                # The earlier ones' rollouts from here are among its samples, by their first steps.
                wanted = self.expand - (earlier if self.value != "scorer" else 0)
                flight.work = asyncio.ensure_future(self._grow(here.node, wanted))
            return True

    async def _grow(self, node: Node, wanted: int) -> list[Node]:
        """Next steps, scored as far as their values are wanted."""
        nodes = await self.tree.extend(node, wanted) if wanted > 0 else []
        if not self.stats.agreement:
            await self.tree.score([node for node in nodes if node.done or (node.open and self.value != "rollout")])
        return nodes

    async def _roll_out(self, node: Node) -> list[Node]:
        """The end of one whole continuation, scored; none when nothing can be sampled."""
        ends = await self.tree.complete(node)
        if not self.stats.agreement:
            own = [node] if self.value == "both" and ends and node.parent is not None else []
            await self.tree.score([*own, *(end for end in ends if end.done)])
        return ends

    def _arrive(self, flight: Flight, nodes: list[Node]) -> bool:
        """Takes in what was sampled for a simulation; as `_descend`."""
        here, flight.work = flight.path[-1], None
        if not flight.rolls:
            here.growing = False
            if nodes or here.rollouts:
                here.expanded = flight.grown = True
                for node, branch in zip(nodes, self.stats.adopt(here, nodes), strict=True):
                    if branch.node is not node and not node.done:
                        self.tree.prune(node)
                self.stats.take_in(here)
            else:
                self.stopped |= not here.node.dead
            return self._descend(flight)
        if not nodes:
            self.stopped |= not here.node.dead
            return self._land(flight, 0.0, None) if here.node.dead else self._take_back(flight)
        end = nodes[0]
        if end.open:  # the budget has cut it
            self.stopped = True
            return self._take_back(flight)
        self.stats.note(end)
        value, form = self.stats.worth(end)
        if self.value == "both" and here is not self.root:
            value = self.mix * value + (1 - self.mix) * (here.node.score or 0.0)
        here.rollouts.append(Rollout(end.path()[here.node.depth :], value, form))
        if here.expanded:
            self.stats.take_in(here)
        return self._land(flight, value, form)

    def _land(self, flight: Flight, value: float, form: str | None) -> bool:
        """Backs a value up."""
        self._take_back(flight)
        for branch in reversed(flight.path):
            self.stats.count(branch, value, form)
            ends = branch.node.done or branch.node.dead
            branch.solved = ends or (branch.expanded and all(child.solved for child in branch.children))
        return False

    def _take_back(self, flight: Flight) -> bool:
        """Ends a simulation's virtual visits."""
        for branch in flight.path:
            branch.flying -= 1
        if flight.path[-1].growing and flight.work is not None and not flight.rolls:
            flight.path[-1].growing = False
        return False

    # ------------------------------------------------------------------------------------------------ the answer

    async def answer(self, choose: Choose) -> Node | None:
        """The chain to answer with. The most visited path is completed first where no chain on it is."""
        here = self.root
        while any(child.visits for child in here.children):
            here = max(here.children, key=lambda child: (child.visits, self.stats.total(child)))
        below = [leaf for leaf in self.stats.finished if leaf.tokens[: len(here.node.tokens)] == here.node.tokens]
        if here.node.open and not below:
            below = [end for end in await self.tree.complete(here.node) if end.done]
            if not self.stats.agreement:
                await self.tree.score(below)
            for leaf in below:
                self.stats.note(leaf)
        self._mark()

        # A finished copy of a path is worth the same and votes, too: how often an answer is reached is evidence.
        worth = {
            leaf.tokens: self.stats.confidence(form) if self.stats.agreement else leaf.score or 0.0
            for leaf, form in self.stats.finished.items()
        }

        def value(leaf: Node) -> float:
            return worth.get(leaf.tokens, 0.0)

        leaves = sorted(self.tree.leaves, key=lambda leaf: leaf.order)
        if choose == "vote":
            return weighted_vote(self.tree.trace.question, leaves, value, self.stats.canonical)
        # In a solved tree all is known, and the visits made so far may not show it yet.
        return best(leaves if self.root.solved or not below else below, value)

    def _mark(self) -> None:
        """Shows in the trace what was never selected, and the way of the rollouts behind the tree's branches."""
        branches = [self.root]
        while branches:
            branch = branches.pop()
            if not branch.visits and not branch.node.done and branch is not self.root:
                self.tree.prune(branch.node)
            for rollout in branch.rollouts:
                for step in rollout.steps:
                    self.tree.visit(step)
            branches += branch.children


async def mcts(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    scorer: Scorer | None = None,
    canonical: Canonical,
    select: Select = "puct",
    value: Value = "scorer",
    c: float = 1.0,
    expand: int = 4,
    mix: float = 0.5,
    parallel: int = 8,
    virtual_loss: float = 0.1,
    choose: Choose = "vote",
    steps: Steps = LINES,
) -> Trace:
    """`budget.samples` simulations of Monte-Carlo tree search over steps, `parallel` of them at once, though never more
    than a quarter of all: they know nothing of one another, and more change the answers.

    A simulation expands one branch by `expand` sampled steps and values one of them. `value` says how: "scorer" takes
    the scorer's value of the step; "rollout" completes the chain and takes the scorer's value of its end, or, without a
    scorer, the share of the other finished chains that agree with it (rStar, 2408.06195); "both" takes `mix` of the
    rollout's and 1 - `mix` of the step's (ReST-MCTS*, 2406.03816). With rollouts a step is expanded at its second
    visit, and the rollout's own steps are among its children, with their visits: no sampled token is thrown away.

    `choose`: "vote" takes the answer whose finished chains' values sum highest (rStar-Math, 2501.04519), "visits" the
    best chain of the most visited path. `c` weighs exploration, for values in [0, 1]. More `virtual_loss` (see
    `Statistics.preferred`) keeps more simulations in the air, and moves answers away from those of one at a time.
    """
    if scorer is None and value != "rollout":
        raise UserError(f"mcts with value={value} needs a scorer: name one, or use value=rollout")
    if not 0 <= mix <= 1:
        raise UserError(f"mcts cannot run with mix={mix}: it is a share, from 0 to 1")
    for knob, number, least in (
        ("expand", expand, 1),
        ("parallel", parallel, 1),
        ("c", c, 0),
        ("virtual_loss", virtual_loss, 0),
    ):
        if not number >= least:
            raise UserError(f"mcts cannot run with {knob}={number}: it must be {least} or more")
    tree = Tree("mcts", question, sampler, chat, budget, decoding, seed, scorer, steps)
    overlap = max(1, min(parallel, budget.samples // 4))
    search = Search(Statistics(tree, canonical, select, c, virtual_loss), value, expand, mix, overlap)
    await search.run(budget.samples)
    return await tree.finish(await search.answer(choose))
