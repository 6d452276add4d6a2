"""How often a seeded request gives other tokens in a crowd than alone, in float32 and in bf16.

python benchmarks/bf16_determinism.py [--model FOLDER] [--requests 128] [--tokens 64] [--no-write]

Prompts are the five tasks' own, each with a seed; they are asked one by one, then all at once. Matrix products of other
shapes may round differently, in bf16 by about 1/256; a draw near the border of two tokens then falls on the other side,
and what follows is another chain. Whether they do depends on the machine's kernels. Writes
docs/evidence/bf16-determinism.json.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import torch

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.engine.sampler import derive_seed
from mull.evals import evidence
from mull.evals.metrics import wilson
from mull.models import hf
from mull.models.nano import shipped_folder
from mull.tasks.load import load_task
from mull.types import Completion, SamplingParams

TASKS = ("addition", "chain", "countdown", "maze", "matrix")


def differing(folder: Path, dtype: torch.dtype, requests: int, tokens: int, seed: int) -> tuple[int, float, int]:
    """(requests that differ, largest gap of log-probabilities before they do, tokens compared)."""
    chat, model = Chat.load(folder), hf.load(folder, dtype=dtype)
    work = []
    for i in range(requests):
        task = load_task(TASKS[i % len(TASKS)])
        [problem] = task.problems(task.levels[0], "test", derive_seed(seed, i), 1)
        work.append((chat.prompt(problem.question.text), SamplingParams(tokens, seed=derive_seed(seed, i, 1))))

    async def crowd() -> list[Completion]:
        engine = LocalEngine(model, chat, max_sequences=requests)
        return [c for [c] in await asyncio.gather(*(engine.sample(*job) for job in work))]

    alone = LocalEngine(model, chat)
    singles = [asyncio.run(alone.sample(*job))[0] for job in work]
    different, gap, compared = 0, 0.0, 0
    for one, other in zip(singles, asyncio.run(crowd()), strict=True):
        same = next(
            (t for t, pair in enumerate(zip(one.tokens, other.tokens, strict=False)) if pair[0] != pair[1]), None
        )
        different += one.tokens != other.tokens
        pairs = list(zip(one.logprobs[:same], other.logprobs[:same], strict=False))
        gap = max([gap, *(abs(a - b) for a, b in pairs)])
        compared += len(pairs)
    return different, gap, compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    rows = []
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bf16")):
        n = options.requests
        different, gap, compared = differing(options.model or shipped_folder(), dtype, n, options.tokens, options.seed)
        low, high = wilson(different, n)
        print(f"{name}: {different} of {n} requests differ; largest gap {gap:.2g} over {compared} equal tokens")
        common = {"seeds": [options.seed], "command": " ".join(["python", *sys.argv])}
        claim = f"seeded requests of up to {options.tokens} tokens that differ alone and among {n}, {name}"
        rows.append(
            {"claim": claim, "value": different / n, "low": low, "high": high, "n": n, "unit": "share", **common}
        )
        claim = f"largest difference of a token's log-probability, alone and among {n}, {name}"
        rows.append(
            {"claim": claim, "value": gap, "low": None, "high": None, "n": max(compared, 1), "unit": "nats"} | common
        )
    if not options.no_write:
        print(evidence.write("bf16-determinism", rows))


if __name__ == "__main__":
    main()
