"""PPO's advantages and its critic: generalised advantage estimation, value targets, the clipped value loss.

Time counts *actions*, the tokens that the policy sampled (see `paths`): `values[k]` is V of the state before action k,
`rewards[k]` what action k earned. Forced tokens between two actions belong to the later one's state; no temporal
difference is taken over them.

Where a path ends (Schulman et al., arXiv 1506.02438, leave it open for finite episodes):

- at a terminal, after the sampled end token, nothing follows: `bootstrap=0`;
- where a chain was cut off there are two honest answers. If the limit is part of the task (the answer is wanted within
  so many tokens, which is what an evaluation counts), running into it *is* a terminal with reward 0: `bootstrap=0`. If
  it is the sampler's convenience, the chain would have gone on: `bootstrap=V(the whole path)`. The second never
  punishes a chain for being long, and a critic that believes in unfinished chains then confirms itself.

The recipe's default is the first, so that what is trained is what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mull.learn.advantages import EPSILON, constant
from mull.learn.labels import Label
from mull.learn.paths import Path
from mull.learn.values import Group, ValueBatch, ValueSample, forward, pack_values, to_device, tree_work
from mull.models.value import ValueModel


def gae(
    rewards: Sequence[float], values: Sequence[float], gamma: float = 1.0, lam: float = 1.0, bootstrap: float = 0.0
) -> list[float]:
    """A_k = sum_l (gamma lam)^l d_{k+l} with d_k = r_k + gamma V_{k+1} - V_k, V after the last being `bootstrap`
    (arXiv 1506.02438, equation 16). One entry per action. ValueError when the lists differ in length.

    lam=1: the discounted return minus V_k. lam=0: the one-step error d_k.

    >>> gae([0.0, 0.0, 1.0], [0.5, 0.25, 0.75])
    [0.5, 0.75, 0.25]
    >>> gae([0.0, 0.0, 1.0], [0.5, 0.25, 0.75], lam=0.0)
    [-0.25, 0.5, 0.25]
    """
    if len(rewards) != len(values):
        raise ValueError(f"{len(rewards)} rewards and {len(values)} values")
    out = [0.0] * len(rewards)
    after, carried = bootstrap, 0.0
    for k in reversed(range(len(rewards))):
        carried = rewards[k] + gamma * after - values[k] + gamma * lam * carried
        out[k], after = carried, values[k]
    return out


def returns(
    rewards: Sequence[float], values: Sequence[float], gamma: float = 1.0, lam: float = 1.0, bootstrap: float = 0.0
) -> list[float]:
    """What the critic should say of each state: GAE plus the value, TD(lam)'s target.

    `lam` need not be the policy's. With 1 the target is the discounted return itself and owes nothing to the critic's
    own errors (the decoupled GAE of VC-PPO, arXiv 2503.01491).
    """
    return [a + v for a, v in zip(gae(rewards, values, gamma, lam, bootstrap), values, strict=True)]


def whiten(advantages: Sequence[Sequence[float] | None]) -> list[list[float] | None]:
    """(A - mean) / (std + 1e-4) over all numbers of the batch; None stays None. Equal numbers become zeros.

    As in every PPO implementation, token by token, so that long chains weigh more in mean and std. Sample std. Give it
    the advantages of *actions*: zeros that only fill up a list would count.
    """
    flat = [a for values in advantages if values is not None for a in values]
    if constant(flat):
        return [None if values is None else [0.0] * len(values) for values in advantages]
    mean = math.fsum(flat) / len(flat)
    std = math.sqrt(math.fsum((a - mean) ** 2 for a in flat) / (len(flat) - 1))
    return [None if values is None else [(a - mean) / (std + EPSILON) for a in values] for values in advantages]


# ------------------------------------------------------------------------------------------------ the critic


def value_loss(values_N: Tensor, targets_N: Tensor, old_N: Tensor, denominator: float, clip: float = 0.2) -> Tensor:
    """1/2 max((V - R)^2, (clip(V, old - c, old + c) - R)^2), summed and divided by the states of the optimiser step.

    `old_N` are the values that the advantages were made with. The clip (PPO's code, not its paper) stops a state from
    moving further than c within one batch of rollouts: beyond, in the direction of the target, there is no gradient.
    clip=0: the plain squared error.
    """
    error_N = (values_N - targets_N).square()
    if clip > 0:
        bound_N = torch.clamp(values_N, old_N - clip, old_N + clip)
        error_N = torch.maximum(error_N, (bound_N - targets_N).square())
    return 0.5 * error_N.sum() / max(denominator, 1.0)


def explained_variance(values: Sequence[float], targets: Sequence[float]) -> float | None:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for one that knows the mean at best, negative for a worse one.
    None where the targets are all equal, so that there is nothing to explain.

    >>> explained_variance([0.0, 1.0], [0.0, 1.0]), explained_variance([0.5, 0.5], [0.0, 1.0])
    (1.0, 0.0)
    """
    if constant(targets):
        return None
    return 1.0 - _variance([r - v for v, r in zip(values, targets, strict=True)]) / _variance(targets)


def _variance(numbers: Sequence[float]) -> float:
    mean = math.fsum(numbers) / len(numbers)
    return math.fsum((x - mean) ** 2 for x in numbers) / len(numbers)


class StateBatch(NamedTuple):
    """One tree of a question's paths, and what reading it takes."""

    batch: ValueBatch
    paths: list[int]  # which of them, in order
    tokens: int  # padding not counted
    keys: int  # that these tokens attend to in all


def state_batches(paths: Sequence[Path], max_tokens: int) -> list[StateBatch]:
    """The states of one question's paths, as trees (see `values`), in order.

    `batch.at_N` runs through the paths and, in each, through `Path.states`: before every action, then the end. Labels
    are placeholders. Paths are split over several batches where they do not fit into `max_tokens` together; UserError
    when one alone does not. Paths without actions have no states and are in no batch.
    """
    parts: list[list[int]] = []
    room = 0
    for i, path in enumerate(paths):
        if not path.actions:
            continue
        new = len(path.tokens) - path.prompt
        if not parts or new > room:
            parts.append([])
            room = max_tokens - 8 - path.prompt  # `pack_values` rounds up to a multiple of 8
        parts[-1].append(i)
        room -= new
    out = []
    for part in parts:
        group: Group = tuple(ValueSample(paths[i].tokens, [Label(n, 0.0) for n in paths[i].states]) for i in part)
        [batch] = pack_values([group], max_tokens)
        out.append(StateBatch(batch, part, *tree_work(group)))
    return out


@torch.no_grad()
def read_values(model: ValueModel, paths: Sequence[Path], max_tokens: int) -> tuple[list[list[float]], int, int]:
    """(V at each of the `states` of each path, the tokens that were read for it, the keys that these attended to).

    The value is the head's number itself, without a sigmoid: returns may leave [0, 1], and the squared error wants no
    squashing. It starts near 0.
    """
    out: list[list[float]] = [[] for _ in paths]
    read = seen = 0
    for batch, part, tokens, keys in state_batches(paths, max_tokens):
        values = forward(model, to_device(batch, model.head.weight.device))[0].tolist()
        start = 0
        for i in part:
            n = len(paths[i].states)
            out[i], start = values[start : start + n], start + n
        read += tokens
        seen += keys
    return out, read, seen
