"""Difficulty from a few chains, and bins of it: pure functions."""

import asyncio
import math
import random
from collections import Counter
from types import SimpleNamespace

import pytest

from mull.ledger import Budget
from mull.search.difficulty import bin_of, features, probe, quantile_edges
from mull.search.tree import Tree
from tests.search.tools import QUESTION, ScriptedScorer, canonical, chat, sampler_of


def ends(*answers: str | None, scores: tuple[float, ...] = ()):
    return [SimpleNamespace(answer=a, score=s) for a, s in zip(answers, scores or [0.5] * len(answers), strict=True)]


def seen(*answers: str | None, scores: tuple[float, ...] = ()) -> dict[str, float]:
    value = (lambda leaf: leaf.score) if scores else None
    return features(QUESTION, ends(*answers, scores=scores), canonical, value)


def test_agreement_is_the_share_of_the_commonest_answer():
    assert seen("1", "1", "1", "2") == {
        "agreement": 0.75,
        "answered": 1.0,
        "entropy": pytest.approx(0.8113 / 2, abs=1e-4),
    }
    assert seen("1", "1") == {"agreement": 1.0, "answered": 1.0, "entropy": 0.0}
    assert seen("1", "2", "3") == {"agreement": pytest.approx(1 / 3), "answered": 1.0, "entropy": 1.0}


def test_equal_answers_are_those_of_equal_form():
    leaves = ends("07", "7", "7.0")
    assert features(QUESTION, leaves, lambda q, a: str(float(a)))["agreement"] == 1.0
    assert features(QUESTION, leaves, lambda q, a: a)["agreement"] == pytest.approx(1 / 3)


def test_the_unreadable_agree_with_nobody_and_cannot_be_right():
    assert seen("1", "1", "what", None) == {
        "agreement": 0.5,
        "answered": 0.5,
        "entropy": pytest.approx((math.log(4) - 2 * math.log(2) / 4) / math.log(4)),
    }
    assert seen("what", "what", "") == {"agreement": 0.0, "answered": 0.0, "entropy": 1.0}
    assert seen("1", "what", scores=(0.8, 0.9))["mean_score"] == 0.4, "a score of nonsense is none"


def test_one_chain_and_none():
    assert seen("5") == {"agreement": 1.0, "answered": 1.0, "entropy": 0.0}
    assert seen("x") == {"agreement": 0.0, "answered": 0.0, "entropy": 1.0}
    assert seen() == {"agreement": 0.0, "answered": 0.0, "entropy": 1.0}
    assert features(QUESTION, ends(), canonical, lambda leaf: 1.0)["mean_score"] == 0.0
    assert "mean_score" not in seen("5") and seen("5", "6", scores=(0.25, 0.75))["mean_score"] == 0.5


def test_every_feature_lies_between_0_and_1_and_order_says_nothing():
    rng = random.Random(0)
    for _ in range(300):
        answers = [rng.choice(["1", "2", "3", "x", None]) for _ in range(rng.randrange(1, 9))]
        scores = tuple(rng.random() for _ in answers)
        found = seen(*answers, scores=scores)
        assert all(0 <= number <= 1 for number in found.values()), (answers, found)
        mixed = list(zip(answers, scores, strict=True))
        rng.shuffle(mixed)
        assert seen(*(a for a, _ in mixed), scores=tuple(s for _, s in mixed)) == pytest.approx(found)


def test_a_probe_of_a_real_tree_counts_every_token_once():
    paths = {"": {"a\n": 1.0}, "a\n": {"</think>": 0.6, "stop": 0.4}, "a\n</think>": {"1": 0.8, "22": 0.2}}

    async def go():
        scorer = ScriptedScorer(lambda text: 0.75)
        tree = Tree("t", QUESTION, sampler_of(paths), chat(), Budget(), seed=2, scorer=scorer)
        [first] = await tree.extend(tree.root)
        leaves = await tree.complete(first, 8)
        await tree.score([leaf for leaf in leaves if leaf.done])
        return (
            tree.trace.cost.sampled_tokens,
            leaves,
            probe(QUESTION, leaves, canonical, lambda leaf: leaf.score or 0.0),
        )

    spent, leaves, found = asyncio.run(go())
    done = [leaf for leaf in leaves if leaf.done]
    assert 0 < len(done) < len(leaves) == 8, "some chains died"
    assert found.tokens == spent and found.answered == len(done) / 8 and found.mean_score == 0.75 * len(done) / 8
    assert found.agreement == Counter(leaf.answer for leaf in done).most_common(1)[0][1] / 8
    assert probe(QUESTION, leaves, canonical).mean_score is None


def test_bins_by_hand():
    edges = [0.25, 0.5]
    assert [bin_of(x, edges) for x in (-1.0, 0.0, 0.25, 0.4, 0.5, 9.0, math.inf)] == [0, 0, 1, 1, 2, 2, 2]
    assert bin_of(3.0, []) == 0


def test_quantile_bins_are_even_where_values_differ():
    rng = random.Random(1)
    for n in (1, 2, 5, 17, 100):
        values = [rng.random() for _ in range(n)]
        for bins in (1, 2, 3, 5, 8):
            edges = quantile_edges(values, bins)
            sizes = Counter(bin_of(v, edges) for v in values)
            assert len(edges) == min(bins, n) - 1 and set(sizes) == set(range(min(bins, n)))
            assert max(sizes.values()) - min(sizes.values()) <= 1


def test_equal_values_stay_together_and_no_bin_is_empty():
    rng = random.Random(2)
    for _ in range(200):
        values = [rng.randrange(5) / 4 for _ in range(rng.randrange(1, 30))]
        edges = quantile_edges(values, rng.randrange(1, 7))
        assert edges == sorted(set(edges)) and {bin_of(v, edges) for v in values} == set(range(len(edges) + 1))
    assert quantile_edges([1.0] * 9 + [0.25], 5) == [1.0], "nine easy questions and a hard one: two bins"


def test_what_cannot_be_binned_is_refused():
    for values, bins in (([], 2), ([1.0], 0), ([1.0, math.nan], 2)):
        with pytest.raises(ValueError, match="cannot be made"):
            quantile_edges(values, bins)
    with pytest.raises(ValueError, match="NaN"):
        bin_of(math.nan, [0.5])
