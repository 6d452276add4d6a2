"""The ways of asking a server for a continuation, from the one that says most to the one that every server knows.

Servers differ in what they take: vLLM and SGLang take token ids and a dozen fields of their own, `transformers serve`
refuses every field that it does not know, OpenAI's own takes few. The sampler tries `forms(mode)` in order with its
first request, goes on to the next while the server refuses (400, 404, 422), and stays with the first that works.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mull.chat import Chat
from mull.errors import UserError
from mull.types import SamplingParams


class Fields(Enum):
    """Which fields a request has besides model, prompt, max_tokens, temperature, top_p and stop."""

    VLLM = "vLLM's"  # token ids back, the kept stop string, and whatever the model's defaults would change
    TRANSFORMERS = "transformers serve's"  # a generation_config, without which it samples from the 50 likeliest tokens
    OPENAI = "OpenAI's"  # seed and logprobs
    NEWER = "OpenAI's newer"  # the same with max_completion_tokens, which its newer models insist on
    BARE = "no"


@dataclass(frozen=True)
class Form:
    """`chat`: /chat/completions, else /completions. `ids`: the prompt is sent as token ids, else as text."""

    chat: bool
    ids: bool
    fields: Fields

    @property
    def route(self) -> str:
        return "/chat/completions" if self.chat else "/completions"

    @property
    def extended(self) -> bool:
        """Whether it takes top_k and stop tokens."""
        return self.fields in (Fields.VLLM, Fields.TRANSFORMERS)

    @property
    def may_add_bos(self) -> bool:
        """Whether the server's tokenizer may put a token before a text prompt, unasked."""
        return not self.chat and not self.ids and self.fields is not Fields.VLLM


COMPLETIONS = (
    Form(chat=False, ids=True, fields=Fields.VLLM),
    Form(chat=False, ids=False, fields=Fields.VLLM),
    Form(chat=False, ids=True, fields=Fields.OPENAI),
    Form(chat=False, ids=False, fields=Fields.TRANSFORMERS),
    Form(chat=False, ids=False, fields=Fields.OPENAI),
    Form(chat=False, ids=False, fields=Fields.BARE),
)
CHAT = tuple(Form(chat=True, ids=False, fields=fields) for fields in Fields)


def forms(mode: str) -> tuple[Form, ...]:
    """The forms to try for `mode`, in order."""
    known = {"auto": (*COMPLETIONS, *CHAT), "completions": COMPLETIONS, "chat": CHAT}
    if mode not in known:
        raise UserError(f"the endpoint mode {mode!r} is unknown: use auto, completions or chat")
    return known[mode]


@dataclass(frozen=True)
class Dialogue:
    """A prefix as a chat endpoint takes it; see `endpoint_chat.dialogue`."""

    messages: tuple[dict[str, str], ...]
    think: bool
    continues: bool  # the last message is the assistant's, and is to be continued


def body(
    form: Form,
    model: str,
    prompt: Sequence[int] | str | Dialogue,
    params: SamplingParams,
    max_tokens: int,
    seed: int,
    chat: Chat,
) -> dict[str, Any]:
    """The JSON of one request. `seed` is below 2^31: some servers take no more."""
    limit = "max_completion_tokens" if form.fields is Fields.NEWER else "max_tokens"
    asked: dict[str, Any] = {
        "model": model,
        limit: max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
    }
    if isinstance(prompt, Dialogue):
        asked["messages"] = list(prompt.messages)
    else:
        asked["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    if stop := stop_strings(form, params, chat):
        asked["stop"] = stop
    if form.fields is not Fields.BARE:
        asked["seed"] = seed
    if form.fields is Fields.VLLM:
        asked |= _vllm(form, prompt, params)
    elif form.fields is Fields.TRANSFORMERS:
        asked["generation_config"] = _generation_config(params, chat)
    elif form.fields is not Fields.BARE:
        asked |= {"logprobs": True} if form.chat else {"logprobs": 1}
    if isinstance(prompt, Dialogue) and form.fields in (Fields.VLLM, Fields.TRANSFORMERS):
        asked["chat_template_kwargs"] = {"enable_thinking": prompt.think}
    return asked


def stop_strings(form: Form, params: SamplingParams, chat: Chat) -> list[str]:
    """The request's stop strings, and its stop tokens spelled out for servers that know no stop tokens."""
    spelled = [] if form.extended else [text for token in params.stop_tokens if (text := chat.decode([token]))]
    return list(dict.fromkeys([*params.stop, *spelled]))


def _vllm(form: Form, prompt: Sequence[int] | str | Dialogue, params: SamplingParams) -> dict[str, Any]:
    fields: dict[str, Any] = {
        # What vLLM and SGLang else take from the model's generation_config.json: Qwen3's says top_k 20.
        "top_k": params.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "return_token_ids": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }
    fields |= {"logprobs": True} if form.chat else {"logprobs": 1, "add_special_tokens": False}
    if params.stop_tokens:
        fields["stop_token_ids"] = list(params.stop_tokens)
    if isinstance(prompt, Dialogue) and prompt.continues:
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    return fields


def _generation_config(params: SamplingParams, chat: Chat) -> str:
    """`transformers`' own, in place of the model's: full support unless top_k says otherwise, and the stop tokens as
    further end tokens. It has to name everything, because nothing of the model's own is left."""
    config: dict[str, Any] = {"eos_token_id": [*chat.end_ids, *params.stop_tokens], "pad_token_id": chat.end_ids[0]}
    config |= {"do_sample": params.temperature > 0}
    if params.temperature > 0:
        config |= {"top_k": params.top_k, "temperature": params.temperature, "top_p": params.top_p}
    return json.dumps(config)
