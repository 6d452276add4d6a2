"""What tests of the server stand on: services over nano or a script, calls without a socket, and a real server.

made = nano_service(think_tokens=64)
status, headers, body = post(made, "/v1/chat/completions", ask("a=3;b=a+4;b?"))
with serving(made) as server:
    server.openai().chat.completions.create(...)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx2
import openai
import uvicorn
from fastapi import FastAPI

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.engine.scripted import Script, ScriptedSampler
from mull.models import hf
from mull.models.nano import shipped_folder
from mull.scorers.confidence import Confidence
from mull.search.sources import Opened
from mull.serve.app import make_app
from mull.serve.service import Service
from mull.serve.settings import Settings

QUESTION = "y=1;h=y+14;k=h*5;v=k-8;v?"


@cache
def nano() -> tuple[Any, Chat]:
    folder = shipped_folder()
    return hf.load(folder), Chat.load(folder)


def nano_service(**settings: Any) -> Service:
    """A service over the shipped model, with an engine of its own. It is called nano."""
    made = {"name": "nano", "think_tokens": 64, "answer_tokens": 16, "effort": "low", **settings}
    return Service(Settings(**made), opened_of(*nano()))


def opened_of(model: Any, chat: Chat) -> Opened:
    """With an engine of its own, and a scorer that reads the model."""
    engine = LocalEngine(model, chat, max_sequences=64, memory_bytes=64 << 20)
    scorer = Confidence(model, engine, chat, "logprob")
    return Opened(engine, chat, scorer, None, None, None, engine.config.max_positions)


def scripted_service(script: Script, *, seconds: float = 0.0, sampler: Any = None, **settings: Any) -> Service:
    """A service over a script (`ScriptedSampler`'s), or over any `sampler`, that takes `seconds` for every call."""
    chat = nano()[1]
    sampler = sampler or Slow(script, chat, seconds=seconds)
    made = {"name": "nano", "think_tokens": 64, "answer_tokens": 16, "effort": "low", **settings}
    return Service(Settings(**made), Opened(sampler, chat, None, None, None, None, 1024))


class Slow(ScriptedSampler):
    def __init__(self, *given: Any, seconds: float, **more: Any):
        super().__init__(*given, **more)
        self.seconds = seconds

    async def sample(self, prefix_tokens, params, n=1):
        await asyncio.sleep(self.seconds)
        return await super().sample(prefix_tokens, params, n)


def app_of(service: Service) -> FastAPI:
    """One application for each service: it takes a tenth of a second to make."""
    if not hasattr(service, "_app"):
        service._app = make_app(service)  # type: ignore[attr-defined]
    return service._app  # type: ignore[attr-defined]


def idle(service: Service) -> bool:
    """Whether no local engine holds anything any more."""
    engines: list[Any] = [model.tools.sampler for model in service.models.values()]
    return not service.jobs and not any(e.schedule.busy or e.pool.available != e.pool.num_pages for e in engines)


def ask(text: str = QUESTION, **more: Any) -> dict[str, Any]:
    return {"model": "nano", "messages": [{"role": "user", "content": text}], **more}


# ------------------------------------------------------------------------------------------ without a socket


def call(service: Service, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
    """(status, headers, body: JSON where it is some, else text) of one request; `json=`, `content=` and `headers=` as
    httpx has them."""
    return calls(service, [(method, path, options)])[0]


def calls(service: Service, requests: list[tuple[str, str, dict[str, Any]]]) -> list[tuple[int, Any, Any]]:
    """Several requests at once, in one event loop."""

    async def one(client: httpx2.AsyncClient, method: str, path: str, options: dict[str, Any]):
        answer = await client.request(method, path, **options)
        try:
            return answer.status_code, answer.headers, answer.json()
        except ValueError:
            return answer.status_code, answer.headers, answer.text

    async def all_of_them():
        transport = httpx2.ASGITransport(app_of(service), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=120) as client:
            return await asyncio.gather(*[one(client, *request) for request in requests])

    return asyncio.run(all_of_them())


def post(service: Service, path: str, body: Any, **options: Any) -> tuple[int, Any, Any]:
    return call(service, "POST", path, json=body, **options)


def events(text: str) -> list[Any]:
    """The data of a stream's events, [DONE] as text; comments left out."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    data = [next(line[6:] for line in block.split("\n") if line.startswith("data: ")) for block in blocks]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


# --------------------------------------------------------------------------------------------- a real server


@dataclass
class Served:
    service: Service
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "timeout": 60, **options})

    def http(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, **{"timeout": 60, **options})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@contextlib.contextmanager
def serving(service: Service) -> Iterator[Served]:
    """The service under uvicorn, in a thread, at a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(service), port=port, log_level="warning", timeout_keep_alive=30))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started, 30)
        yield Served(service, port)
    finally:
        server.should_exit = True
        thread.join(10)
        server.force_exit = True
        thread.join(20)
    assert not thread.is_alive()


def until(true: Any, seconds: float = 10.0) -> None:
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def thinking(thought: str, answer: str) -> Any:
    """A script of which every chain thinks and answers the same."""
    chat = nano()[1]

    def follows(prefix: tuple[int, ...]) -> str | None:
        text = chat.decode(prefix)
        return thought + "</think>" if text.endswith("<think>") else answer if text.endswith("</think>") else None

    return follows
