"""Log-probabilities of given tokens, with the likeliest alternatives, read off the model in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mull.chat import Chat
from mull.search.sources import Opened

ROWS = 128  # positions whose logits exist at once


@dataclass(frozen=True)
class Scored:
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token, log-probability), the likeliest first


def readable(tools: Opened) -> bool:
    return hasattr(tools.sampler, "read") and hasattr(tools.sampler, "model")


async def scored(tools: Opened, tokens: Sequence[int], start: int, top: int) -> list[Scored | None]:
    """Of `tokens` from number `start` on, at temperature 1; None for the first of all, which nothing predicts.

    What was sampled is in the engine's cache: only what is new is read. The token's own value is the same float as its
    entry in `top`, so that who compares the two finds the greedy ones.
    """
    sampler: Any = tools.sampler
    first = max(start, 1)
    found: list[Scored | None] = [None] * (first - start)
    if first >= len(tokens):
        return found[: max(0, len(tokens) - start)]
    reading = await sampler.read(tokens, range(first - 1, len(tokens) - 1))
    for at in range(0, len(reading.hidden_PE), ROWS):
        found += _rows(sampler.model, reading.hidden_PE[at : at + ROWS], tokens[first + at : first + at + ROWS], top)
        await asyncio.sleep(0)  # others take their steps in between
    return found


@torch.inference_mode()
def _rows(model: Any, hidden_RE: torch.Tensor, next_R: Sequence[int], top: int) -> list[Scored]:
    logits_RV = model.logits(hidden_RE.to(model.device, model.dtype))
    logprobs_RV = logits_RV.log_softmax(-1)
    own_R = logprobs_RV.gather(-1, torch.tensor(next_R, device=logprobs_RV.device)[:, None])[:, 0].tolist()
    best = logprobs_RV.topk(min(top, logprobs_RV.shape[-1]), -1)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Scored(own, tuple(zip(ids, values, strict=True))) for own, (ids, values) in zip(own_R, tops, strict=True)]


def described(chat: Chat, tokens: Sequence[int], values: Sequence[Scored | None]) -> dict[str, Any]:
    """As OpenAI's completions have it: `top_logprobs` holds the token itself, also where it is not among the likeliest;
    offsets are in characters of the tokens' own text."""
    decoder, offsets, length = chat.stream(), [], 0
    for token in tokens:
        offsets.append(length)
        length += len(decoder.push(token))
    tops: list[dict[str, float] | None] = []
    for token, value in zip(tokens, values, strict=True):
        if value is None:
            tops.append(None)
            continue
        named = {chat.spelled(other): logprob for other, logprob in value.top}
        tops.append(named | {chat.spelled(token): value.logprob})
    return {
        "tokens": [chat.spelled(token) for token in tokens],
        "token_logprobs": [None if value is None else value.logprob for value in values],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
