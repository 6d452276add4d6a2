"""The local engine: what it samples is what a full forward pass says, whatever shares the batch, heard as it comes and
ended where it was asked to."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from mull.chat import Chat
from mull.engine.pages import PAGE
from mull.engine.sampler import derive_seed
from mull.errors import StopReason, UserError
from mull.types import SamplingParams
from tests.engine.small import BOTH, CONFIG, FAMILIES, ask, chat, crowd, engine, idle, jobs, model, prompts, worst_gap

# ----------------------------------------------------------------------------------------------------- the right tokens


@BOTH
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_a_full_forward(family, torch_pages):
    built = model(FAMILIES[family])
    variants = [{}, {"temperature": 0.6}, {"temperature": 0.0}, {"top_p": 0.8}, {"top_k": 5, "temperature": 1.5}]
    work = [
        (prefix, replace(params, forced=tuple(prefix[:3]) if i % 2 else (), **variants[i % len(variants)]))
        for i, (prefix, params) in enumerate(jobs(15))
    ]
    for (prefix, params), c in zip(work, crowd(engine(built, torch_pages=torch_pages), work), strict=True):
        assert c.forced == len(params.forced) and c.tokens[: c.forced] == params.forced
        assert len(c.logprobs) == len(c.tokens) > c.forced
        assert worst_gap(built, prefix, c) < 1e-5


@BOTH
def test_a_seeded_request_gives_the_same_tokens_alone_and_in_a_crowd(torch_pages):
    built, work = model(), jobs(12)
    together = crowd(engine(built, torch_pages=torch_pages), work)
    assert len({c.tokens for c in together}) == len(together)
    made = engine(built, torch_pages=torch_pages)
    for (prefix, params), c in zip(work, together, strict=True):
        [alone] = asyncio.run(made.sample(prefix, params))
        assert alone.tokens == c.tokens
        assert alone.logprobs == pytest.approx(c.logprobs, abs=1e-5)


def test_the_same_program_gives_the_same_bits_again():
    work = jobs(12)
    assert crowd(engine(pages=20), work) == crowd(engine(pages=20), work)


def test_n_samples_have_seeds_of_their_own():
    [prefix], made = prompts(1), engine()
    together = ask(made, prefix, n=6, seed=5)
    assert len({c.tokens for c in together}) == 6
    first = ask(made, prefix, n=2, seed=5)
    assert [c.tokens for c in first] == [c.tokens for c in together[:2]]
    assert ask(made, prefix, n=0) == []
    assert derive_seed(5, 0) != derive_seed(5, 1)


def test_several_calls_draw_what_one_would_have():
    made = engine()
    whole = ask(made, prompts(1)[0], n=5, max_tokens=12, seed=7)
    parts = [ask(made, prompts(1)[0], n=n, max_tokens=12, seed=7, first=first) for first, n in ((0, 2), (2, 3))]
    assert [c.tokens for c in whole] == [c.tokens for part in parts for c in part]
    assert len({c.tokens for c in whole}) > 1


def test_greedy_takes_the_likeliest_token():
    built, [prefix] = model(), prompts(1)
    [c] = ask(engine(built), prefix, temperature=0.0, max_tokens=8, seed=1)
    [again] = ask(engine(built), prefix, temperature=0.0, max_tokens=8, seed=2, top_p=0.3)
    assert c.tokens == again.tokens and worst_gap(built, prefix, again) < 1e-5
    best = ask(engine(built), prefix, top_k=1, max_tokens=8)[0]
    assert best.tokens == c.tokens and set(best.logprobs) == {0.0}


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 1, 2 * PAGE, 2 * PAGE + 1])
def test_page_borders(length):
    built, prefix = model(), prompts(1, shortest=40, longest=41)[0][:length]
    made = engine(built)
    for forced in ((), (5,), tuple(range(PAGE)), tuple(range(PAGE + 1))):
        c, twin = ask(made, prefix, n=2, max_tokens=PAGE + 2, forced=forced)
        assert worst_gap(built, prefix, c) < 1e-5 and worst_gap(built, prefix, twin) < 1e-5
        assert twin.cost.prefill_tokens + twin.cost.cached_tokens == length + len(forced)


def test_chunks_of_a_prompt_change_nothing():
    built, work = model(), jobs(6, forced=(1, 2, 3))
    whole = crowd(engine(built), work)
    for step in (1, 3, 7):
        chunked = crowd(engine(built, max_step_tokens=step), work)
        assert [c.tokens for c in chunked] == [c.tokens for c in whole]
        assert [c.cost.prefill_tokens for c in chunked] == [c.cost.prefill_tokens for c in whole]


# ------------------------------------------------------------------------------------------------------------- watching


def test_who_watches_hears_every_sampled_token_once_and_in_time():
    """Also those of requests that lost their place to others for a while; and forced ones not at all."""
    work, heard = [(p, replace(params, forced=(9,) * (i % 3))) for i, (p, params) in enumerate(jobs(16))], {}
    made = engine(pages=10)
    steps: set[int] = set()

    def watch(at):
        def hear(i, token):
            heard.setdefault((at, i), []).append(token)
            steps.add(made.steps)

        return hear

    async def run():
        return await asyncio.gather(*(made.sample(p, q, 2, watch(at)) for at, (p, q) in enumerate(work)))

    found = asyncio.run(run())
    assert made.preemptions > 0 and len(steps) > 20
    assert heard == {(at, i): list(c.tokens[c.forced :]) for at, pair in enumerate(found) for i, c in enumerate(pair)}
    unwatched = crowd(engine(pages=400), [(p, replace(q, first=i)) for p, q in work for i in (0, 1)])
    assert [c.tokens for pair in found for c in pair] == [c.tokens for c in unwatched]


def test_who_watches_may_say_that_it_is_enough():
    made, [prefix] = engine(), prompts(1)
    whole = ask(made, prefix, n=3, seed=5)
    short, *rest = asyncio.run(_enough(made, prefix, SamplingParams(20, seed=5), at=4))
    assert short.tokens == whole[0].tokens[:5] and short.stop is StopReason.LENGTH and idle(made)
    assert [c.tokens for c in rest] == [c.tokens for c in whole[1:]]
    assert short.cost.sampled_tokens == 5


async def _enough(made, prefix, params, at):
    heard = []

    def watch(i, token):
        heard.append(i)
        return i == 0 and heard.count(0) > at

    return await made.sample(prefix, params, 3, watch)


# ----------------------------------------------------------------------------------------------------------------- ends


def test_forced_tokens_are_scored_and_never_exceed_the_limit():
    built = model()
    made = engine(built)
    [only] = ask(made, [1, 2, 3], max_tokens=4, forced=(4, 5, 6, 7))
    assert only.tokens == (4, 5, 6, 7) and only.stop is StopReason.LENGTH and only.forced == 4
    assert worst_gap(built, [1, 2, 3], only) < 1e-5
    assert (only.cost.sampled_tokens, only.cost.prefill_tokens) == (0, 6), "nothing reads the last token"
    end = chat().end_ids[0]
    [through] = ask(made, [1, 2, 3], max_tokens=6, forced=(4, end, 6))
    assert through.tokens[:3] == (4, end, 6) and len(through.tokens) > 3
    assert idle(made)


def test_the_context_ends_a_request():
    made = engine()
    room = CONFIG.max_positions
    [c] = ask(made, [1] * (room - 5), max_tokens=500, seed=8)
    assert len(c.tokens) <= 5 and (len(c.tokens) == 5 or c.stop is StopReason.STOP)
    [c] = ask(made, [1] * (room - 1), max_tokens=500, seed=8)
    assert len(c.tokens) == 1
    with pytest.raises(UserError, match="context is 128"):
        ask(made, [1] * room)


def test_an_end_token_is_kept_and_ends_the_completion():
    end = chat().end_ids[0]
    found = crowd(engine(), jobs(40, max_tokens=70, temperature=5.0))
    stopped = [c for c in found if c.stop is StopReason.STOP]
    cut = [c for c in found if c.stop is StopReason.LENGTH]
    assert stopped and cut
    assert all(c.tokens[-1] == end and end not in c.tokens[:-1] for c in stopped)
    assert all(end not in c.tokens for c in cut), "and a truncated one gets none"


def test_stop_tokens():
    made, [prefix] = engine(), prompts(1)
    [free] = ask(made, prefix, max_tokens=40, seed=3)
    for stops in ((free.tokens[4],), (free.tokens[9], 7, free.tokens[6], free.tokens[4])):
        first = min(free.tokens.index(t) for t in stops if t in free.tokens)
        [c] = ask(made, prefix, max_tokens=40, seed=3, stop_tokens=stops)
        assert c.tokens == free.tokens[: first + 1] and c.stop is StopReason.STOP
    [c] = ask(made, prefix, max_tokens=5, seed=3, stop_tokens=(free.tokens[4],))
    assert c.stop is StopReason.STOP, "also at the last token"
    [again] = ask(made, prefix, max_tokens=40, seed=3)
    assert again.tokens == free.tokens, "a slot forgets its last tenant's stop tokens"


@pytest.mark.parametrize("text", ["ab", "héllo", "日本", "a\U0001f600b"])
def test_stop_strings_that_straddle_tokens(text):
    """Bytes are nano's tokens, so these strings straddle tokens and their characters do as well."""
    built = model()
    sequence = (*b"x ", *text.encode(), *b" tail")
    script(built, sequence)
    made = engine(built)
    [c] = ask(made, [1, 2], stop=(text, "zzz"), max_tokens=40)
    assert c.tokens == (*b"x ", *text.encode()) and c.stop is StopReason.STOP
    [c] = ask(made, [1, 2], stop=("zzz",), max_tokens=len(sequence))
    assert c.tokens == sequence and c.stop is StopReason.LENGTH
    forced = sequence[: 2 + len(text.encode())]
    [c] = ask(made, [1, 2], stop=(text, "z" * 30), forced=forced, max_tokens=len(sequence))
    assert c.tokens == sequence, "what was forced stops nothing"
    [c] = ask(made, [1, 2], stop=(text,), forced=sequence[:3], max_tokens=len(sequence))
    assert c.tokens == (*b"x ", *text.encode()), "but a stop string may begin in it"


def script(built, sequence) -> None:
    """Makes the model say `sequence` after any prompt of two tokens, with near certainty."""
    table = torch.full((CONFIG.max_positions, CONFIG.vocab_size), -50.0)
    for i, token in enumerate(sequence):
        table[1 + i, token] = 50.0
    positions: list[torch.Tensor] = []
    forward = built.forward
    built.forward = lambda tokens, at, attend: (positions.append(at), forward(tokens, at, attend))[1]
    built.logits = lambda hidden: table[positions[-1][-len(hidden) :]]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_done_is_said():
    made = engine()
    for wrong, match in (
        ({"prefix": []}, "empty"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 1, "forced": (1, 2)}, "max_tokens=1"),
        ({"prefix": [272]}, "vocabulary of 272"),
        ({"prefix": [-1]}, "vocabulary"),
        ({"prefix": [2**40]}, "vocabulary"),
        ({"forced": (999,)}, "forced"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stop": ("",)}, "stop string"),
        ({"n": -1}, "n=-1"),
    ):
        with pytest.raises(UserError, match=match):
            ask(made, **{"prefix": [1], **wrong})
    assert idle(made)
    with pytest.raises(UserError, match="end tokens"):
        engine(model(replace(CONFIG, vocab_size=256)))
    assert isinstance(chat(), Chat) and np.array_equal(np.flatnonzero(made._end), sorted(chat().end_ids))
