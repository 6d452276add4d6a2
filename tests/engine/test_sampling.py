"""Tokens are drawn with exactly the probabilities that their log-probabilities say."""

import numpy as np
import pytest
import torch

from mull.engine.sampling import banned_next, bans_of, draw, uniforms


def sample(logits, uniform, temperature=1.0, top_p=1.0, top_k=0, banned=()):
    """One row of logits, drawn once for every number in `uniform`."""
    n = len(uniform)
    rows = torch.as_tensor(logits, dtype=torch.float32).expand(n, -1)
    return draw(
        rows,
        np.full(n, temperature, np.float32),
        np.full(n, top_p, np.float32),
        np.full(n, top_k),
        np.asarray(uniform),
        {r: np.asarray(banned, np.int64) for r in range(n)} if len(banned) else None,
    )


def chi_square(tokens, probabilities) -> float:
    expected = np.asarray(probabilities) * len(tokens)
    found = np.bincount(tokens, minlength=len(expected))
    live = expected > 0
    assert found[~live].sum() == 0
    return float(((found - expected)[live] ** 2 / expected[live]).sum())


LOGITS = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 1.0, 1.0, -4.0, 0.0])
# 99.9% quantiles of chi-square with (kept tokens - 1) degrees of freedom
QUANTILE = {0: 1e-9, 1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46}


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({}, [0, 1, 2, 4, 5, 6, 7]),
        ({"temperature": 0.5}, [0, 1, 2, 4, 5, 6, 7]),
        ({"temperature": 2.0}, [0, 1, 2, 4, 5, 6, 7]),
        ({"top_k": 2}, [2, 4]),  # 4 and 5 are equal: the lower id stays
        ({"top_k": 100}, [0, 1, 2, 4, 5, 6, 7]),
        ({"top_p": 0.5}, [2, 4]),
        ({"top_p": 1e-6}, [2]),
        ({"top_p": 0.9, "top_k": 4}, [2, 4, 5]),
        ({"top_p": 0.7, "temperature": 2.0}, [2, 4, 5, 0]),
        ({"banned": [2, 6]}, [0, 1, 4, 5, 7]),
        ({"banned": [2, 3], "temperature": 2.0}, [0, 1, 4, 5, 6, 7]),
        ({"banned": [2], "top_k": 2}, [4, 5]),  # the ban comes first: two of the others are left
        ({"banned": [2], "top_p": 0.5}, [4, 5]),
    ],
)
def test_frequencies_are_the_stated_probabilities(options, support):
    n = 40_000
    uniform = uniforms(np.full(n, 12345, np.uint64), np.arange(n))
    drawn = sample(LOGITS, uniform, **options)
    heated = LOGITS / options.get("temperature", 1.0)
    truth = torch.full_like(heated, -torch.inf)
    truth[support] = heated[support]
    truth = truth.double().softmax(-1).numpy()
    assert chi_square(drawn.tokens_R, truth) < QUANTILE[len(support) - 1]
    assert np.abs(drawn.logprobs_R - np.log(truth[drawn.tokens_R])).max() < 1e-5
    cut = "top_p" in options or options.get("top_k", 0) > 0 or "banned" in options
    for kept in drawn.kept_R[:5]:
        assert (kept is None) == (not cut)
        if kept is not None:
            assert set(kept.tolist()) == set(support)


def test_a_full_kept_set_is_none():
    drawn = sample([0.0, 1.0, 2.0], [0.5], top_k=3)
    assert drawn.kept_R == [None]


def test_the_inverse_of_the_cumulative_distribution_exactly():
    p = np.array([0.25, 0.0, 0.5, 0.0, 0.25])
    with np.errstate(divide="ignore"):
        logits = np.log(p)
    u = np.array([0.0, 0.2499, 0.2501, 0.5, 0.7499, 0.7501, 1 - 2**-53])
    assert sample(logits, u).tokens_R.tolist() == [0, 0, 2, 2, 2, 4, 4]


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53, 1.0])
def test_no_token_without_probability_is_ever_drawn(u):
    for position in range(1, 5):
        logits = np.full(300, -np.inf)
        logits[[position, 100 + position]] = [0.3, -0.2]
        options: dict
        for options in ({}, {"top_k": 3}, {"top_p": 0.99}, {"temperature": 0.0}):
            drawn = sample(logits, [u], **options)
            assert drawn.tokens_R[0] in (position, 100 + position)
            assert np.isfinite(drawn.logprobs_R[0])
    underflow = sample([0.0, -200.0, 0.0, -200.0], [0.5, u])  # exp(-200) is 0 in float32
    assert set(underflow.tokens_R.tolist()) <= {0, 2}


def test_rows_of_one_batch_do_not_mix():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 40, generator=generator)
    temperature = np.array([1.0, 0.0, 0.5, 1.0, 2.0], np.float32)
    top_p, top_k = np.array([1.0, 0.5, 0.8, 1.0, 1.0], np.float32), np.array([0, 3, 0, 4, 0])
    u = np.array([0.1, 0.9, 0.4, 0.7, 0.99])
    together = draw(logits, temperature, top_p, top_k, u)
    for r in range(5):
        row = slice(r, r + 1)
        alone = draw(logits[row], temperature[row], top_p[row], top_k[row], u[row])
        assert alone.tokens_R[0] == together.tokens_R[r]
        assert alone.logprobs_R[0] == together.logprobs_R[r]
        kept = alone.kept_R[0], together.kept_R[r]
        assert (kept[0] is None) == (kept[1] is None)
        if kept[0] is not None and kept[1] is not None:
            assert kept[0].tolist() == kept[1].tolist()
    assert together.tokens_R[1] == logits[1].argmax() and together.kept_R[1] is None
    assert together.logprobs_R[1] == pytest.approx(float(logits[1].log_softmax(-1).max()), abs=1e-6)


@pytest.mark.parametrize("bad", [[float("nan"), 0.0], [float("inf"), 0.0], [-float("inf")] * 2])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_distribution_are_an_error(bad, temperature):
    with pytest.raises(FloatingPointError, match="diverged"):
        sample(bad, [0.5], temperature=temperature)


def test_uniforms_depend_on_seed_and_step_alone_and_are_uniform():
    seeds, steps = np.repeat(np.arange(200, dtype=np.uint64), 100), np.tile(np.arange(100), 200)
    u = uniforms(seeds, steps)
    assert (u == uniforms(seeds[::-1], steps[::-1])[::-1]).all()
    assert u.min() >= 0 and u.max() < 1 and len(np.unique(u)) == len(u)
    assert chi_square((u * 7).astype(int), [1 / 7] * 7) < QUANTILE[6]
    for shifted in (u.reshape(200, 100)[1:] - u.reshape(200, 100)[:-1], np.diff(u.reshape(200, 100))):
        assert abs(np.corrcoef(shifted.ravel()[1:], shifted.ravel()[:-1])[0, 1]) < 0.6  # -0.5 for independent numbers


def test_no_warnings(recwarn):
    sample(torch.zeros(10), np.linspace(0, 0.99, 5), top_p=0.5)
    assert not recwarn.list


# -------------------------------------------------------------------------------------------------- bans


def test_a_ban_holds_for_greedy_rows_too_and_for_no_other_row():
    logits = torch.tensor([[0.0, 3.0, 2.0], [0.0, 3.0, 2.0], [0.0, 3.0, 2.0]])
    kept_all = logits.clone()
    heat, full = np.array([0.0, 1.0, 0.0], np.float32), np.ones(3, np.float32)
    drawn = draw(logits, heat, full, np.zeros(3, int), np.array([0.5, 0.5, 0.5]), {0: np.array([1])})
    assert drawn.tokens_R.tolist()[0] == 2 and drawn.tokens_R.tolist()[2] == 1
    assert drawn.logprobs_R[0] == pytest.approx(-np.log1p(np.exp(-2.0)), abs=1e-6), "of what the ban left"
    assert drawn.logprobs_R[2] == pytest.approx(float(logits[2].log_softmax(-1)[1]), abs=1e-6)
    assert drawn.kept_R[0] is not None and drawn.kept_R[0].tolist() == [0, 2] and drawn.kept_R[1:] == [None, None]
    assert torch.equal(logits, kept_all), "the caller's logits are left alone"


def test_what_is_banned_next_by_hand():
    bans = bans_of([(5,), (1, 2), (1, 3), (4, 1, 6)])
    for tokens, expected in (([], [5]), ([1], [2, 3, 5]), ([4, 1], [2, 3, 5, 6]), ([1, 4], [5]), ([1, 2], [5])):
        assert banned_next(bans, np.array(tokens, np.int32)).tolist() == expected
    assert not len(banned_next(bans_of([(1, 2)]), np.array([3], np.int32))) and bans_of([]) == {}
