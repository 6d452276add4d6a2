"""The scripted sampler keeps the contract that strategies rely on."""

import asyncio
import math
import subprocess
import sys

import pytest

from mull.chat import Chat
from mull.engine.scripted import END, ScriptedSampler
from mull.errors import StopReason, UserError
from mull.models.nano import CONTROL_IDS, write_tokenizer
from mull.types import SamplingParams


def ask(sampler, prefix: str | tuple[int, ...] = "Q", n: int = 1, **params):
    params = SamplingParams(**{"max_tokens": 50, **params})
    return asyncio.run(sampler.sample(tuple(prefix.encode()) if isinstance(prefix, str) else prefix, params, n))


def text(completion):
    return bytes(t for t in completion.tokens if t != END).decode()


def test_a_list_is_handed_out_in_order_and_ends_by_itself():
    sampler = ScriptedSampler(["one", "two", (65, 66)])
    first, second = ask(sampler, n=2)
    assert (text(first), text(second), text(ask(sampler)[0])) == ("one", "two", "AB")
    assert first.tokens[-1] == END and first.stop is StopReason.STOP
    with pytest.raises(LookupError, match="one more"):
        ask(sampler)


def test_spans_follow_the_longest_suffix_with_the_scripts_probabilities():
    sampler = ScriptedSampler({"Q": {"yes": 3.0, "no": 1.0}, "no": " way"})
    found = [text(c) for c in ask(sampler, n=4000)]
    assert set(found) == {"yes", "no way"}
    assert abs(found.count("yes") / 4000 - 0.75) < 0.03
    for c in ask(sampler, n=20):
        p = 0.75 if text(c) == "yes" else 0.25
        assert c.logprobs[0] == pytest.approx(math.log(p)) and not any(c.logprobs[1:])
        assert len(c.logprobs) == len(c.tokens)
    with pytest.raises(LookupError, match="says nothing"):
        ask(sampler, "Z")


def test_seeds_decide_and_temperature_sharpens():
    script = {"Q": {"a": 0.6, "b": 0.4}}
    alone = [text(c) for c in ask(ScriptedSampler(script), n=8, seed=3)]
    sampler = ScriptedSampler(script)
    ask(sampler, n=5, seed=9)
    assert [text(c) for c in ask(sampler, n=8, seed=3)] == alone
    assert {text(c) for c in ask(sampler, n=50, temperature=0.0)} == {"a"}
    cold = [text(c) for c in ask(sampler, n=2000, temperature=0.5)]
    assert cold.count("a") / 2000 == pytest.approx(0.36 / 0.52, abs=0.04)


def test_stops_limits_and_forced_tokens():
    sampler = ScriptedSampler(lambda prefix: "abc")
    assert text(ask(sampler, max_tokens=4)[0]) == "abca"
    assert ask(sampler, max_tokens=4)[0].stop is StopReason.LENGTH
    stopped = ask(sampler, stop=("ca",))[0]
    assert text(stopped) == "abca" and stopped.stop is StopReason.STOP
    assert text(ask(sampler, stop_tokens=(ord("b"),))[0]) == "ab"
    forced = ask(sampler, forced=tuple(b"xy"), max_tokens=4)[0]
    assert text(forced) == "xyab" and forced.forced == 2 and forced.logprobs[:2] == (0.0, 0.0)
    only = ask(sampler, forced=tuple(b"xy"), max_tokens=2)[0]
    assert text(only) == "xy" and only.stop is StopReason.LENGTH and only.cost.sampled_tokens == 0
    assert text(ask(sampler, forced=tuple(b"ca"), stop=("ca",))[0]) == "caabca", "a forced stop string stops nothing"
    mistakes: list[dict] = [{"max_tokens": 0}, {"max_tokens": 1, "forced": (1, 2)}, {"prefix": ()}]
    for wrong in mistakes:
        with pytest.raises(UserError):
            ask(sampler, **wrong)
    with pytest.raises(UserError, match="context"):
        ask(ScriptedSampler(["a"], context=3), "abc")


def test_costs_count_what_was_read_and_what_was_known():
    sampler = ScriptedSampler(["one", "two", "x"])
    first, second = ask(sampler, "prompt", n=2)
    assert (first.cost.prefill_tokens, first.cost.cached_tokens, first.cost.sampled_tokens) == (6, 0, 4)
    assert (second.cost.prefill_tokens, second.cost.cached_tokens) == (1, 5)
    longer = ask(sampler, (*b"prompt", *first.tokens, *b"more"))[0]
    assert (longer.cost.cached_tokens, longer.cost.prefill_tokens) == (10, 4)
    assert sampler.cost.sampled_tokens == 4 + 4 + 2


def test_failures_cancellation_and_the_record_of_calls():
    sampler = ScriptedSampler(["a", "b", "c"], fail={1: RuntimeError("no power")}, yields=3)

    async def run():
        params = SamplingParams(max_tokens=5, seed=7)
        tasks = [asyncio.create_task(sampler.sample((i + 1,), params)) for i in range(3)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    done, failed, cancelled = asyncio.run(run())
    assert isinstance(done, list) and [c.tokens for c in done] == [(ord("a"), END)]
    assert str(failed) == "no power" and isinstance(cancelled, asyncio.CancelledError)
    assert [call.prefix for call in sampler.calls] == [(1,), (2,), (3,)]
    assert [call.cancelled for call in sampler.calls] == [False, False, True]
    assert sampler.calls[1].error is failed and sampler.calls[0].params.seed == 7
    assert sampler.running == 0 and sampler.peak == 3


def test_a_chats_own_tags_and_ends(tmp_path):
    write_tokenizer(tmp_path)
    chat = Chat.load(tmp_path)
    sampler = ScriptedSampler(["2+2</think>4"], chat)
    [c] = ask(sampler, tuple(chat.prompt("2+2?")))
    assert c.tokens[3] == CONTROL_IDS["</think>"] and c.tokens[-1] == CONTROL_IDS["<|end|>"]
    assert chat.split(c.tokens) == ("2+2", "4", True)


def test_needs_no_torch():
    code = "import sys, mull.engine.scripted; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
