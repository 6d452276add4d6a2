"""The optimiser step: AdamW with the usual groups, clipping, schedules, and no step on a broken gradient.

Nothing here assumes a precision. With a bf16 model keep fp32 parameters and run the forward pass under autocast:
steps of 1e-4 of a weight's size are below bf16's resolution (1/256) and would be rounded away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices with decay; norms, biases (anything below two dimensions) and embeddings without.

    A head that is tied to the embedding is an embedding. Frozen parameters are left out, tied ones come once.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decay, plain = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            exempt = p.ndim < 2 or id(p) in embeddings or "embed" in name.lower()
            (plain if exempt else decay).append(p)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, in its fused form (one kernel for the update, on CPU as on GPU)."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, eps=eps, fused=True)


def muon(model: nn.Module, lr: float, weight_decay: float = 0.1) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the layers' matrices, AdamW for embeddings, head, norms and biases.

    The updates are scaled to AdamW's usual size (Liu et al. 2502.16982), so that one learning rate serves both.
    """
    matrices = [p for p in parameter_groups(model, weight_decay)[0]["params"] if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


# ------------------------------------------------------------------------------------------ learning rates


def constant(step: int, *, peak: float, warmup: int = 0) -> float:
    """Learning rate of step 0, 1, …: a linear warm-up (step 0 already moves), then `peak`.

    >>> [constant(s, peak=1.0, warmup=4) for s in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return peak * min(1.0, (step + 1) / warmup) if warmup > 0 else peak


def linear(step: int, *, peak: float, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Warm-up to `peak`, then a straight line to `floor`, reached at step `total`."""
    return _decayed(step, peak, total, warmup, floor, lambda done: 1.0 - done)


def cosine(step: int, *, peak: float, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Warm-up to `peak`, then half a cosine to `floor`, reached at step `total`."""
    return _decayed(step, peak, total, warmup, floor, lambda done: 0.5 * (1.0 + math.cos(math.pi * done)))


def _decayed(step, peak, total, warmup, floor, shape) -> float:
    if step < warmup:
        return constant(step, peak=peak, warmup=warmup)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (peak - floor) * shape(done)


# ------------------------------------------------------------------------------------------ the update


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimiser step did."""

    grad_norm: float  # before clipping, over all parameters
    skipped: bool = False  # the gradient was not finite: nothing changed
    broken: tuple[str, ...] = ()  # the parameters whose gradient was not finite


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scales all gradients so that their global norm is at most `max_norm`; returns the norm before.

    Leaves the gradients as they are when their norm is not finite (scaling by it would spread the damage).
    """
    parameters = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if bool(torch.isfinite(norm)):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    lr: float,
    max_norm: float = 1.0,
) -> Update:
    """Clips, steps with learning rate `lr`, clears the gradients. Several optimisers share the model's parameters.

    When the gradient's norm is not finite, neither the parameters nor the optimiser's state change, and the result
    says which parameters were broken. (A norm that overflows although every entry is finite is skipped as well, with
    no name.)
    """
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    for group in [group for one in optimizers for group in one.param_groups]:
        group["lr"] = lr
    norm = clip_gradients(model.parameters(), max_norm)
    skipped, broken = not math.isfinite(norm), ()
    if skipped:
        grads = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
        broken = tuple(name for name, grad in grads if not bool(torch.isfinite(grad).all()))
    else:
        for one in optimizers:
            one.step()
    model.zero_grad(set_to_none=True)
    return Update(norm, skipped, broken)
