"""One chain as a sequence of actions: which of its tokens the policy chose, and in which states.

An action is a sampled token; the state that it was chosen in is the prefix before it. Prompt, forced and tool tokens
are no actions: they have no step of their own, and the state after the action before them includes them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from mull.errors import StopReason
from mull.types import SpanKind, Trace


@dataclass(frozen=True)
class Path:
    """From the root of a trace to one of its leaves."""

    tokens: tuple[int, ...]
    actions: tuple[int, ...]  # the indices of the sampled tokens, ascending
    prompt: int  # so many tokens are the question's
    cut: bool  # it did not end by itself: see `samples.truncated`

    @property
    def states(self) -> list[int]:
        """Lengths of the prefixes whose values matter: before each action, and the whole path."""
        return [*self.actions, len(self.tokens)]

    def spread(self, values: Sequence[float]) -> list[float]:
        """One number per action as one per token, with zeros for the others. ValueError when the counts differ."""
        out = [0.0] * len(self.tokens)
        for at, value in zip(self.actions, values, strict=True):
            out[at] = value
        return out

    def rewards(self, outcome: float, dense: Sequence[tuple[int, float]] = ()) -> list[float]:
        """One reward per action: the outcome at the last one, and each (end, reward) of `dense` at the last action
        before index `end`. What ends before the first action was earned by nobody, and is left out."""
        out = [0.0] * len(self.actions)
        for end, reward in [*dense, (len(self.tokens), outcome)]:
            number = bisect_left(self.actions, end)
            if number:
                out[number - 1] += reward
        return out


def path_of(trace: Trace, leaf: int) -> Path:
    tokens: list[int] = []
    actions: list[int] = []
    prompt, spans = 0, trace.path(leaf)
    for span in spans:
        if span.kind is SpanKind.SAMPLED:
            actions.extend(range(len(tokens), len(tokens) + len(span.tokens)))
        tokens.extend(span.tokens)
        if span.kind is SpanKind.PROMPT:
            prompt = len(tokens)
    cut = spans[-1].kind is not SpanKind.SAMPLED or spans[-1].stop is not StopReason.STOP
    return Path(tuple(tokens), tuple(actions), prompt, cut)
