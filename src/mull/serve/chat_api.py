"""`POST /v1/chat/completions`: OpenAI's chat, over the events of one job for each choice.

What is told of a thought goes into `reasoning_content` and, with the same text, `reasoning`: one client reads the one,
another the other. It is the raw thought where the operator shows it, else its summary.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from mull.errors import UserError
from mull.serve.chat_asked import ChatRequest, asked, header, unheard
from mull.serve.errors import ApiError, invalid
from mull.serve.job import Delta, Event, Job, Result, Thought, follow
from mull.serve.limits import read_json, request_id
from mull.serve.plan import Wish
from mull.serve.schemas import checked, document
from mull.serve.served import Served
from mull.serve.service import Service
from mull.serve.settings import Settings
from mull.serve.shapes import POSTED, ChatCompletion, errors, streams, usage
from mull.serve.sse import DONE, frame, streamed, while_there
from mull.serve.summary import Section
from mull.serve.vendor import vendor

Shown = Literal["", "summary", "raw"]
SUMS = ("looped", "lost", "wasted_tokens", "summary_tokens", "scorer_tokens", "flops")


def router(service: Service) -> APIRouter:
    api = APIRouter()

    @api.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: streams("With `stream`: chunks, then [DONE]."), **errors(*POSTED)},
        openapi_extra=document(ChatRequest),
    )
    async def chat(request: Request) -> Response:
        form = checked(ChatRequest, await read_json(request))
        s = service.settings
        model = service.model(form.model, required=s.params == "strict_o1")
        call = Call(service, model, asked(form, s), request_id(request), form.n or 1, shown(form, s), unheard(form))
        if not form.stream:
            body = await while_there(request, call.whole())
            return JSONResponse(body, headers=call.headers)
        with_usage = bool(form.stream_options and form.stream_options.include_usage)
        return await streamed(request, call.frames(with_usage), failed, s.ping_seconds, call.headers)

    return api


def shown(form: ChatRequest, settings: Settings) -> Shown:
    if form.excluded:
        return ""
    return "raw" if settings.thoughts == "shown" else "summary" if settings.summaries != "none" else ""


def failed(problem: ApiError) -> bytes:
    """In a stream that has begun."""
    return frame(problem.body()) + DONE


@dataclass
class Call:
    """One request: its choices, told in chunks or as a whole."""

    service: Service
    model: Served
    wish: Wish
    request: str
    n: int
    shown: Shown
    unheard: list[str]
    created: int = field(default_factory=lambda: int(time.time()))
    results: dict[int, Result] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)  # known once there is a plan
    version: int = 0

    async def whole(self) -> dict[str, Any]:
        told: dict[int, list[tuple[str, str]]] = {i: [] for i in range(self.n)}
        async with aclosing(self._pieces()) as pieces:
            async for i, piece in pieces:
                told[i].append(piece)
        choices = []
        for i in range(self.n):
            reasoning, content = map("".join, zip(*told[i], strict=True))
            message = {"role": "assistant", "content": content, "refusal": None, **_reasoning(reasoning)}
            finish = self.results[i].finish
            choices.append({"index": i, "message": message, "logprobs": None, "finish_reason": finish})
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage(), "mull": self._mull()}

    async def frames(self, with_usage: bool) -> AsyncGenerator[bytes]:
        def chunk(i: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
            choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": finish}
            usage = {"usage": None} if with_usage else {}
            return frame({**self._head("chat.completion.chunk"), "choices": [choice], **usage, **more})

        async with aclosing(self._pieces()) as pieces:
            async for i, (reasoning, content) in pieces:
                result = self.results.get(i)
                if not reasoning and not content and not result:
                    yield chunk(i, {"role": "assistant", "content": ""})
                if reasoning:
                    yield chunk(i, _reasoning(reasoning))
                if content:
                    yield chunk(i, {"content": content})
                if result:
                    last = len(self.results) == self.n
                    yield chunk(i, {}, result.finish, **({"mull": self._mull()} if last else {}))
        if with_usage:
            yield frame({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()})
        yield DONE

    async def _pieces(self) -> AsyncGenerator[tuple[int, tuple[str, str]]]:
        """(choice, (reasoning, content)) as they come: both empty when a choice begins, and its result is in `results`
        with its last piece."""
        telling: dict[int, Telling] = {}
        async with aclosing(merged([self._choice(i) for i in range(self.n)])) as events:
            async for i, event in events:
                if isinstance(event, Job):
                    telling[i] = Telling(self.shown, event.plan.single)
                    self.version = event.tools.sampler.policy_version
                    self.headers.update(header([*self.unheard, *event.plan.ignored]))
                    yield i, ("", "")
                    continue
                if isinstance(event, Result):
                    self.results[i] = event
                piece = telling[i].tell(event)
                if any(piece) or isinstance(event, Result):
                    yield i, piece

    async def _choice(self, i: int) -> AsyncGenerator[Job | Event]:
        """The job once there is room for it, and its events. Each choice waits for a place of its own, and holds none
        while it waits: so no two requests can wait for each other."""
        key = f"{self.request}/{i}" if i else self.request
        try:
            async with self.service.job(self.wish, key, i) as job:
                yield job
                async with aclosing(follow(job)) as events:
                    async for event in events:
                        yield event
        except UserError as problem:
            param = "mull.strategy" if self.wish.strategy else "messages"
            raise invalid(self.model.public(problem), param) from None

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": "chatcmpl-" + self.request.rpartition("_")[2],
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": f"policy-{self.version}",
        }

    def _usage(self) -> dict[str, Any]:
        """The prompt counts once, as OpenAI counts it, and was cached as far as it was for the first choice."""
        found = list(self.results.values())
        completion, reasoning = (sum(getattr(r, k + "_tokens") for r in found) for k in ("completion", "reasoning"))
        return usage(found[0].prompt_tokens, min(r.cached_tokens for r in found), completion, reasoning)

    def _mull(self) -> dict[str, Any]:
        made = together([self.results[i] for i in range(self.n)])
        return {**made, "ignored": [*self.unheard, *made["ignored"]]}


class Telling:
    """What is told of one choice. Pieces that are told are never taken back, and thoughts come before the answer."""

    def __init__(self, shown: Shown, single: bool):
        self.shown, self.single = shown, single
        self._heard = self._told = ""  # of the thought, with and without the white space around it
        self._answer = ""
        self._speaks = False

    def tell(self, event: Event) -> tuple[str, str]:
        """(reasoning, content)"""
        if isinstance(event, Thought) and self.shown == "raw":
            self._heard += event.text
            return self._think(self._heard.strip()), ""
        if isinstance(event, Section) and self.shown == "summary":
            gap = "\n\n" if self._told else ""
            return self._think(f"{self._told}{gap}**{event.title}**\n\n{event.text}"), ""
        if isinstance(event, Delta):
            if self.single or self.shown != "raw":
                self._speaks = True
                return "", event.text
            self._answer += event.text  # which of many thoughts it comes from is known with the result, which is next
        if isinstance(event, Result):
            return self._think(event.thought) if self.shown == "raw" else "", self._answer
        return "", ""

    def _think(self, thought: str) -> str:
        """What is new in a thought, given all of it."""
        if self._speaks or not thought.startswith(self._told):
            return ""
        new, self._told = thought[len(self._told) :], thought
        return new


def _reasoning(text: str) -> dict[str, str]:
    return {"reasoning_content": text, "reasoning": text} if text else {}


def together(results: Sequence[Result]) -> dict[str, Any]:
    """The vendor's object of a request with several choices: sums, the longest time and all votes."""
    made = [vendor(result) for result in results]
    votes = Counter[str]()
    for result in results:
        votes.update(dict(result.votes))
    firsts = [one["first_token"] for one in made if one["first_token"] is not None]
    return {
        **made[0],
        **{key: sum(one[key] for one in made) for key in SUMS},
        "wanted": max(one["wanted"] for one in made),
        "votes": [{"answer": answer, "count": count} for answer, count in votes.most_common()],
        "early": next((one["early"] for one in made if one["early"]), ""),
        "exhausted": any(one["exhausted"] for one in made),
        "seconds": max(one["seconds"] for one in made),
        "first_token": min(firsts, default=None),
    }


async def merged(streams: Sequence[AsyncGenerator[Any]]) -> AsyncGenerator[tuple[int, Any]]:
    """(which, event) of several generators as they come. The first failure ends all of them."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as alone:
            async for event in alone:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def draw(i: int, stream: AsyncGenerator[Any]) -> None:
        async with aclosing(stream):
            async for event in stream:
                queue.put_nowait((i, event))

    tasks = [asyncio.ensure_future(draw(i, stream)) for i, stream in enumerate(streams)]
    for task in tasks:
        task.add_done_callback(lambda done: queue.put_nowait((-1, done)))
    try:
        left = len(tasks)
        while left:
            i, event = await queue.get()
            if i < 0:
                event.result()
                left -= 1
            else:
                yield i, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
