"""Distillation: students, what of a teacher's traces is kept, and the two forms of the on-policy gradient."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from mull.chat import Chat
from mull.errors import StopReason, UserError
from mull.learn import distill, losses
from mull.learn.distill import chunked_kl, exact_loss, kl, of_layers, parameters, smaller, verified, with_teacher
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack
from mull.models import hf
from mull.models.attention import causal
from mull.models.nano import nano_config, write_tokenizer
from mull.types import Batch, Sample
from tests.learn.test_dpo import graded, span, tiny
from tests.search.tools import chat

F64 = torch.float64


# ------------------------------------------------------------------------------------------------ students


def test_a_narrower_student_keeps_the_teacher_s_proportions():
    teacher = nano_config()
    config = smaller(teacher, 4, 64)
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (4, 64, 192)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 16)
    assert (config.vocab_size, config.family, config.max_positions) == (272, "qwen3", 1024)
    big, small = hf.init(teacher, 0), hf.init(config, 0)
    assert 0.2 < parameters(small) / parameters(big) < 1 / 3
    assert parameters(big) == sum(p.numel() for _, p in big.named_parameters()) > 800_000
    assert smaller(teacher, 2, 50).head_dim % 2 == 0, "rotations turn pairs"
    windowed = replace(teacher, sliding_window=(None, 8, 16, 32))
    assert smaller(windowed, 2, 64).sliding_window == (None, 32)
    assert smaller(windowed, 1, 64).sliding_window == (None,) and smaller(windowed, 6, 64).sliding_window[5] == 32
    for layers, width in ((0, 64), (2, 8)):
        with pytest.raises(UserError, match="too small"):
            smaller(teacher, layers, width)


def test_a_student_of_the_teacher_s_layers():
    teacher = hf.init(replace(nano_config(), num_layers=4, hidden_size=32, intermediate_size=64, head_dim=16), 3)
    weights = dict(teacher.named_parameters())
    for number in range(4):
        torch.nn.init.constant_(weights[f"layers.{number}.attention_norm.weight"], float(number))
    student = of_layers(teacher, 3)
    taken = dict(student.named_parameters())
    assert [int(taken[f"layers.{number}.attention_norm.weight"][0]) for number in range(3)] == [0, 2, 3]
    assert torch.equal(taken["layers.2.qkv.weight"], weights["layers.3.qkv.weight"])
    assert torch.equal(student.embedding.weight, teacher.embedding.weight)
    student.embedding.weight.data.zero_()
    assert teacher.embedding.weight.abs().max() > 0, "a copy"
    tokens = torch.arange(6)[None]
    same = [model(tokens, tokens, causal()) for model in (of_layers(teacher, 4), teacher)]
    assert torch.equal(*same)
    with pytest.raises(UserError, match="4 layers"):
        of_layers(teacher, 5)


def test_another_tokenizer_or_template_is_refused(tmp_path):
    distill.refuse_other_tokens(chat(), chat(), (272, 272))
    with pytest.raises(UserError, match="another tokenizer"):
        distill.refuse_other_tokens(chat(), chat(), (272, 288))
    write_tokenizer(tmp_path)
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|user|>", "<|user|>Q: "))
    with pytest.raises(UserError, match="same family"):
        distill.refuse_other_tokens(chat(), Chat.load(tmp_path), (272, 272))


# ------------------------------------------------------------------------------------------------ off-policy


def test_which_of_the_teacher_s_chains_are_kept():
    one = graded(
        [
            span([10, 11, 12, 99]),
            span([13, 14, 99]),
            span([13, 14, 99]),
            span([15, 99]),
            span([16], stop=StopReason.LENGTH),
            span([17, 99]),
        ],
        {1: True, 2: True, 3: True, 4: False, 5: True, 6: None},
    )
    other = graded([span([20, 99])], {1: True}, name="q/2")

    def kept(keep):
        return [(list(s.tokens[2:]), s.group) for s in verified([one, other], keep)]

    assert kept("shortest") == [([13, 14, 99], 0), ([20, 99], 1)]
    assert kept("right") == [([10, 11, 12, 99], 0), ([13, 14, 99], 0), ([20, 99], 1)]
    wrong = [([15, 99], 0), ([17, 99], 0)]
    assert kept("all") == [([10, 11, 12, 99], 0), ([13, 14, 99], 0), ([13, 14, 99], 0), *wrong, ([20, 99], 1)]
    [first, _] = verified([one, other])
    assert first.ce == [0, 0, 1, 1, 1] and not any(first.mask)


def test_a_chain_can_be_learnt_behind_a_wish_for_its_own_length():
    trace = graded([span([10, 11, 12, 99]), span([13, 99])], {1: True, 2: True})
    plain = verified([trace], "right")
    wished = verified([trace], "right", lambda question, tokens: [7, 7, tokens] if question.id == "q/1" else [])
    assert [list(s.tokens) for s in wished] == [[7, 7, 4, 10, 11, 12, 99], [7, 7, 2, 13, 99]]
    for a, b in zip(plain, wished, strict=True):
        assert list(a.tokens[2:]) == list(b.tokens[3:]) and b.ce == [0, *(a.ce or [])], "the wish itself is not learnt"


# ------------------------------------------------------------------------------------------------ the KL


def test_both_directions_by_hand():
    own, other = torch.tensor([[0.5, 0.5]], dtype=F64).log(), torch.tensor([[0.9, 0.1]], dtype=F64).log()
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert kl(own, other).item() == pytest.approx(reverse)
    assert kl(own, other, "forward").item() == pytest.approx(forward)
    assert kl(own + 3.0, own).item() == pytest.approx(0.0, abs=1e-12), "logits are free up to a constant"


def states(seed: int = 0, n: int = 4, v: int = 5):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, v, generator=g, dtype=F64) for _ in range(2)]


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_the_exact_gradient_agrees_with_finite_differences(direction):
    own, other = states()
    own.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl(x, other, direction), (own,))
    teacher = other.clone().requires_grad_()
    kl(own, teacher, direction).sum().backward()
    assert teacher.grad is None, "the teacher learns nothing"


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_in_chunks_it_is_the_same(direction, chunk):
    """With heads of different widths, and the gradients of the head and of the states."""
    g = torch.Generator().manual_seed(1)
    own, head = (torch.randn(n, 6, generator=g, dtype=F64, requires_grad=True) for n in (7, 5))
    other, other_head = (torch.randn(n, 9, generator=g, dtype=F64) for n in (7, 5))
    found = chunked_kl(own, head, other, other_head, direction, chunk)
    whole = kl(own @ head.T, other @ other_head.T, direction)
    torch.testing.assert_close(found, whole)
    weights = torch.arange(1.0, 8.0, dtype=F64)
    for a, b in zip(*(torch.autograd.grad((x * weights).sum(), (own, head)) for x in (found, whole)), strict=True):
        torch.testing.assert_close(a, b)
    assert chunked_kl(own[:0], head, other[:0], other_head, direction).shape == (0,)


def test_the_sampled_form_is_the_exact_one_in_expectation():
    """At each of four states all five tokens, weighed by the student's own probabilities: the gradient of the reverse
    KL, and not that of the forward one."""
    own, other = states(2)
    own.requires_grad_()
    p, teacher = torch.log_softmax(own, -1), torch.log_softmax(other, -1)
    expected = torch.zeros((), dtype=F64)
    value = 0.0
    for v in range(5):
        sampler = p[:, v].detach()[None]
        advantages = (teacher[:, v] - sampler).detach()
        ids, yes = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool)
        batch = Batch(ids, ids, ids[:, 0], advantages, yes, sampler, sampler * 0, sampler[:, 0], None, None, 4.0, 1.0)
        loss_BT, _ = losses.truncated_ratio(batch, p[:, v][None])
        expected = expected + (sampler.exp() * loss_BT).sum()
        value -= float((sampler.exp() * advantages).sum())
    grad = torch.autograd.grad(expected, own, retain_graph=True)[0]
    exact = torch.autograd.grad(kl(own, other).sum(), own)[0]
    torch.testing.assert_close(grad, exact)
    assert value == pytest.approx(kl(own, other).sum().item())
    forward = torch.autograd.grad(kl(own, other, "forward").sum(), own)[0]
    assert (grad - forward).abs().max() > 0.05


def batch_of(model, tokens: list[list[int]], prompt: int = 2) -> Batch:
    """As if the model had sampled what stands behind the prompts."""
    rows = []
    for row in tokens:
        zeros, mask = [0.0] * len(row), [False] * prompt + [True] * (len(row) - prompt)
        rows.append(Sample(row, zeros, mask, zeros))
    [batch] = pack(rows, 1000)
    with torch.no_grad():
        batch.logprobs_BT = batch_logprobs(model, batch)[0]
    return batch


def test_on_models_the_exact_loss_is_the_mean_kl_of_the_sampled_positions():
    student, teacher = tiny(0), tiny(1)
    batch = batch_of(student, [[1, 2, 3, 4, 5], [6, 7, 8]])
    loss, found = exact_loss(student, teacher, batch)
    by_hand = []
    for row in ([1, 2, 3, 4, 5], [6, 7, 8]):
        tokens, at = torch.tensor(row)[None], torch.arange(len(row))[None]
        own, other = (m.logits(m(tokens, at, causal()))[0] for m in (student, teacher))
        by_hand += kl(own, other)[1:-1].tolist()
    assert batch.denominator == len(by_hand) == 4
    assert loss.item() == pytest.approx(sum(by_hand) / 4, rel=1e-4)
    assert found["kl"].item() == pytest.approx(sum(by_hand), rel=1e-4) and found["tokens"] == 4
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())
    same, _ = exact_loss(student, student, batch)
    assert same.item() == pytest.approx(0.0, abs=1e-5)
    assert exact_loss(student, teacher, batch, "forward")[0].item() != pytest.approx(loss.item(), rel=1e-2)
    for change in ({"temperature_B": batch.temperature_B * 0.5}, {"kept_BTK": torch.zeros(2, 4, 1)}):
        with pytest.raises(ValueError, match="temperature 1"):
            exact_loss(student, teacher, replace(batch, **change))


def test_the_sampled_form_is_an_ordinary_batch():
    student, teacher = tiny(0), tiny(1)
    batch = batch_of(student, [[1, 2, 3, 4, 5], [6, 7, 8]])
    seen = with_teacher(batch, teacher)
    gap = batch_logprobs(teacher, batch)[0] - batch.logprobs_BT
    torch.testing.assert_close(seen.advantages_BT, torch.where(batch.mask_BT, gap, 0.0).detach())
    assert not seen.advantages_BT.requires_grad and batch.advantages_BT.abs().max() == 0
    new, _ = batch_logprobs(student, seen)
    loss, _ = losses.loss(seen, new, policy=partial(losses.truncated_ratio, cap=2.0))
    by_hand = -(seen.advantages_BT * new).sum() / 4
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize(("form", "steps", "left"), [("exact", 12, 0.7), ("sampled", 60, 0.8)])
def test_steps_on_it_bring_the_student_to_the_teacher(form, steps, left):
    """Fresh samples every step, as the method wants it; measured by the exact KL on the same sequences. One token says
    less than all: the sampled form needs more steps."""
    student, teacher = tiny(0), tiny(1)
    g = torch.Generator().manual_seed(0)
    starts = torch.randint(0, 256, (16, 2), generator=g)

    def sampled(n: int = 6) -> list[list[int]]:
        rows = starts.clone()
        for _ in range(n):
            at = torch.arange(rows.shape[1]).expand(len(rows), -1)
            with torch.no_grad():
                p = student.logits(student(rows, at, causal())[:, -1]).softmax(-1)
            rows = torch.cat([rows, torch.multinomial(p, 1, generator=g)], 1)
        return rows.tolist()

    fixed = batch_of(student, sampled())
    before = exact_loss(student, teacher, fixed)[0].item()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    for _ in range(steps):
        batch = batch_of(student, sampled())
        if form == "exact":
            loss, _ = exact_loss(student, teacher, batch)
        else:
            seen = with_teacher(batch, teacher)
            loss, _ = losses.loss(seen, batch_logprobs(student, seen)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = exact_loss(student, teacher, fixed)[0].item()
    assert after < left * before, after / before
