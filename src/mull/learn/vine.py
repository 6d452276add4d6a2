"""VinePPO (Kazemnejad et al., arXiv 2410.01679): the value of a state is sampled, not learnt.

V of a step's boundary is the mean outcome of K fresh continuations from it, drawn by the policy itself. All tokens of
a step share one advantage, V(end of the step) - V(start), and the last step's is R - V(start): GAE with lambda 0 and
gamma 1 over steps. Fresh: no estimate uses the chain's own ending, so given the start of a step what is subtracted does
not depend on the step, and the estimate is unbiased for every K, 1 included (a test enumerates a tree).

Departure: chains of one question that begin alike share the estimate of what they share. It is drawn once for all
prefixes that are equal, the question among them. That correlates their noise and biases nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mull.learn.labels import Chain, Complete, Estimated, Label, rollout_labels
from mull.learn.paths import Path


async def boundary_values(chain: Chain, complete: Complete, k: int) -> Estimated:
    """V at the question and at every step's end inside the chain, by `k` completions each, in order.

    A boundary of whose completions none could be judged is left out: the steps on its two sides become one.
    """
    asked = await complete(chain.tokens[: chain.prompt], k)
    known = [v for v in asked[0] if v is not None]
    inner = await rollout_labels(replace(chain, correct=None), complete, k)  # the chain's own end needs no sampling
    start = [Label(chain.prompt, sum(known) / len(known))] if known else []
    return Estimated([*start, *inner.labels], asked[1] + inner.cost, len(asked[0]) + inner.rollouts)


def step_advantages(path: Path, values: Sequence[Label], outcome: float) -> list[float] | None:
    """One advantage per action. None when the first action's state has no value to start from.

    `values` ascend; an action belongs to the step between the last boundary at or before it and the next one.
    """
    if not path.actions or not values or values[0].end > path.actions[0]:
        return None
    bounds = [*values, Label(len(path.tokens), outcome)]
    out, step = [], 0
    for at in path.actions:
        while bounds[step + 1].end <= at:
            step += 1
        out.append(bounds[step + 1].value - bounds[step].value)
    return out
