"""Raw completions: likelihoods that are the engine's own, streams that say what wholes say, and no way round hiding."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from mull.engine.endpoint import EndpointSampler
from mull.errors import SamplerLost, StopReason
from mull.serve.completions_api import Text
from mull.serve.shapes import TextCompletion
from mull.types import SamplingParams
from tests.serve.tools import (
    events,
    idle,
    nano,
    nano_service,
    post,
    scripted_service,
    serving,
    until,
)

RAW = "/v1/completions"
LINE = "<|user|>a=3;b=a+4;b?<|end|><|assistant|><think>b=3+4=7</think>7"


def complete(made=None, **fields):
    """The body of a successful completion; it has the documented shape."""
    status, _, body = post(made or nano_service(thoughts="shown"), RAW, {"model": "nano", **fields})
    assert status == 200, body
    TextCompletion.model_validate(body)
    return body


def refusal(made=None, **fields):
    status, _, body = post(made or nano_service(), RAW, {"model": "nano", **fields})
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return status, body["error"]["param"], body["error"]["code"]


def forced_logprobs(tokens):
    """What the engine's own scoring of forced tokens says, a different way through it."""
    engine = nano_service().main.tools.sampler
    params = SamplingParams(max_tokens=len(tokens) - 1, forced=tuple(tokens[1:]))
    return asyncio.run(engine.sample(tokens[:1], params))[0].logprobs


# --------------------------------------------------------------------------------------------------- likelihoods


def test_the_likelihood_of_a_given_text_is_the_models_own():
    chat = nano()[1]
    tokens = chat.encode_written(LINE)
    for prompt in (LINE, tokens):
        body = complete(prompt=prompt, max_tokens=0, echo=True, logprobs=5)
        [choice] = body["choices"]
        values = choice["logprobs"]
        assert choice["text"] == LINE and choice["finish_reason"] == "length"
        assert values["token_logprobs"][0] is None and values["top_logprobs"][0] is None
        assert values["token_logprobs"][1:] == pytest.approx(forced_logprobs(tokens), abs=1e-4)
        assert "".join(values["tokens"]) == LINE and len(values["tokens"]) == len(tokens)
        assert [LINE[at:][: len(t)] for at, t in zip(values["text_offset"], values["tokens"], strict=True)] == values[
            "tokens"
        ]
        for value, token, top in list(
            zip(values["token_logprobs"], values["tokens"], values["top_logprobs"], strict=True)
        )[1:]:
            assert top[token] == value and len(top) in (5, 6) and max(top.values()) == next(iter(top.values()))
        assert body["usage"]["completion_tokens"] == 0 and body["usage"]["prompt_tokens"] == len(tokens)


def as_lm_eval_reads(choice, context):
    """(log-likelihood, whether greedy) of what follows `context` tokens, in an answer with one more token."""
    values = choice["logprobs"]
    own, tops = values["token_logprobs"][context:-1], values["top_logprobs"][context:-1]
    return sum(own), all(one == max(top.values()) for one, top in zip(own, tops, strict=True))


def test_an_evaluation_compares_continuations():
    """As lm-eval's local-completions asks: ids in batches, echo, one token more, one alternative."""
    chat = nano()[1]
    question = chat.encode_written("<|user|>a=3;b=a+4;b?<|end|><|assistant|><think>b=3+4=7</think>")
    asked = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "seed": 1234, "echo": True}
    answers = ["7", "8", "3", "12"]
    body = complete(prompt=[[*question, *chat.encode(a)] for a in answers], **asked)
    found = [as_lm_eval_reads(choice, len(question)) for choice in body["choices"]]
    assert max(found)[0] == found[0][0] and [greedy for _, greedy in found] == [True, False, False, False]
    for (value, _), answer in zip(found, answers, strict=True):
        want = forced_logprobs([*question, *chat.encode(answer)])[len(question) - 1 :]
        assert value == pytest.approx(sum(want), abs=1e-4)
    assert all(
        len(c["logprobs"]["tokens"]) == len(question) + len(a) + 1
        for c, a in zip(body["choices"], answers, strict=True)
    )


def test_log_probabilities_of_what_is_sampled_are_those_at_temperature_1():
    hot = complete(prompt="<|user|>", max_tokens=12, temperature=1.7, top_p=0.9, seed=3, logprobs=2)["choices"][0]
    chat = nano()[1]
    values = hot["logprobs"]
    tokens = [*chat.encode_written("<|user|>"), *chat.encode_written("".join(values["tokens"]))]
    assert values["token_logprobs"] == pytest.approx(forced_logprobs(tokens), abs=1e-4)
    assert len(values["tokens"]) == 12 and "".join(values["tokens"]).startswith(hot["text"])
    none = complete(prompt="<|user|>", max_tokens=3, logprobs=0)["choices"][0]["logprobs"]["top_logprobs"]
    assert [len(top) for top in none] == [1, 1, 1]


def test_tokens_that_are_no_text_have_names_of_their_own():
    text = "ä\U0001f600"
    values = complete(prompt=text, max_tokens=0, echo=True, logprobs=0)["choices"][0]["logprobs"]
    assert values["tokens"][:2] == ["bytes:\\xc3", "bytes:\\xa4"] and len(set(values["tokens"])) == 6
    assert values["text_offset"] == [0, 0, 1, 1, 1, 1]


def test_a_model_elsewhere_has_no_log_probabilities_but_an_echo():
    made = scripted_service({"b?": "hello"}, thoughts="shown")
    assert refusal(made, prompt="b?", logprobs=1) == (400, "logprobs", "unsupported_parameter")
    assert refusal(made, prompt="b?", logprobs=0, echo=True, max_tokens=0)[0] == 400
    assert complete(made, prompt="b?", echo=True)["choices"][0]["text"] == "b?hello"
    assert complete(made, prompt="b?", echo=True, max_tokens=0)["choices"][0]["text"] == "b?"


# -------------------------------------------------------------------------------------------------- continuations


def test_text_and_its_tokens_are_continued_alike():
    chat = nano()[1]
    prompt = "<|user|>a=3;b=a+4;b?<|end|><|assistant|><think>"
    text = complete(prompt=prompt, seed=4, max_tokens=40)
    ids = complete(prompt=chat.encode_written(prompt), seed=4, max_tokens=40)
    assert (
        complete(prompt=[float(i) for i in chat.encode_written(prompt)], seed=4.0, max_tokens=40)["choices"]
        == (
            ids["choices"]  # JSON knows no difference
        )
    )
    assert text["choices"] == ids["choices"] and text["usage"]["prompt_tokens"] == len(chat.encode_written(prompt))
    assert len(chat.encode_written(prompt)) < len(chat.encode(prompt))  # control tokens count as such
    assert "</think>" in text["choices"][0]["text"] and "<|end|>" not in text["choices"][0]["text"]
    assert text["choices"][0]["finish_reason"] == "stop"
    assert complete(prompt=prompt, seed=4)["usage"]["completion_tokens"] == 16  # OpenAI's default


def test_several_prompts_with_several_choices_each():
    body = complete(prompt=["a=1;", "<|user|>b"], n=3, max_tokens=8, seed=1)
    assert [c["index"] for c in body["choices"]] == list(range(6))
    assert len({c["text"] for c in body["choices"]}) > 3
    assert body["usage"]["completion_tokens"] <= 48 and body["usage"]["prompt_tokens"] == 6
    alone = complete(prompt="a=1;", n=3, max_tokens=8, seed=1)
    assert [c["text"] for c in alone["choices"]] == [c["text"] for c in body["choices"][:3]]
    far = [complete(prompt="a=1;", n=3, max_tokens=8, seed=1 << 63 | seed)["choices"] for seed in (0, 0, 1)]
    assert far[0] == far[1] != far[2]  # any whole number is a seed


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a=1;"},
        {"prompt": ["a=1;", "<|user|>b"], "n": 2, "echo": True},
        {"prompt": "<|user|>", "stop": ["=", ";b"]},
        {"prompt": "<|user|>", "logprobs": 2, "echo": True},
        {"prompt": "<|user|>", "max_tokens": 0, "echo": True},
        {"prompt": "<|user|>", "return_token_ids": True},
    ],
)
def test_a_stream_says_what_the_whole_says(fields):
    made = nano_service(thoughts="shown")
    asked = {"seed": 7, "max_tokens": 24, **fields}
    whole = complete(made, **asked)
    _, _, text = post(made, RAW, {"model": "nano", **asked, "stream": True, "stream_options": {"include_usage": True}})
    *chunks, usage, done = events(text)
    assert done == "[DONE]" and usage["choices"] == []
    assert {**usage["usage"], "prompt_tokens_details": 0} == {**whole["usage"], "prompt_tokens_details": 0}
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        assert own[-1]["logprobs"] == choice["logprobs"] and own[-1].get("token_ids") == choice.get("token_ids")
    if fields == {"prompt": "a=1;"}:
        assert len(chunks) > 3


def test_a_stop_string_ends_a_completion_and_is_not_in_it():
    asked = {"prompt": "<|user|>a=3;b=a+4;b?<|end|><|assistant|><think>", "seed": 7, "max_tokens": 24}
    full = complete(**asked)["choices"][0]["text"]
    for stop in (full[3:5], [full[2:4], "zzz"]):
        cut = complete(**asked, stop=stop)
        first = stop if isinstance(stop, str) else stop[0]
        assert cut["choices"][0]["text"] == full[: full.index(first)] and cut["choices"][0]["finish_reason"] == "stop"
        assert cut["usage"]["completion_tokens"] == full.index(first) + len(first)


def test_text_that_grows_is_never_taken_back():
    chat = nano()[1]
    text = Text(chat, ("stop!", "ä."))
    pieces = [text.push(t) for t in chat.encode("a st")] + [text.push(t) for t in chat.encode("ay ä;b st")]
    assert "".join(pieces) == "a stay ä;b " and text.sent == 11
    assert [text.push(t) for t in chat.encode("op! more")] == [""] * 8
    assert text.whole(chat.encode("a stay ä;b stop! more")) == ("a stay ä;b ", True)


def test_vllms_fields():
    made = nano_service(thoughts="shown")
    chat = nano()[1]
    prompt = "<|user|>a=3;b=a+4;b?<|end|><|assistant|><think>"
    choice = complete(made, prompt=prompt, seed=1, max_tokens=60, return_token_ids=True)["choices"][0]
    assert chat.decode(choice["token_ids"]).startswith(choice["text"]) and choice["token_ids"][-1] == chat.turn_end
    choice = complete(
        made, prompt=prompt, seed=1, max_tokens=60, return_token_ids=True, stop_token_ids=list(chat.think_close)
    )["choices"][0]
    assert choice["token_ids"][-1] == chat.think_close[0] and choice["finish_reason"] == "stop"
    greedy = complete(made, prompt=prompt, temperature=0)["choices"][0]["text"]
    assert complete(made, prompt=prompt, top_k=1, seed=5)["choices"][0]["text"] == greedy
    assert complete(made, prompt=prompt, top_p=0, seed=5)["choices"][0]["text"] == greedy
    most = (1 << 31) - 1  # 32 bits with a sign: one more did not fit the engine's tables
    wide = complete(made, prompt=prompt, temperature=0, top_k=most, stop_token_ids=[most])
    assert wide["choices"][0]["text"] == greedy
    assert refusal(made, prompt=prompt, top_k=most + 1) == (400, "top_k", "invalid_value")
    assert refusal(made, prompt=prompt, stop_token_ids=[most + 1]) == (400, "stop_token_ids[0]", "invalid_value")


def test_another_mull_samples_through_this_one_as_if_it_ran_the_model():
    """With thoughts shown, tokens, ends and log-probabilities come through exactly."""
    chat = nano()[1]
    made = nano_service(thoughts="shown")

    async def through(url, prompt, params):
        async with EndpointSampler(url, None, chat) as sampler:
            await sampler.ready()
            assert sampler.context == made.main.tools.context and sampler.model == "nano"
            return await sampler.sample(prompt, params, 4), sampler

    prompt = chat.prompt("a=3;b=a+4;b?")
    params = SamplingParams(max_tokens=60, stop_tokens=chat.think_close, seed=5)
    with serving(made) as server:
        got, sampler = asyncio.run(through(f"{server.url}/v1", prompt, params))
    assert sampler.guessed_stops == 0 and len({c.tokens for c in got}) > 1
    for one in got:
        assert one.stop is StopReason.LENGTH or one.tokens[-1] in (*chat.think_close, *chat.end_ids)
        want = forced_logprobs([*prompt, *one.tokens])[len(prompt) - 1 :]
        assert one.logprobs == pytest.approx(want, abs=1e-4)
        assert one.cost.sampled_tokens == len(one.tokens)


def test_openais_client_reads_it():
    with serving(nano_service()) as server:
        client = server.openai(max_retries=0)
        made = client.completions.create(model="nano", prompt="a=1;b", max_tokens=5, echo=True, logprobs=2)
        assert made.choices[0].text.startswith("a=1;b") and len(made.choices[0].logprobs.tokens) == 10
        chunks = list(client.completions.create(model="nano", prompt="a=1;b", max_tokens=5, stream=True))
        assert chunks[-1].choices[0].finish_reason and "".join(c.choices[0].text for c in chunks)
        with pytest.raises(openai.BadRequestError) as found:
            client.completions.create(model="nano", prompt="")
        assert found.value.param == "prompt"


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": [1, 2.5]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [1, 10**9]}, "prompt"),
        ({"prompt": [[1], [10**30]]}, "prompt[1]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": "a", "n": 9}, "n"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
        ({"prompt": "a" * 1024}, "prompt"),
        ({"prompt": "a" * 100_000}, "prompt"),
        ({"prompt": ["a", "a" * 1025], "max_tokens": 0}, "prompt[1]"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop"),
        ({"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"prompt": "a", "top_k": -2}, "top_k"),
    ],
)
def test_what_no_completion_can_be_made_of(fields, param):
    status, named, _ = refusal(**fields)
    assert (status, named) == (400, param)


def test_a_prompt_as_long_as_the_context_can_be_read():
    values = complete(prompt="a" * 1024, max_tokens=0, echo=True, logprobs=1)["choices"][0]["logprobs"]
    assert len(values["tokens"]) == 1024
    body = complete(prompt="a" * 1023, max_tokens=50)
    assert body["usage"]["completion_tokens"] == 1 and body["choices"][0]["finish_reason"] in ("length", "stop")


def test_hidden_thoughts_stay_hidden():
    hiding = nano_service()
    prompt = "<|user|>a=3;b=a+4;b?<|end|><|assistant|><think>"
    for inside in (prompt, nano()[1].encode_written(prompt), prompt + "b=3", ["x", prompt]):
        status, param, code = refusal(hiding, prompt=inside)
        assert (status, code) == (400, "thoughts_hidden") and param in ("prompt", "prompt[1]")
    assert complete(hiding, prompt=prompt + "b=3+4=7</think>")["choices"][0]["text"] == "7"
    script = {"b?": "well <think>secret</think>4"}
    for stream in (False, True):
        status, _, body = post(
            scripted_service(script), RAW, {"model": "nano", "prompt": "b?", "max_tokens": 99, "stream": stream}
        )
        assert status == 200 and "well" in json.dumps(body) and "secret" not in json.dumps(body)
    assert "secret" in json.dumps(complete(scripted_service(script, thoughts="shown"), prompt="b?", max_tokens=99))
    # The very token that opens a thought ends it.
    cut = complete(scripted_service(script), prompt="b?", max_tokens=99)["choices"][0]
    assert cut["text"] == "well " and cut["finish_reason"] == "stop"


# ------------------------------------------------------------------------------------------------- who leaves, limits


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_work_along(stream):
    made = nano_service(thoughts="shown")
    asked = {"model": "nano", "prompt": "<|user|>" * 3, "max_tokens": 1000, "n": 8, "stream": stream, "top_k": 5}
    body = json.dumps({**asked, "logit_bias": None}).encode()
    with serving(made) as server:
        with server.connect() as line:
            line.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            until(lambda: made.main.tools.sampler.schedule.busy)
        until(lambda: idle(made), 3)


def test_a_completion_ends_when_its_time_is_up():
    made = nano_service(max_seconds=0.01, thoughts="shown")
    body = complete(made, prompt="<|user|>", max_tokens=1000, temperature=2, seed=1)
    assert body["usage"]["completion_tokens"] < 1000 and body["choices"][0]["finish_reason"] in ("length", "stop")
    assert idle(made)


def test_a_model_that_is_lost_is_no_secret_and_no_crash():
    made = scripted_service({"b?": "x"})
    made.main.tools.sampler.fail = {0: SamplerLost("http://10.0.0.7:8000 is gone")}
    status, _, body = post(made, RAW, {"model": "nano", "prompt": "b?"})
    assert status == 503 and "10.0.0.7" not in body["error"]["message"]


def test_what_is_not_obeyed_is_reported():
    fields = {"model": "nano", "prompt": "a", "presence_penalty": 1, "best_of": 1, "min_p": 0, "foo": 1}
    _, headers, _ = post(nano_service(), RAW, fields)
    assert headers["x-mull-ignored"] == "presence_penalty, foo"
