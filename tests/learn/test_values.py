"""Learning values: what stands where, what counts, and what the losses are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mull.errors import UserError
from mull.learn import optim, values
from mull.learn.labels import Label
from mull.learn.values import ValueSample, forward, pack_values, tree_work
from mull.models.attention import causal
from mull.models.value import ValueModel
from tests.engine.small import FAMILIES, model, prompts


def value_model() -> ValueModel:
    made = ValueModel(model())
    with torch.no_grad():
        made.head.weight.mul_(20)
    return made


def sample(n: int, *labels: tuple[int, float], lm_from: int | None = None, seed: int = 0) -> ValueSample:
    [tokens] = prompts(1, seed, shortest=n, longest=n + 1)
    return ValueSample(tokens, [Label(*label) for label in labels], lm_from)


def logit(made: ValueModel, prefix) -> float:
    with torch.no_grad():
        hidden = made.body(torch.tensor([prefix]), torch.arange(len(prefix))[None], causal())
        return float(made.head(hidden[0, -1]))


def gradients(made: ValueModel) -> torch.Tensor:
    grads = torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in made.parameters()])
    made.zero_grad()
    return grads


# ------------------------------------------------------------------------------------------------- packing


def test_a_value_is_learnt_where_its_prefix_ends():
    """The position of token end - 1: not the next one, and not the next step's label."""
    made = value_model()
    one, two = sample(30, (7, 1.0), (19, 0.25), (30, 0.0)), sample(12, (12, 1.0), seed=1)
    [batch] = pack_values([(two,), (one,)], 1000)
    logits_N, _ = forward(made, batch)
    expected = [(one, 7), (one, 19), (one, 30), (two, 12)]
    assert logits_N.tolist() == pytest.approx([logit(made, s.tokens[:end]) for s, end in expected], abs=1e-4)
    assert batch.labels_N.tolist() == [1.0, 0.25, 0.0, 1.0]
    assert batch.denominator == 4 and batch.lm_denominator == 0 and batch.sees_BTT is None


def test_nothing_behind_a_prefix_changes_its_value():
    made, one = value_model(), sample(30, (10, 1.0))
    changed = ValueSample([*one.tokens[:10], *range(20)], one.labels)
    [a], [b] = pack_values([(one,)], 1000), pack_values([(changed,)], 1000)
    assert torch.equal(forward(made, a)[0], forward(made, b)[0])


def test_the_language_model_loss_is_on_the_completion_alone():
    made, one = value_model(), sample(20, (20, 1.0), lm_from=8)
    [batch] = pack_values([(one,)], 1000)
    _, logprobs_M = forward(made, batch)
    with torch.no_grad():
        hidden = made.body(torch.tensor([one.tokens]), torch.arange(20)[None], causal())[0]
        logp = made.body.logits(hidden).log_softmax(-1)
    expected = [float(logp[t - 1, one.tokens[t]]) for t in range(8, 20)]
    assert logprobs_M.tolist() == pytest.approx(expected, abs=1e-4) and batch.lm_denominator == 12
    changed = ValueSample([1, 2, 3, *one.tokens[3:]], one.labels, 8)
    [other] = pack_values([(changed,)], 1000)
    assert other.lm_targets_M.tolist() == one.tokens[8:] and other.lm_at_M.tolist() == list(range(7, 19))


@pytest.mark.parametrize("kind", ["bce", "mse", "pairs"])
def test_micro_batches_and_padding_change_nothing(kind):
    made = value_model()
    groups = []
    for i in range(9):
        n = 6 + 5 * (i % 4)
        if kind == "pairs":
            groups.append((sample(n, (n, 1.0), seed=i), sample(n + 3, (n + 3, 0.0), seed=50 + i)))
        else:
            groups.append((sample(n, (4, 0.5), (n, float(i % 2)), lm_from=3, seed=i),))
    found = []
    for most, pad in ((10_000, 8), (64, 1), (64, 16)):
        batches = pack_values(groups, most, pad)
        assert all(b.tokens_BT.numel() <= most for b in batches)
        for batch in batches:
            batch.tokens_BT[batch.tokens_BT == 0] = 77  # whatever stands in the padding
            values.loss(made, batch, kind, 0.3)["loss"].backward()
        found.append(gradients(made))
    assert len(pack_values(groups, 64)) > 2
    assert torch.allclose(found[0], found[1], atol=1e-5) and torch.allclose(found[0], found[2], atol=1e-5)
    assert found[0].abs().max() > 1e-3


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_a_tree_learns_what_its_chains_learn_alone(kind, family):
    """The same losses and gradients, whether chains share their prefixes' rows or have rows of their own."""
    made = ValueModel(model(FAMILIES[family]))
    with torch.no_grad():
        made.head.weight.mul_(20)
    rng = np.random.default_rng(0)
    [root] = prompts(1, shortest=14, longest=15)
    middle = [*root, *prompts(1, 1, shortest=6, longest=7)[0]]
    tails = [[*base, *rng.integers(0, 256, 3 + i).tolist()] for i, base in enumerate([root, middle, middle, root])]
    chains = [ValueSample(t, [Label(16, 0.25), Label(len(t), float(i % 2))], 14) for i, t in enumerate(tails)]
    chains += [chains[1], ValueSample(middle, [Label(18, 1.0)], 14)]  # a chain twice, and one inside another
    found = []
    for groups in ([(c,) for c in chains], [tuple(chains)], [tuple(chains[:3]), tuple(chains[3:])]):
        parts = [values.loss(made, batch, kind, 0.3) for batch in pack_values(groups, 10_000)]
        total = torch.stack([part["loss"] for part in parts]).sum()
        total.backward()
        found.append((float(total.detach()), gradients(made)))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert torch.allclose(gradient, found[0][1], atol=1e-5)
    [tree] = pack_values([tuple(chains)], 10_000, pad_to=1)
    tokens, keys = tree_work(tuple(chains))
    assert tree.tokens_BT.numel() == tokens == 14 + 6 + 3 + 4 + 5 + 6
    assert tree.sees_BTT is not None and keys == int(tree.sees_BTT.sum())
    assert tree.denominator == 11 and tree.lm_denominator == sum(len(c.tokens) - 14 for c in chains)


def test_pairs_of_one_question_share_a_row():
    made, [root] = value_model(), prompts(1, shortest=20, longest=21)
    pairs = [
        (ValueSample([*root, i], [Label(21, 1.0)]), ValueSample([*root, i + 9], [Label(21, 0.0)])) for i in range(3)
    ]
    [alone] = pack_values(pairs, 10_000)
    [shared] = pack_values([tuple(one for pair in pairs for one in pair)], 10_000)
    a, b = (values.loss(made, batch, "pairs", 0.0)["loss"].detach() for batch in (alone, shared))
    assert float(a) == pytest.approx(float(b), rel=1e-5) and shared.tokens_BT.numel() < 40


def test_pairs_stay_together_and_in_order():
    made = value_model()
    groups = [(sample(n, (n, 1.0), seed=n), sample(40 - n, (40 - n, 0.0), seed=90 + n)) for n in range(5, 20)]
    better, worse = [], []
    for batch in pack_values(groups, 120):
        assert batch.denominator == 30 and batch.labels_N.tolist() == [1.0, 0.0] * len(batch.tokens_BT)
        a, b = forward(made, batch)[0].view(-1, 2).unbind(-1)
        better, worse = better + a.tolist(), worse + b.tolist()
    assert sorted(better) == pytest.approx(sorted(logit(made, g[0].tokens) for g in groups), abs=1e-4)
    assert sorted(worse) == pytest.approx(sorted(logit(made, g[1].tokens) for g in groups), abs=1e-4)


def test_what_cannot_be_packed_is_said():
    with pytest.raises(UserError, match="micro-batch of 8 tokens"):
        pack_values([(sample(9, (9, 1.0)),)], 8)
    for bad in (sample(5, (6, 1.0)), sample(5, (0, 1.0)), sample(5, (3, 1.5)), sample(5, (3, math.nan))):
        with pytest.raises(ValueError, match="labels"):
            pack_values([(bad,)], 100)
    with pytest.raises(ValueError, match="first token"):
        pack_values([(sample(5, (5, 1.0), lm_from=0),)], 100)
    assert pack_values([], 100) == []


# ------------------------------------------------------------------------------------------------- losses


def test_losses_by_hand():
    logits, labels = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 0.25, 0.0])
    v = [0.5, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))]
    bce = -(math.log(v[0]) + 0.25 * math.log(v[1]) + 0.75 * math.log(1 - v[1]) + math.log(1 - v[2])) / 6
    mse = ((v[0] - 1) ** 2 + (v[1] - 0.25) ** 2 + v[2] ** 2) / 6
    assert float(values.value_loss(logits, labels, 6.0)) == pytest.approx(bce, rel=1e-6)
    assert float(values.value_loss(logits, labels, 6.0, "mse")) == pytest.approx(mse, rel=1e-6)
    pairs = values.bradley_terry(torch.tensor([1.0, -3.0]), torch.tensor([0.0, 0.5]), 2.0)
    assert float(pairs) == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3.5))) / 2, rel=1e-6)
    assert float(values.language_model_loss(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 3.0]), 4.0)) == 1.75
    assert float(values.language_model_loss(torch.zeros(0), torch.zeros(0), 0.0)) == 0.0


@pytest.mark.parametrize("kind", ["bce", "mse", "pairs"])
def test_gradients_are_those_of_finite_differences(kind):
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=8), requires_grad=True)
    labels = torch.tensor(rng.random(8))

    def f(x):
        if kind == "pairs":
            return values.bradley_terry(x[::2], x[1::2], 3.0)
        return values.value_loss(x, labels, 3.0, kind)

    assert torch.autograd.gradcheck(f, (logits,))


def test_extreme_logits_stay_finite():
    for logits in (torch.tensor([300.0, -300.0]), torch.tensor([-300.0, 300.0])):
        x = logits.clone().requires_grad_()
        loss = values.value_loss(x, torch.tensor([0.0, 1.0]), 2.0) + values.bradley_terry(x[:1], x[1:], 1.0)
        loss.backward()
        assert torch.isfinite(loss) and x.grad is not None and torch.isfinite(x.grad).all()


def test_the_parts_of_a_loss():
    made = value_model()
    [batch] = pack_values([(sample(20, (5, 1.0), (20, 0.0), lm_from=8),)], 100)
    parts = {name: float(x.detach()) for name, x in values.loss(made, batch, "bce", 0.5).items()}
    assert parts["loss"] == pytest.approx(parts["loss_value"] + 0.5 * parts["loss_lm"], rel=1e-6)
    side = [logit(made, batch.tokens_BT[0, :end].tolist()) > 0 for end in (5, 20)]
    assert parts["labels"] == 2 and parts["right"] == side.count(True) - 2 * side[1] + 1


def test_bf16_products_give_float32_values_near_the_exact_ones():
    made = value_model()
    [batch] = pack_values([(sample(40, (10, 1.0), (40, 0.0), lm_from=5),)], 100)
    exact, _ = forward(made, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough, logprobs_M = forward(made, batch)
    assert rough.dtype == logprobs_M.dtype == torch.float32
    assert torch.allclose(rough, exact, atol=0.3) and not torch.equal(rough, exact)


def test_it_learns_which_of_two_endings_is_right():
    """End to end on a toy: a prefix is right iff its last token is even."""
    made = ValueModel(model(scale=1.0))
    rng = np.random.default_rng(0)
    optimizer = optim.adamw(made, 3e-3)

    def draw(n):
        rows = rng.integers(0, 20, (n, 9)).tolist()
        return [(ValueSample(row, [Label(k, float(row[k - 1] % 2 == 0)) for k in (3, 9)]),) for row in rows]

    for _ in range(60):
        for batch in pack_values(draw(32), 1000):
            values.loss(made, batch, "bce", 0.0)["loss"].backward()
        optim.step(made, optimizer, 3e-3)
    [batch] = pack_values(draw(100), 10_000)
    parts = values.loss(made, batch, "bce", 0.0)
    assert float(parts["right"] / parts["labels"]) > 0.95
