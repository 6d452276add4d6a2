"""Streams: frames, plain errors before the stream, told errors in it, pings, and clients that go away."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi import Request

from mull.serve import sse
from mull.serve.errors import ApiError, busy, invalid
from mull.serve.sse import DONE, PING, Gone, frame, streamed, while_there


class Client:
    """The other end of one ASGI call: what was sent to it, and when it hangs up."""

    def __init__(self):
        self.leaves, self.sent, self.heard = asyncio.Event(), [], asyncio.Event()

    async def receive(self):
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)
        self.heard.set()

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent)

    async def request(self, frames, ping_seconds=10.0):
        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        request = Request(scope, self.receive, self.send)
        response = await streamed(request, frames, told, ping_seconds, {"x-extra": "1"})
        await response(scope, self.receive, self.send)
        return response


def told(problem: ApiError) -> bytes:
    return frame(problem.body(), "error")


class Work:
    """A generator of frames that notes how it ended."""

    def __init__(self, *steps):
        self.steps, self.closed = steps, False

    async def __aiter__(self):
        try:
            for step in self.steps:
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, (int, float)):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.closed = True

    @property
    def frames(self):
        return self.__aiter__()


def test_a_frame_is_one_line_of_plain_ascii():
    assert frame("[DONE]") == b"data: [DONE]\n\n" == DONE
    odd = "line\nbreak \r \x85 \u2028 \u2029 ä \U0001f600"
    made = frame({"text": odd}, "thing")
    head, data, *rest = made.decode().splitlines()
    assert head == "event: thing" and rest == [""]
    assert json.loads(data.removeprefix("data: ")) == {"text": odd}
    with pytest.raises(ValueError):
        frame(float("nan"))  # no JSON: better here than at the client


async def _all(work, **more):
    client = Client()
    await client.request(work.frames, **more)
    return client


def test_frames_pass_in_order_and_the_stream_ends():
    work = Work(frame(1), frame(2), 0.01, frame(3))
    client = asyncio.run(_all(work))
    assert client.body == frame(1) + frame(2) + frame(3) and work.closed
    start, *_, last = client.sent
    headers = dict(start["headers"])
    assert start["status"] == 200 and headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"x-extra"] == b"1" and headers[b"x-accel-buffering"] == b"no" and b"content-length" not in headers
    assert last["more_body"] is False


@pytest.mark.parametrize("steps", [(busy("full", 3),), (0.05, busy("full", 3)), (frame(1), busy("full", 3))])
def test_what_is_refused_at_once_is_a_plain_error(steps):
    work = Work(*steps)
    client = Client()
    with pytest.raises(ApiError, match="full"):
        asyncio.run(client.request(work.frames))
    assert client.sent == [] and work.closed


def test_what_is_refused_late_is_told_in_the_stream(monkeypatch):
    monkeypatch.setattr(sse, "PATIENCE", 0.02)
    client = asyncio.run(_all(Work(0.1, busy("full", 3))))
    assert client.body == PING + frame(busy("full", 3).body(), "error")
    client = asyncio.run(_all(Work(frame(1), 0.05, invalid("no", "x"))))
    assert client.body == frame(1) + frame(invalid("no", "x").body(), "error")


def test_what_breaks_is_told_without_its_reason(caplog):
    client = asyncio.run(_all(Work(frame(1), 0.05, RuntimeError("a secret"))))
    first, second = client.body.split(b"\n\n", 1)
    assert first + b"\n\n" == frame(1) and b"server_error" in second and b"secret" not in second
    assert "a secret" in caplog.text  # but the operator sees it


def test_pings_are_comments_and_come_from_the_first_second(monkeypatch):
    monkeypatch.setattr(sse, "PATIENCE", 0.05)
    client = asyncio.run(_all(Work(0.4, frame(1), 0.4, frame(2)), ping_seconds=0.1))
    before, between = client.body.split(frame(1))[0], client.body.split(frame(1))[1].split(frame(2))[0]
    assert before.replace(PING, b"") == between.replace(PING, b"") == b""
    assert before.count(PING) >= 3 and between.count(PING) >= 2
    assert b"id:" not in client.body and b"event:" not in client.body


def test_who_leaves_closes_the_work_at_once():
    async def scene(leave_after):
        work, client = Work(frame(1), 30), Client()
        call = asyncio.ensure_future(client.request(work.frames))
        await (client.heard.wait() if leave_after else asyncio.sleep(0.02))
        client.leaves.set()
        await asyncio.wait_for(asyncio.gather(call, return_exceptions=True), 2)
        assert work.closed
        return client

    client = asyncio.run(scene(True))
    assert client.body == frame(1) and client.sent[-1]["more_body"] is True


def test_who_leaves_before_the_stream_begins_gets_nothing():
    async def scene():
        work, client = Work(30), Client()
        call = asyncio.ensure_future(client.request(work.frames))
        await asyncio.sleep(0.02)
        client.leaves.set()
        with pytest.raises(Gone):
            await asyncio.wait_for(call, 2)
        assert work.closed and client.sent == []

    asyncio.run(scene())


def test_a_slow_reader_does_not_hold_the_work(monkeypatch):
    async def scene():
        work, client, reads = Work(*[frame(i) for i in range(50)], 0.01, frame("end")), Client(), asyncio.Event()

        async def send(message):
            if message["type"] == "http.response.body":
                await reads.wait()
            client.sent.append(message)

        request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, client.receive, send)
        response = await streamed(request, work.frames, told, 10.0)
        call = asyncio.ensure_future(response(request.scope, client.receive, send))
        await asyncio.sleep(0.1)
        assert work.closed and not call.done()  # all was drawn, nothing was read
        reads.set()
        await call
        assert client.body.endswith(frame(49) + frame("end"))

        monkeypatch.setattr(sse, "STUCK", 0.05)
        reads.clear()
        response = await streamed(request, Work(frame(1)).frames, told, 10.0)
        await asyncio.wait_for(response(request.scope, client.receive, send), 2)  # dropped

    asyncio.run(scene())


def test_work_runs_while_somebody_is_there():
    cancelled = []

    async def work(seconds, result):
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            cancelled.append(result)
            raise
        if isinstance(result, Exception):
            raise result
        return result

    async def scene():
        client = Client()
        request = Request({"type": "http", "headers": []}, client.receive, client.send)
        assert await while_there(request, work(0.01, 7)) == 7
        with pytest.raises(ApiError, match="no"):
            await while_there(request, work(0.01, invalid("no")))
        call = asyncio.ensure_future(while_there(request, work(30, "left")))
        await asyncio.sleep(0.02)
        client.leaves.set()
        with pytest.raises(Gone):
            await asyncio.wait_for(call, 2)
        assert cancelled == ["left"]

    asyncio.run(scene())
