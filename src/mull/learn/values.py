"""Learning values: samples with labels, packed; the forward pass; losses as pure functions of tensors.

Alignment. A label at token t judges the prefix that ends *with* token t, so it is learnt from the hidden state at
position t: `labels_BT` and `weight_BT` are aligned with the *inputs*. (In `types.Batch` all is aligned with targets.)
`lm_BT` at t is the weight of predicting token t + 1, as any language model does.

    | loss                     | on                                     | who                                    |
    |--------------------------|----------------------------------------|----------------------------------------|
    | value_loss, "mse"        | every token behind the prompt          | ORM (Cobbe et al. 2110.14168) + lm     |
    | value_loss, "bce"        | step ends; soft labels allowed         | PRM (2305.20050, 2312.08935, 2406.06592)|
    | bradley_terry            | the ends of two prefixes               | preference models                      |

Departure: Cobbe et al. fit the label by a bare scalar; here the scalar is squashed first, so that it is a probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mull.errors import UserError
from mull.learn.labels import Label
from mull.learn.logprobs import chunked_logprobs
from mull.models.attention import causal
from mull.models.value import ValueModel

Kind = Literal["mse", "bce"]


@dataclass(frozen=True)
class ValueSample:
    """A sequence with labels at some of its prefixes, and the part of it that the language-model loss is on."""

    tokens: Sequence[int]
    labels: Sequence[Label]
    lm_from: int | None = None  # tokens from here on are predicted, too; the prompt never is


Group = tuple[ValueSample, ...]  # what must stand in one micro-batch: one sample, or the better and the worse of a pair


@dataclass(slots=True)
class ValueBatch:
    """Right-padded rows; a group's rows are adjacent. Padding has weight 0 everywhere."""

    tokens_BT: Tensor  # int64
    labels_BT: Tensor  # float32
    weight_BT: Tensor  # float32; 0: no label here
    lm_BT: Tensor  # float32
    denominator: float  # sum of `weight_BT` over the optimiser step
    lm_denominator: float  # of `lm_BT`
    groups: float  # their number in the optimiser step


def pack_values(groups: Sequence[Group], max_tokens: int, pad_to: int = 8) -> list[ValueBatch]:
    """The micro-batches of one optimiser step, longest first: at most `max_tokens` = rows x columns each.

    UserError when a group alone is larger. ValueError for a label outside its sequence or outside [0, 1], and for a
    language-model loss on a first token.
    """
    groups = [group for group in groups if group]
    for sample in (sample for group in groups for sample in group):
        if any(not 0 < end <= len(sample.tokens) or not 0 <= value <= 1 for end, value in sample.labels):
            raise ValueError(f"labels {list(sample.labels)} of a sequence of {len(sample.tokens)} tokens")
        if sample.lm_from is not None and sample.lm_from < 1:
            raise ValueError("a language-model loss on the first token, which nothing comes before")
    order = sorted(range(len(groups)), key=lambda i: (-_width(groups[i]), i))
    parts: list[tuple[list[ValueSample], int]] = []
    while order:
        width = -(-_width(groups[order[0]]) // pad_to) * pad_to
        rows: list[ValueSample] = []
        while order and (len(rows) + len(groups[order[0]])) * width <= max_tokens:
            rows += groups[order.pop(0)]
        if not rows:
            raise UserError(
                f"{len(groups[order[0]])} sequence(s) of {_width(groups[order[0]])} tokens, padded to {width}, do not"
                f" fit into a micro-batch of {max_tokens} tokens: raise the tokens per micro-batch"
            )
        parts.append((rows, width))
    batches = [_batch(rows, width) for rows, width in parts]
    weight = float(sum(b.weight_BT.sum() for b in batches))
    lm = float(sum(b.lm_BT.sum() for b in batches))
    return [replace(b, denominator=weight, lm_denominator=lm, groups=float(len(groups))) for b in batches]


def to_device(batch: ValueBatch, device: torch.device | str) -> ValueBatch:
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name.endswith("_BT")}
    return replace(batch, **{name: x.to(device, non_blocking=True) for name, x in tensors.items()})


def _width(group: Group) -> int:
    return max(len(sample.tokens) for sample in group)


def _batch(rows: Sequence[ValueSample], width: int) -> ValueBatch:
    shape = (len(rows), width)
    tokens, labels = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    weight, lm = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for row, sample in enumerate(rows):
        n = len(sample.tokens)
        tokens[row, :n] = sample.tokens
        for end, value in sample.labels:
            labels[row, end - 1], weight[row, end - 1] = value, 1.0
        if sample.lm_from is not None:
            lm[row, sample.lm_from - 1 : n - 1] = 1.0
    tokens_BT, labels_BT, weight_BT, lm_BT = (torch.from_numpy(x) for x in (tokens, labels, weight, lm))
    return ValueBatch(tokens_BT, labels_BT, weight_BT, lm_BT, 0.0, 0.0, 0.0)


# ------------------------------------------------------------------------------------------- forward pass


def forward(model: ValueModel, batch: ValueBatch) -> tuple[Tensor, Tensor]:
    """(value logits [N] where there is a label, in row order; log-probabilities [M] of the tokens of the
    language-model loss), float32. N or M may be 0."""
    B, T = batch.tokens_BT.shape
    positions_BT = torch.arange(T, device=batch.tokens_BT.device).expand(B, T)
    hidden_BTE = model.body(batch.tokens_BT, positions_BT, causal(model.body.config.sliding_window))
    logits_N = model.logits(hidden_BTE[batch.weight_BT > 0])
    predicted_BT = batch.lm_BT > 0
    if not predicted_BT.any():
        return logits_N, logits_N.new_zeros(0)
    targets_BT = batch.tokens_BT.roll(-1, 1)  # the last column wraps round, and has no weight
    targets_M = targets_BT[predicted_BT]
    ones_M = torch.ones(len(targets_M), device=targets_M.device)
    logprobs_M, _ = chunked_logprobs(hidden_BTE[predicted_BT], model.body.head_weight_VE, targets_M, ones_M)
    return logits_N, logprobs_M


# ------------------------------------------------------------------------------------------------ losses


def value_loss(logits_N: Tensor, labels_N: Tensor, denominator: float, kind: Kind = "bce") -> Tensor:
    """Binary cross-entropy -y log v - (1 - y) log(1 - v), or the squared error (v - y)^2, with v = sigmoid(logit);
    summed and divided by the labels of the whole optimiser step. Labels may be anything in [0, 1]."""
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits_N, labels_N, reduction="sum") / max(denominator, 1.0)
    return (torch.sigmoid(logits_N) - labels_N).square().sum() / max(denominator, 1.0)


def bradley_terry(better_P: Tensor, worse_P: Tensor, denominator: float) -> Tensor:
    """-log sigmoid(r_better - r_worse) of P pairs of logits, summed and divided by the pairs of the whole step."""
    return F.softplus(worse_P - better_P).sum() / max(denominator, 1.0)


def language_model_loss(logprobs_M: Tensor, denominator: float) -> Tensor:
    """-log p, summed and divided by the predicted tokens of the whole optimiser step; 0 where there are none."""
    return -logprobs_M.sum() / max(denominator, 1.0)


def loss(model: ValueModel, batch: ValueBatch, kind: Kind | Literal["pairs"], lm_weight: float) -> dict[str, Tensor]:
    """The parts of one micro-batch's loss, "loss" being their sum; those of a step add up over its micro-batches.

    "pairs": every group is a better and a worse sample with one label each. `right` counts labels (or pairs) on whose
    side the value is, `labels` those that it is counted over.
    """
    logits_N, logprobs_M = forward(model, batch)
    labels_N = batch.labels_BT[batch.weight_BT > 0]
    if kind == "pairs":
        better_P, worse_P = logits_N.view(-1, 2).unbind(-1)
        value = bradley_terry(better_P, worse_P, batch.groups)
        right = (better_P > worse_P).sum()
    else:
        value = value_loss(logits_N, labels_N, batch.denominator, kind)
        right = ((logits_N > 0) == (labels_N > 0.5)).sum()
    lm = language_model_loss(logprobs_M, batch.lm_denominator)
    counted = torch.tensor(len(logits_N) // (2 if kind == "pairs" else 1))
    parts = {"loss": value + lm_weight * lm, "loss_value": value, "loss_lm": lm, "right": right, "labels": counted}
    return parts
