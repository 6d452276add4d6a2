"""Preferences: which pairs a tree gives, the packing against plain sequences, the losses by hand and by differences."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from mull.engine.local import LocalEngine
from mull.errors import StopReason, UserError
from mull.learn import dpo
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack
from mull.learn.pairs import Pair, Side, outcome_pairs, paths_of, sft_samples_from_search, step_pairs, visit_shares
from mull.ledger import Budget
from mull.models import hf
from mull.models.nano import nano_config
from mull.search.sample import Decoding, sample
from mull.types import Question, Sample, Span, SpanKind, Trace, Verdict
from tests.search.tools import chat

QUESTION = Question("q/1", "sums", "2+2?")
PROMPT = (1, 2)
F64 = torch.float64


def span(tokens, parent=0, kind=SpanKind.SAMPLED, **options) -> Span:
    logprobs = tuple(-0.5 - t / 100 for t in tokens) if kind is SpanKind.SAMPLED else ()
    stop = StopReason.STOP if kind is SpanKind.SAMPLED else None
    return Span(kind, tuple(tokens), parent, **{"logprobs": logprobs, "stop": stop, **options})


def graded(spans: list[Span], marks: dict[int, bool | None], chosen: int = -1, name: str = "q/1") -> Trace:
    root = Span(SpanKind.PROMPT, PROMPT)
    trace = Trace(replace(QUESTION, id=name), "mcts", [root, *spans], list(marks), [""] * len(marks), chosen=chosen)
    trace.verdicts = [Verdict(mark) for mark in marks.values()]
    return trace


def tree() -> Trace:
    """Steps a (twice), b, c behind the question; below the a's a right, a wrong and a right chain; b's is wrong; c is
    unexplored, and so is one chain below a that could not be judged."""
    return graded(
        [
            span([10], score=0.6, visits=2),  # 1: a
            span([11], score=0.9, visits=1),  # 2: b
            span([12], score=0.1),  # 3: c
            span([10], visits=1),  # 4: a again
            span([20, 99], 1, visits=1),  # 5 right
            span([21, 99], 1, visits=1),  # 6 wrong
            span([22, 99], 4, visits=1),  # 7 right
            span([23, 99], 2, visits=1),  # 8 wrong
            span([24, 99], 1),  # 9 unscorable
        ],
        {5: True, 6: False, 7: True, 8: False, 9: None},
        chosen=7,
    )


def said(pairs: list[Pair]) -> list[tuple]:
    return [(p.prompt, p.chosen.tokens, p.rejected.tokens, round(p.gap, 6)) for p in pairs]


# ------------------------------------------------------------------------------------------------ pairs of steps


def test_siblings_are_compared_by_what_came_of_them():
    """a: right, wrong, right below its two copies, 2/3; b: 0. Below a the two right ones against the wrong one."""
    assert said(step_pairs(tree())) == [
        (PROMPT, (10,), (11,), round(2 / 3, 6)),
        ((*PROMPT, 10), (20, 99), (21, 99), 1.0),
        ((*PROMPT, 10), (22, 99), (21, 99), 1.0),
    ]


def test_every_option_of_step_pairs_changes_them():
    def values(**options):
        return said(step_pairs(tree(), **options))

    assert [p[3] for p in values(theta=0.7)] == [1.0, 1.0]
    assert [p[1] for p in values(most=1)] == [(10,), (20, 99)]
    assert [p[1:3] for p in values(least=2)] == [], "b has one judged chain below it, and so has every chain"
    # Scores alone turn it round; c has a score but was never visited.
    assert values(outcomes=0.0) == [(PROMPT, (11,), (10,), 0.3)]
    # Half of each: a 1/3 + .3, b 0 + .45; the leaves have no scores.
    assert values(outcomes=0.5, theta=0.15) == [(PROMPT, (10,), (11,), round(1 / 3 + 0.3 - 0.45, 6))]


def test_without_visits_a_score_is_enough_and_a_step_that_begins_another_is_not_compared():
    trace = graded([span([10], score=0.9), span([10, 11], score=0.1), span([12], score=0.3)], {})
    assert said(step_pairs(trace, outcomes=0.0)) == [(PROMPT, (10,), (12,), 0.6)]


def test_forced_steps_are_no_preference_but_answers_behind_them_are():
    trace = graded(
        [span([9], kind=SpanKind.FORCED), span([10, 99], 1), span([11, 99], 1), span([12, 99])],
        {2: True, 3: False, 4: False},
    )
    assert said(step_pairs(trace)) == [((*PROMPT, 9), (10, 99), (11, 99), 1.0)]


@pytest.mark.parametrize("options", [{"theta": -1}, {"outcomes": 1.5}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError):
        step_pairs(tree(), **options)
    ungraded = tree()
    ungraded.verdicts = []
    with pytest.raises(ValueError, match="not graded"):
        step_pairs(ungraded)
    assert step_pairs(ungraded, outcomes=0.0), "scores need no verdicts"


# ------------------------------------------------------------------------------------------------ pairs of chains


def test_right_chains_over_wrong_ones_of_the_same_question():
    other = graded([span([30, 99]), span([31, 99])], {1: True, 2: True}, name="q/2")
    other.spans[0] = Span(SpanKind.PROMPT, (1, 3))
    found = outcome_pairs([tree(), other], random.Random(0), most=9)
    right, wrong = [(10, 20, 99), (10, 22, 99)], [(10, 21, 99), (11, 23, 99)]
    assert sorted((p.chosen.tokens, p.rejected.tokens) for p in found) == list(itertools.product(right, wrong))
    assert {p.prompt for p in found} == {PROMPT}, "a question without a wrong chain gives no pair"
    assert len(outcome_pairs([tree()], random.Random(0), most=2)) == 2
    assert {p.chosen.tokens for p in outcome_pairs([tree()], random.Random(0), most=2)} == set(right)


def test_a_right_chain_that_was_cut_is_no_example_and_forced_tokens_are_not_learnt():
    trace = graded(
        [
            span([10], stop=StopReason.LENGTH),
            span([11]),
            span([9], 2, kind=SpanKind.FORCED),
            span([12, 99], 3),
            span([13], stop=StopReason.LENGTH),
        ],
        {1: True, 4: True, 5: False},
    )
    [pair] = outcome_pairs([trace], random.Random(0))
    assert pair.chosen.tokens == (11, 9, 12, 99) and pair.chosen.mask == (True, False, True, True)
    assert pair.chosen.logprobs == (-0.61, 0.0, -0.62, -1.49) and pair.chosen.trained == 3
    assert pair.rejected.tokens == (13,)


@pytest.mark.parametrize(
    "change", [{"temperature": 0.7}, {"kept": (None, [3])}, {"logprobs": (-1.0,)}, {"logprobs": (-1.0, math.nan)}]
)
def test_log_probabilities_that_are_not_the_policy_s_are_not_kept(change):
    trace = graded([span([10, 99], **change), span([11, 99], temperature=0.0)], {1: True, 2: False})
    [pair] = outcome_pairs([trace], random.Random(0))
    assert pair.chosen.logprobs is None and pair.rejected.logprobs is not None
    [batch] = dpo.pack_pairs([pair], 64)
    with pytest.raises(UserError, match="reference=model"):
        dpo.reference_logprobs(batch, None)


# ------------------------------------------------------------------------------------------------ imitation


def weights(s: Sample) -> list[float]:
    assert s.ce is not None and not any(s.mask) and len(s.ce) == len(s.tokens)
    return [round(w, 6) for w in s.ce]


def test_the_chosen_right_path_is_cloned_and_each_token_once():
    [one] = sft_samples_from_search([tree()])
    assert list(one.tokens) == [1, 2, 10, 22, 99] and weights(one) == [0, 0, 1, 1, 1]
    both = sft_samples_from_search([tree()], most=5)
    assert [list(s.tokens) for s in both] == [[1, 2, 10, 22, 99], [1, 2, 10, 20, 99]]
    assert weights(both[1]) == [0, 0, 0, 1, 1], "what both begin with was learnt with the first"
    again = sft_samples_from_search([tree(), tree()], most=5)
    assert len(again) == 2 and all(list(a.tokens) == list(b.tokens) for a, b in zip(again, both, strict=True))


def test_weights_are_shares_of_the_visits_among_siblings():
    """a: 2 + 1 of 4 visits; below it each of three leaves one of three (the unscorable one none)."""
    assert visit_shares(tree())[1:] == pytest.approx([0.75, 0.25, 0, 0.75, 1 / 3, 1 / 3, 1 / 3, 1, 0])
    [one] = sft_samples_from_search([tree()], weight="visits")
    assert weights(one) == pytest.approx([0, 0, 0.75, 1 / 3, 1 / 3], abs=1e-5)
    plain = graded([span([10, 99])], {1: True})
    assert weights(sft_samples_from_search([plain])[0]) == [0, 0, 1, 1]
    with pytest.raises(UserError, match="no visits"):
        sft_samples_from_search([plain], weight="visits")


def test_paths_are_ranked_by_choice_visits_score_and_length():
    def best(*spans, chosen=-1):
        trace = graded(list(spans), {i + 1: True for i in range(len(spans))}, chosen)
        return sft_samples_from_search([trace])[0].tokens[2]

    assert best(span([10, 5]), span([11]), span([12, 5, 5]), chosen=3) == 12
    assert best(span([10, 5]), span([11]), span([12, 5, 5], visits=1)) == 12
    assert best(span([10, 5], score=0.1), span([11], score=0.2), span([12, 5, 5], score=0.9)) == 12
    assert best(span([10, 5]), span([11]), span([12, 5, 5])) == 11


def test_wrong_unscorable_and_cut_paths_are_not_cloned_and_a_revision_answers_the_question_itself():
    trace = graded([span([10]), span([11]), span([12], stop=StopReason.LENGTH)], {1: False, 2: None, 3: True})
    assert sft_samples_from_search([trace]) == []
    revised = graded(
        [Span(SpanKind.PROMPT, (1, 2, 7, 7)), span([9], 1, kind=SpanKind.FORCED), span([12], 2)], {3: True}
    )
    [one] = sft_samples_from_search([revised])
    assert list(one.tokens) == [1, 2, 9, 12] and weights(one) == [0, 0, 0, 1]
    assert paths_of(revised)[0].prompt == (1, 2, 7, 7)


# ------------------------------------------------------------------------------------------------ packing


def tiny(seed: int = 0):
    shape = dict(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16)
    model = hf.init(replace(nano_config(), **shape, tied=False), seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(8 if "head" in name else 4)
    return model


def side(tokens, mask=None, logprobs=None) -> Side:
    return Side(tuple(tokens), tuple(mask or [True] * len(tokens)), logprobs)


PAIRS = [
    Pair((1, 2, 3), side([5, 6, 7, 8]), side([5, 6, 9])),
    Pair((4,), side([5]), side([6, 7, 8, 9, 10, 11, 12])),
    Pair((4, 4), side([5, 6, 7], [True, False, True]), side([8, 9], [False, True])),
    Pair((3, 2, 1), side([5, 6]), side([5, 6, 7])),  # one begins the other
    Pair((3, 2, 1), side([5, 6, 7]), side([5, 6])),
]


def plain_logprob(model, prompt, one: Side) -> float:
    """The sum over a side's sampled tokens, of a sequence of its own."""
    tokens = [*prompt, *one.tokens]
    ce = [0.0] * len(prompt) + [float(on) for on in one.mask]
    zeros = [0.0] * len(tokens)
    [batch] = pack([Sample(tokens, zeros, [False] * len(tokens), zeros, ce)], 64)
    return batch_logprobs(model, batch)[0].sum().item()


def test_a_packed_pair_has_the_log_probabilities_of_its_two_sequences():
    model = tiny()
    for batch, order in ((dpo.pack_pairs([pair], 16)[0], [pair]) for pair in PAIRS):
        found = batch.by_side(dpo.pair_logprobs(model, batch))
        expected = [[plain_logprob(model, p.prompt, s) for s in (p.chosen, p.rejected)] for p in order]
        torch.testing.assert_close(found.detach(), torch.tensor(expected), atol=1e-4, rtol=1e-4)
        assert batch.lengths_P2.tolist() == [[p.chosen.trained, p.rejected.trained] for p in order]


def test_micro_batches_add_up_to_the_step_and_share_what_is_shared():
    model = tiny()
    assert [dpo.pair_size(p) for p in PAIRS] == [3 + 2 + 1 + 0, 1 + 0 + 6, 2 + 2 + 1, 3 + 2, 3 + 2]
    sums, right = [], []
    for most in (8, 24, 1000):
        batches = dpo.pack_pairs(PAIRS, most)
        model.zero_grad()
        seen = []
        for batch in batches:
            assert batch.tokens_BT.numel() <= most and batch.denominator == len(PAIRS)
            policy = batch.by_side(dpo.pair_logprobs(model, batch))
            loss, found = dpo.dpo_loss(policy, policy.detach() - 0.1, batch.lengths_P2, batch.denominator, nll=0.3)
            loss.backward()
            seen.append(found)
        sums.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        right.append(dpo.summarise(seen)["loss_nll"])
        assert dpo.summarise(seen)["pairs"] == len(PAIRS)
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0], atol=1e-4, rtol=1e-3)
    assert right == pytest.approx([right[0]] * 3, rel=1e-4)
    assert dpo.summarise([]) == {}
    assert dpo.pack_pairs(PAIRS, 1000, total=7)[0].denominator == 7


@pytest.mark.parametrize(
    "pair",
    [
        Pair((), side([1]), side([2])),
        Pair((1,), side([1]), side([1])),
        Pair((1,), side([1], [False]), side([2])),
        Pair((1,), side([1]), side([])),
    ],
)
def test_what_is_no_pair_is_refused(pair):
    with pytest.raises(ValueError, match="two different sides"):
        dpo.pack_pairs([pair], 64)


def test_a_pair_that_does_not_fit_is_named():
    with pytest.raises(UserError, match="a pair of 7 tokens"):
        dpo.pack_pairs(PAIRS, 7)


def test_the_stored_reference_is_the_model_that_sampled():
    """On-policy the two references agree, so that Agent Q's costs nothing and changes nothing."""
    model = tiny()
    budget = Budget(think_tokens=24, answer_tokens=8, samples=8)
    trace = asyncio.run(sample(QUESTION, LocalEngine(model, chat()), chat(), budget))
    trace.verdicts = [Verdict(i % 2 == 0) for i in range(8)]
    for leaf in trace.leaves:
        trace.spans[leaf].stop = StopReason.STOP  # whether they ended is not the matter here
    pairs = outcome_pairs([trace], random.Random(0), most=6)
    assert len(pairs) == 6
    for batch in dpo.pack_pairs(pairs, 400):
        stored, computed = dpo.reference_logprobs(batch, None), dpo.reference_logprobs(batch, model)
        torch.testing.assert_close(stored, computed, atol=1e-4, rtol=1e-4)
        assert not computed.requires_grad
    hot = asyncio.run(sample(QUESTION, LocalEngine(model, chat()), chat(), budget, Decoding(temperature=0.7)))
    assert paths_of(replace(hot, verdicts=trace.verdicts))[0].side.logprobs is None


# ------------------------------------------------------------------------------------------------ losses


POLICY, REFERENCE = [[-4.0, -3.0], [-1.0, -8.0]], [[-5.0, -2.0], [-2.0, -6.0]]
LENGTHS = torch.tensor([[2.0, 1.0], [4.0, 8.0]], dtype=F64)
OPTIONS = {
    "dpo": {},
    "beta": {"beta": 0.5},
    "ipo": {"form": "ipo"},
    "ipo beta": {"form": "ipo", "beta": 0.5},
    "normalised": {"normalised": True},
    "normalised ipo": {"normalised": True, "form": "ipo"},
    "nll": {"nll": 1.0},
    "more nll": {"nll": 2.0},
}


def case(**options):
    policy = torch.tensor(POLICY, dtype=F64, requires_grad=True)
    loss, found = dpo.dpo_loss(policy, torch.tensor(REFERENCE, dtype=F64), LENGTHS, 2.0, **options)
    return policy, loss, found


def test_losses_by_hand():
    """h = (1) - (-1) = 2 and (1) - (-2) = 3."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    policy, loss, found = case(beta=0.5)
    assert loss.item() == pytest.approx((-math.log(sigmoid(1.0)) - math.log(sigmoid(1.5))) / 2)
    grad = torch.autograd.grad(loss, policy)[0]
    expected = [[-0.25 * sigmoid(-1.0), 0.25 * sigmoid(-1.0)], [-0.25 * sigmoid(-1.5), 0.25 * sigmoid(-1.5)]]
    torch.testing.assert_close(grad, torch.tensor(expected, dtype=F64))
    summary = dpo.summarise([found])
    assert summary["margin"] == pytest.approx(0.5 * 2.5) and summary["right"] == 1.0
    assert summary["chosen"] == 1.0 and summary["rejected"] == -1.5
    assert case(beta=0.5, form="ipo")[1].item() == pytest.approx(((2 - 1) ** 2 + (3 - 1) ** 2) / 2)
    # Per token: 1/2 + 1 = 1.5 and 1/4 + 2/8 = 0.5.
    both = -math.log(sigmoid(0.75)) - math.log(sigmoid(0.25))
    assert case(beta=0.5, normalised=True)[1].item() == pytest.approx(both / 2)
    extra = case(beta=0.5, nll=3.0)
    assert extra[1].item() - loss.item() == pytest.approx(3.0 * (4 / 2 + 1 / 4) / 2)
    assert extra[2]["loss_nll"].item() == pytest.approx(3.0 * (4 / 2 + 1 / 4) / 2)


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_agree_with_finite_differences(name):
    policy = torch.tensor(POLICY, dtype=F64, requires_grad=True)
    reference = torch.tensor(REFERENCE, dtype=F64)
    assert torch.autograd.gradcheck(lambda p: dpo.dpo_loss(p, reference, LENGTHS, 2.0, **OPTIONS[name])[0], (policy,))


def test_every_option_changes_the_gradient():
    found = {}
    for name, options in OPTIONS.items():
        policy, loss, _ = case(**options)
        found[name] = torch.autograd.grad(loss, policy)[0]
    same = [(a, b) for a, b in itertools.combinations(found, 2) if torch.allclose(found[a], found[b])]
    assert not same
    with pytest.raises(ValueError, match="beta"):
        case(beta=0.0)


def test_equal_policies_cost_log_two_and_a_step_tells_the_sides_apart():
    model = tiny()
    [batch] = dpo.pack_pairs(PAIRS[:3], 1000)
    reference = batch.by_side(dpo.reference_logprobs(batch, model))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(4):
        policy = batch.by_side(dpo.pair_logprobs(model, batch))
        loss, found = dpo.dpo_loss(policy, reference, batch.lengths_P2, batch.denominator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[3] < losses[0] and found["right"] == 3 and found["margin"] > 0
