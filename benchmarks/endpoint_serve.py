"""A vote over `transformers serve` and over the local engine: the same model, problems, budget and code.

    make serve-env                             # once: .venv-serve with transformers' own server
    python benchmarks/endpoint_serve.py        # MULL_SERVE_VENV=DIR for another environment; --json FILE

Starts the server on the shipped nano model, votes with 4 chains on each of 8 held-out `chain` problems of level 1 at
once, then does the same with the engine in this process. Each does one round to warm up. Both sample from the same
distribution but draw other numbers, so their accuracies differ by chance: what is compared is the cost.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mull.chat import Chat
from mull.engine.endpoint import EndpointSampler
from mull.engine.local import LocalEngine
from mull.evals.evaluate import evaluate, held_out
from mull.ledger import Budget
from mull.models import hf
from mull.models.nano import shipped_folder
from mull.search.vote import vote
from mull.tasks.load import load_task

ROOT = Path(__file__).parent.parent


def server_program() -> Path | None:
    """`transformers` of the serving environment, None when it has not been made."""
    program = Path(os.environ.get("MULL_SERVE_VENV", ROOT / ".venv-serve")) / "bin" / "transformers"
    return program if program.is_file() else None


@contextmanager
def serving(program: Path, folder: Path, log: Path | None = None, wait: float = 120.0) -> Iterator[str]:
    """Runs `transformers serve FOLDER` and gives its base URL; the model's name there is the folder."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [str(program), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with open(log or os.devnull, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
        try:
            deadline = time.monotonic() + wait
            while not _healthy(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(command)} did not start (status {process.poll()})")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


async def votes(sampler: Any, chat: Chat, problems: int, samples: int, seed: int) -> dict[str, float]:
    """One round of votes on fresh problems: how many are right, of votes and of single chains; tokens, and how fast."""
    task = load_task("chain")
    held = held_out([task], task.levels[:1], problems, "test", seed)
    strategy = functools.partial(vote, canonical=task.canonical)
    began = time.perf_counter()
    result = await evaluate(held, sampler, chat, Budget(samples=samples, think_tokens=256), strategy, seed=seed)
    seconds = time.perf_counter() - began
    right = [trace.verdict is not None and trace.verdict.correct is True for trace in result.traces]
    return {
        "vote": sum(right) / len(right),
        "pass@1": result.accuracy.mean,
        "requests": problems * samples,
        "requests_per_s": problems * samples / seconds,
        "sampled_tokens": result.cost.sampled_tokens,
        "prefill_tokens": result.cost.prefill_tokens,
        "cached_tokens": result.cost.cached_tokens,
        "tokens_per_s": result.cost.sampled_tokens / seconds,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    program = server_program()
    if program is None:
        sys.exit("there is no .venv-serve/bin/transformers: run `make serve-env`, or set MULL_SERVE_VENV")
    torch.set_num_threads(1)
    folder = shipped_folder()
    chat = Chat.load(folder)

    async def twice(sampler: Any) -> dict[str, float]:
        await votes(sampler, chat, 2, 2, wanted.seed + 1)
        return await votes(sampler, chat, wanted.problems, wanted.samples, wanted.seed)

    async def over(url: str) -> dict[str, Any]:
        async with EndpointSampler(url, str(folder), chat, context=1024) as sampler:
            row = await twice(sampler)
            form = f"{sampler.form.route} with {sampler.form.fields.value} fields" if sampler.form else ""
            return {**row, "form": form, "retried": sampler.retried, "retokenised": sampler.retokenised}

    with serving(program, folder) as url:
        rows: dict[str, dict[str, Any]] = {"transformers serve": asyncio.run(over(url))}
    rows["LocalEngine"] = asyncio.run(twice(LocalEngine(hf.load(folder), chat)))
    for name, row in rows.items():
        print(f"\n{name}")
        for key, value in row.items():
            print(f"  {key:16} {value:.3f}" if isinstance(value, float) else f"  {key:16} {value}")
    if wanted.json:
        wanted.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
