"""The Scorer contract: how good a prefix of tokens looks to somebody who does not know the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mull.types import Cost


@dataclass(frozen=True, slots=True)
class Score:
    """`value` lies in [0, 1], higher is better; NaN says that this prefix could not be scored."""

    value: float
    cost: Cost


class Scorer(Protocol):
    """Scores prefixes: prompt, thought so far, and the answer where there is one.

    One score per prefix, in order. Prefixes that begin alike share their reading (with each other and with what was
    scored before), so a child costs its own tokens only; `Score.cost` says what was really read. A search scores a
    prefix at the end of a step: behind a separator, behind the end of the thought, behind the answer's end token.
    Raises `SamplerLost` when what it runs on has gone.

    A scorer may have, besides, `of_sampled(logprob, tokens) -> float`: the value of a path from the sum of its tokens'
    log-probabilities, which the sampler has computed already. A search then asks for nothing to be read.
    """

    async def score(self, prefixes: Sequence[Sequence[int]]) -> list[Score]: ...
