"""The local engine: what it samples is what a full forward pass says, whatever shares the batch, the memory or the
prefix; and nothing that ends, fails or is withdrawn leaves anything behind."""

import asyncio
import gc
import mmap
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mull.chat import Chat
from mull.engine import memory
from mull.engine.pages import PAGE
from mull.engine.sampler import derive_seed
from mull.errors import StopReason, UserError
from mull.learn import optim
from mull.types import SamplingParams
from tests.engine.small import CONFIG, FAMILIES, ask, chat, crowd, engine, idle, model, prompts, turns, worst_gap

BOTH = pytest.mark.parametrize("torch_pages", [False, True], ids=["native", "torch"])


def jobs(n: int, seed: int = 0, **options) -> list:
    options = {"max_tokens": 30, **options}
    return [(p, SamplingParams(**{**options, "seed": 100 + i})) for i, p in enumerate(prompts(n, seed))]


async def started(made, steps: int) -> None:
    while made.steps < steps:
        await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------ the right tokens


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


# ------------------------------------------------------------------------------------------ sharing


@pytest.mark.parametrize("length", [2, PAGE - 1, PAGE, PAGE + 1, 45])
def test_samples_of_one_prompt_read_it_once(length):
    prefix = prompts(1, shortest=45, longest=46)[0][:length]
    made = engine()
    made._end[:] = False
    costs = [c.cost for c in ask(made, prefix, n=16, max_tokens=2)]
    assert sorted(c.prefill_tokens for c in costs) == [1] * 15 + [length], "but for its last token: each needs logits"
    assert sum(c.cached_tokens for c in costs) == 15 * (length - 1)
    assert made.step_rows == length + 15 + 16, "and each sample but its last token"


def test_new_weights_raise_the_version_and_leave_no_stale_prefix():
    [prefix] = prompts(1, shortest=45, longest=46)

    def through_data(built):
        built.layers[0].qkv.weight.data.mul_(1.5)

    def in_place(built):
        with torch.no_grad():
            built.layers[0].qkv.weight.mul_(1.5)

    def loaded(built):
        built.load_state_dict(model(seed=1).state_dict())

    def stepped(optimizer):
        def change(built):
            built.logits(built.embedding(torch.tensor([1]))).square().sum().backward()
            optim.step(built, optimizer(built), 0.01)

        return change

    def muon(built):
        return optim.muon(built, 0.01)

    def adamw(built):
        return optim.adamw(built, 0.01)

    for change in (through_data, in_place, loaded, stepped(adamw), stepped(muon)):
        built = model()
        made = engine(built, policy_version=3)
        assert ask(made, prefix)[0].policy_version == 3
        assert ask(made, prefix)[0].cost.cached_tokens == 44
        change(built)
        [c] = ask(made, prefix)
        assert c.policy_version == made.policy_version == 4 and c.cost.cached_tokens == 0
        assert worst_gap(built, prefix, c) < 1e-5
        assert ask(made, prefix)[0].policy_version == 4, "and only once"
        made.restore_version(9)
        [c] = ask(made, prefix)
        assert (c.policy_version, c.cost.cached_tokens) == (9, 0)


@pytest.mark.parametrize("fused", [True, False])
def test_weights_that_change_under_a_running_request_are_an_error(fused):
    built = model()
    made = engine(built)
    optimizer = torch.optim.AdamW(built.parameters(), lr=0.1, fused=fused)

    async def run():
        task = asyncio.create_task(made.sample([1, 2, 3], SamplingParams(max_tokens=50)))
        await started(made, steps=3)
        with pytest.raises(RuntimeError, match="requests were running"):
            made.restore_version(5)
        for p in built.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        with pytest.raises(RuntimeError, match="weights changed"):
            await task
        return await made.sample([1, 2, 3], SamplingParams(max_tokens=5))

    [c] = asyncio.run(run())
    assert c.policy_version == 1 and idle(made)
    assert worst_gap(built, [1, 2, 3], c) < 1e-5


# ------------------------------------------------------------------------------------------ memory


@BOTH
def test_a_tiny_pool_gives_the_same_tokens_with_preemption(torch_pages):
    built = model()
    work = [
        (prefix, replace(params, forced=(9,) * (i % 3), **({"top_p": 0.9} if i % 2 else {})))
        for i, (prefix, params) in enumerate(jobs(16, max_tokens=60))
    ]
    small, large = (engine(built, pages=pages, torch_pages=torch_pages) for pages in (12, 400))
    tight, roomy = crowd(small, work), crowd(large, work)
    assert small.preemptions > 5 and large.preemptions == 0
    for (prefix, params), a, b in zip(work, tight, roomy, strict=True):
        assert a.tokens == b.tokens and a.stop == b.stop and a.forced == b.forced
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
        assert worst_gap(built, prefix, a) < 1e-5
        assert (a.kept is None) == (b.kept is None) == (params.top_p == 1)
        for one, other in zip(a.kept or (), b.kept or (), strict=True):
            assert one.tolist() == other.tolist()
        assert a.cost.sampled_tokens == b.cost.sampled_tokens == len(a.tokens) - a.forced
        assert a.cost.prefill_tokens + a.cost.cached_tokens == len(prefix) + a.forced
    assert sum(c.cost.flops for c in tight) > sum(c.cost.flops for c in roomy), "computing it again is not free"
    assert idle(small) and idle(large)


def test_groups_that_share_prompts_finish_in_a_tiny_pool():
    """Twins wait for each other's pages while memory is short: nobody may wait for ever."""
    made = engine(pages=9, max_sequences=3)
    shared = prompts(1, shortest=60, longest=61)[0]
    work = [(shared[: 30 + i], SamplingParams(max_tokens=60, seed=i)) for i in range(20)]
    work += [(shared, SamplingParams(max_tokens=60, seed=5))] * 4
    found = crowd(made, work)
    assert len({c.tokens for c in found[-4:]}) == 1 and idle(made)


def test_one_request_may_fill_the_whole_pool():
    made = engine(pages=2)
    [c] = ask(made, [1] * 10, max_tokens=2 * PAGE - 10, stop_tokens=(), seed=4)
    assert len(c.tokens) == 2 * PAGE - 10 or c.stop is StopReason.STOP
    [c] = ask(made, [1] * PAGE, max_tokens=PAGE, forced=tuple(range(PAGE)))
    assert c.tokens == tuple(range(PAGE))
    with pytest.raises(UserError, match="memory pages"):
        ask(made, [1] * 10, max_tokens=2 * PAGE - 8)
    with pytest.raises(UserError, match="not one page"):
        engine(pages=0)


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


# ------------------------------------------------------------------------------------------ ends


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


# ------------------------------------------------------------------------------------------ leaving


def test_cancelling_frees_slots_and_pages_at_once():
    made = engine(pages=40, max_sequences=6)

    async def run():
        keep = asyncio.create_task(made.sample([1, 2, 3], SamplingParams(max_tokens=60, seed=1)))
        gone = [asyncio.create_task(made.sample(p, SamplingParams(max_tokens=60), 3)) for p in prompts(4)]
        await started(made, steps=3)
        assert len(made.schedule.order) == 6 and made.schedule.waiting, "some run, some wait"
        for task in gone:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        held = made.pool.held, len(made.schedule.order), len(made.schedule.waiting)
        return held, await keep, await asyncio.gather(*gone, return_exceptions=True)

    (pages, running, waiting), [kept], gone = asyncio.run(run())
    assert running == 1 and waiting == 0 and pages <= 2
    assert all(isinstance(g, asyncio.CancelledError) for g in gone)
    assert idle(made) and kept.tokens == ask(engine(), [1, 2, 3], max_tokens=60, seed=1)[0].tokens
    assert made.spent.sampled_tokens > kept.cost.sampled_tokens, "what was abandoned is counted"
    assert made.spent.flops > kept.cost.flops


def test_a_cancelled_owner_of_a_shared_prompt_does_not_stop_its_followers():
    made = engine(max_step_tokens=2)
    prefix = prompts(1, shortest=60, longest=61)[0]

    async def run():
        owner = asyncio.create_task(made.sample(prefix, SamplingParams(max_tokens=5)))
        followers = [asyncio.create_task(made.sample(prefix, SamplingParams(max_tokens=5, seed=i))) for i in (1, 2)]
        await started(made, steps=3)
        assert len(made.schedule.order) == 1 and len(made.schedule.waiting) == 2
        owner.cancel()
        return await asyncio.wait_for(asyncio.gather(*followers), 20)

    found = asyncio.run(run())
    assert [c.tokens for [c] in found] == [ask(engine(), prefix, max_tokens=5, seed=i)[0].tokens for i in (1, 2)]
    assert idle(made)


def test_a_failing_step_reaches_everybody_and_leaves_the_engine_usable():
    built = model()
    made = engine(built, max_sequences=2)
    forward, count = built.forward, 0

    def broken(*args):
        nonlocal count
        count += 1
        if count == 5:
            raise ValueError("the machine caught fire")
        return forward(*args)

    built.forward = broken  # pyright: ignore[reportAttributeAccessIssue]

    async def run():
        work = (made.sample(p, SamplingParams(max_tokens=30), 2) for p in prompts(3))
        failed = await asyncio.gather(*work, return_exceptions=True)
        assert idle(made)
        return failed, await made.sample([1, 2], SamplingParams(max_tokens=3))

    failed, [c] = asyncio.run(run())
    assert [str(f) for f in failed] == ["the machine caught fire"] * 3
    assert len(c.tokens) == 3 or c.stop is StopReason.STOP
    assert idle(made)


def test_diverged_weights_are_an_error_not_a_sample():
    built = model()
    made = engine(built)
    ask(made, [1, 2], max_tokens=3)
    with torch.no_grad():
        built.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="diverged"):
        ask(made, [1, 2], max_tokens=3)
    assert idle(made)


def test_event_loops_may_follow_one_another_and_leave_work_behind():
    made = engine()
    expected = ask(engine(), [1, 2, 3])[0].tokens

    async def abandon():
        asyncio.get_running_loop().create_task(made.sample([5] * 40, SamplingParams(max_tokens=60), 4))
        await made.sample([4], SamplingParams(max_tokens=2))

    for _ in range(3):
        asyncio.run(abandon())
        assert ask(made, [1, 2, 3])[0].tokens == expected
        assert idle(made)

    loop = asyncio.new_event_loop()  # closed without cancelling what runs in it, which asyncio.run would do
    tasks = [loop.create_task(made.sample([5] * 40, SamplingParams(max_tokens=60), 4))]
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    assert made.schedule.busy
    loop.close()
    assert ask(made, [1, 2, 3])[0].tokens == expected and idle(made)
    tasks.extend(asyncio.all_tasks(loop))
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]

    stopped = asyncio.new_event_loop()  # neither closed nor running
    task = stopped.create_task(made.sample([5] * 40, SamplingParams(max_tokens=60), 4))
    stopped.run_until_complete(asyncio.sleep(0))
    assert ask(made, [1, 2, 3])[0].tokens == expected and idle(made)
    with pytest.raises(asyncio.CancelledError):
        stopped.run_until_complete(task)
    stopped.close()


def test_an_engine_that_nobody_needs_frees_its_memory_at_once():
    """Not when Python happens to look for cycles: a page pool is gigabytes, and to Python a small object."""

    def used(how) -> weakref.ref:
        made = engine()
        how(made)
        return weakref.ref(made.memory)

    def alone(made):
        ask(made, prompts(1)[0])

    def cancelled(made):
        async def run():
            work = asyncio.ensure_future(made.sample(prompts(1)[0], SamplingParams(20)))
            await started(made, 3)
            work.cancel()

        asyncio.run(run())

    gc.disable()
    try:
        assert used(alone)() is None and used(cancelled)() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads what the system has mapped from /proc")
def test_pages_that_were_never_used_cost_no_memory():
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = mapped()
    made = engine(memory_bytes=1 << 30, max_sequences=1 << 14)
    ask(made, prompts(1)[0])
    assert made.pool.num_pages * memory.page_bytes(CONFIG, torch.float32) > 500 << 20
    assert mapped() - before < 200 << 20


def test_answered_strategies_ask_again_before_the_next_step():
    """Two rounds of questions, the second asked through a `gather` inside a `gather`, share their steps."""
    made = engine()

    async def thought(seed):
        params = SamplingParams(max_tokens=5, seed=seed)
        await made.sample([seed], params)
        await made.sample([seed, 1], params)

    async def question(seed):
        await asyncio.gather(*(thought(seed + i) for i in range(3)))
        await asyncio.gather(*(thought(seed + i) for i in range(3)))

    async def run():
        always_busy = made.sample([99], SamplingParams(max_tokens=4 * 5))  # so that nobody is waited for
        await asyncio.gather(always_busy, *(question(seed) for seed in range(0, 30, 3)))

    made._end[:] = False
    asyncio.run(run())
    assert made.steps == 4 * 5 and turns < 10


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


def test_several_calls_draw_what_one_would_have():
    made = engine()
    whole = ask(made, prompts(1)[0], n=5, max_tokens=12, seed=7)
    parts = [ask(made, prompts(1)[0], n=n, max_tokens=12, seed=7, first=first) for first, n in ((0, 2), (2, 3))]
    assert [c.tokens for c in whole] == [c.tokens for part in parts for c in part]
    assert len({c.tokens for c in whole}) > 1
