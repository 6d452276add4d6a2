"""From logits to tokens, with the log-probabilities of exactly the distribution that was sampled.

Randomness is a function of (request seed, step in the completion) alone, so a request draws the same numbers
whatever shares its batch. Tokens come from the inverse of the cumulative distribution at that number.
"""

from __future__ import annotations

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


@dataclass
class Drawn:
    tokens_R: np.ndarray  # int64
    logprobs_R: np.ndarray  # float32, under the distribution that was sampled (temperature 1 for greedy rows)
    kept_R: list[np.ndarray | None]  # ids that survived top-p/top-k, None where the support was full


def draw(
    logits_RV: torch.Tensor,
    temperature_R: np.ndarray,
    top_p_R: np.ndarray,
    top_k_R: np.ndarray,
    uniform_R: np.ndarray,
) -> Drawn:
    """Samples one token per row of float32 logits; temperature 0 is greedy."""
    device = logits_RV.device
    greedy_R = temperature_R == 0
    if (temperature_R != 1).any():
        divisor = torch.from_numpy(np.where(greedy_R, 1.0, temperature_R).astype(np.float32)).to(device)
        logits_RV = logits_RV / divisor[:, None]
    kept_R: list[np.ndarray | None] = [None] * len(temperature_R)
    limited = np.flatnonzero(((top_p_R < 1) | (top_k_R > 0)) & ~greedy_R)
    if len(limited):
        logits_RV = logits_RV.clone()
        for r in limited:
            keep_V = _support(logits_RV[r], float(top_p_R[r]), int(top_k_R[r]))
            logits_RV[r].masked_fill_(~keep_V, -torch.inf)
            kept_R[r] = keep_V.nonzero()[:, 0].cpu().numpy().astype(np.int32)
    logprobs_RV = logits_RV.log_softmax(-1)
    cumulative_RV = logprobs_RV.exp().cumsum(-1, dtype=torch.float64)
    total_R1 = cumulative_RV[:, -1:]
    target_R1 = torch.from_numpy(uniform_R).to(device)[:, None] * total_R1
    # The first token whose cumulative probability exceeds the target; rounding may push the target onto the total,
    # and then the last token that has any probability is meant.
    tokens_R1 = torch.searchsorted(cumulative_RV, target_R1, right=True)
    tokens_R1 = torch.minimum(tokens_R1, torch.searchsorted(cumulative_RV, total_R1))
    if greedy_R.any():
        tokens_R1 = torch.where(torch.from_numpy(greedy_R).to(device)[:, None], logits_RV.argmax(-1, True), tokens_R1)
    chosen_R = logprobs_RV.gather(-1, tokens_R1)[:, 0]
    return Drawn(tokens_R1[:, 0].cpu().numpy(), chosen_R.cpu().numpy(), kept_R)


def _support(logits_V: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """The tokens that remain: the top k, then of those the smallest set whose mass reaches p (ties broken by id)."""
    order = logits_V.argsort(descending=True, stable=True)
    keep = torch.ones_like(order, dtype=torch.bool)
    if 0 < top_k < len(order):
        keep[top_k:] = False
    if top_p < 1:
        probabilities = logits_V[order].masked_fill(~keep, -torch.inf).softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        keep &= before < top_p
        keep[0] = True
    return torch.zeros_like(keep).scatter(0, order, keep)
