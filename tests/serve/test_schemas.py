"""What may be said: conversations, stop strings, numbers; and that whatever is wrong is named as OpenAI names it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mull.serve.chat_asked import ChatRequest
from mull.serve.errors import ApiError
from mull.serve.schemas import STOP_CHARACTERS, STOPS, checked, document, path, said, stops
from tests.serve.tools import ask


def param(call, *given):
    with pytest.raises(ApiError) as found:
        call(*given)
    assert found.value.status in (400, 404) and found.value.message
    return found.value.param, found.value.code


U = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("messages", "where", "code"),
    [
        ("text", "messages", "invalid_type"),
        ({}, "messages", "invalid_type"),
        ([], "messages", "invalid_value"),
        ([U] * 9, "messages", "invalid_value"),
        ([U, 3], "messages[1]", "invalid_type"),
        ([{"content": "x"}], "messages[0].role", "missing_required_parameter"),
        ([{"role": "robot", "content": "x"}], "messages[0].role", "invalid_value"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role", "invalid_value"),
        ([U, {"role": "user"}], "messages[1].content", "missing_required_parameter"),
        ([{"role": "user", "content": None}], "messages[0].content", "missing_required_parameter"),
        ([{"role": "user", "content": 5}], "messages[0].content", "invalid_type"),
        ([{"role": "user", "content": {"text": "x"}}], "messages[0].content", "invalid_type"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "invalid_type"),
        (
            [U, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}],
            "messages[1].content[1].type",
            "invalid_value",
        ),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content[0].type", "invalid_value"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "invalid_type"),
        ([{"role": "assistant", "tool_calls": []}, {"role": "assistant", "tool_calls": 1}], "messages[1].tool_calls",
         "invalid_type"),
        ([{"role": "user", "content": "x", "name": 5}], "messages[0].name", "invalid_type"),
        ([U, {"role": "tool", "content": "x", "tool_call_id": {}}], "messages[1].tool_call_id", "invalid_type"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls", "invalid_type"),
        ([{"role": "assistant", "tool_calls": [{}] * 129}], "messages[0].tool_calls", "invalid_type"),
        ([{"role": "assistant", "tool_calls": [{"id": "x"}]}], "messages[0].tool_calls[0].function", "invalid_type"),
        ([{"role": "assistant", "tool_calls": [{"type": {}, "function": {"name": "f", "arguments": ""}}]}],
         "messages[0].tool_calls[0].type", "invalid_value"),
        ([{"role": "assistant", "tool_calls": [{"id": 5, "function": {"name": "f", "arguments": ""}}]}],
         "messages[0].tool_calls[0].id", "invalid_type"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}],
         "messages[0].tool_calls[0].function.arguments", "invalid_type"),
    ],
)  # fmt: skip
def test_a_conversation_that_is_none(messages, where, code):
    assert param(said, messages, 8) == (where, code)


def test_what_the_model_is_given_of_a_conversation():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}", "odd": 1}, "odd": [1]}
    given = [
        {"role": "system", "content": "s", "name": "x"},
        {"role": "developer", "content": parts},
        {"role": "user", "content": parts, "secret": {"deep": 1}},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "t"},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
        {"role": "assistant", "name": None, "tool_call_id": None},
        {"role": "system", "content": "late"},
    ]
    assert list(said(given, 8)) == [
        {"role": "system", "content": "s\n\nab"},
        {"role": "user", "content": "ab"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": ""},
        {"role": "system", "content": "late"},
    ]


def test_stop_strings():
    assert stops(None) == stops([]) == () and stops("a") == stops(["a"]) == stops(["a", "a"]) == ("a",)
    assert len(stops([str(i) for i in range(STOPS)])) == STOPS and stops("x" * STOP_CHARACTERS)
    assert param(stops, [str(i) for i in range(10_000)]) == ("stop", "invalid_value")
    assert param(stops, [str(i) for i in range(5)], 4) == ("stop", "invalid_value")
    assert param(stops, "") == ("stop", "invalid_value")
    assert param(stops, ["a", ""]) == ("stop[1]", "invalid_value")
    assert param(stops, ["x" * (STOP_CHARACTERS + 1)]) == ("stop[0]", "invalid_value")
    for wrong in (5, {}, ["a", 5], [["a"]], True):
        assert param(stops, wrong) == ("stop", "invalid_type")


@pytest.mark.parametrize(
    ("field", "values", "code"),
    [
        ("temperature", [-0.1, 2.1, 10**60], "invalid_value"),
        ("temperature", ["1", True, [], {}], "invalid_type"),
        ("top_p", [-0.1, 1.1], "invalid_value"),
        ("n", [0, -1, 129, 10**30], "invalid_value"),
        ("n", ["1", True, 1.5], "invalid_type"),
        ("seed", [1.5, "1", True, []], "invalid_type"),
        ("max_tokens", [0, -1, 1 << 40], "invalid_value"),
        ("max_completion_tokens", [0, -1, 1 << 40], "invalid_value"),
        ("thinking_token_budget", [-1, 1 << 40], "invalid_value"),
        ("reasoning_effort", ["huge", "", "LOW"], "invalid_value"),
        ("stream", ["true", 1], "invalid_type"),
        ("presence_penalty", [-2.1, 2.1], "invalid_value"),
        ("top_logprobs", [-1, 21], "invalid_value"),
        ("logit_bias", [[], "x"], "invalid_type"),
        ("model", [5, {}], "invalid_type"),
        ("user", [5, {}], "invalid_type"),
        ("metadata", [5, []], "invalid_type"),
        ("tools", [{}, "x"], "invalid_type"),
        ("tool_choice", [5, [], True], "invalid_type"),
        ("function_call", [5, [], True], "invalid_type"),
    ],
)
def test_a_value_that_a_field_cannot_have(field, values, code):
    for value in values:
        assert param(checked, ChatRequest, ask(**{field: value})) == (field, code), value


def test_deeper_fields_are_named_by_their_path():
    for asked, where in (
        ({"reasoning": {"effort": "x"}}, "reasoning.effort"),
        ({"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": {"budget_tokens": -5}}, "thinking.budget_tokens"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"tools": [{}, 5]}, "tools[1]"),
    ):
        assert param(checked, ChatRequest, ask(**asked))[0] == where
    assert param(checked, ChatRequest, {"model": "nano"}) == ("messages", "missing_required_parameter")
    assert path(("a", 0, "b" * 100)) == "a[0]." + "b" * 60


def test_null_is_as_good_as_absent_and_three_point_oh_is_three():
    nulls = {name: None for name in ChatRequest.model_fields if name != "messages"}
    assert checked(ChatRequest, {**nulls, "messages": []}).model_dump() == ChatRequest(messages=[]).model_dump()
    assert checked(ChatRequest, ask(n=3.0)).n == 3 and checked(ChatRequest, ask(temperature=1)).temperature == 1


def test_the_described_body_takes_what_the_form_takes():
    schema = document(ChatRequest)["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(ChatRequest.model_fields) and schema["required"] == ["messages"]
    assert schema["properties"]["messages"]["type"] == "array"
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"messages": [], "n": 0})
