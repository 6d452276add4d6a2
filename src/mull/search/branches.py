"""The tree of a Monte-Carlo tree search: which steps are one branch, what each is worth, which one to prefer."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from mull.search.choose import Canonical
from mull.search.node import Node
from mull.search.tree import Tree

Select = Literal["puct", "uct"]

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


@dataclass(eq=False)
class Statistics:
    """What a search has learnt about its branches: N, W and priors, and the finished chains.

    Where the tree has no scorer, a chain's value is the share of the other finished chains that agree with it.
    """

    tree: Tree
    canonical: Canonical
    select: Select = "puct"
    c: float = 1.0
    virtual_loss: float = 0.1
    finished: dict[Node, str | None] = field(default_factory=dict)  # complete chains and their canonical answers

    def __post_init__(self):
        self.agreement = self.tree.scorer is None
        self.forms: Counter[str | None] = Counter()  # of the finished chains

    def preferred(self, here: Branch) -> Branch:
        """The child with the highest UCT or PUCT; of equals the first.

        UCT = Q + c sqrt(ln N_parent / N), first every child once. PUCT = Q + c P sqrt(N_parent) / (1 + N). A child that
        was never visited counts as visited once with its scorer's value; where there is none PUCT takes its parent's Q.
        Other simulations on their way count in every N, as in WU-UCT (Liu et al. 1810.11755), and in Q as
        `virtual_loss` visits of value 0 each.
        """
        puct = self.select == "puct"
        above = max(1, here.visits + here.flying - 1)
        unit = self.c * math.sqrt(above if puct else math.log(above))
        unknown = self.total(here) / here.visits if here.visits else 0.0
        chosen, highest = here.children[0], -math.inf
        for child in here.children:
            gain, seen, flying = 0.0, child.visits, child.flying
            if seen:
                gain = self.total(child)
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

    def adopt(self, here: Branch, nodes: list[Node]) -> list[Branch]:
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
                self.note(node)
            tokens = node.sampled - node.parent.sampled
            mean = (node.logprob - node.parent.logprob) / max(1, tokens)
            known[step].weight += math.exp(mean) if math.isfinite(mean) else 0.0
            adopted.append(known[step])
        total = math.fsum(child.weight for child in here.children)
        for child in here.children:
            child.prior = child.weight / total if total > 0 else 1 / len(here.children)
        return adopted

    def take_in(self, here: Branch) -> None:
        """Lets the rollouts that left the tree here go on into its children: each has visited one of them."""
        while here.rollouts:
            rollout = here.rollouts.pop(0)
            [child] = self.adopt(here, rollout.steps[:1])
            if child.node is not rollout.steps[0]:
                self.tree.visit(rollout.steps[0])
            self.count(child, rollout.value, rollout.form)
            if len(rollout.steps) > 1:
                child.rollouts.append(Rollout(rollout.steps[1:], rollout.value, rollout.form))
                if child.expanded:
                    self.take_in(child)
        here.solved = all(child.solved for child in here.children)

    def count(self, branch: Branch, value: float, form: str | None) -> None:
        branch.visits += 1
        self.tree.visit(branch.node)
        if self.agreement:
            branch.answers[form] += 1
            branch.stamp = -1
        else:
            branch.total += value

    def total(self, branch: Branch) -> float:
        """W. Agreement changes with every chain that finishes, so that it is counted again when it is looked at."""
        if self.agreement and branch.stamp != len(self.finished):
            branch.total = sum(n * self.confidence(form) for form, n in branch.answers.items())
            branch.stamp = len(self.finished)
        return branch.total

    def note(self, node: Node) -> None:
        """Keeps the canonical answer of a complete chain."""
        if node.done and node not in self.finished:
            form = self.canonical(self.tree.trace.question, node.answer or "") if self.agreement else None
            self.finished[node] = form
            self.forms[form] += 1

    def worth(self, node: Node) -> tuple[float, str | None]:
        """(value, answer) of the end of a path; where values are agreement they follow from the answer."""
        if node.dead or self.agreement:
            return 0.0, self.finished.get(node)
        return node.score or 0.0, None

    def confidence(self, form: str | None) -> float:
        """The share of the other finished chains that give the same answer, as rStar (2408.06195) values its ends."""
        others = len(self.finished) - 1
        return (self.forms[form] - 1) / others if form is not None and others > 0 else 0.0
