"""The chat API by OpenAI's own client and by plain HTTP: shapes, streams, hidden thoughts, choices, who leaves."""

from __future__ import annotations

import json
import threading

import openai
import pytest

from mull.serve.chat_api import Telling
from mull.serve.job import Delta, Thought
from mull.serve.shapes import ChatCompletion
from mull.serve.summary import Section
from tests.serve.tools import (
    QUESTION,
    ask,
    calls,
    events,
    idle,
    nano_service,
    post,
    scripted_service,
    serving,
    thinking,
    until,
)

CHAT = "/v1/chat/completions"
THOUGHT = "one\ntwo\nthree\nfour\nfive"


@pytest.fixture(scope="module")
def server():
    with serving(nano_service()) as served:
        yield served


def messages(text=QUESTION):
    return [{"role": "user", "content": text}]


def joined(chunks, key):
    return "".join(getattr(c.choices[0].delta, key, None) or "" for c in chunks if c.choices)


# ------------------------------------------------------------------------------------------ with openai's client


def test_the_client_gets_an_answer_with_its_thought_summarised_and_its_tokens_counted(server):
    made = server.openai().chat.completions.create(model="nano", messages=messages(), reasoning_effort="low", seed=3)
    message, usage = made.choices[0].message, made.usage
    assert message.role == "assistant" and message.content and made.choices[0].finish_reason == "stop"
    assert message.reasoning_content == message.reasoning and message.reasoning.startswith("**")
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.prompt_tokens == 29
    assert made.model == "nano" and made.system_fingerprint == "policy-0" and made.id.startswith("chatcmpl-")
    assert made.mull["effort"] == "low" and made._request_id.rpartition("_")[2] == made.id.rpartition("-")[2]
    ChatCompletion.model_validate(json.loads(made.model_dump_json(exclude_unset=True)))
    assert idle(server.service)


@pytest.mark.parametrize("effort", ["none", "low", "medium"])
def test_a_stream_says_what_the_whole_says(server, effort):
    asked = {"model": "nano", "messages": messages(), "reasoning_effort": effort, "seed": 5}
    whole = server.openai().chat.completions.create(**asked)
    chunks = list(server.openai().chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    first, *_, last, usage = chunks
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert joined(chunks, "content") == whole.choices[0].message.content
    told = getattr(whole.choices[0].message, "reasoning_content", "")
    assert bool(told) == (effort != "none")
    if effort != "medium":  # how far branches had come when that was told is a matter of time
        assert joined(chunks, "reasoning_content") == joined(chunks, "reasoning") == told
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert last.mull["effort"] == effort and not hasattr(first, "mull")
    assert usage.choices == [] and usage.usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None and c.id == first.id and c.created == first.created for c in chunks[:-1])


def test_without_being_asked_a_stream_has_no_usage(server):
    chunks = list(server.openai().chat.completions.create(model="nano", messages=messages(), stream=True))
    assert all(c.choices and "usage" not in c.model_dump(exclude_unset=True) for c in chunks)


def test_choices_differ_and_are_counted_together(server):
    made = server.openai().chat.completions.create(model="nano", messages=messages(), n=4, seed=1)
    assert [c.index for c in made.choices] == [0, 1, 2, 3] and len({c.message.content for c in made.choices}) > 1
    alone = [
        server.openai().chat.completions.create(model="nano", messages=messages(), n=1, seed=1),
        server.openai().chat.completions.create(model="nano", messages=messages(), n=4, seed=1),
    ]
    assert alone[0].choices[0].message.content == made.choices[0].message.content
    assert alone[1].choices == made.choices
    assert made.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert made.usage.completion_tokens > 2 * alone[0].usage.completion_tokens
    assert sum(v["count"] for v in made.mull["votes"]) == 4

    chunks = list(server.openai().chat.completions.create(model="nano", messages=messages(), n=4, seed=1, stream=True))
    texts = ["", "", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [c.message.content for c in made.choices]
    assert sum(c.choices[0].finish_reason is not None for c in chunks) == 4
    assert [hasattr(c, "mull") for c in chunks] == [False] * (len(chunks) - 1) + [True]


def test_the_seed_decides(server):
    def answer(seed):
        made = server.openai().chat.completions.create(model="nano", messages=messages(), seed=seed)
        return made.choices[0].message.model_dump()

    assert answer(7) == answer(7)
    assert len({answer(seed)["content"] for seed in range(6)}) > 1


def test_errors_are_the_clients_own_exceptions(server):
    client = server.openai(max_retries=0)
    with pytest.raises(openai.NotFoundError) as found:
        client.chat.completions.create(model="gpt-4o", messages=messages())
    assert found.value.code == "model_not_found" and found.value.param == "model"
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model="nano", messages=messages(), temperature=3)
    assert found.value.param == "temperature" and found.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model="nano", messages=messages("x" * 3000))
    assert found.value.code == "context_length_exceeded" and found.value.param == "messages"
    assert "This model's maximum context length is 1024 tokens" in str(found.value)  # what LiteLLM looks for
    with pytest.raises(openai.BadRequestError) as found:  # a stream that cannot begin is no stream
        client.chat.completions.create(model="nano", messages=messages("x" * 3000), stream=True)
    assert found.value.code == "context_length_exceeded"


def test_the_client_comes_again_after_429():
    from mull.serve.errors import busy

    made = nano_service()
    real, refusals = made.job, [busy("full", 0.1), busy("full", 0.1)]

    def job(*given):
        if refusals:
            raise refusals.pop()
        return real(*given)

    made.job = job
    with serving(made) as server:
        answer = server.openai().chat.completions.create(model="nano", messages=messages())
        assert answer.choices[0].message.content and not refusals
        refusals.append(busy("full", 0.1))
        with pytest.raises(openai.RateLimitError) as found:
            server.openai(max_retries=0).chat.completions.create(model="nano", messages=messages())
        assert found.value.response.headers["retry-after-ms"] == "100"


# ------------------------------------------------------------------------------------------------ what is shown


def shown(**settings):
    """(whole message, joined stream, everything that was sent) of one scripted answer."""
    asked = settings.pop("asked", {})
    script = thinking(THOUGHT, "42")
    _, _, whole = post(scripted_service(script, **settings), CHAT, ask(**asked))
    _, _, stream = post(scripted_service(script, **settings), CHAT, ask(**asked, stream=True))
    deltas = [e["choices"][0]["delta"] for e in events(stream) if e != "[DONE]" and e["choices"]]
    texts = {k: "".join(d.get(k, "") for d in deltas) for k in ("content", "reasoning", "reasoning_content")}
    return whole["choices"][0]["message"], texts, json.dumps(whole) + stream


@pytest.mark.parametrize("effort", ["low", "medium"])
def test_hidden_thoughts_are_summarised_and_shown_ones_are_not(effort):
    asked = {"reasoning_effort": effort}
    message, texts, _ = shown(asked=asked)
    assert message["content"] == texts["content"] == "42"
    assert "**one**\n\nfour" in message["reasoning_content"] and "two" not in message["reasoning_content"]
    assert texts["reasoning"] == texts["reasoning_content"] == message["reasoning"] == message["reasoning_content"]

    message, texts, _ = shown(asked=asked, thoughts="shown")
    assert message["reasoning_content"] == THOUGHT == texts["reasoning_content"] == texts["reasoning"]
    assert message["content"] == texts["content"] == "42"


@pytest.mark.parametrize(
    "options",
    [
        {"summaries": "none"},
        {"asked": {"reasoning": {"exclude": True}}},
        {"asked": {"include_reasoning": False}},
        {"thoughts": "shown", "asked": {"reasoning": {"exclude": True}}},
    ],
)
def test_nothing_of_a_thought_where_it_is_not_wanted(options):
    message, texts, sent = shown(**options)
    assert "reasoning" not in message and "reasoning_content" not in message
    assert texts["reasoning"] == texts["reasoning_content"] == "" and texts["content"] == "42"
    assert not any(word in sent for word in ("one", "two", "three", "four", "five") if word != "one")
    assert "**one" not in sent


def test_a_raw_thought_never_leaks_from_a_hiding_server():
    for effort in ("low", "medium", "high"):
        _, _, sent = shown(asked={"reasoning_effort": effort, "mull": {"samples": 3}})
        assert "two" not in sent and "three" not in sent  # lines that no summary quotes


def test_telling_keeps_thoughts_before_the_answer_and_never_takes_back():
    raw = Telling("raw", single=True)
    told = [raw.tell(e) for e in (Thought(" a"), Thought(" \n"), Thought("b "), Delta("x"), Thought("late"))]
    assert told == [("a", ""), ("", ""), (" \nb", ""), ("", "x"), ("", "")]
    brief = Telling("summary", single=True)
    told = [brief.tell(e) for e in (Thought("secret"), Section("T", "t"), Section("U", "u"), Delta("x"))]
    assert told == [("", ""), ("**T**\n\nt", ""), ("\n\n**U**\n\nu", ""), ("", "x")]
    many = Telling("raw", single=False)
    assert many.tell(Delta("x")) == ("", "")  # held until its thought is known


# -------------------------------------------------------------------------------------------- what is said on top


def test_content_is_never_empty_and_the_finish_is_true():
    for answer in ("", " ", "<|end|>"):
        _, _, body = post(scripted_service(thinking("t", answer)), CHAT, ask())
        assert body["choices"][0]["message"]["content"].strip()
    _, _, body = post(scripted_service(thinking("t", "x" * 50)), CHAT, ask())
    assert body["choices"][0]["finish_reason"] == "length" and body["choices"][0]["message"]["content"] == "x" * 16
    _, _, body = post(scripted_service(thinking("t" * 500, "7")), CHAT, ask(max_completion_tokens=40))
    assert body["choices"][0]["message"]["content"] == "7" and body["usage"]["completion_tokens"] <= 40


def test_stop_strings_end_the_answer_and_are_not_in_it():
    for stop in ("B", ["B"], ["zz", "B"]):
        _, _, body = post(scripted_service(thinking("a B c", "aBc")), CHAT, ask(stop=stop))
        assert body["choices"][0]["message"]["content"] == "a" and body["choices"][0]["finish_reason"] == "stop"
    _, _, body = post(scripted_service(thinking("a B c", "aBc")), CHAT, ask(stop=[]))
    assert body["choices"][0]["message"]["content"] == "aBc"


def test_what_is_not_obeyed_is_reported():
    asked = ask(temperature=0.5, frequency_penalty=1, foo=1, tools=[], logprobs=False, **{"x\r\nset-cookie: a": 1})
    status, headers, body = post(nano_service(), CHAT, asked)
    assert status == 200 and headers["x-mull-ignored"] == "frequency_penalty, foo" and "set-cookie" not in headers
    assert body["mull"]["ignored"] == ["frequency_penalty", "foo", "x\r\nset-cookie: a"]
    asked["reasoning_effort"] = "medium"  # a vote samples from the model as it is
    status, headers, body = post(nano_service(), CHAT, asked)
    assert headers["x-mull-ignored"] == "frequency_penalty, foo, temperature"
    _, headers, text = post(nano_service(), CHAT, {**asked, "stream": True})
    assert headers["x-mull-ignored"] == "frequency_penalty, foo, temperature"
    assert events(text)[-2]["mull"]["ignored"][-1] == "temperature"
    _, headers, _ = post(nano_service(), CHAT, ask())
    assert "x-mull-ignored" not in headers


def test_the_model_may_be_left_out_where_rules_are_not_strict():
    asked = {"messages": messages()}
    assert post(nano_service(), CHAT, asked)[0] == 200
    status, _, body = post(nano_service(params="strict_o1"), CHAT, asked)
    assert status == 400 and body["error"]["param"] == "model"


def test_a_conversation_with_thoughts_tools_and_two_kinds_of_system_message():
    before = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "exact."}]},
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "2", "reasoning_content": "hidden", "reasoning": {"odd": 1}},
        {"role": "user", "content": "3?"},
    ]
    made = scripted_service(thinking("t", "3"))
    status, _, body = post(made, CHAT, {"model": "nano", "messages": before})
    assert status == 200 and body["choices"][0]["message"]["content"] == "3"
    read = made.main.tools.chat.decode(made.main.tools.sampler.calls[0].prefix)
    assert read == (
        "<|system|>Be brief.\n\nBe exact.<|end|><|user|>2?<|end|><|assistant|>2<|end|><|user|>3?<|end|>"
        "<|assistant|><think>"
    )
    # This model's template knows no tools: that is the client's mistake, told without where the model lies.
    before.append({"role": "tool", "content": "x", "tool_call_id": "1"})
    status, _, body = post(made, CHAT, {"model": "nano", "messages": before})
    assert status == 400 and body["error"]["param"] == "messages" and "/" not in body["error"]["message"]


# ----------------------------------------------------------------------------------------- who leaves, who waits


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_work_along(stream):
    made = nano_service(think_tokens=900, effort="high")
    with serving(made) as server:
        body = json.dumps(ask(stream=stream, mull={"strategy": "vote", "samples": 16})).encode()
        with server.connect() as line:
            line.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            until(lambda: made.jobs and next(iter(made.jobs.values())).live.sampled > 20)
        until(lambda: idle(made), 3)
        assert made.main.tools.sampler.spent.sampled_tokens < 10000


def test_answer_now_makes_a_running_request_answer():
    slow = nano_service(think_tokens=900, effort="high")
    with serving(slow) as server:
        found = {}

        def ask_it():
            client = server.openai()
            found["made"] = client.chat.completions.create(
                model="nano", messages=messages(), extra_body={"mull": {"strategy": "vote", "samples": 32}}
            )

        asking = threading.Thread(target=ask_it)
        asking.start()
        until(lambda: slow.jobs and next(iter(slow.jobs.values())).live.sampled > 50)
        with server.http() as http:
            [request_id] = slow.jobs
            assert http.post("/mull/requests/req_unknown/answer").status_code == 404
            answer = http.post(f"/mull/requests/{request_id}/answer")
            assert answer.status_code == 204 and answer.content == b""
        asking.join(20)
        assert found["made"].mull["early"] == "asked" and found["made"].choices[0].message.content
        with server.http() as http:
            gone = http.post(f"/mull/requests/{request_id}/answer")
            assert gone.status_code == 404 and gone.json()["error"]["code"] == "request_not_found"


def test_a_stream_pings_while_nothing_comes():
    made = scripted_service(thinking("t", "4"), seconds=0.5, ping_seconds=0.1)
    with serving(made) as server, server.http() as http:
        text = http.post(CHAT, json=ask(stream=True)).text
    assert text.count(": ping\n\n") >= 4 and events(text)[-1] == "[DONE]"
    with serving(made) as server:
        chunks = list(server.openai().chat.completions.create(model="nano", messages=messages(), stream=True))
        assert joined(chunks, "content") == "4"


def test_what_a_strategy_refuses_is_the_clients_mistake():
    for asked, param in (
        ({"strategy": "unknown"}, "mull.strategy"),
        ({"strategy": "beam:expand=99999999"}, "mull.strategy"),
        ({"strategy": "particles:ess=nan"}, "mull.strategy"),
        ({"strategy": "x" * 201}, "mull.strategy"),
        ({"samples": 0}, "mull.samples"),
        ({"samples": 1.5}, "mull.samples"),
    ):
        status, _, body = post(nano_service(), CHAT, ask(mull=asked))
        assert status == 400 and body["error"]["param"] == param, asked


def test_while_draining_nothing_begins_and_running_requests_end():
    made = nano_service()
    made.draining = True
    for stream in (False, True):
        status, headers, body = post(made, CHAT, ask(stream=stream))
        assert status == 503 and body["error"]["type"] == "server_error" and headers["retry-after"]


def test_many_at_once_each_get_their_own_answer():
    made = nano_service()
    asked = [("POST", CHAT, {"json": ask(f"a={i};b=a+4;b?", seed=i, n=2, stream=i % 2 == 0)}) for i in range(12)]
    together = calls(made, asked)
    alone = [calls(nano_service(), [one])[0] for one in asked[:3]]
    assert all(status == 200 for status, _, _ in together) and idle(made)
    for (_, _, one), (_, _, other) in zip(together, alone, strict=False):
        if isinstance(one, dict):
            assert one["choices"] == other["choices"]
