"""Banned token sequences in the engine: never sampled, and what is left has the probabilities that it says."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
import pytest

from mull.engine.scripted import ScriptedSampler
from mull.errors import UserError
from mull.types import SamplingParams
from tests.engine.small import ask, crowd, engine, idle, model, prompts, worst_gap


def contains(tokens, sequence) -> bool:
    n = len(sequence)
    return any(tuple(tokens[i : i + n]) == tuple(sequence) for i in range(len(tokens) - n + 1))


def bigrams(n: int = 12) -> tuple[list[int], list[tuple[int, ...]]]:
    """A prefix, and pairs of tokens that follow each other in what is sampled from it."""
    prefix = prompts(1, seed=3, shortest=20)[0]
    found = [c.tokens for c in ask(engine(), prefix, n, max_tokens=30, seed=1)]
    pairs = [pair for tokens in found for pair in pairwise(tokens)]
    return prefix, sorted(set(pairs), key=lambda pair: -pairs.count(pair))[:40]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}, {"top_k": 20}])
def test_a_banned_sequence_is_never_sampled_and_the_probabilities_are_those_of_the_rest(options):
    prefix, banned = bigrams()
    built = model()
    free = ask(engine(built), prefix, 8, max_tokens=30, seed=1, **options)
    assert any(contains(c.tokens, b) for c in free for b in banned)
    held = ask(engine(built), prefix, 8, max_tokens=30, seed=1, banned=tuple(banned), **options)
    cut = 0
    for c in held:
        assert not any(contains(c.tokens, b) for b in banned)
        assert worst_gap(built, prefix, c) < 1e-4
        assert c.kept is not None and len(c.kept) == len(c.tokens)
        if "top_k" not in options and "top_p" not in options:
            for t, ids in enumerate(c.kept):
                before = c.tokens[t - 1] if t else prefix[-1]
                gone = {b for a, b in banned if a == before}
                assert set(range(272)) - set(ids.tolist()) == gone if gone else not len(ids)
                cut += bool(gone)
    assert cut or options.keys() & {"top_k", "top_p"}


def test_the_prefix_and_forced_tokens_count_and_are_themselves_not_banned():
    prefix, _ = bigrams()
    [free] = ask(engine(), prefix, max_tokens=1, seed=1)
    [held] = ask(engine(), prefix, max_tokens=1, seed=1, banned=((*prefix[-3:], free.tokens[0]),))
    assert held.tokens != free.tokens
    [other] = ask(engine(), prefix, max_tokens=1, seed=1, banned=((prefix[-1] + 1, free.tokens[0]),))
    assert other.tokens == free.tokens and other.kept is not None and not len(other.kept[0])
    forced = (7, 8, 9)
    [c] = ask(engine(), prefix, max_tokens=4, seed=1, forced=forced, banned=((7, 8), (9, 50)))
    assert c.tokens[:3] == forced and c.forced == 3 and len(c.tokens) == 4
    [first] = ask(engine(), [*prefix, *forced], max_tokens=1, seed=1)
    [after] = ask(engine(), prefix, max_tokens=4, seed=1, forced=forced, banned=((9, first.tokens[0]),))
    assert after.tokens[3] != first.tokens[0]


def test_a_ban_changes_nothing_for_others_and_survives_being_preempted():
    prefix, banned = bigrams()
    jobs = [
        (prefix, SamplingParams(20, seed=i, banned=tuple(banned) if i % 2 else ())) for i in range(8)
    ]  # every second one is banned something
    alone = [asyncio.run(engine().sample(*job))[0] for job in jobs]
    made = engine(pages=9, max_sequences=6)
    together = crowd(made, jobs)
    assert made.preemptions > 0 and idle(made)
    for a, b in zip(alone, together, strict=True):
        assert a.tokens == b.tokens and (a.kept is None) == (b.kept is None)
        if a.kept is not None and b.kept is not None:
            assert all(np.array_equal(x, y) for x, y in zip(a.kept, b.kept, strict=True))
    assert [c.kept is None for c in alone] == [True, False] * 4


@pytest.mark.parametrize(
    ("banned", "message"),
    [
        (((),), "a banned sequence is empty"),
        (((1, 272),), "the banned sequence has token ids outside"),
        (tuple((i,) for i in range(272)), "leave no token to sample"),
    ],
)
def test_bans_that_make_no_sense_are_refused(banned, message):
    with pytest.raises(UserError, match=message):
        ask(engine(), [1, 2, 3], banned=banned)


def test_who_cannot_ban_says_so():
    scripted = ScriptedSampler({"a": {"a": 1.0}})
    with pytest.raises(UserError, match="bans no token sequences"):
        asyncio.run(scripted.sample([1], SamplingParams(4, banned=((1,),))))
