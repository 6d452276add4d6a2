"""Attention patterns: functions that make an `attend` for `Transformer.forward`.

A pattern that keeps keys and values (decoding from a cache) lives with its cache in `engine/`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mull.models.transformer import Attend


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Torch's attention over [..., heads, T, D], causal where there is no mask; the result has q's dtype."""
    dtype, gqa = q.dtype, q.shape[-3] != k.shape[-3]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa)
    # The CPU kernel's bf16 backward is four times slower than its float32 one (measured on two AVX512 cores), and
    # autocast would cast to bf16 again.
    with torch.autocast("cpu", enabled=False):
        q, k, v = q.float(), k.float(), v.float()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa).to(dtype)


def causal(windows: tuple[int | None, ...] = ()) -> Attend:
    """Rows [B, T] of right-padded sequences: every token sees itself and what stands before it in its row.

    Padding stands after all real tokens of its row, so no real token can see it and no mask is needed. `windows`
    are per-layer sliding windows (`ModelConfig.sliding_window`).
    """

    def attend(layer: int, q_BTHD: torch.Tensor, k_BTKD: torch.Tensor, v_BTKD: torch.Tensor) -> torch.Tensor:
        window = windows[layer] if windows else None
        q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
        if window is None or window >= q.shape[2]:
            return _attention(q, k, v, None).transpose(1, 2)
        t = torch.arange(q.shape[2], device=q.device)
        distance = t[:, None] - t[None, :]
        return _attention(q, k, v, (distance >= 0) & (distance < window)).transpose(1, 2)

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
        return _attention(q, k, v, mask)[0].transpose(0, 1)

    return attend


def in_trees(sees_BTT: torch.Tensor, positions_BT: torch.Tensor, windows: tuple[int | None, ...] = ()) -> Attend:
    """Rows [B, T] of trees: a token sees the tokens that `sees_BTT` [B, query, key] says (itself and its ancestors)."""
    distance_BTT = positions_BT[:, :, None] - positions_BT[:, None, :]

    def attend(layer: int, q_BTHD: torch.Tensor, k_BTKD: torch.Tensor, v_BTKD: torch.Tensor) -> torch.Tensor:
        window = windows[layer] if windows else None
        mask_BTT = sees_BTT if window is None else sees_BTT & (distance_BTT < window)
        q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
        return _attention(q, k, v, mask_BTT[:, None]).transpose(1, 2)

    return attend
