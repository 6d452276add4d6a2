"""Talking to a server: mull's own, whose page has a stream that tells progress too, or any that speaks OpenAI's chat.

What a server thinks comes as `reasoning_content` or `reasoning`. Where it is raw it is summed up here, unless raw
thoughts are wanted; `mull serve` sums it up itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from mull.cli.chat_models import Answer, Messages, Told, Wants
from mull.engine.sampler import derive_seed
from mull.errors import MissingExtra, UserError
from mull.serve.job import Delta, Progress, Thought
from mull.serve.plan import SINGLE, Plan
from mull.serve.summary import Section, Summary

SILENCE = 600.0  # seconds without a byte after which a server counts as gone
_SECTION = re.compile(r"\s*\*\*([^\n]+)\*\*\n\n([^\n]*)")  # as mull's chat API tells a summary


class Remote:
    """A server at `url` (such as http://localhost:8000/v1). `key`: "" takes OPENAI_API_KEY; it goes there and nowhere
    else. `name`: "" takes the only model that is listed."""

    def __init__(self, url: str, name: str = "", key: str = ""):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url!r} is no address of a server: give one like http://localhost:8000/v1")
        try:
            import httpx2
        except ImportError:
            raise MissingExtra("httpx2", "serve", "mull chat --endpoint") from None
        self.url = url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self.root, self.name = self.url.removesuffix("/v1"), name
        self.ours = False  # whether it is `mull serve`
        self.page: dict[str, Any] = {}  # what its page may know; empty: it has none
        self._httpx, self._key = httpx2, key or os.environ.get("OPENAI_API_KEY") or ""
        self._client: Any = None
        self._request, self._begun = "", asyncio.Event()  # the id of the one under way, once it is known

    async def open(self) -> None:
        """UserError where nobody answers, or it is not clear which model is meant."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = self._httpx.Timeout(SILENCE, connect=10.0)
        self._client = self._httpx.AsyncClient(headers=headers, timeout=timeout)
        try:
            listed = await self._json("/models")
            entries = listed.get("data") if isinstance(listed, dict) else None
            owners = {str(one["id"]): one.get("owned_by") for one in entries or () if isinstance(one, dict)}
            if not self.name and len(owners) != 1:
                some = ": " + ", ".join(list(owners)[:8]) if owners else ""
                raise UserError(f"{self.url} lists {len(owners)} models{some}; name one with --name")
            self.name = self.name or next(iter(owners))
            self.ours = owners.get(self.name) == "mull"
            self.page = await self._json("/mull/config", self.root) or {} if self.ours else {}
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def check(self, wants: Wants) -> None:
        if (wants.strategy or wants.samples) and not self.ours:
            raise UserError(
                f"{self.url} is no mull serve: --strategy and --samples are for one, or for a model in this process"
            )

    async def ask(self, messages: Messages, wants: Wants, turn: int) -> AsyncGenerator[Told]:
        raw, body = wants.thoughts, self._body(messages, wants, turn)
        self._begun.clear()
        try:
            if self.page:
                async with self._posted(f"{self.root}/mull/ask", body) as response:
                    async for event in self._of_page(response, raw and bool(self.page.get("thoughts"))):
                        yield event
            else:
                streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
                async with self._posted(f"{self.url}/chat/completions", streamed) as response:
                    async for event in self._of_chunks(response, raw):
                        yield event
        except self._httpx.TransportError as e:
            raise UserError(f"{self.url} closed the connection, or cannot be reached any more ({_why(e)})") from None

    async def answer_now(self) -> bool:
        if not self.ours:
            return False
        await self._begun.wait()
        while True:
            try:
                answer = await self._client.post(f"{self.root}/mull/requests/{self._request}/answer")
            except self._httpx.TransportError:
                return False
            if answer.status_code != 404:
                return answer.status_code == 204
            await asyncio.sleep(0.1)  # it still waits for room; this ends with the turn at the latest

    # ------------------------------------------------------------------------------------------- asking

    def _body(self, messages: Messages, wants: Wants, turn: int) -> dict[str, Any]:
        both = None
        if wants.think_tokens is not None and wants.answer_tokens is not None:
            both = wants.think_tokens + wants.answer_tokens
        vendor = {k: v for k, v in (("strategy", wants.strategy), ("samples", wants.samples)) if v}
        asked = {
            "model": self.name,
            "messages": list(messages),
            "reasoning_effort": wants.effort or None,
            "thinking_token_budget": wants.think_tokens,
            "max_completion_tokens": both,
            "temperature": wants.temperature,
            "seed": None if wants.seed is None else derive_seed(wants.seed, turn) % (1 << 31),
            "mull": vendor or None,
        }
        return {key: value for key, value in asked.items() if value is not None}

    async def _json(self, path: str, base: str = "") -> Any:
        """What a GET gives, None where there is no such thing."""
        try:
            response = await self._client.get((base or self.url) + path)
        except (self._httpx.TransportError, self._httpx.InvalidURL) as e:
            raise UserError(
                f"nothing answers at {self.url} ({_why(e)}): start the server or correct the address"
            ) from None
        if response.status_code in (401, 403):
            raise self._refusal(response)
        try:
            return response.json() if response.status_code == 200 else None
        except ValueError:
            return None

    @asynccontextmanager
    async def _posted(self, url: str, body: dict[str, Any]) -> AsyncIterator[Any]:
        async with self._client.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                raise self._refusal(response)
            self._request = response.headers.get("x-request-id", "")
            self._begun.set()
            yield response

    def _refusal(self, response: Any) -> UserError:
        status, said = response.status_code, self._said(_decoded(response.text))
        if status in (401, 403):
            lacks = "the API key is not accepted" if self._key else "it wants an API key: give --key or OPENAI_API_KEY"
            return UserError(f"{self.url} refuses access ({status}), {lacks}: {said}")
        wait = response.headers.get("retry-after", "")
        again = f"; it asks for {wait} s of patience" if wait.isdigit() else ""
        return UserError(f"{self.url} refuses ({status}): {said}{again}")

    def _said(self, problem: Any) -> str:
        """A server's words in one line. Some quote the key that they refuse."""
        for name in ("error", "detail", "message"):
            if isinstance(problem, dict) and name in problem:
                problem = problem[name]
        line = " ".join(str(problem).split())
        if self._key:
            line = line.replace(self._key, "[key]")
        return line[:300] or "no reason given"

    # ------------------------------------------------------------------------------------------ hearing

    async def _of_page(self, response: Any, raw: bool) -> AsyncGenerator[Told]:
        """Of `POST /mull/ask`: the same events as a job's."""
        single, held = True, ""
        async for name, data in events(response):
            match name:
                case "begun":
                    single = bool(data.get("single"))
                case "progress":
                    yield Progress(*(data[k] for k in ("tokens", "most_tokens", "done", "branches", "seconds")))
                case "section" if not raw:
                    yield Section(data["title"], data["text"])
                case "thought" if raw:
                    yield Thought(data["text"])
                case "delta" if raw and not single:
                    held += data["text"]  # its thought comes with the result, and is shown before it
                case "delta":
                    yield Delta(data["text"])
                case "error":
                    raise UserError(f"{self.url}: {self._said(data)}")
                case "result":
                    if held and data.get("thought"):
                        yield Thought(data["thought"] + "\n")
                    if held:
                        yield Delta(held)
                    yield _answer(data["content"], data["finish"], data.get("usage"), data.get("mull"))
                    return
        raise self._broken_off()

    async def _of_chunks(self, response: Any, raw: bool) -> AsyncGenerator[Told]:
        """Of `POST /v1/chat/completions`."""
        summary = Summary(Plan("low", SINGLE, 1, 0, 0, None))
        content, finish, usage, vendor = "", "", None, None
        async for _, data in events(response):
            if data.get("error"):
                raise UserError(f"{self.url}: {self._said(data)}")
            usage, vendor = data.get("usage") or usage, data.get("mull") or vendor
            for choice in data.get("choices") or ():
                delta = choice.get("delta") or choice.get("message") or {}  # a message: it does not stream
                thought = delta.get("reasoning_content") or delta.get("reasoning")
                if isinstance(thought, str):
                    for event in _thought(thought, summary, raw, self.ours):
                        yield event
                text = delta.get("content") or ""
                if text := text if content else text.lstrip():
                    if not content:
                        for section in summary.rest("", ()):
                            yield section
                    content += text
                    yield Delta(text)
                finish = choice.get("finish_reason") or finish
        if not finish:
            raise self._broken_off()
        yield _answer(content, finish, usage, vendor)

    def _broken_off(self) -> UserError:
        return UserError(f"{self.url} ended its stream before the answer was complete")


def _thought(text: str, summary: Summary, raw: bool, ours: bool) -> Iterator[Told]:
    """A piece of a thought, as it is shown."""
    if ours and (told := _SECTION.fullmatch(text)):
        yield Section(told[1], told[2])
    elif raw:
        yield Thought(text)
    else:
        yield from summary.push(text)


def _answer(content: str, finish: str, usage: Any, vendor: Any) -> Answer:
    used = usage if isinstance(usage, dict) else {}
    prompt, completion = (used.get(f"{k}_tokens_details") or {} for k in ("prompt", "completion"))
    return Answer(
        content,
        finish,
        used.get("prompt_tokens"),
        prompt.get("cached_tokens"),
        used.get("completion_tokens"),
        completion.get("reasoning_tokens"),
        vendor or {},
    )


async def events(response: Any) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """(name, data) of a stream's events, until [DONE]. A body that is plain JSON is one event."""
    if "event-stream" not in response.headers.get("content-type", ""):
        whole = _decoded((await response.aread()).decode("utf-8", "replace"))
        if not isinstance(whole, dict):
            raise UserError("the server does not answer with JSON: give the address of an OpenAI-compatible API")
        yield "", whole
        return
    name, data, rest = "", list[str](), b""
    async for piece in response.aiter_bytes():
        *found, rest = (rest + piece).split(b"\n")  # not at U+2028, which may stand in a string
        for line in (one.rstrip(b"\r").decode("utf-8", "replace") for one in found):
            if line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif line.startswith("event:"):
                name = line[6:].strip()
            elif not line and data:
                if (text := "\n".join(data)) == "[DONE]":
                    return
                if isinstance(told := _decoded(text), dict):
                    yield name, told
                name, data = "", []


def _decoded(text: str) -> Any:
    """JSON, or the text where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
