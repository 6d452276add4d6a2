"""Self-correction: what each turn earns, which tokens are trained on with what weight, and where the KL acts."""

from __future__ import annotations

import asyncio
import itertools
import math
from pathlib import Path

import pytest
import torch

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import StopReason
from mull.learn import correct as turns
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack
from mull.ledger import Budget
from mull.models import hf
from mull.search.turns import bridge, two_turns
from mull.types import Question, Sample, Span, SpanKind, Trace
from tests.recipes.tiny import save_tiny

R1, R2 = [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]  # the four things that can happen


@pytest.mark.parametrize(
    ("stage", "credit", "expected"),
    [
        (1, "own", [(0, 0), (0, 1), (0, 0), (0, 1)]),
        (1, "sum", [(0, 0), (1, 1), (0, 0), (1, 1)]),
        (1, "shaped", [(0, 0), (1, 1), (0, 0), (1, 1)]),  # stage I has no bonus
        (2, "own", [(0, 0), (0, 11), (1, -10), (1, 1)]),
        (2, "sum", [(0, 0), (1, 11), (1, -10), (2, 1)]),
        (2, "shaped", [(0, 0), (11, 11), (-9, -10), (2, 1)]),
    ],
)
def test_what_each_turn_earns_by_hand(stage, credit, expected):
    assert turns.turn_rewards(R1, R2, stage, 10.0, credit) == expected


def test_without_a_bonus_stage_two_pays_each_attempt_once():
    assert turns.turn_rewards(R1, R2, 2, 0.0, "own") == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_advantages_by_hand():
    # stage II, own, alpha 10: first turn 0 0 1 1 (mean 1/2), second 0 11 -10 1 (mean 1/2)
    got = turns.turn_advantages(R1, R2, 2, 10.0, "own")
    assert got == [(-0.5, -0.5), (-0.5, 10.5), (0.5, -10.5), (0.5, 0.5)]
    # the second turn against chains with the same first reward: 0 11 (mean 5.5) and -10 1 (mean -4.5)
    got = turns.turn_advantages(R1, R2, 2, 10.0, "own", "attempt")
    assert got == [(-0.5, -5.5), (-0.5, 5.5), (0.5, -5.5), (0.5, 5.5)]
    # a chain alone with its first reward learns nothing from its second attempt
    alone = turns.turn_advantages([1.0, 0.0, 0.0], [1.0, 1.0, 0.0], 2, 1.0, "own", "attempt")[0]
    assert alone == (pytest.approx(2 / 3), 0.0)


def test_what_cannot_be_judged_is_in_no_baseline():
    first, second = [0.0, None, 1.0, 0.0], [1.0, 1.0, None, 0.0]
    for baseline in ("group", "attempt"):
        got = turns.turn_advantages(first, second, 2, 1.0, "sum", baseline)
        # chains 0 and 3 are left: first turn earns 1 and 0, second 2 and 0
        assert got == [(0.5, 1.0), None, None, (-0.5, -1.0)]


# ------------------------------------------------------------- a policy small enough to sum over all its chains


def expected(logits: torch.Tensor, of) -> torch.Tensor:
    """E[of(r1, r2)] of a policy that is right first with sigmoid(l0), then with sigmoid(l1) or (right first) l2."""
    total = torch.zeros((), dtype=torch.float64)
    for r1, r2 in itertools.product((0, 1), (0, 1)):
        total = total + logp(logits, r1, r2)[0].exp() * logp(logits, r1, r2)[1].exp() * of(r1, r2)
    return total


def logp(logits: torch.Tensor, r1: int, r2: int) -> tuple[torch.Tensor, torch.Tensor]:
    sign1, sign2 = 2 * r1 - 1, 2 * r2 - 1
    return torch.nn.functional.logsigmoid(sign1 * logits[0]), torch.nn.functional.logsigmoid(sign2 * logits[1 + r1])


def policy_gradient(values: list[float], stage, alpha, credit) -> torch.Tensor:
    """The expected gradient of sum over turns of (what the turn earns) * log-probability."""
    logits = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for r1, r2 in itertools.product((0, 1), (0, 1)):
        one, two = logp(logits, r1, r2)
        [pair] = turns.turn_rewards([float(r1)], [float(r2)], stage, alpha, credit)
        assert pair is not None
        total = total + (one + two).exp().detach() * (pair[0] * one + pair[1] * two)
    return torch.autograd.grad(total, logits)[0]


def finite_difference(values: list[float], of) -> torch.Tensor:
    out = []
    for i in range(3):
        up, down = list(values), list(values)
        up[i] += 1e-6
        down[i] -= 1e-6
        ends = [expected(torch.tensor(v, dtype=torch.float64), of) for v in (up, down)]
        out.append((ends[0] - ends[1]) / 2e-6)
    return torch.stack(out)


VALUES = [0.3, -0.8, 1.1]


@pytest.mark.parametrize(
    ("stage", "alpha", "credit", "objective"),
    [
        (1, 10.0, "sum", lambda r1, r2: r2),
        (2, 0.0, "sum", lambda r1, r2: r1 + r2),
        (2, 10.0, "shaped", lambda r1, r2: r1 + r2 + 10 * (r2 - r1)),
    ],
)
def test_the_gradient_is_that_of_the_stated_objective(stage, alpha, credit, objective):
    assert torch.allclose(
        policy_gradient(VALUES, stage, alpha, credit), finite_difference(VALUES, objective), atol=1e-7
    )


def test_the_bonus_only_makes_the_second_attempt_weigh_more():
    """Given the first attempt, alpha r1 is a constant: it has no gradient in expectation on the second turn."""
    for credit in ("own", "sum"):
        plain = policy_gradient(VALUES, 2, 0.0, credit)
        bonus = policy_gradient(VALUES, 2, 10.0, credit)
        assert torch.allclose(bonus[0], plain[0], atol=1e-12)
        assert torch.allclose(bonus[1:], 11 * plain[1:], atol=1e-12)
    assert policy_gradient(VALUES, 2, 10.0, "shaped")[0] < 0 < policy_gradient(VALUES, 2, 10.0, "sum")[0], (
        "a bonus that reaches the first turn pays it to be wrong"
    )


def test_a_baseline_per_first_attempt_takes_the_bonus_s_noise_away():
    """The second turn's advantages then say the same whatever alpha r1 is; with one for the group they do not."""
    first, second = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]

    def twos(alpha: float, baseline) -> list[float]:
        return [pair[1] for pair in turns.turn_advantages(first, second, 2, alpha, "own", baseline) if pair]

    assert twos(10.0, "attempt") == pytest.approx([11 * a for a in twos(0.0, "attempt")])
    assert twos(10.0, "group") != pytest.approx([11 * a for a in twos(0.0, "group")], abs=1)


# ------------------------------------------------------------------------------------------------- tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("correct") / "base")


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return Chat.load(folder)


def sampled(folder: Path, chat: Chat, n: int = 6, think_tokens: int = 12) -> Trace:
    engine = LocalEngine(hf.load(folder), chat)
    budget = Budget(think_tokens=think_tokens, answer_tokens=8, samples=n)
    return asyncio.run(two_turns(Question("q", "any", "7+5"), engine, chat, budget, seed=2, instruction="again"))


def test_both_turns_are_trained_on_as_sampled_and_nothing_else(folder: Path, chat: Chat):
    trace = sampled(folder, chat, 12)
    cut = [trace.spans[leaf].stop is StopReason.LENGTH for leaf in trace.leaves[0::2]]
    assert any(cut) and not all(cut)
    advantages: list = [(i + 1.0, -i - 0.5) for i in range(12)]
    advantages[3] = None
    samples = turns.to_samples(trace, advantages)
    assert len(samples) == 11
    chains = [i for i in range(12) if i != 3]
    for i, sample in zip(chains, samples, strict=True):
        prompt, first, forced, second = trace.path(trace.leaves[2 * i + 1])
        assert [s.kind for s in (first, forced, second)] == [SpanKind.SAMPLED, SpanKind.FORCED, SpanKind.SAMPLED]
        assert trace.spans[trace.leaves[2 * i]] is first
        assert tuple(sample.tokens) == prompt.tokens + first.tokens + forced.tokens + second.tokens
        text = chat.decode(forced.tokens)
        assert text == ("<|end|>" if cut[i] else "") + "<|user|>again<|end|><|assistant|><think>"
        parts = [(s.kind is SpanKind.SAMPLED, len(s.tokens)) for s in (prompt, first, forced, second)]
        assert list(sample.mask) == [on for on, n in parts for _ in range(n)]
        expected = [w for w, (_, n) in zip((0, i + 1.0, 0, -i - 0.5), parts, strict=True) for _ in range(n)]
        assert list(sample.advantages) == expected
        if second.stop is StopReason.STOP:
            assert sample.mask[-1] and sample.tokens[-1] == chat.turn_end, "the sampled end token is trained on"
        assert list(sample.logprobs) == [0.0] * len(prompt.tokens) + list(first.logprobs) + [0.0] * len(
            forced.tokens
        ) + list(second.logprobs)


def test_on_policy_the_ratio_is_one_on_both_turns(folder: Path, chat: Chat):
    samples = turns.to_samples(sampled(folder, chat), [(1.0, 1.0)] * 6)
    model = hf.load(folder)
    for batch in pack(samples, 1 << 14):
        logprobs_BT, _ = batch_logprobs(model, batch)
        assert float((logprobs_BT - batch.logprobs_BT)[batch.mask_BT].detach().abs().max()) < 1e-4


def test_the_kl_acts_on_the_tokens_of_its_turn(folder: Path, chat: Chat):
    samples = turns.to_samples(sampled(folder, chat), [(0.0, 0.0)] * 6)
    [batch] = pack(samples, 1 << 14)
    generator = torch.Generator().manual_seed(0)
    new_BT = (batch.logprobs_BT + 0.3 * torch.randn(batch.mask_BT.shape, generator=generator)).requires_grad_()
    batch.ref_logprobs_BT = batch.logprobs_BT + 0.2 * torch.randn(batch.mask_BT.shape, generator=generator)
    order = sorted(range(6), key=lambda i: -len(samples[i].tokens))
    for weights in ((2.0, 0.5), (1.0, 0.0), (0.0, 1.0)):
        kl_BT = turns.turn_kl(batch, new_BT, weights)
        for row, i in enumerate(order):
            for t, turn in enumerate(turns.turns_of(samples[i].mask)[1:]):
                log_q = float((batch.ref_logprobs_BT[row, t] - new_BT[row, t]).detach())
                ratio = math.exp(float((new_BT[row, t] - batch.logprobs_BT[row, t]).detach()))
                by_hand = (0.0, *weights)[turn] * ratio * (math.exp(log_q) - 1 - log_q)
                assert float(kl_BT[row, t].detach()) == pytest.approx(by_hand, abs=1e-5)
        [gradient_BT] = torch.autograd.grad(kl_BT.sum(), new_BT)
        for row, i in enumerate(order):
            of_turn = torch.tensor(turns.turns_of(samples[i].mask)[1:])
            gradient_T = gradient_BT[row, : len(of_turn)]
            for turn, weight in enumerate((0.0, *weights)):
                assert bool((gradient_T[of_turn == turn] != 0).any()) == (weight > 0)


def test_the_kls_of_the_stages():
    assert turns.kl_weights(1, 0.01, 0.25) == (0.26, 0.01)
    assert turns.kl_weights(2, 0.01, 0.25) == (0.01, 0.01)


def test_the_kl_s_gradient_is_the_reverse_kl_s():
    """On-policy, summed over a small vocabulary: of KL(pi || reference), not of KL(reference || pi)."""
    theta = torch.tensor([0.2, -0.4, 1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.5, 0.1, -0.3], dtype=torch.float64).log_softmax(-1)
    pi = theta.log_softmax(-1)
    [exact] = torch.autograd.grad((pi.exp() * (pi - reference)).sum(), theta, retain_graph=True)
    sample = Sample([0, 1, 2], [0.0] * 3, [False, True, True], [0.0] * 3)
    total = torch.zeros((), dtype=torch.float64)
    for token in range(3):
        [batch] = pack([sample], 64)
        batch.mask_BT[:, 1:] = False
        batch.logprobs_BT = batch.logprobs_BT.double() + torch.where(batch.mask_BT, pi[token].detach(), 0.0)
        batch.ref_logprobs_BT = torch.where(batch.mask_BT, reference[token], 0.0)
        new_BT = torch.where(batch.mask_BT, pi[token], 0.0)
        total = total + pi[token].exp().detach() * turns.turn_kl(batch, new_BT, (1.0, 0.0)).sum()
    [estimated] = torch.autograd.grad(total, theta)
    assert torch.allclose(exact, estimated, atol=1e-6)


# ------------------------------------------------------------------------------------------ demonstrations


def texts(sample: Sample, chat: Chat) -> tuple[str, str]:
    """(context, what is learnt)."""
    assert sample.ce is not None and not any(sample.mask) and not any(sample.advantages)
    start = next(i for i, weight in enumerate(sample.ce) if weight)
    assert all(sample.ce[start:])
    return chat.decode(sample.tokens[:start]), chat.decode(sample.tokens[start:])


def trace_of(chat: Chat, chains: list[list[str]]) -> Trace:
    """Chains of attempts, written as text: "thought>answer"."""
    trace = Trace(Question("q", "any", "7+5"), "two_turns", [Span(SpanKind.PROMPT, tuple(chat.prompt("7+5")))])
    for chain in chains:
        here = 0
        for i, attempt in enumerate(chain):
            if i:
                trace.spans.append(Span(SpanKind.FORCED, tuple(bridge(chat, "again")), here))
                here = len(trace.spans) - 1
            tokens = tuple(chat.reply(*attempt.split(">")))
            trace.spans.append(Span(SpanKind.SAMPLED, tokens, here, (0.0,) * len(tokens), stop=StopReason.STOP))
            here = len(trace.spans) - 1
            trace.leaves.append(here)
    return trace


def test_star_learns_the_second_attempts_that_mended(chat: Chat):
    trace = trace_of(chat, [["a>1", "b>2"], ["c>3", "d>4"], ["e>5", "f>6"], ["g>7", "h>8"]])
    samples = turns.corrections(trace, [0, 1, 1, 1, 0, 0, None, 1], group=3)
    [sample] = samples
    between = "<|user|>again<|end|><|assistant|><think>"
    assert texts(sample, chat) == (
        f"<|user|>7+5<|end|><|assistant|><think>a</think>1<|end|>{between}",
        "b</think>2<|end|>",
    )
    assert sample.group == 3


def test_pair_sft_puts_a_right_attempt_behind_a_wrong_one(chat: Chat):
    trace = trace_of(chat, [["a>1"], ["b>2"], ["c>3"], ["d>4"], ["e>5"]])
    between = [list(bridge(chat, f"again{i}")) for i in range(5)]
    samples = turns.pairs(trace, [0, 1, None, 0, 0], between)
    [sample] = samples  # one right attempt: one pair
    assert texts(sample, chat) == (
        "<|user|>7+5<|end|><|assistant|><think>a</think>1<|end|><|user|>again0<|end|><|assistant|><think>",
        "b</think>2<|end|>",
    )
