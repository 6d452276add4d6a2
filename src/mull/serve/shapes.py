"""What the API answers, as its OpenAPI document says. Answers are made as plain dicts; tests hold them to this."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Shape):
    error: Problem


MEANINGS = {
    400: "The request cannot be served as it is; `param` names the part that is wrong.",
    401: "No API key, or a wrong one.",
    404: "There is no such thing.",
    405: "Another method is needed here.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "Too much is going on: `Retry-After` says when to come again.",
    500: "Our own fault.",
    503: "The server is starting or shutting down.",
}
POSTED = (400, 401, 404, 405, 408, 413, 429, 500, 503)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`."""
    return {status: {"model": ErrorBody, "description": MEANINGS[status]} for status in statuses}


def streams(description: str) -> dict[str, Any]:
    """For a route's `responses[200]`: a stream of events besides JSON. The schema is that of one event."""
    fields = {"data": {"type": "string"}, "event": {"type": "string"}}
    event = {"type": "object", "required": ["data"], "properties": fields, "description": description}
    return {"content": {"text/event-stream": {"schema": event}}}


class Health(Shape):
    status: Literal["ok", "draining"]


class Model(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None


class Models(Shape):
    object: Literal["list"]
    data: list[Model]


# ------------------------------------------------------------------------------------------------ completions


class PromptDetails(Shape):
    cached_tokens: int


class CompletionDetails(Shape):
    reasoning_tokens: int


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Vote(Shape):
    answer: str
    count: int


class Statistics(Shape):
    """What search did for a request, over all its choices: see `vendor.py`."""

    strategy: str
    effort: str
    samples: int  # branches of one choice, at most
    wanted: int  # branches that were asked for, where there was no room for all; else 0
    votes: list[Vote]  # answers of all branches, the most frequent first
    early: Literal["", "asked", "time", "lost"]  # why thinking was ended before the strategy was done
    exhausted: bool  # the budget ran out before the strategy was done
    looped: int  # branches that went round in circles and were closed
    lost: int  # things that failed on the way
    wasted_tokens: int  # sampled in branches that the answer did not come from
    summary_tokens: int  # sampled for a summary that the model wrote
    scorer_tokens: int
    seconds: float
    first_token: float | None  # seconds
    flops: float
    ignored: list[str]  # parameters that were not obeyed


class ChatMessage(Shape):
    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatChoice(Shape):
    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Shape):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    mull: Statistics


class Logprobs(Shape):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Shape):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] | None = None


class TextCompletion(Shape):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


def usage(prompt: int, cached: int, completion: int, reasoning: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
