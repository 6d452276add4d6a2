"""What every search must bear: small budgets, lost samplers and scorers, dead ends, being cancelled."""

from __future__ import annotations

import asyncio
import math
import zlib

import pytest

from mull.engine.scripted import ScriptedSampler
from mull.errors import SamplerLost
from mull.ledger import Budget
from mull.search.node import Steps
from mull.search.tree import NO_ANSWER
from mull.types import SpanKind, Trace
from tests.search.tools import QUESTION, ScriptedScorer, assert_sound, canonical, chat, run, sampler_of, thought

GONE = SamplerLost("gone away")


def lines(tokens: tuple[int, ...]) -> dict[str, float] | None:
    """Thoughts of up to three lines, any of which may be the last; one that was cut goes on like any other."""
    text = thought(tokens)
    if text.endswith("</think>"):
        return {"12": 0.6, "7": 0.4}
    if "</think>" in text:
        return None
    return {"</think>": 1.0} if text.count("\n") >= 3 else {"a\n": 0.4, "bbb\n": 0.4, "</think>": 0.2}


def chance(text: str) -> float:
    """A score that looks like chance, the same for the same text."""
    return zlib.crc32(text.encode()) % 1000 / 1000


class Unordered(ScriptedSampler):
    """Answers soon or late, by the prefix and the seed: what is asked first need not arrive first."""

    async def sample(self, prefix_tokens, params, n=1):
        for _ in range((sum(prefix_tokens) + params.seed) % 9):
            await asyncio.sleep(0)
        return await super().sample(prefix_tokens, params, n)


def wild(**options) -> ScriptedSampler:
    return ScriptedSampler(lines, chat(), **options)


def strategy_of(make):
    """What the functions below take, from one that makes a search of (sampler, scorer, budget, seed)."""

    async def strategy(question, sampler, chat, budget, *, scorer, canonical, seed=0, steps=None) -> Trace:
        return await make(sampler, scorer, budget, seed)

    return strategy


def search(strategy, sampler, budget, judge=chance, fail=(), scorer=None, **options) -> Trace:
    scorer = scorer or ScriptedScorer(judge, fail=dict.fromkeys(fail, GONE))
    trace = run(strategy, sampler, budget, scorer=scorer, canonical=canonical, **options)
    assert scorer.running == 0
    assert_sound(trace, sampler, budget)
    return trace


def paths_of(trace: Trace) -> list[tuple]:
    """Every sampled step by its path, with all that the search made of it, whatever came first."""
    found = []
    for i, span in enumerate(trace.spans):
        if span.kind is SpanKind.SAMPLED:
            path = tuple(t for s in trace.path(i) for t in s.tokens)
            found.append((path, -1.0 if span.score is None else span.score, span.visits, span.pruned))
    return sorted(found)


def keeps_budgets_to_the_token(strategy, n: int) -> None:
    full = search(strategy, wild(), Budget(samples=n, answer_tokens=4))
    assert not full.exhausted
    for tokens in range(full.cost.sampled_tokens + 3):
        budget = Budget(tokens=tokens, samples=n, answer_tokens=4)
        trace = search(strategy, wild(), budget, steps=Steps(max_tokens=5))
        assert (trace.answer == NO_ANSWER) == (tokens == 0), tokens
        assert tokens < 2 or trace.answer in ("12", "7", "1")
        assert trace.exhausted or tokens > 8, tokens
    ample = search(strategy, wild(), Budget(tokens=9 * full.cost.sampled_tokens + 999, samples=n, answer_tokens=4))
    assert paths_of(ample) == paths_of(full) and not ample.exhausted


def bears_a_lost_sampler(strategy, n: int) -> None:
    whole = wild()
    search(strategy, whole, Budget(samples=n))
    for k in range(len(whole.calls)):
        for failing in ({k}, range(k, 999)):  # one request, or all from there on
            trace = search(strategy, wild(fail=dict.fromkeys(failing, GONE)), Budget(samples=n))
            assert "the sampler was lost: gone away" in trace.lost and not trace.exhausted
            assert trace.answer in ("12", "7") or (trace.answer == NO_ANSWER and not trace.leaves)
            assert trace.answer != NO_ANSWER or k == 0 or len(failing) > 1


def bears_a_lost_scorer(strategy, n: int) -> None:
    for failing in ({0}, {1}, {2}, range(999)):
        scorer = ScriptedScorer(chance, fail=dict.fromkeys(failing, GONE))
        trace = search(strategy, wild(), Budget(samples=n), scorer=scorer)
        assert trace.answer in ("12", "7")
        assert any("lost: gone away" in what for what in trace.lost) == (len(scorer.calls) > min(failing))
    for judge in (lambda text: math.nan, lambda text: math.nan if "1" in text or "b" in text else 0.5):
        scorer = ScriptedScorer(judge)
        trace = search(strategy, wild(), Budget(samples=n), scorer=scorer)
        asked = any(math.isnan(judge(text)) for call in scorer.calls for text in call)
        assert trace.answer in ("12", "7") and bool(trace.lost) == asked


def bears_dead_ends(strategy) -> None:
    for script in ({"": {"stop": 1.0}}, {"": {"a\n": 1.0}, "a\n": {"stop": 1.0}}):
        sampler = sampler_of({**script, "</think>": {"5": 1.0}, "a\n</think>": {"5": 1.0}})
        trace = search(strategy, sampler, Budget(samples=4))
        assert trace.answer in ("5", NO_ANSWER) and not trace.exhausted


def ends_a_thought_without_end(strategy) -> None:
    sampler, budget = wild(), Budget(samples=4, think_tokens=7)

    def follows(tokens):
        _, closed, answer = thought(tokens).partition("</think>")
        return {"x" * 9: 1.0} if not closed else None if answer else {"9": 1.0}

    sampler._follows = follows
    trace = search(strategy, sampler, budget, steps=Steps(max_tokens=3))
    assert trace.answer == "9" and any(span.kind is SpanKind.FORCED for span in trace.spans)


def depends_on_the_seed_alone(strategy, n: int) -> None:
    one = search(strategy, wild(), Budget(samples=n), seed=4)
    assert any(paths_of(one) != paths_of(search(strategy, wild(), Budget(samples=n), seed=s)) for s in (5, 6, 7))
    for sampler in (wild(), wild(yields=7), Unordered(lines, chat()), Unordered(lines, chat(), yields=3)):
        other = search(strategy, sampler, Budget(samples=n), seed=4)
        assert paths_of(one) == paths_of(other) and one.answers == other.answers and one.answer == other.answer


def leaves_nothing_running(strategy, n: int) -> None:
    async def cancelled(after: int) -> bool:
        sampler, scorer = Unordered(lines, chat(), yields=2), ScriptedScorer(chance)
        work = strategy(QUESTION, sampler, chat(), Budget(samples=n), scorer=scorer, canonical=canonical)
        task = asyncio.create_task(work)
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
        after += 3
    assert after > 15
