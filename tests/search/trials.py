"""What every strategy must bear, whatever it does: a wild sampler, every budget, losses, cancelling, other orders.

A strategy is given as a function of (sampler, scorer, budget, seed=0) that makes its coroutine.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable, Coroutine

import pytest

from mull.engine.scripted import ScriptedSampler
from mull.errors import SamplerLost, StopReason
from mull.ledger import Budget
from mull.search.tree import NO_ANSWER
from mull.types import SpanKind, Trace
from tests.search.tools import ScriptedScorer, assert_sound, chat, thought

Make = Callable[..., Coroutine[None, None, Trace]]


def words(tokens: tuple[int, ...]) -> dict[str, float] | None:
    """Thoughts of some lines, any of which may be the last; an answer follows wherever a thought is closed."""
    text = thought(tokens)
    if text.endswith("</think>"):
        return {"12": 0.6, "7": 0.4}
    if "</think>" in text:
        return None
    return {"</think>": 1.0} if text.count("\n") >= 4 else {"a\n": 0.4, "bbb\n": 0.3, "</think>": 0.25, "": 0.05}


def value(text: str) -> float:
    """A number between 0 and 1 that looks like chance."""
    return zlib.crc32(text.encode()) % 1000 / 1000


class Unordered(ScriptedSampler):
    """Answers late or soon, by the prefix: what is asked first need not arrive first."""

    async def sample(self, prefix_tokens, params, n=1):
        for _ in range(zlib.crc32(bytes(t % 256 for t in prefix_tokens)) % 7):
            await asyncio.sleep(0)
        return await super().sample(prefix_tokens, params, n)


def wild(kind=ScriptedSampler, **options) -> ScriptedSampler:
    return kind(words, chat(), **options)


def shown(trace: Trace) -> tuple:
    """All that a trace says, whatever came first, but for the clock."""
    steps = [
        (thought([t for s in trace.path(i) for t in s.tokens]), span.kind, span.score, span.pruned, span.visits)
        for i, span in enumerate(trace.spans)
    ]
    return sorted(steps, key=str), trace.answers, trace.answer, trace.lost, trace.exhausted


def bears_every_budget(make: Make, samples: int = 4, up_to: int = 60) -> None:
    """Spends no token too many, answers with what there is, and says when it was cut."""
    for tokens in (*range(up_to), 1000):
        sampler, budget = wild(), Budget(tokens=tokens, think_tokens=40, answer_tokens=4, samples=samples)
        trace = asyncio.run(make(sampler, ScriptedScorer(value), budget))
        assert_sound(trace, sampler, budget)
        assert (trace.answer == NO_ANSWER) == (tokens == 0), tokens
        assert tokens < 2 or trace.answer in ("12", "7", "1")
        assert trace.exhausted or tokens > samples
        cut = any(s.stop is StopReason.LENGTH for s in trace.spans if s.kind is SpanKind.SAMPLED)
        assert trace.exhausted or not cut, tokens
    budget = Budget(think_tokens=40, answer_tokens=4, samples=samples)
    full = asyncio.run(make(wild(), ScriptedScorer(value), budget))
    assert not full.exhausted and shown(full) == shown(trace)


def bears_losses(make: Make, samples: int = 4) -> None:
    """One request lost, or all from some request on; the scorer lost, or without numbers."""
    whole = wild()
    asyncio.run(make(whole, ScriptedScorer(value), Budget(samples=samples)))
    for k in range(len(whole.calls)):
        for failing in ({k}, set(range(k, 99))):
            sampler, budget = wild(fail=dict.fromkeys(failing, SamplerLost("gone"))), Budget(samples=samples)
            trace = asyncio.run(make(sampler, ScriptedScorer(value), budget))
            assert_sound(trace, sampler, budget)
            assert "the sampler was lost: gone" in trace.lost and not trace.exhausted
            assert trace.answer in ("12", "7") or (trace.answer == NO_ANSWER and not trace.leaves)


def bears_bad_scorers(make: Make, samples: int = 4) -> None:
    for failing in ({0}, {1}, set(range(99))):
        sampler, budget = wild(), Budget(samples=samples)
        scorer = ScriptedScorer(value, fail=dict.fromkeys(failing, SamplerLost("gone")))
        trace = asyncio.run(make(sampler, scorer, budget))
        assert_sound(trace, sampler, budget)
        assert trace.answer in ("12", "7") and (
            len(scorer.calls) <= min(failing) or any("gone" in t for t in trace.lost)
        )
    sampler, budget = wild(), Budget(samples=samples)
    trace = asyncio.run(make(sampler, ScriptedScorer(lambda text: math.nan), budget))
    assert_sound(trace, sampler, budget)
    assert trace.answer in ("12", "7") and trace.lost


def bears_cancelling(make: Make, samples: int = 4, least: int = 9) -> None:
    """At any moment: nothing is left running. It must have run for `least` turns of the loop to mean something."""

    async def cancelled(after: int) -> bool:
        sampler, scorer = wild(Unordered, yields=2), ScriptedScorer(value)
        task = asyncio.create_task(make(sampler, scorer, Budget(samples=samples)))
        for _ in range(after):
            await asyncio.sleep(0)
        if task.done():
            return False
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sampler.running == scorer.running == 0 and asyncio.all_tasks() == {asyncio.current_task()}
        return True

    after = 0
    while asyncio.run(cancelled(after)):
        after += 2
    assert after > least


def bears_other_orders(make: Make, samples: int = 4) -> None:
    """The seed decides, and nothing else."""

    def result(sampler: ScriptedSampler, seed: int) -> tuple:
        return shown(asyncio.run(make(sampler, ScriptedScorer(value), Budget(samples=samples), seed=seed)))

    one = result(wild(), 4)
    for other in (wild(), wild(yields=7), wild(Unordered), wild(Unordered, yields=3)):
        assert result(other, 4) == one
    assert any(result(wild(), seed) != one for seed in range(5, 12))
