"""The traps of reinforcement learning on chains of thought, second half: which tokens, with which log-probabilities.

Each docstring names the trap. Each test contains the bug in miniature (`buggy` …) and asserts that its check tells the
bug from ours, so that a check which cannot fail does not pass here.
"""

import math
from dataclasses import replace

import pytest
import torch

from mull.errors import StopReason
from mull.learn import losses
from mull.learn.logprobs import logprobs_from_logits
from mull.learn.pack import pack, totals
from mull.learn.samples import from_rollouts, truncated
from mull.types import Question, Sample, Span, SpanKind, Trace
from tests.conformance.learning_toy import (
    EOS,
    PROMPT,
    Toy,
    V,
    alternating,
    finished_and_cut,
    gradient,
    group,
    new_logprobs,
    rollouts,
    same,
    step_zero,
)

# ------------------------------------------------------------------------------------------ tokens


def test_eos_never_trained():
    """Trap "EOS never trained": the sampled end token is a decision of the policy like any other, also when its id is
    that of the padding."""
    _, finished, cut = finished_and_cut()
    (batch,) = pack(from_rollouts([group([finished, cut], [True, False])], [1.0, -1.0]), 64)
    buggy_mask = batch.mask_BT & (batch.targets_BT != 0)  # "padding is where the pad id is"
    row = int((batch.lengths_B == len(PROMPT) + len(finished.tokens) - 1).nonzero()[0])
    end = int(batch.lengths_B[row]) - 1
    assert batch.targets_BT[row, end] == EOS and batch.mask_BT[row, end] and batch.advantages_BT[row, end] == 1.0
    assert batch.logprobs_BT[row, end] == pytest.approx(finished.logprobs[-1])
    assert not buggy_mask[row, end]
    assert batch.denominator == len(finished.tokens) + len(cut.tokens)
    new = batch.logprobs_BT.clone().requires_grad_()
    assert torch.autograd.grad(losses.loss(batch, new)[0], new)[0][row, end] < 0, "the end token is made likelier"


def test_eos_fabricated():
    """Trap "EOS fabricated": a rollout that was cut never sampled an end token, and must not be taught one; and an end
    that a strategy forced is context, not a decision."""
    _, _, cut = finished_and_cut()
    (s,) = from_rollouts([group([cut], [False])], [1.0])
    assert tuple(s.tokens) == PROMPT + cut.tokens and EOS not in s.tokens
    buggy = [*s.tokens, EOS]
    assert len(buggy) - len(PROMPT) != sum(s.mask) == len(cut.tokens)
    (batch,) = pack([s], 64)
    assert not ((batch.targets_BT == EOS) & batch.mask_BT).any(), "nor by the padding"

    forced = group([cut], [False])
    forced.spans.append(Span(SpanKind.FORCED, (EOS,), 1))
    forced.leaves = [2]
    (s,) = from_rollouts([forced], [1.0])
    assert s.tokens[-1] == EOS and not s.mask[-1] and s.advantages[-1] == 0.0
    assert truncated([forced]) == [True]


def test_think_masked_as_prompt():
    """Trap "`<think>` masked as prompt": whether a token is trained on follows from who wrote it, not what it is."""
    think = 7
    spans = [
        Span(SpanKind.PROMPT, PROMPT),
        Span(SpanKind.SAMPLED, (think, 2, EOS), 0, (-1.0,) * 3, stop=StopReason.STOP),
        Span(SpanKind.FORCED, (think,), 0),
        Span(SpanKind.SAMPLED, (2, EOS), 2, (-1.0,) * 2, stop=StopReason.STOP),
    ]
    free, opened = from_rollouts([Trace(Question("q", "t", "?"), "s", spans, [1, 3])], [1.0, -1.0])
    assert free.tokens == opened.tokens
    assert free.mask == [False, False, True, True, True] and opened.mask == [False, False, False, True, True]


def test_padding():
    """Trap "Padding": what stands in the padding, and how much of it there is, changes nothing."""
    model, spans = rollouts(6)
    assert len({len(s.tokens) for s in spans}) > 1
    samples = from_rollouts([group(spans, [True] * 6)], alternating(6))
    narrow, (wide,) = pack(samples, 24, pad_to=1), pack(samples, 10_000, pad_to=32)
    assert wide.tokens_BT.shape[1] == 32
    truth = gradient(model, narrow)
    assert same(gradient(model, [wide]), truth)
    padding = torch.arange(32) >= wide.lengths_B[:, None]
    other = replace(
        wide, tokens_BT=wide.tokens_BT.masked_fill(padding, 4), targets_BT=wide.targets_BT.masked_fill(padding, 6)
    )
    assert same(gradient(model, [other]), truth)
    summary, base = step_zero(model, [other]), step_zero(model, narrow)
    assert summary == pytest.approx(base, rel=1e-4, abs=1e-6)
    buggy = replace(other, mask_BT=torch.ones_like(wide.mask_BT), advantages_BT=wide.advantages_BT + padding * 1.0)
    assert not same(gradient(model, [buggy]), truth)
    dirty = new_logprobs(model, wide).detach().masked_fill(padding, math.nan)
    assert torch.isfinite(losses.loss(wide, dirty)[0])


def test_shared_prefix_counted_twice():
    """Trap "Shared prefix counted twice": a span with k children was sampled once and gets the gradient of one span,
    weighted by the mean of its continuations' advantages."""
    model = Toy()
    spans = [Span(SpanKind.PROMPT, PROMPT), Span(SpanKind.SAMPLED, (1, 2, 4), 0, (-2.0,) * 3)]
    for i in range(3):
        spans.append(Span(SpanKind.SAMPLED, (i + 1, EOS), 1, (-2.0,) * 2, stop=StopReason.STOP))
    tree = Trace(Question("q", "t", "?"), "tree", spans, [2, 3, 4])
    weights = [1.0, 0.5, -0.9]
    samples = from_rollouts([tree], weights)
    assert totals(samples)[0] == 3 + 3 * 2

    def chain(i, mask_from):
        tokens = [*PROMPT, 1, 2, 4, i + 1, EOS]
        mask = [t >= mask_from for t in range(7)]
        return Sample(
            tokens,
            advantages=[weights[i] if m else 0.0 for m in mask],
            mask=mask,
            logprobs=[-2.0 if m else 0.0 for m in mask],
        )

    shared = chain(0, 2)
    shared.mask[5:], shared.logprobs[5:], shared.advantages = [False] * 2, [0.0] * 2, [0, 0, 0.2, 0.2, 0.2, 0, 0]  # type: ignore[index]
    by_hand = [shared, *(chain(i, 5) for i in range(3))]
    truth = gradient(model, pack(by_hand, 64))
    assert same(gradient(model, pack(samples, 64)), truth)
    buggy = pack([chain(i, 2) for i in range(3)], 64)  # every branch trains its whole path
    assert buggy[0].denominator == 15
    assert not same(gradient(model, buggy), truth)


# ------------------------------------------------------------------------------------------ log-probabilities


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_temperature_in_logprobs(temperature):
    """Trap "Temperature in logprobs": scored at the temperature that it was sampled at, the on-policy ratio is 1."""
    model, spans = rollouts(6, temperature=temperature)
    batches = pack(from_rollouts([group(spans, [True] * 6)], alternating(6)), 64)
    assert step_zero(model, batches)["exp_abs_gap"] == pytest.approx(1.0, abs=1e-5)
    buggy = [replace(b, temperature_B=torch.ones_like(b.temperature_B)) for b in batches]
    assert (step_zero(model, buggy)["exp_abs_gap"] > 1.05) == (temperature != 1.0)


@pytest.mark.parametrize("top_p", [0.5, 0.8])
def test_top_p_support(top_p):
    """Trap "top-p/top-k support": where sampling cut the support, the log-probability is renormalised over the ids that
    were kept; over the full vocabulary the mean ratio on step zero falls below 1."""
    model, spans = rollouts(8, top_p=top_p)
    batches = pack(from_rollouts([group(spans, [True] * 8)], alternating(8)), 64)
    summary = step_zero(model, batches)
    assert summary["ratio"] == pytest.approx(1.0, abs=1e-5) and summary["exp_abs_gap"] == pytest.approx(1.0, abs=1e-5)
    assert step_zero(model, [replace(b, kept_BTK=None) for b in batches])["ratio"] < 0.95
    # and nothing outside the kept set gets a gradient
    b = batches[0]
    assert b.kept_BTK is not None
    logits = model(b.tokens_BT).detach().requires_grad_()
    losses.loss(b, logprobs_from_logits(logits, b.targets_BT, b.temperature_B, b.kept_BTK)[0])[0].backward()
    outside = ~(b.kept_BTK[..., None] == torch.arange(V)).any(-2)
    assert logits.grad is not None and logits.grad[outside & b.mask_BT[..., None]].abs().max() == 0


@pytest.mark.parametrize(
    "policy", [losses.truncated_ratio, losses.ppo_clip, losses.cispo, losses.gspo], ids=lambda f: f.__name__
)
def test_wrong_ppo_anchor(policy):
    """Trap "Wrong PPO anchor (π_old≠π_rollout)": the ratio is taken to the policy that sampled. Anchored at the
    trainer's own log-probabilities it is 1 by construction and corrects nothing."""
    model, spans = rollouts(8)
    batches = pack(from_rollouts([group(spans, [True] * 8)], alternating(8)), 64)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.2)  # the trainer's policy is no longer the sampler's
    buggy = [replace(b, logprobs_BT=new_logprobs(model, b).detach()) for b in batches]
    assert step_zero(model, buggy)["exp_abs_gap"] == pytest.approx(1.0)
    assert step_zero(model, batches)["exp_abs_gap"] > 1.05
    assert not same(gradient(model, batches, policy=policy), gradient(model, buggy, policy=policy))


def test_the_clamp_that_the_comment_promises():
    """Trap "Trainer≠sampler logprobs": the truncated ratio really is truncated, above only."""
    (batch,) = pack([Sample([1] * 4, [0.0, 1.0, 1.0, -1.0], [False, True, True, True], [0.0, -9.0, -0.1, -9.0])], 8)
    new = torch.full_like(batch.logprobs_BT, -1.0).requires_grad_()
    grad = torch.autograd.grad(losses.loss(batch, new)[0] * 3, new)[0][0, :3]
    assert grad.tolist() == pytest.approx([-2.0, -math.exp(-0.9), 2.0])
    unclamped = (new - batch.logprobs_BT).exp()[0, 0].item()
    assert unclamped > 1000


def test_dtype():
    """Trap "dtype": bf16 logits are normalised in fp32. In bf16 a log-probability of -10 has steps of 1/16."""
    logits = torch.randn(1, 64, 500, generator=torch.Generator().manual_seed(0)).mul_(4).bfloat16()
    targets = torch.arange(64)[None]
    truth = torch.log_softmax(logits.double(), -1).gather(-1, targets[..., None])[..., 0]
    ours, _ = logprobs_from_logits(logits, targets, torch.ones(1))
    assert (ours - truth).abs().max() < 1e-5
    buggy = torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
    assert (buggy.double() - truth).abs().max() > 1e-2


def test_missing_sampler_logprobs():
    """Trap "Missing sampler logprobs (NaN)": raise at every door; a default of zero would pass as certainty."""
    model, spans = rollouts(2)
    for bad in ((math.nan, *spans[0].logprobs[1:]), spans[0].logprobs[:-1], ()):
        with pytest.raises(ValueError, match="log-probabilities"):
            from_rollouts([group([replace(spans[0], logprobs=bad), spans[1]], [True] * 2)], [1.0, -1.0])
    samples = from_rollouts([group(spans, [True] * 2)], [1.0, -1.0])
    with pytest.raises(ValueError, match="log-probability"):
        pack([replace(samples[0], logprobs=[0.0, 0.0, *[math.nan] * len(spans[0].tokens)]), samples[1]], 64)
    (batch,) = pack(samples, 64)
    holes = replace(batch, logprobs_BT=torch.where(batch.mask_BT, math.nan, 0.0))
    with pytest.raises(ValueError, match="log-probability"):
        losses.loss(holes, new_logprobs(model, holes))
    buggy = replace(batch, logprobs_BT=torch.nan_to_num(holes.logprobs_BT))
    assert step_zero(model, [buggy])["ratio"] < 0.6, "which is what a silent default would have done"
