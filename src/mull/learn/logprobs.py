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

CPU_CHUNK = 1 << 19  # fp32 logits at once: 2 MiB stay in cache, which is 3 times faster at a vocabulary of 8,192
GPU_CHUNK = 1 << 26  # 256 MiB: enough work for each kernel


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
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """The same for logits = hidden_NE @ head_VE.T, `chunk` tokens at a time; both results are [N].

    The matrix product runs in the wider dtype of `hidden_NE` and `head_VE`, whatever autocast says, in the backward
    pass as in the forward pass: pass both in bf16 for a bf16 head. One more head product than the plain way. The
    head's gradient is summed in at least fp32. Call it with the tokens that count only: N may be any selection.
    """
    return _FromHidden.apply(hidden_NE, head_VE, targets_N, temperature_N, kept_NK, chunk)


class _FromLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_NV, targets_N, temperature_N, kept_NK):
        logprobs_N, entropy_N = _results(logits_NV.dtype, logits_NV)
        for rows in _chunks(logits_NV):
            x_nV = _scaled(logits_NV[rows], temperature_N[rows], _rows(kept_NK, rows))
            logprobs_N[rows], entropy_N[rows] = _forward(x_nV, targets_N[rows])
        ctx.save_for_backward(logits_NV, targets_N, temperature_N, kept_NK)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx, *grads):
        logits_NV, targets_N, temperature_N, kept_NK = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for rows in _chunks(logits_NV):
            x_nV = _scaled(logits_NV[rows], temperature_N[rows], _rows(kept_NK, rows))
            grad_NV[rows] = _backward(x_nV, targets_N[rows], grads[0][rows] / temperature_N[rows])
        return grad_NV, None, None, None


class _FromHidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_NE, head_VE, targets_N, temperature_N, kept_NK, chunk):
        logprobs_N, entropy_N = _results(torch.promote_types(hidden_NE.dtype, head_VE.dtype), hidden_NE)
        with torch.autocast(hidden_NE.device.type, enabled=False):
            for start in range(0, len(hidden_NE), chunk):
                rows = slice(start, start + chunk)
                x_nV = _scaled(_matmul(hidden_NE[rows], head_VE.T), temperature_N[rows], _rows(kept_NK, rows))
                logprobs_N[rows], entropy_N[rows] = _forward(x_nV, targets_N[rows])
        ctx.save_for_backward(hidden_NE, head_VE, targets_N, temperature_N, kept_NK)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx, *grads):
        hidden_NE, head_VE, targets_N, temperature_N, kept_NK = ctx.saved_tensors
        want_hidden, want_head = ctx.needs_input_grad[:2]
        wide = torch.promote_types(hidden_NE.dtype, head_VE.dtype)
        grad_NE = torch.empty_like(hidden_NE) if want_hidden else None
        grad_VE = torch.zeros_like(head_VE, dtype=torch.promote_types(wide, torch.float32)) if want_head else None
        with torch.autocast(hidden_NE.device.type, enabled=False):
            for start in range(0, len(hidden_NE), ctx.chunk):
                rows = slice(start, start + ctx.chunk)
                x_nV = _scaled(_matmul(hidden_NE[rows], head_VE.T), temperature_N[rows], _rows(kept_NK, rows))
                grad_nV = _backward(x_nV, targets_N[rows], grads[0][rows] / temperature_N[rows]).to(wide)
                if grad_NE is not None:
                    grad_NE[rows] = _matmul(grad_nV, head_VE)
                if grad_VE is not None:
                    grad_VE += _matmul(grad_nV.T, hidden_NE[rows])
        return grad_NE, None if grad_VE is None else grad_VE.to(head_VE.dtype), None, None, None, None


def _results(dtype: torch.dtype, like_NX: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(dtype, torch.float32)
    new_N = torch.empty(len(like_NX), dtype=wide, device=like_NX.device)
    return new_N, torch.empty_like(new_N)


def _chunks(logits_NV: Tensor) -> list[slice]:
    N, V = logits_NV.shape
    size = max(1, (CPU_CHUNK if logits_NV.device.type == "cpu" else GPU_CHUNK) // V)
    return [slice(start, start + size) for start in range(0, N, size)]


def _rows(kept_NK: Tensor | None, rows: slice) -> Tensor | None:
    return None if kept_NK is None else kept_NK[rows]


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    wide = torch.promote_types(a.dtype, b.dtype)
    return a.to(wide) @ b.to(wide)


def _scaled(logits_nV: Tensor, temperature_n: Tensor, kept_nK: Tensor | None) -> Tensor:
    """A new tensor: logits / temperature in at least fp32, -inf outside the kept set."""
    n, V = logits_nV.shape
    wide = torch.promote_types(logits_nV.dtype, torch.float32)
    x_nV = logits_nV.to(wide) / temperature_n[:, None].to(wide)
    if kept_nK is not None:
        unused_nK = kept_nK < 0
        out_nV = torch.ones(n, V + 1, dtype=torch.bool, device=x_nV.device)  # column V takes the unused entries
        out_nV.scatter_(1, kept_nK.masked_fill(unused_nK, V), False)
        x_nV.masked_fill_(out_nV[:, :V] & ~unused_nK.all(-1, keepdim=True), -torch.inf)
    return x_nV


def _forward(x_nV: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    """(log p(target), entropy), each [n]."""
    log_p_nV = torch.log_softmax(x_nV, -1)
    target_n = log_p_nV.gather(1, targets_n[:, None])[:, 0]
    p_nV = log_p_nV.exp()
    log_p_nV.clamp_min_(torch.finfo(x_nV.dtype).min)  # 0 * -inf is NaN, and should be 0
    return target_n, -torch.linalg.vecdot(p_nV, log_p_nV)


def _backward(x_nV: Tensor, targets_n: Tensor, weight_n: Tensor) -> Tensor:
    """weight * (one_hot(target) - p), [n, V]."""
    weight_n1 = weight_n[:, None].to(x_nV.dtype)
    return torch.softmax(x_nV, -1).mul_(-weight_n1).scatter_add_(1, targets_n[:, None], weight_n1)
