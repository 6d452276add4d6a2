"""Checks of mull's own, which schemathesis runs on every answer beside those that it brings.

Its check that valid requests are accepted is left out: what a model cannot do no schema can say. Here such a refusal
must be one of a few that are known, so that a schema that promises more than the server keeps is still found.
"""

from __future__ import annotations

import re
from typing import Any

import schemathesis

SHORT, LONGEST = 32, (1 << 31) - 1  # tokens; the latter is the document's bound
NO_PARAMETER = {"invalid_json", "unsupported_content_type"}  # what is wrong with a body as a whole
PYTHON = re.compile(r"\.(str|int|float|bool|dict\[.*|list\[.*|function-.*)$")  # a union's branch is no parameter
# (parameter, code) of what schema-valid requests may be refused for, and why.
KNOWN = {
    ("messages", None),  # the model's template: nano has no tools, and one system message at the beginning
    ("messages", "context_length_exceeded"),
    ("input", "context_length_exceeded"),
    ("prompt", "context_length_exceeded"),
    ("input", "invalid_value"),  # items without one message among them
    ("input", None),  # the model's template
    ("prompt", "invalid_value"),  # token ids that this model has not
    ("prompt", "thoughts_hidden"),  # texts that end in an open thought
    ("n", "invalid_value"),  # the operator's limit
    ("mull.strategy", None),  # there is no such strategy
    ("tool_choice", "unsupported_value"),
    ("function_call", "unsupported_value"),
    ("response_format", "unsupported_value"),
    ("modalities", "unsupported_value"),
    ("reasoning.effort", "invalid_value"),  # another one than `reasoning_effort`
    ("previous_response_id", "previous_response_not_found"),
    ("response_id", "unsupported_value"),  # cancelling, as nothing runs in the background
    ("stream", "unsupported_value"),  # of a stored response
    ("model", "model_not_loaded"),  # /mull/reload
}


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Roles that nano's template refuses become one that it takes: otherwise few conversations would be answered.
    Completions of hundreds of tokens become short ones: they show nothing more, and most of the time would go there.
    A story goes on with a response that was told whole and is kept."""
    if not isinstance(case.body, dict):
        return case
    if case.meta is not None and case.meta.phase.name.value == "stateful":
        case.body = {key: value for key, value in case.body.items() if key not in ("store", "stream")}
    length, messages = case.body.get("max_tokens"), case.body.get("messages")
    if case.path == "/v1/completions" and type(length) is int and SHORT < length < LONGEST:
        case.body = {**case.body, "max_tokens": length % SHORT + 1}
    if isinstance(messages, list):
        case.body = {**case.body, "messages": [_taken(at, message) for at, message in enumerate(messages)]}
    return case


def _taken(at: int, message: Any) -> Any:
    role = message.get("role") if isinstance(message, dict) else None
    return {**message, "role": "user"} if role == "tool" or (at and role in ("system", "developer")) else message


@schemathesis.check
def refusals_name_what_is_wrong(ctx: Any, response: Any, case: Any) -> None:
    assert response.headers.get("x-request-id", [""])[0].startswith("req_"), "an answer without x-request-id"
    if response.status_code < 400 or case.method == "HEAD":
        return
    error = response.json()["error"]
    assert error["message"].strip() and error["message"].isprintable(), f"no message for people: {error}"
    if response.status_code == 400:
        assert error["param"] or error["code"] in NO_PARAMETER, f"no parameter is named: {error}"
    assert not PYTHON.search(error["param"] or ""), f"a parameter that no client knows: {error}"


@schemathesis.check
def valid_requests_are_served(ctx: Any, response: Any, case: Any) -> None:
    if response.status_code != 400 or case.meta is None or case.meta.generation.mode.value != "positive":
        return
    error = response.json()["error"]
    whole = re.split(r"\[", error["param"] or "")[0]
    assert (whole, error["code"]) in KNOWN, f"the schema allows what is refused: {error}"
