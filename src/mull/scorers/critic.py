"""A generative critic: asked behind any step whether all is right so far, and if not, which step is wrong and why.

See `mull.learn.critique` for what it reads and writes. Everything that it reads and writes is charged as
`scorer_tokens`; `sampled_tokens` are the policy's alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.engine.sampler import Sampler
from mull.engine.together import together
from mull.errors import UserError
from mull.learn.critique import MARKER, OK, parse_critique
from mull.scorers.base import Score
from mull.types import Completion, Cost, SamplingParams

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Critique:
    """A critic's word on a prefix. One that could not be read has ok NaN and no step; `text` is what was written."""

    ok: float  # the probability of the verdict "ok", in [0, 1]
    step: int | None  # the first wrong step: non-empty lines of the thought from 1, then the answer; None: none
    why: str
    cost: Cost
    text: str = ""


class Critic:
    """A critic over any `Sampler`; as a `Scorer`, the value of a prefix is the probability of the verdict "ok".

    `chat` is the critic's, whose tokens the prefixes are. With `samples` = 0 that probability is computed: the verdict
    is forced behind the marker and its log-probability read off, so nothing is sampled. With `samples` = k it is the
    share of "ok" among k critiques sampled at temperature 1 that can be read, GenRM's average over sampled critiques
    (Zhang et al. 2408.15240). As our critiques begin with their verdict, both estimate the same number; k samples are
    for endpoints that do not give the log-probabilities of forced tokens.

    A prefix that the critic refuses (too long for its context) has the value NaN. UserError only as long as it has
    accepted none: then it is the wrong critic.
    """

    def __init__(self, sampler: Sampler, chat: Chat, samples: int = 0, max_tokens: int = 64, seed: int = 0):
        if samples < 0:
            raise UserError(f"samples={samples} critiques cannot be averaged: ask for 0 (none is sampled) or more")
        self.sampler, self.chat, self.samples, self.max_tokens, self.seed = sampler, chat, samples, max_tokens, seed
        self._marker, self._ok = tuple(chat.encode(MARKER)), tuple(chat.encode(OK))
        self._works = False  # has accepted a prefix
        self._refusal: UserError | None = None

    async def score(self, prefixes: Sequence[Sequence[int]]) -> list[Score]:
        """See `Scorer.score`. NaN where the sampler gives no log-probabilities, or no critique can be read."""
        return await self._each(self._score, prefixes)

    def forget(self) -> None:
        """Drops what the critic's own engine has cached."""
        if isinstance(self.sampler, LocalEngine):
            self.sampler.forget()

    async def critique(self, prefixes: Sequence[Sequence[int]]) -> list[Critique]:
        """The likeliest critique of each prefix (greedy), in order. Raises as `score` does."""
        return await self._each(self._critique, prefixes)

    # ------------------------------------------------------------------------------------------------ inside

    async def _each(
        self, judge: Callable[[Sequence[int]], Coroutine[Any, Any, T]], prefixes: Sequence[Sequence[int]]
    ) -> list[T]:
        judged = await together(judge(prefix) for prefix in prefixes)
        if self._refusal and not self._works:
            raise self._refusal
        return judged

    async def _score(self, prefix: Sequence[int]) -> Score:
        if self.samples == 0:
            return await self._probability(prefix)
        params = SamplingParams(self.max_tokens, seed=self.seed)
        written = await self._ask(prefix, params, self.samples)
        verdicts = [parse_critique(self._text(one))[0] for one in written]
        read = [verdict for verdict in verdicts if verdict is not None]
        return Score(sum(read) / len(read) if read else math.nan, _charged(written))

    async def _probability(self, prefix: Sequence[int]) -> Score:
        """Of the verdict "ok", computed."""
        asked = await self._ask(prefix, SamplingParams(len(self._ok), forced=self._ok))
        return Score(_chance(asked[0].logprobs, self._ok) if asked else math.nan, _charged(asked))

    async def _critique(self, prefix: Sequence[int]) -> Critique:
        written = await self._ask(prefix, SamplingParams(self.max_tokens, temperature=0.0))
        if not written:
            return Critique(math.nan, None, "", Cost())
        [one] = written
        text, cost = self._text(one), _charged(written)
        fine, step, why = parse_critique(text)
        if fine is None:
            return Critique(math.nan, None, "", cost, text)
        if one.tokens[: len(self._ok)] == self._ok:
            return Critique(_chance(one.logprobs[: len(self._ok)], self._ok), step, why, cost, text)
        ok = await self._probability(prefix)
        return Critique(ok.value, step, why, cost + ok.cost, text)

    async def _ask(self, prefix: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """Empty when the critic refuses this prefix."""
        try:
            asked = await self.sampler.sample((*prefix, *self._marker), params, n)
        except UserError as refusal:
            self._refusal = refusal
            return []
        self._works = True
        return asked

    def _text(self, completion: Completion) -> str:
        return self.chat.split(completion.tokens, think=False)[1]


def _chance(logprobs: Sequence[float], tokens: Sequence[int]) -> float:
    """exp of the summed log-probability; NaN where there is not one for each token."""
    total = math.fsum(logprobs) if len(logprobs) == len(tokens) else math.nan
    return total if math.isnan(total) else math.exp(min(0.0, total))


def _charged(completions: Sequence[Completion]) -> Cost:
    """What was read and written, as a scorer's: like the engine's own readings, `prefill_tokens` stay what was read."""
    cost = sum((completion.cost for completion in completions), Cost())
    return replace(cost, sampled_tokens=0, scorer_tokens=cost.prefill_tokens + cost.sampled_tokens)
