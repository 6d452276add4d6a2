"""Confidence: the policy's own probabilities, the same whether a path is read at once or step by step."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
import torch

from mull.engine.pages import PAGE
from mull.models.attention import causal
from mull.scorers.base import Score
from mull.scorers.confidence import Confidence, SampledLogprob, generated_from
from mull.types import Cost
from tests.engine.small import CONFIG, ask, chat, engine, model, prompts

PROMPT = chat().prompt("2+2?")
MEASURES = pytest.mark.parametrize("measure", ["logprob", "self-certainty"])


def scorer(built=None, measure="logprob", **options) -> Confidence:
    built = built or model()
    return Confidence(built, engine(built), chat(), measure, **options)


def score(asked: Confidence, *prefixes) -> list[Score]:
    return asyncio.run(asked.score(prefixes))


def paths(n: int, **options) -> list[list[int]]:
    return [[*PROMPT, *p] for p in prompts(n, **options)]


def truth(built, prefix, measure: str) -> float:
    """By the definition, from a full forward pass in float64."""
    with torch.no_grad():
        hidden = built(torch.tensor([prefix]), torch.arange(len(prefix))[None], causal())[0]
        p = built.logits(hidden).double().softmax(-1)[len(PROMPT) - 1 : -1]
    if measure == "logprob":
        chosen = p[torch.arange(len(p)), torch.tensor(prefix[len(PROMPT) :])]
        return math.exp(float(chosen.log().mean()))
    v = p.shape[-1]
    kl = ((1 / v) * ((1 / v) / p).log()).sum(-1)
    return float(kl.mean() / (1 + kl.mean()))


@MEASURES
def test_values_are_what_the_definition_says(measure):
    built, asked = model(scale=4.0), paths(8)
    expected = [truth(built, p, measure) for p in asked]
    assert np.ptp(expected) > 1e-4
    assert [s.value for s in score(scorer(built, measure), *asked)] == pytest.approx(expected, rel=1e-4)


def test_logprob_is_what_the_sampler_said():
    built = model()
    made = engine(built)
    [done] = ask(made, PROMPT, max_tokens=30)
    [got] = score(Confidence(built, made, chat()), [*PROMPT, *done.tokens])
    assert got.value == pytest.approx(math.exp(sum(done.logprobs) / len(done.logprobs)), rel=1e-4)


@MEASURES
def test_step_by_step_all_together_and_in_any_order_are_the_same(measure):
    built, [path] = model(scale=4.0), paths(1, shortest=60, longest=61)
    other = [*path[:-20], *prompts(1, seed=5, shortest=30, longest=31)[0]]
    asked = [path[:-40], path[:-20], path, path[:-21], other]
    expected = [truth(built, p, measure) for p in asked]
    one_by_one = scorer(built, measure)
    assert [score(one_by_one, p)[0].value for p in asked] == pytest.approx(expected, rel=1e-4)
    assert [s.value for s in score(scorer(built, measure), *asked)] == pytest.approx(expected, rel=1e-4)
    assert [s.value for s in score(scorer(built, measure), *asked[::-1])] == pytest.approx(expected[::-1], rel=1e-4)
    small = scorer(built, measure, remember=1)
    assert [score(small, p)[0].value for p in asked] == pytest.approx(expected, rel=1e-4)


def test_a_child_reads_its_own_tokens_only():
    built = model()
    asked, [tokens] = scorer(built), prompts(1, shortest=90, longest=91)
    path, cuts = [*PROMPT, *tokens], [2 * PAGE + 5, 4 * PAGE, 5 * PAGE]
    costs = [score(asked, path[:n])[0].cost for n in cuts]
    assert [c.scorer_tokens for c in costs] == [2 * PAGE + 5, 2 * PAGE - 5, PAGE]
    assert all(c.prefill_tokens == c.cached_tokens == c.sampled_tokens == 0 for c in costs)
    head = 2 * CONFIG.vocab_size * CONFIG.hidden_size * (5 * PAGE - len(PROMPT))
    assert sum(c.flops for c in costs) == pytest.approx(asked.engine.spent.flops + head)
    assert asked.engine.spent.scorer_tokens == 5 * PAGE
    again = score(asked, *(path[:n] for n in cuts))
    assert sum((s.cost for s in again), Cost()) == Cost()


def test_siblings_of_one_call_read_their_parent_once():
    [parent] = paths(1, shortest=4 * PAGE - len(PROMPT), longest=4 * PAGE - len(PROMPT) + 1)
    asked = scorer()
    scores = score(asked, *([*parent, i, i] for i in range(4)), parent, parent)
    assert [s.cost.scorer_tokens for s in scores] == [2, 2, 2, 2, 4 * PAGE, 0]
    assert asked.engine.spent.scorer_tokens == 4 * PAGE + 8


def test_what_has_nothing_generated_has_no_number():
    scores = score(scorer(), PROMPT, [1, 2, 3], [], [*PROMPT] * 20, [*PROMPT, 5])
    assert [math.isnan(s.value) for s in scores] == [True, True, True, True, False]


def test_new_weights_are_read_anew():
    built, [path] = model(), paths(1, shortest=30, longest=31)
    asked = scorer(built)
    [before] = score(asked, path)
    with torch.no_grad():
        built.layers[0].qkv.weight.mul_(1.5)  # pyright: ignore
    [after] = score(asked, path)
    assert after.value == pytest.approx(truth(built, path, "logprob"), rel=1e-4) and after.value != before.value


def test_generated_begins_behind_the_last_turn_s_opening_tag():
    c = chat()
    assert generated_from(c, PROMPT) == len(PROMPT)
    whole = [*PROMPT, *c.reply("2+2=4", "4")]
    assert generated_from(c, whole) == len(PROMPT), "the end token of the answer ends no earlier turn"
    assert generated_from(c, [*PROMPT, *c.encode("a"), *c.think_open, *c.encode("b")]) == len(PROMPT)
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "1"}, {"role": "user", "content": "2"}]
    two = c.prompt(turns)
    assert generated_from(c, [*two, 65]) == len(two)
    kept = [*whole, *c.prompt("3")]  # a template that keeps old thoughts
    assert generated_from(c, [*kept, 65]) == len(kept)
    assert generated_from(c, c.encode("plain")) == 0


def test_what_the_sampler_said_is_what_reading_finds():
    """In a search: the same scores whether they are taken from the sampled steps or read again, and nothing read."""
    from mull.ledger import Budget
    from mull.search.tree import Tree
    from mull.types import Question

    async def scored(free: bool):
        built = model(scale=4.0)
        made = engine(built)
        judge = Confidence(built, made, chat())
        if not free:
            judge.of_sampled = None
        tree = Tree(
            "t", Question("q", "q", "2+2?"), made, chat(), Budget(think_tokens=12, answer_tokens=4), scorer=judge
        )
        nodes = [node for node in await tree.think(tree.root, 6)]
        await tree.score(nodes, whole_path=True)
        return [node.score for end in nodes for node in end.path()], tree.trace.cost.scorer_tokens

    (taken, nothing), (read, something) = asyncio.run(scored(True)), asyncio.run(scored(False))
    assert taken == pytest.approx(read, rel=1e-4) and nothing == 0 < something
    assert confidence_without_a_sampler_is_nan()


def confidence_without_a_sampler_is_nan() -> bool:
    [score] = asyncio.run(SampledLogprob().score([PROMPT]))
    return math.isnan(score.value) and math.isnan(SampledLogprob.of_sampled(math.nan, 3))
