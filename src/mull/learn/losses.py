"""Losses: pure functions of one `Batch` and the new log-probabilities.

    per-token loss (which objective)  ->  aggregation (how tokens are averaged)  ->  scalar

Every function of the first kind returns `loss_BT`, zero outside its tokens. Every aggregation is linear in the rows
and divides by the counts of the whole optimiser step (`batch.denominator`, `batch.sequences`), so the losses of the
micro-batches of a step add up to the loss of the step, and so do their gradients.

    | name      | advantages                      | policy                         | aggregation                       |
    |-----------|---------------------------------|--------------------------------|-----------------------------------|
    | default   | mean_centred                    | truncated_ratio                | token_mean                        |
    | GRPO      | grpo                            | ppo_clip                       | sequence_mean, kl_to_reference    |
    | DAPO      | grpo, overlong_penalty          | partial(ppo_clip, high=0.28)   | token_mean                        |
    | Dr.GRPO   | mean_centred                    | ppo_clip                       | partial(constant_length, length=L)|
    | GSPO      | grpo                            | gspo                           | sequence_mean                     |
    | CISPO     | grpo                            | cispo                          | token_mean                        |

The anchor of every ratio is the *sampler's* log-probability (`batch.logprobs_BT`), not one that the trainer computed
again: where the two differ (another kernel, another precision, a stale policy) the ratio then corrects for it.

Departure: DAPO's paper takes the token mean within each group, here it is over the whole step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mull.learn.logprobs import chunked_logprobs, logprobs_from_logits
from mull.types import Batch

__all__ = [
    "chunked_logprobs",
    "cispo",
    "constant_length",
    "cross_entropy",
    "gspo",
    "kl_to_reference",
    "log_ratio",
    "logprobs_from_logits",
    "loss",
    "ppo_clip",
    "sequence_mean",
    "summarise",
    "token_mean",
    "truncated_ratio",
]

PolicyLoss = Callable[[Batch, Tensor], tuple[Tensor, Tensor]]  # -> loss_BT, clipped_BT
Aggregate = Callable[[Tensor, Batch], Tensor]
Diagnostics = dict[str, Tensor]


# ------------------------------------------------------------------------------------------ policy gradient


def log_ratio(batch: Batch, logprobs_new_BT: Tensor) -> Tensor:
    """log(pi_new / pi_sampler) per token, zero outside the mask whatever stands there (NaN too)."""
    return torch.where(batch.mask_BT, logprobs_new_BT - batch.logprobs_BT, 0.0)


def truncated_ratio(batch: Batch, logprobs_new_BT: Tensor, cap: float = 2.0) -> tuple[Tensor, Tensor]:
    """-sg(min(r, cap)) A log pi: importance-weighted REINFORCE with truncated weights. The default.

    The weight is IMPALA's truncated rho (arXiv 1802.01561) per token, with the cap of 2 that TIS uses against the
    mismatch of trainer and sampler. The weight is a constant to the gradient: no token ever stops learning, which
    PPO's clip makes tokens do, and no weight exceeds the cap. On-policy it is plain REINFORCE. `clipped`: r > cap.
    """
    return cispo(batch, logprobs_new_BT, cap=cap)


def cispo(batch: Batch, logprobs_new_BT: Tensor, floor: float = 0.0, cap: float = 5.0) -> tuple[Tensor, Tensor]:
    """-sg(clip(r, floor, cap)) A log pi: CISPO (MiniMax-M1, arXiv 2506.13585).

    The paper bounds the weight from above only, and so do the defaults; 5 is the cap in TRL's recipe for ScaleRL.
    `clipped`: weight not the ratio itself.
    """
    lr_BT = log_ratio(batch, logprobs_new_BT).detach()
    low = math.log(floor) if floor > 0 else -math.inf
    weight_BT = lr_BT.clamp(low, math.log(cap)).exp()
    new_BT = torch.where(batch.mask_BT, logprobs_new_BT, 0.0)
    clipped_BT = (lr_BT > math.log(cap)) | (lr_BT < low)
    return -weight_BT * batch.advantages_BT * new_BT, clipped_BT


def ppo_clip(batch: Batch, logprobs_new_BT: Tensor, low: float = 0.2, high: float = 0.2) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - low, 1 + high) A): PPO (arXiv 1707.06347), as in GRPO. DAPO's clip-higher: high=0.28.

    `clipped`: tokens whose gradient the clip removed. Without an upper bound for A < 0 (no dual clip).
    """
    ratio_BT = log_ratio(batch, logprobs_new_BT).exp()
    return _clipped(ratio_BT, batch.advantages_BT, low, high)


def gspo(batch: Batch, logprobs_new_BT: Tensor, low: float = 3e-4, high: float = 4e-4) -> tuple[Tensor, Tensor]:
    """PPO's clip with one ratio per sequence, exp(mean_t log r_t): GSPO (arXiv 2507.18071), with its clip range.

    In the paper's token form (GSPO-token): s = sg(s_sequence) pi / sg(pi), which has the sequence form's value, and
    under `sequence_mean` its gradient. In a tree of thought the mean is over the tokens that this row trains on.
    """
    lr_BT = log_ratio(batch, logprobs_new_BT)
    count_B1 = batch.mask_BT.sum(-1, keepdim=True).clamp_min(1)
    mean_B1 = lr_BT.sum(-1, keepdim=True) / count_B1
    ratio_BT = (mean_B1.detach() + lr_BT - lr_BT.detach()).exp()
    loss_BT, clipped_BT = _clipped(ratio_BT, batch.advantages_BT, low, high)
    return loss_BT, clipped_BT & batch.mask_BT


def _clipped(ratio_BT: Tensor, advantages_BT: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    free_BT = ratio_BT * advantages_BT
    bound_BT = ratio_BT.clamp(1.0 - low, 1.0 + high) * advantages_BT
    return -torch.minimum(free_BT, bound_BT), bound_BT < free_BT


# ------------------------------------------------------------------------------------------ other streams


def kl_to_reference(batch: Batch, logprobs_new_BT: Tensor, unbiased: bool = False) -> Tensor:
    """KL(pi || reference) per token of the mask: k3 = q - log q - 1 with q = pi_ref / pi.

    k3's value is unbiased on-policy, its gradient is not (GRPO's form). `unbiased=True` multiplies by the ratio
    pi / pi_sampler, with gradient, which makes it so, off-policy too (DeepSeek-V3.2).
    """
    if batch.ref_logprobs_BT is None:
        raise ValueError("the batch has no reference log-probabilities: compute them before asking for a KL")
    log_q_BT = torch.where(batch.mask_BT, batch.ref_logprobs_BT - logprobs_new_BT, 0.0)
    k3_BT = torch.expm1(log_q_BT) - log_q_BT
    return k3_BT * log_ratio(batch, logprobs_new_BT).exp() if unbiased else k3_BT


def cross_entropy(batch: Batch, logprobs_new_BT: Tensor) -> Tensor:
    """-weight log pi per token: demonstrations. Mind that SFT wants temperature 1, which is `Sample`'s default."""
    return -batch.ce_BT * torch.where(batch.ce_BT != 0, logprobs_new_BT, 0.0)


# ------------------------------------------------------------------------------------------ aggregation


def token_mean(loss_BT: Tensor, batch: Batch) -> Tensor:
    """Every counted token of the optimiser step weighs the same (DAPO). The default."""
    return loss_BT.sum() / batch.denominator


def sequence_mean(loss_BT: Tensor, batch: Batch) -> Tensor:
    """Every sequence weighs the same, its tokens share that (GRPO). Biased in length: a token of a short right
    answer weighs more than one of a long right answer, and a long wrong answer is punished less per token."""
    count_B = (batch.mask_BT | (batch.ce_BT != 0)).sum(-1).clamp_min(1)
    return (loss_BT.sum(-1) / count_B).sum() / batch.sequences


def constant_length(loss_BT: Tensor, batch: Batch, length: int) -> Tensor:
    """Sum over tokens, divided by a constant `length` (the longest allowed rollout) per sequence: Dr.GRPO."""
    return loss_BT.sum() / (length * batch.sequences)


# ------------------------------------------------------------------------------------------ together


def loss(
    batch: Batch,
    logprobs_new_BT: Tensor,
    *,
    policy: PolicyLoss = truncated_ratio,
    aggregate: Aggregate = token_mean,
    kl_weight: float = 0.0,
    kl: Callable[[Batch, Tensor], Tensor] = kl_to_reference,
    entropy_BT: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """The loss of one micro-batch, and its diagnostics as detached sums (see `summarise`).

    Options of a policy loss or an aggregation are bound with `functools.partial`. ValueError when a sampler
    log-probability in the mask is missing (NaN): there is no honest default.
    """
    if not bool((torch.isfinite(batch.logprobs_BT) | ~batch.mask_BT).all()):
        raise ValueError("a trained token has no finite sampler log-probability")
    policy_BT, clipped_BT = policy(batch, logprobs_new_BT)
    parts = {
        "loss_policy": aggregate(policy_BT, batch),
        "loss_ce": aggregate(cross_entropy(batch, logprobs_new_BT), batch),
    }
    if kl_weight:
        parts["loss_kl"] = kl_weight * aggregate(kl(batch, logprobs_new_BT), batch)
    total = torch.stack(list(parts.values())).sum()
    with torch.no_grad():
        lr_BT = log_ratio(batch, logprobs_new_BT).clamp(-30.0, 30.0)  # so that no diagnostic overflows
        ratio_BT = torch.where(batch.mask_BT, lr_BT.exp(), 0.0)
        diagnostics: Diagnostics = {name: part.detach() for name, part in parts.items()}
        diagnostics |= {
            "policy_tokens": batch.mask_BT.sum(),
            "ratio": ratio_BT.sum(),
            "exp_abs_gap": torch.where(batch.mask_BT, lr_BT.abs().exp(), 0.0).sum(),
            "kl_sampler": torch.where(batch.mask_BT, ratio_BT - 1.0 - lr_BT, 0.0).sum(),
            "clipped": clipped_BT.sum(),
            "max_ratio": ratio_BT.max(),
        }
        if entropy_BT is not None:
            diagnostics["entropy"] = torch.where(batch.mask_BT, entropy_BT, 0.0).sum()
    return total, diagnostics


def summarise(micro_batches: Sequence[Diagnostics]) -> dict[str, float]:
    """The diagnostics of a whole step: losses and counts add up, `max_` takes the maximum, the rest are means over
    the policy's tokens (`ratio` must be 1 on the first step after sampling; `exp_abs_gap` is mean exp|new - sampler|,
    `kl_sampler` the k3 estimate of KL(sampler || new), `clipped` a fraction). Empty for no micro-batches."""
    if not micro_batches:
        return {}
    tokens = max(sum(float(d["policy_tokens"]) for d in micro_batches), 1.0)
    out: dict[str, float] = {}
    for name in micro_batches[0]:
        values = [float(d[name]) for d in micro_batches]
        if name.startswith("max_"):
            out[name] = max(values)
        else:
            total = math.fsum(values)
            out[name] = total if name.startswith("loss_") or name == "policy_tokens" else total / tokens
    return out
