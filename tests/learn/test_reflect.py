"""Reflections behind an answer: what is learnt of them, and that a model which learns them still ends its turn."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import StopReason
from mull.learn import losses, optim
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack
from mull.learn.reflect import with_reflection
from mull.learn.samples import supervised
from mull.ledger import Budget
from mull.models import hf
from mull.search.sample import sample
from mull.types import Question, Sample
from tests.recipes.tiny import save_tiny

SECTION = "\nAnother way:\nv=75-8=67\n67"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("reflect") / "base")


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return Chat.load(folder)


def test_the_turn_ends_where_it_would_have_ended(chat: Chat):
    plain = with_reflection(chat, "v?", "v=67", "67")
    assert plain == supervised(chat.prompt("v?"), chat.reply("v=67", "67"))
    both = with_reflection(chat, "v?", "v=67", "67", SECTION)
    n = len(plain.tokens)
    assert list(both.tokens[:n]) == list(plain.tokens) and both.tokens[n - 1] == chat.turn_end
    assert chat.decode(both.tokens[n:]) == SECTION + "<|end|>"
    assert both.ce is not None and plain.ce is not None and list(both.ce[:n]) == list(plain.ce)
    assert both.ce[n - 1] == 1.0, "the end of the turn is learnt, before the reflection"
    completion = both.tokens[len(chat.prompt("v?")) :]
    assert chat.split(completion) == ("v=67", "67", True), "what stands behind the end is no part of the answer"


def test_weights_of_the_reflection(chat: Chat):
    n = len(with_reflection(chat, "v?", "v=67", "67").tokens)
    for weight in (0.0, 0.25, 1.0):
        ce = with_reflection(chat, "v?", "v=67", "67", SECTION, weight).ce
        assert ce is not None and list(ce[n:]) == [weight] * (len(SECTION) + 1)


def gradient(folder: Path, samples: list[Sample], aggregate=losses.token_mean) -> torch.Tensor:
    model = hf.load(folder)
    for batch in pack(samples, 1 << 14):
        losses.loss(batch, batch_logprobs(model, batch)[0], aggregate=aggregate)[0].backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_a_reflection_without_weight_changes_no_gradient_and_one_with_weight_does(folder: Path, chat: Chat):
    def of(weight: float | None) -> torch.Tensor:
        texts = [("v?", "v=67", "67"), ("abc?", "c=3", "3")]
        if weight is None:
            return gradient(folder, [with_reflection(chat, *t) for t in texts])
        return gradient(folder, [with_reflection(chat, *t, SECTION, weight) for t in texts])

    assert torch.allclose(of(0.0), of(None), atol=1e-6)
    assert (of(1.0) - of(None)).abs().max() > 1e-3
    assert (of(0.5) - of(1.0)).abs().max() > 1e-3


def test_a_model_that_has_learnt_it_by_heart_ends_its_turn_and_never_writes_it(folder: Path, chat: Chat):
    """The bug to fear: a model trained on answers that go on into a reflection no longer stops at the answer."""
    model = hf.load(folder)
    optimizer = optim.adamw(model, 0.01)
    document = with_reflection(chat, "v?", "v=67", "67", SECTION)
    for _ in range(150):
        [batch] = pack([document], 1 << 12)
        logprobs_BT, _ = batch_logprobs(model, batch)
        losses.loss(batch, logprobs_BT)[0].backward()
        optim.step(model, optimizer, 0.01)
    assert float(batch_logprobs(model, batch)[0].detach()[batch.ce_BT != 0].min()) > -0.1, (
        "it knows the reflection, too"
    )
    budget = Budget(think_tokens=40, answer_tokens=40, samples=4)
    trace = asyncio.run(sample(Question("q", "t", "v?"), LocalEngine(model, chat), chat, budget))
    assert trace.answers == ["67"] * 4
    assert all(trace.spans[leaf].stop is StopReason.STOP for leaf in trace.leaves)
    assert chat.decode(trace.spans[trace.leaves[0]].tokens) == "v=67</think>67<|end|>"
