"""Scorers with a value head: outcome and process reward models, and pairwise preference models, are all this.

The value of a prefix is sigmoid(head(hidden state at its last token)). What is read is shared: by the engine, which
keeps the keys and values of prefixes, so that a child reads its own tokens only; and here, where nested prefixes of one
call (the steps of one chain) become one reading, and values are remembered.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch

from mull.chat import Chat
from mull.engine.local import LocalEngine, Reading
from mull.engine.together import together
from mull.engine.weights import WeightsWatch
from mull.errors import SamplerLost
from mull.models import hf
from mull.models.value import HEAD, ScorerInfo, ValueModel, load_value, read_info
from mull.scorers.base import Score, Scorer
from mull.types import Cost

Prefix = tuple[int, ...]


class Reader(Protocol):
    """What a value scorer needs of an engine: see `LocalEngine.read`."""

    async def read(self, tokens: Sequence[int], positions: Sequence[int]) -> Reading: ...


class ValueScorer:
    """A `Scorer` over a value model.

    `engine` reads with the model's body. The values of the last `remember` prefixes are kept, and asking for them again
    costs nothing; they are forgotten when the weights change. A prefix that is empty or longer than the model's context
    has the value NaN.
    """

    def __init__(self, model: ValueModel, engine: Reader, remember: int = 16_384):
        self.model, self.engine, self.remember = model, engine, remember
        self.values: OrderedDict[Prefix, float] = OrderedDict()
        self._weights = WeightsWatch(model)

    async def score(self, prefixes: Sequence[Sequence[int]]) -> list[Score]:
        """See `Scorer.score`. What is read is in `scorer_tokens` and `flops`, and in nothing else."""
        asked = [tuple(prefix) for prefix in prefixes]
        if self._weights.changed(thorough=False):
            self._weights.remember()
            self.values.clear()
        room = self.model.body.config.max_positions
        found = {p: Score(self.values[p], Cost()) for p in asked if p in self.values}
        found |= {p: Score(math.nan, Cost()) for p in asked if not 0 < len(p) <= room}
        for scores in await together([self._read(chain) for chain in chains([p for p in asked if p not in found])]):
            found |= scores
        out, charged = [], set()
        for prefix in asked:
            score = found[prefix]
            out.append(Score(score.value, Cost()) if prefix in charged else score)
            charged.add(prefix)
            self._keep(prefix, score.value)
        return out

    def forget(self) -> None:
        """Drops every value: the next question is scored as if it were the first, and costs what it costs."""
        self.values.clear()
        if isinstance(self.engine, LocalEngine):
            self.engine.forget()

    async def _read(self, chain: Sequence[Prefix]) -> dict[Prefix, Score]:
        """Prefixes of one sequence, shortest first, in one reading. Each is charged the tokens that it adds."""
        ends = [len(prefix) for prefix in chain]
        try:
            reading = await self.engine.read(chain[-1], [end - 1 for end in ends])
        except (MemoryError, RuntimeError) as problem:
            if not isinstance(problem, MemoryError) and type(problem).__name__ != "OutOfMemoryError":
                raise
            raise SamplerLost("the scorer is out of memory") from problem
        with torch.no_grad():
            values = torch.sigmoid(self.model.logits(reading.hidden_PE.to(self.model.head.weight.device))).tolist()
        total = reading.cost.scorer_tokens
        own = [total - (ends[-1] - ends[0]), *(b - a for a, b in pairwise(ends))]
        head = 2.0 * reading.hidden_PE.shape[-1]
        costs = [Cost(scorer_tokens=n, flops=reading.cost.flops * n / max(total, 1) + head) for n in own]
        return {p: Score(v, c) for p, v, c in zip(chain, values, costs, strict=True)}

    def _keep(self, prefix: Prefix, value: float) -> None:
        self.values[prefix] = value
        self.values.move_to_end(prefix)
        while len(self.values) > self.remember:
            self.values.popitem(last=False)


def chains(prefixes: Sequence[Prefix]) -> list[list[Prefix]]:
    """Different prefixes, each once, grouped so that every member of a group begins its successor.

    Groups are in lexicographic order: what a group hangs on stands in one before it.

    >>> chains([(1, 2, 3), (1,), (1, 2, 4), (1, 2)])
    [[(1,), (1, 2), (1, 2, 3)], [(1, 2, 4)]]
    """
    out: list[list[Prefix]] = []
    after: Prefix | None = None  # the extensions of a prefix stand right behind it
    for prefix in sorted(set(prefixes), reverse=True):
        if after is not None and after[: len(prefix)] == prefix:
            out[-1].append(prefix)
        else:
            out.append([prefix])
        after = prefix
    return [group[::-1] for group in out[::-1]]


def load_scorer(
    folder: Path | str,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Scorer, ScorerInfo]:
    """The scorer in a folder that `mull reward` wrote, on an engine of its own: with a value head, or a critic.

    `dtype` is of the weights, the head's among them; a value is computed from them in float32 in any case, so it is as
    exact as the hidden state that it is read off.
    """
    info = read_info(folder)
    chat = Chat.load(folder)
    if (Path(folder) / HEAD).is_file():
        model, info = load_value(folder, dtype, device)
        return ValueScorer(model, LocalEngine(model.body, chat, memory_bytes=memory_bytes)), info
    from mull.scorers.critic import Critic

    return Critic(LocalEngine(hf.load(folder, dtype, device), chat, memory_bytes=memory_bytes), chat), info
