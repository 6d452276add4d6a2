"""Is searching slower than sampling? Tokens a second of beam search and MCTS beside plain sampling, one run.

    python benchmarks/search_speed.py [--model DIR] [--json FILE] [--rounds 5] [--evidence]

64 questions are under way at any time, all of the same problems. Per round, in turn:

    sample                  16 independent chains per question: what search is compared with
    beam, mcts              N = 16, scored by the sampled tokens' own log-probabilities, which costs nothing: the search
    beam, mcts + scorer     scored by a value model of the policy's size, whose reading is on the clock, too
    beam, re-read           the first beam again on an engine whose prefix cache is off: what a server costs that reads
                            the prefix of every step again (without the time on the wire)

A token counts when the policy sampled it. Ratios are of one round, printed with their range over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.evals import evidence
from mull.evals.evaluate import evaluate, held_out
from mull.ledger import Budget
from mull.machine import describe
from mull.models import hf
from mull.models.nano import model_folder
from mull.models.value import ValueModel
from mull.scorers.confidence import Confidence
from mull.scorers.value import ValueScorer
from mull.search.named import named
from mull.tasks.load import load_task


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="nano")
    arguments.add_argument("--task", default="chain")
    arguments.add_argument("--problems", type=int, default=64)
    arguments.add_argument("--n", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--evidence", action="store_true", help="write docs/evidence/search-speed.json")
    a = arguments.parse_args()

    folder = model_folder(a.model)
    chat = Chat.load(folder)
    engine = LocalEngine(hf.load(folder), chat, max_sequences=1024)
    forgetful = LocalEngine(hf.load(folder), chat, max_sequences=1024)
    forgetful.pool.register = lambda *args, **options: None  # type: ignore[method-assign]  # nothing is ever found again
    task = load_task(a.task)
    held = held_out([task], (1, 2), a.problems, "test", 0)
    logprob = Confidence(engine.model, engine, chat)
    valued = ValueModel(hf.load(folder))  # untrained: only its cost matters here
    reader = ValueScorer(valued, LocalEngine(valued.body, chat, max_sequences=1024))
    systems = {
        "sample": ("sample", engine, None),
        "beam": ("beam", engine, logprob),
        "mcts": ("mcts", engine, logprob),
        "beam + scorer": ("beam", engine, reader),
        "mcts + scorer": ("mcts", engine, reader),
        "beam, re-read": ("beam", forgetful, logprob),
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    for round in range(a.rounds + 1):  # the first warms up
        for name, (text, sampler, scorer) in systems.items():
            strategy = named(text).bind(task.canonical, scorer)
            sampler.forget()
            logprob.forget()
            reader.forget()
            started = time.perf_counter()
            found = asyncio.run(evaluate(held, sampler, chat, Budget(samples=a.n), strategy, seed=round))
            seconds, cost = time.perf_counter() - started, found.cost
            if round:
                given = cost.prefill_tokens + cost.cached_tokens
                rows[name].append(
                    {
                        "tokens_per_s": cost.sampled_tokens / seconds,
                        "tokens": cost.sampled_tokens,
                        "read_by_scorer": cost.scorer_tokens,
                        "cached_share": cost.cached_tokens / given,
                        "read_again": cost.prefill_tokens / cost.sampled_tokens,
                    }
                )
    print(f"{'':24} tokens/s   of sampling         from cache  read per sampled")
    summary = {}
    for name, runs in rows.items():
        ratios = sorted(r["tokens_per_s"] / s["tokens_per_s"] for r, s in zip(runs, rows["sample"], strict=True))
        middle = ratios[len(ratios) // 2]
        speed = sorted(r["tokens_per_s"] for r in runs)[len(runs) // 2]
        cached, again = runs[0]["cached_share"], runs[0]["read_again"]
        print(
            f"{name:24} {speed:8.0f}   {middle:.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]   {cached:9.1%}  {again:8.2f}"
        )
        summary[name] = {"tokens_per_s": speed, "ratio": middle, "low": ratios[0], "high": ratios[-1], "runs": runs}
    if a.evidence:
        rows = []
        for name, found in summary.items():
            if name != "sample":
                about = {"n": a.rounds, "seeds": list(range(1, a.rounds + 1)), "unit": "x"}
                about["command"] = "python benchmarks/search_speed.py --evidence"
                claim = f"tokens/s of {name} over plain sampling's, 64 questions at once (range of rounds)"
                rows.append(
                    {"claim": claim, "value": found["ratio"], "low": found["low"], "high": found["high"], **about}
                )
                cached = found["runs"][0]["cached_share"]
                what = f"prefix tokens that {name} was served from the cache"
                rows.append({"claim": what, "value": cached, "low": None, "high": None, **about, "unit": "share"})
        speed = summary["sample"]["tokens_per_s"]
        what = {"claim": "plain sampling, 64 questions at once", "value": speed, "low": None, "high": None}
        evidence.write("search-speed", [{**what, **about, "unit": "tokens/s"}, *rows])
    if a.json:
        a.json.write_text(json.dumps({"systems": summary, "rounds": a.rounds, "n": a.n, **describe()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
