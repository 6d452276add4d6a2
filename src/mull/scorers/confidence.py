"""How sure the policy itself is of what it wrote: scorers that need no training.

logprob: exp of the mean log-probability of the generated tokens (at temperature 1), the geometric mean of their
probabilities. self-certainty (Kang et al. 2502.18581): the mean over generated tokens of KL(uniform || p), p being the
distribution that the token was drawn from; that mean x becomes x / (1 + x), so that it lies in [0, 1) and large values
stay apart. Both are means over the path, so neither favours short paths as a sum would; their step scores are already
those of the whole prefix ("last" is the aggregate that suits them).

The policy is read, not asked to sample. What is remembered of a prefix are its sums and the hidden state at its last
token, which predicts the next one: below a prefix that was scored, new tokens alone are read.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mull.chat import Chat
from mull.engine.together import together
from mull.engine.weights import WeightsWatch
from mull.models.transformer import Transformer
from mull.scorers.base import Score
from mull.scorers.value import Prefix, Reader, chains
from mull.types import Cost

Measure = Literal["logprob", "self-certainty"]
ROWS = 256  # positions whose logits exist at once


@dataclass(frozen=True)
class _Known:
    """Of a prefix: the sum of its generated tokens' terms, their number, and the hidden state at its last token."""

    total: float
    count: int
    hidden_E: torch.Tensor


def of_sampled(logprob: float, tokens: int) -> float:
    """exp of the mean log-probability of so many sampled tokens; NaN where the sampler gave none."""
    return math.exp(min(logprob / tokens, 0.0)) if tokens else math.nan


class SampledLogprob:
    """A `Scorer` that reads nothing: it takes the sampler's own log-probabilities, or has no value (NaN). For samplers
    whose model lies elsewhere."""

    of_sampled = staticmethod(of_sampled)

    async def score(self, prefixes: Sequence[Sequence[int]]) -> list[Score]:
        return [Score(math.nan, Cost()) for _ in prefixes]


class Confidence:
    """A `Scorer` over the policy. `engine` reads with `model`, whose chat is `chat`.

    Generated is what stands behind the opening tag of the thought in the last turn; tokens that a strategy wrote there
    itself count like sampled ones. A prefix without such a tag, or without a token behind it, has the value NaN.
    """

    def __init__(
        self, model: Transformer, engine: Reader, chat: Chat, measure: Measure = "logprob", remember: int = 4096
    ):
        self.model, self.engine, self.chat, self.measure, self.remember = model, engine, chat, measure, remember
        self.of_sampled = of_sampled if measure == "logprob" else None
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._weights = WeightsWatch(model)

    def forget(self) -> None:
        """Drops what is known of prefixes; the engine's pages are the policy's."""
        self._known.clear()

    async def score(self, prefixes: Sequence[Sequence[int]]) -> list[Score]:
        """See `Scorer.score`. What is read is in `scorer_tokens` and `flops`, and in nothing else."""
        if self._weights.changed(thorough=False):
            self._weights.remember()
            self._known.clear()
        asked = [tuple(prefix) for prefix in prefixes]
        room = self.model.config.max_positions
        fit = {p: _digests(p) for p in asked if len(p) <= room and 0 < generated_from(self.chat, p) < len(p)}
        known = {d[-1]: self._known[d[-1]] for d in fit.values() if d[-1] in self._known}
        tasks: dict[bytes, asyncio.Task[dict[Prefix, tuple[_Known, Cost]]]] = {}
        for group in chains([p for p, d in fit.items() if d[-1] not in known]):
            digests = fit[group[0]][generated_from(self.chat, group[0]) :]
            above = next((d for d in reversed(digests) if d in tasks or d in self._known), None)
            task = asyncio.ensure_future(self._read(group, self._known.get(above or b""), tasks.get(above or b"")))
            tasks |= {fit[p][-1]: task for p in group}
        costs: dict[Prefix, Cost] = {}
        for read in await together(list(dict.fromkeys(tasks.values()))):
            known |= {fit[p][-1]: entry for p, (entry, _) in read.items()}
            costs |= {p: cost for p, (_, cost) in read.items()}
        out = []
        for prefix in asked:
            entry = known.get(fit[prefix][-1]) if prefix in fit else None
            if entry is not None:
                self._keep(fit[prefix][-1], entry)
            value = math.nan if entry is None else self._value(entry.total / entry.count)
            out.append(Score(value, costs.pop(prefix, Cost())))
        return out

    async def _read(
        self, group: Sequence[Prefix], above: _Known | None, task: asyncio.Task | None
    ) -> dict[Prefix, tuple[_Known, Cost]]:
        """Sums and costs of nested prefixes, shortest first, in one reading that goes on from the prefix `above`, or
        from the one that begins this group in what `task` reads."""
        if task is not None:
            read = await task
            above = read[max((p for p in read if group[0][: len(p)] == p), key=len)][0]
        tokens, start = group[-1], generated_from(self.chat, group[-1])
        begin = start + above.count if above else start  # the first token whose term is new
        reading = await self.engine.read(tokens, range(begin if above else begin - 1, len(tokens)))
        hidden_PE = torch.cat([above.hidden_E[None], reading.hidden_PE]) if above else reading.hidden_PE
        terms = self._terms(hidden_PE[:-1], tokens[begin:])  # row i predicts token begin + i
        sums = np.cumsum(terms) + (above.total if above else 0.0)
        c, total, out, before = self.model.config, reading.cost.scorer_tokens, {}, begin
        for prefix in group:
            end = len(prefix)
            entry = _Known(float(sums[end - begin - 1]), end - start, hidden_PE[end - begin].clone())
            own = end - before if out else total - (len(tokens) - end)
            flops = reading.cost.flops * own / max(total, 1) + 2.0 * c.vocab_size * c.hidden_size * (end - before)
            out[prefix] = entry, Cost(scorer_tokens=own, flops=flops)
            before = end
        return out

    @torch.no_grad()
    def _terms(self, hidden_NE: torch.Tensor, tokens: Sequence[int]) -> np.ndarray:
        """[N] float64: what each token adds to the sum."""
        out = []
        device, dtype = self.model.device, self.model.dtype
        for rows in range(0, len(tokens), ROWS):
            logits_nV = self.model.logits(hidden_NE[rows : rows + ROWS].to(device=device, dtype=dtype))
            logp_nV = logits_nV.log_softmax(-1)
            if self.measure == "logprob":
                ids_n = torch.tensor(tokens[rows : rows + ROWS], device=device)
                out.append(logp_nV.gather(-1, ids_n[:, None])[:, 0])
            else:
                out.append(-logp_nV.mean(-1) - math.log(logp_nV.shape[-1]))
        return torch.cat(out).double().cpu().numpy()

    def _value(self, mean: float) -> float:
        return math.exp(min(mean, 0.0)) if self.measure == "logprob" else max(mean, 0.0) / (1.0 + max(mean, 0.0))

    def _keep(self, digest: bytes, entry: _Known) -> None:
        self._known[digest] = entry
        self._known.move_to_end(digest)
        while len(self._known) > self.remember:
            self._known.popitem(last=False)


def generated_from(chat: Chat, tokens: Sequence[int]) -> int:
    """The index behind the first opening tag of the last turn (the turn that the last token belongs to); 0: none."""
    tag, n = tuple(chat.think_open), len(tokens)
    turn = next((i + 1 for i in range(n - 2, -1, -1) if tokens[i] in chat.end_ids), 0)
    return next((i + len(tag) for i in range(turn, n - len(tag) + 1) if tuple(tokens[i : i + len(tag)]) == tag), 0)


def _digests(tokens: Sequence[int]) -> list[bytes]:
    """Of every non-empty prefix, shortest first."""
    state, out = hashlib.blake2b(digest_size=16), []
    for token in np.asarray(tokens, dtype=np.int32):
        state.update(token.tobytes())
        out.append(state.digest())
    return out
