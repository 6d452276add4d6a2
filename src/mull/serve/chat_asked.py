"""What a chat request asks for: OpenAI's fields, the ways in which others spell a thinking budget, and o1's refusals.

Compatible mode obeys what it can, and reports what it cannot. A request for tools is ignored where the model may choose
not to call one (nothing untrue is answered then, and clients that always send their tools keep working), and refused
where a call is required. A format of the answer is refused, because it would not be kept.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from mull.serve.errors import ApiError, invalid
from mull.serve.plan import WORDS, Wish
from mull.serve.schemas import MESSAGES, WHOLE, Budget, Effort, Form, Request, Tokens, Vendor, said, stops
from mull.serve.settings import Settings


def _choice(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise PydanticCustomError("choice_type", "input should be a string or an object")
    return value


# A plain union would name its branches in errors, as if they were parameters.
Choice = Annotated[Any, BeforeValidator(_choice), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})]


class Reasoning(Form):
    """OpenRouter's."""

    effort: Effort | None = None
    max_tokens: Budget | None = None
    exclude: bool | None = None
    enabled: bool | None = None


class Thinking(Form):
    """Anthropic's."""

    type: Literal["enabled", "disabled", "adaptive"] | None = None
    budget_tokens: Budget | None = None


class TemplateArguments(Form):
    enable_thinking: bool | None = None


class ChatRequest(Request):
    messages: Annotated[Any, WithJsonSchema(MESSAGES)]
    max_completion_tokens: Tokens | None = None
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    thinking: Thinking | None = None
    thinking_token_budget: Budget | None = None
    enable_thinking: bool | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None
    metadata: dict[str, str] | None = None
    mull: Vendor | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    parallel_tool_calls: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Choice | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: Choice | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None

    @property
    def excluded(self) -> bool:
        """Whether nothing of the thought is wanted."""
        return self.include_reasoning is False or (self.reasoning is not None and self.reasoning.exclude is True)


# Fields that change nothing here, and values of them that ask for nothing.
UNHEARD: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("auto", "none"),
    "function_call": ("auto", "none"),
}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "best_of": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (False,),
}
# What OpenAI knows besides: a strict server takes it, and most of it is for OpenAI's own operation.
KNOWN = {
    *("audio", "moderation", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("safety_identifier", "service_tier", "store", "verbosity", "web_search_options"),
}
O1_KNOWS = {
    *("messages", "model", "max_completion_tokens", "max_tokens", "reasoning_effort", "n", "seed", "stop", "stream"),
    *("stream_options", "temperature", "top_p", "user", "metadata", "response_format", "modalities"),
    *("parallel_tool_calls", "mull"),
    *UNHEARD,
}


def asked(form: ChatRequest, settings: Settings) -> Wish:
    """The wish; ApiError for what cannot be served or, in strict mode, what o1 does not take."""
    strict = settings.params == "strict_o1"
    if strict:
        _as_o1(form)
    _refuse_promises(form)
    if (form.n or 1) > settings.max_choices:
        message = f"Invalid 'n': at most {settings.max_choices} choices can be had of one request."
        raise invalid(message, "n", "invalid_value")
    reasoning, thinking = form.reasoning or Reasoning(), form.thinking or Thinking()
    efforts = {e for e in (form.reasoning_effort, reasoning.effort) if e}
    if len({WORDS[e] for e in efforts}) > 1:
        message = "'reasoning_effort' and 'reasoning.effort' say different things: send one of them."
        raise invalid(message, "reasoning.effort", "invalid_value")
    word = next(iter(efforts), None)
    template = form.chat_template_kwargs or TemplateArguments()
    switches = (form.enable_thinking, template.enable_thinking, reasoning.enabled)
    off = False in switches or thinking.type == "disabled"
    budgets = (form.thinking_token_budget, reasoning.max_tokens, thinking.budget_tokens)
    vendor = form.mull or Vendor()
    return Wish(
        said(form.messages, settings.max_messages),
        effort=WORDS[word] if word else None,
        think=False if off else None,
        think_budget=_least(*budgets),
        max_tokens=_least(form.max_completion_tokens, form.max_tokens),
        strategy=vendor.strategy or "",
        samples=vendor.samples,
        temperature=form.temperature,
        top_p=None if form.top_p is None else max(form.top_p, 1e-6),  # 0: the likeliest token alone
        seed=form.seed,
        stop=stops(form.stop, 4) if strict else stops(form.stop),
        summary=not form.excluded and settings.thoughts == "hidden",
        end_user=form.user or "",
        model=form.model or "",
    )


def _least(*limits: int | None) -> int | None:
    """Every limit is kept."""
    return min((limit for limit in limits if limit is not None), default=None)


def unheard(form: Request, fields: dict[str, tuple[Any, ...]] = UNHEARD) -> list[str]:
    """Names of the parameters that ask for something and are not obeyed."""
    found = [(name, getattr(form, name, None), nothing) for name, nothing in fields.items()]
    found += [(name, value, NEUTRAL.get(name, ())) for name, value in (form.model_extra or {}).items()]
    return [name for name, value, nothing in found if value is not None and value not in nothing]


def header(names: list[str]) -> dict[str, str]:
    """For the response; what could not stand in a header is left out of it."""
    plain = [name for name in names if re.fullmatch(r"[\w.]{1,64}", name, re.ASCII)][:32]
    return {"x-mull-ignored": ", ".join(plain)} if plain else {}


def _refuse_promises(form: ChatRequest) -> None:
    """What must not be ignored, because the client relies on it."""
    for name in ("tool_choice", "function_call"):
        choice = getattr(form, name)
        if choice not in (None, *UNHEARD[name]):
            message = f"Unsupported value: '{name}' does not support this value: the model calls no tools."
            raise invalid(message, name, "unsupported_value")
    if form.response_format is not None and form.response_format.get("type") != "text":
        message = "Unsupported value: 'response_format' supports the type 'text' alone: no other form would be kept."
        raise invalid(message, "response_format", "unsupported_value")
    if any(mode != "text" for mode in form.modalities or ()):
        raise invalid("Unsupported value: 'modalities' supports 'text' alone.", "modalities", "unsupported_value")


def _as_o1(form: ChatRequest) -> None:
    """o1's own refusals, in its words."""
    for name in form.model_fields_set | {*(form.model_extra or {})}:
        if name not in O1_KNOWS and name not in KNOWN:
            raise invalid(f"Unknown parameter: '{name[:60]}'.", name[:60], "unknown_parameter")
    if form.max_tokens is not None:
        raise _unsupported("max_tokens", " Use 'max_completion_tokens' instead.")
    if form.parallel_tool_calls is not None:
        raise _unsupported("parallel_tool_calls")
    heard = {"temperature": (1,), "top_p": (1,), **UNHEARD}
    for name, nothing in heard.items():
        value = getattr(form, name)
        if value is not None and value not in nothing:
            raise _unsupported(name)
    if (form.n or 1) != 1:
        only = "with this model. Only the default (1) value is supported."
        raise invalid(f"Unsupported value: 'n' does not support {form.n} {only}", "n", "unsupported_value")
    if form.reasoning_effort not in (None, "low", "medium", "high"):
        message = (
            f"Unsupported value: 'reasoning_effort' does not support '{form.reasoning_effort}' with this model. "
            "Supported values are: 'low', 'medium', and 'high'."
        )
        raise invalid(message, "reasoning_effort", "unsupported_value")


def _unsupported(name: str, instead: str = "") -> ApiError:
    message = f"Unsupported parameter: '{name}' is not supported with this model.{instead}"
    return invalid(message, name, "unsupported_parameter")
