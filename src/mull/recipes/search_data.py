"""The graded trees of a search, kept whole: sampled once, and read by whatever learns from them.

    settings.json     what was searched, and how: traces of other settings are refused
    traces.jsonl      a line for each question: every span with its log-probabilities, scores and visits; the verdicts

Written in rounds like the chains of `reward_data`: a round is submitted whole to empty caches, so a resumed run
searches what the interrupted one would have, bit for bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mull.engine.local import LocalEngine
from mull.engine.sampler import derive_seed
from mull.errors import StopReason
from mull.evals.evaluate import Evaluation, Held, evaluate
from mull.ledger import Budget
from mull.recipes.reward_data import Told, claim, in_rounds
from mull.search.named import Named
from mull.search.sample import Decoding
from mull.search.sources import Opened, Source, opened
from mull.types import Cost, Question, Span, SpanKind, Trace, Verdict


def tools_of(source: Source) -> Opened:
    """Model, scorer and critic of a source without an endpoint: they serve any number of event loops."""

    async def load() -> Opened:
        async with opened(source) as tools:
            return tools

    return asyncio.run(load())


def searched(
    folder: Path, settings: dict[str, Any], held: Sequence[Held], tools: Opened, strategy: Named, budget: Budget,
    decoding: Decoding, seed: int, told: Told,
) -> Evaluation:  # fmt: skip
    """The graded traces of `strategy` on `held`, from the folder as far as they are there.

    UserError when the folder holds those of other settings, or the strategy needs a scorer that there is none of.
    """
    by_task = {h.task.name: tools.bind(strategy, h.task.canonical) for h in held}
    engine = tools.sampler
    assert isinstance(engine, LocalEngine)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder / "settings.json", settings)

    async def one(question: Question, *parts: Any, **options: Any) -> Trace:
        return await by_task[question.task](question, *parts, **options)

    async def one_round(start: int, part: Sequence[Held]) -> list[dict[str, Any]]:
        tools.forget()
        own = derive_seed(seed, start)
        done = await evaluate(part, engine, tools.chat, budget, one, decoding, own)
        return [row_of(trace) for trace in done.traces]

    rows = in_rounds(folder / "traces.jsonl", held, engine, one_round, told)
    return Evaluation(list(held), [trace_of(row) for row in rows[: len(held)]])


def row_of(trace: Trace) -> dict[str, Any]:
    """A trace as JSON can hold it. Its seconds are left out, which no two runs share. ValueError for a cut support,
    whose kept sets would be lost."""
    if any(span.kept is not None for span in trace.spans):
        raise ValueError("traces with top-p or top-k are not kept: their log-probabilities need the kept sets")
    return {
        "question": asdict(trace.question),
        "strategy": trace.strategy,
        "spans": [
            [
                s.kind.value,
                s.parent,
                s.tokens,
                s.logprobs,
                s.policy_version,
                s.temperature,
                None if s.stop is None else s.stop.value,
                s.score,
                s.visits,
                s.pruned,
            ]
            for s in trace.spans
        ],
        "leaves": trace.leaves,
        "answers": trace.answers,
        "verdicts": [_verdict(v) for v in trace.verdicts],
        "answer": trace.answer,
        "chosen": trace.chosen,
        "verdict": None if trace.verdict is None else _verdict(trace.verdict),
        "exhausted": trace.exhausted,
        "lost": trace.lost,
        "cost": asdict(replace(trace.cost, seconds=0.0)),
    }


def trace_of(row: dict[str, Any]) -> Trace:
    """The trace again: equal to the one that was written, but for its seconds."""
    spans = [
        Span(
            SpanKind(kind),
            tuple(tokens),
            parent,
            tuple(logprobs),
            version,
            temperature,
            None if stop is None else StopReason(stop),
            None,
            score,
            visits,
            pruned,
        )
        for kind, parent, tokens, logprobs, version, temperature, stop, score, visits, pruned in row["spans"]
    ]
    return Trace(
        Question(**row["question"]),
        row["strategy"],
        spans,
        list(row["leaves"]),
        list(row["answers"]),
        [Verdict(*v) for v in row["verdicts"]],
        row["answer"],
        row["chosen"],
        None if row["verdict"] is None else Verdict(*row["verdict"]),
        row["exhausted"],
        list(row["lost"]),
        Cost(**row["cost"]),
    )


def _verdict(v: Verdict) -> list[Any]:
    return [v.correct, v.answer, v.error]
