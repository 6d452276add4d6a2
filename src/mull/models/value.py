"""A model that judges: a transformer body and a linear head from its final hidden state to one logit.

Its folder is an ordinary Hugging Face folder (transformers reads the body) and two files more: the head's weights and
`scorer.json`, which says what the scorer is and what it learnt from. A generative critic's folder has no head.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as tensor_bytes
from torch import nn

from mull.errors import UserError
from mull.models import hf
from mull.models.transformer import Transformer

HEAD, INFO = "value_head.safetensors", "scorer.json"


@dataclass(frozen=True)
class ScorerInfo:
    """What `scorer.json` holds."""

    kind: str  # orm, prm, prm-rollouts, omega, pairwise or critic
    aggregate: str = "last"  # of a path's step scores into one: what suits this kind (see mull.search.choose)
    policy: str = ""  # the model whose traces it learnt from
    init: str = ""  # the model that it was before
    tasks: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    labels: dict[str, Any] = field(default_factory=dict)  # how they were made, and how many


class ValueModel(nn.Module):
    """`head(hidden)` is the logit of the value of the prefix that ends with that token.

    The head starts small, with a zero bias: every value is near 1/2 until it has learnt something. `seed` is of the
    head's weights alone. The logit is computed in float32, whatever the body computes in.
    """

    def __init__(self, body: Transformer, seed: int = 0):
        super().__init__()
        self.body = body
        width = body.config.hidden_size
        self.head = nn.Linear(width, 1, dtype=body.dtype, device=body.device)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(1, width, generator=generator) * 0.1 / width**0.5)
            self.head.bias.zero_()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 [...] of final hidden states [..., E]."""
        with torch.autocast(hidden.device.type, enabled=False):
            return (hidden.float() @ self.head.weight.float()[0]) + self.head.bias.float()[0]


def save_value(model: ValueModel, folder: Path | str, info: ScorerInfo, source: Path | str | None = None) -> None:
    """Writes the folder, whole or not at all; tokenizer and template come from `source`, as in `hf.save`."""
    head = {f"head.{name}": p.detach().cpu().contiguous() for name, p in model.head.named_parameters()}
    hf.save(model.body, folder, source, extra={HEAD: tensor_bytes(head), INFO: _json(info)})


def save_critic(model: Transformer, folder: Path | str, info: ScorerInfo, source: Path | str | None = None) -> None:
    """The same for a scorer without a head, which writes its judgement."""
    hf.save(model, folder, source, extra={INFO: _json(info)})


def read_info(folder: Path | str) -> ScorerInfo:
    """UserError when the folder is no scorer's."""
    path = Path(folder) / INFO
    if not path.is_file():
        raise UserError(f"{folder} is not a scorer: it has no {INFO}; train one with mull reward")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(ScorerInfo)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k in known}
        return ScorerInfo(**values)
    except (ValueError, TypeError, AttributeError) as problem:
        raise UserError(f"{path} cannot be read ({problem}): train the scorer again") from None


def load_value(
    folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[ValueModel, ScorerInfo]:
    """The value model in `folder`. UserError when it is none, or its head belongs to another body."""
    folder = Path(folder)
    info = read_info(folder)
    path = folder / HEAD
    if not path.is_file():
        raise UserError(f"{folder} has no {HEAD}: it holds a {info.kind} scorer, which has no value head")
    try:
        tensors = tensors_of(path.read_bytes())
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{path} cannot be read ({problem}): train the scorer again") from None
    model = ValueModel(hf.load(folder, dtype, device))
    wanted = {f"head.{name}": p for name, p in model.head.named_parameters()}
    if {k: tuple(t.shape) for k, t in tensors.items()} != {k: tuple(p.shape) for k, p in wanted.items()}:
        raise UserError(f"{path} does not fit the model beside it: train the scorer again")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])
    return model, info


def _json(info: ScorerInfo) -> bytes:
    return (json.dumps(asdict(info), indent=2) + "\n").encode()
