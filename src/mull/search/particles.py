"""Particle filtering: paths are drawn from the policy in proportion to what the scorer thinks of them.

Inference scaling by sequential Monte Carlo (Puri et al. 2502.01618). Its code (its_hub) weighs particles by the score
of the whole prefix after every step and draws them anew each time, so that a score that was good early is counted at
every step after it. Here a step's weight is what it changed, and the population is drawn anew only when it has to be
(Del Moral, Doucet & Jasra 2006; Douc & Cappé cs/0507025 on systematic resampling).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from mull.chat import Chat
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import UserError
from mull.ledger import Budget
from mull.scorers.base import Scorer
from mull.search.choose import Canonical, best, weighted_vote
from mull.search.node import LINES, Node, Steps
from mull.search.sample import ON_POLICY, Decoding
from mull.search.tree import Tree
from mull.types import Question, Trace

Potential = Literal["probability", "odds"]

CLIP = 1e-7  # of scores, as in its_hub: a step of score 0 makes its path unlikely, and a later step may redeem it
_RESAMPLE, _DRAW = -1, -2  # mark seeds that are not those of a node


async def particles(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    scorer: Scorer,
    canonical: Canonical,
    ess: float = 0.5,
    potential: Potential = "probability",
    score_temperature: float = 1.0,
    pick: Literal["vote", "argmax", "draw"] = "vote",
    steps: Steps = LINES,
) -> Trace:
    """`budget.samples` particles, which approximate the distribution over whole paths

        target(path) = policy(path) * phi(path) / Z,    Z = sum over paths of policy(path) * phi(path),

    where `policy` is what the tree samples from (the decoding given, thoughts closed by force at the budget), and phi
    is the score of the path clipped to [1e-7, 1] (`potential="probability"`), or its odds, s/(1-s), with s clipped to
    [1e-7, 1-1e-7] (`"odds"`, the paper's), to the power of 1/`score_temperature`. A path without an answer has phi 0.

    A step multiplies a particle's weight by phi(prefix with it) / phi(prefix before it); phi(the bare question) is 1.
    So the weights telescope: whatever was thought of the steps between, a path counts by its last score, once.
    Finished particles keep their weights and take part in resampling, which happens when the effective sample size,
    (sum w)^2 / sum w^2, is below `ess` * N (0: never; 1: whenever weights differ). `Trace.evidence` is the logarithm of
    an unbiased estimate of Z: the product over resampling rounds, and the end, of the mean weight. It is None where the
    budget, the sampler or the scorer gave out, -inf where every particle died of itself.

    The answer: `vote`, the one whose particles weigh most; `argmax`, the path of the highest potential among those that
    survive (the paper's; weights cannot say it, resampling makes them equal); `draw`, a particle by its weight, which
    is a sample from (an approximation of) the target.
    Results do not depend on what arrives first unless `budget.tokens` runs out during a round.
    """
    if not 0 <= ess <= 1:
        raise UserError(f"particles: ess={ess:g} is not a share of the particles: give a number from 0 to 1")
    if not score_temperature > 0:
        raise UserError(
            f"particles: score_temperature={score_temperature:g} is not above 0: 1 leaves scores as they are"
        )

    def log_phi(score: float) -> float:
        return log_potential(score, potential) / score_temperature

    tree = Tree("particles", question, sampler, chat, budget, decoding, seed, scorer, steps)
    cloud = await propagate(tree, max(1, budget.samples), log_phi, ess)
    masses = cloud.masses()
    survivors = [node for node in masses if node.done and masses[node] > 0]
    match pick:
        case "vote":
            chosen = weighted_vote(question, survivors, lambda leaf: masses[leaf], canonical)
        case "argmax":
            potentials = {p.node: p.log_phi for p in cloud.particles}
            chosen = best(survivors, lambda leaf: potentials[leaf])
        case "draw":
            chosen = draw(survivors, [masses[leaf] for leaf in survivors], derive_seed(seed, _DRAW))
    # Where those that survive had no tokens left to finish with, a path that lost its particles is better than none.
    chosen = chosen or best(tree.leaves, lambda leaf: leaf.score or 0.0)
    tree.trace.evidence = None if tree.trace.exhausted or cloud.broken else cloud.log_evidence
    return await tree.finish(chosen)


@dataclass(frozen=True)
class Particle:
    node: Node
    log_phi: float = 0.0  # log potential of the node's prefix
    log_weight: float = 0.0  # since the last resampling


@dataclass
class Cloud:
    """The population; `broken`: a particle was lost for a reason that the target knows nothing of."""

    particles: list[Particle]
    log_means: float = 0.0  # of the resampling rounds so far, summed
    broken: bool = False

    @property
    def open(self) -> bool:
        return any(p.node.open for p in self.particles)

    def weights(self) -> list[float]:
        """Relative to the largest, which is 1; all 0 where every particle is dead."""
        top = max(p.log_weight for p in self.particles)
        return [0.0 if top == -math.inf else math.exp(p.log_weight - top) for p in self.particles]

    @property
    def log_evidence(self) -> float:
        total = math.fsum(self.weights())
        top = max(p.log_weight for p in self.particles)
        return -math.inf if total == 0 else self.log_means + top + math.log(total / len(self.particles))

    @property
    def effective(self) -> float:
        """(sum w)^2 / sum w^2: how many equally weighted particles these are worth (Kong et al. 1994)."""
        weights = self.weights()
        return math.fsum(weights) ** 2 / math.fsum(w * w for w in weights)

    def masses(self) -> dict[Node, float]:
        """The share of the weight that stands on each node."""
        weights = self.weights()
        total = math.fsum(weights) or 1.0
        mass: dict[Node, float] = {}
        for p, weight in zip(self.particles, weights, strict=True):
            mass[p.node] = mass.get(p.node, 0.0) + weight / total
        return mass


async def propagate(tree: Tree, n: int, log_phi: Callable[[float], float], ess: float) -> Cloud:
    """`n` particles from the root of `tree` until none can go on. `log_phi` of a score is the log potential."""
    cloud = Cloud([Particle(tree.root)] * n)
    rng = random.Random(derive_seed(tree.seed, _RESAMPLE))
    while cloud.open:
        moved = await _move(tree, cloud)
        if not moved:
            break  # the budget is spent, or what was left of the cloud is lost
        answered = await tree.score([cloud.particles[i].node for i in moved if not cloud.particles[i].node.dead])
        cloud.broken |= not answered
        for i in moved:
            p = cloud.particles[i]
            if p.node.dead:
                cloud.particles[i] = replace(p, log_weight=-math.inf)
            elif answered:  # with no scorer the potential stays what it was: on from here it is plain sampling
                new = log_phi(p.node.score or 0.0)
                cloud.particles[i] = replace(p, log_phi=new, log_weight=p.log_weight + new - p.log_phi)
        if cloud.open and cloud.effective < ess * n * (1 - 1e-12):  # rounding does not make equal weights unequal
            _resample(tree, cloud, rng.random())
    for p in cloud.particles:
        tree.visit(p.node)
    if all(p.log_weight == -math.inf for p in cloud.particles):
        tree.lose("every particle died without an answer, so that all weights are 0")
    return cloud


async def _move(tree: Tree, cloud: Cloud) -> list[int]:
    """Takes every open particle a step on; returns the places of those that moved.

    Particles on one node go on as separate children of it, each with its own seed.
    """
    standing: dict[Node, list[int]] = {}
    for i, p in enumerate(cloud.particles):
        if p.node.open:
            standing.setdefault(p.node, []).append(i)
    grown = await together(tree.extend(node, len(places)) for node, places in standing.items())
    moved: list[int] = []
    for (node, places), children in zip(standing.items(), grown, strict=True):
        for i, child in zip(places, children, strict=False):
            tree.visit(node)
            cloud.particles[i] = replace(cloud.particles[i], node=child)
            moved.append(i)
        for i in places[len(children) :]:
            cloud.broken = True
            if node.dead:
                cloud.particles[i] = replace(cloud.particles[i], log_weight=-math.inf)
    return sorted(moved)


def _resample(tree: Tree, cloud: Cloud, u: float) -> None:
    """Particles in numbers proportional to their weights, which are equal from then on."""
    counts = systematic(cloud.weights(), len(cloud.particles), u)
    cloud.log_means = cloud.log_evidence
    before = {p.node for p in cloud.particles}
    cloud.particles = [
        replace(p, log_weight=0.0) for p, count in zip(cloud.particles, counts, strict=True) for _ in range(count)
    ]
    for node in before - {p.node for p in cloud.particles}:
        tree.prune(node)


def systematic(weights: Sequence[float], n: int, u: float) -> list[int]:
    """How many of `n` copies each weight gets: as many as points (u + k) / n, k < n, fall into its part of [0, 1).

    Each count is n times its share rounded down or up, and equals it in the mean over u, which is uniform in [0, 1).
    A weight of 0 gets none. The weights need not sum to 1, but must not all be 0.
    """
    sums = list(accumulate(weights))
    ends = [n * end / sums[-1] for end in sums]
    last = max(i for i, weight in enumerate(weights) if weight > 0)
    ends[last:] = [float(n)] * (len(ends) - last)  # rounding must neither lose a copy nor give one to a weight of 0
    points = [math.floor(end) + (end - math.floor(end) > u) for end in ends]  # not ceil(end - u): that rounds
    return [point - before for point, before in zip(points, [0, *points], strict=False)]


def draw(nodes: Sequence[Node], weights: Sequence[float], seed: int) -> Node | None:
    """One of them by its weight; None of none."""
    return random.Random(seed).choices(nodes, weights)[0] if nodes else None


def log_potential(score: float, potential: Potential) -> float:
    """log phi of a score in [0, 1], at score temperature 1."""
    if potential == "probability":
        return math.log(min(max(score, CLIP), 1.0))
    clipped = min(max(score, CLIP), 1 - CLIP)
    return math.log(clipped) - math.log1p(-clipped)
