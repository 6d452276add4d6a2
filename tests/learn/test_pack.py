"""Packing: alignment, bounds, order, totals, refusals, speed."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.errors import UserError
from mull.learn.pack import pack, to_device, totals
from mull.types import Sample


def sample(n: int, start: int = 1, prompt: int = 2, **changes) -> Sample:
    mask = [i >= prompt for i in range(n)]
    fields = dict(
        tokens=list(range(start, start + n)),
        advantages=[float(start + i) if m else 0.0 for i, m in enumerate(mask)],
        mask=mask,
        logprobs=[-float(start + i) if m else 0.0 for i, m in enumerate(mask)],
    )
    return Sample(**(fields | changes))  # type: ignore[arg-type]


def test_alignment_by_hand():
    (batch,) = pack([sample(4, start=5, temperature=0.7)], max_tokens=64, pad_to=4)
    assert batch.tokens_BT.tolist() == [[5, 6, 7, 0]]
    assert batch.targets_BT.tolist() == [[6, 7, 8, 0]]
    assert batch.lengths_B.tolist() == [3]
    assert batch.mask_BT.tolist() == [[False, True, True, False]]
    assert batch.advantages_BT.tolist() == [[0.0, 7.0, 8.0, 0.0]]
    assert batch.logprobs_BT.tolist() == [[0.0, -7.0, -8.0, 0.0]]
    assert batch.ce_BT.tolist() == [[0.0] * 4]
    assert batch.temperature_B.tolist() == pytest.approx([0.7])
    assert batch.kept_BTK is None and batch.ref_logprobs_BT is None
    assert (batch.denominator, batch.sequences) == (2.0, 1.0)
    assert [batch.tokens_BT.dtype, batch.targets_BT.dtype, batch.lengths_B.dtype] == [torch.int64] * 3
    assert [batch.advantages_BT.dtype, batch.logprobs_BT.dtype, batch.ce_BT.dtype] == [torch.float32] * 3
    assert batch.mask_BT.dtype == torch.bool


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=20), st.integers(40, 200), st.sampled_from([1, 4, 8]))
def test_every_sample_comes_out_once_within_bounds(lengths, max_tokens, pad_to):
    samples = [sample(n, start=1000 * (i + 1)) for i, n in enumerate(lengths)]
    batches = pack(samples, max_tokens, pad_to)
    rows = []
    for b in batches:
        B, T = b.tokens_BT.shape
        assert max_tokens >= B * T and pad_to * -(-int(b.lengths_B.max()) // pad_to) == T
        assert (b.denominator, b.sequences) == totals(samples) == (sum(lengths) - 2 * len(lengths), len(lengths))
        for r in range(B):
            n = int(b.lengths_B[r])
            assert b.tokens_BT[r, 1:n].tolist() == b.targets_BT[r, : n - 1].tolist()
            assert b.advantages_BT[r, b.mask_BT[r]].tolist() == b.targets_BT[r, b.mask_BT[r]].tolist()
            for weight in (b.tokens_BT, b.targets_BT, b.advantages_BT, b.mask_BT, b.logprobs_BT, b.ce_BT):
                assert not weight[r, n:].any()
            rows.append((n + 1, int(b.tokens_BT[r, 0])))
    expected = sorted(((n, 1000 * (i + 1)) for i, n in enumerate(lengths)), key=lambda x: (-x[0], x[1]))
    assert rows == expected, "longest first, equal lengths in their order"


def test_deterministic_and_leaves_its_input_alone():
    samples = [sample(n) for n in (5, 9, 5, 30)]
    before = [list(s.tokens) for s in samples]
    one, two = pack(samples, 64), pack(samples, 64)
    assert all(torch.equal(a.tokens_BT, b.tokens_BT) for a, b in zip(one, two, strict=True))
    assert before == [s.tokens for s in samples]


def test_samples_without_anything_to_learn_are_left_out():
    inert = sample(9, advantages=[0.0] * 9, mask=[False] * 9, logprobs=[0.0] * 9)
    assert pack([inert], 64) == [] and pack([], 64) == [] and totals([inert]) == (0.0, 0.0)
    (batch,) = pack([inert, sample(5), inert], 64)
    assert batch.tokens_BT.shape[0] == 1 and (batch.denominator, batch.sequences) == (3.0, 1.0)
    neutral = sample(5, advantages=[0.0] * 5)
    assert totals([neutral]) == (3.0, 1.0), "an advantage of zero counts, an empty mask does not"


def test_cross_entropy_counts_in_the_denominator_once():
    s = sample(5, ce=[0.0, 0.0, 0.0, 0.5, 0.5])
    assert totals([s]) == (3.0, 1.0)
    assert pack([s], 64)[0].ce_BT[0, :4].tolist() == [0.0, 0.0, 0.5, 0.5]
    assert totals([sample(5, ce=[0.0, 1.0, 1.0, 1.0, 1.0])]) == (4.0, 1.0)


def test_totals_of_all_ranks_replace_those_of_one():
    (batch,) = pack([sample(5)], 64, step_totals=(100.0, 7.0))
    assert (batch.denominator, batch.sequences) == (100.0, 7.0)


def test_kept_sets_are_aligned_and_padded():
    kept = [None, None, np.array([3, 9]), np.array([1, 2, 4]), None]
    s = sample(5, kept=kept)
    full = sample(4, start=7)
    (batch,) = pack([full, s], 64, pad_to=4)
    assert batch.kept_BTK is not None and batch.kept_BTK.dtype == torch.int64
    row = batch.kept_BTK[0].tolist()
    assert row == [[-1, -1, -1], [3, 9, -1], [1, 2, 4], [-1, -1, -1]]
    assert (batch.kept_BTK[1] == -1).all(), "full support"
    assert batch.targets_BT[0].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(logprobs=[0.0, 0.0, float("nan"), -1.0, -1.0]), "sample 1, token 2.*log-probability"),
        (dict(logprobs=[0.0, 0.0, -1.0, -1.0]), "sample 1 has 5 tokens but 4 entries in logprobs"),
        (dict(mask=[True] * 5), "sample 1, token 0: the first token has a weight"),
        (dict(ce=[1.0] * 5), "sample 1, token 0: the first token has a weight"),
        (dict(mask=[False] * 4 + [True]), "sample 1, token 2.*not in the mask"),
        (dict(advantages=[0.0, 0.0, float("inf"), 1.0, 1.0]), "not finite"),
        (dict(temperature=0.0), "temperature"),
        (dict(kept=[None] * 4), "kept sets"),
        (dict(kept=[None, None, None, np.array([1, 2]), None]), "sample 1, token 3: the sampled token is not in"),
    ],
)
def test_inconsistent_samples_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        pack([sample(6), sample(5, **changes)], 64)


def test_a_sample_larger_than_a_micro_batch_is_a_users_mistake():
    with pytest.raises(UserError, match=r"33 tokens, padded to 32, .* 31 tokens: raise the tokens"):
        pack([sample(33)], 31)
    assert len(pack([sample(33)], 32)) == 1


def test_to_device_moves_every_tensor():
    (batch,) = pack([sample(5, kept=[None, None, np.array([3]), None, None])], 64)
    moved = to_device(batch, "meta")
    for name in ("tokens_BT", "targets_BT", "lengths_B", "mask_BT", "temperature_B", "kept_BTK"):
        assert getattr(moved, name).device.type == "meta" and getattr(batch, name).device.type == "cpu"
    assert moved.ref_logprobs_BT is None and moved.denominator == batch.denominator


def test_an_rl_step_packs_in_milliseconds():
    rng = np.random.default_rng(0)
    samples = [sample(int(n)) for n in rng.integers(100, 200, 384)]
    best = min(_seconds(lambda: pack(samples, 8192)) for _ in range(8))
    assert best < 0.03


def _seconds(f) -> float:
    start = time.process_time()  # others may be using the machine
    f()
    return time.process_time() - start
