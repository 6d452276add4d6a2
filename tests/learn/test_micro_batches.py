"""However an optimiser step is split into micro-batches, it is the same step."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.learn import losses
from mull.learn.logprobs import logprobs_from_logits
from mull.learn.pack import pack
from mull.types import Sample

F64 = torch.float64
POLICIES = [losses.truncated_ratio, losses.ppo_clip, losses.cispo, losses.gspo]
AGGREGATES = [losses.token_mean, losses.sequence_mean, partial(losses.constant_length, length=7)]


def sample(rng: torch.Generator) -> Sample:
    n = int(torch.randint(2, 14, (1,), generator=rng))
    mask = [False, *(torch.rand(n - 1, generator=rng) < 0.8).tolist()]
    values = torch.randn(n, generator=rng).tolist()
    return Sample(
        tokens=torch.randint(6, (n,), generator=rng).tolist(),
        advantages=[a if m else 0.0 for a, m in zip(values, mask, strict=True)],
        mask=mask,
        logprobs=[-abs(a) - 0.1 if m else 0.0 for a, m in zip(values, mask, strict=True)],
        ce=[0.0, *[0.0 if m else 0.5 for m in mask[1:]]] if n % 2 else None,
        temperature=0.5 + n / 10,
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_micro_batches_add_up_to_the_whole_step(seed, n):
    """Loss, gradient and diagnostics, for every policy and aggregation, however the step is split."""
    rng = torch.Generator().manual_seed(seed)
    samples = [sample(rng) for _ in range(n)]
    table = torch.randn(6, 6, generator=rng, dtype=F64).requires_grad_()  # a bigram model

    def step(max_tokens, policy, aggregate):
        total, found = torch.zeros((), dtype=F64), []
        for b in pack(samples, max_tokens, pad_to=4):
            b.ref_logprobs_BT = b.logprobs_BT - 0.1
            lp, entropy = logprobs_from_logits(table[b.tokens_BT], b.targets_BT, b.temperature_B)
            loss, d = losses.loss(b, lp, policy=policy, aggregate=aggregate, kl_weight=0.1, entropy_BT=entropy)
            total, found = total + loss, [*found, d]
        summary = losses.summarise(found)
        grad = torch.autograd.grad(total, table)[0] if found else torch.zeros(6, 6)
        return len(found), total.item(), grad, summary

    pairs = [(p, losses.token_mean) for p in POLICIES]
    pairs += [(losses.truncated_ratio, a) for a in AGGREGATES]
    for policy, aggregate in pairs:
        one, *whole = step(10_000, policy, aggregate)
        several, *split = step(16, policy, aggregate)
        assert one <= 1 and several >= one
        assert split[0] == pytest.approx(whole[0], abs=1e-6)
        torch.testing.assert_close(split[1], whole[1], rtol=1e-6, atol=1e-7)
        assert split[2] == pytest.approx(whole[2], abs=1e-6)
