"""The Responses API over scripts: what is refused, passed over or bounded."""

import asyncio

import pytest

from mull.errors import UserError
from mull.serve.app import make_app
from tests.serve.responses_tools import (
    PATH,
    ask,
    made,
    refused,
    script,
)
from tests.serve.tools import post, scripted_service

USER = {"role": "user", "content": "hi"}
BAD = [
    ({"model": "nano"}, 400, "input"),
    ({"input": "hi", "model": "gpt-9"}, 404, "model"),
    (ask(None), 400, "input"),
    (ask([]), 400, "input"),
    (ask(5), 400, "input"),
    (ask({"role": "user"}), 400, "input"),
    (ask([5]), 400, "input[0]"),
    (ask([USER] * 1000), 400, "input"),
    (ask([USER, {"role": "robot", "content": "hi"}]), 400, "input[1].role"),
    (ask([{"content": "hi"}]), 400, "input[0].role"),
    (ask([{"role": "user"}]), 400, "input[0].content"),
    (ask([{"role": "user", "content": 5}]), 400, "input[0].content"),
    (ask([{"role": "user", "content": [5]}]), 400, "input[0].content[0]"),
    (ask([{"role": "user", "content": [{"type": "input_text"}]}]), 400, "input[0].content[0].text"),
    (ask([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]), 400, "input[0].content[0].type"),
    (ask([{"role": "user", "content": [{"type": "input_file"}]}]), 400, "input[0].content[0].type"),
    (ask([{"type": "function_call", "name": "f"}]), 400, "input[0].type"),
    (ask([{"type": ["message"], "role": "user"}]), 400, "input[0].type"),
    (ask([{"type": "message", "role": "user", "content": "x", "id": "x" * 65}]), 400, "input[0].id"),
    (ask([{"type": "message", "role": "user", "content": "x", "id": 5}]), 400, "input[0].id"),
    (ask([{"type": "item_reference"}]), 400, "input[0].id"),
    (ask([{"type": "reasoning", "summary": [], "id": "rs_1"}]), 400, "input"),
    (ask([USER, {"type": "reasoning", "summary": "x"}]), 400, "input[1].summary"),
    (ask([USER, {"type": "reasoning", "summary": [{"type": "x"}]}]), 400, "input[1].summary[0].type"),
    (ask([USER, {"type": "reasoning", "encrypted_content": 5}]), 400, "input[1].encrypted_content"),
    (ask([USER, {"type": "reasoning", "encrypted_content": "x"}]), 400, "input[1].encrypted_content"),
    (ask([USER, {"role": "system", "content": "late"}]), 400, "input"),  # nano's template has it first alone
    (ask(instructions=5), 400, "instructions"),
    (ask(previous_response_id="resp_nobody"), 400, "previous_response_id"),
    (ask(previous_response_id=5), 400, "previous_response_id"),
    (ask(store="yes"), 400, "store"),
    (ask(include=["everything"]), 400, "include[0]"),
    (ask(include="reasoning.encrypted_content"), 400, "include"),
    (ask(reasoning={"effort": "huge"}), 400, "reasoning.effort"),
    (ask(reasoning={"summary": "long"}), 400, "reasoning.summary"),
    (ask(reasoning="high"), 400, "reasoning"),
    (ask(reasoning={"max_tokens": -1}), 400, "reasoning.max_tokens"),
    (ask(thinking_token_budget=-1), 400, "thinking_token_budget"),
    (ask(max_output_tokens=0), 400, "max_output_tokens"),
    (ask(max_output_tokens="9"), 400, "max_output_tokens"),
    (ask(temperature=3), 400, "temperature"),
    (ask(top_p=-1), 400, "top_p"),
    (ask(stream="yes"), 400, "stream"),
    (ask(background=True), 400, "background"),
    (ask(tools=[{"type": "web_search"}]), 400, "tools"),
    (ask(tool_choice="required"), 400, "tool_choice"),
    (ask(tool_choice={"type": "function", "name": "f"}), 400, "tool_choice"),
    (ask(conversation="conv_1"), 400, "conversation"),
    (ask(prompt={"id": "p"}), 400, "prompt"),
    (ask(text={"format": {"type": "json_schema", "name": "x", "schema": {}}}), 400, "text.format.type"),
    (ask(text={"format": {"type": "json_object"}}), 400, "text.format.type"),
    (ask(truncation="some"), 400, "truncation"),
    (ask(metadata={"a": 5}), 400, "metadata.a"),
    (ask(metadata={str(n): "" for n in range(17)}), 400, "metadata"),
    (ask(metadata={"a": "x" * 513}), 400, "metadata.a"),
    (ask(mull={"strategy": "magic"}), 400, "mull.strategy"),
    (ask("x" * 3000), 400, "input"),
]  # fmt: skip


@pytest.fixture(scope="module")
def refusing():
    return scripted_service([])  # a model that says nothing: whatever reaches it fails


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "param"), BAD, ids=[f"{n}-{bad[2]}" for n, bad in enumerate(BAD)])
def test_bad_requests_are_refused_with_the_parameter(refusing, body, status, param, stream):
    if stream and body.get("stream") is None:
        body = {**body, "stream": True}
    problem = refused(refusing, body, status)
    assert problem["type"] == "invalid_request_error" and len(problem["message"]) > 20
    named = problem["param"] or ""
    assert named == param or (param.startswith("metadata") and named.startswith("metadata")), problem
    assert not refusing.jobs and not refusing.main.tools.sampler.calls


def test_a_template_that_refuses_is_no_fault_of_ours():
    problem = refused(
        scripted_service([]), ask([{"role": "assistant", "content": "a"}, {"role": "system", "content": "b"}])
    )
    assert problem["param"] == "input"


def test_other_fields_are_passed_over_and_reported():
    service = scripted_service(script("4", "5", "6"))
    neutral = {
        "parallel_tool_calls": True, "max_tool_calls": 3, "service_tier": "auto", "top_logprobs": 0, "tools": [],
        "tool_choice": "auto", "stream_options": {"include_obfuscation": False}, "text": {"format": {"type": "text"}},
        "background": False, "conversation": None, "prompt": None,
    }  # fmt: skip
    status, headers, _ = post(service, PATH, ask(**neutral))
    assert status == 200 and "x-mull-ignored" not in headers
    heard = {"prompt_cache_key": "x", "top_logprobs": 5, "include": ["message.output_text.logprobs"], "frobnicate": 1}
    status, headers, body = post(service, PATH, ask(**heard))
    assert status == 200 and body["mull"]["ignored"] == ["include", "prompt_cache_key", "top_logprobs", "frobnicate"]
    assert headers["x-mull-ignored"] == "include, prompt_cache_key, top_logprobs, frobnicate"
    inside = {"reasoning": {"effort": "low", "context": "all", "mode": None}, "text": {"verbosity": "low"}}
    _, headers, body = post(service, PATH, ask(**inside))
    assert body["mull"]["ignored"] == ["reasoning.context", "text.verbosity"]
    assert headers["x-mull-ignored"] == "reasoning.context, text.verbosity"


def test_strict_mode_refuses_what_o1_refuses():
    service = scripted_service(script(*"abcdef"), params="strict_o1")
    for bad, param, code in (
        ({"temperature": 0.5}, "temperature", "unsupported_parameter"),
        ({"top_p": 0.5}, "top_p", "unsupported_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"reasoning": {"effort": "max"}}, "reasoning.effort", "unsupported_value"),
        ({"reasoning": {"effort": "none"}}, "reasoning.effort", "unsupported_value"),
        ({"seed": 5}, "seed", "unknown_parameter"),
        ({"enable_thinking": True}, "enable_thinking", "unknown_parameter"),
        ({"frobnicate": 1}, "frobnicate", "unknown_parameter"),
        ({"reasoning": {"max_tokens": 5}}, "reasoning.max_tokens", "unknown_parameter"),
        ({"reasoning": {"effort": "low", "exclude": None}}, "reasoning.exclude", "unknown_parameter"),
    ):
        problem = refused(service, ask(**bad))
        assert (problem["param"], problem["code"]) == (param, code)
    assert refused(service, {"input": "hi"})["param"] == "model"
    for good in (
        {"temperature": 1},
        {"reasoning": {"effort": "low", "summary": "auto"}},
        {"reasoning": {"effort": "low", "context": "auto", "mode": "standard"}},
        {"safety_identifier": "x"},
    ):
        made(service, **good)


def test_long_conversations_of_stored_responses_are_bounded(tmp_path):
    service = scripted_service(script(*"1234"), store=tmp_path / "s.db", max_messages=5)
    first = made(service)
    second = made(service, previous_response_id=first["id"])
    problem = refused(service, ask(previous_response_id=second["id"]))
    assert problem["param"] == "previous_response_id" and "truncation" in problem["message"]
    made(service, previous_response_id=second["id"], truncation="auto")


def test_the_store_is_closed_with_the_server(tmp_path):
    app = make_app(scripted_service(script("4"), store=tmp_path / "s.db"))

    async def scene():
        async with app.router.lifespan_context(app):
            assert (tmp_path / "s.db-wal").exists()
        assert not (tmp_path / "s.db-wal").exists()  # SQLite's last connection cleans up

    asyncio.run(scene())


@pytest.mark.parametrize("key", ["store", "secret"])
def test_files_that_cannot_be_used_are_said_at_the_start(tmp_path, key):
    with pytest.raises(UserError, match="no/such"):
        make_app(scripted_service([], **{key: tmp_path / "no" / "such" / "folder"}))
