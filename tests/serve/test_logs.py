"""The log: a line for each request that tells what it was and cost, and nothing of what was said."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import httpx2
import pytest
from fastapi import FastAPI

from mull.serve import logs
from mull.serve.app import make_app
from mull.serve.service import Service
from tests.serve.tools import ask, nano_service

SECRET = "y=1;h=y+14;k=h*5;v=k-8;v?"


@pytest.fixture
def stderr() -> Iterator[io.StringIO]:
    before = [
        (logging.getLogger(name), logging.getLogger(name).handlers, logging.getLogger(name).propagate)
        for name in logs.NAMES
    ]
    stream = io.StringIO()
    logs.setup(stream=stream)
    yield stream
    for logger, handlers, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def client(app: FastAPI, prompts: bool = False) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(logs.Logged(app, prompts), raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)


def send(service: Service, body, path: str = "/v1/chat/completions", prompts: bool = False, **more):
    async def run():
        async with client(make_app(service), prompts) as http:
            return await http.post(path, json=body, **more)

    return asyncio.run(run())


def test_a_request_has_one_line_with_what_it_cost(stderr: io.StringIO):
    service = nano_service()
    body = ask(SECRET, seed=3, reasoning_effort="medium", n=2)
    answer = send(service, body)
    [line] = lines(stderr)
    used = answer.json()["usage"]
    assert line["event"] == "request" and line["route"] == "/v1/chat/completions" and line["status"] == 200
    assert line["id"] == answer.headers["x-request-id"] and line["level"] == "info" and line["time"].endswith("Z")
    assert (line["effort"], line["strategy"], line["chains"], line["choices"]) == ("medium", "adaptive", 8, 2)
    assert line["sampled_tokens"] == used["completion_tokens"] and line["prompt_tokens"] == used["prompt_tokens"]
    assert line["sampled_tokens"] - line["answer_tokens"] == used["completion_tokens_details"]["reasoning_tokens"]
    assert line["outcome"] == "answered" and line["version"] == 0 and line["key"] is None
    assert 0 < line["first_token"] <= line["seconds"]
    text = stderr.getvalue()
    assert SECRET not in text and "y=1" not in text and 'prompt"' not in text
    assert answer.json()["choices"][0]["message"]["content"] not in [v for v in line.values() if isinstance(v, str)]


def test_prompts_and_answers_are_logged_where_the_operator_says_so(stderr: io.StringIO):
    answer = send(nano_service(), ask(SECRET), prompts=True)
    [line] = lines(stderr)
    assert line["prompt"] == [{"role": "user", "content": SECRET}]
    assert line["answers"] == [answer.json()["choices"][0]["message"]["content"]]


def test_refusals_have_a_line_and_keys_a_name_that_is_not_theirs(stderr: io.StringIO, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("the-first-key\nthe-second-key\n")
    service = nano_service(keys=keys)
    for key in ("the-first-key", "the-second-key", "the-first-key", "wrong"):
        send(service, ask(SECRET, max_tokens=4), headers={"Authorization": f"Bearer {key}"})
    send(service, ask(SECRET, n=99), headers={"Authorization": "Bearer the-first-key"})
    send(service, {}, path="/nowhere/at/all", headers={"Authorization": "Bearer the-first-key"})
    service.drain()
    send(service, ask(SECRET), headers={"Authorization": "Bearer the-first-key"})
    found = lines(stderr)
    assert [line["status"] for line in found] == [200, 200, 200, 401, 400, 404, 503]
    assert found[0]["key"] == found[2]["key"] != found[1]["key"] and found[3]["key"] is None
    assert found[5]["route"] == "unknown" and found[6]["outcome"] == "refused"
    text = stderr.getvalue()
    assert "the-first" not in text and "nowhere" not in text and "y=1" not in text


def test_health_and_metrics_are_not_worth_a_line(stderr: io.StringIO):
    async def run():
        async with client(make_app(nano_service())) as http:
            assert (await http.get("/health")).status_code == 200 == (await http.get("/metrics")).status_code

    asyncio.run(run())
    assert stderr.getvalue() == ""


def test_a_bug_is_told_with_its_place_and_without_its_words(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    service = nano_service()

    def broken(*_):
        try:
            int(SECRET)
        except ValueError as error:
            raise RuntimeError(f"cannot read {SECRET}") from error

    monkeypatch.setattr(service.main, "plan", broken)
    answer = send(service, ask(SECRET))
    assert answer.status_code == 500 and "y=1" not in answer.text
    failure, request = lines(stderr)
    assert [error["type"] for error in failure["errors"]] == ["RuntimeError", "ValueError"]
    assert any("broken" in frame and "test_logs.py" in frame for frame in failure["errors"][0]["at"])
    assert "y=1" not in stderr.getvalue() and request["status"] == 500 and request["outcome"] == "failed"
    told = logs.trouble(RuntimeError(SECRET), prompts=True)
    assert told["errors"][0]["says"] == SECRET


def test_a_bug_outside_of_the_app_still_has_an_answer_and_a_line(stderr: io.StringIO):
    async def app(scope, receive, send):
        raise ZeroDivisionError(SECRET)

    async def run():
        async with client(app) as http:  # type: ignore[arg-type]
            return await http.get("/x")

    answer = asyncio.run(run())
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    failure, request = lines(stderr)
    assert failure["errors"][0]["type"] == "ZeroDivisionError" and request["status"] == 500
    assert SECRET not in stderr.getvalue()


def test_a_client_that_leaves_its_stream_is_told_of(stderr: io.StringIO):
    """Raw ASGI: the client sends its body, reads two pieces and hangs up."""
    service = nano_service(think_tokens=600)
    body = json.dumps(ask(SECRET, stream=True, reasoning_effort="high")).encode()
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    scope |= {"http_version": "1.1", "scheme": "http", "raw_path": b"/v1/chat/completions", "asgi": {"version": "3.0"}}

    async def run():
        left, pieces = asyncio.Event(), 0
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if given:
                return given.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            nonlocal pieces
            pieces += message["type"] == "http.response.body"
            if pieces >= 2:
                left.set()

        await asyncio.wait_for(logs.Logged(make_app(service))(scope, receive, send), 60)

    asyncio.run(run())
    [line] = lines(stderr)
    assert line["status"] == 499 and line["outcome"] == "cancelled" and line["effort"] == "high"
    assert not service.jobs and service.main.gate.inside == 0
