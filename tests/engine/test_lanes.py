"""Lanes: a step in parts computes what one piece computes, reproducibly, and leaves torch's threads as they were."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mull.chat import Chat
from mull.engine.lanes import Lanes, split
from mull.engine.local import LocalEngine
from mull.engine.pages import Rows
from mull.models import hf
from mull.models.config import ModelConfig
from mull.models.nano import VOCAB_SIZE, write_tokenizer
from mull.types import SamplingParams


def rows(counts: list[int]) -> Rows:
    """Slot i has counts[i] rows."""
    slot_N = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    position_N = np.concatenate([np.arange(n, dtype=np.int32) for n in counts]) if counts else slot_N
    return Rows(slot_N, position_N, np.zeros((len(counts), 1), np.int32))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(1, 8))
def test_parts_are_the_rows_in_order_and_no_slot_is_cut(counts: list[int], parts: int) -> None:
    whole = rows(counts)
    made = split(whole, parts)
    assert 1 <= len(made) <= parts
    assert np.array_equal(np.concatenate([p.slot_N for p in made]), whole.slot_N)
    assert np.array_equal(np.concatenate([p.position_N for p in made]), whole.position_N)
    assert all(len(p.slot_N) for p in made)
    seen = [set(p.slot_N.tolist()) for p in made]
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_decoding_rows_are_halved_and_a_few_rows_stay_together() -> None:
    assert [len(p.slot_N) for p in split(rows([1] * 384), 2)] == [192, 192]
    assert len(split(rows([1] * 40), 2)) == 1
    assert len(split(rows([500]), 2)) == 1  # one prompt cannot be cut


def test_every_part_runs_with_one_thread_and_the_number_comes_back(two_threads: None) -> None:
    seen: list[int] = []

    def forward(part: Rows) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return torch.from_numpy(part.slot_N.astype(np.float32))

    whole = rows([1] * 128)
    out = Lanes(torch.device("cpu")).run(forward, split(whole, 2))
    assert seen == [1, 1] and torch.get_num_threads() == 2
    assert out.tolist() == whole.slot_N.tolist()


@pytest.mark.parametrize("bad", [0, 1])
def test_a_part_that_fails_is_the_steps_failure_and_the_threads_come_back(two_threads: None, bad: int) -> None:
    parts = split(rows([1] * 128), 2)

    def forward(part: Rows) -> torch.Tensor:
        if part is parts[bad]:
            raise FloatingPointError("diverged")
        return torch.zeros(len(part.slot_N))

    with pytest.raises(FloatingPointError, match="diverged"):
        Lanes(torch.device("cpu")).run(forward, parts)
    assert torch.get_num_threads() == 2


def test_an_engine_in_lanes_samples_what_one_lane_samples_and_repeats_itself_bit_for_bit(
    tmp_path, two_threads: None
) -> None:
    write_tokenizer(tmp_path)
    chat = Chat.load(tmp_path)
    model = hf.init(ModelConfig("qwen3", VOCAB_SIZE, 32, 64, 2, 2, 1, 16, 256, qk_norm=True), 0)

    def sampled(threads: int) -> list[tuple]:
        torch.set_num_threads(threads)
        engine = LocalEngine(model, chat)

        async def ask() -> list:
            asked = (engine.sample(chat.prompt(f"question {i}"), SamplingParams(24, seed=i), 16) for i in range(12))
            return [c for group in await asyncio.gather(*asked) for c in group]

        return [(c.tokens, c.logprobs) for c in asyncio.run(ask())]

    one, two, again = sampled(1), sampled(2), sampled(2)
    assert two == again  # bitwise, log-probabilities included
    assert [tokens for tokens, _ in one] == [tokens for tokens, _ in two]
    assert max(abs(a - b) for (_, x), (_, y) in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)) < 1e-5
