"""Where a source's models compute, and in which numbers: the engine's own, the scorer's, the critic's, the generator's.

What needs a GPU runs where torch sees one, and is skipped by name elsewhere.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.engine import memory
from mull.errors import UserError
from mull.models import hf
from mull.models.attention import causal
from mull.models.value import ScorerInfo, ValueModel, save_critic, save_value
from mull.scorers.critic import Critic
from mull.scorers.value import ValueScorer
from mull.search.sources import Opened, Source, loaded
from mull.types import SamplingParams
from tests.engine.small import CONFIG, ask, engine, model, worst_gap
from tests.recipes.tiny import save_tiny

TOLERANCE = 0.25  # of log-probabilities of up to 20 nats: bfloat16 has 8 bits, and two layers add their errors
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU: nothing was run on one")
URL: dict[str, Any] = {"endpoint": "http://localhost:9/v1", "tokenizer": "dir"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny; orm and critic, that judge it; other, a generator."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "tiny")
    save_tiny(folder / "other", seed=1)
    judge = hf.load(folder / "other")
    save_value(ValueModel(judge, seed=3), folder / "orm", ScorerInfo("orm"), folder / "tiny")
    save_critic(judge, folder / "critic", ScorerInfo("critic"), folder / "tiny")
    return folder


def source(home: Path, **changes: Any) -> Source:
    return Source(str(home / "tiny"), max_sequences=8, memory_bytes=8 << 20, **changes)


def everything(home: Path, **changes: Any) -> Source:
    judges = {"scorer": str(home / "orm"), "critic": str(home / "critic"), "generator": str(home / "other")}
    return source(home, **judges, **changes)


def forced(tools: Opened, text: str = "2+2 is 4\n") -> list[float]:
    """Log-probabilities of a text that is not the model's choice."""
    tokens = tuple(tools.chat.encode(text))
    params = SamplingParams(len(tokens), forced=tokens)
    [done] = asyncio.run(tools.sampler.sample(tools.chat.prompt("2+2?"), params))
    return list(done.logprobs)


def value(tools: Opened, text: str = "2+2 is 4\n") -> float:
    assert tools.scorer is not None
    [score] = asyncio.run(tools.scorer.score([[*tools.chat.prompt("2+2?"), *tools.chat.encode(text)]]))
    return score.value


def models(tools: Opened) -> list[Any]:
    """Of the policy, the trained scorer, the critic and the generator."""
    assert isinstance(tools.scorer, ValueScorer) and isinstance(tools.critic, Critic) and tools.generator is not None
    engines: list[Any] = [tools.sampler, tools.scorer.engine, tools.critic.sampler, tools.generator.sampler]
    assert tools.scorer.model.body is engines[1].model
    return [one.model for one in engines]


def apart(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


# ----------------------------------------------------------------------------------------------------- bfloat16


def test_bfloat16_reaches_every_model_and_float32_is_the_default(home: Path):
    assert {m.dtype for m in models(loaded(everything(home)))} == {torch.float32}
    tools = loaded(everything(home, dtype="bfloat16"))
    assert {m.dtype for m in models(tools)} == {torch.bfloat16}
    assert {p.dtype for m in models(tools) for p in m.parameters()} == {torch.bfloat16}
    assert tools.scorer.model.head.weight.dtype == torch.bfloat16  # type: ignore[union-attr]


def test_bfloat16_changes_log_probabilities_by_as_much_as_it_rounds(home: Path):
    exact, rounded = forced(loaded(source(home))), forced(loaded(source(home, dtype="bfloat16")))
    assert 0 < apart(exact, rounded) < TOLERANCE
    again = forced(loaded(source(home, dtype="bfloat16")))
    assert again == rounded


def test_bfloat16_of_scorers(home: Path):
    exact, rounded = (value(loaded(everything(home, dtype=d))) for d in ("float32", "bfloat16"))
    assert 0 < abs(exact - rounded) < 0.02
    prefix = [*loaded(source(home)).chat.prompt("2+2?"), 65, 66]
    verdicts = [asyncio.run(loaded(everything(home, dtype=d)).critic.score([prefix])) for d in ("float32", "bfloat16")]
    values = [math.log(one.value) for [one] in verdicts]
    assert 0 < abs(values[0] - values[1]) < 4 * TOLERANCE  # a verdict of several tokens


@pytest.mark.parametrize("scorer", ["logprob", "certainty"])
def test_confidence_reads_a_bfloat16_engine(home: Path, scorer: str):
    """Its own logits, not those of a rounded or a float32 head: what it says of a path is what the sampler said."""
    tools = loaded(source(home, scorer=scorer, dtype="bfloat16"))
    judge, built = tools.scorer, tools.sampler.model  # type: ignore[attr-defined]
    prompt = tools.chat.prompt("2+2?")
    [done] = asyncio.run(tools.sampler.sample(prompt, SamplingParams(24, seed=4)))
    path = [*prompt, *done.tokens]
    with torch.no_grad():
        hidden = built(torch.tensor([path]), torch.arange(len(path))[None], causal())[0]
        logp = built.logits(hidden).double().log_softmax(-1)[len(prompt) - 1 : -1]
    assert built.logits(hidden).dtype == torch.float32
    if scorer == "logprob":
        mean = float(logp[torch.arange(len(logp)), torch.tensor(done.tokens)].mean())
        assert mean == pytest.approx(sum(done.logprobs) / len(done.logprobs), abs=TOLERANCE)
        expected = math.exp(mean)
    else:
        kl = float(-logp.mean() - math.log(logp.shape[-1]))
        expected = kl / (1 + kl)
    cut = len(prompt) + 10
    [whole] = asyncio.run(judge.score([path]))  # type: ignore[union-attr]
    judge.forget()  # type: ignore[union-attr]
    asyncio.run(judge.score([path[:cut]]))  # type: ignore[union-attr]
    [stepwise] = asyncio.run(judge.score([path]))  # type: ignore[union-attr]
    assert whole.value == pytest.approx(expected, rel=0.1) and stepwise.value == pytest.approx(expected, rel=0.1)
    in_float32 = loaded(source(home, scorer=scorer))
    [exact] = asyncio.run(in_float32.scorer.score([path]))  # type: ignore[union-attr]
    assert 0 < abs(exact.value - whole.value) < 0.1


def test_a_version_beside_another_is_in_the_same_numbers(home: Path):
    about = everything(home, dtype="bfloat16")
    first = loaded(about)
    second = loaded(replace(about, model=str(home / "other")), 1, first)
    assert second.sampler.model.dtype == torch.bfloat16 and second.scorer is first.scorer  # type: ignore[attr-defined]


def test_keys_and_values_in_bfloat16_as_a_gpu_has_them():
    """The path of a GPU, on the CPU: `TorchPages` in the weights' own dtype."""
    built = model(replace(CONFIG, num_kv_heads=1)).to(torch.bfloat16)
    made = engine(built)
    made.memory = memory.TorchPages(built.config, made.pool.num_pages, torch.bfloat16, torch.device("cpu"))
    prefix = list(range(40, 75))
    [done] = ask(made, prefix, max_tokens=30, seed=1)
    assert made.memory.keys.dtype == torch.bfloat16 and made.memory.keys.abs().sum() > 0
    assert worst_gap(built, prefix, done) < TOLERANCE
    again = ask(made, prefix, max_tokens=30, seed=1)[0]
    assert again.cost.cached_tokens > 0 and again.tokens[:1] == done.tokens[:1]


def test_a_gpus_memory_counts_what_torch_holds_and_nobody_uses(monkeypatch: pytest.MonkeyPatch):
    """Otherwise each engine that takes another one's place on a GPU would get half of what that one had."""
    assert memory.default_bytes(torch.device("cpu")) == 2 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 55)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 15)
    assert memory.default_bytes(torch.device("cuda")) == (20 + 55 - 15) // 2


# ------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dtype": "bf16"}, "unknown dtype 'bf16'; did you mean 'bfloat16'?; there are float32, bfloat16"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({**URL, "device": "cuda"}, "device cuda and dtype float32 are for what is loaded here"),
        ({**URL, "dtype": "bfloat16", "scorer": "logprob"}, "leave them out"),
    ],
)
def test_mistakes_are_one_sentence(changes, sentence):
    with pytest.raises(UserError) as caught:
        Source(**changes)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("judge", ["scorer", "critic", "generator"])
def test_what_judges_an_endpoint_here_has_a_device(judge: str):
    there: dict[str, Any] = {**URL, judge: "dir"}
    assert Source(**there, device="cuda", dtype="bfloat16").loads
    assert not Source(**URL).loads and Source().loads


# --------------------------------------------------------------------------------------------------------- GPUs


@on_a_gpu
def test_a_gpu_says_what_the_cpu_says(home: Path):
    here, there = loaded(everything(home)), loaded(everything(home, device="cuda"))
    assert {m.device.type for m in models(there)} == {"cuda"}
    assert isinstance(there.sampler.memory, memory.TorchPages)  # type: ignore[attr-defined]
    assert apart(forced(here), forced(there)) < 1e-3
    assert value(here) == pytest.approx(value(there), abs=1e-4)
    prompt = there.chat.prompt("2+2?")
    [done] = asyncio.run(there.sampler.sample(prompt, SamplingParams(24, seed=4)))
    assert worst_gap(here.sampler.model, prompt, done) < 1e-3  # type: ignore[attr-defined]


@on_a_gpu
@pytest.mark.parametrize("scorer", ["logprob", "certainty"])
def test_a_gpu_in_bfloat16(home: Path, scorer: str):
    here, there = (loaded(source(home, scorer=scorer, dtype="bfloat16", device=d)) for d in ("cpu", "cuda"))
    assert there.sampler.memory.keys.dtype == torch.bfloat16  # type: ignore[attr-defined]
    assert there.sampler.memory.keys.device.type == "cuda"  # type: ignore[attr-defined]
    assert apart(forced(here), forced(there)) < TOLERANCE
    text = "<think>2+2 is 4\n"
    assert value(here, text) == pytest.approx(value(there, text), abs=0.05)


@on_a_gpu
def test_engines_that_follow_one_another_on_a_gpu_get_as_much():
    device = torch.device("cuda", 0)
    first = memory.default_bytes(device)
    held = torch.empty(first, dtype=torch.uint8, device=device)
    assert memory.default_bytes(device) < 0.6 * first
    del held
    assert memory.default_bytes(device) > 0.9 * first
