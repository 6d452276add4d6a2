"""The log: JSON lines on stderr, one for each request, without prompts, answers or thoughts unless the operator wants.

A failure is logged by its type and where it happened. What an exception says may quote a prompt, so its words are left
out unless `log_prompts` is set.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from contextvars import ContextVar
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TextIO

from mull.serve.errors import broken

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mull.serve.meter import Record

NAMES = ("mull.serve", "uvicorn.error", "asyncio")
log = logging.getLogger("mull.serve")
_records: ContextVar[list[Record] | None] = ContextVar("mull_records", default=None)  # of the HTTP request under way


def setup(prompts: bool = False, stream: TextIO | None = None) -> None:
    """Sends what the service, uvicorn and asyncio log to stderr as JSON lines, and nowhere else."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines(prompts))
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "mull.serve" else logging.WARNING)


class Lines(logging.Formatter):
    def __init__(self, prompts: bool):
        super().__init__()
        self.prompts = prompts

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= trouble(record.exc_info[1], self.prompts)
        return json.dumps(line, default=str)


def trouble(error: BaseException, prompts: bool = False) -> dict[str, Any]:
    """An exception and those behind it: their types, and where each was raised; their words only with `prompts`."""
    found: list[dict[str, Any]] = []
    at: BaseException | None = error
    while at is not None and len(found) < 8:
        frames = traceback.extract_tb(at.__traceback__)
        one: dict[str, Any] = {"type": type(at).__name__, "at": [f"{f.filename}:{f.lineno} {f.name}" for f in frames]}
        found.append({**one, "says": str(at)} if prompts else one)
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return {"errors": found}


def note(record: Record) -> None:
    """Tells the line of the HTTP request that is under way here of a job that has ended."""
    records = _records.get()
    if records is not None:
        records.append(record)


class Logged:
    """ASGI middleware around the whole app: a line for each request, when its answer has been sent."""

    def __init__(self, app: ASGIApp, prompts: bool = False):
        self.app, self.prompts = app, prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, records, status = time.monotonic(), list[Any](), 0
        state, token = scope.setdefault("state", {}), _records.set(records)
        sent = gone = False

        async def told(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            sent = message["type"] == "http.response.body" and not message.get("more_body", False)

        async def heard() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        try:
            await self.app(scope, heard, told)
        except Exception as error:
            log.error("failure", extra={"fields": trouble(error, self.prompts)})
            if status == 0:
                await _say_broken(told)
        finally:
            _records.reset(token)
            route = getattr(scope.get("route"), "path", None) or "unknown"
            line = {
                "id": state.get("request_id", ""),
                "method": scope["method"][:16],
                "route": route,
                "status": status if sent or not gone else 499,
                "seconds": round(time.monotonic() - started, 4),
                "key": key_id(state.get("owner", "")),
                **told_of(records, self.prompts),
            }
            quiet = route in ("/health", "/metrics") and status == 200
            log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": line})


async def _say_broken(send: Send) -> None:
    body = json.dumps(broken().body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def key_id(owner: str) -> str | None:
    """A short name for an API key, from its hash, that does not tell the hash."""
    return sha256(owner.encode()).hexdigest()[:8] if owner else None


def told_of(records: list[Record], prompts: bool) -> dict[str, Any]:
    """What a request's jobs were: counts are sums over them."""
    if not records:
        return {}
    jobs = [record.job for record in records if record.job is not None]
    out: dict[str, Any] = {
        "model": records[0].model,
        "outcome": next((r.outcome for r in records if r.outcome != "answered"), "answered"),
        "waited": round(max(record.waited for record in records), 4),
    }
    if not jobs:
        return out
    plan, results = jobs[0].plan, [job.result for job in jobs if job.result is not None]
    firsts = [record.first_token for record in records if record.first_token is not None]
    out |= {
        "effort": plan.level,
        "strategy": plan.strategy.partition(":")[0],
        "choices": len(jobs),
        "chains": plan.samples,
        "wanted": plan.wanted or None,
        "first_token": round(min(firsts), 4) if firsts else None,
        "prompt_tokens": len(jobs[0].live.prompt),
        "cached_tokens": jobs[0].live.cached,
        "sampled_tokens": sum(job.sampled for job in jobs),
        "answer_tokens": sum(result.answer_tokens for result in results),
        "wasted_tokens": sum(max(0, result.wasted_tokens) for result in results),
        "summary_tokens": sum(job.summary_tokens for job in jobs),
        "early": next((result.early for result in results if result.early), None),
        "exhausted": any(result.exhausted for result in results),
        "looped": sum(job.live.looped for job in jobs),
        "lost": [what for result in results for what in result.lost][:4]
        if prompts
        else sum(len(r.lost) for r in results),
        "version": results[0].policy_version if results else jobs[0].tools.sampler.policy_version,
    }
    if prompts:
        out |= {"prompt": jobs[0].question.messages or jobs[0].question.text, "answers": [r.content for r in results]}
    return out
