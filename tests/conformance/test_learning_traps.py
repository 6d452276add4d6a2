"""The traps of reinforcement learning on chains of thought, first half: averages, advantages, truncation.

Each docstring names the trap. Each test contains the bug in miniature (`buggy` …) and asserts that its check tells the
bug from ours, so that a check which cannot fail does not pass here.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from mull.errors import StopReason
from mull.learn import advantages, losses, shaping
from mull.learn.pack import pack, totals
from mull.learn.samples import from_rollouts, rewards, truncated
from mull.types import Sample, Span, SpanKind, Verdict
from tests.conformance.learning_toy import alternating, finished_and_cut, gradient, group, rollouts, same

# ------------------------------------------------------------------------------------------ averages


def test_length_bias():
    """Trap "Length bias (per-sequence mean)": each token of a long wrong answer must be punished as much as each token
    of a short one. A mean per sequence divides by the length."""
    long, short = (Sample([1] * (n + 1), [0.0] + [-1.0] * n, [False] + [True] * n, [0.0] + [-1.0] * n) for n in (8, 2))
    (batch,) = pack([long, short], 64)

    def per_token(**options):
        new = batch.logprobs_BT.clone().requires_grad_()
        grad = torch.autograd.grad(losses.loss(batch, new, **options)[0], new)[0]
        return grad[0, 0].item(), grad[1, 0].item()

    on_long, on_short = per_token()
    assert on_long == on_short == pytest.approx(1 / 10)
    dr_long, dr_short = per_token(aggregate=partial(losses.constant_length, length=8))
    assert dr_long == dr_short == pytest.approx(1 / 16)
    buggy_long, buggy_short = per_token(aggregate=losses.sequence_mean)
    assert buggy_short == pytest.approx(4 * buggy_long)


def test_denominator_per_micro_batch():
    """Trap "Denominator per micro-batch/rank": the split into micro-batches must not change the step."""
    model, spans = rollouts(8)
    samples = from_rollouts([group(spans, [True] * 8)], alternating(8))
    whole, split = pack(samples, 10_000), pack(samples, 24)
    assert len(whole) == 1 and len(split) > 2
    buggy = [replace(b, denominator=float(b.mask_BT.sum()), sequences=float(len(b.mask_BT))) for b in split]
    halves = samples[:4], samples[4:]  # two ranks that have added up their totals
    both = tuple(a + b for a, b in zip(totals(halves[0]), totals(halves[1]), strict=True))
    ranks = [b for half in halves for b in pack(half, 24, step_totals=both)]  # type: ignore[arg-type]
    for aggregate in (losses.token_mean, losses.sequence_mean, partial(losses.constant_length, length=12)):
        truth = gradient(model, whole, aggregate=aggregate)
        assert same(gradient(model, split, aggregate=aggregate), truth)
        assert same(gradient(model, ranks, aggregate=aggregate), truth)
        assert not same(gradient(model, buggy, aggregate=aggregate), truth)


def test_denominator_counts_masked_truncations():
    """Trap "Denominator counts masked truncations": a rollout that is left out of the loss must not dilute it."""
    model, spans = rollouts(6, limit=5)
    cut = truncated([group(spans, [True] * 6)])
    assert any(cut) and not all(cut)
    advantage = shaping.mask_truncated(alternating(6), cut)
    masked = pack(from_rollouts([group(spans, [True] * 6)], advantage), 64)
    rest = [s for s, c in zip(spans, cut, strict=True) if not c]
    never_there = pack(from_rollouts([group(rest, [])], [a for a in advantage if a is not None]), 64)
    assert same(gradient(model, masked), gradient(model, never_there))
    buggy = pack(from_rollouts([group(spans, [True] * 6)], [0.0 if a is None else a for a in advantage]), 64)
    assert not same(gradient(model, buggy), gradient(model, never_there))


# ------------------------------------------------------------------------------------------ advantages


def test_std_bias_and_tiny_std():
    """Trap "std bias and tiny std": dividing by std weighs nearly solved and nearly hopeless questions more than the
    others; with a tiny constant it also turns rounding differences into full-size advantages."""
    hard, even = [1.0] + [0.0] * 7, [1.0] * 4 + [0.0] * 4

    def per_unit(function):  # advantage per unit of distance from the mean: how much this question weighs
        return [function(r)[0] / (1.0 - sum(r) / 8) for r in (hard, even)]

    assert per_unit(advantages.mean_centred) == pytest.approx([1.0, 1.0])
    biased = per_unit(advantages.grpo)
    assert biased[0] > 1.4 * biased[1]

    nearly_equal = [0.5, 0.5 + 1e-5, 0.5, 0.5]
    std = np.std(nearly_equal, ddof=1)
    buggy = [(r - np.mean(nearly_equal)) / (std + 1e-8) for r in nearly_equal]
    assert max(map(abs, buggy)) > 1
    assert max(abs(a) for a in advantages.grpo(nearly_equal)) < 0.1  # type: ignore[arg-type]
    assert advantages.grpo([0.1 + 0.2, 0.3, 0.3]) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, -2.5])
def test_all_equal_groups(value):
    """Trap "All-equal groups": they teach nothing and are dropped, also when rewards are continuous, where a filter on
    the mean (0 < mean < 1) lets them through."""
    rewards_G = [value, value, None, value]
    assert advantages.constant(rewards_G)
    for function in (advantages.mean_centred, advantages.grpo, advantages.rloo):
        assert function(rewards_G) == [0.0, 0.0, None, 0.0]
    assert advantages.reinforce_pp_baseline([rewards_G, [0.0, 1.0]])[0] == [0.0, 0.0, None, 0.0]

    def buggy_constant(r):
        known = [x for x in r if x is not None]
        return not 0 < sum(known) / len(known) < 1

    mixed = [2.0, 0.0]
    assert not advantages.constant(mixed)
    assert buggy_constant([0.3, 0.3]) != advantages.constant([0.3, 0.3])
    assert buggy_constant(mixed) != advantages.constant(mixed)


def test_filtering_desyncs_groups():
    """Trap "Filtering desyncs groups": unscorable and truncated rollouts fall out of some groups; everyone else must
    keep their own advantage, from their own group."""
    correct = [[True, None, False], [False, True, True], [None, None, True]]
    traces = [
        group([Span(SpanKind.SAMPLED, (10 * g + i,), 0, (-1.0,), stop=StopReason.STOP) for i in range(3)], correct[g])
        for g in range(3)
    ]
    found = {}
    for g, trace in enumerate(traces):
        for s in from_rollouts([trace], advantages.mean_centred(rewards([trace])), group=g):
            found[s.tokens[-1]] = (s.group, s.advantages[-1])
    third = 1 / 3
    expected = {0: (0, 0.5), 2: (0, -0.5), 10: (1, -2 * third), 11: (1, third), 12: (1, third), 22: (2, 0.0)}
    assert found == {token: (g, pytest.approx(a)) for token, (g, a) in expected.items()}

    flat = [
        (10 * g + i, float(c)) for g in range(3) for i, c in enumerate(correct[g]) if c is not None
    ]  # filter first,
    buggy = {}
    for start in range(0, len(flat), 3):  # then reshape to groups of three
        for (token, _), a in zip(
            flat[start : start + 3], advantages.mean_centred([r for _, r in flat[start : start + 3]]), strict=True
        ):
            buggy[token] = a
    assert buggy[0] != expected[0][1] and buggy[10] != pytest.approx(expected[10][1])


def test_group_of_one():
    """Trap "Group of one": without a baseline the raw reward must not become the advantage."""

    def buggy_rloo(r):
        return [x - (sum(r) - x) / (len(r) - 1) if len(r) > 1 else x for x in r]

    assert buggy_rloo([1.0]) == [1.0]
    for function in (advantages.rloo, advantages.mean_centred, advantages.grpo):
        assert function([1.0]) == [0.0]
        assert function([None, 1.0, None]) == [None, 0.0, None], "also when the others could not be judged"
    assert advantages.reinforce_pp([[1.0]]) == advantages.reinforce_pp_baseline([[1.0]]) == [[0.0]]


def test_unscorable_is_not_wrong():
    """Trap "Unscorable≠wrong": a grader that crashed says nothing; its rollout enters no baseline and no loss."""
    model, spans = rollouts(4)
    known = group(spans[:3], [True, False, True])
    crashed = group(spans, [True, False, True, None])
    assert rewards([crashed]) == [1.0, 0.0, 1.0, None]
    as_wrong = [0.0 if r is None else r for r in rewards([crashed])]
    for function in (advantages.mean_centred, advantages.grpo, advantages.rloo):
        assert function(rewards([crashed])) == [*function([1.0, 0.0, 1.0]), None]
        assert function(as_wrong)[:3] != function([1.0, 0.0, 1.0])

    def grad(trace, r):
        return gradient(model, pack(from_rollouts([trace], advantages.mean_centred(r)), 64))

    assert same(grad(crashed, rewards([crashed])), grad(known, rewards([known])))
    assert not same(grad(crashed, as_wrong), grad(known, rewards([known])))


def test_additive_format_reward():
    """Trap "Additive format reward becomes full advantage after std normalization": in a group of wrong answers a bonus
    of 0.1 for good form must not earn what a right answer earns."""
    wrong, bonus = [0.0] * 4, [0.1, 0.0, 0.0, 0.0]
    right_answer = advantages.grpo([1.0, 0.0, 0.0, 0.0])[0]
    buggy = advantages.grpo([r + b for r, b in zip(wrong, bonus, strict=True)])[0]
    assert buggy == pytest.approx(right_answer, rel=0.01)
    gated = shaping.with_bonus(wrong, bonus)
    assert advantages.constant(gated) and advantages.grpo(gated) == [0.0] * 4
    assert shaping.with_bonus([1.0, 1.0, 0.0], [0.1, 0.0, 0.1]) == [1.1, 1.0, 0.0]
    small = advantages.mean_centred([0.1, 0.0, 0.0, 0.0])[0]
    assert small == pytest.approx(0.075), "and the default keeps a small difference small"


# ------------------------------------------------------------------------------------------ truncation


def test_truncated_rollouts():
    """Trap "Truncated rollouts": never trained like any other by accident. The three policies give three gradients,
    and leaving out is the same as never having sampled."""
    model, finished, cut = finished_and_cut()
    _, other, _ = finished_and_cut()
    trace = group([finished, other, cut], [False, False, True])  # the cut one already shows the right answer
    r, was_cut = rewards([trace]), truncated([trace])
    assert was_cut == [False, False, True]

    def grad(trace, r):
        return gradient(model, pack(from_rollouts([trace], advantages.mean_centred(r)), 64))

    kept = grad(trace, shaping.keep_truncated(r, was_cut))
    zero = grad(trace, shaping.zero_truncated(r, was_cut))
    left_out = grad(trace, shaping.leave_out_truncated(r, was_cut))
    assert kept.norm() > 0 and zero.norm() == 0 and left_out.norm() == 0
    trace.verdicts[0] = Verdict(True)
    r = rewards([trace])
    policies = (shaping.keep_truncated, shaping.zero_truncated, shaping.leave_out_truncated)
    kept, zero, left_out = (grad(trace, f(r, was_cut)) for f in policies)
    assert not same(kept, zero) and not same(kept, left_out) and not same(zero, left_out)
    assert same(left_out, grad(group([finished, other], [True, False]), [1.0, 0.0]))
    assert shaping.overlong_penalty(5, limit=5, buffer=2) == -1.0 < shaping.overlong_penalty(4, limit=5, buffer=2) < 0
