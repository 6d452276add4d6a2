"""What the Responses API answers, as the OpenAPI document describes it; tests hold the answers to it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mull.serve.shapes import Shape, Statistics

Status = Literal["in_progress", "completed", "incomplete"]


class SummaryPart(Shape):
    type: Literal["summary_text"]
    text: str


class ThoughtPart(Shape):
    type: Literal["reasoning_text"]
    text: str


class SpokenPart(Shape):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class AskedPart(Shape):
    type: Literal["input_text"]
    text: str


class ReasoningItem(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str
    type: Literal["reasoning"]
    status: Status | None = None
    summary: list[SummaryPart]
    content: list[ThoughtPart] | None = None
    encrypted_content: str | None = None


class MessageItem(Shape):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[SpokenPart]


class InputMessageItem(Shape):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["user", "system", "developer"]
    content: list[AskedPart]


class InputDetails(Shape):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Shape):
    reasoning_tokens: int


class ResponseUsage(Shape):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(Shape):
    reason: Literal["max_output_tokens"]


class Responded(Shape):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    background: Literal[False]
    completed_at: int | None
    error: None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[ReasoningItem | MessageItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, str | None]
    store: bool  # false, too, where it was to be stored and could not be
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["auto"]
    tools: list[Any]
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage
    user: str | None
    mull: Statistics


class Deleted(Shape):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class Items(Shape):
    object: Literal["list"]
    data: list[ReasoningItem | MessageItem | InputMessageItem]
    first_id: str
    last_id: str
    has_more: bool
