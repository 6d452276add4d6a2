"""The endpoint sampler against every kind of server that it claims to know: what it asks, what it makes of answers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from pathlib import Path

import pytest

import mull
from mull.chat import Chat
from mull.engine.endpoint import EndpointSampler
from mull.engine.endpoint_forms import Fields
from mull.engine.endpoint_tokens import encode_output, first_stop
from mull.engine.sampler import derive_seed
from mull.errors import StopReason, UserError
from mull.ledger import Budget
from mull.search.vote import vote
from mull.types import Question, SamplingParams
from tests.engine.fake_server import BARE, OPENAI, TRANSFORMERS, FakeServer, Traits

NANO = Path(mull.__file__).parent / "nano"
SAID = "a=3\nb=7</think>7<|end|>"
OPEN, CLOSE, END = 261, 262, 260


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(NANO)


def ask(server: FakeServer, prefix=None, n: int = 1, sampler: dict | None = None, **params):
    """(sampler, completions) of one call."""
    made = EndpointSampler(server.url, "nano", server.chat, **{"backoff": 0.01, **(sampler or {})})

    async def run():
        async with made:
            given = server.chat.prompt("b=?") if prefix is None else prefix
            return await made.sample(given, SamplingParams(**{"max_tokens": 50, "seed": 5, **params}), n)

    return made, asyncio.run(run())


def same(a: tuple[float, ...], b: list[float]) -> bool:
    return len(a) == len(b) and all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=True))


# --- the four kinds of server


def test_vllm_gets_and_gives_tokens_and_logprobs(chat):
    with FakeServer(chat, SAID, Traits(cached=4)) as server:
        sampler, [one] = ask(server, sampler={"params_count": 1e6})
    prompt = chat.prompt("b=?")
    want = (*chat.encode("a=3\nb=7"), CLOSE, *chat.encode("7"), END)
    assert one.tokens == want and one.stop is StopReason.STOP and one.forced == 0 and one.kept is None
    assert same(one.logprobs, [-0.01 * (i % 100) for i in range(1, len(want) + 1)])
    assert one.policy_version == sampler.policy_version == 0 and sampler.flops_known
    cost = one.cost
    assert (cost.sampled_tokens, cost.prefill_tokens, cost.cached_tokens) == (len(want), len(prompt) - 4, 4)
    assert cost.flops == 2e6 * (len(want) + len(prompt) - 4) and 0 < cost.seconds < 5 and sampler.spent == cost
    [body] = server.requests
    assert body["prompt"] == prompt and body["route"] == "/completions"
    # What vLLM would take from the model's own defaults is said: full support is what was asked for.
    assert (body["top_k"], body["top_p"], body["min_p"], body["repetition_penalty"]) == (-1, 1.0, 0.0, 1.0)
    assert body["seed"] == derive_seed(5, 0) & 0x7FFFFFFF and "stop" not in body and "n" not in body
    assert sampler.form is not None and sampler.form.ids and sampler.form.fields is Fields.VLLM
    assert (sampler.retried, sampler.failed, sampler.retokenised, sampler.guessed_stops) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("traits", "fields", "ids", "tries"),
    [(TRANSFORMERS, Fields.TRANSFORMERS, False, 4), (OPENAI, Fields.OPENAI, True, 3), (BARE, Fields.BARE, False, 6)],
)
def test_a_server_that_refuses_fields_is_asked_with_fewer_and_that_is_remembered(chat, traits, fields, ids, tries):
    with FakeServer(chat, SAID, traits) as server:
        sampler, got = ask(server, n=3, top_p=0.9)
    assert sampler.form is not None and (sampler.form.fields, sampler.form.ids) == (fields, ids)
    assert len(server.requests) == tries + 2  # the first request finds out, for the others too
    want = (*chat.encode("a=3\nb=7"), CLOSE, *chat.encode("7"), END)
    for one in got:
        assert one.tokens == want and one.stop is StopReason.STOP
        # Without `usage` the tokenizer counts.
        assert (one.cost.sampled_tokens, one.cost.prefill_tokens) == (len(want), len(chat.prompt("b=?")))
        assert one.cost.flops == 0 and not sampler.flops_known
        assert all(map(math.isnan, one.logprobs))  # top_p cuts the support, and the kept set is not known
    for body in server.requests[-2:]:
        assert body["temperature"] == 1.0 and body["top_p"] == 0.9 and ("seed" in body) == (fields is not Fields.BARE)


def test_transformers_serve_is_told_to_sample_with_full_support(chat):
    """Its default generation config keeps the 50 likeliest tokens only."""
    with FakeServer(chat, SAID, TRANSFORMERS) as server:
        ask(server, stop_tokens=(CLOSE,))
        config = json.loads(server.requests[-1]["generation_config"])
        assert config["top_k"] == 0 and config["do_sample"] and config["eos_token_id"] == [*chat.end_ids, CLOSE]
        ask(server, temperature=0.0)
        assert json.loads(server.requests[-1]["generation_config"])["do_sample"] is False
        ask(server, top_k=7)
        assert json.loads(server.requests[-1]["generation_config"])["top_k"] == 7


def test_top_k_where_the_server_knows_it_and_where_not(chat):
    with FakeServer(chat, SAID) as server:
        ask(server, top_k=3)
        assert server.requests[-1]["top_k"] == 3
    for traits in (OPENAI, BARE):
        with FakeServer(chat, SAID, traits) as server, pytest.raises(UserError, match="takes no top_k"):
            ask(server, top_k=3)


def test_no_server_is_asked_for_what_it_would_silently_not_ban(chat):
    with FakeServer(chat, SAID) as server:
        with pytest.raises(UserError, match="bans no token sequences"):
            ask(server, banned=((1, 2),))
        assert not [r for r in server.requests if "max_tokens" in r]


def test_logprobs_of_text_are_taken_where_the_pieces_are_the_same(chat):
    with FakeServer(chat, SAID, OPENAI) as server:
        _, [one] = ask(server)
    want = [-0.01 * i for i in range(1, len(one.tokens))]
    assert same(one.logprobs, [*want, math.nan])  # the end token was put back by us: nothing is known of it


@pytest.mark.parametrize(
    ("params", "sampler", "known"),
    [
        ({}, {}, True),
        ({"temperature": 0.0}, {}, True),
        ({"temperature": 0.7}, {}, False),
        ({"temperature": 0.7}, {"processed_logprobs": True}, True),
        ({"top_p": 0.9}, {"processed_logprobs": True}, False),
        ({"top_k": 9}, {}, False),
    ],
)
def test_logprobs_of_another_distribution_are_not_passed_off(chat, params, sampler, known):
    with FakeServer(chat, SAID) as server:
        _, [one] = ask(server, sampler=sampler, **params)
    assert len(one.logprobs) == len(one.tokens) and all(math.isnan(v) != known for v in one.logprobs)
    assert one.temperature == params.get("temperature", 1.0)


# --- how a completion ends


KINDS = [Traits(), Traits(ids=False), TRANSFORMERS, OPENAI, BARE]
SAYS_WHY = [
    Traits(),
    Traits(ids=False),
    Traits(ids=False, special=False),
    TRANSFORMERS,
    dataclasses.replace(OPENAI, says_why="matched_stop"),
    dataclasses.replace(BARE, says_why="stop_reason"),
]


@pytest.mark.parametrize("traits", KINDS)
def test_the_end_token_is_kept_and_a_limit_has_none(chat, traits):
    with FakeServer(chat, SAID, traits) as server:
        sampler, [whole] = ask(server)
        _, [cut] = ask(server, max_tokens=5)
    assert whole.tokens[-1] == END and whole.tokens.count(END) == 1 and whole.stop is StopReason.STOP
    assert cut.tokens == tuple(chat.encode("a=3\nb")) and cut.stop is StopReason.LENGTH
    assert sampler.guessed_stops == 0  # without stop strings there is nothing to guess


@pytest.mark.parametrize("traits", SAYS_WHY)
@pytest.mark.parametrize("stop", [("\n",), ("zz", "\n"), ("=3\n", "7")])
def test_the_stop_string_is_kept(chat, traits, stop):
    with FakeServer(chat, SAID, traits) as server:
        sampler, [one] = ask(server, stop=stop)
        _, [ended] = ask(server, stop=("zz",))
    assert chat.decode(one.tokens) == "a=3\n" and one.stop is StopReason.STOP and sampler.guessed_stops == 0
    assert len(one.logprobs) == len(one.tokens)
    assert chat.decode(ended.tokens) == SAID


@pytest.mark.parametrize("traits", [*KINDS, *SAYS_WHY])
def test_a_stop_token_is_kept(chat, traits):
    with FakeServer(chat, SAID, traits) as server:
        _, [one] = ask(server, stop_tokens=(CLOSE,))
    assert one.tokens == (*chat.encode("a=3\nb=7"), CLOSE) and one.stop is StopReason.STOP


def test_where_the_server_does_not_say_the_guess_follows_its_rule(chat):
    thinking = chat.prompt("b=?")
    answering = [*thinking, *chat.encode("b=7"), CLOSE]
    with FakeServer(chat, SAID, OPENAI) as server:
        sampler, [one] = ask(server, thinking, stop=("\n", "zz"))
        assert chat.decode(one.tokens) == "a=3\n" and sampler.guessed_stops == 1  # inside a thought: a stop string
    with FakeServer(chat, "7\nand 8", OPENAI) as server:
        _, [one] = ask(server, answering, stop=("\n",))
        assert chat.decode(one.tokens) == "7<|end|>"  # outside of one: the end
    with FakeServer(chat, "7==8", OPENAI) as server:
        sampler, [one] = ask(server, answering, stop=("\n", "=="))
        assert chat.decode(one.tokens) == "7==" and sampler.guessed_stops == 1  # two tokens are missing: no end token
    with FakeServer(chat, SAID, OPENAI) as server:  # a closing tag in the text settles it: this was the end
        _, [one] = ask(server, thinking, stop=("zz",))
        assert chat.decode(one.tokens) == SAID


def test_a_server_that_does_not_stop_is_stopped(chat):
    """`transformers serve --continuous-batching` knows no stop strings."""
    deaf = Traits(fields=None, ids=True)
    with FakeServer(chat, SAID, deaf) as server:
        server._completion = lambda prompt, body, chat, real=server._completion: real(
            prompt, {k: v for k, v in body.items() if k not in ("stop", "stop_token_ids")}, chat
        )
        _, [one] = ask(server, stop=("3\nb",))
        _, [two] = ask(server, stop_tokens=(CLOSE,))
    assert chat.decode(one.tokens) == "a=3\nb" and len(one.logprobs) == 5 and one.stop is StopReason.STOP
    assert two.tokens[-1] == CLOSE
    assert one.cost.sampled_tokens == len(encode_output(chat, SAID))  # what was sampled was paid for


def test_first_stop_and_the_tokens_of_what_was_said(chat):
    said = encode_output(chat, "é1</think>2<|end|><|user|>")
    assert chat.decode(said) == "é1</think>2<|end|><|user|>"
    assert said.count(CLOSE) == 1 and said.count(END) == 1 and 257 not in said  # others stay spelled out
    assert first_stop(said, chat.end_ids, (), chat) == said.index(END) + 1
    assert first_stop(said, (), ("é",), chat) == len("é".encode())
    assert first_stop(said, (), ("1</th",), chat) == said.index(CLOSE) + 1  # the token that completes it is kept
    assert first_stop(said, (), ("nothing",), chat) is None


def test_half_a_character_is_dropped_and_nothing_is_the_end(chat):
    with FakeServer(chat, "aé<|reserved_0|><|end|>", TRANSFORMERS) as server:
        _, [half] = ask(server, max_tokens=2)
        assert half.tokens == tuple(chat.encode("a")) and half.stop is StopReason.LENGTH
        assert half.cost.sampled_tokens == 2
    with FakeServer(chat, "<|reserved_0|>a", TRANSFORMERS) as server:
        _, [hidden] = ask(server, max_tokens=1)
        assert hidden.tokens == (END,) and hidden.stop is StopReason.STOP and math.isnan(hidden.logprobs[0])
    with FakeServer(chat, "é", Traits()) as server:
        _, [exact] = ask(server, max_tokens=1)
        assert exact.tokens == ("é".encode()[0],)  # tokens lose nothing


def test_a_server_that_keeps_stop_strings_leaves_nothing_to_guess(chat):
    with FakeServer(chat, SAID, TRANSFORMERS) as server:
        sampler, [one] = ask(server, stop=("zz",))
        assert chat.decode(one.tokens) == SAID and sampler.guessed_stops == 0
        sampler, [one] = ask(server, [*chat.prompt("b=?"), CLOSE], stop=("zz",))
        assert chat.decode(one.tokens) == SAID and sampler.guessed_stops == 0


# --- prefixes, forced tokens, seeds


def test_forced_tokens_are_continued_and_marked(chat):
    with FakeServer(chat, lambda text, _: "9" if text.endswith("Wait") else "0", OPENAI) as server:
        forced = tuple(chat.encode("Wait"))
        _, [one] = ask(server, forced=forced, max_tokens=5)
        assert one.tokens[:5] == (*forced, *chat.encode("9")) and one.forced == 4
        assert server.requests[-1]["max_tokens"] == 1
        assert all(map(math.isnan, one.logprobs[:4])) and one.cost.prefill_tokens == len(chat.prompt("b=?")) + 4
        asked = len(server.requests)
        _, [full] = ask(server, forced=forced, max_tokens=4)
        assert full.tokens == forced and full.stop is StopReason.LENGTH and full.cost.sampled_tokens == 0
        assert len(server.requests) == asked


def test_a_prefix_goes_as_text_where_tokens_are_refused(chat):
    with FakeServer(chat, SAID, BARE) as server:
        _, [_] = ask(server, [*chat.prompt("b=?"), *chat.encode("a=3")])
    assert server.requests[-1]["prompt"] == "<|user|>b=?<|end|><|assistant|><think>a=3"


def test_seeds_differ_between_samples_and_repeat_between_calls(chat):
    with FakeServer(chat, lambda _, seed: str(seed) + "<|end|>") as server:
        _, first = ask(server, n=8)
        _, again = ask(server, n=8)
        _, other = ask(server, n=8, seed=6)
    assert [c.tokens for c in first] == [c.tokens for c in again]
    assert len({c.tokens for c in [*first, *other]}) == 16
    assert all(0 <= body["seed"] < 2**31 for body in server.requests)


def test_a_doubled_bos_is_noticed_and_not_sent_again(chat):
    with_bos = Chat.load(NANO)
    with_bos.special["bos_token"] = "<|pad|>"
    prefix = [256, *chat.prompt("b=?")]
    with FakeServer(chat, SAID, dataclasses.replace(TRANSFORMERS, adds_bos=True)) as server:
        server.chat = with_bos
        sampler, [one, _] = ask(server, prefix, n=2)
    sent = [body["prompt"] for body in server.requests if isinstance(body["prompt"], str)][-3:]
    assert [text.startswith("<|pad|>") for text in sent] == [True, False, False]
    assert one.cost.sampled_tokens == 2 * len(one.tokens) and sampler.retokenised == 0  # both answers were paid for


def test_prompts_that_the_server_reads_otherwise_are_counted(chat):
    with FakeServer(chat, SAID, dataclasses.replace(TRANSFORMERS, adds_bos=True)) as server:
        sampler, _ = ask(server, n=3)
    assert sampler.retokenised == 3


# --- models and their context


def test_the_model_and_its_context_are_asked_for_once(chat):
    with FakeServer(chat, SAID) as server:

        async def run():
            async with EndpointSampler(server.url, None, chat) as sampler:
                await sampler.ready()
                assert (sampler.model, sampler.context) == ("nano", 1024)
                return await sampler.sample(chat.prompt("b=?"), SamplingParams(max_tokens=5000))

        assert asyncio.run(run())[0].stop is StopReason.STOP
        assert server.lists == 1
        room = 1024 - len(chat.prompt("b=?"))
        assert server.requests[-1]["max_tokens"] == room  # vLLM refuses what does not fit, instead of cutting it
        with pytest.raises(UserError, match="1024"):
            ask(server, [65] * 1024)


@pytest.mark.parametrize(
    ("models", "says"), [((), "0 models"), (({"id": "a"}, {"id": "b"}), r"2 models \(a, b\)"), (500, "name the model")]
)
def test_a_model_has_to_be_named_where_the_server_does_not_say(chat, models, says):
    with FakeServer(chat, SAID, Traits(models=models)) as server, pytest.raises(UserError, match=says):
        asyncio.run(EndpointSampler(server.url, None, chat).ready())
    assert server.requests == []


def test_a_context_overflow_is_said_in_one_sentence(chat):
    with FakeServer(chat, SAID, Traits(context=50, models=404)) as server:
        with pytest.raises(UserError, match=r"does not fit into the model's context.*50 tokens"):
            ask(server)
        assert len(server.requests) == 1  # fewer fields would not help
        _, [one] = ask(server, sampler={"context": 50}, max_tokens=500)
        assert one.stop is StopReason.STOP


# --- what strategies build on


def test_a_vote_over_an_endpoint(chat):
    def says(text: str, seed: int) -> str:
        return f"b=7</think>{7 if seed % 4 else 8}<|end|>"

    with FakeServer(chat, says, TRANSFORMERS, delay=0.02) as server:

        async def run():
            async with EndpointSampler(server.url, "nano", chat, max_concurrent=4) as sampler:
                question = Question(id="q", task="chain", text="b=?")
                return await vote(
                    question, sampler, chat, Budget(samples=12), canonical=lambda _, answer: answer or None
                )

        trace = asyncio.run(run())
    assert len(trace.answers) == 12 and set(trace.answers) == {"7", "8"} and trace.answer == "7"
    assert trace.cost.sampled_tokens == 12 * len(encode_output(chat, "b=7</think>7<|end|>"))
    assert server.peak == 4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n": -1}, "at least one"),
        ({"prefix": ()}, "empty"),
        ({"max_tokens": 0}, "no room"),
        ({"stop": ("",)}, "empty"),
    ],
)
def test_senseless_requests_are_refused_before_they_are_sent(chat, given, says):
    with FakeServer(chat, SAID) as server, pytest.raises(UserError, match=says):
        ask(server, **given)
    assert server.requests == []


def test_no_samples_are_no_requests(chat):
    with FakeServer(chat, SAID) as server:
        assert ask(server, n=0)[1] == [] and server.requests == []
