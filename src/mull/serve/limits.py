"""What may come in: how large a body, how slowly, and what counts as JSON. All before any work is done for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from typing import Any, NoReturn

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mull.serve.errors import ApiError, invalid

DEPTH = 64  # objects and lists within each other
DIGITS = 64  # of a whole number
LINGER = 1.0  # seconds in which a refused body may still arrive, so that its sender gets to read the refusal
_SURROGATE = re.compile("[\ud800-\udfff]")


def too_large(most: int) -> ApiError:
    return ApiError(413, f"The request's body is larger than {most} bytes.", code="request_too_large")


def too_slow(seconds: float) -> ApiError:
    return ApiError(408, f"The request's body did not arrive within {seconds:g} seconds.", code="request_timeout")


class Bodies:
    """ASGI middleware: hands the app a body that has arrived as a whole, or answers 413 or 408 itself."""

    def __init__(self, app: ASGIApp, most_bytes: int, seconds: float):
        self.app, self.most, self.seconds = app, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        try:
            if declared.isdigit() and len(declared) < DIGITS and int(declared) > self.most:
                raise too_large(self.most)
            body = await asyncio.wait_for(self._read(receive), self.seconds)
        except TimeoutError:
            return await refuse(too_slow(self.seconds), scope, receive, send)
        except ApiError as problem:
            return await refuse(problem, scope, receive, send)
        if body is None:
            return  # the client went away half-way
        first = True

        async def replay() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        pieces, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self.most:
                raise too_large(self.most)
            if not message.get("more_body", False):
                return b"".join(pieces)


async def refuse(problem: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in place of the app, and closes the connection: what is left of the body is not read as a request."""
    problem.headers["Connection"] = "close"
    response = problem_response(problem)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_drained(receive), LINGER)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drained(receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
        pass


def request_id(request: Request) -> str:
    """What the header x-request-id says; a job has this name, and nobody can guess it."""
    return request.scope["state"]["request_id"]


def problem_response(problem: ApiError) -> JSONResponse:
    return JSONResponse(problem.body(), problem.status, problem.headers)


# ------------------------------------------------------------------------------------------------------- JSON


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object; ApiError that says what is wrong with it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        # A web page may send other kinds anywhere without asking first, also to a server on its visitor's machine.
        message = f"The header Content-Type says {kind[:60]!r}: send application/json."
        raise invalid(message, code="unsupported_content_type")
    return loads(await request.body())


def loads(body: bytes) -> dict[str, Any]:
    """
    >>> loads(b'{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
    except UnicodeDecodeError as problem:
        raise invalid(f"The body is not valid UTF-8 (at byte {problem.start}).", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as problem:
        raise invalid(f"The body is not valid JSON: {problem}.", code="invalid_json") from None
    if not isinstance(data, dict):
        raise invalid("The body must be a JSON object.", code="invalid_json")
    _check(data)
    return data


def _check(data: Any) -> None:
    """Refuses what nests too deeply and what no UTF-8 can hold."""
    level = [data]
    for _ in range(DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str) and _SURROGATE.search(value):
                raise invalid("The body has half of a surrogate pair in a string.", code="invalid_json")
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
        if not below:
            return
        level = below
    raise _too_deep()


def _too_deep() -> ApiError:
    return invalid(f"The body nests more than {DEPTH} objects and lists.", code="invalid_json")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"{text[:20]}… is too large a number")
    return int(text)
