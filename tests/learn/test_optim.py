"""The optimiser step: groups, schedules, clipping, and what happens to a broken gradient."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mull.learn import optim


class Tiny(nn.Module):
    def __init__(self, tied: bool = True):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.proj = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.norm(self.proj(self.embed(x))))


def grads(model, seed=0):
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g)


@pytest.mark.parametrize("tied", [False, True])
def test_only_matrices_decay(tied):
    model = Tiny(tied)
    groups = optim.parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    found = [{names[id(p)] for p in g["params"]} for g in groups]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert found[0] == ({"proj.weight"} if tied else {"proj.weight", "head.weight"})
    assert found[1] == {"embed.weight", "norm.weight", "norm.bias", "proj.bias"}


def test_frozen_parameters_are_left_out():
    model = Tiny()
    model.proj.requires_grad_(False)
    groups = optim.parameter_groups(model, 0.1)
    assert len(groups) == 1 and not any(p is model.proj.weight for p in groups[0]["params"])


def test_decay_shrinks_a_matrix_and_not_an_embedding():
    model = Tiny(tied=False)
    optimizer = optim.adamw(model, lr=1.0, weight_decay=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optim.step(model, optimizer, lr=0.5)
    torch.testing.assert_close(model.proj.weight, before["proj.weight"] * 0.95)
    assert torch.equal(model.embed.weight, before["embed.weight"])


def test_first_adam_step_by_hand():
    """Bias-corrected, the first step is lr * sign(gradient)."""
    model = Tiny()
    optimizer = optim.adamw(model, lr=123.0)
    before = model.proj.weight.detach().clone()
    grads(model)
    sign = model.proj.weight.grad.sign()  # type: ignore[union-attr]
    result = optim.step(model, optimizer, lr=0.01, max_norm=math.inf)
    torch.testing.assert_close(model.proj.weight, before - 0.01 * sign, rtol=0, atol=1e-6)
    assert not result.skipped and all(p.grad is None for p in model.parameters())


def test_clipping_is_global_and_reports_the_norm_before():
    model = Tiny()
    grads(model)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))  # type: ignore[union-attr]
    before = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    assert optim.clip_gradients(model.parameters(), norm * 2) == pytest.approx(norm)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))  # type: ignore[arg-type]
    assert optim.clip_gradients(model.parameters(), 0.5) == pytest.approx(norm)
    for a, p in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, a * 0.5 / norm)
    assert optim.clip_gradients([], 1.0) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_gradient_changes_nothing_and_is_named(bad):
    model = Tiny()
    optimizer = optim.adamw(model, lr=0.1, weight_decay=0.1)
    grads(model)
    optim.step(model, optimizer, lr=0.1)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = {k: {n: v.clone() for n, v in s.items()} for k, s in optimizer.state_dict()["state"].items()}
    grads(model, 1)
    model.proj.bias.grad[2] = bad  # type: ignore[index]
    result = optim.step(model, optimizer, lr=0.1)
    assert result.skipped and result.broken == ("proj.bias",) and not math.isfinite(result.grad_norm)
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(v, after[k][n]) for k, s in state.items() for n, v in s.items())
    assert all(p.grad is None for p in model.parameters()), "the broken gradient does not stay for the next step"
    grads(model, 2)
    assert not optim.step(model, optimizer, lr=0.1).skipped
    assert not torch.equal(weights["proj.bias"], model.proj.bias)


def test_schedules_by_hand():
    assert [optim.constant(s, peak=2.0) for s in (0, 5)] == [2.0, 2.0]
    assert [optim.constant(s, peak=2.0, warmup=2) for s in (0, 1, 2)] == [1.0, 2.0, 2.0]
    linear = [optim.linear(s, peak=1.0, total=6, warmup=2, floor=0.2) for s in (0, 1, 2, 4, 6, 9)]
    assert linear == pytest.approx([0.5, 1.0, 1.0, 0.6, 0.2, 0.2])
    cosine = [optim.cosine(s, peak=1.0, total=6, warmup=2) for s in (0, 2, 3, 4, 6, 9)]
    assert cosine == pytest.approx([0.5, 1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.0, 0.0])


@given(st.integers(0, 50), st.integers(0, 20), st.integers(1, 40))
def test_schedules_stay_between_zero_and_the_peak_and_the_first_step_moves(step, warmup, total):
    for value in (
        optim.constant(step, peak=0.3, warmup=warmup),
        optim.linear(step, peak=0.3, total=total, warmup=warmup),
        optim.cosine(step, peak=0.3, total=total, warmup=warmup),
    ):
        assert 0.0 <= value <= 0.3 + 1e-12
    assert optim.cosine(0, peak=0.3, total=total, warmup=warmup) > 0


def test_saved_and_restored_state_continues_bitwise():
    torch.manual_seed(0)
    model = Tiny()
    optimizer = optim.adamw(model, lr=0.1, weight_decay=0.1)
    for i in range(3):
        grads(model, i)
        optim.step(model, optimizer, lr=0.1)
    other = Tiny()
    other.load_state_dict(model.state_dict())
    restored = optim.adamw(other, lr=0.1, weight_decay=0.1)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share the moments
    for m, o in ((model, optimizer), (other, restored)):
        grads(m, 9)
        optim.step(m, o, lr=0.05)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
