"""What the `openai` package makes of refusals, and what the server makes of clients that come again or go away.

MULL_URL, MULL_KEY: a server in o1's strict mode that decodes one sequence at a time and lets nobody wait.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import checks
import httpx2
import openai
from openai import OpenAI

URL, KEY, MODEL = os.environ["MULL_URL"], os.environ["MULL_KEY"], "nano"
ASK: list[Any] = [{"role": "user", "content": "y=1;h=y+14;k=h*5;v=k-8;v?"}]
LONG: dict[str, Any] = {"model": MODEL, "prompt": ["y=1;"] * 16, "n": 8, "max_tokens": 900}  # minutes of work, here
CANCELLED = 'raw_requests_total{outcome="cancelled"}'


def client(**more: Any) -> OpenAI:
    return OpenAI(base_url=f"{URL}/v1", **{"api_key": KEY, "timeout": 600, "max_retries": 0, **more})


def metric(name: str) -> float:
    text = httpx2.get(f"{URL}/metrics", headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False).text
    found = re.findall(rf"^mull_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[0]) if found else 0.0


def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def idle() -> bool:
    held = ("running", "sequences", "memory_pages_used", "memory_pages_reserved", "queue_depth")
    return not any(map(metric, held))


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """The server's one place is taken; it is free again afterwards, because the stream is closed before its end."""
    with client().completions.create(**LONG, stream=True) as stream:
        next(iter(stream))
        yield
    until(idle)


def refused(kind: type[openai.APIStatusError], ask: Callable[[], Any]) -> Any:
    """The client's exception, which must be exactly of this kind."""
    try:
        ask()
    except openai.APIStatusError as problem:
        assert type(problem) is kind, problem
        return problem
    raise AssertionError("it was not refused")


def check_errors() -> None:
    ours = client()
    problem = refused(
        openai.BadRequestError, lambda: ours.chat.completions.create(model=MODEL, messages=ASK, temperature=0.5)
    )
    assert (problem.param, problem.code, problem.type) == (
        "temperature",
        "unsupported_parameter",
        "invalid_request_error",
    )
    assert problem.request_id.startswith("req_")
    effort: Any = "enormous"
    problem = refused(
        openai.BadRequestError, lambda: ours.responses.create(model=MODEL, input="a?", reasoning={"effort": effort})
    )
    assert problem.param == "reasoning.effort"
    problem = refused(openai.NotFoundError, lambda: ours.chat.completions.create(model="gpt-9", messages=ASK))
    assert problem.code == "model_not_found"
    problem = refused(openai.NotFoundError, lambda: ours.responses.retrieve("resp_0"))
    assert problem.code == "response_not_found"
    problem = refused(openai.AuthenticationError, lambda: client(api_key="wrong").models.list())
    assert problem.code == "invalid_api_key"
    problem = refused(openai.APIStatusError, lambda: ours.responses.create(model=MODEL, input="a" * (2 << 20)))
    assert problem.status_code == 413 and problem.code == "request_too_large"
    problem = refused(openai.BadRequestError, lambda: ours.responses.create(model=MODEL, input="a" * 50_000))
    assert problem.code == "context_length_exceeded" and problem.param == "input"


def check_errors_of_streams() -> None:
    """A stream that is refused has not begun: the exception comes with the call, as for a whole answer."""
    ours = client()
    problem = refused(
        openai.BadRequestError,
        lambda: ours.chat.completions.create(model=MODEL, messages=ASK, top_p=0.5, stream=True),
    )
    assert problem.param == "top_p"
    refused(openai.NotFoundError, lambda: ours.responses.create(model="gpt-9", input="a?", stream=True))
    with busy():
        refused(openai.RateLimitError, lambda: ours.responses.create(model=MODEL, input="a?", stream=True))


def check_retries() -> None:
    """The client comes again when it is told to, and is served then."""
    came: list[tuple[float, int, float]] = []  # (when, status, seconds that it is told to wait)
    told: list[Any] = []

    def seen(answer: httpx2.Response) -> None:
        wait = float(answer.headers.get("retry-after-ms", 0)) / 1000  # which the client prefers to whole seconds
        came.append((time.monotonic(), answer.status_code, wait))

    http = httpx2.Client(event_hooks={"response": [seen]}, trust_env=False)
    ours = client(max_retries=8, http_client=http)

    def ask() -> None:
        told.append(ours.chat.completions.create(model=MODEL, messages=ASK, reasoning_effort="low"))

    with busy():
        problem = refused(openai.RateLimitError, lambda: client().chat.completions.create(model=MODEL, messages=ASK))
        assert problem.code == "rate_limit_exceeded" and 1 <= float(problem.response.headers["retry-after"]) <= 60
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: bool(came))
    thread.join(500)
    assert len(told) == 1 and told[0].choices[0].message.content
    assert [status for _, status, _ in came] == [429] * (len(came) - 1) + [200] and len(came) > 1
    for (before, _, wait), (after, _, _) in pairwise(came):
        assert after - before >= 0.9 * wait >= 0.9


def check_timeouts() -> None:
    """A client that gives up takes its work along."""
    before = metric(CANCELLED)
    try:
        client(timeout=1.0).completions.create(**LONG)
    except openai.APITimeoutError:
        pass
    else:
        raise AssertionError("a long request was done within a second")
    until(idle)
    assert metric(CANCELLED) == before + 1


def check_streams_that_are_left() -> None:
    before = metric(CANCELLED)
    with busy():
        assert not idle()
    assert idle() and metric(CANCELLED) == before + 1


checks.run(globals())
