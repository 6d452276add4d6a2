"""Texts made comparable."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_POINT = re.compile(r"(?<=\w)\.(?=\s|$)")  # a full stop; the point of 3.5 and the cells of a maze are none
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[^\w\s]|_")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DROPPED = frozenset(",;:!?\"'`$\\{}«»“”‘’")


def squeezed(text: str) -> str:
    """The text with every run of white space as one space, and none around it."""
    return " ".join(text.split())


def words(text: str) -> tuple[str, ...]:
    """Numbers, words and signs in order, in lower case, without punctuation and without the marks of LaTeX.

    GPT-3 (2005.14165, appendix C) drops every sign; here operators, brackets and the cells of grids stay, because
    3+4 is not 3*4.

    >>> words("What is $3.5 \\\\times 1,000$?")
    ('what', 'is', '3.5', 'times', '1000')
    """
    text = _THOUSANDS.sub("", _POINT.sub(" ", unicodedata.normalize("NFKC", text).casefold()))
    return tuple(word for word in _WORD.findall(text) if word not in _DROPPED)


def digest(*texts: str) -> str:
    """32 hex digits that are equal for equal lists of texts."""
    h = hashlib.blake2b(digest_size=16)
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        h.update(len(raw).to_bytes(8, "big") + raw)
    return h.hexdigest()
