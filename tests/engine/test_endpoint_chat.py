"""Chat endpoints: prefixes turned into messages and back, and no prefix continued that the server would change."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

import mull
from mull.chat import Chat
from mull.engine.endpoint import EndpointSampler
from mull.engine.endpoint_chat import dialogue
from mull.engine.endpoint_forms import Fields
from mull.errors import StopReason, UserError
from mull.types import SamplingParams
from tests.engine.fake_server import OPENAI, TRANSFORMERS, FakeServer, Traits

NANO = Path(mull.__file__).parent / "nano"
SAID = "b=7</think>7<|end|>"
QWEN = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif -%}"""


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(NANO)


def ask(server: FakeServer, prefix, mode: str = "chat", **params):
    sampler = EndpointSampler(server.url, "nano", server.chat, mode=mode, backoff=0.01)

    async def run():
        async with sampler:
            return await sampler.sample(prefix, SamplingParams(**{"max_tokens": 50, **params}))

    return sampler, asyncio.run(run())[0]


@pytest.mark.parametrize("system", [None, "Be brief.", ""])
@pytest.mark.parametrize("text", ["b=?", "a <|end|> in a question", "<|assistant|><think> too", " spaced\n"])
@pytest.mark.parametrize("think", [True, False])
def test_a_prompt_becomes_its_messages(chat, text, system, think):
    prompt = chat.prompt(text, think=think, system=system)
    found = dialogue(chat, prompt)
    turns = [
        *([{"role": "system", "content": system}] if system is not None else []),
        {"role": "user", "content": text},
    ]
    assert list(found.messages) == turns and found.think is think and not found.continues
    longer = dialogue(chat, [*prompt, *chat.encode("b=3")])
    opened = "<think>" if think else ""
    assert longer.continues and longer.messages[-1] == {"role": "assistant", "content": opened + "b=3"}
    assert list(longer.messages[:-1]) == turns


def test_templates_that_open_no_thought(chat):
    qwen = Chat("qwen", chat._tokenizer_json, QWEN, {}, ["<|end|>"], spell_think=True)
    for think in (True, False):
        prompt = qwen.prompt("b=?", think=think)
        assert dialogue(qwen, prompt).messages == ({"role": "user", "content": "b=?"},)
        assert dialogue(qwen, prompt).think is think


@pytest.mark.parametrize("prefix", ["plain text", "<|user|>b=?", "<|assistant|><think>"])
def test_what_is_no_prompt_cannot_be_asked(chat, prefix):
    with FakeServer(chat, SAID) as server, pytest.raises(UserError, match="not the prompt of one question"):
        ask(server, chat._tokenizer.encode(prefix, add_special_tokens=False).ids)
    assert server.requests == []


@pytest.mark.parametrize(
    "traits",
    [
        Traits(),
        Traits(ids=False),
        Traits(ids=False, splits_thought=True),
        TRANSFORMERS,
        OPENAI,
        dataclasses.replace(OPENAI, splits_thought=True),
    ],
)
def test_a_question_is_answered_whole(chat, traits):
    with FakeServer(chat, SAID, traits) as server:
        sampler, one = ask(server, chat.prompt("b=?"))
        _, cut = ask(server, chat.prompt("b=?"), max_tokens=2)
        _, bare = ask(server, chat.prompt("b=?", think=False))
    assert chat.decode(one.tokens) == SAID and one.stop is StopReason.STOP and len(one.logprobs) == len(one.tokens)
    assert chat.decode(cut.tokens) == "b=" and cut.stop is StopReason.LENGTH
    assert one.cost.sampled_tokens == len(one.tokens) and sampler.form is not None and sampler.form.chat
    assert chat.split(bare.tokens, think=False)[1] != ""
    body = server.requests[-1]
    assert body["route"] == "/chat/completions" and body["messages"] == [{"role": "user", "content": "b=?"}]
    if sampler.form.extended:
        assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_an_opening_tag_that_the_model_says_itself_is_not_doubled(chat):
    for traits in (Traits(), Traits(ids=False), OPENAI):
        with FakeServer(chat, "<think>" + SAID, traits) as server:
            _, one = ask(server, chat.prompt("b=?"))
        assert chat.decode(one.tokens) == SAID and len(one.logprobs) == len(one.tokens)


def test_a_prompt_given_back_as_the_answer_is_not_taken_for_one(chat):
    """transformers serve 5.23 does this where a thought is cut short and the template is not Qwen3's own."""
    prompt = chat.prompt("b=?")
    message = {"reasoning_content": "b=3", "content": "<|user|>b=?<|end|><|assistant|>"}
    choice = {"message": message, "finish_reason": "length"}
    with FakeServer(chat, SAID, TRANSFORMERS) as server:
        server._completion = lambda *_, **__: {"choices": [choice], "usage": {"completion_tokens": 3}}
        _, one = ask(server, prompt, max_tokens=3)
    assert chat.decode(one.tokens) == "b=3" and one.stop is StopReason.LENGTH


def test_a_stop_string_inside_a_separate_thought(chat):
    with FakeServer(chat, "a=3\n" + SAID, dataclasses.replace(OPENAI, splits_thought=True)) as server:
        _, one = ask(server, chat.prompt("b=?"), stop=("\n",))
    assert chat.decode(one.tokens) == "a=3\n" and one.stop is StopReason.STOP


def test_an_answer_is_continued_where_the_server_can(chat):
    prefix = [*chat.prompt("b=?"), *chat.encode("b=7"), *chat.think_close]
    for traits in (Traits(), Traits(ids=False)):
        with FakeServer(chat, lambda text, _: "7<|end|>" if text.endswith("</think>") else "no", traits) as server:
            _, one = ask(server, prefix)
        assert chat.decode(one.tokens) == "7<|end|>"
        body = server.requests[-1]
        assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
        assert body["messages"][-1] == {"role": "assistant", "content": "<think>b=7</think>"}


def test_a_continuation_of_something_else_is_refused(chat):
    """A server that ignores `continue_final_message`, or whose template rewrites the answer, samples another prefix."""
    prefix = [*chat.prompt("b=?"), *chat.encode("b=")]
    for traits in (Traits(continues=False), Traits(continues=False, ids=False)):
        with FakeServer(chat, SAID, traits) as server, pytest.raises(UserError, match="changes the beginning"):
            ask(server, prefix)


@pytest.mark.parametrize("traits", [TRANSFORMERS, OPENAI])
def test_where_the_server_cannot_continue_only_whole_prompts_are_sampled(chat, traits):
    prompt = chat.prompt("b=?")
    with FakeServer(chat, SAID, traits) as server:
        with pytest.raises(UserError, match="cannot continue an answer that has begun"):
            ask(server, [*prompt, *chat.encode("b=")])
        with pytest.raises(UserError, match="cannot continue"):
            ask(server, prompt, forced=tuple(chat.encode("b=")))
        _, one = ask(server, prompt)
    assert chat.decode(one.tokens) == SAID


def test_auto_takes_chat_where_there_is_no_other_route(chat):
    only_chat = dataclasses.replace(OPENAI, routes=("/chat/completions",))
    with FakeServer(chat, SAID, only_chat) as server:
        sampler, one = ask(server, chat.prompt("b=?"), mode="auto")
        assert chat.decode(one.tokens) == SAID
        assert sampler.form is not None and sampler.form.chat and sampler.form.fields is Fields.OPENAI
        assert [b["route"] for b in server.requests].count("/completions") == 1  # a missing route is tried once
        with pytest.raises(UserError, match="no OpenAI-compatible address"):
            ask(server, chat.prompt("b=?"), mode="completions")


def test_auto_does_not_take_chat_for_a_request_that_is_refused(chat):
    with FakeServer(chat, SAID, Traits(fields=set())) as server, pytest.raises(UserError, match="Unexpected fields"):
        ask(server, chat.prompt("b=?"), mode="auto")
    assert {b["route"] for b in server.requests} == {"/completions"}


def test_newer_models_want_another_limit(chat):
    newer = dataclasses.replace(OPENAI, fields=(OPENAI.fields or set()) - {"max_tokens"} | {"max_completion_tokens"})
    with FakeServer(chat, SAID, newer) as server:
        _, one = ask(server, chat.prompt("b=?"), max_tokens=3)
    assert one.stop is StopReason.LENGTH and server.requests[-1]["max_completion_tokens"] == 3
