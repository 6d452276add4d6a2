"""A client of the soak: it asks at random, hangs up at random, and judges what comes back.

Raw sockets, so that it can hang up at any point, and notices everything that a forgiving library would not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

EFFORTS = ("none", "low", "medium", "high")
PATIENCE = 600.0  # seconds that a client waits for the next piece of an answer
Outcome = str  # answered, refused, left, gone (the server had ended), empty, misshapen, broken


@dataclass
class Told:
    """What became of the requests of one part."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # seconds to the first token that is passed on
    whole: list[float] = field(default_factory=list)  # seconds to the end of an answer
    tokens: int = 0  # of answers, thoughts and all

    def note(self, outcome: Outcome, fault: str = "") -> None:
        self.outcomes[outcome] += 1
        if fault and len(self.faults) < 20:
            self.faults.append(f"{outcome}: {fault}")

    @property
    def bad(self) -> int:
        return sum(self.outcomes[kind] for kind in ("empty", "misshapen", "broken"))


class Left(Exception):
    """The client has hung up, as it was meant to."""


@dataclass
class Asked:
    """One request, drawn at random."""

    path: str
    body: dict[str, Any]
    leave_after: int | None  # pieces after which the client hangs up; None: it stays
    leave_in: float | None  # seconds, likewise

    @classmethod
    def draw(cls, rng: random.Random, questions: list[str], leaving: float) -> Asked:
        effort, question, seed = rng.choice(EFFORTS), rng.choice(questions), rng.randrange(1 << 30)
        if rng.random() < 0.5:
            path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": question}], "seed": seed}
            body |= {"reasoning_effort": effort, "stream_options": {"include_usage": True}}
        else:
            path, body = "/v1/responses", {"input": question, "store": rng.random() < 0.3}
            body |= {"reasoning": {"effort": effort, "summary": "auto"}}
        after = within = None
        if rng.random() < leaving:
            way = rng.randrange(3)
            after = 0 if way == 0 else rng.randrange(1, 12) if way == 1 else None
            within = rng.uniform(0.0, 3.0) if way == 2 else None
        return cls(path, {**body, "stream": True}, after, within)


# ------------------------------------------------------------------------------------------------- one request


async def ask(port: int, asked: Asked, told: Told) -> float:
    """Sends it and notes what became of it; returns the seconds after which the server wants to be asked again."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(asked.leave_in):
            return await _ask(port, asked, told, began)
    except (Left, TimeoutError):
        told.note("left")
    except ConnectionRefusedError:
        told.note("gone")
    except (OSError, asyncio.IncompleteReadError, ValueError) as problem:
        told.note("broken", f"{asked.path} after {time.monotonic() - began:.1f} s: {type(problem).__name__} {problem}")
    return 0.0


async def _ask(port: int, asked: Asked, told: Told, began: float) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = json.dumps(asked.body).encode()
        head = f"POST {asked.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        if asked.leave_after == 0:
            raise Left
        status, headers = await _head(reader)
        if status != 200:
            length = int(headers.get("content-length", 0))
            return _refused(told, status, await reader.readexactly(length), headers)
        answer, pieces = Answer(), 0
        async for event in _events(reader):
            answer.read(event)
            if answer.text and answer.first is None:
                answer.first = time.monotonic() - began
            pieces += 1
            if asked.leave_after is not None and pieces >= asked.leave_after:
                raise Left
        return answer.judge(told, time.monotonic() - began)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _refused(told: Told, status: int, body: bytes, headers: dict[str, str]) -> float:
    try:
        error = json.loads(body)["error"]
        shaped = {"message", "type", "param", "code"} == set(error) and bool(error["message"])
    except (ValueError, KeyError, TypeError):
        shaped = False
    wait = headers.get("retry-after", "")
    if shaped and status in (429, 503) and wait.isdigit():
        told.note("refused")
        return float(wait)
    told.note("misshapen", f"status {status}, Retry-After {wait!r}, {body[:200]!r}")
    return 1.0


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await _within(reader.readuntil(b"\r\n\r\n"))).decode().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines if line)
    return int(first.split()[1]), {key.lower(): value for key, value in pairs}


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """The data of a chunked stream's events; comments are left out."""
    text = b""
    while size := int(await _within(reader.readuntil(b"\r\n")), 16):
        text += (await _within(reader.readexactly(size + 2)))[:-2]
        *blocks, text = text.split(b"\n\n")
        for block in blocks:
            for line in block.decode().split("\n"):
                if line.startswith("data: "):
                    yield line[6:]
    if text:
        raise ValueError(f"the stream ended inside of an event: {text[:80]!r}")


async def _within(reading: Any) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await reading


class Answer:
    """An answer as it comes, by either API."""

    def __init__(self) -> None:
        self.text, self.finish, self.tokens, self.done = "", "", 0, False
        self.first: float | None = None
        self.error: Any = None

    def read(self, data: str) -> None:
        if data == "[DONE]":
            self.done = True
            return
        event = json.loads(data)
        kind = event.get("type", "")
        if "error" in event and not kind:
            self.error = event["error"]
        elif kind == "error":
            self.error = {key: event.get(key) for key in ("message", "type", "param", "code")}
            self.done = True
        elif kind == "response.failed":
            self.error, self.done = event["response"]["error"], True
        elif kind == "response.output_text.delta":
            self.text += event["delta"]
        elif kind in ("response.completed", "response.incomplete"):
            self.done, self.finish = True, kind
            self.tokens = event["response"]["usage"]["output_tokens"]
        elif "choices" in event:
            for choice in event["choices"]:
                self.text += choice["delta"].get("content") or ""
                self.finish = choice["finish_reason"] or self.finish
            self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)

    def judge(self, told: Told, seconds: float) -> float:
        if self.error is not None:
            code = self.error.get("code") if isinstance(self.error, dict) else None
            if code in ("rate_limit_exceeded", "server_unavailable") and self.error.get("message") and self.done:
                told.note("refused")
                return 1.0
            told.note("misshapen", f"in the stream: {str(self.error)[:200]}")
        elif not self.done or not self.finish:
            told.note("broken", f"the stream ended without its end after {seconds:.1f} s")
        elif not self.text.strip():
            told.note("empty", f"finish {self.finish}")
        else:
            told.note("answered")
            told.tokens += self.tokens
            told.whole.append(seconds)
            if self.first is not None:
                told.first.append(self.first)
        return 0.0
