"""What a server answered, as the tokens, log-probabilities and stop reason that `Completion` promises.

Where the server gives token ids they are taken as they are. Elsewhere its text is tokenised again: such tokens spell
the same text, but need not be the ones that the model sampled, so they can be searched and not trained on. Text is
also less than tokens: what a limit cut in the middle of a character is dropped, and control tokens that the server
does not show are lost. A completion of which nothing can be seen is the end token, so that none is empty.

How it ended. The contract keeps the end token, stop token or stop string in the tokens; servers cut them off.
1. Whatever goes beyond the first end token, stop token or completed stop string is dropped, and that is the end.
2. `finish_reason` "length" is LENGTH.
3. For "stop", a server that says why (vLLM's `stop_reason`, SGLang's `matched_stop`) is believed.
4. Without stop strings in the request, or where the server would have kept them (`transformers serve`), the model
   ended by itself: its end token is put back.
5. Otherwise it is a guess, and counted as one: by the number of sampled tokens in `usage` where one stop string
   explains it and an end token cannot; else a stop string (the first of the request) inside an open thought, and the
   model's own end outside of one, because that is where turns end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mull.chat import Chat
from mull.engine.endpoint_forms import Fields, Form, stop_strings
from mull.errors import SamplerLost, StopReason
from mull.types import SamplingParams

NAN = math.nan


@dataclass(frozen=True)
class Reading:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # NaN where the server gave none, or one of another distribution
    stop: StopReason
    exact: bool  # the tokens are the server's own ids
    guessed: bool  # rule 5 decided


def read(
    form: Form,
    choice: Mapping[str, Any],
    sampled: int | None,
    prefix: Sequence[int],
    params: SamplingParams,
    chat: Chat,
    processed_logprobs: bool,
) -> Reading:
    """Reads one choice of an answer. `sampled` is `usage.completion_tokens`. SamplerLost when it is none."""
    message = choice.get("message") if form.chat else choice
    ids = choice.get("token_ids")
    finish = choice.get("finish_reason")
    if not isinstance(message, Mapping) or finish in ("abort", "error"):
        raise SamplerLost(f"the server gave up on a request (finish_reason {finish!r})")
    exact = isinstance(ids, list) and all(isinstance(i, int) for i in ids)
    if isinstance(ids, list) and exact:
        tokens = list(ids)
    else:
        tokens = _said(message, prefix, chat) if form.chat else encode_output(chat, _text(message.get("text")))
    logprobs = _logprobs(form, choice, tokens, exact, chat)
    if form.chat and chat.has_think:  # where the server's template leaves the opening tag to the model, ours does not
        n = len(chat.think_open)
        if tuple(prefix[-n:]) == tuple(tokens[:n]) == chat.think_open:
            tokens, logprobs = tokens[n:], logprobs[n:]
    if not _comparable(params, processed_logprobs):
        logprobs = [NAN] * len(tokens)
    stops = stop_strings(form, params, chat)
    end = first_stop(tokens, (*chat.end_ids, *params.stop_tokens), stops, chat)
    guessed = False
    if end is not None:
        tokens, logprobs, stop = tokens[:end], logprobs[:end], StopReason.STOP
    elif finish in ("length", "max_tokens", "model_length", "content_filter"):
        stop = StopReason.LENGTH
    else:
        stop = StopReason.STOP
        closing, guessed = _closing(form, choice, tokens, sampled, prefix, stops, chat)
        tokens, logprobs = [*tokens, *closing], [*logprobs, *[NAN] * len(closing)]
    if not tokens:
        tokens, logprobs, stop = [chat.turn_end], [NAN], StopReason.STOP
    return Reading(tuple(tokens), tuple(logprobs), stop, exact, guessed)


def encode_output(chat: Chat, text: str) -> list[int]:
    """Tokens of what a model said: thought tags and end tokens that it spells become those tokens."""
    known = {chat.decode([i]): (i,) for i in chat.end_ids}
    if chat.has_think:
        known |= {chat.decode(tag): tag for tag in (chat.think_open, chat.think_close)}
    known.pop("", None)
    tokens: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, known)) + ")", text):
        tokens += known[piece] if piece in known else chat.encode(piece) if piece else []
    return tokens


def first_stop(tokens: Sequence[int], ends: Sequence[int], stops: Sequence[str], chat: Chat) -> int | None:
    """How many tokens there are up to the first end or stop token, or the one that completes a stop string."""
    stream, text, longest = chat.stream(), "", max(map(len, stops), default=0)
    for i, token in enumerate(tokens):
        if token in ends:
            return i + 1
        if stops:
            text = text[max(0, len(text) - longest) :] + stream.push(token)
            if any(s in text for s in stops):
                return i + 1
    return None


def _said(message: Mapping[str, Any], prefix: Sequence[int], chat: Chat) -> list[int]:
    """Tokens of a chat message, its thought (which reasoning servers give apart) in front."""
    thought = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    answer = _text(message.get("content"))
    if not thought:
        return encode_output(chat, answer)
    prompt = chat.decode(prefix)
    if answer in (prompt, prompt.removesuffix(chat.decode(chat.think_open))):
        answer = ""  # transformers serve 5.23 gives the prompt as the answer of a thought that was cut short
    if not answer:  # cut short while thinking
        return chat.encode(thought)
    between = chat.reply(thought, "")[:-1]  # the thought and its closing tag, spaced as the template does
    return [*between, *encode_output(chat, answer)]


def _text(value: Any) -> str:
    """Without the half of a character that it may end in, which would be tokenised as another one."""
    return value.rstrip("\ufffd") if isinstance(value, str) else ""


def _comparable(params: SamplingParams, processed: bool) -> bool:
    """Whether the server's log-probabilities are those of the distribution that was sampled from.

    Most servers give them before temperature (vLLM's `--logprobs-mode raw_logprobs`), so temperature has to be 1 (or
    0, where the contract wants those at 1), unless the user says that they are processed. With a cut support the kept
    set would be needed too, and no server gives it.
    """
    return params.top_p == 1 and params.top_k == 0 and (processed or params.temperature in (0, 1))


def _logprobs(form: Form, choice: Mapping[str, Any], tokens: Sequence[int], exact: bool, chat: Chat) -> list[float]:
    """One for each token, NaN where the server's do not belong to it beyond doubt."""
    given = choice.get("logprobs") or {}
    unknown = [NAN] * len(tokens)
    if not isinstance(given, Mapping):
        return unknown
    if form.chat:
        entries = given.get("content") or []
        spelled, values = [e.get("token") for e in entries], [e.get("logprob") for e in entries]
    else:
        spelled, values = given.get("tokens") or [], given.get("token_logprobs") or []
    if not exact:  # the text was tokenised again: the same pieces must have come out
        if len(spelled) < len(tokens) or any(
            chat.decode([token]) != piece for token, piece in zip(tokens, spelled, strict=False)
        ):
            return unknown
    elif len(values) != len(tokens):
        return unknown
    return [float(v) if isinstance(v, (int, float)) else NAN for v in values[: len(tokens)]]


def _closing(
    form: Form,
    choice: Mapping[str, Any],
    tokens: Sequence[int],
    sampled: int | None,
    prefix: Sequence[int],
    stops: Sequence[str],
    chat: Chat,
) -> tuple[Sequence[int], bool]:
    """The tokens that the server cut off at the end, and whether that is a guess (rules 3 to 5)."""
    end = (chat.turn_end,)
    for name in ("stop_reason", "matched_stop"):
        if name in choice:
            why = choice[name]
            if isinstance(why, str):
                return encode_output(chat, why), False
            return ((why,) if isinstance(why, int) else end), False
    if not stops or form.fields is Fields.TRANSFORMERS:
        return end, False
    if sampled is not None and (missing := sampled - len(tokens)) > 1:
        for stop in stops:
            if len(encode_output(chat, stop)) == missing:
                return encode_output(chat, stop), True
    text = chat.decode([*prefix, *tokens])
    if chat.has_think and text.rfind(chat.decode(chat.think_open)) > text.rfind(chat.decode(chat.think_close)):
        return encode_output(chat, stops[0]), True
    return end, True
