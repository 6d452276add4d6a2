"""Learning values: samples with labels, packed as trees; the forward pass; losses as pure functions of tensors.

Alignment. A label at token t judges the prefix that ends *with* token t, so it is learnt from the hidden state at
position t. (In `types.Batch` all is aligned with the token that is predicted.)

Trees. The samples of a group share prefixes: the chains of one question its prompt, and often their first steps. A row
is the tree of a group's tokens; a token attends to itself and to its ancestors, and its position is its depth, so every
path through the tree has the hidden states that it would have alone. What is shared is computed once: of nano's chains
for one question, 2 to 4 times fewer tokens. Labels and predictions count as often as they come.

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
from mull.models.attention import causal, in_trees
from mull.models.value import ValueModel

Kind = Literal["mse", "bce"]


@dataclass(frozen=True)
class ValueSample:
    """A sequence with labels at some of its prefixes, and the part of it that the language-model loss is on."""

    tokens: Sequence[int]
    labels: Sequence[Label]
    lm_from: int | None = None  # tokens from here on are predicted, too; the prompt never is


Group = tuple[ValueSample, ...]  # of one question: one row. Of pairs: better, worse, better, worse, …


@dataclass(slots=True)
class ValueBatch:
    """Rows of trees, right-padded; N labels in the order of groups and samples, M predicted tokens.

    `at_N` and `lm_at_M` are indices into the flattened [B * T] positions.
    """

    tokens_BT: Tensor  # int64
    positions_BT: Tensor  # int64: the depth in the tree
    sees_BTT: Tensor | None  # bool: which tokens a token attends to; None: rows are plain sequences
    at_N: Tensor  # int64
    labels_N: Tensor  # float32
    lm_at_M: Tensor  # int64
    lm_targets_M: Tensor  # int64
    lm_weight_M: Tensor  # float32: how many of the samples predict this token here
    denominator: float = 0.0  # labels of the optimiser step
    lm_denominator: float = 0.0  # predictions of the optimiser step

    @property
    def trees(self) -> int:
        return len(self.tokens_BT)


@dataclass
class _Tree:
    """A group's tokens, each prefix once; parents stand before their children."""

    tokens: list[int]
    parents: list[int]  # -1: the first token of a sample
    labels: list[tuple[int, float]]  # (token's index, value)
    predicted: dict[tuple[int, int], int]  # (token's index, the next token): how often


def _tree(group: Group) -> _Tree:
    tree = _Tree([], [], [], {})
    child: dict[tuple[int, int], int] = {}
    for sample in group:
        if any(not 0 < end <= len(sample.tokens) or not 0 <= value <= 1 for end, value in sample.labels):
            raise ValueError(f"labels {list(sample.labels)} of a sequence of {len(sample.tokens)} tokens")
        if sample.lm_from is not None and sample.lm_from < 1:
            raise ValueError("a language-model loss on the first token, which nothing comes before")
        at, path = -1, []
        for t, token in enumerate(sample.tokens):
            if sample.lm_from is not None and t >= sample.lm_from:
                tree.predicted[at, token] = tree.predicted.get((at, token), 0) + 1
            if (at, token) not in child:
                child[at, token] = len(tree.tokens)
                tree.tokens.append(token)
                tree.parents.append(at)
            at = child[at, token]
            path.append(at)
        tree.labels += [(path[end - 1], value) for end, value in sample.labels]
    return tree


def tree_work(group: Group) -> tuple[int, int]:
    """(tokens that a group takes in a batch, padding not counted; keys that they attend to in all: each its ancestors
    and itself)."""
    depths: list[int] = []
    for parent in _tree(group).parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 1)
    return len(depths), sum(depths)


def pack_values(groups: Sequence[Group], max_tokens: int, pad_to: int = 8) -> list[ValueBatch]:
    """The micro-batches of one optimiser step, largest first: at most `max_tokens` = rows x columns each.

    UserError when a group alone is larger. ValueError for a label outside its sequence or outside [0, 1], and for a
    language-model loss on a first token.
    """
    trees = sorted((_tree(group) for group in groups if group), key=lambda tree: -len(tree.tokens))
    batches: list[ValueBatch] = []
    start = 0
    while start < len(trees):
        width = -(-len(trees[start].tokens) // pad_to) * pad_to
        rows = max_tokens // width
        if rows == 0:
            raise UserError(
                f"the chains of one question, {len(trees[start].tokens)} tokens without what they share, do not fit"
                f" into a micro-batch of {max_tokens} tokens: raise the tokens per micro-batch"
            )
        batches.append(_batch(trees[start : start + rows], width))
        start += rows
    labels = float(sum(len(b.labels_N) for b in batches))
    lm = float(sum(b.lm_weight_M.sum() for b in batches))
    return [replace(b, denominator=labels, lm_denominator=lm) for b in batches]


def to_device(batch: ValueBatch, device: torch.device | str) -> ValueBatch:
    moved = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved = {name: x.to(device, non_blocking=True) for name, x in moved.items() if isinstance(x, Tensor)}
    return replace(batch, **moved)


def _batch(trees: Sequence[_Tree], width: int) -> ValueBatch:
    shape = (len(trees), width)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    plain = all(tree.parents == list(range(-1, len(tree.parents) - 1)) for tree in trees)
    sees = None if plain else np.zeros((*shape, width), np.bool_)
    at, labels, lm_at, lm_targets, lm_weight = [], [], [], [], []
    for row, tree in enumerate(trees):
        n = len(tree.tokens)
        tokens[row, :n] = tree.tokens
        for t, parent in enumerate(tree.parents):
            positions[row, t] = positions[row, parent] + 1 if parent >= 0 else 0
            if sees is not None:
                if parent >= 0:
                    sees[row, t] = sees[row, parent]
                sees[row, t, t] = True
        if sees is not None:
            sees[row, range(n, width), range(n, width)] = True  # padding: a row of no keys would be NaN
        at += [row * width + t for t, _ in tree.labels]
        labels += [value for _, value in tree.labels]
        lm_at += [row * width + t for t, _ in tree.predicted]
        lm_targets += [token for _, token in tree.predicted]
        lm_weight += tree.predicted.values()
    return ValueBatch(
        torch.from_numpy(tokens),
        torch.from_numpy(positions),
        None if sees is None else torch.from_numpy(sees),
        torch.tensor(at, dtype=torch.int64),
        torch.tensor(labels, dtype=torch.float32),
        torch.tensor(lm_at, dtype=torch.int64),
        torch.tensor(lm_targets, dtype=torch.int64),
        torch.tensor(lm_weight, dtype=torch.float32),
    )


# ------------------------------------------------------------------------------------------- forward pass


def forward(model: ValueModel, batch: ValueBatch) -> tuple[Tensor, Tensor]:
    """(value logits [N], log-probabilities [M] of the predicted tokens), float32. N or M may be 0."""
    windows = model.body.config.sliding_window
    attend = causal(windows) if batch.sees_BTT is None else in_trees(batch.sees_BTT, batch.positions_BT, windows)
    positions_BT = batch.positions_BT
    if batch.sees_BTT is None:
        positions_BT = torch.arange(batch.tokens_BT.shape[1], device=batch.tokens_BT.device).expand_as(batch.tokens_BT)
    hidden_XE = model.body(batch.tokens_BT, positions_BT, attend).flatten(0, 1)
    logits_N = model.logits(hidden_XE[batch.at_N])
    if not len(batch.lm_at_M):
        return logits_N, logits_N.new_zeros(0)
    ones_M = torch.ones_like(batch.lm_weight_M)
    hidden_ME, head_VE = hidden_XE[batch.lm_at_M], model.body.head_weight_VE
    return logits_N, chunked_logprobs(hidden_ME, head_VE, batch.lm_targets_M, ones_M)[0]


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


def language_model_loss(logprobs_M: Tensor, weight_M: Tensor, denominator: float) -> Tensor:
    """-log p by weight, summed and divided by the predictions of the whole optimiser step; 0 where there are none."""
    return -(weight_M * logprobs_M).sum() / max(denominator, 1.0)


def loss(model: ValueModel, batch: ValueBatch, kind: Kind | Literal["pairs"], lm_weight: float) -> dict[str, Tensor]:
    """The parts of one micro-batch's loss, "loss" being their sum; those of a step add up over its micro-batches.

    "pairs": every group is better and worse samples by turns, with one label each. `right` counts labels (or pairs) on
    whose side the value is, `labels` those that it is counted over.
    """
    logits_N, logprobs_M = forward(model, batch)
    if kind == "pairs":
        better_P, worse_P = logits_N.view(-1, 2).unbind(-1)
        value = bradley_terry(better_P, worse_P, batch.denominator / 2)
        right = (better_P > worse_P).sum()
    else:
        value = value_loss(logits_N, batch.labels_N, batch.denominator, kind)
        right = ((logits_N > 0) == (batch.labels_N > 0.5)).sum()
    lm = language_model_loss(logprobs_M, batch.lm_weight_M, batch.lm_denominator)
    counted = torch.tensor(len(logits_N) // (2 if kind == "pairs" else 1))
    return {"loss": value + lm_weight * lm, "loss_value": value, "loss_lm": lm, "right": right, "labels": counted}
