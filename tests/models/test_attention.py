"""One forward, several attention patterns: packed, padded and alone give the same, and nothing leaks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mull.models import hf
from mull.models.attention import causal, packed
from mull.models.config import ModelConfig

LENGTHS = (5, 1, 9, 3)
CONFIG = ModelConfig("qwen3", 31, 24, 40, 3, 4, 2, 8, 64, qk_norm=True)
CONFIGS = {
    "full": CONFIG,
    "windows": replace(CONFIG, sliding_window=(None, 3, 2)),
    "no-gqa": replace(CONFIG, num_kv_heads=4),
}


def model_and_documents(config: ModelConfig):
    model = hf.init(config, seed=0)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if p.dim() > 1 else 1)  # far from uniform attention, so that a leak shows
    generator = torch.Generator().manual_seed(1)
    return model, [torch.randint(config.vocab_size, (n,), generator=generator) for n in LENGTHS]


def alone(model, document_T: torch.Tensor) -> torch.Tensor:
    attend = causal(model.config.sliding_window)
    return model.logits(model(document_T[None], torch.arange(len(document_T))[None], attend))[0]


def padded(model, documents: list[torch.Tensor], filler: int = 0) -> list[torch.Tensor]:
    length = max(map(len, documents))
    tokens_BT = torch.stack([torch.nn.functional.pad(d, (0, length - len(d)), value=filler) for d in documents])
    positions_BT = torch.arange(length).expand_as(tokens_BT)
    logits_BTV = model.logits(model(tokens_BT, positions_BT, causal(model.config.sliding_window)))
    return [row[: len(d)] for row, d in zip(logits_BTV, documents, strict=True)]


def laid_end_to_end(model, documents: list[torch.Tensor]) -> list[torch.Tensor]:
    document_N = torch.cat([torch.full((len(d),), i) for i, d in enumerate(documents)])
    positions_N = torch.cat([torch.arange(len(d)) for d in documents])
    hidden_NE = model(torch.cat(documents), positions_N, packed(document_N, model.config.sliding_window))
    return list(model.logits(hidden_NE).split([len(d) for d in documents]))


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_padded_and_alone_agree(name: str):
    model, documents = model_and_documents(CONFIGS[name])
    with torch.no_grad():
        rows = zip(documents, padded(model, documents), laid_end_to_end(model, documents), strict=True)
        for document, in_batch, in_pack in rows:
            wanted = alone(model, document)
            assert wanted.std() > 0.3
            torch.testing.assert_close(in_batch, wanted, atol=1e-5, rtol=0)
            torch.testing.assert_close(in_pack, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_agree(name: str):
    grads = []
    for forward in (padded, laid_end_to_end):
        model, documents = model_and_documents(CONFIGS[name])
        loss = sum(logits.log_softmax(-1)[:, 0].sum() for logits in forward(model, documents))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_token_sees_another_document_or_the_future_or_padding(name: str):
    """Exactly: what lies outside a token's sight changes not one bit of it."""
    model, documents = model_and_documents(CONFIGS[name])
    with torch.no_grad():
        before, packed_before = padded(model, documents), laid_end_to_end(model, documents)
        other = [(d + 1) % 31 if i != 2 else d for i, d in enumerate(documents)]
        assert torch.equal(laid_end_to_end(model, other)[2], packed_before[2])
        assert torch.equal(padded(model, other)[2], before[2])
        assert all(torch.equal(a, b) for a, b in zip(padded(model, documents, filler=7), before, strict=True))
        changed = documents[2].clone()
        changed[6] = (changed[6] + 1) % 31
        after = laid_end_to_end(model, [*documents[:2], changed, documents[3]])[2]
        assert torch.equal(after[:6], packed_before[2][:6]) and not torch.equal(after[6:], packed_before[2][6:])
        after = padded(model, [*documents[:2], changed, documents[3]])[2]
        assert torch.equal(after[:6], before[2][:6]) and not torch.equal(after[6:], before[2][6:])


def test_a_window_of_w_sees_w_tokens_per_layer():
    config = replace(CONFIG, num_layers=1, sliding_window=(3,))
    model, _ = model_and_documents(config)
    tokens_T = torch.arange(10)
    with torch.no_grad():
        before = alone(model, tokens_T)
        tokens_T[2] = 30
        seen = (alone(model, tokens_T) != before).any(-1).nonzero().flatten().tolist()
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("pattern", ["causal", "packed"])
def test_bfloat16_stays_bfloat16(pattern: str):
    model, documents = model_and_documents(CONFIGS["windows"])
    wanted = alone(model, documents[2]).detach()
    model.bfloat16()
    forward = padded if pattern == "causal" else laid_end_to_end
    hidden = model(documents[2], torch.arange(9), packed(torch.zeros(9, dtype=torch.int64)))
    assert hidden.dtype == torch.bfloat16
    logits = forward(model, documents)[2]
    assert logits.dtype == torch.float32
    assert (logits - wanted).abs().mean() < 0.1 * wanted.std()
