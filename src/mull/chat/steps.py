"""Where the steps of a chain of thought end, in tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from mull.chat.chat import Chat
from mull.chat.template import CLOSE


@functools.lru_cache(maxsize=16)
def separator_tokens(chat: Chat, separator: str = "\n") -> tuple[int, ...] | None:
    """The tokens that end a step, where that can be said of tokens alone: each one whose text has the separator in it.

    None where a separator of several characters may be spelled out of several tokens, or too many tokens have it.
    """
    if len(separator) != 1:
        return None
    found = tuple(i for i in range(chat.vocab_size) if separator in chat.decode([i]))
    return found if 0 < len(found) <= 16 else None


def step_ends(chat: Chat, tokens: Sequence[int], separator: str = "\n") -> list[int]:
    """Where each step of a thought ends (index of the token after it): behind a separator, and at its end."""
    separators = separator_tokens(chat, separator)
    if separators is not None:
        ends = [i + 1 for i, token in enumerate(tokens) if token in separators]
    else:
        ends, stream, text = [], chat.stream(), ""
        for i, token in enumerate(tokens):
            text += stream.push(token)
            if separator in text:
                text = text.rpartition(separator)[2]
                ends.append(i + 1)
    return ends if ends and ends[-1] == len(tokens) else [*ends, len(tokens)] if tokens else ends


def thought_end(chat: Chat, completion: Sequence[int]) -> int | None:
    """The index of the token behind the closing tag; None for a thought that is not closed."""
    tag = tuple(chat.think_close)
    for i in range(len(completion) - len(tag) + 1):
        if tuple(completion[i : i + len(tag)]) == tag:
            return i + len(tag)
    if len(tag) > 1:  # spelled out, it may share tokens with what stands around it
        stream, text = chat.stream(), ""
        for i, token in enumerate(completion):
            text += stream.push(token)
            if CLOSE in text:
                return i + 1
    return None


def spelled_end(chat: Chat, tokens: Sequence[int]) -> int:
    """How many of the last tokens are the closing tag, 0 where they end otherwise.

    A tag that is spelled out may share its first and its last token with what stands around it: those count.
    """
    tag = tuple(chat.think_close)
    if tuple(tokens[-len(tag) :]) == tag:
        return len(tag)
    if len(tag) == 1:
        return 0
    return next((n for n in range(1, min(len(tokens), 24) + 1) if CLOSE in chat.decode(tokens[-n:])), 0)


def chain_ends(chat: Chat, completion: Sequence[int], separator: str = "\n") -> tuple[list[int], bool]:
    """(where each step of a completion ends, whether the last one is the answer), as a search cuts it.

    The line before the closing tag is one step with the tag; all behind the tag is one step, the answer. In a
    completion that was cut off, the last step is one that has not ended.
    """
    closed = thought_end(chat, completion)
    if closed is None:
        return step_ends(chat, completion, separator), False
    ends = step_ends(chat, completion[:closed], separator)
    return ([*ends, len(completion)], True) if closed < len(completion) else (ends, False)
