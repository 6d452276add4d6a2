"""What the Responses API takes, and what is asked for with it. (Its input items are read in `responses_items`.)

Compatible mode obeys what it can, and reports what it cannot. What a client relies on is refused: tools, formats,
background work and conversations that would be kept here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from mull.serve.errors import invalid, unsupported
from mull.serve.plan import WORDS, Wish
from mull.serve.responses_events import Detail
from mull.serve.schemas import Budget, Effort, Form, Seed, Tokens, Vendor
from mull.serve.settings import Settings

ID = 64  # characters of an item's id
ROLES = ("user", "assistant", "system", "developer")
TEXTS = ("input_text", "output_text", "text")
_PART = {
    "anyOf": [
        {
            "type": "object",
            "required": ["type", "text"],
            "properties": {"type": {"enum": list(TEXTS)}, "text": {"type": "string"}},
        },
        {
            "type": "object",
            "required": ["type", "refusal"],
            "properties": {"type": {"const": "refusal"}, "refusal": {"type": "string"}},
        },
    ]
}
_SUMMARY = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "summary_text"}, "text": {"type": "string"}},
}
_ID = {"type": ["string", "null"], "maxLength": ID}
ITEMS: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "required": ["role", "content"],
            "properties": {
                "type": {"enum": ["message", None]},
                "role": {"enum": list(ROLES)},
                "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
                "id": _ID,
            },
        },
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"const": "reasoning"},
                "id": _ID,
                "summary": {"type": ["array", "null"], "items": _SUMMARY},
                "encrypted_content": {"type": "null", "description": "Or what this server made, unchanged."},
            },
        },
        {
            "type": "object",
            "required": ["type", "id"],
            "properties": {
                "type": {"const": "item_reference"},
                "id": {"type": "string", "minLength": 1, "maxLength": ID},
            },
            "description": "An item of a stored response.",
        },
    ]
}
INPUT: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": ITEMS}],
    "description": "Text, or the items of a conversation in text. Images, sound, files and tools are refused.",
}
INCLUDED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
Includable = Literal[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",  # reported as ignored
    # Of tools and images, which there are none of: nothing has to be included.
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class ResponseReasoning(Form):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None  # what `summary` was called
    max_tokens: Budget | None = None  # of thought, as OpenRouter calls it


class ResponseFormat(Form):
    type: Literal["text"] | None = None


class ResponseText(Form):
    format: ResponseFormat | None = None


class ResponseRequest(Form):
    model: Annotated[str, Field(description="As /v1/models names it; may be left out.")] | None = None
    input: Annotated[Any, WithJsonSchema(INPUT)]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    include: list[Includable] | None = None
    reasoning: ResponseReasoning | None = None
    thinking_token_budget: Budget | None = None
    enable_thinking: bool | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed | None = None
    mull: Vendor | None = None
    stream: bool | None = None
    text: ResponseText | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    user: str | None = None
    background: Annotated[bool | None, WithJsonSchema({"enum": [False, None]})] = None
    tools: Annotated[list[Any] | None, WithJsonSchema({"type": ["array", "null"], "maxItems": 0})] = None
    tool_choice: Annotated[Any, WithJsonSchema({"enum": ["auto", "none", None]})] = None
    conversation: Annotated[Any, WithJsonSchema({"type": "null"})] = None
    prompt: Annotated[Any, WithJsonSchema({"type": "null"})] = None

    def includes(self, what: str) -> bool:
        return what in (self.include or ())


# What OpenAI knows besides, and values that ask for nothing; None: none does.
KNOWN: dict[str, tuple[Any, ...] | None] = {
    "parallel_tool_calls": None,
    "max_tool_calls": None,
    "stream_options": None,
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    **dict.fromkeys(("context_management", "moderation", "safety_identifier"), ()),
    **dict.fromkeys(("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"), ()),
}
OURS = {"thinking_token_budget", "enable_thinking", "seed"}  # that OpenAI does not know
REASONING = {"context", "effort", "generate_summary", "mode", "summary"}  # what OpenAI knows in `reasoning`


def wish(form: ResponseRequest, messages: tuple[dict[str, Any], ...]) -> Wish:
    reasoning, vendor = form.reasoning or ResponseReasoning(), form.mull or Vendor()
    budgets = [b for b in (form.thinking_token_budget, reasoning.max_tokens) if b is not None]
    return Wish(
        messages,
        effort=WORDS[reasoning.effort] if reasoning.effort else None,
        think=False if form.enable_thinking is False else None,
        think_budget=min(budgets, default=None),
        max_tokens=form.max_output_tokens,
        strategy=vendor.strategy or "",
        samples=vendor.samples,
        temperature=form.temperature,
        top_p=None if form.top_p is None else max(form.top_p, 1e-6),  # 0: the likeliest token alone
        seed=form.seed,
        summary=bool(reasoning.summary or reasoning.generate_summary),
        end_user=form.user or "",
        model=form.model or "",
    )


def detail(form: ResponseRequest, settings: Settings) -> Detail:
    """How much is told of a thought: nothing where nobody asks."""
    reasoning = form.reasoning or ResponseReasoning()
    word = reasoning.summary or reasoning.generate_summary
    if not word or settings.summaries == "none":
        return ""
    return "titles" if word == "concise" else "all"


def unheard(form: ResponseRequest) -> list[str]:
    """Names of the parameters that ask for something and are not obeyed."""
    found = ["include"] if form.includes(LOGPROBS) else []
    for name, value in (form.model_extra or {}).items():
        nothing = KNOWN.get(name, ())
        if value is not None and nothing is not None and value not in nothing:
            found.append(name)
    for outer, inner in (("reasoning", form.reasoning), ("text", form.text)):
        extra = (inner.model_extra if inner else None) or {}
        found += [f"{outer}.{name}" for name, value in extra.items() if value is not None]
    return found


def refuse(form: ResponseRequest, settings: Settings) -> None:
    """ApiError for what must not be ignored, because the client relies on it, and in strict mode for what o1 does not
    take."""
    if form.tools or form.tool_choice not in (None, "auto", "none"):
        name = "tools" if form.tools else "tool_choice"
        message = f"Unsupported value: '{name}' does not support this value: the model calls no tools."
        raise invalid(message, name, "unsupported_value")
    if form.background:
        message = "Unsupported value: 'background' supports false alone: stream the response, or wait for it."
        raise invalid(message, "background", "unsupported_value")
    for name, instead in (("conversation", " Use 'previous_response_id' instead."), ("prompt", "")):
        if getattr(form, name) is not None:
            raise invalid(
                f"Unsupported parameter: '{name}' is not supported here.{instead}", name, "unsupported_parameter"
            )
    if settings.params == "strict_o1":
        _as_o1(form)


def _as_o1(form: ResponseRequest) -> None:
    fields = form.model_fields_set | {*(form.model_extra or {})}
    foreign = sorted(fields & OURS | fields - KNOWN.keys() - ResponseRequest.model_fields.keys())
    if form.reasoning is not None:
        inside = form.reasoning.model_fields_set | {*(form.reasoning.model_extra or {})}
        foreign += [f"reasoning.{name}" for name in sorted(inside - REASONING)]
    for name in foreign:
        raise invalid(f"Unknown parameter: '{name[:60]}'.", name[:60], "unknown_parameter")
    for name in ("temperature", "top_p", "top_logprobs"):
        if getattr(form, name, None) not in (None, 0 if name == "top_logprobs" else 1):
            raise unsupported(name)
    effort = form.reasoning.effort if form.reasoning else None
    if effort not in (None, "low", "medium", "high"):
        message = (
            f"Unsupported value: '{effort}' is not supported with this model. "
            "Supported values are: 'low', 'medium', and 'high'."
        )
        raise invalid(message, "reasoning.effort", "unsupported_value")
