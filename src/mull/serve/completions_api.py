"""`POST /v1/completions`: a raw prompt continued, without a template, a strategy or a thinking budget.

For evaluations that compare likelihoods (`echo`, `logprobs`), and for clients that write prompts themselves. Control
tokens that a prompt spells count as such. Where the operator hides thoughts this is no way round it: a prompt may not
end inside of one, and a completion ends where one would begin.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from pydantic import Field, WithJsonSchema

from mull.chat import Chat
from mull.chat.template import CLOSE, OPEN
from mull.engine.sampler import derive_seed
from mull.errors import SamplerLost, StopReason, UserError
from mull.search.sources import Opened
from mull.serve.chat_api import failed, merged
from mull.serve.chat_asked import header, unheard
from mull.serve.errors import ApiError, invalid
from mull.serve.job import until
from mull.serve.limits import read_json, request_id
from mull.serve.logprobs import described, readable, scored
from mull.serve.schemas import MOST_TOKENS, STOPS, WHOLE, Budget, Request, checked, document, stops, whole
from mull.serve.served import LONG, Served, too_long
from mull.serve.service import Service
from mull.serve.shapes import POSTED, TextCompletion, errors, streams, usage
from mull.serve.sse import DONE, frame, streamed, while_there
from mull.types import Completion, SamplingParams

PROMPTS = 128  # of one request, times n
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_PROMPT = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "maxItems": PROMPTS, "items": {"type": "string", "minLength": 1}},
        _IDS,
        {"type": "array", "minItems": 1, "maxItems": PROMPTS, "items": _IDS},
    ],
    "description": "Text, token ids, or a list of either.",
}
_UNHEARD = {"presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},)}


class CompletionRequest(Request):
    prompt: Annotated[Any, WithJsonSchema(_PROMPT)]
    max_tokens: Budget | None = None  # OpenAI's default: 16
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None  # there is no filling in
    # As vLLM has them; with these, another mull searches through this one as if it ran the model itself.
    add_special_tokens: bool | None = None  # what the tokenizer puts before every text; default: true
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS), WHOLE] | None = None
    stop_token_ids: Annotated[list[Budget], Field(max_length=STOPS)] | None = None
    return_token_ids: bool | None = None  # of what was sampled, with a choice's last piece


def router(service: Service) -> APIRouter:
    api = APIRouter()

    @api.post(
        "/v1/completions",
        response_model=TextCompletion,
        responses={200: streams("With `stream`: chunks, then [DONE]."), **errors(*POSTED)},
        openapi_extra=document(CompletionRequest),
    )
    async def completions(request: HttpRequest) -> Response:
        form = checked(CompletionRequest, await read_json(request))
        model = service.model(form.model, required=service.settings.params == "strict_o1")
        call = Call(service, model, form, request_id(request))
        headers = header(unheard(form, _UNHEARD))
        if not form.stream:
            body = await while_there(request, call.whole())
            return JSONResponse(body, headers=headers)
        return await streamed(request, call.frames(), failed, service.settings.ping_seconds, headers)

    return api


@dataclass
class Piece:
    text: str
    finish: str | None = None
    logprobs: dict[str, Any] | None = None
    tokens: Sequence[int] | None = None

    def choice(self, index: int) -> dict[str, Any]:
        ids = {} if self.tokens is None else {"token_ids": list(self.tokens)}
        return {
            "index": index,
            "text": self.text,
            "logprobs": self.logprobs,
            "finish_reason": self.finish,
            **ids,
        }


class Call:
    """One request: every prompt continued n times, in pieces or as a whole."""

    def __init__(self, service: Service, model: Served, form: CompletionRequest, request: str):
        self.service, self.model, self.form, self.request = service, model, form, request
        self.created, self.version = int(time.time()), 0
        self.n, self.most = form.n or 1, 16 if form.max_tokens is None else form.max_tokens
        self.prompts = _prompts(form.prompt)
        self.stops = stops(form.stop)
        self.completions: dict[int, list[Completion]] = {}  # by prompt
        self.read = 0  # prompt tokens
        settings = service.settings
        if self.n > settings.max_choices or self.n * len(self.prompts) > PROMPTS:
            most = min(settings.max_choices, PROMPTS // len(self.prompts))
            raise invalid(f"Invalid 'n': at most {most} choices can be had of each prompt.", "n", "invalid_value")

    async def whole(self) -> dict[str, Any]:
        pieces: dict[int, list[Piece]] = {i: [] for i in range(self.n * len(self.prompts))}
        async with aclosing(self._pieces()) as told:
            async for i, piece in told:
                pieces[i].append(piece)
        choices = []
        for i, parts in pieces.items():
            parts[-1].text = "".join(piece.text for piece in parts)
            choices.append(parts[-1].choice(i))
        return {**self._head(), "choices": choices, "usage": self._usage()}

    async def frames(self) -> AsyncGenerator[bytes]:
        with_usage = bool(self.form.stream_options and self.form.stream_options.include_usage)
        none = {"usage": None} if with_usage else {}
        async with aclosing(self._pieces()) as told:
            async for i, piece in told:
                yield frame({**self._head(), "choices": [piece.choice(i)], **none})
        if with_usage:
            yield frame({**self._head(), "choices": [], "usage": self._usage()})
        yield DONE

    # ------------------------------------------------------------------------------------------------- inside

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """(choice, piece); the last piece of a choice has a `finish`."""
        context = self.model.tools.context or 1 << 20
        bound = [min(len(p.encode()) if isinstance(p, str) else len(p), context) for p in self.prompts]
        try:
            most = sum(bound) + len(bound) * self.n * min(self.most, context)
            async with self.service.place(most, self.model.name) as tools:
                self.version = tools.sampler.policy_version
                if sum(map(len, self.prompts)) < LONG:
                    ids = self._tokens(tools)
                else:
                    ids = await asyncio.to_thread(self._tokens, tools)
                self.read = sum(map(len, ids))
                async with aclosing(merged([self._drawn(at, i, tools) for at, i in enumerate(ids)])) as events:
                    async for _, event in events:
                        yield event
        except UserError as problem:
            raise invalid(self.model.public(problem), "prompt") from None
        except SamplerLost:
            message = "The model does not answer at the moment: try again."
            raise ApiError(503, message, type="server_error", code="server_unavailable") from None

    def _tokens(self, tools: Opened) -> list[list[int]]:
        return [self._read(at, prompt, tools) for at, prompt in enumerate(self.prompts)]

    def _read(self, at: int, prompt: str | list[int], tools: Opened) -> list[int]:
        chat, where = tools.chat, f"prompt[{at}]" if len(self.prompts) > 1 else "prompt"
        if isinstance(prompt, str):
            ids = chat.encode_written(prompt, self.form.add_special_tokens is not False)
        else:
            ids, known = prompt, getattr(getattr(tools.sampler, "config", None), "vocab_size", chat.vocab_size)
            if not 0 <= min(ids) <= max(ids) < known:
                message = f"Invalid '{where}': token ids of this model lie between 0 and {known - 1}."
                raise invalid(message, where, "invalid_value")
        if not ids:
            raise invalid(f"Invalid '{where}': it has no tokens.", where, "invalid_value")
        if tools.context and len(ids) + (self.most > 0) > tools.context:
            raise invalid(too_long(len(ids), tools.context), where, "context_length_exceeded")
        if self._hidden and _inside_thought(chat, ids):
            message = f"The prompt ends inside a thought, and this server shows none: close it with {CLOSE}."
            raise invalid(message, where, "thoughts_hidden")
        if self.form.logprobs is not None and not readable(tools):
            message = "The model runs elsewhere, and its log-probabilities cannot be had: leave 'logprobs' out."
            raise invalid(message, "logprobs", "unsupported_parameter")
        return ids

    @property
    def _hidden(self) -> bool:
        return self.service.settings.thoughts == "hidden"

    async def _drawn(self, at: int, ids: list[int], tools: Opened) -> AsyncGenerator[tuple[int, Piece]]:
        """Of one prompt. With log-probabilities a choice comes in one piece, because they are read at its end."""
        form, index = self.form, at * self.n
        echoed, by_token = tools.chat.decode(ids) if form.echo else "", form.logprobs is None
        ends = (*self.stops, OPEN) if self._hidden else self.stops
        texts = [Text(tools.chat, ends) for _ in range(self.n)]
        if echoed and by_token:
            for i in range(self.n):
                yield index + i, Piece(echoed)
        completions: list[Completion | None] = [None] * self.n
        if self.most:
            async with aclosing(self._sampled(at, ids, ends, tools)) as tokens:
                async for i, drawn in tokens:
                    if isinstance(drawn, Completion):
                        completions[i] = drawn
                    elif by_token and (text := texts[i].push(drawn)):
                        yield index + i, Piece(text)
        for i, completion in enumerate(completions):
            drawn = completion.tokens if completion else ()
            text, stopped = texts[i].whole(drawn)
            finish = "stop" if stopped or (completion and completion.stop is StopReason.STOP) else "length"
            ids_told = drawn if form.return_token_ids else None
            if by_token:
                yield index + i, Piece(text[texts[i].sent :], finish, tokens=ids_told)
                continue
            start, tokens = 0 if form.echo else len(ids), [*ids, *drawn]
            values = await scored(tools, tokens, start, form.logprobs or 0)
            yield index + i, Piece(echoed + text, finish, described(tools.chat, tokens[start:], values), ids_told)

    async def _sampled(
        self, at: int, ids: list[int], ends: tuple[str, ...], tools: Opened
    ) -> AsyncGenerator[tuple[int, int | Completion]]:
        """(choice, token) as they are drawn where the sampler tells, and (choice, completion) at the end."""
        form, sampler = self.form, tools.sampler
        if form.seed is not None:
            seed = derive_seed(form.seed, at)
        else:
            seed = derive_seed(self.service.settings.seed, self.service.number, at)
            self.service.number += 1
        params = SamplingParams(
            self.most,
            1.0 if form.temperature is None else form.temperature,
            1.0 if form.top_p is None else max(form.top_p, 1e-6),
            max(form.top_k or 0, 0),
            stop=ends,
            stop_tokens=tuple(form.stop_token_ids or ()),
            seed=seed,
        )
        queue: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()
        deadline = time.monotonic() + self.service.settings.max_seconds

        def watch(i: int, token: int) -> bool:
            queue.put_nowait((i, token))
            return time.monotonic() > deadline

        tells: dict[str, Any] = {"watch": watch} if "watch" in inspect.signature(sampler.sample).parameters else {}
        work = asyncio.ensure_future(sampler.sample(ids, params, self.n, **tells))
        work.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (drawn := await queue.get()) is not None:
                yield drawn
            self.completions[at] = work.result()
            for i, completion in enumerate(self.completions[at]):
                yield i, completion
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def _head(self) -> dict[str, Any]:
        return {
            "id": "cmpl-" + self.request.rpartition("_")[2],
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": f"policy-{self.version}",
        }

    def _usage(self) -> dict[str, Any]:
        """A prompt counts once, however often it is continued. All that was sampled is in the answer."""
        cached = sum(min(c.cost.cached_tokens for c in made) for made in self.completions.values())
        return usage(self.read, cached, sum(len(c.tokens) for made in self.completions.values() for c in made), 0)


class Text:
    """The text of a completion that grows; what may be the beginning of a stop string waits for what comes next."""

    def __init__(self, chat: Chat, stops: tuple[str, ...]):
        self.chat, self.stops = chat, stops
        self.sent = 0  # characters
        self._rest, self._over, self._decoder = "", False, chat.stream()

    def push(self, token: int) -> str:
        """What is new and will not be taken back."""
        if self._over or token in self.chat.end_ids:
            return ""
        new, self._over = until(self._rest + self._decoder.push(token), self.stops)
        held = max((n for s in self.stops for n in range(1, len(s)) if new.endswith(s[:n])), default=0)
        held = 0 if self._over else held
        new, self._rest = new[: len(new) - held], new[len(new) - held :]
        self.sent += len(new)
        return new

    def whole(self, tokens: Sequence[int]) -> tuple[str, bool]:
        """(all of it, whether a stop string ended it)."""
        return until(self.chat.decode([t for t in tokens if t not in self.chat.end_ids]), self.stops)


def _prompts(prompt: Any) -> list[str | list[int]]:
    found = prompt if isinstance(prompt, list) and any(isinstance(p, (str, list)) for p in prompt) else [prompt]
    if len(found) > PROMPTS:
        message = f"Invalid 'prompt': {len(found)} prompts were given and {PROMPTS} may be."
        raise invalid(message, "prompt", "invalid_value")
    for at, one in enumerate(found):
        where = f"prompt[{at}]" if found is prompt else "prompt"
        if isinstance(one, list):
            one[:] = map(whole, one)
            if not all(isinstance(i, int) and not isinstance(i, bool) for i in one):
                raise invalid(f"Invalid type for '{where}': expected token ids.", where, "invalid_type")
        elif not isinstance(one, str):
            raise invalid(f"Invalid type for '{where}': expected text or token ids.", where, "invalid_type")
        if not one:
            raise invalid(f"Invalid '{where}': it is empty.", where, "invalid_value")
    return found


def _inside_thought(chat: Chat, ids: Sequence[int]) -> bool:
    text = chat.decode(ids)
    return text.rfind(OPEN) > text.rfind(CLOSE)
