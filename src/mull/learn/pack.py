"""Samples into padded micro-batches. Deterministic, and whole arrays at a time.

Padding is known by position (`lengths_B`), never by token id: the pad id 0 may well be a real token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import chain

import numpy as np
import torch

from mull.errors import UserError
from mull.types import Batch, Sample


def totals(samples: Sequence[Sample]) -> tuple[float, float]:
    """(denominator, sequences) of one optimiser step.

    The denominator counts tokens in the mask or with a cross-entropy weight; sequences are those with at least one
    such token. A sample that is left out (no such token) counts in neither. Ranks of a distributed run add theirs
    up and hand the sum to `pack`.
    """
    counted = _Flat(samples).counted_S
    return float(counted.sum()), float((counted > 0).sum())


def pack(
    samples: Sequence[Sample],
    max_tokens: int,
    pad_to: int = 8,
    step_totals: tuple[float, float] | None = None,
) -> list[Batch]:
    """The micro-batches of one optimiser step: right-padded, at most `max_tokens` = rows x columns each.

    Longest first, so that memory runs out in the first micro-batch or never; equal lengths keep their order. Columns
    are a multiple of `pad_to`. Samples with nothing to learn from are left out; the list is empty when all are.
    `ref_logprobs_BT` is None: whoever wants a KL fills it in. `step_totals`: see `totals`; by default those of
    `samples`.

    UserError when one sample alone is larger than `max_tokens`. ValueError when a sample is inconsistent: lists of
    different lengths, a missing (NaN) log-probability, a weight on the first token (nothing predicts it), an
    advantage outside the mask, a sampled token outside its kept set.
    """
    flat = _Flat(samples)
    denominator, sequences = step_totals or (float(flat.counted_S.sum()), float((flat.counted_S > 0).sum()))
    live = np.flatnonzero(flat.counted_S > 0)
    order = live[np.argsort(-flat.lengths_S[live], kind="stable")]
    batches, start = [], 0
    while start < len(order):
        width = int(-(-(flat.lengths_S[order[start]] - 1) // pad_to) * pad_to)
        rows = max_tokens // width
        if rows == 0:
            raise UserError(
                f"a sample of {flat.lengths_S[order[start]]} tokens, padded to {width}, does not fit into a "
                f"micro-batch of {max_tokens} tokens: raise the tokens per micro-batch or shorten the longest rollout"
            )
        batches.append(flat.batch(order[start : start + rows], width, denominator, sequences))
        start += rows
    return batches


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with every tensor on `device`."""
    moved = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved = {name: x.to(device, non_blocking=True) for name, x in moved.items() if isinstance(x, torch.Tensor)}
    return replace(batch, **moved)


class _Flat:
    """The lists of all samples end to end, checked; S samples."""

    def __init__(self, samples: Sequence[Sample]):
        self.samples = samples
        self.lengths_S = np.fromiter((len(s.tokens) for s in samples), np.int64, len(samples))
        self.starts_S = np.cumsum(self.lengths_S) - self.lengths_S
        self.tokens = self._concatenate("tokens", np.int64)
        self.advantages = self._concatenate("advantages", np.float32)
        self.mask = self._concatenate("mask", np.bool_)
        self.logprobs = self._concatenate("logprobs", np.float32)
        self.ce = self._concatenate("ce", np.float32)
        counted = self.mask | (self.ce != 0)
        ends = np.concatenate([[0], np.cumsum(counted)])
        self.counted_S = ends[self.starts_S + self.lengths_S] - ends[self.starts_S]
        self._check(counted)

    def _concatenate(self, name: str, dtype: type) -> np.ndarray:
        lists = []
        for i, sample in enumerate(self.samples):
            values, n = getattr(sample, name), len(sample.tokens)
            if values is None:  # no cross-entropy stream
                values = (0.0,) * n
            if len(values) != n:
                raise ValueError(f"sample {i} has {n} tokens but {len(values)} entries in {name}")
            lists.append(values)
        return np.fromiter(chain.from_iterable(lists), dtype, int(self.lengths_S.sum()))

    def _check(self, counted: np.ndarray) -> None:
        def refuse(bad: np.ndarray, what: str) -> None:
            if bad.any():
                flat = int(np.flatnonzero(bad)[0])
                i = int(np.searchsorted(self.starts_S + self.lengths_S, flat, side="right"))
                raise ValueError(f"sample {i}, token {flat - self.starts_S[i]}: {what}")

        first = np.zeros_like(counted)
        first[self.starts_S[self.lengths_S > 0]] = True
        refuse(first & counted, "the first token has a weight, but nothing comes before it that could predict it")
        refuse(self.mask & ~np.isfinite(self.logprobs), "a trained token has no finite sampler log-probability")
        refuse(~np.isfinite(self.advantages) | ~np.isfinite(self.ce), "a weight is not finite")
        refuse(~self.mask & (self.advantages != 0), "an advantage on a token that is not in the mask")
        for i, sample in enumerate(self.samples):
            if not 0 < sample.temperature < float("inf"):
                raise ValueError(f"sample {i} has temperature {sample.temperature}; it must be above zero")
            if sample.kept is not None and len(sample.kept) != len(sample.tokens):
                raise ValueError(f"sample {i} has {len(sample.tokens)} tokens but {len(sample.kept)} kept sets")

    def batch(self, rows_B: np.ndarray, width: int, denominator: float, sequences: float) -> Batch:
        lengths_B = self.lengths_S[rows_B] - 1
        columns_T = np.arange(width)
        real_BT = columns_T < lengths_B[:, None]
        inputs_BT = np.where(real_BT, self.starts_S[rows_B][:, None] + columns_T, 0)
        targets_BT = np.where(real_BT, inputs_BT + 1, 0)  # entry t is about the prediction of token t + 1

        def grid(flat: np.ndarray, index_BT: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.where(real_BT, flat[index_BT], flat.dtype.type(0)))

        batch = Batch(
            tokens_BT=grid(self.tokens, inputs_BT),
            targets_BT=grid(self.tokens, targets_BT),
            lengths_B=torch.from_numpy(lengths_B),
            advantages_BT=grid(self.advantages, targets_BT),
            mask_BT=grid(self.mask, targets_BT),
            logprobs_BT=grid(self.logprobs, targets_BT),
            ce_BT=grid(self.ce, targets_BT),
            temperature_B=torch.tensor([self.samples[i].temperature for i in rows_B], dtype=torch.float32),
            kept_BTK=None,
            ref_logprobs_BT=None,
            denominator=denominator,
            sequences=sequences,
        )
        if any(self.samples[i].kept is not None for i in rows_B):
            batch.kept_BTK = self._kept(rows_B, batch)
        batch.logprobs_BT[~batch.mask_BT] = 0.0
        return batch

    def _kept(self, rows_B: np.ndarray, batch: Batch) -> torch.Tensor:
        """Kept sets of the tokens in the mask, padded with -1; all -1 where the support was full."""
        mask_BT, targets_BT = batch.mask_BT.numpy(), batch.targets_BT.numpy()
        none = np.zeros(0, np.int64)
        sets: list[np.ndarray] = []
        for row, i in enumerate(rows_B):
            kept = self.samples[i].kept
            for t in np.flatnonzero(mask_BT[row]):
                ids = None if kept is None else kept[t + 1]
                sets.append(none if ids is None else np.asarray(ids))
        sizes_BT = np.zeros(mask_BT.shape, np.int64)
        sizes_BT[mask_BT] = [len(ids) for ids in sets]
        kept_BTK = np.full((*mask_BT.shape, int(sizes_BT.max(initial=1))), -1, np.int64)
        kept_BTK[np.arange(kept_BTK.shape[-1]) < sizes_BT[..., None]] = np.concatenate(sets) if sets else none
        lost_BT = (sizes_BT > 0) & ~(kept_BTK == targets_BT[..., None]).any(-1)
        if lost_BT.any():
            row, t = np.argwhere(lost_BT)[0]
            raise ValueError(f"sample {rows_B[row]}, token {t + 1}: the sampled token is not in its own kept set")
        return torch.from_numpy(kept_BTK)
