"""The soak's own judgement: it tells answers, clean refusals and every kind of fault apart, so that it can fail."""

import asyncio
import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def soak() -> Iterator[ModuleType]:
    """benchmarks/soak.py, and with it what it takes from the file beside it."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    yield importlib.import_module("soak")
    sys.path.pop(0)


def chat(text: str = "", finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": None})


USAGE = json.dumps({"choices": [], "usage": {"completion_tokens": 7}})
ERROR = {"message": "m", "type": "t", "param": None, "code": "rate_limit_exceeded"}
RESPONSE = [
    {"type": "response.created"},
    {"type": "response.output_text.delta", "delta": "4"},
    {"type": "response.completed", "response": {"usage": {"output_tokens": 5}}},
]


def stream(*events: str, end: bool = True, cut: int = 0) -> bytes:
    text = b"".join(f": ping\n\ndata: {event}\n\n".encode() for event in events)
    pieces = [text[i : i + 50] for i in range(0, len(text), 50)]
    body = b"".join(f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in pieces) + (b"0\r\n\r\n" if end else b"")
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body[: len(body) - cut]


def plain(status: int, body: object, *headers: str) -> bytes:
    text = body if isinstance(body, str) else json.dumps(body)
    head = "".join(f"{h}\r\n" for h in headers)
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(text)}\r\n{head}\r\n{text}".encode()


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        (stream(chat("4"), chat("2", "stop"), USAGE, "[DONE]"), "answered"),
        (stream(*map(json.dumps, RESPONSE)), "answered"),
        (plain(429, {"error": ERROR}, "retry-after: 3"), "refused"),
        (plain(503, {"error": ERROR}, "retry-after: 2"), "refused"),
        (stream(json.dumps({"error": ERROR}), "[DONE]"), "refused"),
        (stream(json.dumps({**ERROR, "type": "error"})), "refused"),
        (plain(429, {"error": ERROR}), "misshapen"),  # when to come again?
        (plain(500, {"error": ERROR}, "retry-after: 1"), "misshapen"),
        (plain(503, {"detail": "x"}, "retry-after: 1"), "misshapen"),
        (plain(503, "Service Unavailable", "retry-after: 1"), "misshapen"),
        (stream(json.dumps({"error": {**ERROR, "code": None}}), "[DONE]"), "misshapen"),
        (stream(chat(" "), chat("", "stop"), "[DONE]"), "empty"),
        (stream(chat("4"), "[DONE]"), "broken"),  # no finish reason
        (stream(chat("4", "stop")), "broken"),  # no end
        (stream(*map(json.dumps, RESPONSE[:2])), "broken"),
        (stream(chat("4", "stop"), "[DONE]", end=False), "broken"),
        (stream(chat("4", "stop"), "[DONE]", cut=20), "broken"),
        (stream("no json"), "broken"),
        (b"", "broken"),
    ],
)
def test_every_answer_is_judged_as_what_it_is(soak: ModuleType, sent: bytes, outcome: str):
    async def run():
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(sent)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port, told = server.sockets[0].getsockname()[1], soak.Told()
        asked = soak.Asked("/v1/chat/completions", {}, None, None)
        wait = await soak.ask(port, asked, told)
        server.close()
        await server.wait_closed()
        left = soak.Told()
        await soak.ask(port, asked, left)
        assert left.outcomes == {"gone": 1}
        return told, wait

    told, wait = asyncio.run(run())
    assert told.outcomes == {outcome: 1}, told.faults
    assert told.bad == (outcome in ("misshapen", "empty", "broken")) == bool(told.faults)
    assert (told.tokens > 0) == (outcome == "answered") and (wait > 0 or outcome != "refused")


def test_clients_leave_as_often_as_they_should_and_in_all_ways(soak: ModuleType):
    rng = random.Random(0)
    drawn = [soak.Asked.draw(rng, ["q"], 1 / 3) for _ in range(3000)]
    leaving = [one for one in drawn if one.leave_after is not None or one.leave_in is not None]
    assert 900 < len(leaving) < 1100 and {one.path for one in drawn} == {"/v1/chat/completions", "/v1/responses"}
    assert any(one.leave_after == 0 for one in leaving) and any(one.leave_in for one in leaving)
    assert all(one.body["stream"] for one in drawn)


def test_what_stays_in_use_is_a_fault_and_the_rows_are_evidence(soak: ModuleType):
    from mull.evals import evidence, tables

    made = soak.Soak(before={"sequences": 0.0}, quiet={"sequences": 2.0, "running": 0.0})
    assert made.kept == {"sequences": 2.0}
    made.load.note("answered")
    made.load.whole, made.load.first = [1.0, 2.0], [0.5, 0.6]
    found = soak.rows(made, SimpleNamespace(clients=2, seconds=3.0, seed=0))
    rows = [evidence.validate({**row, "commit": "c", "machine": "m"}, "here") for row in found]
    assert "| answered | 1 requests |" in tables.grid(rows).replace("1.0", "1")
