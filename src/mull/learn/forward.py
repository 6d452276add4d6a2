"""The training forward pass: log-probabilities of a batch's targets, from the same model code that samples."""

from __future__ import annotations

import torch

from mull.learn.logprobs import chunked_logprobs
from mull.models.attention import causal
from mull.models.transformer import Transformer
from mull.types import Batch


def batch_logprobs(model: Transformer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities [B, T] with gradient, entropies [B, T] without), float32, zero where nothing is learned.

    The head runs on the positions that count only: prompts and padding cost no logits. On a model in float32 under
    `torch.autocast` the products run in bf16; log-probabilities are float32 in any case.
    """
    B, T = batch.tokens_BT.shape
    positions_BT = torch.arange(T, device=batch.tokens_BT.device).expand(B, T)
    hidden_BTE = model(batch.tokens_BT, positions_BT, causal(model.config.sliding_window))
    counted_BT = batch.mask_BT | (batch.ce_BT != 0)
    temperature_BT = batch.temperature_B[:, None].expand(B, T)
    logprobs_N, entropy_N = chunked_logprobs(
        hidden_BTE[counted_BT],
        model.head_weight_VE,
        batch.targets_BT[counted_BT],
        temperature_BT[counted_BT],
        batch.kept_BTK[counted_BT] if batch.kept_BTK is not None else None,
    )
    zeros_BT = torch.zeros(B, T, dtype=logprobs_N.dtype, device=logprobs_N.device)
    return zeros_BT.masked_scatter(counted_BT, logprobs_N), zeros_BT.masked_scatter(counted_BT, entropy_N)
