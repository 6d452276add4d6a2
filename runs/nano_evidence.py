"""Measures pass@1 of a base model on every task and level; writes docs/evidence/nano-base.json.

python runs/nano_evidence.py [MODEL FOLDER]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.evals import evidence
from mull.evals.evaluate import evaluate, held_out
from mull.ledger import Budget
from mull.models import hf
from mull.models.nano import shipped_folder
from mull.tasks.load import PUZZLES, load_task

PROBLEMS, SAMPLES, SEED, LEVELS = 300, 8, 0, 3


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else shipped_folder()
    chat = Chat.load(folder)
    engine = LocalEngine(hf.load(folder), chat)
    budget = Budget(think_tokens=480, answer_tokens=32, samples=SAMPLES)
    rows = []
    for name in PUZZLES:
        task = load_task(name)
        easy = task.levels.index(task.easy_level)
        for level in task.levels[easy : easy + LEVELS]:
            held = held_out([task], [level], PROBLEMS, "test", SEED)
            found = asyncio.run(evaluate(held, engine, chat, budget, seed=SEED)).accuracy
            print(f"{name} level {level}: {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]", flush=True)
            easy_one = " (the easy level)" if level == task.easy_level else ""
            rows.append(
                {
                    "claim": f"nano-base, {name}, level {level}{easy_one}: pass@1",
                    "value": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "n": found.n,
                    "seeds": [SEED],
                    "unit": "share",
                    "command": "python runs/nano_evidence.py",
                }
            )
    evidence.write("nano-base", rows)


if __name__ == "__main__":
    main()
