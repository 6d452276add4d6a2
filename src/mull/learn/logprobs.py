"""Log-probabilities of given tokens, under exactly the distribution that they were sampled from.

At least fp32, with the temperature applied and, where the sampler cut the support (top-p, top-k), renormalised over
the ids that it kept. The entropy of that distribution comes along, detached, as a diagnostic.

Two doors. `logprobs_from_logits` starts from logits. `chunked_logprobs` starts from hidden states and the head's
weight, and makes the logits of a few tokens at a time, in the forward and again in the backward pass, so that an
[N, V] tensor never exists: at 151,936 ids and 16,384 tokens that tensor takes 10 GB in fp32.

Both have hand-written gradients: that of log p(target) with respect to the logits is
(one_hot(target) - p) / temperature, p being zero outside the kept set.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24  # logits that exist at once: 64 MiB in fp32


def logprobs_from_logits(
    logits_BTV: Tensor, targets_BT: Tensor, temperature_B: Tensor, kept_BTK: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy in nats, both [B, T], fp32 (fp64 for fp64 logits).

    `kept_BTK`: ids of the support, -1 where unused; all -1 at a position means the full vocabulary. The target must
    be in its kept set (`pack` checks that).
    """
    B, T, V = logits_BTV.shape
    temperature_N = temperature_B[:, None].expand(B, T).reshape(B * T)
    kept_NK = None if kept_BTK is None else kept_BTK.reshape(B * T, -1)
    logprobs_N, entropy_N = _FromLogits.apply(
        logits_BTV.reshape(B * T, V), targets_BT.reshape(B * T), temperature_N, kept_NK
    )
    return logprobs_N.view(B, T), entropy_N.view(B, T)


def chunked_logprobs(
    hidden_NE: Tensor,
    head_VE: Tensor,
    targets_N: Tensor,
    temperature_N: Tensor,
    kept_NK: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same for logits = hidden_NE @ head_VE.T, `chunk` tokens at a time; both results are [N].

    The matrix product runs in the wider dtype of `hidden_NE` and `head_VE`, whatever autocast says, in the backward
    pass as in the forward pass: pass both in bf16 for a bf16 head. One more head product than the plain way. The
    head's gradient is summed in at least fp32. Call it with the tokens that count only: N may be any selection.
    """
    chunk = chunk or max(1, CHUNK_ELEMENTS // head_VE.shape[0])
    return _FromHidden.apply(hidden_NE, head_VE, targets_N, temperature_N, kept_NK, chunk)


class _FromLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_NV, targets_N, temperature_N, kept_NK):
        logprobs_N, norm_N, entropy_N = _results(logits_NV, len(logits_NV))
        for rows in _chunks(*logits_NV.shape):
            x_nV = _scaled(logits_NV[rows], temperature_N[rows])
            logprobs_N[rows], norm_N[rows], entropy_N[rows] = _forward(x_nV, targets_N[rows], _rows(kept_NK, rows))
        ctx.save_for_backward(logits_NV, targets_N, temperature_N, kept_NK, norm_N)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx, *grads):
        logits_NV, targets_N, temperature_N, kept_NK, norm_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for rows in _chunks(*logits_NV.shape):
            x_nV = _scaled(logits_NV[rows], temperature_N[rows])
            weight_n = grads[0][rows] / temperature_N[rows]
            grad_NV[rows] = _backward(x_nV, norm_N[rows], targets_N[rows], _rows(kept_NK, rows), weight_n)
        return grad_NV, None, None, None


class _FromHidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NE, head_VE, targets_N, temperature_N, kept_NK, chunk):
        logprobs_N, norm_N, entropy_N = _results(hidden_NE, len(hidden_NE), head_VE)
        with torch.autocast(hidden_NE.device.type, enabled=False):
            for start in range(0, len(hidden_NE), chunk):
                rows = slice(start, start + chunk)
                x_nV = _scaled(_matmul(hidden_NE[rows], head_VE.T), temperature_N[rows])
                logprobs_N[rows], norm_N[rows], entropy_N[rows] = _forward(x_nV, targets_N[rows], _rows(kept_NK, rows))
        ctx.save_for_backward(hidden_NE, head_VE, targets_N, temperature_N, kept_NK, norm_N)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx, *grads):
        hidden_NE, head_VE, targets_N, temperature_N, kept_NK, norm_N = ctx.saved_tensors
        want_hidden, want_head = ctx.needs_input_grad[:2]
        wide = torch.promote_types(hidden_NE.dtype, head_VE.dtype)
        grad_NE = torch.empty_like(hidden_NE) if want_hidden else None
        grad_VE = torch.zeros_like(head_VE, dtype=norm_N.dtype) if want_head else None
        with torch.autocast(hidden_NE.device.type, enabled=False):
            for start in range(0, len(hidden_NE), ctx.chunk):
                rows = slice(start, start + ctx.chunk)
                x_nV = _scaled(_matmul(hidden_NE[rows], head_VE.T), temperature_N[rows])
                weight_n = grads[0][rows] / temperature_N[rows]
                grad_nV = _backward(x_nV, norm_N[rows], targets_N[rows], _rows(kept_NK, rows), weight_n).to(wide)
                if grad_NE is not None:
                    grad_NE[rows] = _matmul(grad_nV, head_VE)
                if grad_VE is not None:
                    grad_VE += _matmul(grad_nV.T, hidden_NE[rows])
        return grad_NE, None if grad_VE is None else grad_VE.to(head_VE.dtype), None, None, None, None


def _results(like: Tensor, n: int, other: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(like.dtype, torch.float32)
    dtype = dtype if other is None else torch.promote_types(dtype, other.dtype)
    a, b, c = (torch.empty(n, dtype=dtype, device=like.device) for _ in range(3))
    return a, b, c


def _chunks(n: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, start + size) for start in range(0, n, size)]


def _rows(kept_NK: Tensor | None, rows: slice) -> Tensor | None:
    return None if kept_NK is None else kept_NK[rows]


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    wide = torch.promote_types(a.dtype, b.dtype)
    return a.to(wide) @ b.to(wide)


def _scaled(logits_nV: Tensor, temperature_n: Tensor) -> Tensor:
    """A new tensor: logits / temperature in at least fp32."""
    wide = torch.promote_types(logits_nV.dtype, torch.float32)
    return logits_nV.to(wide) / temperature_n[:, None].to(wide)


def _forward(x_nV: Tensor, targets_n: Tensor, kept_nK: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(log p(target), log of the normaliser, entropy), each [n]."""
    norm_n = torch.logsumexp(x_nV, -1)
    target_n = x_nV.gather(1, targets_n[:, None])[:, 0]
    if kept_nK is None:
        return target_n - norm_n, norm_n, torch.special.entr((x_nV - norm_n[:, None]).exp_()).sum(-1)
    cut_n = (kept_nK >= 0).any(-1)
    kept_x_nK = x_nV.gather(1, kept_nK.clamp_min(0)).masked_fill_(kept_nK < 0, -torch.inf)
    norm_n = torch.where(cut_n, torch.logsumexp(kept_x_nK, -1), norm_n)
    entropy_n = torch.special.entr((x_nV - norm_n[:, None]).exp_()).sum(-1)
    kept_entropy_n = torch.special.entr((kept_x_nK - norm_n[:, None]).exp_()).sum(-1)
    return target_n - norm_n, norm_n, torch.where(cut_n, kept_entropy_n, entropy_n)


def _backward(x_nV: Tensor, norm_n: Tensor, targets_n: Tensor, kept_nK: Tensor | None, weight_n: Tensor) -> Tensor:
    """weight * (one_hot(target) - p), in the memory of `x_nV`."""
    p_nV = x_nV.sub_(norm_n[:, None]).exp_()
    if kept_nK is not None:
        n, V = x_nV.shape
        member = torch.zeros(n, V + 1, dtype=torch.bool, device=x_nV.device)  # column V takes the padding
        member.scatter_(1, torch.where(kept_nK < 0, V, kept_nK), True)
        cut_n = (kept_nK >= 0).any(-1)
        p_nV.masked_fill_(cut_n[:, None] & ~member[:, :V], 0.0)
    weight_n = weight_n.to(p_nV.dtype)
    p_nV.mul_(-weight_n[:, None])
    return p_nV.scatter_add_(1, targets_n[:, None], weight_n[:, None])
