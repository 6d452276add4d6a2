"""A `Sampler` that follows a script instead of a model, for tests of strategies. No torch.

A script says which spans may follow a prefix, and with which probabilities. It is one of
- a list of completions, handed out in the order in which they are asked for;
- a mapping from a suffix of the prefix to what follows it (the longest matching suffix counts);
- a function from the prefix's tokens to what follows it, or None.

What follows is one span, or a mapping from spans to weights. A span is text or token ids. After a span of a mapping or
function the script is asked again; where it says nothing more, the end token follows with probability 1.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from mull.engine.sampler import derive_seed
from mull.errors import StopReason, UserError
from mull.types import Completion, Cost, SamplingParams

if TYPE_CHECKING:
    from mull.chat import Chat

Piece = str | Sequence[int]
Follows = Piece | Mapping[str, float] | Mapping[tuple[int, ...], float]
Script = Sequence[Piece] | Mapping[str, Follows] | Callable[[tuple[int, ...]], Follows | None]

END = 0  # the end token where no chat is given; text is then its UTF-8 bytes


@dataclass
class Call:
    """One call of `sample` as it came in, and what became of it."""

    prefix: tuple[int, ...]
    params: SamplingParams
    n: int
    completions: list[Completion] = field(default_factory=list)
    cancelled: bool = False
    error: BaseException | None = None


class ScriptedSampler:
    """Seeded like a real sampler: the same seed draws the same spans, whatever else is asked.

    Probabilities become p^(1/temperature), renormalised; temperature 0 takes the likeliest span. top-p and top-k are
    not modelled. The log-probability of a span stands on its first token, the others have 0, as have forced tokens.
    `fail[k]` is raised by call k (from 0). Each call gives the event loop `yields` turns before it answers.
    A prompt token counts as cached where an earlier call has read or sampled the same tokens up to it.
    """

    def __init__(
        self,
        script: Script,
        chat: Chat | None = None,
        *,
        fail: Mapping[int, BaseException] | None = None,
        yields: int = 1,
        context: int | None = None,
        flops_per_token: float = 1.0,
        policy_version: int = 0,
    ):
        if isinstance(script, Mapping) and any(not len(key) for key in script):
            raise ValueError("an empty suffix would match for ever: use a function as the script")
        self.chat, self.fail, self.yields, self.context = chat, dict(fail or {}), yields, context
        self.flops_per_token, self.policy_version = flops_per_token, policy_version
        self.end_ids = chat.end_ids if chat else (END,)
        self.calls: list[Call] = []
        self.running = 0  # calls that are being answered
        self.peak = 0  # the most that there were at once
        self._list = None if isinstance(script, Mapping) or callable(script) else list(script)
        self._next = 0
        self._follows = script if callable(script) else self._by_suffix(script)
        self._seen: dict = {}  # a trie of tokens

    async def sample(self, prefix_tokens: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """See `Sampler.sample`."""
        call = Call(tuple(prefix_tokens), params, n)
        self.calls.append(call)
        number = len(self.calls) - 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            self._refuse(call)
            for _ in range(self.yields):
                await asyncio.sleep(0)
            if number in self.fail:
                raise self.fail[number]
            call.completions = [
                self._complete(call.prefix, params.with_seed(derive_seed(params.seed, params.first + i)))
                for i in range(n)
            ]
            return list(call.completions)
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        except BaseException as error:
            call.error = error
            raise
        finally:
            self.running -= 1

    @property
    def cost(self) -> Cost:
        """Of everything that was answered."""
        return sum((completion.cost for call in self.calls for completion in call.completions), Cost())

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a script's text; a `</think>` in it becomes the chat's own closing tag."""
        if self.chat is None:
            return tuple(text.encode())
        thought, *rest = text.split("</think>")
        tokens = self.chat.encode(thought)
        for piece in rest:
            tokens += [*self.chat.think_close, *self.chat.encode(piece)]
        return tuple(tokens)

    def decode(self, tokens: Iterable[int]) -> str:
        return self.chat.decode(tokens) if self.chat else bytes(tokens).decode("utf-8", "replace")

    # ------------------------------------------------------------------------------------------------ inside

    def _refuse(self, call: Call) -> None:
        if not call.prefix:
            raise UserError("the prefix is empty: the model needs at least one token to continue")
        if call.params.banned:
            raise UserError("a script says what follows: it bans no token sequences")
        if call.params.max_tokens < max(1, len(call.params.forced)):
            raise UserError(f"max_tokens={call.params.max_tokens} leaves no room for a token: raise it")
        if self.context is not None and len(call.prefix) + len(call.params.forced) >= self.context:
            raise UserError(
                f"the prompt has {len(call.prefix) + len(call.params.forced)} tokens and the model's context is"
                f" {self.context}: shorten it"
            )

    def _complete(self, prefix: tuple[int, ...], params: SamplingParams) -> Completion:
        tokens, logprobs = list(params.forced), [0.0] * len(params.forced)
        most = params.max_tokens if self.context is None else min(params.max_tokens, self.context - len(prefix))
        stop = None if len(tokens) < most else StopReason.LENGTH
        step = 0
        while stop is None:
            span, logprob = self._draw(prefix, tuple(tokens[len(params.forced) :]), tuple(tokens), params, step)
            step += 1
            for i, token in enumerate(span):
                tokens.append(token)
                logprobs.append(0.0 if i else logprob)
                stop = self._stop(tokens, params, most)
                if stop is not None:
                    break
        cached = min(self._known(prefix), len(prefix) - 1)
        self._remember((*prefix, *tokens))
        read, sampled = len(prefix) + len(params.forced) - cached, len(tokens) - len(params.forced)
        return Completion(
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            stop=stop,
            policy_version=self.policy_version,
            temperature=params.temperature,
            forced=len(params.forced),
            cost=Cost(
                sampled_tokens=sampled,
                prefill_tokens=read,
                cached_tokens=cached,
                flops=self.flops_per_token * (read + sampled),
            ),
        )

    def _draw(
        self,
        prefix: tuple[int, ...],
        sampled: tuple[int, ...],
        continued: tuple[int, ...],
        params: SamplingParams,
        step: int,
    ) -> tuple[tuple[int, ...], float]:
        """The next span, never empty, and its log-probability."""
        end = (self.end_ids[0],)
        if self._list is not None:
            if step:
                return end, 0.0
            if self._next == len(self._list):
                raise LookupError(f"the script has {len(self._list)} completions and one more was asked for")
            self._next += 1
            return self._tokens(self._list[self._next - 1]) or end, 0.0
        assert self._follows is not None
        follows = self._follows((*prefix, *continued))
        if follows is None:
            if not sampled and not params.forced:
                raise LookupError(f"the script says nothing about a prefix that ends in {self.decode(prefix)[-60:]!r}")
            return end, 0.0
        if not isinstance(follows, Mapping):
            return self._tokens(follows) or end, 0.0
        weights = {self._tokens(piece) or end: float(weight) for piece, weight in follows.items() if weight > 0}
        total = math.fsum(weights.values())
        if params.temperature == 0:
            span = max(weights, key=lambda s: weights[s])
            return span, math.log(weights[span] / total)
        heat = {s: (w / total) ** (1 / params.temperature) for s, w in weights.items()}
        total = math.fsum(heat.values())
        target = derive_seed(params.seed, step) / 2**63 * total
        at = bisect.bisect_right(list(accumulate(heat.values())), target)
        span = list(heat)[min(at, len(heat) - 1)]
        return span, math.log(heat[span] / total)

    def _stop(self, tokens: list[int], params: SamplingParams, most: int) -> StopReason | None:
        if tokens[-1] in self.end_ids or tokens[-1] in params.stop_tokens:
            return StopReason.STOP
        if params.stop:
            text, before = self.decode(tokens), self.decode(tokens[:-1])
            if any(text.count(s) > before.count(s) for s in params.stop):
                return StopReason.STOP
        return StopReason.LENGTH if len(tokens) >= most else None

    def _by_suffix(self, script: object) -> Callable[[tuple[int, ...]], Follows | None] | None:
        if not isinstance(script, Mapping):
            return None
        known = sorted(((self._tokens(key), value) for key, value in script.items()), key=lambda kv: -len(kv[0]))

        def follows(prefix: tuple[int, ...]) -> Follows | None:
            return next((value for suffix, value in known if prefix[-len(suffix) :] == suffix), None)

        return follows

    def _tokens(self, piece: Piece) -> tuple[int, ...]:
        return self.encode(piece) if isinstance(piece, str) else tuple(piece)

    def _known(self, tokens: Sequence[int]) -> int:
        node, depth = self._seen, 0
        for token in tokens:
            if token not in node:
                break
            node, depth = node[token], depth + 1
        return depth

    def _remember(self, tokens: Sequence[int]) -> None:
        node = self._seen
        for token in tokens:
            node = node.setdefault(token, {})
