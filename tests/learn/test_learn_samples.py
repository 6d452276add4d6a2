"""From traces to samples: which tokens are trained on, with what weight, in chains and in trees."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.errors import StopReason
from mull.learn.pack import pack, totals
from mull.learn.samples import from_rollouts, rewards, supervised, truncated
from mull.types import Question, Span, SpanKind, Trace, Verdict

STOP, LENGTH = StopReason.STOP, StopReason.LENGTH
EOS = 9


def span(kind, tokens, parent, **changes) -> Span:
    sampled = kind is SpanKind.SAMPLED
    fields = dict(logprobs=tuple(-0.1 * t for t in tokens) if sampled else (), stop=STOP if sampled else None)
    return Span(kind, tuple(tokens), parent, **(fields | changes))  # type: ignore[arg-type]


def prompt(*tokens):
    return span(SpanKind.PROMPT, tokens, -1)


def sampled(parent, *tokens, **changes):
    return span(SpanKind.SAMPLED, tokens, parent, **changes)


def trace(spans, leaves, correct=()) -> Trace:
    verdicts = [Verdict(c) for c in correct]
    return Trace(Question("q", "t", "?"), "test", spans, leaves, [""] * len(leaves), verdicts)


def test_one_chain_with_forced_and_tool_spans():
    t = trace(
        [
            prompt(1, 2),
            sampled(0, 3, 4),
            span(SpanKind.FORCED, (5,), 1),
            sampled(2, 6),
            span(SpanKind.TOOL, (7, 8), 3),
            sampled(4, 3, EOS, policy_version=7),
        ],
        [5],
    )
    (s,) = from_rollouts([t], [0.5], group=3)
    assert s.tokens == [1, 2, 3, 4, 5, 6, 7, 8, 3, EOS], "the path, verbatim"
    assert s.mask == [t in (2, 3, 5, 8, 9) for t in range(10)]
    assert s.advantages == [0.5 if m else 0.0 for m in s.mask]
    assert s.logprobs == pytest.approx([-0.1 * t if m else 0.0 for t, m in zip(s.tokens, s.mask, strict=True)])
    assert (s.group, s.policy_version, s.temperature, s.kept, s.ce) == (3, 0, 1.0, None, None)


def test_flat_lists_over_several_traces():
    one = trace([prompt(1), sampled(0, 2, EOS), sampled(0, 3, 3, stop=LENGTH)], [1, 2], [True, None])
    two = trace([prompt(1), sampled(0, 4, EOS)], [1], [False])
    assert rewards([one, two]) == [1.0, None, 0.0]
    assert truncated([one, two]) == [False, True, False]
    samples = from_rollouts([one, two], [0.5, None, -0.5])
    assert [s.tokens for s in samples] == [[1, 2, EOS], [1, 4, EOS]]
    assert [s.advantages[-1] for s in samples] == [0.5, -0.5]


def test_what_counts_as_truncated():
    spans = [prompt(1), *(sampled(0, 2, stop=stop) for stop in StopReason), span(SpanKind.FORCED, (EOS,), 1)]
    spans.append(span(SpanKind.TOOL, (5,), 1))
    found = truncated([trace(spans, list(range(1, len(spans))))])
    assert found == [stop is not STOP for stop in StopReason] + [True, True]
    with pytest.raises(ValueError, match="no stop reason"):
        truncated([trace([prompt(1), sampled(0, 2, stop=None)], [1])])


def test_a_shared_span_is_trained_once_with_its_mean_advantage():
    """Root -> a -> (b, c), root -> d. `a` belongs to the first leaf, with (1 + -3) / 2."""
    t = trace([prompt(1), sampled(0, 2, 3), sampled(1, 4), sampled(1, 5, 6), sampled(0, 7)], [2, 3, 4])
    b, c, d = from_rollouts([t], [1.0, -3.0, 2.0])
    assert (b.tokens, b.mask, b.advantages) == ([1, 2, 3, 4], [False, True, True, True], [0, -1.0, -1.0, 1.0])
    assert (c.tokens, c.mask, c.advantages) == ([1, 2, 3, 5, 6], [False] * 3 + [True] * 2, [0, 0, 0, -3.0, -3.0])
    assert c.logprobs[1:3] == [0.0, 0.0]
    assert (d.mask, d.advantages) == ([False, True], [0, 2.0])
    assert totals([b, c, d])[0] == 6, "every sampled token counts once"


def test_the_owner_of_a_shared_span_is_the_first_leaf_that_is_trained_on():
    t = trace([prompt(1), sampled(0, 2, 3), sampled(1, 4), sampled(1, 5)], [2, 3])
    (only,) = from_rollouts([t], [None, 2.0])
    assert (only.tokens, only.advantages) == ([1, 2, 3, 5], [0, 2.0, 2.0, 2.0])
    assert from_rollouts([t], [None, None]) == []


def test_the_same_leaf_twice_and_a_leaf_on_the_way_to_another():
    t = trace([prompt(1), sampled(0, 2), sampled(1, 3)], [2, 2, 1])
    (s,) = from_rollouts([t], [1.0, 3.0, -1.0])
    assert s.advantages == [0, 1.0, 2.0], "the mean over everything that passes"


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=12), st.data())
def test_in_any_tree_each_sampled_token_weighs_once(parents, data):
    """Sum of advantage over samples equals, span by span, tokens x mean advantage of the trained leaves below."""
    spans = [prompt(1)] + [sampled(min(p + 1, i), *range(2, 3 + i % 3)) for i, p in enumerate(parents)]
    leaves = data.draw(st.lists(st.integers(1, len(parents)), min_size=1, max_size=6))
    advantages = data.draw(
        st.lists(st.none() | st.integers(-3, 3).map(float), min_size=len(leaves), max_size=len(leaves))
    )
    t = trace(spans, leaves)
    samples = from_rollouts([t], advantages)
    expected, tokens = 0.0, 0
    for i, s in enumerate(spans):
        if s.kind is SpanKind.SAMPLED:
            below = [
                a
                for leaf, a in zip(leaves, advantages, strict=True)
                if a is not None and any(x is spans[i] for x in t.path(leaf))
            ]
            expected += len(s.tokens) * sum(below) / len(below) if below else 0.0
            tokens += len(s.tokens) if below else 0
    assert math.fsum(a for s in samples for a in s.advantages) == pytest.approx(expected)
    assert sum(sum(s.mask) for s in samples) == tokens


def test_kept_sets_and_temperature_travel_with_the_tokens():
    kept = (np.array([3, 4]), np.array([EOS]))
    t = trace([prompt(1, 2), sampled(0, 3, EOS, kept=kept, temperature=0.6)], [1])
    (s,) = from_rollouts([t], [1.0])
    assert s.temperature == 0.6 and s.kept is not None
    assert [None if k is None else k.tolist() for k in s.kept] == [None, None, [3, 4], [EOS]]


def test_greedy_spans_are_scored_at_temperature_one():
    t = trace([prompt(1), sampled(0, 2, temperature=0.0)], [1])
    assert from_rollouts([t], [1.0])[0].temperature == 1.0


def test_the_version_of_a_path_is_its_oldest():
    t = trace([prompt(1), sampled(0, 2, policy_version=5), sampled(1, 3, policy_version=4)], [2])
    assert from_rollouts([t], [1.0])[0].policy_version == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(logprobs=()), "0 log-probabilities"),
        (dict(logprobs=(-1.0, math.nan)), "1 of them finite"),
        (dict(logprobs=(-1.0, -math.inf)), "1 of them finite"),
        (dict(kept=(np.array([2]),)), "1 kept sets"),
    ],
)
def test_what_the_sampler_must_supply(changes, message):
    with pytest.raises(ValueError, match=message):
        from_rollouts([trace([prompt(1), sampled(0, 2, 3, **changes)], [1])], [1.0])


def test_refusals():
    t = trace([prompt(1), sampled(0, 2), sampled(1, 3, temperature=0.5)], [2])
    with pytest.raises(ValueError, match="several temperatures"):
        from_rollouts([t], [1.0])
    with pytest.raises(ValueError, match="1 leaves and 2 advantages"):
        from_rollouts([t], [1.0, 2.0])
    with pytest.raises(ValueError, match="grade it first"):
        rewards([t])


def test_supervised():
    s = supervised([1, 2], [3, EOS], weight=0.5)
    assert (s.tokens, s.ce, s.mask) == ([1, 2, 3, EOS], [0.0, 0.0, 0.5, 0.5], [False] * 4)
    assert supervised([], [3, 4, EOS]).ce == [0.0, 1.0, 1.0], "nothing predicts the first token"
    (batch,) = pack([s, supervised([1], [EOS])], 64, pad_to=1)
    assert batch.denominator == 3 and batch.ce_BT.tolist() == [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]
