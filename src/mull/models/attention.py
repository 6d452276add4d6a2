"""Attention patterns: functions that make an `attend` for `Transformer.forward`.

A pattern that keeps keys and values (decoding from a cache) lives with its cache in `engine/`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mull.models.transformer import Attend


def _fast_dtype(x: torch.Tensor) -> torch.Tensor:
    # The CPU kernel's bf16 backward is four times slower than its float32 one (measured on two AVX512 cores).
    return x.float() if x.device.type == "cpu" else x


def causal(windows: tuple[int | None, ...] = ()) -> Attend:
    """Rows [B, T] of right-padded sequences: every token sees itself and what stands before it in its row.

    Padding stands after all real tokens of its row, so no real token can see it and no mask is needed. `windows`
    are per-layer sliding windows (`ModelConfig.sliding_window`).
    """

    def attend(layer: int, q_BTHD: torch.Tensor, k_BTKD: torch.Tensor, v_BTKD: torch.Tensor) -> torch.Tensor:
        window = windows[layer] if windows else None
        q, k, v = (_fast_dtype(x).transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
        gqa = q.shape[1] != k.shape[1]
        if window is None or window >= q.shape[2]:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
            return attended.transpose(1, 2).to(q_BTHD.dtype)
        t = torch.arange(q.shape[2], device=q.device)
        distance = t[:, None] - t[None, :]
        mask = (distance >= 0) & (distance < window)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)
        return attended.transpose(1, 2).to(q_BTHD.dtype)

    return attend


def packed(document_N: torch.Tensor, windows: tuple[int | None, ...] = ()) -> Attend:
    """One row [N] of documents laid end to end; `document_N` numbers them. Causal within a document, blind across."""
    n = torch.arange(document_N.shape[0], device=document_N.device)
    same = document_N[:, None] == document_N[None, :]
    distance = n[:, None] - n[None, :]

    def attend(layer: int, q_NHD: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor) -> torch.Tensor:
        window = windows[layer] if windows else None
        mask = same & (distance >= 0) & (distance < (window or document_N.shape[0]))
        q, k, v = (x.transpose(0, 1)[None] for x in (q_NHD, k_NKD, v_NKD))
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)[0].transpose(0, 1)

    return attend
