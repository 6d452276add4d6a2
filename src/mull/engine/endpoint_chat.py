"""A token prefix as the messages of a chat endpoint: the inverse of `Chat.prompt`, by trial and exact comparison.

A chat endpoint takes messages and renders them itself, so only prefixes that are a prompt, or a prompt and the
beginning of its answer, can be sent there. Which prompt it was is guessed from the text and then proved: the guess is
rendered again and must give the very same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mull.chat import Chat
from mull.engine.endpoint_forms import Dialogue
from mull.errors import UserError

_SYSTEM, _USER = "mull's stand-in for a system text", "mull's stand-in for a question"


def dialogue(chat: Chat, prefix: Sequence[int]) -> Dialogue:
    """The messages whose prompt `prefix` begins with; the rest of it is the assistant's message, to be continued.

    Finds prompts of one question, with a system text before it or without. UserError for any other prefix.
    """
    prefix = tuple(prefix)
    text = chat.decode(prefix)
    found: tuple[int, list[dict[str, str]], bool] | None = None  # tokens of the prompt, its messages, think
    for think in (True, False):
        for messages in _candidates(chat, text, think):
            try:
                prompt = tuple(chat.prompt(messages, think=think))
            except UserError:
                continue
            # The longest: a prompt with an empty thought begins like one whose thought is still open.
            if prefix[: len(prompt)] == prompt and (found is None or len(prompt) > found[0]):
                found = len(prompt), messages, think
    if found is None:
        raise UserError(
            "this prefix is not the prompt of one question, and a chat endpoint takes nothing else: use a server with"
            " /v1/completions"
        )
    length, messages, think = found
    if length == len(prefix):
        return Dialogue(tuple(messages), think, continues=False)
    opened = chat.decode(chat.think_open) if think else ""
    said = {"role": "assistant", "content": opened + chat.decode(prefix[length:])}
    return Dialogue((*messages, said), think, continues=True)


def _candidates(chat: Chat, text: str, think: bool) -> Iterator[list[dict[str, str]]]:
    """Messages that may have been rendered to the beginning of `text`."""
    user = {"role": "user", "content": _USER}
    for turns in ([user], [{"role": "system", "content": _SYSTEM}, user]):
        try:
            shape = chat.decode(chat.prompt(turns, think=think))
        except UserError:  # a template without system messages, a tokenizer without thinking
            continue
        if shape.count(_USER) != 1 or shape.count(_SYSTEM) != len(turns) - 1:
            continue
        before, after = shape.split(_USER)
        if len(turns) == 1:
            yield from ([{"role": "user", "content": q}] for q in _between(text, before, after))
        else:
            head, middle = before.split(_SYSTEM)
            for system in _between(text, head, middle):
                for question in _between(text, head + system + middle, after):
                    yield [{"role": "system", "content": system}, {"role": "user", "content": question}]


def _between(text: str, before: str, after: str) -> Iterator[str]:
    """What stands between `before`, with which `text` begins, and each occurrence of `after`."""
    if not text.startswith(before):
        return
    at = text.find(after, len(before))
    while at >= 0 and after:
        yield text[len(before) : at]
        at = text.find(after, at + 1)
