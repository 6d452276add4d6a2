"""Monte-Carlo tree search over whole steps of thought (Kocsis & Szepesvári 2006; Silver et al. 2017), many simulations
of one tree at once.

What a simulation does: from the root down the children that the rule prefers, to a step that was not gone on from yet;
sample next steps there; value one; add that value to every step on the way. The trees of language models differ from
those of games in that children must be sampled (equal ones are one child then, whose prior counts how often it came)
and that no game says who won: values come from a scorer, or from how far finished chains agree.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from mull.chat import Chat
from mull.engine.sampler import Sampler
from mull.errors import UserError
from mull.ledger import Budget
from mull.scorers.base import Scorer
from mull.search.choose import Canonical, best, weighted_vote
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import LINES, Node, Steps, Tree
from mull.types import Question, Trace

Select = Literal["puct", "uct"]
Value = Literal["scorer", "rollout", "both"]
Choose = Literal["vote", "visits"]

UNTRIED = 1e6  # UCT's infinity, small enough for priors to order the untried


@dataclass(eq=False, slots=True)
class Rollout:
    """A chain sampled in one go: its steps behind the branch that holds it, and what it came to."""

    steps: list[Node]
    value: float
    form: str | None  # canonical answer, where values are agreement


@dataclass(eq=False, slots=True)
class Branch:
    """A step as the search sees it: equal steps of one parent are one branch, known by the first of them."""

    node: Node
    first: float | None = None  # what it is worth before its first visit, where a scorer has said so
    weight: float = 0.0  # sum of exp(mean log-probability) over the equal steps
    prior: float = 1.0  # weight, as a share of its siblings'
    visits: int = 0  # N: simulations that went through it
    total: float = 0.0  # W: the sum of their values
    flying: int = 0  # simulations on their way through it
    children: list[Branch] = field(default_factory=list)
    expanded: bool = False
    growing: bool = False  # its next steps are being sampled
    solved: bool = False  # every path below is complete or dead
    rollouts: list[Rollout] = field(default_factory=list)  # that left the search's tree here
    answers: Counter[str | None] = field(default_factory=Counter)  # of its simulations, where values are agreement
    stamp: int = -1  # the answers that `total` was counted with


@dataclass(eq=False, slots=True)
class Flight:
    """A simulation on its way."""

    path: list[Branch]
    work: asyncio.Future[list[Node]] | None = None  # None: not begun, or waiting for another's expansion
    rolls: bool = False  # whether `work` is a rollout
    grown: bool = False  # whether it has expanded a branch: each simulation does that once at most


@dataclass(eq=False)
class Search:
    """The state of one search; `run` simulates, `answer` chooses.

    Simulations overlap, but what each decides depends on the results of those that began at least `parallel` before
    it, taken in a fixed order, and never on which arrived first: a seed gives one tree whatever else the engine does.
    (A token budget that runs out is the exception: who gets the last tokens depends on who is there.)
    """

    tree: Tree
    canonical: Canonical
    select: Select = "puct"
    value: Value = "scorer"
    c: float = 1.0
    expand: int = 4
    mix: float = 0.5
    parallel: int = 8
    virtual_loss: float = 0.1
    stopped: bool = False  # nothing more can be sampled
    finished: dict[Node, str | None] = field(default_factory=dict)  # complete chains and their canonical answers

    def __post_init__(self):
        self.root = Branch(self.tree.root)
        self.agreement = self.tree.scorer is None
        self.forms: Counter[str | None] = Counter()

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
                return self._land(flight, *self._worth(here.node))
            if here.expanded:
                child = self._preferred(here)
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

    def _preferred(self, here: Branch) -> Branch:
        """The child with the highest UCT or PUCT; of equals the first.

        UCT = Q + c sqrt(ln N_parent / N), first every child once. PUCT = Q + c P sqrt(N_parent) / (1 + N). A child that
        was never visited counts as visited once with its scorer's value; where there is none PUCT takes its parent's Q.
        Other simulations on their way count in every N, as in WU-UCT (Liu et al. 1810.11755), and in Q as
        `virtual_loss` visits of value 0 each.
        """
        puct = self.select == "puct"
        above = max(1, here.visits + here.flying - 1)
        unit = self.c * math.sqrt(above if puct else math.log(above))
        unknown = self._total(here) / here.visits if here.visits else 0.0
        chosen, highest = here.children[0], -math.inf
        for child in here.children:
            gain, seen, flying = 0.0, child.visits, child.flying
            if seen:
                gain = self._total(child)
            elif child.first is not None:
                gain, seen = child.first, 1
            weight = seen + self.virtual_loss * flying
            q = gain / weight if weight else unknown
            if puct:
                merit = q + unit * child.prior / (1 + child.visits + flying)
            else:
                merit = q + unit / math.sqrt(seen + flying) if seen + flying else UNTRIED + child.prior
            if merit > highest:
                chosen, highest = child, merit
        return chosen

    async def _grow(self, node: Node, wanted: int) -> list[Node]:
        """Next steps, scored as far as their values are wanted."""
        nodes = await self.tree.extend(node, wanted) if wanted > 0 else []
        if not self.agreement:
            await self.tree.score([node for node in nodes if node.done or (node.open and self.value != "rollout")])
        return nodes

    async def _roll_out(self, node: Node) -> list[Node]:
        """The end of one whole continuation, scored; none when nothing can be sampled."""
        ends = await self.tree.complete(node)
        if not self.agreement:
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
                for node, branch in zip(nodes, self._adopt(here, nodes), strict=True):
                    if branch.node is not node:
                        self.tree.prune(node)
                self._take_in(here)
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
        self._note(end)
        value, form = self._worth(end)
        if self.value == "both" and here is not self.root:
            value = self.mix * value + (1 - self.mix) * (here.node.score or 0.0)
        here.rollouts.append(Rollout(end.path()[here.node.depth :], value, form))
        if here.expanded:
            self._take_in(here)
        return self._land(flight, value, form)

    def _land(self, flight: Flight, value: float, form: str | None) -> bool:
        """Backs a value up."""
        self._take_back(flight)
        for branch in reversed(flight.path):
            self._count(branch, value, form)
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

    # ------------------------------------------------------------------------------------------------ the tree

    def _adopt(self, here: Branch, nodes: list[Node]) -> list[Branch]:
        """The branches of next steps: one for equal ones, with the priors that follow."""
        start = len(here.node.tokens)
        known = {child.node.tokens[start:]: child for child in here.children}
        adopted = []
        for node in nodes:
            assert node.parent is not None
            step = node.tokens[start:]
            if step not in known:
                known[step] = child = Branch(node, 0.0 if node.dead else node.score, solved=node.done or node.dead)
                here.children.append(child)
                self._note(node)
            tokens = node.sampled - node.parent.sampled
            mean = (node.logprob - node.parent.logprob) / max(1, tokens)
            known[step].weight += math.exp(mean) if math.isfinite(mean) else 0.0
            adopted.append(known[step])
        total = math.fsum(child.weight for child in here.children)
        for child in here.children:
            child.prior = child.weight / total if total > 0 else 1 / len(here.children)
        return adopted

    def _take_in(self, here: Branch) -> None:
        """Lets the rollouts that left the tree here go on into its children: each has visited one of them."""
        while here.rollouts:
            rollout = here.rollouts.pop(0)
            [child] = self._adopt(here, rollout.steps[:1])
            if child.node is not rollout.steps[0]:
                self.tree.visit(rollout.steps[0])
            self._count(child, rollout.value, rollout.form)
            if len(rollout.steps) > 1:
                child.rollouts.append(Rollout(rollout.steps[1:], rollout.value, rollout.form))
                if child.expanded:
                    self._take_in(child)
        here.solved = all(child.solved for child in here.children)

    def _count(self, branch: Branch, value: float, form: str | None) -> None:
        branch.visits += 1
        self.tree.visit(branch.node)
        if self.agreement:
            branch.answers[form] += 1
            branch.stamp = -1
        else:
            branch.total += value

    def _total(self, branch: Branch) -> float:
        """W. Agreement changes with every chain that finishes, so that it is counted again when it is looked at."""
        if self.agreement and branch.stamp != len(self.finished):
            branch.total = sum(n * self._confidence(form) for form, n in branch.answers.items())
            branch.stamp = len(self.finished)
        return branch.total

    def _note(self, node: Node) -> None:
        """Keeps the canonical answer of a complete chain."""
        if node.done and node not in self.finished:
            form = self.canonical(self.tree.trace.question, node.answer or "") if self.agreement else None
            self.finished[node] = form
            self.forms[form] += 1

    def _worth(self, node: Node) -> tuple[float, str | None]:
        """(value, answer) of the end of a path; where values are agreement they follow from the answer."""
        if node.dead or self.agreement:
            return 0.0, self.finished.get(node)
        return node.score or 0.0, None

    def _confidence(self, form: str | None) -> float:
        """The share of the other finished chains that give the same answer, as rStar (2408.06195) values its ends."""
        others = len(self.finished) - 1
        return (self.forms[form] - 1) / others if form is not None and others > 0 else 0.0

    # ------------------------------------------------------------------------------------------------ the answer

    async def answer(self, choose: Choose) -> Node | None:
        """The chain to answer with. The most visited path is completed first where no chain on it is."""
        here = self.root
        while any(child.visits for child in here.children):
            here = max(here.children, key=lambda child: (child.visits, self._total(child)))
        below = [leaf for leaf in self.finished if leaf.tokens[: len(here.node.tokens)] == here.node.tokens]
        if here.node.open and not below:
            below = [end for end in await self.tree.complete(here.node) if end.done]
            if not self.agreement:
                await self.tree.score(below)
            for leaf in below:
                self._note(leaf)
        self._mark()

        def value(leaf: Node) -> float:
            return self._confidence(self.finished[leaf]) if self.agreement else leaf.score or 0.0

        leaves = list(self.finished)
        if choose == "vote":
            return weighted_vote(self.tree.trace.question, leaves, value, self.canonical)
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
    best chain of the most visited path. `c` weighs exploration, for values in [0, 1]. `virtual_loss`: see
    `Search._preferred`; more of it keeps more simulations in the air and moves the answers further away from those of
    one at a time.
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
    search = Search(tree, canonical, select, value, c, expand, mix, overlap, virtual_loss)
    await search.run(budget.samples)
    return await tree.finish(await search.answer(choose))
