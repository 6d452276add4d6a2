"""Efforts and budgets in everybody's spelling, o1's refusals word for word, and what must not be ignored."""

from __future__ import annotations

import pytest

from mull.serve.chat_asked import ChatRequest, asked, header, unheard
from mull.serve.errors import ApiError
from mull.serve.plan import Wish
from mull.serve.schemas import checked
from mull.serve.settings import Settings
from tests.serve.tools import ask, nano_service, post

CHAT = "/v1/chat/completions"


def wish(strict=False, **fields) -> Wish:
    return asked(checked(ChatRequest, ask(**fields)), Settings(params="strict_o1" if strict else "compat"))


def refusal(strict=False, **fields):
    with pytest.raises(ApiError) as found:
        wish(strict, **fields)
    return found.value


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"reasoning_effort": "none"}, {"effort": "none"}),
        ({"reasoning_effort": "minimal"}, {"effort": "none"}),
        ({"reasoning_effort": "low"}, {"effort": "low"}),
        ({"reasoning_effort": "medium"}, {"effort": "medium"}),
        ({"reasoning_effort": "max"}, {"effort": "high"}),
        ({"reasoning": {"effort": "xhigh"}}, {"effort": "high"}),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "low"}, {"effort": "low"}),
        ({"reasoning": {"max_tokens": 9}}, {"think_budget": 9}),
        ({"reasoning": {"enabled": False}}, {"think": False}),
        ({"reasoning": {"enabled": True}}, {}),
        ({"reasoning": {"exclude": True}}, {"summary": False}),
        ({"thinking": {"type": "disabled"}}, {"think": False}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"think_budget": 1024}),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking_token_budget": 0}, {"think_budget": 0}),
        ({"thinking_token_budget": 30, "reasoning": {"max_tokens": 20}}, {"think_budget": 20}),
        ({"enable_thinking": False}, {"think": False}),
        ({"enable_thinking": True}, {}),
        ({"chat_template_kwargs": {"enable_thinking": False, "other": 1}}, {"think": False}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 4}, {"max_tokens": 4}),
        ({"temperature": 0, "top_p": 0.5, "seed": -4}, {"temperature": 0, "top_p": 0.5, "seed": -4}),
        ({"top_p": 0}, {"top_p": 1e-6}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop": []}, {}),
        ({"user": "u"}, {"end_user": "u"}),
        ({"mull": {"strategy": "vote", "samples": 3}}, {"strategy": "vote", "samples": 3}),
    ],
)
def test_what_a_request_wishes(fields, expected):
    messages = ({"role": "user", "content": ask()["messages"][0]["content"]},)
    assert vars(wish(**fields)) == vars(Wish(messages, model="nano", **expected))


def test_two_efforts_that_differ_are_a_mistake():
    assert refusal(reasoning_effort="low", reasoning={"effort": "high"}).param == "reasoning.effort"
    assert wish(reasoning_effort="high", reasoning={"effort": "max"}).effort == "high"  # the same here


def test_efforts_and_budgets_change_what_is_spent():
    def spent(**fields):
        _, _, body = post(nano_service(), CHAT, ask(seed=2, **fields))
        return body["usage"]["completion_tokens_details"]["reasoning_tokens"], body["mull"]

    low, medium = spent(reasoning_effort="low")[0], spent(reasoning_effort="medium")[0]
    assert spent(reasoning_effort="none")[0] == 0 < low < medium
    assert spent(thinking={"type": "disabled"})[0] == spent(chat_template_kwargs={"enable_thinking": False})[0] == 0
    assert 0 < spent(thinking_token_budget=8)[0] <= 8
    assert spent(reasoning_effort="medium", reasoning={"max_tokens": 60})[0] <= 60 + 16
    made = spent(mull={"strategy": "vote", "samples": 3})[1]
    assert made["strategy"] == "vote" and made["samples"] == 3 and sum(v["count"] for v in made["votes"]) == 3


# ---------------------------------------------------------------------------------------------------- strict o1


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"temperature": 0.2}, "temperature"),
        ({"temperature": 0}, "temperature"),
        ({"top_p": 0.9}, "top_p"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -0.5}, "frequency_penalty"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
def test_o1_refuses_these(fields, name):
    problem = refusal(strict=True, **fields)
    assert problem.body() == {
        "error": {
            "message": f"Unsupported parameter: '{name}' is not supported with this model.",
            "type": "invalid_request_error",
            "param": name,
            "code": "unsupported_parameter",
        }
    }
    assert wish(**fields)  # and compatible mode does not


def test_o1_refuses_values_and_says_what_it_takes():
    assert refusal(strict=True, n=2).body()["error"] == {
        "message": "Unsupported value: 'n' does not support 2 with this model."
        " Only the default (1) value is supported.",
        "type": "invalid_request_error",
        "param": "n",
        "code": "unsupported_value",
    }
    problem = refusal(strict=True, max_tokens=5)
    assert (problem.param, problem.code) == ("max_tokens", "unsupported_parameter")
    assert "Use 'max_completion_tokens' instead." in problem.message
    problem = refusal(strict=True, reasoning_effort="minimal")
    assert (problem.param, problem.code) == ("reasoning_effort", "unsupported_value")
    assert "'low', 'medium', and 'high'" in problem.message
    assert refusal(strict=True, stop=list("abcde")).param == "stop"
    for foreign in ("enable_thinking", "thinking_token_budget", "reasoning", "thinking", "include_reasoning", "foo"):
        problem = refusal(strict=True, **{foreign: {} if "ing" in foreign[-3:] else False, "stream": False})
        assert (problem.param, problem.code) in ((foreign, "unknown_parameter"), (foreign, "invalid_type"))


def test_o1_takes_what_it_always_took():
    fields = {
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "logprobs": False,
        "n": 1,
        "tools": [],
        "max_completion_tokens": 20,
        "reasoning_effort": "high",
        "seed": 1,
        "stop": ["a", "b", "c", "d"],
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "response_format": {"type": "text"},
        "mull": {"samples": 2},
    }
    assert wish(strict=True, **fields).effort == "high"
    status, _, body = post(nano_service(params="strict_o1"), CHAT, ask(**fields))
    assert status == 200 and body["choices"][0]["message"]["content"]


# ----------------------------------------------------------------------------------------------- ignored or not


def test_tools_are_ignored_where_the_model_may_choose_and_refused_where_it_must():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for choice in (None, "auto", "none"):
        form = checked(ChatRequest, ask(tools=[tool], tool_choice=choice))
        assert asked(form, Settings()) and unheard(form) == ["tools"]
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        problem = refusal(tools=[tool], tool_choice=choice)
        assert (problem.param, problem.code) == ("tool_choice", "unsupported_value")
    assert refusal(functions=[tool], function_call={"name": "f"}).param == "function_call"


def test_a_format_that_would_not_be_kept_is_refused():
    for kind in ({"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, {}):
        assert refusal(response_format=kind).param == "response_format"
        assert refusal(strict=True, response_format=kind).param == "response_format"
    assert refusal(modalities=["text", "audio"]).param == "modalities"
    assert wish(response_format={"type": "text"}, modalities=["text"])


def test_more_choices_than_the_operator_allows():
    with pytest.raises(ApiError) as found:
        asked(checked(ChatRequest, ask(n=9)), Settings())
    assert found.value.param == "n" and asked(checked(ChatRequest, ask(n=9)), Settings(max_choices=9))


def test_what_asks_for_something_and_is_not_obeyed():
    def names(**fields):
        return unheard(checked(ChatRequest, ask(**fields)))

    quiet = {"presence_penalty": 0, "logprobs": False, "tools": [], "logit_bias": {}, "tool_choice": "auto", "x": None}
    assert names(**quiet, store=False, service_tier="auto", user="u", metadata={}, seed=1, stop=[], n=1) == []
    assert names(presence_penalty=1, logprobs=True, top_logprobs=2) == ["presence_penalty", "logprobs", "top_logprobs"]
    assert names(store=True, min_p=0.1) == ["store", "min_p"]


def test_a_header_holds_plain_names_alone():
    assert header([]) == {} == header(["a b", "ä", "a\r\nb", "", "x" * 65])
    assert header(["a", "b_c", "d\n", "e"]) == {"x-mull-ignored": "a, b_c, e"}
    assert len(header([f"x{i}" for i in range(1000)])["x-mull-ignored"]) < 300
