"""The service under load: many streaming clients, a third of whom hang up, and then SIGTERM while they are served.

    python benchmarks/soak.py                                # 200 clients for 300 s on the shipped nano model
    python benchmarks/soak.py --clients 20 --seconds 10
    python benchmarks/soak.py --evidence                     # also writes docs/evidence/soak.json

Three parts. Load: each client asks one thing after another, over chat and responses, at all efforts; a third of the
requests are given up at random: before the answer begins, at a random point of its stream, or while they wait. Quiet:
once nobody asks any more, what the engine holds must be what it held before the load. Stop: all clients ask once more,
and SIGTERM comes in the middle; what is under way must be answered or refused cleanly, and the exit code be 0.

The exit code is 1 when an answer was empty or never ended, an error had not OpenAI's shape, or memory stayed in use.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from mull.evals import evidence
from mull.tasks.load import load_task

EFFORTS = ("none", "low", "medium", "high")
LEAK = ("memory_pages_used", "memory_pages_reserved", "branches_reserved", "sequences", "running", "queue_depth")
START, QUIET, STOP = 300.0, 180.0, 120.0  # seconds that the server may take to start, to fall quiet, to end
PATIENCE = 600.0  # seconds that a client waits for the next piece of an answer
Outcome = str  # answered, refused, left, gone (the server had ended), empty, misshapen, broken


@dataclass
class Told:
    """What became of the requests of one part."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # seconds to the first token that is passed on
    whole: list[float] = field(default_factory=list)  # seconds to the end of an answer
    tokens: int = 0  # of answers, thoughts and all

    def note(self, outcome: Outcome, fault: str = "") -> None:
        self.outcomes[outcome] += 1
        if fault and len(self.faults) < 20:
            self.faults.append(f"{outcome}: {fault}")

    @property
    def bad(self) -> int:
        return sum(self.outcomes[kind] for kind in ("empty", "misshapen", "broken"))


class Left(Exception):
    """The client has hung up, as it was meant to."""


@dataclass
class Asked:
    """One request, drawn at random."""

    path: str
    body: dict[str, Any]
    leave_after: int | None  # pieces after which the client hangs up; None: it stays
    leave_in: float | None  # seconds, likewise

    @classmethod
    def draw(cls, rng: random.Random, questions: list[str], leaving: float) -> Asked:
        effort, question, seed = rng.choice(EFFORTS), rng.choice(questions), rng.randrange(1 << 30)
        if rng.random() < 0.5:
            path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": question}], "seed": seed}
            body |= {"reasoning_effort": effort, "stream_options": {"include_usage": True}}
        else:
            path, body = "/v1/responses", {"input": question, "store": rng.random() < 0.3}
            body |= {"reasoning": {"effort": effort, "summary": "auto"}}
        after = within = None
        if rng.random() < leaving:
            way = rng.randrange(3)
            after = 0 if way == 0 else rng.randrange(1, 12) if way == 1 else None
            within = rng.uniform(0.0, 3.0) if way == 2 else None
        return cls(path, {**body, "stream": True}, after, within)


# ------------------------------------------------------------------------------------------------- one request


async def ask(port: int, asked: Asked, told: Told) -> float:
    """Sends it and notes what became of it; returns the seconds after which the server wants to be asked again."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(asked.leave_in):
            return await _ask(port, asked, told, began)
    except (Left, TimeoutError):
        told.note("left")
    except ConnectionRefusedError:
        told.note("gone")
    except (OSError, asyncio.IncompleteReadError, ValueError) as problem:
        told.note("broken", f"{asked.path} after {time.monotonic() - began:.1f} s: {type(problem).__name__} {problem}")
    return 0.0


async def _ask(port: int, asked: Asked, told: Told, began: float) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = json.dumps(asked.body).encode()
        head = f"POST {asked.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        if asked.leave_after == 0:
            raise Left
        status, headers = await _head(reader)
        if status != 200:
            length = int(headers.get("content-length", 0))
            return _refused(told, status, await reader.readexactly(length), headers)
        answer, pieces = Answer(), 0
        async for event in _events(reader):
            answer.read(event)
            if answer.text and answer.first is None:
                answer.first = time.monotonic() - began
            pieces += 1
            if asked.leave_after is not None and pieces >= asked.leave_after:
                raise Left
        return answer.judge(told, time.monotonic() - began)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _refused(told: Told, status: int, body: bytes, headers: dict[str, str]) -> float:
    try:
        error = json.loads(body)["error"]
        shaped = {"message", "type", "param", "code"} == set(error) and bool(error["message"])
    except (ValueError, KeyError, TypeError):
        shaped = False
    wait = headers.get("retry-after", "")
    if shaped and status in (429, 503) and wait.isdigit():
        told.note("refused")
        return float(wait)
    told.note("misshapen", f"status {status}, Retry-After {wait!r}, {body[:200]!r}")
    return 1.0


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await _within(reader.readuntil(b"\r\n\r\n"))).decode().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines if line)
    return int(first.split()[1]), {key.lower(): value for key, value in pairs}


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """The data of a chunked stream's events; comments are left out."""
    text = b""
    while size := int(await _within(reader.readuntil(b"\r\n")), 16):
        text += (await _within(reader.readexactly(size + 2)))[:-2]
        *blocks, text = text.split(b"\n\n")
        for block in blocks:
            for line in block.decode().split("\n"):
                if line.startswith("data: "):
                    yield line[6:]
    if text:
        raise ValueError(f"the stream ended inside of an event: {text[:80]!r}")


async def _within(reading: Any) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await reading


class Answer:
    """An answer as it comes, by either API."""

    def __init__(self) -> None:
        self.text, self.finish, self.tokens, self.done = "", "", 0, False
        self.first: float | None = None
        self.error: Any = None

    def read(self, data: str) -> None:
        if data == "[DONE]":
            self.done = True
            return
        event = json.loads(data)
        kind = event.get("type", "")
        if "error" in event and not kind:
            self.error = event["error"]
        elif kind == "error":
            self.error = {key: event.get(key) for key in ("message", "type", "param", "code")}
            self.done = True
        elif kind == "response.failed":
            self.error, self.done = event["response"]["error"], True
        elif kind == "response.output_text.delta":
            self.text += event["delta"]
        elif kind in ("response.completed", "response.incomplete"):
            self.done, self.finish = True, kind
            self.tokens = event["response"]["usage"]["output_tokens"]
        elif "choices" in event:
            for choice in event["choices"]:
                self.text += choice["delta"].get("content") or ""
                self.finish = choice["finish_reason"] or self.finish
            self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)

    def judge(self, told: Told, seconds: float) -> float:
        if self.error is not None:
            code = self.error.get("code") if isinstance(self.error, dict) else None
            if code in ("rate_limit_exceeded", "server_unavailable") and self.error.get("message") and self.done:
                told.note("refused")
                return 1.0
            told.note("misshapen", f"in the stream: {str(self.error)[:200]}")
        elif not self.done or not self.finish:
            told.note("broken", f"the stream ended without its end after {seconds:.1f} s")
        elif not self.text.strip():
            told.note("empty", f"finish {self.finish}")
        else:
            told.note("answered")
            told.tokens += self.tokens
            told.whole.append(seconds)
            if self.first is not None:
                told.first.append(self.first)
        return 0.0


# --------------------------------------------------------------------------------------------------- the server


async def metrics(port: int) -> dict[str, float]:
    """What `/metrics` says now, sums over labels."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        text = (await asyncio.wait_for(reader.read(-1), 60)).decode()
    finally:
        writer.close()
    found: Counter[str] = Counter()
    for line in text.split("\r\n\r\n", 1)[1].split("\n"):
        if line.startswith("mull_"):
            name, _, value = line.rpartition(" ")
            found[name.partition("{")[0].removeprefix("mull_")] += float(value)  # type: ignore[assignment]
    return dict(found)


def resident(pid: int) -> float:
    """MiB of memory that a process has; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)


@contextlib.contextmanager
def server(options: list[str], log: Path):
    """(process, port) of a server that is ready."""
    command = [sys.executable, "-m", "mull", "serve", "--port", "0", *options]
    with log.open("w") as err:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if "serving" not in line:
            raise SystemExit(f"the server did not start: {log.read_text()[-2000:]}")
        yield process, int(line.split("http://127.0.0.1:")[1].split("/")[0])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --------------------------------------------------------------------------------------------------- the parts


@dataclass
class Soak:
    load: Told = field(default_factory=Told)
    stop: Told = field(default_factory=Told)
    before: dict[str, float] = field(default_factory=dict)
    quiet: dict[str, float] = field(default_factory=dict)
    most: Counter[str] = field(default_factory=Counter)  # of each gauge during the load
    resident: tuple[float, float] = (0.0, 0.0)  # MiB before the load and after it
    seconds: float = 0.0  # of the load
    stopping: float = 0.0  # seconds from SIGTERM to the end
    code: int | None = None

    @property
    def kept(self) -> dict[str, float]:
        """What stayed in use."""
        return {name: self.quiet[name] for name in LEAK if self.quiet.get(name, 0) > self.before.get(name, 0)}


async def soak(process: subprocess.Popen, port: int, args: argparse.Namespace) -> Soak:
    made, rng = Soak(), random.Random(args.seed)
    stream = load_task("chain").stream
    questions = [p.question.text for level in (1, 2, 3) for p in islice(stream(level, "test", 0), 40)]
    told = Told()
    await ask(port, Asked.draw(rng, questions, 0.0), told)  # what is loaded at the first request is no leak
    made.before, before = await metrics(port), resident(process.pid)
    began = time.monotonic()
    end = began + args.seconds

    async def client(rng: random.Random) -> None:
        await asyncio.sleep(rng.uniform(0, 1))
        while time.monotonic() < end:
            wait = await ask(port, Asked.draw(rng, questions, args.leaving), made.load)
            await asyncio.sleep(min(wait, 5.0) + rng.uniform(0, 0.2))

    async def look() -> None:
        while True:
            for name, value in (await metrics(port)).items():
                made.most[name] = max(made.most[name], value)  # type: ignore[assignment]
            await asyncio.sleep(min(2.0, args.seconds / 5))

    looking = asyncio.ensure_future(look())
    await asyncio.gather(*[client(random.Random(rng.random())) for _ in range(args.clients)])
    made.seconds = time.monotonic() - began
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)

    quiet = time.monotonic() + QUIET
    while True:
        made.quiet = await metrics(port)
        if not made.kept or time.monotonic() > quiet:
            break
        await asyncio.sleep(0.5)
    made.resident = before, resident(process.pid)

    last = [asyncio.ensure_future(ask(port, Asked.draw(rng, questions, 0.0), made.stop)) for _ in range(args.clients)]
    await asyncio.sleep(args.stop_after)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < STOP:
        last.append(asyncio.ensure_future(ask(port, Asked.draw(rng, questions, 0.0), made.stop)))  # 503, or gone
        await asyncio.sleep(0.25)
    made.code, made.stopping = process.poll(), time.monotonic() - began
    await asyncio.gather(*last)
    return made


# --------------------------------------------------------------------------------------------------- telling


def rows(made: Soak, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The evidence: claims "part / what / column"."""
    command = shlex.join(
        ["python", "benchmarks/soak.py", "--clients", str(args.clients), "--seconds", str(args.seconds)]
    )
    out: list[dict[str, Any]] = []

    def row(claim: str, value: float, n: int, unit: str = "") -> None:
        common = {"low": None, "high": None, "seeds": [args.seed], "command": command}
        out.append({"claim": claim, "value": value, "n": max(1, n), "unit": unit or "requests", **common})

    words = {
        "answered": "answered",
        "refused": "refused cleanly (429, 503)",
        "left": "given up by the client",
        "gone": "came after the end of the server",
        "empty": "empty answers",
        "misshapen": "errors of another shape",
        "broken": "broken off",
    }
    title = f"{args.clients} clients"
    parts = {f"{args.seconds:g} s of load": made.load, "SIGTERM among them": made.stop}
    for outcome, word in words.items():
        for part, told in parts.items():
            row(f"{title} / {word} / {part}", told.outcomes[outcome], told.outcomes.total())
    n = made.load.outcomes.total()
    for name, word in {
        "memory_pages_used": "pages that sequences hold",
        "memory_pages_reserved": "pages reserved",
        "sequences": "sequences in the engine",
        "queue_depth": "requests that wait",
    }.items():
        row(f"what is in use / {word} / before", made.before.get(name, 0), n, "count")
        row(f"what is in use / {word} / at most", made.most[name], n, "count")
        row(f"what is in use / {word} / after", made.quiet.get(name, 0), n, "count")
    for name, seconds in (("first token of the answer", made.load.first), ("whole answer", made.load.whole)):
        if len(seconds) > 1:
            row(f"waiting / {name} / median", median(seconds), len(seconds), "s")
            row(f"waiting / {name} / 95 of 100", quantiles(seconds, n=20)[-1], len(seconds), "s")
    row("waiting / the end after SIGTERM / median", made.stopping, 1, "s")
    return out


def show(made: Soak) -> None:
    for title, told in (("load", made.load), ("stop", made.stop)):
        print(f"{title}: {', '.join(f'{n} {what}' for what, n in told.outcomes.most_common())}")
        for fault in told.faults:
            print(f"    {fault}")
    if made.load.whole:
        first, whole = median(made.load.first or [0]), median(made.load.whole)
        rate = made.load.tokens / made.seconds
        print(f"answers: first token after {first:.2f} s, whole after {whole:.2f} s (medians), {rate:.0f} tokens/s")
    print(
        "in use: "
        + ", ".join(f"{k} {made.before.get(k, 0):g} -> {made.most[k]:g} -> {made.quiet.get(k, 0):g}" for k in LEAK)
    )
    print(f"resident: {made.resident[0]:.0f} -> {made.resident[1]:.0f} MiB")
    print(f"SIGTERM: exit code {made.code} after {made.stopping:.1f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--leaving", type=float, default=1 / 3, help="share of the requests that are given up")
    parser.add_argument("--stop-after", type=float, default=1.0, help="seconds into the last part that SIGTERM comes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evidence", action="store_true", help="write docs/evidence/soak.json")
    parser.add_argument("options", nargs="*", help="more arguments of mull serve, behind --")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        server(["--model", "nano", *args.options], Path(folder) / "log") as (
            process,
            port,
        ),
    ):
        made = asyncio.run(soak(process, port, args))
        troubles = [line for line in (Path(folder) / "log").read_text().splitlines() if '"level": "error"' in line]
    show(made)
    for line in troubles[:5]:
        print(f"the server's log: {line[:1000]}")
    if args.evidence:
        print(f"evidence: {evidence.write('soak', rows(made, args))}")
    good = made.load.bad + made.stop.bad == 0 and not made.kept and made.code == 0 and not troubles
    print("passed" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
