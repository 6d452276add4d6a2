"""Noticing that a model's weights have changed, whoever changed them and however.

torch's own counter of in-place changes (`Tensor._version`) is not enough: a fused optimiser step does not raise it, and
neither does anything that goes through `.data`. Keys and values of older weights would then be taken for current ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

EXACT = 1 << 24  # weights up to which every one is looked at; of larger models an even sample of that many

_optimizer_steps = 0


def _count_step(*_: object) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


class WeightsWatch:
    """Remembers a model's weights by a fingerprint of their contents."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.remember()

    def remember(self) -> None:
        self._parameters = list(self.model.parameters())
        self._cheap = self._signs()
        self._contents = self._fingerprint()

    def changed(self, thorough: bool) -> bool:
        """Whether the weights differ from those remembered.

        `thorough` reads them (0.4 ms for a million). Otherwise they are read only if something hints at a change: an
        in-place operation on them, new storage, or any optimiser's step; that takes microseconds.
        """
        if thorough:
            self._parameters = list(self.model.parameters())
        signs = self._signs()
        if not thorough and signs == self._cheap:
            return False
        self._cheap = signs
        return self._fingerprint() != self._contents

    def _signs(self) -> tuple:
        return (_optimizer_steps, *[(p._version, p.data_ptr()) for p in self._parameters])

    @torch.no_grad()
    def _fingerprint(self) -> tuple[int, ...]:
        stride = -(-sum(p.numel() for p in self._parameters) // EXACT)
        if any(p.device.type != "cpu" for p in self._parameters):
            kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
            words = [p.reshape(-1)[::stride].view(kinds[p.element_size()]) for p in self._parameters]
            return tuple(torch.stack([w.sum(dtype=torch.int64) for w in words]).tolist())
        return tuple(_sum(p.detach().reshape(-1)[::stride].contiguous()) for p in self._parameters)


def _sum(values: torch.Tensor) -> int:
    raw = values.view(torch.uint8).numpy()
    whole = len(raw) // 8 * 8
    with np.errstate(over="ignore"):
        return int(raw[:whole].view(np.uint64).sum(dtype=np.uint64)) + (int(raw[whole:].sum()) << 64)
