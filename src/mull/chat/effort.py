"""How much thinking is asked for, in words or in tokens: the one place that knows how a prompt says so.

The wish is the last line of the question's text, behind a line break: `effort: low`, `effort: medium`, `effort: high`,
or `think 64` for a number of tokens. A model obeys it only after it was trained to (see `mull.learn.length`); to any
other model it is a line of text. Graders never see it: they are given the problem, not the prompt.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal, get_args

from mull.errors import UserError
from mull.types import Question

Word = Literal["low", "medium", "high"]
Effort = Word | int  # an effort word, or tokens of thought and answer
WORDS: tuple[Word, ...] = get_args(Word)
SHARES = {"low": 0.25, "medium": 0.5, "high": 1.0}  # of the longest that is allowed

_WISH = re.compile(r"\n(?:effort: (low|medium|high)|think ([1-9][0-9]{0,8}))\Z")


def asked(text: str, effort: Effort | None) -> str:
    """The question's text with the wish; unchanged for None. ValueError for what is no effort.

    >>> asked("2+2?", 64), asked("2+2?", "low")
    ('2+2?\\nthink 64', '2+2?\\neffort: low')
    """
    if effort is None:
        return text
    if isinstance(effort, int) and not isinstance(effort, bool) and 0 < effort < 10**9:
        return f"{text}\nthink {effort}"
    if effort in WORDS:
        return f"{text}\neffort: {effort}"
    raise ValueError(f"{effort!r} is no effort: it is {', '.join(WORDS)}, or a number of tokens above 0")


def parted(text: str) -> tuple[str, Effort | None]:
    """The question's text and its wish: the inverse of `asked`.

    >>> parted("2+2?\\neffort: high")
    ('2+2?', 'high')
    """
    wish = _WISH.search(text)
    if wish is None:
        return text, None
    word: Word | None = next((w for w in WORDS if w == wish[1]), None)
    return text[: wish.start()], word if word is not None else int(wish[2])


def effort_of(text: str) -> Effort | None:
    """What a person typed: a word, a number of tokens, or nothing. UserError for anything else.

    >>> effort_of("high"), effort_of("64"), effort_of("")
    ('high', 64, None)
    """
    word: Word | None = next((w for w in WORDS if w == text), None)
    if word is not None or not text:
        return word
    if text.isascii() and text.isdigit() and 0 < int(text) < 10**9:
        return int(text)
    raise UserError(f"the effort {text!r} is not {', '.join(WORDS)}, or a number of tokens above 0")


def ask(question: Question, effort: Effort | None) -> Question:
    """The same question, asked with that effort. Its id stays: it is the same problem."""
    return replace(question, text=asked(question.text, effort))


def word_of(tokens: int, most: int) -> Word:
    """The least word that stands for so many tokens, where at most `most` are allowed; the greatest for more.

    >>> [word_of(n, 256) for n in (64, 65, 200, 999)]
    ['low', 'medium', 'high', 'high']
    """
    for word in WORDS:
        if tokens <= tokens_of(word, most):
            return word
    return WORDS[-1]


def tokens_of(effort: Effort, most: int) -> int:
    """How many tokens an effort stands for, where at most `most` are allowed: a quarter, a half, or all of them.

    >>> [tokens_of(effort, 256) for effort in ("low", "medium", "high", 40)]
    [64, 128, 256, 40]
    """
    return effort if isinstance(effort, int) else max(1, round(SHARES[effort] * most))
