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
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from soak_client import Asked, Told, ask

from mull.evals import evidence
from mull.tasks.load import load_task

LEAK = ("memory_pages_used", "memory_pages_reserved", "branches_reserved", "sequences", "running", "queue_depth")
START, QUIET, STOP = 300.0, 180.0, 120.0  # seconds that the server may take to start, to fall quiet, to end


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
    too_long = threading.Timer(START, process.kill)
    too_long.start()
    try:
        line = process.stdout.readline()
        too_long.cancel()
        if "serving" not in line:
            raise SystemExit(f"the server did not start: {log.read_text()[-2000:]}")
        yield process, int(line.split("http://127.0.0.1:")[1].split("/")[0])
    finally:
        too_long.cancel()
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
