"""The server process: addresses, signals, an end in which nobody is cut off, and connections that say nothing."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import uvicorn

from mull.engine import native
from mull.errors import UserError
from mull.models.nano import shipped_folder
from mull.serve import main
from mull.serve.auth import is_loopback
from mull.serve.job import answered
from mull.serve.main import Door, address_of, bound, drain, sweep
from mull.serve.plan import Wish
from mull.serve.settings import Settings
from tests.serve.tools import QUESTION, events, idle, nano_service

TALK = ({"role": "user", "content": QUESTION},)
ON = "wait:waits=100"  # chains that are made to think on until their budget is spent, so that it takes seconds
LONG = Wish(TALK, effort="high", strategy=ON, samples=64, seed=1)
SLOW = {"messages": list(TALK), "mull": {"strategy": ON, "samples": 64}, "reasoning_effort": "high"}
PATIENCE = 240.0  # seconds that a process may take to start on a busy machine

# ------------------------------------------------------------------------------------------------- addresses


def test_a_port_that_is_taken_is_a_mistake_in_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use.*--port"):
            main.serve(Settings(model="/no/such/folder", port=port))  # it is noticed before anything is loaded
    with pytest.raises(UserError, match="no address of this machine"):
        bound("no.such.host.invalid", 0)
    with pytest.raises(UserError, match="nothing can listen"):
        bound("192.0.2.1", 0)


def test_the_address_that_is_told_can_be_opened():
    for host, told in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("localhost", "127.0.0.1")):
        with contextlib.closing(bound(host, 0)) as listener:
            where = address_of(listener)
            assert where.startswith(f"http://{told}:") or where.startswith("http://[::1]:")
            socket.create_connection((told, int(where.rpartition(":")[2])), timeout=5).close()
    assert [
        is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1")
    ] == [
        *[True] * 4,
        *[False] * 3,
    ]


@pytest.mark.parametrize(
    ("host", "keys", "warned"), [("0.0.0.0", False, True), ("0.0.0.0", True, False), ("127.0.0.1", False, False)]
)
def test_a_warning_where_others_can_come_in_without_a_key(host, keys, warned, tmp_path: Path, capsys, monkeypatch):
    async def nothing(settings, files, listener):
        pass

    monkeypatch.setattr(main, "_run", nothing)
    monkeypatch.setattr("mull.serve.logs.setup", lambda *_: None)
    path = tmp_path / "keys"
    path.write_text("key\n")
    main.serve(Settings(host=host, port=0, keys=path if keys else None))
    assert ("no API key is asked for" in capsys.readouterr().err) == warned


@pytest.mark.parametrize("key", ["keys", "admin", "secret", "store", "calibration"])
def test_a_file_that_cannot_be_used_is_said_before_the_model_is_loaded(key: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("mull.serve.logs.setup", lambda *_: None)
    path = tmp_path / "no" / "such" / "file"
    with pytest.raises(UserError, match=str(path)):
        main.serve(Settings(model="/no/such/model", port=0, **{key: str(path) if key == "calibration" else path}))


def test_the_store_is_closed_where_the_model_cannot_be_loaded(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("mull.serve.logs.setup", lambda *_: None)
    with pytest.raises(UserError, match="/no/such/model"):
        main.serve(Settings(model="/no/such/model", port=0, store=tmp_path / "s.db"))
    assert [path.name for path in tmp_path.iterdir()] == ["s.db"]  # SQLite's last connection cleans up


@pytest.mark.parametrize(
    "library, settings, warned",
    [
        (None, {}, True),
        (object(), {}, False),
        (None, {"device": "cuda"}, False),
        (None, {"endpoint": "http://localhost:9/v1"}, False),
    ],
)
def test_a_warning_where_the_engine_has_no_kernel(library, settings, warned: bool, capsys, monkeypatch):
    monkeypatch.setattr(native, "load", lambda: (library, "there is no compiler"))
    asyncio.run(main._warn_of_torch(Settings(**settings)))
    assert capsys.readouterr().err == "warning: there is no compiler\n" * warned


def test_the_door_says_503_until_there_is_an_app():
    async def run():
        door = Door()
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(door), base_url="http://localhost") as http:
            first = await http.get("/health")

            async def app(scope, receive, send):
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body", "body": b""})

            door.app = app
            return first, await http.get("/health")

    first, second = asyncio.run(run())
    assert first.status_code == 503 and first.headers["retry-after"] == "2" and first.headers["connection"] == "close"
    assert first.json()["error"]["type"] == "server_error" and second.status_code == 204


# ------------------------------------------------------------------------------------------------- the drain


def test_who_is_under_way_may_finish_and_nobody_else_comes_in():
    service = nano_service(drain_seconds=120.0)

    async def ask(wish: Wish):
        async with service.job(wish, "a") as job:
            return await answered(job)

    async def run():
        under_way = asyncio.ensure_future(ask(Wish(TALK, effort="medium", seed=1)))
        while not service.jobs:
            await asyncio.sleep(0)
        draining = asyncio.ensure_future(drain(service))
        await asyncio.sleep(0)
        with pytest.raises(Exception, match="shutting down"):
            await ask(LONG)
        await draining
        return await under_way

    result = asyncio.run(run())
    assert result.early == "" and result.content and idle(service)


def test_who_takes_too_long_answers_with_what_there_is():
    service = nano_service(drain_seconds=0.2, think_tokens=800)

    async def ask():
        async with service.job(LONG, "a") as job:
            return await answered(job)

    async def run():
        under_way = asyncio.ensure_future(ask())
        while not (service.jobs and service.jobs["a"].live.sampled > 5):
            await asyncio.sleep(0)
        await drain(service, tick=0.01)
        assert under_way.done()
        return await under_way

    result = asyncio.run(run())
    assert result.early == "asked" and result.content and idle(service)


def test_the_drain_ends_although_somebody_stays(monkeypatch: pytest.MonkeyPatch):
    service = nano_service(drain_seconds=0.05)
    monkeypatch.setattr(main, "ANSWER", 0.05)

    async def run():
        async with service.place(10):
            await asyncio.wait_for(drain(service, tick=0.01), 10)

    asyncio.run(run())


# -------------------------------------------------------------------------------------------------- the sweep


def test_connections_that_never_end_their_head_are_closed_and_no_others():
    async def app(scope, receive, send):
        await asyncio.sleep(0.8)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def talk(port: int, text: bytes, then: bytes = b"") -> tuple[bytes, float]:
        begun = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(text)
        got = b""
        if then:
            got = await reader.readuntil(b"ok")
            writer.write(then)
        with contextlib.suppress(TimeoutError):
            while piece := await asyncio.wait_for(reader.read(1000), 2.0):
                got += piece
        writer.close()
        return got, time.monotonic() - begun

    async def run():
        listener = bound("127.0.0.1", 0)
        port = listener.getsockname()[1]
        config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, timeout_keep_alive=30)
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        serving = asyncio.ensure_future(server.serve([listener]))
        sweeping = asyncio.ensure_future(sweep(server, seconds=0.5, tick=0.05))
        head = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
        silent, half, whole, second = await asyncio.gather(
            talk(port, b""), talk(port, head), talk(port, head + b"\r\n"), talk(port, head + b"\r\n", head)
        )
        server.should_exit = True
        sweeping.cancel()
        await asyncio.gather(serving, sweeping, return_exceptions=True)
        return silent, half, whole, second

    silent, half, whole, second = asyncio.run(run())
    assert silent[0] == half[0] == b"" and 0.4 < silent[1] < 1.9 and 0.4 < half[1] < 1.9
    assert whole[0].endswith(b"ok") and whole[1] >= 2.5  # its keep-alive has a timer of its own
    assert second[0].endswith(b"ok") and second[1] < 2.4  # the second head of that connection never ended


# ------------------------------------------------------------------------------------------------ the process


class Process(SimpleNamespace):
    url: str
    process: subprocess.Popen
    log: Path

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@contextlib.contextmanager
def served(tmp_path: Path, *options: str, beside: str = "", **variables: str) -> Iterator[Process]:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "mull", "serve", "--model", "nano", "--port", "0", *options]
    with log.open("w") as err:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=err, text=True, cwd=tmp_path, env={**os.environ, **variables}
        )
    assert process.stdout is not None
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
        at = f"serving nano{beside} at "
        assert line.startswith(f"{at}http://127.0.0.1:"), (line, log.read_text())
        yield Process(url=line.removeprefix(at).partition("/v1")[0], process=process, log=log)
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_process_serves_reloads_and_ends_when_all_have_their_answers(tmp_path: Path):
    settings = ["-o", "drain_seconds=0.5", "-o", "think_tokens=900", "-o", "answer_tokens=16", "-o", "max_sequences=64"]
    second = Path(shutil.copytree(shipped_folder(), tmp_path / "second"))
    two = ["--beside", "first=nano", "--beside", str(second), "-o", f"memory_bytes={64 << 20}", "-o", "watch_model=0.2"]
    with (
        served(tmp_path, *settings, *two, beside=", first and second") as server,
        httpx2.Client(base_url=server.url, timeout=120) as http,
    ):
        answer = http.post("/v1/chat/completions", json={"messages": list(TALK), "reasoning_effort": "low"})
        assert answer.status_code == 200 and answer.json()["system_fingerprint"].endswith("0")
        server.process.send_signal(signal.SIGHUP)
        for _ in range(600):
            if 'mull_model_policy_version{model="second"} 1.0' in http.get("/metrics").text:  # the last of three
                break
            time.sleep(0.1)
        again = {"messages": list(TALK), "reasoning_effort": "low", "model": "first"}
        answer = http.post("/v1/chat/completions", json=again)
        assert answer.status_code == 200 and answer.json()["system_fingerprint"].endswith("1")

        os.utime(second / "config.json")  # as if it had been written anew
        for _ in range(600):
            if 'mull_model_policy_version{model="second"} 2.0' in (told := http.get("/metrics").text):
                break
            time.sleep(0.1)
        assert 'mull_model_policy_version{model="nano"} 1.0' in told and "mull_reloads 4.0" in told
        found: dict[str, httpx2.Response] = {}

        def post(name: str, **more) -> threading.Thread:
            def send() -> None:
                with httpx2.Client(base_url=server.url, timeout=120) as mine:
                    found[name] = mine.post("/v1/chat/completions", json={**SLOW, **more})

            thread = threading.Thread(target=send)
            thread.start()
            return thread

        def until(*wanted: str) -> None:
            for _ in range(2400):
                text = http.get("/metrics").text
                if all(f"mull_{one}" in text for one in wanted):
                    return
                time.sleep(0.05)
            raise AssertionError(f"{wanted} did not come")

        threads = [post("stream", stream=True)]
        until("running 1.0")  # it has all 64 places
        threads += [post("whole")]
        until("running 1.0", "queue_depth 1.0", 'model_queue_depth{model="nano"} 1.0')
        server.process.send_signal(signal.SIGTERM)
        for _ in range(100):
            late = http.get("/health")
            if late.status_code == 503:
                break
            time.sleep(0.02)
        assert late.status_code == 503
        refused = http.post("/v1/chat/completions", json=SLOW)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "server_unavailable"
        for thread in threads:
            thread.join(120)
        assert server.process.wait(60) == 0
        assert found["whole"].status_code == 503  # it was waiting
        *told, done = events(found["stream"].text)
        assert done == "[DONE]" and told[-1]["choices"][0]["finish_reason"] and told[-1]["mull"]["early"] == "asked"
        assert "".join(one["choices"][0]["delta"].get("content") or "" for one in told)
        log = server.lines()
        assert [one["event"] for one in log if one["event"] != "request"] == [
            *("ready", "reload", "reload", "reload", "reload", "draining", "stopped")
        ]
        statuses = [one["status"] for one in log if one["event"] == "request"]
        assert statuses.count(200) >= 3 and statuses.count(503) >= 2 and QUESTION not in server.log.read_text()


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path):
    with served(tmp_path, "-o", "drain_seconds=600", "-o", "think_tokens=900", MULL_NATIVE="0") as server:
        assert "warning: native attention is switched off" in server.log.read_text()
        port = int(server.url.rpartition(":")[2])
        body = json.dumps(SLOW | {"stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            assert client.recv(100)
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 128 + signal.SIGTERM
