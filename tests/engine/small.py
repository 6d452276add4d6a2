"""Small random models, engines over them and requests to those, for the engine's tests."""

import asyncio
from dataclasses import replace
from functools import cache
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from mull.chat import Chat
from mull.engine import local, memory
from mull.engine.local import LocalEngine
from mull.learn.logprobs import logprobs_from_logits
from mull.models import hf
from mull.models.attention import causal
from mull.models.config import ModelConfig
from mull.models.nano import write_tokenizer
from mull.models.transformer import Transformer
from mull.types import Completion, SamplingParams

CONFIG = ModelConfig("qwen3", 272, 32, 64, 2, 4, 2, 16, 128, qk_norm=True)
FAMILIES = {
    "qwen3": CONFIG,
    "qwen2": replace(CONFIG, family="qwen2", qk_norm=False, qkv_bias=True, tied=False),
    "llama": replace(CONFIG, family="llama", qk_norm=False, num_kv_heads=4, head_dim=32, num_layers=1),
    "mistral": replace(CONFIG, family="mistral", qk_norm=False, num_kv_heads=1, sliding_window=(9, None)),
}

BOTH = pytest.mark.parametrize("torch_pages", [False, True], ids=["native", "torch"])


@cache
def chat() -> Chat:
    with TemporaryDirectory() as folder:
        write_tokenizer(folder)
        return Chat.load(folder)


def model(config: ModelConfig = CONFIG, seed: int = 0, scale: float = 12.0) -> Transformer:
    """Random weights, the embedding `scale`d so that the distributions are far from uniform."""
    built = hf.init(config, seed)
    with torch.no_grad():
        built.embedding.weight.mul_(scale)
        if not config.tied:
            built.head.weight.mul_(scale / 2)
    return built


def engine(built: Transformer | None = None, pages: int | None = None, torch_pages: bool = False, **options):
    """An engine with `pages` pages of memory; `torch_pages` as on a machine without a compiler."""
    built = built or model()
    if pages is not None:
        options["memory_bytes"] = pages * memory.page_bytes(built.config, torch.float32)
    made = LocalEngine(built, chat(), **options)
    if torch_pages:
        made.memory = memory.TorchPages(built.config, made.pool.num_pages, torch.float32, torch.device("cpu"))
    return made


def ask(sampler, prefix, n: int = 1, **params) -> list[Completion]:
    return asyncio.run(sampler.sample(prefix, SamplingParams(**{"max_tokens": 20, **params}), n))


def crowd(sampler, jobs) -> list[Completion]:
    """Jobs (prefix, params) all at once, one sample each."""

    async def run():
        return await asyncio.gather(*(sampler.sample(prefix, params) for prefix, params in jobs))

    return [c for [c] in asyncio.run(run())]


def prompts(n: int, seed: int = 0, shortest: int = 1, longest: int = 50) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, rng.integers(shortest, longest)).tolist() for _ in range(n)]


def jobs(n: int, seed: int = 0, **options) -> list:
    """For `crowd`: each with a seed of its own."""
    options = {"max_tokens": 30, **options}
    return [(p, SamplingParams(**{**options, "seed": 100 + i})) for i, p in enumerate(prompts(n, seed))]


async def started(made, steps: int) -> None:
    """Waits for the engine's first `steps` steps."""
    while made.steps < steps:
        await asyncio.sleep(0)


def full_logprobs(built: Transformer, prefix, completion: Completion) -> torch.Tensor:
    """Of every token of the completion, from one forward pass over the whole sequence."""
    tokens = torch.tensor([[*prefix, *completion.tokens]])
    with torch.no_grad():
        hidden = built(tokens, torch.arange(tokens.shape[1])[None], causal(built.config.sliding_window))
        logits = built.logits(hidden)[:, :-1]
    kept = None
    if completion.kept is not None:
        width = max(1, *map(len, completion.kept))
        kept = torch.full((1, logits.shape[1], width), -1)
        for t, ids in enumerate(completion.kept):
            kept[0, len(prefix) - 1 + t, : len(ids)] = torch.from_numpy(np.asarray(ids, np.int64))
    heat = torch.tensor([completion.temperature or 1.0])
    return logprobs_from_logits(logits, tokens[:, 1:], heat, kept)[0][0, len(prefix) - 1 :]


def worst_gap(built: Transformer, prefix, completion: Completion) -> float:
    return float((full_logprobs(built, prefix, completion) - torch.tensor(completion.logprobs)).abs().max())


def idle(made: LocalEngine) -> bool:
    """Nothing is held: all slots free, all pages free or cached."""
    schedule = made.schedule
    return (
        made.pool.held == 0
        and not schedule.busy
        and len(schedule.free_slots) == len(schedule.requests)
        and not any(made.pool.counts)
    )


turns = local._TURNS
