"""Value scorers: the value of a prefix is that of its last token, read once, whoever asks and in whatever company."""

from __future__ import annotations

import asyncio
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mull.engine.pages import PAGE
from mull.errors import SamplerLost, UserError
from mull.models import hf
from mull.models.attention import causal
from mull.models.flops import causal_context, forward_flops
from mull.models.value import HEAD, INFO, ScorerInfo, ValueModel, load_value, read_info, save_critic, save_value
from mull.scorers.base import Score
from mull.scorers.critic import Critic
from mull.scorers.value import ValueScorer, chains, load_scorer
from mull.types import Cost
from tests.engine.small import CONFIG, engine, model, prompts
from tests.recipes.tiny import save_tiny


def value_model(seed: int = 0) -> ValueModel:
    """A head that is far from 1/2 everywhere."""
    made = ValueModel(model(seed=seed), seed)
    with torch.no_grad():
        made.head.weight.mul_(20)
    return made


def scorer(made: ValueModel | None = None, **options) -> ValueScorer:
    made = made or value_model()
    return ValueScorer(made, engine(made.body), **options)


def score(asked: ValueScorer, *prefixes) -> list[Score]:
    return asyncio.run(asked.score(prefixes))


def truth(made: ValueModel, prefix) -> float:
    """From a full forward pass over the prefix alone."""
    with torch.no_grad():
        hidden_1TE = made.body(torch.tensor([prefix]), torch.arange(len(prefix))[None], causal())
        return float(torch.sigmoid(made.head(hidden_1TE[0, -1])))


def total(scores: list[Score]) -> Cost:
    return sum((s.cost for s in scores), Cost())


def test_a_value_is_that_of_the_prefix_s_last_token():
    made, asked = value_model(), prompts(12, longest=60)
    expected = [truth(made, p) for p in asked]
    assert np.ptp(expected) > 0.5
    assert [s.value for s in score(scorer(made), *asked)] == pytest.approx(expected, abs=1e-5)


def test_every_prefix_of_a_chain_in_any_order_is_one_reading():
    made, [tokens] = value_model(), prompts(1, shortest=60, longest=61)
    ends = [40, 7, 59, 8, 31]
    asked = scorer(made)
    scores = score(asked, *(tokens[:n] for n in ends))
    assert [s.value for s in scores] == pytest.approx([truth(made, tokens[:n]) for n in ends], abs=1e-5)
    assert [s.cost.scorer_tokens for s in scores] == [9, 7, 19, 1, 23], "each is charged what it adds"
    cost = total(scores)
    assert asked.engine.spent.scorer_tokens == cost.scorer_tokens == 59
    assert cost.prefill_tokens == cost.cached_tokens == cost.sampled_tokens == 0, "that would be the policy's"
    heads = 2 * CONFIG.hidden_size * len(ends)
    assert cost.flops == pytest.approx(forward_flops(CONFIG, 59, causal_context(0, 59), 0) + heads)


def test_a_child_reads_its_own_tokens_only():
    made, [tokens] = value_model(), prompts(1, shortest=100, longest=101)
    asked = scorer(made)
    for parent, child in ((0, 9), (9, 2 * PAGE), (2 * PAGE, 3 * PAGE), (3 * PAGE, 53), (53, 90)):
        [got] = score(asked, tokens[:child])
        assert got.cost.scorer_tokens == child - parent
        assert got.value == pytest.approx(truth(made, tokens[:child]), abs=1e-5)


def test_siblings_share_their_parent():
    made, [tokens] = value_model(), prompts(1, shortest=64, longest=65)
    siblings = [[*tokens, i, i + 1] for i in range(8)]
    scores = score(scorer(made), tokens, *siblings)
    assert total(scores).scorer_tokens == len(tokens) + 2 * 8
    assert [s.value for s in scores[1:]] == pytest.approx([truth(made, s) for s in siblings], abs=1e-5)


def test_what_was_asked_before_costs_nothing():
    made, [tokens] = value_model(), prompts(1, shortest=50, longest=51)
    asked = scorer(made)
    first = score(asked, tokens[:20], tokens, tokens[:20])
    assert [s.cost.scorer_tokens for s in first] == [20, 30, 0]
    again = score(asked, tokens, tokens[:20])
    assert total(again) == Cost() and [s.value for s in again] == [first[1].value, first[0].value]
    assert asked.engine.spent.scorer_tokens == 50


def test_memory_is_bounded_and_least_recent_goes_first():
    asked = scorer(remember=3)
    a, b, c, d = [1, 2], [3, 4], [5, 6], [7, 8]
    score(asked, a, b, c)
    score(asked, a)
    score(asked, d)
    assert list(asked.values) == [(5, 6), (1, 2), (7, 8)]
    assert [s.cost.scorer_tokens for s in score(asked, b, a)] == [1, 0], "the engine still has a first token"


def test_new_weights_are_asked_anew():
    made, [tokens] = value_model(), prompts(1, shortest=30, longest=31)
    asked = scorer(made)
    [before] = score(asked, tokens)
    optimizer = torch.optim.AdamW(made.head.parameters(), lr=0.5, fused=True)  # raises no counter
    made.head.weight.grad = torch.ones_like(made.head.weight)
    optimizer.step()
    [after] = score(asked, tokens)
    assert after.value == pytest.approx(truth(made, tokens), abs=1e-5) and abs(after.value - before.value) > 1e-3


def test_what_cannot_be_read_has_no_number():
    made = value_model()
    scores = score(scorer(made), [], [1] * (CONFIG.max_positions + 1), [1, 2])
    assert math.isnan(scores[0].value) and math.isnan(scores[1].value)
    assert total(scores[:2]) == Cost() and scores[2].value == pytest.approx(truth(made, [1, 2]), abs=1e-5)
    assert asyncio.run(scorer(made).score([])) == []


def test_a_broken_head_gives_nan_and_lost_memory_is_said():
    made = value_model()
    with torch.no_grad():
        made.head.bias.fill_(math.nan)
    assert math.isnan(score(scorer(made), [1, 2])[0].value)

    class Full:
        async def read(self, tokens, positions):
            raise MemoryError

    with pytest.raises(SamplerLost, match="memory"):
        score(ValueScorer(made, Full()), [1, 2])


def test_chains_cover_everything_once():
    rng = np.random.default_rng(0)
    for _ in range(50):
        prefixes = [tuple(rng.integers(0, 2, rng.integers(1, 6)).tolist()) for _ in range(12)]
        groups = chains(prefixes)
        assert sorted(p for g in groups for p in g) == sorted(set(prefixes))
        for group in groups:
            assert all(b[: len(a)] == a and len(a) < len(b) for a, b in pairwise(group))
    assert chains([]) == []


# ---------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_comes_back_as_it_was(tmp_path: Path, dtype: torch.dtype):
    source = save_tiny(tmp_path / "tiny")
    made = ValueModel(hf.load(source, dtype), seed=3)
    with torch.no_grad():
        made.head.bias.fill_(0.3)
    info = ScorerInfo("prm", "min", "nano", "tiny", ("chain",), (1, 2), {"by": "check_steps"})
    save_value(made, tmp_path / "prm", info, source)
    assert {t.dtype for t in load_file(tmp_path / "prm" / HEAD).values()} == {dtype}
    found, said = load_value(tmp_path / "prm", dtype)
    assert said == info
    for (name, a), (_, b) in zip(made.named_parameters(), found.named_parameters(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name
    save_value(found, tmp_path / "prm", info)  # a folder may be written again, over itself
    assert hf.load(tmp_path / "prm").config == made.body.config, "it is an ordinary model, too"
    with pytest.raises(UserError, match=INFO):
        hf.save(made.body, tmp_path / "prm")  # which would lose the scorer


def test_a_new_head_says_one_half_nearly():
    made = ValueModel(model())
    values = [s.value for s in score(scorer(made), *prompts(8))]
    assert made.head.bias.item() == 0 and np.ptp(values) > 0 and max(abs(v - 0.5) for v in values) < 0.2


def test_the_right_kind_of_scorer_is_loaded(tmp_path: Path):
    source = save_tiny(tmp_path / "tiny")
    made = ValueModel(hf.load(source))
    save_value(made, tmp_path / "orm", ScorerInfo("orm"), source)
    save_critic(made.body, tmp_path / "critic", ScorerInfo("critic"), source)
    orm, info = load_scorer(tmp_path / "orm")
    assert isinstance(orm, ValueScorer) and info.kind == "orm"
    assert score(orm, [1, 2, 3])[0].value == pytest.approx(truth(made, [1, 2, 3]), abs=1e-5)
    critic, info = load_scorer(tmp_path / "critic")
    assert isinstance(critic, Critic) and info.kind == "critic"


def test_a_folder_that_is_no_scorer_is_refused(tmp_path: Path):
    source = save_tiny(tmp_path / "tiny")
    with pytest.raises(UserError, match="not a scorer"):
        load_scorer(source)
    save_critic(hf.load(source), tmp_path / "critic", ScorerInfo("critic"), source)
    with pytest.raises(UserError, match="no value head"):
        load_value(tmp_path / "critic")
    save_value(ValueModel(hf.load(source)), tmp_path / "orm", ScorerInfo("orm"), source)
    whole = (tmp_path / "orm" / HEAD).read_bytes()
    (tmp_path / "orm" / HEAD).write_bytes(whole[:-4])
    with pytest.raises(UserError, match="cannot be read"):
        load_value(tmp_path / "orm")
    save_value(ValueModel(model()), tmp_path / "wide", ScorerInfo("orm"), source)
    (tmp_path / "orm" / HEAD).write_bytes((tmp_path / "wide" / HEAD).read_bytes()[:-4])
    (tmp_path / "orm" / INFO).write_text(json.dumps({"aggregate": "min"}))
    with pytest.raises(UserError, match=INFO):
        read_info(tmp_path / "orm")
