"""Losses: hand-worked values and gradients, finite differences; options that matter; robustness."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from mull.learn import losses
from mull.types import Batch

F64 = torch.float64
POLICIES = {
    "truncated_ratio": losses.truncated_ratio,
    "ppo_clip": losses.ppo_clip,
    "clip_higher": partial(losses.ppo_clip, high=0.28),
    "cispo": losses.cispo,
    "cispo_floor": partial(losses.cispo, floor=0.8),
    "gspo": losses.gspo,
}
AGGREGATES = {
    "token_mean": losses.token_mean,
    "sequence_mean": losses.sequence_mean,
    "constant_length": partial(losses.constant_length, length=7),
}


def make(advantages, mask, logprobs, ce=None, ref=None) -> Batch:
    mask = torch.tensor(mask, dtype=torch.bool)
    B, T = mask.shape
    advantages = torch.tensor(advantages, dtype=F64)
    ids = torch.zeros(B, T, dtype=torch.int64)
    ce = torch.zeros(B, T, dtype=F64) if ce is None else torch.tensor(ce, dtype=F64)
    counted = mask | (ce != 0)
    return Batch(
        tokens_BT=ids,
        targets_BT=ids,
        lengths_B=torch.full((B,), T),
        advantages_BT=torch.where(mask, advantages, 0.0),
        mask_BT=mask,
        logprobs_BT=torch.tensor(logprobs, dtype=F64),
        ce_BT=ce,
        temperature_B=torch.ones(B),
        kept_BTK=None,
        ref_logprobs_BT=None if ref is None else torch.tensor(ref, dtype=F64),
        denominator=float(counted.sum()),
        sequences=float(counted.any(-1).sum()),
    )


def random_case(seed: int, spread: float, B: int = 3, T: int = 5) -> tuple[Batch, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(B, T, generator=g) < 0.7
    mask[:, 0] = True
    old = -torch.rand(B, T, generator=g, dtype=F64) * 3
    batch = make(torch.randn(B, T, generator=g).tolist(), mask.tolist(), old.tolist())
    new = (old + spread * torch.randn(B, T, generator=g, dtype=F64)).requires_grad_()
    return batch, new


def gradient(loss: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, new)[0]


def at_ratio(*ratios, advantages=None, mask=None):
    """One sequence whose tokens have these ratios exactly; the sampler's probability of each was 1/8."""
    n = len(ratios)
    batch = make([advantages or [1.0] * n], [mask or [True] * n], [[math.log(0.125)] * n])
    new = torch.tensor([[math.log(0.125 * r) for r in ratios]], dtype=F64, requires_grad=True)
    return batch, new


# ------------------------------------------------------------------------------------------ hand-worked


def test_truncated_ratio_weights_the_score_function():
    """Weights min(r, 2): 0.5, 1, 2, 2. Gradient with respect to log pi: -weight * A / 4."""
    batch, new = at_ratio(0.5, 1.0, 2.0, 5.0, advantages=[1.0, -2.0, 1.0, -1.0])
    loss, found = losses.loss(batch, new)
    expected = torch.tensor([[-0.5, 2.0, -2.0, 2.0]], dtype=F64) / 4
    torch.testing.assert_close(gradient(loss, new), expected)
    assert loss.item() == pytest.approx((expected * new).sum().item())
    summary = losses.summarise([found])
    assert summary["clipped"] == 0.25 and summary["max_ratio"] == pytest.approx(5.0)
    assert summary["ratio"] == pytest.approx(8.5 / 4)
    assert summary["exp_abs_gap"] == pytest.approx((2 + 1 + 2 + 5) / 4)


def test_ppo_clip_removes_the_gradient_only_where_the_step_went_too_far():
    batch, new = at_ratio(1.5, 1.5, 0.5, 0.5, 1.1, advantages=[1.0, -1.0, 1.0, -1.0, 1.0])
    loss_BT, clipped_BT = losses.ppo_clip(batch, new)
    assert loss_BT.tolist()[0] == pytest.approx([-1.2, 1.5, -0.5, 0.8, -1.1])
    assert clipped_BT.tolist() == [[True, False, False, True, False]]
    # d(-r A)/d log pi = -r A where it is not clipped
    grad = gradient(loss_BT.sum(), new)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 1.5, -0.5, 0.0, -1.1]], dtype=F64))


def test_clip_higher_lets_a_rising_token_rise_further():
    batch, new = at_ratio(1.25)
    assert gradient(losses.ppo_clip(batch, new)[0].sum(), new).item() == 0.0
    assert gradient(losses.ppo_clip(batch, new, high=0.28)[0].sum(), new).item() == pytest.approx(-1.25)


def test_cispo_keeps_the_gradient_of_a_clipped_token():
    batch, new = at_ratio(8.0, 0.1)
    grad = gradient(losses.cispo(batch, new, floor=0.5, cap=5.0)[0].sum(), new)
    assert grad.tolist()[0] == pytest.approx([-5.0, -0.5])
    grad = gradient(losses.cispo(batch, new)[0].sum(), new)
    assert grad.tolist()[0] == pytest.approx([-5.0, -0.1])


def test_gspo_clips_whole_sequences_by_their_geometric_mean_ratio():
    """Ratios 4 and 1/4 have the geometric mean 1: PPO clips both, GSPO neither. One of 1.001 clips both tokens."""
    batch, new = at_ratio(4.0, 0.25)
    assert losses.ppo_clip(batch, new)[1].sum() == 1  # the rising token; a falling one with A > 0 is never clipped
    loss_BT, clipped_BT = losses.gspo(batch, new)
    assert not clipped_BT.any() and loss_BT.tolist()[0] == pytest.approx([-1.0, -1.0])
    batch, new = at_ratio(1.001**2, 1.0)
    loss_BT, clipped_BT = losses.gspo(batch, new)
    assert clipped_BT.all() and loss_BT.tolist()[0] == pytest.approx([-1.0004, -1.0004])
    assert gradient(loss_BT.sum(), new).abs().sum() == 0


def test_aggregations_hand_worked():
    batch = make([[1.0] * 4] * 2, [[True] * 4, [True, False, False, False]], [[0.0] * 4] * 2)
    loss_BT = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 0.0, 0.0, 0.0]])
    assert losses.token_mean(loss_BT, batch).item() == 20 / 5
    assert losses.sequence_mean(loss_BT, batch).item() == (2.5 + 10) / 2
    assert losses.constant_length(loss_BT, batch, length=10).item() == 20 / (10 * 2)


def test_cross_entropy_is_weighted_nll_beside_the_policy_gradient():
    batch = make([[1.0, 0.0]], [[True, False]], [[-1.0, 0.0]], ce=[[0.0, 0.5]])
    new = torch.tensor([[-1.0, -3.0]], dtype=F64, requires_grad=True)
    loss, found = losses.loss(batch, new)
    assert batch.denominator == 2
    assert found["loss_ce"].item() == pytest.approx(0.5 * 3.0 / 2) and found["loss_policy"].item() == 0.5
    torch.testing.assert_close(gradient(loss, new), torch.tensor([[-0.5, -0.25]], dtype=F64))


# ------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("name", ["ppo_clip", "clip_higher"])
def test_ppo_gradient_against_finite_differences(name, aggregate):
    batch, new = random_case(1, spread=0.3)
    assert torch.autograd.gradcheck(
        lambda x: losses.loss(batch, x, policy=POLICIES[name], aggregate=AGGREGATES[aggregate])[0], (new,)
    )


def test_gspo_gradient_is_that_of_the_sequence_objective():
    """The token form with stopped gradients, against finite differences of the paper's sequence objective."""
    batch, new = random_case(2, spread=0.02)
    per_sequence = torch.tensor([1.0, -1.0, 0.5], dtype=F64)
    batch.advantages_BT = torch.where(batch.mask_BT, per_sequence[:, None], 0.0)

    def objective(x):
        total = torch.zeros((), dtype=F64)
        for b in range(3):
            m = batch.mask_BT[b]
            s = (x[b][m] - batch.logprobs_BT[b][m]).mean().exp()
            total = total - torch.minimum(s * per_sequence[b], s.clamp(0.99, 1.01) * per_sequence[b])
        return total / 3

    policy = partial(losses.gspo, low=0.01, high=0.01)
    loss, _ = losses.loss(batch, new, policy=policy, aggregate=losses.sequence_mean)
    assert torch.autograd.gradcheck(objective, (new,))
    assert loss.item() == pytest.approx(objective(new).item())
    torch.testing.assert_close(gradient(loss, new), gradient(objective(new), new))


@pytest.mark.parametrize("unbiased", [False, True])
def test_kl_gradient_against_finite_differences(unbiased):
    batch, new = random_case(3, spread=0.5)
    batch.ref_logprobs_BT = batch.logprobs_BT - 0.7
    kl = partial(losses.kl_to_reference, unbiased=unbiased)
    assert torch.autograd.gradcheck(
        lambda x: losses.loss(batch, x, kl_weight=0.3, kl=kl, policy=losses.ppo_clip)[0], (new,)
    )


def test_only_the_unbiased_kl_has_the_gradient_of_the_kl():
    """The expectation over a vocabulary of 6, summed exactly, off-policy: every id once, weighted by the sampler."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=g, dtype=F64).requires_grad_()
    sampler, ref = (torch.log_softmax(torch.randn(6, generator=g, dtype=F64), -1) for _ in range(2))
    batch = make([[0.0] * 6], [[True] * 6], [sampler.tolist()], ref=[ref.tolist()])
    new = torch.log_softmax(logits, -1)
    truth = torch.autograd.grad((new.exp() * (new - ref)).sum(), logits)[0]
    new = torch.log_softmax(logits, -1)
    estimates = []
    for unbiased in (True, False):
        kl = losses.kl_to_reference(batch, new[None], unbiased=unbiased)[0]
        estimates.append(torch.autograd.grad((sampler.exp() * kl).sum(), logits, retain_graph=True)[0])
    torch.testing.assert_close(estimates[0], truth)
    assert (estimates[1] - truth).abs().max() > 0.05


def test_kl_is_zero_at_the_reference_and_needs_one():
    batch, new = random_case(4, spread=0.0)
    with pytest.raises(ValueError, match="reference"):
        losses.kl_to_reference(batch, new)
    batch.ref_logprobs_BT = batch.logprobs_BT.clone()
    kl = losses.kl_to_reference(batch, new)
    assert kl.abs().max() == 0 and gradient(kl.sum(), new).abs().max() == 0
    batch.ref_logprobs_BT += 1.0
    assert (losses.kl_to_reference(batch, new)[batch.mask_BT] > 0).all()


@pytest.mark.parametrize("name", POLICIES)
def test_on_policy_the_ratio_is_one_and_the_gradient_is_reinforce(name):
    batch, new = random_case(5, spread=0.0)
    loss, found = losses.loss(batch, new, policy=POLICIES[name])
    summary = losses.summarise([found])
    assert summary["ratio"] == summary["exp_abs_gap"] == summary["max_ratio"] == 1.0
    assert summary["clipped"] == summary["kl_sampler"] == 0.0
    torch.testing.assert_close(gradient(loss, new), -batch.advantages_BT / batch.denominator)


# ------------------------------------------------------------------------------------------ no dead options


def test_every_option_changes_the_gradient():
    ratios = torch.tensor([[0.6, 1.25, 1.5, 0.1, 8.0, 3.0], [0.75] + [1.0] * 5, [1.2] * 2 + [1.0] * 4], dtype=F64)
    mask = [[True] * 6, [True] + [False] * 5, [True] * 2 + [False] * 4]
    batch = make(
        [[-1.0, 1.0, 1.0, 1.0, 1.0, -1.0], [-1.0] * 6, [1.0] * 6], mask, [[-2.5] * 6] * 3, ref=[[-2.0] * 6] * 3
    )
    new = (batch.logprobs_BT + ratios.log()).requires_grad_()
    options = {f"policy {name}": dict(policy=f) for name, f in POLICIES.items()}
    options |= {f"aggregate {name}": dict(aggregate=f) for name, f in AGGREGATES.items() if name != "token_mean"}
    options |= {
        "cap": dict(policy=partial(losses.truncated_ratio, cap=1.2)),
        "low": dict(policy=partial(losses.ppo_clip, low=0.5)),
        "gspo low": dict(policy=partial(losses.gspo, low=0.3)),
        "gspo high": dict(policy=partial(losses.gspo, high=0.3)),
        "length": dict(aggregate=partial(losses.constant_length, length=9)),
        "kl": dict(kl_weight=0.1),
        "kl weight": dict(kl_weight=0.2),
        "kl unbiased": dict(kl_weight=0.1, kl=partial(losses.kl_to_reference, unbiased=True)),
    }
    found = {name: gradient(losses.loss(batch, new, **o)[0], new) for name, o in options.items()}
    names = list(found)
    same = [(a, b) for i, a in enumerate(names) for b in names[:i] if torch.allclose(found[a], found[b])]
    assert not same


def test_every_field_of_the_batch_that_weighs_changes_the_gradient():
    batch, new = random_case(7, spread=0.3)
    base = gradient(losses.loss(batch, new)[0], new)
    lower = replace(batch, logprobs_BT=batch.logprobs_BT - 0.2)
    for other in (
        replace(batch, advantages_BT=batch.advantages_BT * 2),
        lower,
        replace(batch, ce_BT=torch.ones_like(batch.ce_BT)),
        replace(batch, denominator=batch.denominator * 2),
    ):
        assert not torch.allclose(gradient(losses.loss(other, new)[0], new), base)


# ------------------------------------------------------------------------------------------ robustness


def test_a_huge_ratio_neither_overflows_nor_leaves_the_cap():
    batch, _ = random_case(8, spread=0.0)
    batch.logprobs_BT = -2000.0 * batch.mask_BT.to(F64)
    new = torch.full_like(batch.logprobs_BT, -1.0).requires_grad_()
    loss, found = losses.loss(batch, new)
    grad = gradient(loss, new)
    torch.testing.assert_close(grad, -2.0 * batch.advantages_BT / batch.denominator)
    assert all(math.isfinite(v) for v in losses.summarise([found]).values())


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_outside_the_mask_matters(name):
    batch, new = random_case(9, spread=0.3)
    batch.ref_logprobs_BT = batch.logprobs_BT - 0.5
    kl = partial(losses.kl_to_reference, unbiased=True)
    loss, found = losses.loss(batch, new, policy=POLICIES[name], kl_weight=0.1, kl=kl, entropy_BT=new.detach())
    dirty = torch.where(batch.mask_BT, new.detach(), torch.nan).requires_grad_()
    bad = replace(batch, ref_logprobs_BT=torch.where(batch.mask_BT, batch.ref_logprobs_BT, torch.inf))
    again, refound = losses.loss(bad, dirty, policy=POLICIES[name], kl_weight=0.1, kl=kl, entropy_BT=dirty.detach())
    assert again.item() == loss.item()
    assert losses.summarise([found]) == losses.summarise([refound])
    assert torch.equal(gradient(again, dirty), gradient(loss, new))


def test_summary_of_nothing_is_empty():
    assert losses.summarise([]) == {}
