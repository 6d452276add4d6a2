"""Counting FLOPs from a model's shape.

2 per multiply-add of every matrix product that ran, plus attention's 4·H·D per query, visible key and layer (Kaplan
et al. 2020, 2001.08361, table 1, with the attention term kept). Training counts three times the forward pass. Norms,
rotations and softmax are left out, as is usual.
"""

from __future__ import annotations

from mull.models.config import ModelConfig


def forward_flops(config: ModelConfig, tokens: int, context: int, head_tokens: int | None = None) -> float:
    """FLOPs of a forward pass over `tokens` positions.

    `context` is the sum over positions of the number of keys each one attends to; `head_tokens` the number of
    positions whose logits were computed (all of them by default).
    """
    head = config.vocab_size * config.hidden_size
    body = config.matmul_params - head
    attention = 4.0 * config.num_layers * config.num_heads * config.head_dim * context
    return 2.0 * body * tokens + 2.0 * head * (tokens if head_tokens is None else head_tokens) + attention


def causal_context(start: int, end: int) -> int:
    """Keys attended to by positions start..end-1, each seeing itself and everything before it.

    >>> causal_context(0, 3)
    6
    """
    return (end * (end + 1) - start * (start + 1)) // 2


def train_flops(config: ModelConfig, lengths: list[int]) -> float:
    """FLOPs of forward and backward over sequences of the given lengths (padding is not counted)."""
    return 3.0 * forward_flops(config, sum(lengths), sum(causal_context(0, n) for n in lengths))
