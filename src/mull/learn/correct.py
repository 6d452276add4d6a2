"""Learning to correct oneself: SCoRe (Kumar et al. 2024, arXiv 2409.12917), as pure functions.

A chain has two turns: a first attempt y1, a fixed instruction, a second attempt y2. Rewards r1 and r2 are the graders'.

    stage I    max  r2             - beta2 KL(first turn)  - beta1 KL(both turns)
    stage II   max  r1 + r2        - beta1 KL(both turns), with a bonus alpha (r2 - r1) on the second turn

Stage I moves the second attempt away from the first while the first stays what it was; stage II trains both. The KL is
to the starting model.

Which turn's tokens earn what (`credit`), of which the paper says only that the bonus is the second attempt's:

    own      y1 earns r1 (nothing in stage I)
    sum      y1 earns what follows from it, too: r1 + r2 (r2 in stage I). The gradient of the stated objectives.
    shaped   and the bonus: r1 + r2 + alpha (r2 - r1). Where alpha > 1 it pays to be wrong first, and right then.

With `own` and `sum` the bonus does less than it seems to: given y1, alpha r1 is a constant, so on the second turn's
tokens it has no gradient in expectation, and the bonus only makes r2 weigh 1 + alpha times as much there. A test says
so exactly. What it does add is noise, unless the baseline takes it away (`baseline="attempt"`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch

from mull.learn.advantages import Rewards, mean_centred
from mull.learn.losses import kl_to_reference
from mull.learn.samples import from_rollouts, supervised
from mull.types import Batch, Sample, Span, SpanKind, Trace

Credit = Literal["own", "sum", "shaped"]
Baseline = Literal["group", "attempt"]
Stage = Literal[1, 2]
Pair = tuple[float, float]


def turn_rewards(
    first: Rewards, second: Rewards, stage: Stage, alpha: float = 10.0, credit: Credit = "sum"
) -> list[Pair | None]:
    """(what the first turn's tokens earn, what the second's do) for each chain; None where either cannot be judged.

    >>> turn_rewards([0.0, 1.0], [1.0, 0.0], stage=2, alpha=10)
    [(1.0, 11.0), (1.0, -10.0)]
    >>> turn_rewards([0.0, 1.0], [1.0, 0.0], stage=2, alpha=10, credit="own")
    [(0.0, 11.0), (1.0, -10.0)]
    >>> turn_rewards([0.0, None], [1.0, 1.0], stage=1)
    [(1.0, 1.0), None]
    """
    out: list[Pair | None] = []
    for r1, r2 in zip(first, second, strict=True):
        if r1 is None or r2 is None:
            out.append(None)
            continue
        own = 0.0 if stage == 1 else r1
        bonus = 0.0 if stage == 1 else alpha * (r2 - r1)
        out.append((own + {"own": 0.0, "sum": r2, "shaped": r2 + bonus}[credit], r2 + bonus))
    return out


def turn_advantages(
    first: Rewards,
    second: Rewards,
    stage: Stage,
    alpha: float = 10.0,
    credit: Credit = "sum",
    baseline: Baseline = "group",
) -> list[Pair | None]:
    """Each turn's rewards minus their mean over the group.

    `baseline="attempt"`: the second turn's mean is over the chains whose first attempt earned the same. A second
    attempt has seen the first, so its baseline may depend on it; what is left has no noise from alpha r1. (A chain
    without such company gets zero on its second turn.)
    """
    paid = turn_rewards(first, second, stage, alpha, credit)
    ones = mean_centred([None if p is None else p[0] for p in paid])
    earned = [None if p is None else p[1] for p in paid]
    if baseline == "group":
        twos = mean_centred(earned)
    else:
        twos = list[float | None]([None] * len(earned))
        for value in dict.fromkeys(first):
            alike = [i for i, r1 in enumerate(first) if r1 == value]
            for i, advantage in zip(alike, mean_centred([earned[i] for i in alike]), strict=True):
                twos[i] = advantage
    return [None if a is None or b is None else (a, b) for a, b in zip(ones, twos, strict=True)]


def kl_weights(stage: Stage, beta1: float, beta2: float) -> Pair:
    """The KL's weight on the tokens of the first turn and of the second."""
    return (beta1 + beta2, beta1) if stage == 1 else (beta1, beta1)


# ------------------------------------------------------------------------------------------------ samples


def turns_of(mask: Sequence[bool]) -> list[int]:
    """The turn that each token was sampled in, 0 for the others: runs of the mask, which the instruction separates.

    >>> turns_of([False, True, True, False, True])
    [0, 1, 1, 0, 2]
    """
    out, turn = [], 0
    for before, now in pairwise([False, *mask]):
        turn += now and not before
        out.append(turn if now else 0)
    return out


def to_samples(trace: Trace, advantages: Sequence[Pair | None], group: int = 0) -> list[Sample]:
    """One sample for each chain of a `two_turns` trace: both turns' own tokens, with their turn's advantage.

    The tokens are the chain's path as it was sampled. The instruction and the prompt have a mask of False.
    """
    chosen = [flag for pair in advantages for flag in (None, None if pair is None else 1.0)]
    weights = [pair for pair in advantages if pair is not None]
    out = []
    for sample, pair in zip(from_rollouts([trace], chosen, group), weights, strict=True):
        by_turn = (0.0, *pair)
        out.append(replace(sample, advantages=[by_turn[turn] for turn in turns_of(sample.mask)]))
    return out


def corrections(trace: Trace, rewards: Sequence[float | None], group: int = 0) -> list[Sample]:
    """STaR for two turns: the second attempts that were right after a first one that was wrong, as demonstrations.

    `rewards` has an entry per leaf. The first attempt is context: learning it would teach the mistake.
    """
    out = []
    for i, leaf in enumerate(trace.leaves[1::2]):
        if rewards[2 * i] == 0 and rewards[2 * i + 1] == 1:
            *context, second = trace.path(leaf)
            out.append(supervised([token for span in context for token in span.tokens], second.tokens, group=group))
    return out


def pairs(trace: Trace, rewards: Sequence[float | None], between: Sequence[Sequence[int]], group: int = 0):
    """Pair-SFT (after Welleck et al. 2022, arXiv 2211.00053): wrong attempts, each with a right one of another chain
    put behind it as if it were its correction.

    `trace` has one attempt a leaf; `between[i]` is what stands between leaf i and a second turn. Every attempt is used
    at most once.
    """
    wrong = [i for i, r in enumerate(rewards) if r == 0]
    right = [i for i, r in enumerate(rewards) if r == 1]
    out: list[Sample] = []
    for bad, good in zip(wrong, right, strict=False):
        context = [token for span in trace.path(trace.leaves[bad]) for token in span.tokens]
        target = _own(trace.path(trace.leaves[good]))
        out.append(supervised([*context, *between[bad]], target, group=group))
    return out


def _own(path: Sequence[Span]) -> list[int]:
    return [token for span in path if span.kind is not SpanKind.PROMPT for token in span.tokens]


# ----------------------------------------------------------------------------------------------------- KL


def turn_kl(batch: Batch, logprobs_new_BT: torch.Tensor, weights: Pair) -> torch.Tensor:
    """KL(pi || reference) per token [B, T], times the weight of the token's turn: for `losses.loss(kl=…)`.

    The form whose gradient is that of the reverse KL, which is the paper's (`kl_to_reference(unbiased=True)`).
    """
    mask_BT = batch.mask_BT
    begins_BT = mask_BT & ~torch.nn.functional.pad(mask_BT, (1, 0))[:, :-1]
    second_BT = begins_BT.cumsum(-1) >= 2
    weight_BT = torch.where(second_BT, weights[1], weights[0])
    return weight_BT * kl_to_reference(batch, logprobs_new_BT, unbiased=True)
