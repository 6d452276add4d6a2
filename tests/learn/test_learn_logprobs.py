"""Log-probabilities: values, gradients, kept sets, and the chunked way against the plain one."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mull.learn import logprobs
from mull.learn.logprobs import chunked_logprobs, logprobs_from_logits

B, T, V, E, K = 2, 5, 11, 4, 3
F64 = torch.float64


def case(seed: int, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B * T, E, generator=g, dtype=dtype).requires_grad_()
    head = torch.randn(V, E, generator=g, dtype=dtype).requires_grad_()
    targets = torch.randint(V, (B, T), generator=g)
    temperature = torch.rand(B, generator=g) + 0.5
    order = torch.rand(B, T, V, generator=g).argsort(-1)[..., : K - 1]
    order = torch.where(order == targets[..., None], -1, order)  # no duplicates
    kept = torch.cat([targets[..., None], order], -1)
    kept[0, 1] = -1  # a full support among cut ones
    return hidden, head, targets, temperature, kept


def plain(logits_BTV, targets, temperature, kept):
    """Straight from the definition, differentiated by autograd."""
    x = logits_BTV / temperature[:, None, None]
    if kept is not None:
        allowed = (kept[..., None] == torch.arange(V)).any(-2) | (kept < 0).all(-1, keepdim=True)
        x = torch.where(allowed, x, torch.tensor(-1e30, dtype=x.dtype))
    p = torch.softmax(x, -1)
    entropy = -torch.where(p > 0, p * p.clamp_min(1e-300).log(), 0.0).sum(-1)
    return torch.log_softmax(x, -1).gather(-1, targets[..., None])[..., 0], entropy.detach()


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_both_ways_have_the_plain_values_and_gradients(cut, chunk, monkeypatch):
    hidden, head, targets, temperature, kept = case(chunk)
    kept = kept if cut else None
    weight = torch.randn(B, T, dtype=F64)

    def gradients(lp):
        return torch.autograd.grad((lp * weight).sum(), [hidden, head])

    monkeypatch.setattr(logprobs, "CPU_CHUNK", chunk * V)
    expected, entropy = plain((hidden @ head.T).view(B, T, V), targets, temperature, kept)
    direct, direct_entropy = logprobs_from_logits((hidden @ head.T).view(B, T, V), targets, temperature, kept)
    temperature_N = temperature.repeat_interleave(T)
    kept_NK = None if kept is None else kept.view(B * T, K)
    chunked, chunked_entropy = chunked_logprobs(hidden, head, targets.view(-1), temperature_N, kept_NK, chunk)
    close: dict[str, Any] = dict(rtol=0, atol=1e-12)
    torch.testing.assert_close(direct, expected, **close)
    torch.testing.assert_close(chunked.view(B, T), expected, **close)
    torch.testing.assert_close(direct_entropy, entropy, **close)
    torch.testing.assert_close(chunked_entropy.view(B, T), entropy, **close)
    wanted = gradients(expected)
    for mine in (direct, chunked.view(B, T)):
        for a, b in zip(gradients(mine), wanted, strict=True):
            torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("cut", [False, True])
def test_gradients_against_finite_differences(cut):
    hidden, head, targets, temperature, kept = case(0)
    temperature_N = temperature.to(F64).repeat_interleave(T)
    kept_NK = kept.view(-1, K) if cut else None
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_logprobs(h, w, targets.view(-1), temperature_N, kept_NK, 3)[0], (hidden, head)
    )
    logits = torch.randn(B, T, V, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: logprobs_from_logits(x, targets, temperature.to(F64), kept if cut else None)[0], (logits,)
    )


@given(st.integers(0, 1000), st.floats(0.2, 3.0))
def test_probabilities_over_the_kept_set_sum_to_one(seed, temperature):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 1, V, generator=g) * 5
    kept = torch.randperm(V, generator=g)[:4]
    total = sum(
        logprobs_from_logits(logits, t.view(1, 1), torch.tensor([temperature]), kept.view(1, 1, 4))[0].exp().item()
        for t in kept
    )
    assert total == pytest.approx(1.0, abs=1e-5)


def test_entropy_is_that_of_the_support_and_carries_no_gradient():
    logits = torch.zeros(1, 1, V, requires_grad=True)
    zero, one = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1)
    assert logprobs_from_logits(logits, zero, one)[1].item() == pytest.approx(torch.log(torch.tensor(V)).item())
    kept = torch.tensor([[[0, 7, -1]]])
    logprob, entropy = logprobs_from_logits(logits, zero, one, kept)
    assert entropy.item() == pytest.approx(0.6931472) and logprob.item() == pytest.approx(-0.6931472)
    assert not entropy.requires_grad


def test_logits_of_minus_infinity_do_no_harm():
    logits = torch.tensor([[[0.0, -torch.inf, 1.0]]], requires_grad=True)
    logprob, entropy = logprobs_from_logits(logits, torch.tensor([[2]]), torch.ones(1))
    logprob.sum().backward()
    assert torch.isfinite(entropy).all() and logits.grad is not None and torch.isfinite(logits.grad).all()


def test_bf16_is_summed_in_fp32():
    hidden, head, targets, temperature, _ = case(1, torch.float32)
    low_h, low_w = (x.detach().bfloat16().requires_grad_() for x in (hidden, head))
    logits = (low_h @ low_w.T).view(B, T, V)
    direct, _ = logprobs_from_logits(logits, targets, temperature)
    expected, _ = plain(logits.detach().double(), targets, temperature, None)
    assert direct.dtype == torch.float32
    torch.testing.assert_close(direct.double(), expected, rtol=0, atol=1e-5)
    chunked, _ = chunked_logprobs(low_h, low_w, targets.view(-1), temperature.repeat_interleave(T), None, 3)
    torch.testing.assert_close(chunked.view(B, T), direct)
    chunked.sum().backward()
    assert low_h.grad is not None and low_h.grad.dtype == torch.bfloat16


def test_autocast_changes_neither_pass():
    hidden, head, targets, temperature, _ = case(2, torch.float32)
    temperature_N = temperature.repeat_interleave(T)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value, _ = chunked_logprobs(hidden, head, targets.view(-1), temperature_N)
        results.append([value, *torch.autograd.grad(value.sum(), [hidden, head])])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_the_full_logits_never_exist(monkeypatch):
    seen = []
    forward = logprobs._forward
    monkeypatch.setattr(logprobs, "_forward", lambda x, t: seen.append(tuple(x.shape)) or forward(x, t))
    hidden, head, targets, temperature, _ = case(3)
    value, _ = chunked_logprobs(hidden, head, targets.view(-1), temperature.repeat_interleave(T), None, chunk=4)
    assert seen == [(4, V), (4, V), (2, V)]
    saved = value.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert all(x is None or x.shape != (B * T, V) for x in saved)


def test_only_the_gradients_that_are_needed():
    hidden, head, targets, temperature, _ = case(4)
    for h, w in ((hidden.detach(), head), (hidden, head.detach())):
        value, _ = chunked_logprobs(h, w, targets.view(-1), temperature.repeat_interleave(T))
        (grad,) = torch.autograd.grad(value.sum(), [x for x in (h, w) if x.requires_grad])
        assert torch.isfinite(grad).all() and grad.abs().sum() > 0
