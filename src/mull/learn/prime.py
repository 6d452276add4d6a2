"""PRIME (Cui et al., arXiv 2502.01456): a process reward that is learnt from outcomes alone, while the policy learns.

A language model phi is trained so that beta log(phi / reference), summed over a chain, is the logit of its being right.
Every token's own term is then its reward. Nobody labels steps, and phi follows the policy's chains as they change.

    reward of token t       r_t = beta (log phi_t - log reference_t)
    loss of phi             cross-entropy of sigmoid(sum_t r_t) against the outcome
    advantage of token t    sum_{s >= t} gamma^(s-t) (r_s - b)  +  R - mean of the others' R
                            b = mean over the *other* chains of their mean r

Where the paper leaves room:
- its formula writes r(y_j) in the baseline, which elsewhere is the sum over the chain; its text says "averaged implicit
  process rewards". Per token it must be the mean over tokens, and so it is here;
- its code computes r_t G/(G-1) - sum of all means/(G-1), which equals the formula only if r_t is its own chain's mean.
  Here it is the formula's leave-one-out;
- subtracted from every token, the baseline is paid once for each token that is still to come. If chains differ in
  length, so do those sums: after whitening (the recipe's, as in their code) the bias is bounded, not gone;
- outcomes are not discounted, in the formula as here;
- rewards are taken before phi learns from the same chains (their code's default, one forward pass the fewer). At first
  phi is the reference: process rewards are zero, and the method is RLOO.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mull.learn.advantages import Rewards, rloo, scorable
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack, to_device
from mull.learn.paths import Path
from mull.models.transformer import Transformer
from mull.types import Batch, Sample


def keeps(outcomes: Rewards, low: float = 0.2, high: float = 0.8) -> bool:
    """Whether a question is neither too hard nor too easy: its share of right answers lies in [low, high]. Online
    prompt filtering; chains that could not be judged do not count, and a question without a judged one is dropped. A
    chain is right whose reward is above 0, whatever it lost for its length."""
    known = scorable(outcomes)
    return bool(known) and low <= sum(r > 0 for r in known) / len(known) <= high


def token_rewards(logprobs: Sequence[float], reference: Sequence[float], beta: float) -> list[float]:
    """beta (log phi - log reference), one for each action."""
    return [beta * (p - q) for p, q in zip(logprobs, reference, strict=True)]


def outcome_loss(logits_S: Tensor, outcomes_S: Tensor, denominator: float) -> Tensor:
    """Cross-entropy of sigmoid(sum of a chain's rewards), S chains, against outcomes in [0, 1]; summed and divided by
    the chains of the whole optimiser step."""
    return F.binary_cross_entropy_with_logits(logits_S, outcomes_S, reduction="sum") / max(denominator, 1.0)


def advantages(
    process: Sequence[Sequence[float]],
    outcomes: Rewards,
    process_weight: float = 1.0,
    outcome_weight: float = 1.0,
    gamma: float = 1.0,
) -> list[list[float] | None]:
    """One advantage per action of every chain of one group; None where the outcome is None.

    A chain that could not be judged enters no baseline. The only judged chain of a group has no others to be compared
    with, and gets zeros.
    """
    outcome = rloo(outcomes)
    means = [
        math.fsum(rewards) / len(rewards) if r is not None and len(rewards) else None
        for rewards, r in zip(process, outcomes, strict=True)
    ]
    out: list[list[float] | None] = []
    for i, (rewards, own) in enumerate(zip(process, outcome, strict=True)):
        if own is None:
            out.append(None)
            continue
        others = [m for j, m in enumerate(means) if j != i and m is not None]
        if not others:
            out.append([0.0] * len(rewards))
            continue
        baseline, to_go, values = math.fsum(others) / len(others), 0.0, []
        for reward in reversed(rewards):
            to_go = reward - baseline + gamma * to_go
            values.append(process_weight * to_go + outcome_weight * own)
        out.append(values[::-1])
    return out


# ------------------------------------------------------------------------------------- reading phi and reference


def chain_sample(path: Path) -> Sample:
    """All actions of a chain, to be read by phi and by the reference, both at temperature 1 over every token."""
    zeros, actions = [0.0] * len(path.tokens), set(path.actions)
    return Sample(path.tokens, zeros, [at in actions for at in range(len(zeros))], zeros)


def chain_batches(chains: Sequence[Sample], max_tokens: int) -> list[tuple[Batch, list[int]]]:
    """(batch, which chain each of its rows is). Chains without an action are in none."""
    order = sorted((i for i, c in enumerate(chains) if any(c.mask)), key=lambda i: -len(chains[i].tokens))  # as `pack`
    out, start = [], 0
    for batch in pack(chains, max_tokens):
        rows = len(batch.tokens_BT)
        out.append((batch, order[start : start + rows]))
        start += rows
    return out


@torch.no_grad()
def action_logprobs(model: Transformer, chains: Sequence[Sample], max_tokens: int) -> list[list[float]]:
    """The log-probability of every action of every chain, in order."""
    out: list[list[float]] = [[] for _ in chains]
    for batch, which in chain_batches(chains, max_tokens):
        batch = to_device(batch, model.device)
        logprobs_BT, _ = batch_logprobs(model, batch)
        for row, i in enumerate(which):
            out[i] = logprobs_BT[row][batch.mask_BT[row]].tolist()
    return out
