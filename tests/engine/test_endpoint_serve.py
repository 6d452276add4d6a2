"""The endpoint sampler against a real server: `transformers serve` on nano, in an environment of its own.

Skipped where that environment has not been made: `make serve-env`, or MULL_SERVE_VENV=DIR.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from benchmarks.endpoint_serve import server_program, serving, votes
from mull.chat import Chat
from mull.engine.endpoint import EndpointSampler
from mull.engine.endpoint_forms import Fields
from mull.engine.local import LocalEngine
from mull.errors import StopReason, UserError
from mull.models import hf
from mull.models.nano import shipped_folder
from mull.types import SamplingParams

PROGRAM = server_program()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no .venv-serve/bin/transformers: run `make serve-env`"),
]
FOLDER = shipped_folder()


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(FOLDER)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    assert PROGRAM is not None
    with serving(PROGRAM, FOLDER) as address:
        yield address


def run(url: str, chat: Chat, prefix: list[int], n: int = 1, mode: str = "auto", **params):
    async def sample():
        async with EndpointSampler(url, str(FOLDER), chat, mode=mode, context=1024) as sampler:
            return sampler, await sampler.sample(prefix, SamplingParams(**{"max_tokens": 200, **params}), n)

    return asyncio.run(sample())


def test_greedy_chains_and_their_costs_are_the_local_engines(url, chat):
    """The same tokens, stop reason and token counts, from whole prompts and from the middle of a thought."""
    engine = LocalEngine(hf.load(FOLDER), chat)
    prompt = chat.prompt("a=3;b=a+4;c=b-2;c=?")
    [whole] = asyncio.run(engine.sample(prompt, SamplingParams(max_tokens=200, temperature=0.0)))
    for prefix in (prompt, [*prompt, *whole.tokens[:9]]):
        for more in ({}, {"stop": ("\n",)}, {"stop_tokens": chat.think_close}, {"max_tokens": 4}):
            params = {"temperature": 0.0, **more}
            [here] = asyncio.run(engine.sample(prefix, SamplingParams(**{"max_tokens": 200, **params})))
            sampler, [there] = run(url, chat, prefix, **params)
            assert there.tokens == here.tokens and there.stop is here.stop, more
            assert there.cost.sampled_tokens == here.cost.sampled_tokens
            assert there.cost.prefill_tokens == len(prefix)  # the server reads all of it each time
            assert (sampler.retokenised, sampler.guessed_stops) == (0, 0)
            assert sampler.form is not None and sampler.form.fields is Fields.TRANSFORMERS


def test_it_samples_from_the_whole_distribution(url, chat):
    """Its own default keeps the 50 likeliest tokens. At a temperature that makes all 272 about equally likely, half of
    the tokens are bytes that are no character, and show nothing; hardly one of the likeliest is."""
    prompt = chat.prompt("a=3;b=a+4;b=?")
    _, whole = run(url, chat, prompt, n=96, max_tokens=1, temperature=50.0)
    _, cut = run(url, chat, prompt, n=96, max_tokens=1, temperature=50.0, top_k=50)
    unseen = [sum(c.tokens == (chat.turn_end,) for c in got) for got in (whole, cut)]
    assert unseen[0] > 30 > 2 * unseen[1], unseen


def test_votes_are_as_good_as_over_the_local_engine(url, chat):
    async def over() -> dict[str, float]:
        async with EndpointSampler(url, str(FOLDER), chat, context=1024) as sampler:
            return await votes(sampler, chat, 16, 3, 0)

    there = asyncio.run(over())
    here = asyncio.run(votes(LocalEngine(hf.load(FOLDER), chat), chat, 16, 3, 0))
    assert here["pass@1"] > 0.15 and abs(there["pass@1"] - here["pass@1"]) < 0.3  # 48 chains each: 3 standard errors
    assert 0.6 < there["sampled_tokens"] / here["sampled_tokens"] < 1.6


def test_its_chat_route_answers_whole_prompts_and_cannot_continue(url, chat):
    prompt = chat.prompt("a=3;b=a+4;b=?")
    _, [text] = run(url, chat, prompt, temperature=0.0)
    _, [said] = run(url, chat, prompt, mode="chat", temperature=0.0)
    assert said.tokens == text.tokens and said.stop is StopReason.STOP and said.cost.prefill_tokens == len(prompt)
    _, [cut] = run(url, chat, prompt, mode="chat", temperature=0.0, max_tokens=7)
    assert cut.tokens == text.tokens[:7] and cut.stop is StopReason.LENGTH
    _, [bare] = run(url, chat, chat.prompt("a=3;b=a+4;b=?", think=False), mode="chat", temperature=0.0)
    assert bare.stop is StopReason.STOP and not set(bare.tokens) & set(chat.think_close)
    with pytest.raises(UserError, match="cannot continue"):
        run(url, chat, [*prompt, *chat.encode("b=")], mode="chat")


def test_mistakes(url, chat):
    with pytest.raises(UserError, match="name"):
        asyncio.run(EndpointSampler(url, None, chat).ready())  # it lists the models of a cache, not the one it serves

    async def other():
        async with EndpointSampler(url, "another", chat) as sampler:
            await sampler.sample(chat.prompt("b=?"), SamplingParams(max_tokens=3))

    with pytest.raises(UserError, match="pinned to"):
        asyncio.run(other())
