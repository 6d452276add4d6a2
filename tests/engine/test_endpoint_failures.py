"""The endpoint sampler when the server is slow, busy, rude, dying or dead, and when the caller goes away."""

from __future__ import annotations

import asyncio
import builtins
import logging
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

import mull
from mull.chat import Chat
from mull.engine.endpoint import EndpointSampler
from mull.engine.endpoint_http import _retry_after
from mull.errors import MissingExtra, SamplerLost, UserError
from mull.types import SamplingParams
from tests.engine.fake_server import FakeServer, Traits

SAID = "b=7</think>7<|end|>"
PARAMS = SamplingParams(max_tokens=50)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(Path(mull.__file__).parent / "nano")


def sampler_of(server: FakeServer, **given) -> EndpointSampler:
    return EndpointSampler(server.url, "nano", server.chat, **{"backoff": 0.01, **given})


async def sample(sampler: EndpointSampler, n: int = 1):
    async with sampler:
        return await sampler.sample(sampler.chat.prompt("b=?"), PARAMS, n)


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 408, "die", "cut"])
def test_passing_trouble_is_tried_again(chat, fault):
    with FakeServer(chat, SAID, Traits(models=500), faults=[fault, fault]) as server:
        sampler = sampler_of(server)
        [one] = asyncio.run(sample(sampler))
    assert chat.decode(one.tokens) == SAID and len(server.requests) == 3
    assert (sampler.retried, sampler.failed) == (2, 0)
    assert server.requests[0] == server.requests[2]  # the same question, with the same seed


def test_retry_after_is_honoured(chat):
    with FakeServer(chat, SAID, faults=[(429, {"retry-after": "0.3"})]) as server:
        began = time.monotonic()
        asyncio.run(sample(sampler_of(server, backoff=0.0)))
        assert 0.3 <= time.monotonic() - began < 1.5


def test_retry_after_in_its_other_forms():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert 17 < _retry_after(later, 1.0, 60.0) <= 20
    assert _retry_after("500", 1.0, 60.0) == 60.0 and _retry_after("-3", 1.0, 60.0) == 0.0
    assert _retry_after(None, 1.0, 60.0) == _retry_after("soon", 1.0, 60.0) == _retry_after("nan", 1.0, 60.0) == 1.0


def test_pauses_grow(chat):
    with FakeServer(chat, SAID, faults=[500] * 4) as server:
        began = time.monotonic()
        asyncio.run(sample(sampler_of(server, backoff=0.02)))
        assert time.monotonic() - began >= 0.5 * 0.02 * (1 + 2 + 4 + 8)


def test_used_up_retries_lose_the_sampler(chat):
    with FakeServer(chat, SAID, faults=[503] * 3) as server:
        sampler = sampler_of(server, retries=2)
        with pytest.raises(SamplerLost, match=r"503: fault 503, 3 times in a row"):
            asyncio.run(sample(sampler))
    assert (sampler.retried, sampler.failed, len(server.requests)) == (2, 1, 3)


def test_a_hanging_request_is_given_up_once(chat):
    with FakeServer(chat, SAID, faults=["hang"]) as server:
        sampler = sampler_of(server, timeout=0.2)
        began = time.monotonic()
        with pytest.raises(SamplerLost, match=r"within 0\.2 seconds"):
            asyncio.run(sample(sampler))
        assert time.monotonic() - began < 1.5 and sampler.failed == 1 and len(server.requests) == 1
        [one] = asyncio.run(sample(sampler))  # and the sampler is as good as before
        server.wait_idle()
    assert chat.decode(one.tokens) == SAID and server.aborted == 1


def test_what_came_comes_with_the_loss(chat):
    with FakeServer(chat, SAID) as server:
        sampler = sampler_of(server, retries=0, max_concurrent=1)

        async def run():
            async with sampler:
                await sampler.sample(chat.prompt("b=?"), PARAMS)
                server.faults[:] = [None, 500]
                await sampler.sample(chat.prompt("b=?"), PARAMS, 4)

        with pytest.raises(SamplerLost) as lost:
            asyncio.run(run())
    assert [chat.decode(c.tokens) for c in lost.value.completions] == [SAID] * 3
    paid = sum(c.cost.sampled_tokens for c in lost.value.completions)
    assert sampler.spent.sampled_tokens == paid // 3 * 4 and sampler.failed == 1


def test_a_server_that_dies_is_lost_and_one_that_never_was_is_a_mistake(chat):
    with FakeServer(chat, SAID) as server:
        sampler = sampler_of(server, retries=1)

        async def run():
            await sampler.sample(chat.prompt("b=?"), PARAMS)
            server.stop()
            await sampler.sample(chat.prompt("b=?"), PARAMS)

        with pytest.raises(SamplerLost, match="2 times in a row"):
            asyncio.run(run())
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        nobody = EndpointSampler(f"http://127.0.0.1:{s.getsockname()[1]}/v1", None, chat)
        with pytest.raises(UserError, match="nothing answers at http"):
            asyncio.run(nobody.ready())
        named = EndpointSampler(nobody._http.url, "nano", chat, context=1024)
        with pytest.raises(UserError, match="nothing answers at http"):
            asyncio.run(sample(named))


def test_a_key_is_sent_and_said_nowhere(chat, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FakeServer(chat, SAID, Traits(key="sk-right")) as server:
        with pytest.raises(UserError, match=r"\(401\), it wants an API key: set OPENAI_API_KEY"):
            asyncio.run(sample(sampler_of(server)))
        assert server.requests[-1]["authorization"] is None
        with pytest.raises(UserError, match=r"is not accepted.*: \[key\]$") as wrong:
            asyncio.run(sample(sampler_of(server, api_key="sk-wrong")))
        assert len(server.requests) == 2  # nobody is let in by asking again
        asyncio.run(sample(sampler_of(server, api_key="sk-right")))
        monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
        sampler = sampler_of(server)
        asyncio.run(sample(sampler))
    assert server.requests[-1]["authorization"] == "Bearer sk-right"
    shown = f"{wrong.value} {sampler!r} {caplog.text}"
    assert "sk-wrong" not in shown and "sk-right" not in shown


def test_an_unknown_model_or_address_is_a_mistake(chat):
    with FakeServer(chat, SAID) as server:
        with pytest.raises(UserError, match=r"knows no model 'gpt'.*does not exist"):
            asyncio.run(sample(EndpointSampler(server.url, "gpt", chat)))
        with pytest.raises(UserError, match="no OpenAI-compatible address"):
            asyncio.run(sample(EndpointSampler(server.url + "/elsewhere", "nano", chat)))


@pytest.mark.parametrize("url", ["localhost:8000/v1", "/v1", "ftp://x/v1", ""])
def test_an_address_that_is_none(chat, url):
    with pytest.raises(UserError, match="like http://localhost:8000/v1"):
        EndpointSampler(url, "nano", chat)


def test_an_address_without_a_path_gets_the_usual_one(chat):
    with FakeServer(chat, SAID) as server:
        asyncio.run(sample(EndpointSampler(server.url.removesuffix("/v1"), "nano", chat)))
        asyncio.run(sample(EndpointSampler(server.url + "/", "nano", chat)))
    with pytest.raises(UserError, match="mode 'chats' is unknown"):
        EndpointSampler(server.url, "nano", chat, mode="chats")
    with pytest.raises(UserError, match="at least 1 request"):
        EndpointSampler(server.url, "nano", chat, max_concurrent=0)


@pytest.mark.parametrize("answer", [[], {"choices": []}, {"choices": ["x"]}, {"error": "no GPU"}])
def test_an_answer_that_is_no_completion(chat, answer):
    says = "no GPU" if "error" in answer else "without choices"
    with FakeServer(chat, SAID) as server, pytest.raises(UserError, match=says):
        server._respond = lambda *_: (200, answer)
        asyncio.run(sample(sampler_of(server)))


def test_an_answer_that_is_no_json(chat):
    with FakeServer(chat, SAID) as server, pytest.raises(UserError, match="does not answer with JSON"):
        server._write = lambda writer, *_, **__: (
            writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 5\r\n\r\n<htm>") or True
        )
        asyncio.run(sample(sampler_of(server)))


def test_an_aborted_generation_is_lost(chat):
    with FakeServer(chat, SAID) as server, pytest.raises(SamplerLost, match="gave up"):
        server._respond = lambda *_: (200, {"choices": [{"text": "b", "finish_reason": "abort"}]})
        asyncio.run(sample(sampler_of(server)))


def test_requests_are_bounded(chat):
    with FakeServer(chat, SAID, delay=0.02) as server:
        sampler = sampler_of(server, max_concurrent=3)

        async def run():
            async with sampler:
                await sampler.sample(chat.prompt("b=?"), PARAMS)
                await asyncio.gather(*(sampler.sample(chat.prompt(f"{i}"), PARAMS, 4) for i in range(5)))

        asyncio.run(run())
        server.wait_idle()
        assert server.peak == 3 and len(server.requests) == 21


def test_cancelling_closes_the_requests_and_frees_their_places(chat):
    with FakeServer(chat, SAID, delay=0.0) as server:
        sampler = sampler_of(server, max_concurrent=2)

        async def run():
            async with sampler:
                await sampler.sample(chat.prompt("b=?"), PARAMS)
                server.delay = 30.0
                task = asyncio.ensure_future(sampler.sample(chat.prompt("b=?"), PARAMS, 5))
                while server.running < 2:
                    await asyncio.sleep(0.005)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                while server.running:
                    await asyncio.sleep(0.005)
                server.delay = 0.0
                return await asyncio.wait_for(sampler.sample(chat.prompt("b=?"), PARAMS, 2), 5)

        assert len(asyncio.run(run())) == 2
    assert server.aborted == 2 and sampler.failed == 2  # the three that waited had not begun


def test_a_refusal_withdraws_the_others(chat):
    with FakeServer(chat, SAID) as server:
        sampler = sampler_of(server)

        async def run():
            async with sampler:
                await sampler.sample(chat.prompt("b=?"), PARAMS)
                server.delay, server.faults[:] = 0.01, [400, "hang", "hang"]
                await sampler.sample(chat.prompt("b=?"), PARAMS, 3)

        with pytest.raises(UserError, match=r"refuses the request \(400\): fault 400"):
            asyncio.run(asyncio.wait_for(run(), 5))
        server.wait_idle()
    assert server.aborted == len(server.requests) - 2  # all that had been sent, but the first call's and the refused


def test_event_loops_may_follow_one_another(chat):
    with FakeServer(chat, SAID, delay=0.01) as server:
        sampler = sampler_of(server, max_concurrent=1)
        prompt = chat.prompt("b=?")
        for _ in range(2):
            assert len(asyncio.run(sampler.sample(prompt, PARAMS, 3))) == 3

        async def elsewhere():
            await sampler.sample(prompt, PARAMS)
            await asyncio.to_thread(lambda: asyncio.run(sampler.sample(prompt, PARAMS)))

        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(elsewhere())


def test_without_the_http_library_the_extra_is_named(chat, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "httpx2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r"mull\[endpoint\]"):
        EndpointSampler("http://localhost:1/v1", "nano", chat)
