"""What the API takes: forms for pydantic, and what their parts mean. Whatever is wrong is named, OpenAI's way.

In a form every field may be null, which is as if it were absent: clients send both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from mull.serve.errors import ApiError, invalid

F = TypeVar("F", bound="Form")

MOST_TOKENS = (1 << 31) - 1  # the engine keeps them in 32 bits with a sign
STOPS, STOP_CHARACTERS = 16, 256  # OpenAI takes 4; evaluations bring more
CALLS = 128  # tools that one message called


def whole(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(whole)  # behind the bounds of its number, which would not be in the JSON schema otherwise
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS), WHOLE]
Budget = Annotated[int, Field(ge=0, le=MOST_TOKENS), WHOLE]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, WHOLE]  # any: bounds of 64 bits would be rounded in the document, where numbers are floats
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Stop = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": STOP_CHARACTERS},
                {
                    "type": "array",
                    "maxItems": STOPS,
                    "items": {"type": "string", "minLength": 1, "maxLength": STOP_CHARACTERS},
                },
                {"type": "null"},
            ],
            "description": f"Up to {STOPS} strings that end the answer; it does not contain them. [] is none.",
        }
    ),
]
_CALL = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "id": {"type": ["string", "null"]},
        "type": {"enum": ["function", None]},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
        },
    },
}
_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_TEXT = [{"type": "string"}, {"type": "array", "items": _PART}]
NAMES = ("name", "tool_call_id")  # whose message it is: templates here do not read them
_NAMES = {key: {"type": ["string", "null"]} for key in NAMES}
MESSAGES: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": {"enum": ["developer", "system", "user", "tool"]},
                    "content": {"anyOf": _TEXT},
                    **_NAMES,
                },
            },
            {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {"const": "assistant"},
                    "content": {"anyOf": [*_TEXT, {"type": "null"}]},
                    "tool_calls": {"anyOf": [{"type": "array", "items": _CALL, "maxItems": CALLS}, {"type": "null"}]},
                    "reasoning_content": {"description": "Accepted and ignored."},
                    "reasoning": {"description": "Accepted and ignored."},
                    **_NAMES,
                },
            },
        ]
    },
    "description": "A conversation in text. Parts that are no text (images, sound, files) are refused.",
}


class Form(BaseModel):
    """`model_extra` has what the form does not know."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class StreamOptions(Form):
    include_usage: bool | None = None


class Vendor(Form):
    """Ours: how to search."""

    strategy: Annotated[str, Field(max_length=200)] | None = None
    samples: Annotated[int, Field(ge=1, le=4096), WHOLE] | None = None


class Request(Form):
    """What both kinds of completions know."""

    model: Annotated[str, Field(description="As /v1/models names it; left out, the first of those.")] | None = None
    max_tokens: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=128), WHOLE] | None = None
    seed: Seed | None = None
    stop: Stop = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None


def checked(form: type[F], data: dict[str, Any]) -> F:
    """The form filled in; ApiError for the first thing that does not fit."""
    try:
        return form.model_validate(data)
    except ValidationError as problem:
        raise translated(problem) from None


def translated(problem: ValidationError) -> ApiError:
    first = problem.errors(include_url=False, include_input=False, include_context=False)[0]
    where, kind, said = path(first["loc"]), first["type"], first["msg"]
    if kind == "missing":
        return invalid(f"Missing required parameter: '{where}'.", where, "missing_required_parameter")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return invalid(f"Invalid '{where}': {said[:1].lower()}{said[1:200]}.", where, code)


def path(loc: Sequence[str | int]) -> str:
    """
    >>> path(("messages", 0, "content"))
    'messages[0].content'
    """
    joined = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:60]}" for part in loc)
    return joined.removeprefix(".")


def stops(value: Any, most: int = STOPS) -> tuple[str, ...]:
    if value is None:
        return ()
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(stop, str) for stop in found):
        raise invalid("Invalid type for 'stop': expected a string or a list of strings.", "stop", "invalid_type")
    if len(found) > most:
        raise invalid(f"Invalid 'stop': {len(found)} strings were given and {most} may be.", "stop", "invalid_value")
    for i, stop in enumerate(found):
        if not 0 < len(stop) <= STOP_CHARACTERS:
            where = "stop" if isinstance(value, str) else f"stop[{i}]"
            message = f"Invalid '{where}': it must have from 1 to {STOP_CHARACTERS} characters, and has {len(stop)}."
            raise invalid(message, where, "invalid_value")
    return tuple(dict.fromkeys(found))


# -------------------------------------------------------------------------------------------------- messages


def said(messages: Any, most: int) -> tuple[dict[str, Any], ...]:
    """A conversation as chat templates know it: texts, and one system message at its beginning.

    `developer` is what OpenAI calls `system` from o1 on. What an assistant thought in earlier turns is left out.
    """
    if not isinstance(messages, list):
        raise invalid("Invalid type for 'messages': expected a list of messages.", "messages", "invalid_type")
    if not 0 < len(messages) <= most:
        message = f"Invalid 'messages': it must have from 1 to {most} messages, and has {len(messages)}."
        raise invalid(message, "messages", "invalid_value")
    turns: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        turn = _turn(message, f"messages[{i}]")
        if turn["role"] == "system" and turns and all(t["role"] == "system" for t in turns):
            turns[0]["content"] += "\n\n" + turn["content"]
        else:
            turns.append(turn)
    return tuple(turns)


def _turn(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise invalid(f"Invalid type for '{where}': expected an object.", where, "invalid_type")
    role, content = message.get("role"), message.get("content")
    if role not in ("developer", "system", "user", "assistant", "tool"):
        if role is None:
            raise invalid(f"Missing required parameter: '{where}.role'.", f"{where}.role", "missing_required_parameter")
        supported = "Supported values are: 'developer', 'system', 'user', 'assistant', and 'tool'."
        raise invalid(f"Invalid value for '{where}.role'. {supported}", f"{where}.role", "invalid_value")
    for key in NAMES:
        if not isinstance(message.get(key), str | None):
            raise invalid(f"Invalid type for '{where}.{key}': expected a string.", f"{where}.{key}", "invalid_type")
    turn: dict[str, Any] = {"role": "system" if role == "developer" else role}
    if content is None and role != "assistant":
        missing = f"Missing required parameter: '{where}.content'."
        raise invalid(missing, f"{where}.content", "missing_required_parameter")
    turn["content"] = "" if content is None else text_of(content, f"{where}.content")
    if role == "assistant" and (calls := message.get("tool_calls")) not in (None, []):
        turn["tool_calls"] = _calls(calls, f"{where}.tool_calls")
    return turn


def text_of(content: Any, where: str, kinds: Sequence[str] = ("text",)) -> str:
    """Text, or the texts of a list of parts of these kinds."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"Invalid type for '{where}': expected text or a list of text parts.", where, "invalid_type")
    texts: list[str] = []
    for j, part in enumerate(content):
        at = f"{where}[{j}]"
        if not isinstance(part, dict):
            raise invalid(f"Invalid type for '{at}': expected an object.", at, "invalid_type")
        kind = part.get("type")
        if kind not in kinds:
            named = f"'{kind[:40]}'" if isinstance(kind, str) else "This kind of part"
            message = f"Invalid content type. {named} is not supported by this model: it reads text alone."
            raise invalid(message, f"{at}.type", "invalid_value")
        if not isinstance(part.get("text"), str):
            raise invalid(f"Invalid type for '{at}.text': expected a string.", f"{at}.text", "invalid_type")
        texts.append(part["text"])
    return "".join(texts)


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """What the assistant called in an earlier turn, with another server: templates may show it to the model."""
    if not isinstance(calls, list) or len(calls) > CALLS:
        raise invalid(f"Invalid '{where}': expected a list of at most {CALLS} tool calls.", where, "invalid_type")
    found = []
    for j, call in enumerate(calls):
        at = f"{where}[{j}].function"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise invalid(f"Invalid type for '{at}': expected an object.", at, "invalid_type")
        if call.get("type") not in (None, "function"):
            raise invalid(f"Invalid '{where}[{j}].type': expected 'function'.", f"{where}[{j}].type", "invalid_value")
        if not isinstance(call.get("id"), str | None):
            raise invalid(f"Invalid type for '{where}[{j}].id': expected a string.", f"{where}[{j}].id", "invalid_type")
        for key in ("name", "arguments"):
            if not isinstance(function.get(key), str):
                raise invalid(f"Invalid type for '{at}.{key}': expected a string.", f"{at}.{key}", "invalid_type")
        plain = {"name": function["name"], "arguments": function["arguments"]}
        found.append({"id": str(call.get("id") or ""), "type": "function", "function": plain})
    return found


# ------------------------------------------------------------------------------------------------- documenting


def document(form: type[Form]) -> dict[str, Any]:
    """For a route's `openapi_extra`: what its body is. (`app.py` moves the definitions to where they belong.)"""
    schema = form.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
