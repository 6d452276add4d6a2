"""What can go wrong at each boundary, and why a generation ended.

Four kinds, handled in four places:

- `UserError`: the person asked for something that cannot be done (a missing folder, an unknown key). It carries one
  sentence that says what, where and what to do. The command line prints it and exits with code 2.
- `Unscorable`: one sample could not be judged (a grader timed out or crashed). It is caught where samples are
  graded, becomes a `Verdict` with `correct=None`, and is counted. It never becomes a zero reward.
- `SamplerLost`: whatever generates or scores has gone away. A search ends with what it has, marked in its trace.
- Everything else is a bug and propagates.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any


class UserError(Exception):
    """A user's mistake, in one sentence: what is wrong, where, and what to do about it."""


class MissingExtra(UserError):
    """An optional dependency is needed and absent."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs the package {package}, which is not installed: pip install 'mull[{extra}]'")


class Unscorable(Exception):
    """A grader could not judge this one sample: not wrong, not right, counted apart."""


class SamplerLost(Exception):
    """A sampler or scorer could not answer: its server is gone, timed out, or refused too often.

    A search goes on with what it has, and its trace says what was lost. `completions` are those of the same call that
    did come (`types.Completion`): they cost something, and may be used.
    """

    def __init__(self, message: str = "", completions: Sequence[Any] = ()):
        super().__init__(message)
        self.completions = tuple(completions)


class StopReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # the model sampled an end token, or a stop string or token of the request
    LENGTH = "length"  # max_tokens of the request, or the context window, was reached
    CANCELLED = "cancelled"  # the caller withdrew the request
    EXHAUSTED = "exhausted"  # the caller's budget ran out


def nearest(word: str, known: Iterable[str]) -> str:
    """`word`'s nearest neighbour among `known`, as the tail of an error sentence ("" when nothing is near).

    >>> nearest("chian", ["chain", "maze"])
    "; did you mean 'chain'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
