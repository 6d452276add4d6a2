"""Learning from preferences: pairs packed as small trees, and the losses as pure functions of summed log-probabilities.

    h = [log pi(chosen) - log ref(chosen)] - [log pi(rejected) - log ref(rejected)]

    | form         | per pair                                | after                                            |
    |--------------|-----------------------------------------|--------------------------------------------------|
    | dpo          | -log sigmoid(beta h)                    | Rafailov et al. 2305.18290, equation 7           |
    | ipo          | (h - 1 / (2 beta))^2                    | Azar et al. 2310.12036, equation 17              |
    | normalised   | h of log-ratios per token               | length-normalised DPO, Tulu 3, 2411.15124        |
    | nll          | + nll * -log pi(chosen) / its tokens    | Iterative RPO, Pang et al. 2404.19733            |

A pair's tokens are sums over what the *model* said: forced tokens are context. Behind the prompt of a step-level pair
stand single steps (Agent Q's node-level DPO), behind that of an outcome-level pair whole chains. What both sides begin
with cancels in h (not if normalised); it is computed once.

The reference is a model, or the stored log-probabilities of the sampler (Agent Q), which are those of the policy that
searched: the same numbers to rounding when that policy is the reference, and no model to keep. `pairs.py` says what
traces of a search do to the distribution, and why pairs need no correction for it.

Why the nll term: DPO is content when the rejected falls faster than the chosen; without it the chosen's own
probability may fall as well. `chosen` in the diagnostics shows it.

Departure: Iterative RPO divides its term by the tokens of thought and answer; so does this one, where the chosen side
is a whole chain. On a step it is divided by the step's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mull.errors import UserError
from mull.learn.logprobs import chunked_logprobs
from mull.learn.pairs import Pair
from mull.models.attention import in_trees
from mull.models.transformer import Transformer

Form = Literal["dpo", "ipo"]
Diagnostics = dict[str, Tensor]


@dataclass(slots=True)
class PairBatch:
    """P pairs, a row each: what both sides share, then the rest of the chosen, then the rest of the rejected, right-
    padded. N trained tokens; axis 2 is chosen, rejected.

    `at_N` indexes the flattened [B * T] positions that predict `targets_N`; `owner_N` is 2 p for the chosen side of
    pair p and 2 p + 1 for its rejected one.
    """

    tokens_BT: Tensor  # int64
    positions_BT: Tensor  # int64
    sees_BTT: Tensor  # bool
    at_N: Tensor  # int64
    targets_N: Tensor  # int64
    owner_N: Tensor  # int64
    stored_N: Tensor | None  # float32, the sampler's log-probabilities; None: some pair has none
    denominator: float  # pairs of the whole optimiser step

    @property
    def pairs(self) -> int:
        return len(self.tokens_BT)

    @property
    def lengths_P2(self) -> Tensor:
        """Trained tokens of each side."""
        return self.by_side(torch.ones_like(self.owner_N, dtype=torch.float32))

    def by_side(self, values_N: Tensor) -> Tensor:
        """Sums [P, 2] of values of the trained tokens."""
        zeros = torch.zeros(2 * self.pairs, dtype=values_N.dtype, device=values_N.device)
        return zeros.index_add(0, self.owner_N, values_N).view(-1, 2)


def pair_size(pair: Pair) -> int:
    """Tokens that a pair takes in a row: what is shared once, and no input for the last token of a side."""
    row = _Row(pair)
    return row.trunk + row.chosen + row.rejected


class _Row:
    """How a pair lies in its row."""

    def __init__(self, pair: Pair):
        a, b = pair.chosen.tokens, pair.rejected.tokens
        if not pair.prompt or not pair.chosen.trained or not pair.rejected.trained or a == b:
            raise ValueError("a pair needs a prompt and two different sides with a sampled token each")
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        self.pair, self.shared = pair, shared
        self.trunk = len(pair.prompt) + shared
        self.chosen, self.rejected = (max(0, len(side) - shared - 1) for side in (a, b))

    def inputs(self) -> list[int]:
        a, b, k = self.pair.chosen.tokens, self.pair.rejected.tokens, self.shared
        return [*self.pair.prompt, *a[:k], *a[k:-1][: self.chosen], *b[k:-1][: self.rejected]]

    def positions(self) -> list[int]:
        return [*range(self.trunk + self.chosen), *range(self.trunk, self.trunk + self.rejected)]

    def predictor(self, side: int, t: int) -> int:
        """Where in the row token t of a side is predicted from."""
        if t <= self.shared:
            return len(self.pair.prompt) + t - 1
        return self.trunk + (self.chosen if side else 0) + t - self.shared - 1

    def see(self, sees_TT: Tensor) -> None:
        trunk, split, end = self.trunk, self.trunk + self.chosen, self.trunk + self.chosen + self.rejected
        sees_TT[:end, :end] = torch.ones(end, end, dtype=torch.bool).tril()
        sees_TT[split:end, trunk:split] = False  # the rejected side does not see the chosen one


def pack_pairs(pairs: Sequence[Pair], max_tokens: int, pad_to: int = 8, total: float | None = None) -> list[PairBatch]:
    """The micro-batches of one optimiser step, largest first: at most `max_tokens` = rows x columns each.

    `total`: pairs of the whole step, where that is more than these (ranks of a distributed run); by default their
    number. UserError when a pair alone is larger. ValueError for a pair without a prompt, or whose sides are equal or
    have no sampled token.
    """
    rows = sorted((_Row(pair) for pair in pairs), key=lambda r: -(r.trunk + r.chosen + r.rejected))
    batches: list[PairBatch] = []
    start = 0
    while start < len(rows):
        size = rows[start].trunk + rows[start].chosen + rows[start].rejected
        width = -(-size // pad_to) * pad_to
        many = max_tokens // width
        if many == 0:
            raise UserError(
                f"a pair of {size} tokens does not fit into a micro-batch of {max_tokens}: raise the tokens per "
                "micro-batch"
            )
        batches.append(_batch(rows[start : start + many], width, float(total or len(rows))))
        start += many
    return batches


def to_device(batch: PairBatch, device: torch.device | str) -> PairBatch:
    moved = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved = {name: x.to(device, non_blocking=True) for name, x in moved.items() if isinstance(x, Tensor)}
    return replace(batch, **moved)


def _batch(rows: Sequence[_Row], width: int, denominator: float) -> PairBatch:
    shape = (len(rows), width)
    tokens, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    sees = torch.eye(width, dtype=torch.bool).expand(len(rows), -1, -1).clone()  # padding: no keys would be NaN
    at, targets, owner, stored = [], [], [], []
    whole = all(side.logprobs is not None for row in rows for side in (row.pair.chosen, row.pair.rejected))
    for p, row in enumerate(rows):
        inputs = row.inputs()
        tokens[p, : len(inputs)] = torch.tensor(inputs)
        positions[p, : len(inputs)] = torch.tensor(row.positions())
        row.see(sees[p])
        for number, side in enumerate((row.pair.chosen, row.pair.rejected)):
            on = [t for t, trained in enumerate(side.mask) if trained]
            at += [p * width + row.predictor(number, t) for t in on]
            targets += [side.tokens[t] for t in on]
            owner += [2 * p + number] * len(on)
            stored += [side.logprobs[t] for t in on] if whole and side.logprobs is not None else []
    return PairBatch(
        tokens,
        positions,
        sees,
        torch.tensor(at, dtype=torch.int64),
        torch.tensor(targets, dtype=torch.int64),
        torch.tensor(owner, dtype=torch.int64),
        torch.tensor(stored, dtype=torch.float32) if whole else None,
        denominator,
    )


# ------------------------------------------------------------------------------------------------ losses


def pair_logprobs(model: Transformer, batch: PairBatch) -> Tensor:
    """Log-probabilities [N] of the trained tokens at temperature 1, float32, with gradient."""
    attend = in_trees(batch.sees_BTT, batch.positions_BT, model.config.sliding_window)
    hidden_XE = model(batch.tokens_BT, batch.positions_BT, attend).flatten(0, 1)
    ones_N = torch.ones(len(batch.at_N), device=hidden_XE.device)
    return chunked_logprobs(hidden_XE[batch.at_N], model.head_weight_VE, batch.targets_N, ones_N)[0]


def reference_logprobs(batch: PairBatch, reference: Transformer | None) -> Tensor:
    """The reference's log-probabilities [N]: the model's, or the stored ones where there is none.

    UserError when nothing is stored: the traces were not sampled at temperature 1 with full support.
    """
    if reference is not None:
        with torch.no_grad():
            return pair_logprobs(reference, batch)
    if batch.stored_N is None:
        raise UserError(
            "the traces have no log-probabilities of the policy itself to use as a reference (another temperature, a "
            "cut support, or an engine that gave none): use reference=model"
        )
    return batch.stored_N


def dpo_loss(
    policy_P2: Tensor,
    reference_P2: Tensor,
    lengths_P2: Tensor,
    denominator: float,
    *,
    beta: float = 0.1,
    form: Form = "dpo",
    normalised: bool = False,
    nll: float = 0.0,
) -> tuple[Tensor, Diagnostics]:
    """The loss of one micro-batch from summed log-probabilities [P, 2], and detached sums (`right`: pairs that the
    model tells apart more rightly than the reference does; `margin`: beta h; `chosen`, `rejected`: log-ratios).

    Summed over pairs and divided by those of the whole optimiser step.
    """
    if beta <= 0:
        raise ValueError(f"beta={beta} must be above 0")
    ratio_P2 = policy_P2 - reference_P2
    if normalised:
        ratio_P2 = ratio_P2 / lengths_P2
    h_P = ratio_P2[:, 0] - ratio_P2[:, 1]
    loss_P = F.softplus(-beta * h_P) if form == "dpo" else (h_P - 1 / (2 * beta)).square()
    parts = {"loss_pairs": loss_P.sum() / denominator}
    if nll:
        parts["loss_nll"] = -nll * (policy_P2[:, 0] / lengths_P2[:, 0]).sum() / denominator
    diagnostics = {name: part.detach() for name, part in parts.items()}
    diagnostics |= {
        "pairs": torch.tensor(float(len(h_P))),
        "right": (h_P > 0).sum().detach(),
        "margin": (beta * h_P).sum().detach(),
        "chosen": ratio_P2[:, 0].sum().detach(),
        "rejected": ratio_P2[:, 1].sum().detach(),
    }
    return torch.stack(list(parts.values())).sum(), diagnostics


def summarise(micro_batches: Sequence[Diagnostics]) -> dict[str, float]:
    """Of a whole step: losses and pairs add up, the rest are means over its pairs. Empty for none."""
    if not micro_batches:
        return {}
    pairs = max(sum(float(d["pairs"]) for d in micro_batches), 1.0)
    total = {name: sum(float(d[name]) for d in micro_batches) for name in micro_batches[0]}
    return {name: x if name.startswith("loss_") or name == "pairs" else x / pairs for name, x in total.items()}
