"""Streams of server-sent events, and calls that end when nobody waits for them any more.

    async def frames():                                   # one generator per request: an API's whole translation
        async with service.job(wish, request_id) as job:
            yield frame({"first": "thing"})               # as soon as there is room
            async with aclosing(follow(job)) as events:
                async for event in events:
                    yield frame(...)

    return await streamed(request, frames(), failed, settings.ping_seconds)

Keep-alives are comments. An `id:` field would make some clients turn every comment into an empty event, and an
`event: ping` would reach them as a chunk that cannot be read.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from mull.serve.errors import ApiError, broken

T = TypeVar("T")

PATIENCE = 0.8  # seconds in which a refusal is still a plain HTTP error; then the stream begins
STUCK = 60.0  # seconds that a client may take to read a piece
PING = b": ping\n\n"
log = logging.getLogger("mull.serve")


class Gone(Exception):
    """The client has closed the connection: nobody reads what we would say."""


def frame(data: Any, event: str | None = None) -> bytes:
    """One event; a string is sent as it is, anything else as JSON. Pure ASCII: some clients break lines at U+2028.

    >>> frame({"a": "ä"}, "b")
    b'event: b\\ndata: {"a":"\\\\u00e4"}\\n\\n'
    """
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), allow_nan=False)
    return ((f"event: {event}\n" if event else "") + f"data: {text}\n\n").encode()


DONE = frame("[DONE]")


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """What `work` comes to; cancelled, with `Gone`, as soon as the client closes the connection.

    The request's body must have been read: what comes next is then the end of the connection.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        await _cancelled(task, gone)


async def streamed(
    request: Request,
    frames: AsyncGenerator[bytes],
    failed: Callable[[ApiError], bytes],
    ping_seconds: float,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A response that passes the frames on as they come.

    An ApiError that is raised before the first frame, within `PATIENCE`, is raised here: a plain HTTP error. After that
    time the stream begins, with a comment first and then whenever nothing was sent for `ping_seconds`; whatever fails
    later is told in it, as `failed` puts it. The frames are drawn as fast as they come, however slowly the client
    reads: a job gives its room back when it is done. When the client goes away the generator is closed at once.
    """
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
    work = asyncio.ensure_future(_draw(frames, pieces))
    gone = asyncio.ensure_future(_hung_up(request.receive))
    for task in (work, gone):
        task.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        try:
            first = await asyncio.wait_for(pieces.get(), PATIENCE)
        except TimeoutError:
            first = PING
        if work.done():
            work.result()
        elif gone.done():
            raise Gone
    except BaseException:
        await _cancelled(work, gone)
        raise
    return EventStream(first, pieces, work, gone, failed, ping_seconds, headers)


class EventStream(Response):
    """Sends what `work` puts into `pieces`; None there says that `work` or the client (`gone`) has ended."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: bytes | None,
        pieces: asyncio.Queue[bytes | None],
        work: asyncio.Future[None],
        gone: asyncio.Future[None],
        failed: Callable[[ApiError], bytes],
        ping_seconds: float,
        headers: Mapping[str, str] | None,
    ):
        # X-Accel-Buffering: a proxy such as nginx would otherwise keep a stream until it is complete.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._first, self._pieces, self._work, self._gone = first, pieces, work, gone
        self._failed, self._ping_seconds = failed, ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say(body: bytes, more: bool = True) -> None:
            async with asyncio.timeout(STUCK):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            piece = self._first
            while piece is not None:
                ready = [piece]
                while not self._pieces.empty() and (piece := self._pieces.get_nowait()) is not None:
                    ready.append(piece)
                await say(b"".join(ready))
                if piece is not None:
                    piece = await self._next()
            if self._work.done():
                await say(self._ending(), more=False)
        except TimeoutError:
            log.warning("a client did not read its stream for %g s: dropped", STUCK)
        finally:
            await _cancelled(self._work, self._gone)

    async def _next(self) -> bytes | None:
        try:
            async with asyncio.timeout(self._ping_seconds):
                return await self._pieces.get()
        except TimeoutError:
            return PING

    def _ending(self) -> bytes:
        """What is left to say: nothing, or why it failed."""
        problem = self._work.exception()
        if problem is None:
            return b""
        if not isinstance(problem, ApiError):
            log.error("a stream failed", exc_info=problem)
            problem = broken()
        return self._failed(problem)


async def _draw(frames: AsyncGenerator[bytes], pieces: asyncio.Queue[bytes | None]) -> None:
    async with aclosing(frames):
        async for piece in frames:
            pieces.put_nowait(piece)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: asyncio.Future) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
