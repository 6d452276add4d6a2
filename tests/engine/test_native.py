"""The C++ attention kernel against torch, on any mixture of rows; and what is said when there is no compiler."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mull.engine import native
from mull.engine.memory import NativePages, TorchPages, make_pages
from mull.engine.pages import PAGE, Rows
from mull.models.config import ModelConfig

KERNEL, SENTENCE = native.load()
needs_kernel = pytest.mark.skipif(KERNEL is None, reason=SENTENCE)


def steps(rng, slots: int, longest: int, count: int):
    """Rows of several engine steps: at each, a random choice of sequences grows by a random number of tokens. Pages are
    scattered, and the tables of the others hold what they like."""
    pages = -(-longest // PAGE)
    table = rng.permutation(slots * pages).reshape(slots, pages).astype(np.int32)
    length = np.zeros(slots, np.int32)
    for _ in range(count):
        grow = rng.choice([0, 1, 1, 1, 2, 15, 16, 17, 33], slots)
        grow = np.minimum(grow, longest - length)
        if not grow.any():
            continue
        order = rng.permutation(slots)
        slot_N = np.repeat(order, grow[order]).astype(np.int32)
        position_N = np.concatenate([length[s] + np.arange(int(grow[s])) for s in order]).astype(np.int32)
        length += grow
        yield Rows(slot_N, position_N, table), slots * pages


@needs_kernel
@pytest.mark.parametrize("window", [None, 1, 7, 16, 40])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 32), (3, 3, 16), (7, 1, 48), (6, 2, 64)])
def test_kernel_equals_torch_on_ragged_rows(heads, kv_heads, head_dim, window):
    assert KERNEL is not None
    config = ModelConfig("qwen3", 9, 8, 8, 2, heads, kv_heads, head_dim, 128, sliding_window=(window, None))
    rng = np.random.default_rng(heads + head_dim + (window or 0))
    generator = torch.Generator().manual_seed(1)
    ours = theirs = None
    for rows, pages in steps(rng, slots=6, longest=90, count=8):
        if ours is None or theirs is None:
            ours = NativePages(config, pages, KERNEL)
            theirs = TorchPages(config, pages, torch.float32, torch.device("cpu"))
        attends = ours.attend(rows), theirs.attend(rows)
        for layer in range(2):
            q, k, v = (
                torch.randn(len(rows.slot_N), h, head_dim, generator=generator) for h in (heads, *[kv_heads] * 2)
            )
            a, b = (attend(layer, 3 * q, k, v) for attend in attends)
            assert (a - b).abs().max() < 2e-5, "scores reach 30, where a float32 has steps of 2e-6"


@needs_kernel
def test_extreme_scores_neither_overflow_nor_lose_the_largest():
    assert KERNEL is not None
    config = ModelConfig("qwen3", 9, 8, 8, 1, 1, 1, 16, 64)
    memory = NativePages(config, 4, KERNEL)
    n = 40
    rows = Rows(np.zeros(n, np.int32), np.arange(n, dtype=np.int32), np.arange(4, dtype=np.int32)[None])
    q = torch.full((n, 1, 16), 1000.0)
    k = torch.zeros(n, 1, 16)
    k[7], k[20] = 1000.0, -1000.0
    v = torch.arange(n, dtype=torch.float32)[:, None, None].expand(n, 1, 16).contiguous()
    out = memory.attend(rows)(0, q, k, v)
    assert torch.isfinite(out).all() and (out[7:] == 7.0).all()


@needs_kernel
def test_bf16_models_get_bf16_back():
    assert KERNEL is not None
    config = ModelConfig("qwen3", 9, 8, 8, 1, 2, 1, 16, 64)
    rows = Rows(np.zeros(3, np.int32), np.arange(3, dtype=np.int32), np.zeros((1, 1), np.int32))
    q, k, v = (torch.randn(3, h, 16, dtype=torch.bfloat16) for h in (2, 1, 1))
    out = NativePages(config, 1, KERNEL).attend(rows)(0, q, k, v)
    assert out.dtype == torch.bfloat16 and torch.equal(out[0, 0], v[0, 0])


def told(environment: dict[str, str], *path: str) -> str:
    code = "from mull.engine import native; lib, said = native.load(); print(lib is None, said)"
    env = {"PATH": ":".join(path), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_what_is_said_without_a_kernel(tmp_path):
    assert told({"MULL_NATIVE": "0", "HOME": str(tmp_path)}, "/usr/bin", "/bin") == (
        "True native attention is switched off (MULL_NATIVE=0): the engine runs on torch alone"
    )
    none = told({"HOME": str(tmp_path)}, str(tmp_path))
    assert none.startswith("True no C++ compiler was found") and "torch alone" in none
    broken = tmp_path / "broken++"
    broken.write_text("#!/bin/sh\necho 'no room on the chip' >&2\nexit 1\n")
    broken.chmod(0o755)
    said = told({"CXX": str(broken), "MULL_CACHE": str(tmp_path / "cache")}, "/usr/bin", "/bin")
    assert said.startswith("True ") and "could not build" in said and "no room on the chip" in said
    assert not list((tmp_path / "cache").glob("*")), "nothing half-written is left"


def test_pages_are_native_exactly_where_the_kernel_is():
    config = ModelConfig("qwen3", 9, 8, 8, 1, 2, 1, 16, 64)
    made = make_pages(config, 1, torch.float32, torch.device("cpu"))
    assert isinstance(made, TorchPages if KERNEL is None else NativePages)
    assert native.status() == SENTENCE and SENTENCE


def test_head_widths_that_the_kernel_cannot_read_run_on_torch():
    """Its vectors hold 16 numbers: with any other width it would read past a head's end."""
    for width in (8, 20, 24):
        config = ModelConfig("qwen3", 9, 8, 8, 1, 2, 1, width, 64)
        assert isinstance(make_pages(config, 1, torch.float32, torch.device("cpu")), TorchPages)
