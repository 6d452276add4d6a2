"""From logits to tokens, with the log-probabilities of exactly the distribution that was sampled.

Randomness is a function of (request seed, step in the completion) alone, so a request draws the same numbers
whatever shares its batch. Tokens come from the inverse of the cumulative distribution at that number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch


def uniforms(seed_R: np.ndarray, step_R: np.ndarray) -> np.ndarray:
    """One number in [0, 1) per row from uint64 seeds and step indices (splitmix64 as a counter-based generator)."""
    with np.errstate(over="ignore"):
        x = seed_R.astype(np.uint64) + (step_R.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


Bans = dict[tuple[int, ...], np.ndarray]  # after these tokens, none of those


def bans_of(sequences: Sequence[tuple[int, ...]]) -> Bans:
    """Banned sequences by all their tokens but the last."""
    last: dict[tuple[int, ...], set[int]] = {}
    for sequence in sequences:
        last.setdefault(sequence[:-1], set()).add(sequence[-1])
    return {context: np.array(sorted(ids), np.int64) for context, ids in last.items()}


def banned_next(bans: Bans, tokens: np.ndarray) -> np.ndarray:
    """The ids that must not follow `tokens`."""
    found = [ids for context, ids in bans.items() if not context or tuple(tokens[-len(context) :]) == context]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


@dataclass
class Drawn:
    tokens_R: np.ndarray  # int64
    logprobs_R: np.ndarray  # float32, under the distribution that was sampled (temperature 1 for greedy rows)
    kept_R: list[np.ndarray | None]  # ids that survived bans, top-p and top-k; None where the support was full


def draw(
    logits_RV: torch.Tensor,
    temperature_R: np.ndarray,
    top_p_R: np.ndarray,
    top_k_R: np.ndarray,
    uniform_R: np.ndarray,
    banned: Mapping[int, np.ndarray] | None = None,
) -> Drawn:
    """Samples one token per row of float32 logits; temperature 0 is greedy. Logits of -inf are never drawn.

    `banned`: by row, ids that it may not draw. They are gone before temperature, top-k and top-p look at the row, for
    greedy rows as well.

    FloatingPointError when a row has no distribution (NaN, +inf, or -inf everywhere).
    """
    device = logits_RV.device
    greedy_R = temperature_R == 0
    if (temperature_R != 1).any():
        divisor = torch.from_numpy(np.where(greedy_R, 1.0, temperature_R).astype(np.float32)).to(device)
        logits_RV = logits_RV / divisor[:, None]
    kept_R: list[np.ndarray | None] = [None] * len(temperature_R)
    if banned:
        logits_RV = logits_RV.clone()
        for r, ids in banned.items():
            logits_RV[r, torch.from_numpy(ids).to(device)] = -torch.inf
            kept_R[r] = np.flatnonzero((logits_RV[r] > -torch.inf).cpu().numpy()).astype(np.int32)
    limited = np.flatnonzero(((top_p_R < 1) | (top_k_R > 0)) & ~greedy_R)
    if len(limited):
        index = torch.from_numpy(limited).to(device)
        keep_LV = _support(logits_RV[index], top_p_R[limited], top_k_R[limited])
        cut_LV = logits_RV[index].masked_fill(~keep_LV, -torch.inf)
        logits_RV = cut_LV if len(limited) == len(kept_R) else logits_RV.index_copy(0, index, cut_LV)
        ids = np.nonzero(keep_LV.cpu().numpy())[1].astype(np.int32)
        sizes = keep_LV.sum(-1).cpu().numpy()
        for r, part in zip(limited, np.split(ids, np.cumsum(sizes)[:-1]), strict=True):
            kept_R[r] = part if len(part) < logits_RV.shape[1] else None
    logprobs_RV = logits_RV.log_softmax(-1)
    cumulative_RV = logprobs_RV.exp().cumsum(-1, dtype=torch.float64)
    total_R1 = cumulative_RV[:, -1:].contiguous()
    target_R1 = torch.from_numpy(uniform_R).to(device)[:, None] * total_R1
    # The first token whose cumulative probability exceeds the target; rounding may push the target onto the total,
    # and then the last token that has any probability is meant.
    tokens_R1 = torch.searchsorted(cumulative_RV, target_R1, right=True)
    tokens_R1 = torch.minimum(tokens_R1, torch.searchsorted(cumulative_RV, total_R1))
    if greedy_R.any():
        tokens_R1 = torch.where(torch.from_numpy(greedy_R).to(device)[:, None], logits_RV.argmax(-1, True), tokens_R1)
    chosen_R = logprobs_RV.gather(-1, tokens_R1.clamp_max(logits_RV.shape[1] - 1))[:, 0].cpu().numpy()
    if not np.isfinite(chosen_R).all():
        raise FloatingPointError("the model's logits are not finite: its weights have diverged")
    return Drawn(tokens_R1[:, 0].cpu().numpy(), chosen_R, kept_R)


def _support(logits_LV: torch.Tensor, top_p_L: np.ndarray, top_k_L: np.ndarray) -> torch.Tensor:
    """Which tokens remain: the top k, then of those the smallest set whose mass reaches p (ties broken by id)."""
    device, V = logits_LV.device, logits_LV.shape[1]
    sorted_LV, order_LV = logits_LV.sort(dim=-1, descending=True, stable=True)
    top_k = torch.from_numpy(np.where(top_k_L > 0, top_k_L, V).astype(np.int64)).to(device)
    keep_LV = (torch.arange(V, device=device) < top_k[:, None]) & (sorted_LV > -torch.inf)
    probability_LV = sorted_LV.masked_fill(~keep_LV, -torch.inf).softmax(-1)
    before_LV = probability_LV.cumsum(-1, dtype=torch.float64) - probability_LV
    top_p_L1 = torch.from_numpy(np.where(top_p_L < 1, top_p_L, np.inf).astype(np.float64)).to(device)[:, None]
    keep_LV &= before_LV < top_p_L1
    keep_LV[:, 0] = True
    return torch.zeros_like(keep_LV).scatter(-1, order_LV, keep_LV)
