"""JSON over HTTP to one server: bounded concurrency, retries, and errors that say what to do.

What the server says decides the exception:
- 401 and 403, an address where nothing listens, an answer that is no JSON: UserError, one sentence;
- 408, 429, 5xx and broken connections: asked again after a pause that doubles each time, or after `Retry-After`; once
  the retries are used up, SamplerLost. A request that took longer than `timeout` is lost at once: the server had its
  time, and may still be at work on it;
- any other refusal: `Refused`, for the caller to understand.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from mull.errors import MissingExtra, SamplerLost, UserError

LONGEST_PAUSE = 30.0  # seconds, where the server names none


class Refused(Exception):
    """The server understood the request and will not do it (400, 404, 422, …)."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class Http:
    """One server. `retried` counts requests that were sent again: what the first attempt consumed nobody knows.
    `failed` counts those that were given up or withdrawn while the server had them.

    Event loops may follow one another (`asyncio.run` many times); connections are not kept from one to the next.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        max_concurrent: int,
        timeout: float,
        retries: int,
        backoff: float,
    ):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{base_url!r} is no address of a server: give one like http://localhost:8000/v1")
        if max_concurrent < 1 or retries < 0 or not timeout > 0:
            raise UserError(
                f"max_concurrent={max_concurrent}, retries={retries}, timeout={timeout:g}: give at least 1 request at"
                " a time, 0 retries and more than 0 seconds"
            )
        self.url = base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self.max_concurrent = max_concurrent
        self.retried = 0
        self.failed = 0
        self.answered = False  # whether the server has ever said anything
        self._key = api_key
        self._httpx = _httpx()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._slots = asyncio.Semaphore(max_concurrent)
        self.settling = asyncio.Lock()  # for what the first caller finds out for all

    def enter_loop(self) -> None:
        """Makes the connections, slots and lock those of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise RuntimeError("the endpoint is in use by another event loop: give each thread a sampler of its own")
        self._loop = loop
        self._slots, self.settling = asyncio.Semaphore(self.max_concurrent), asyncio.Lock()
        # The deadline is asyncio's, over the whole request; httpx's are between two bytes.
        self._client = self._httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=None,
            limits=self._httpx.Limits(max_connections=None, max_keepalive_connections=self.max_concurrent),
        )

    async def close(self) -> None:
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.aclose()
        self._client = self._loop = None

    async def get(self, route: str) -> Any:
        """One attempt: what is asked this way is welcome, not needed."""
        failed = self.failed
        try:
            return (await self._send("GET", route, None, retries=0))[0]
        finally:
            self.failed = failed  # nothing was sampled, so nothing was lost

    async def post(self, route: str, body: dict[str, Any]) -> tuple[Any, float]:
        """The decoded answer, and how many seconds the attempt took that gave it."""
        return await self._send("POST", route, body, self.retries)

    async def _send(self, method: str, route: str, body: dict[str, Any] | None, retries: int) -> tuple[Any, float]:
        self.enter_loop()
        problem = ""
        async with self._slots:  # kept during a pause: who is told to slow down must not make room for the next one
            for attempt in range(retries + 1):
                pause = min(LONGEST_PAUSE, self.backoff * 2**attempt) * random.uniform(0.5, 1)
                began = time.monotonic()
                try:
                    async with asyncio.timeout(self.timeout):
                        response = await self._client.request(method, self.url + route, json=body)
                except TimeoutError:
                    self.failed += 1
                    raise SamplerLost(f"{self.url} did not answer within {self.timeout:g} seconds") from None
                except asyncio.CancelledError:
                    self.failed += 1
                    raise
                except self._httpx.ConnectError as e:
                    if not self.answered:
                        raise UserError(
                            f"nothing answers at {self.url} ({e}): start the server or correct the address"
                        ) from e
                    problem = f"cannot be reached any more ({e})"
                except self._httpx.TransportError as e:
                    problem = f"closed the connection ({type(e).__name__})"
                else:
                    self.answered = True
                    if response.status_code == 200:
                        return self._decoded(response), time.monotonic() - began
                    problem = f"answered {response.status_code}: {self._message(response)}"
                    self._refuse(response)
                    pause = _retry_after(response.headers.get("retry-after"), pause, self.timeout)
                if attempt < retries:
                    self.retried += 1
                    await asyncio.sleep(pause)
        self.failed += 1
        raise SamplerLost(f"{self.url} {problem}" + (f", {retries + 1} times in a row" if retries else ""))

    def _refuse(self, response: Any) -> None:
        """Raises where asking again would change nothing."""
        status, message = response.status_code, self._message(response)
        if status in (401, 403):
            given = "the API key is not accepted" if self._key else "it wants an API key: set OPENAI_API_KEY"
            raise UserError(f"{self.url} refuses access ({status}), {given}: {message}")
        if status not in (408, 425, 429) and status < 500:
            raise Refused(status, message)

    def _decoded(self, response: Any) -> Any:
        try:
            return response.json()
        except ValueError:
            raise UserError(
                f"{self.url} does not answer with JSON: give the address of an OpenAI-compatible API (most end in /v1)"
            ) from None

    def _message(self, response: Any) -> str:
        """The server's words, in one line. Servers quote the key that they refuse; it stays out of every log."""
        try:
            said = response.json()
        except ValueError:
            said = response.text
        for name in ("error", "detail", "message"):
            if isinstance(said, dict) and name in said:
                said = said[name]
        if isinstance(said, list) and said and isinstance(said[0], dict):  # FastAPI: one entry for each bad field
            said = "; ".join(f"{'.'.join(map(str, e.get('loc', ())))}: {e.get('msg', '')}" for e in said)
        line = " ".join(str(said).split())
        if self._key:
            line = line.replace(self._key, "[key]")
        return line[:300] or "no reason given"


def _retry_after(value: str | None, default: float, most: float) -> float:
    """Seconds to wait by a Retry-After header (RFC 9110, 10.2.3: seconds or a date), at most `most`."""
    if value is None:
        return default
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return default
    return min(max(0.0, seconds), most) if seconds == seconds else default


def _httpx() -> Any:
    try:
        import httpx2
    except ImportError:
        raise MissingExtra("httpx2", "endpoint", "sampling from a server") from None
    return httpx2
