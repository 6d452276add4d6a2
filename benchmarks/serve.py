"""`mull serve` beside `transformers serve --continuous-batching`: first token, answer and tokens/s, streamed.

    make serve-env                             # once: .venv-serve with transformers' own server
    python benchmarks/serve.py [--model DIR] [--clients 1,16,64] [--rounds 7] [--evidence] [--json FILE]

Each client asks for one streamed chat completion after another over one kept connection, at temperature 1 from the
whole distribution, on held-out `countdown` problems of level 4: about 100 tokens, and 256 at most. Each problem is
asked once of each server, so that none is in a cache from before.

mull thinks in one chain (effort low) and shows its raw thought, so both stream every token, the thought as
`reasoning_content`. A thought that is still going on near the limit is closed by mull, which answers within the same
256 tokens; transformers stops there. Tokens are those that were sampled, by the `usage` of each stream, and are held
against the text that came. Both compute in float32 on one thread. transformers' memory is bounded to what 64 requests
need, twice over; by default it takes most of the machine's.

The servers take turns, round by round and in changing order, and the one that is not measured is stopped (SIGSTOP).
The first round warms up. Figures are medians over the rounds of each round's median, ratios are of the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from endpoint_serve import server_program

from mull.chat import Chat
from mull.evals import evidence
from mull.machine import describe
from mull.models.nano import model_folder
from mull.progress import Progress
from mull.tasks.load import load_task

LIMIT, ANSWER = 256, 16  # tokens of a completion, and those of them that mull keeps for its answer
TASK, LEVEL = "countdown", 4
OURS, THEIRS = "mull serve", "transformers serve"
BOUNDS = ["--cb-num-blocks", "1280", "--cb-max-batch-tokens", "512"]  # of 32 tokens
FIGURES = {"first token": "s", "answer": "s", "tokens/s": "tokens/s"}
_TEXT = re.compile(rb'"(?:reasoning_content|content)": ?"(?!")')


@dataclass
class Server:
    """A process that serves at a port, and what a request to it says besides its prompt."""

    name: str
    command: list[str]
    port: int
    body: dict[str, Any]
    process: subprocess.Popen | None = None

    @contextlib.contextmanager
    def running(self, log: Path, wait: float = 180.0) -> Iterator[Server]:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        with log.open("w") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=out, env=env, start_new_session=True)
        try:
            deadline = time.monotonic() + wait
            while not _healthy(f"http://127.0.0.1:{self.port}/health"):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{' '.join(self.command)} did not start: see {log}")
                time.sleep(0.2)
            yield self
        finally:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.send(signal.SIGKILL)
                self.process.wait()

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def servers(folder: Path, chat: Chat, peer: Path, profile: Path | None = None) -> list[Server]:
    ours, theirs = free_port(), free_port()
    python = [sys.executable, *(["-m", "cProfile", "-o", str(profile)] if profile else [])]
    settings = {"threads": 1, "answer_tokens": ANSWER, "think_tokens": LIMIT, "thoughts": "shown", "page": "false"}
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    whole = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": LIMIT}
    whole |= {"eos_token_id": sorted(chat.end_ids), "pad_token_id": chat.turn_end}
    return [
        Server(
            OURS,
            [*python, "-m", "mull", "serve", "--model", str(folder), "--port", str(ours), *options],
            ours,
            {"reasoning_effort": "low"},
        ),
        Server(
            THEIRS,
            [
                str(peer),
                "serve",
                str(folder),
                "--continuous-batching",
                "--device",
                "cpu",
                "--port",
                str(theirs),
                *BOUNDS,
            ],
            theirs,
            {"model": str(folder), "generation_config": json.dumps(whole)},
        ),
    ]


# ---------------------------------------------------------------------------------------------------- load


@dataclass
class Reply:
    """One stream as it came. Seconds since the request was sent."""

    first: float  # of what was sampled
    last: float
    tokens: int  # by the server's own count
    text_tokens: int  # of the text that came


Pieces = list[tuple[float, bytes]]  # (seconds since the request was sent, what was read)


async def client(server: Server, questions: Iterator[str]) -> list[tuple[str, Pieces]]:
    """One client: its questions one after another, on one connection. What it reads is understood afterwards."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22)
    raw = []
    for question in questions:
        asked = {"messages": [{"role": "user", "content": question}], "stream": True, "temperature": 1.0, "top_p": 1.0}
        asked |= {"max_completion_tokens": LIMIT, "stream_options": {"include_usage": True}, **server.body}
        body = json.dumps(asked).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        began = time.perf_counter()
        writer.write(head.encode() + body)
        pieces: Pieces = []
        tail = b""
        while not tail.endswith(b"\r\n0\r\n\r\n"):
            piece = await reader.read(1 << 16)
            if not piece:
                break
            pieces.append((time.perf_counter() - began, piece))
            tail = (tail + piece)[-16:]
        raw.append((question, pieces))
    writer.close()
    return raw


def reply(server: Server, question: str, pieces: Pieces, chat: Chat) -> Reply:
    whole = b"".join(piece for _, piece in pieces)
    head, _, body = whole.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        sys.exit(f"{server.name} refused a request: {whole[:600].decode(errors='replace')}")
    texts, usage = list[str](), None
    for line in _unchunked(body).decode().split("\n"):
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line[6:])
        usage = event.get("usage") or usage
        for delta in (choice.get("delta", {}) for choice in event.get("choices", ())):
            texts += [text for key in ("reasoning_content", "content") if (text := delta.get(key))]
    places = [found.start() for found in _TEXT.finditer(whole)]
    echo = (
        question in texts[0] if texts else 0
    )  # transformers gives the prompt back at first, before it has done a thing
    if usage is None or len(places) != len(texts) or len(texts) <= echo:
        sys.exit(f"{server.name} ended a stream without its text or usage: {whole[-600:].decode(errors='replace')}")
    sampled, read, at = "".join(texts[echo:]).removesuffix(chat.decode([chat.turn_end])), 0, 0
    while read <= places[echo]:
        read, at = read + len(pieces[at][1]), at + 1
    return Reply(pieces[at - 1][0], pieces[-1][0], usage["completion_tokens"], len(chat.encode(sampled)))


def _unchunked(body: bytes) -> bytes:
    """What was sent in chunks (RFC 9112, 7.1)."""
    out, at = [], 0
    while at < len(body):
        end = body.index(b"\r\n", at)
        size = int(body[at:end].partition(b";")[0], 16)
        out.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
        if not size:
            break
    return b"".join(out)


def measure(server: Server, clients: int, questions: Sequence[str], chat: Chat) -> dict[str, float]:
    """One round of one server: every client asks its share of the questions."""

    async def load() -> tuple[list[tuple[str, Pieces]], float]:
        began = time.perf_counter()
        left = iter(questions)  # whoever is free takes the next
        found = await asyncio.gather(*[client(server, left) for _ in range(clients)])
        return [one for some in found for one in some], time.perf_counter() - began

    server.send(signal.SIGCONT)
    try:
        raw, seconds = asyncio.run(load())
    finally:
        server.send(signal.SIGSTOP)
    replies = [reply(server, question, pieces, chat) for question, pieces in raw]
    tokens = sum(r.tokens for r in replies)
    return {
        "first token": statistics.median(r.first for r in replies),
        "answer": statistics.median(r.last for r in replies),
        "tokens/s": tokens / seconds,
        "tokens": tokens / len(replies),
        "text": sum(r.text_tokens for r in replies) / len(replies),
        "requests": len(replies),
    }


# ------------------------------------------------------------------------------------------------- results


Rounds = dict[tuple[str, int], list[dict[str, float]]]  # by server and clients


def ratios(rounds: Rounds, clients: int, figure: str) -> list[float]:
    """How many times as good as the peer mull is in each round: more tokens/s, or less time."""
    pairs = zip(rounds[OURS, clients], rounds[THEIRS, clients], strict=True)
    return sorted(o[figure] / t[figure] if figure == "tokens/s" else t[figure] / o[figure] for o, t in pairs)


def show(rounds: Rounds, counts: Sequence[int]) -> None:
    for clients in counts:
        print(f"\n{clients} {'client' if clients == 1 else 'clients'}")
        for name in (OURS, THEIRS):
            found = rounds[name, clients]
            middle = {key: statistics.median(r[key] for r in found) for key in found[0]}
            print(
                f"  {name:20} first token {middle['first token']:7.3f} s   answer {middle['answer']:7.3f} s "
                f"  {middle['tokens/s']:8.0f} tokens/s   {middle['tokens']:5.1f} tokens, {middle['text']:5.1f} in text"
            )
        for figure in FIGURES:
            all_of_them = ratios(rounds, clients, figure)
            low, middle, high = all_of_them[0], statistics.median(all_of_them), all_of_them[-1]
            print(f"  {figure:12} {middle:5.2f} times as good [{low:.2f}, {high:.2f}]")
        lengths = [statistics.median(r["tokens"] for r in rounds[name, clients]) for name in (OURS, THEIRS)]
        if abs(lengths[0] / lengths[1] - 1) > 0.1:
            print("  warning: the lengths differ by more than a tenth, so times to the answer are of unequal work")
        for name in (OURS, THEIRS):
            if any(not 0 <= r["tokens"] - r["text"] <= 4 for r in rounds[name, clients]):
                print(f"  warning: {name} counts other tokens than came as text")


def write_evidence(rounds: Rounds, counts: Sequence[int], command: str) -> None:
    n = len(rounds[OURS, counts[0]])
    shared = {"n": n, "seeds": [0], "command": command}
    table, compared = [], []
    for clients in counts:
        group = f"{clients} {'client' if clients == 1 else 'clients'}"
        for name in (OURS, THEIRS):
            for figure, unit in {**FIGURES, "tokens": "tokens"}.items():
                value = statistics.median(r[figure] for r in rounds[name, clients])
                claim = f"{group} / {name} / {'an answer has' if figure == 'tokens' else figure}"
                table.append({"claim": claim, "value": value, "low": None, "high": None, "unit": unit, **shared})
        for figure in FIGURES:
            found = ratios(rounds, clients, figure)
            how = "as many tokens/s" if figure == "tokens/s" else f"as soon at the {figure}"
            row = {"value": statistics.median(found), "low": found[0], "high": found[-1], "unit": "x", **shared}
            compared.append({"claim": f"{group}: {how} as transformers serve (range of rounds)", **row})
    print(evidence.write("serve", table))
    print(evidence.write("serve-ratios", compared))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--clients", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=4, help="of each client in a round; of a single one four times")
    parser.add_argument("--logs", type=Path, default=Path("/tmp"), help="where the servers' logs go")
    parser.add_argument("--profile", type=Path, help="write mull's cProfile there; its figures then mean nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--evidence", action="store_true", help="write docs/evidence/serve.json and serve-ratios.json")
    a = parser.parse_args()
    peer = server_program()
    if peer is None:
        sys.exit("there is no .venv-serve/bin/transformers: run `make serve-env`, or set MULL_SERVE_VENV")
    folder, counts = model_folder(a.model), [int(c) for c in a.clients.split(",")]
    chat = Chat.load(folder)
    sizes = {clients: clients * a.requests * (4 if clients == 1 else 1) for clients in counts}
    questions = (problem.question.text for problem in load_task(TASK).stream(LEVEL, "test", 0))
    rounds: Rounds = {(name, clients): [] for name in (OURS, THEIRS) for clients in counts}
    total = (a.rounds + 1) * len(counts) * 2
    with contextlib.ExitStack() as stack:
        both = []
        for server in servers(folder, chat, peer, a.profile):
            log = a.logs / f"{server.name.replace(' ', '-')}.log"
            both.append(stack.enter_context(server.running(log)))
            server.send(signal.SIGSTOP)
        with Progress("serve", total, file=sys.stderr) as progress:
            done = 0
            for number in range(a.rounds + 1):  # the first warms up
                for clients in counts:
                    asked = list(islice(questions, sizes[clients]))
                    for server in both if number % 2 else both[::-1]:
                        found = measure(server, clients, asked, chat)
                        if number:
                            rounds[server.name, clients].append(found)
                        done += 1
                        progress.update(done, server=server.name, clients=clients, tokens_per_s=found["tokens/s"])
    show(rounds, counts)
    if a.evidence:
        given = f" --rounds {a.rounds}" * (a.rounds != 7) + f" --model {a.model}" * (a.model != "nano")
        write_evidence(rounds, counts, f"python benchmarks/serve.py{given} --evidence")
    if a.json:
        told = {f"{name}, {clients}": found for (name, clients), found in rounds.items()}
        a.json.write_text(json.dumps({"rounds": told, **describe()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
