"""Who computes what in the next step: slots, pages and queues of the local engine. numpy only.

A request either samples (its prefix and forced tokens are read, then tokens are drawn) or reads: hidden states at
some positions are all it wants.

Memory is bounded by the page pool. A request waits until there is room for what it knows; if running sequences outgrow
the pool, the youngest one returns to the head of the queue with what it has (its randomness depends on its seed and
position alone, so its tokens do not change).

Per-sequence state is in arrays over slots, because a step has to cost microseconds per sequence, not more.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mull.chat.decode import StreamDecoder
from mull.engine.pages import PAGE, TOKEN_BYTES, OutOfPages, PagePool, Rows, chain, closest, page_digests
from mull.errors import StopReason
from mull.models.config import ModelConfig
from mull.models.flops import causal_context, forward_flops
from mull.types import Completion, Cost, SamplingParams

if TYPE_CHECKING:
    from mull.engine.sampling import Bans


Watch = Callable[[int, int], bool | None]  # gets (number of the sample in its call, token); True: enough of it


def pages_for(tokens: int) -> int:
    return -(-tokens // PAGE)


@dataclass(eq=False)
class Call:
    """One call of `sample` or `read`: n requests with one prefix, answered together."""

    prefix: np.ndarray  # int32
    future: asyncio.Future[list]
    limit: int  # total tokens at which its requests end; a reading's length plus one, as it reads its last token, too
    results: list  # a Completion, or a reading's Cost, per request; None until it has ended
    running: int  # requests that have not ended
    digests: list[bytes] = field(default_factory=list)  # see `page_digests`; of the prefix, under `version`
    version: int = -1

    def digests_under(self, version: int) -> list[bytes]:
        if self.version != version:
            self.version, self.digests = version, page_digests(version, self.prefix)
        return self.digests


@dataclass(eq=False)
class Request:
    call: Call
    index: int  # in `call.results`
    params: SamplingParams
    seed: int  # of this request; `params.seed` is the call's
    tokens: np.ndarray  # all that is known when it enters a slot: prefix, forced, and what preemption left
    scored: int  # how many tokens need no (more) log-probability: the prefix, and what preemption left
    positions: np.ndarray | None = None  # ascending: where a reading wants hidden states
    hidden: list = field(default_factory=list)  # those found so far, float32 [some, E] each
    started: bool = False
    logprobs: np.ndarray | None = None  # of `tokens`, after a preemption
    kept: list[np.ndarray | None] = field(default_factory=list)
    bans: Bans = field(default_factory=dict)  # of its params, shared by the call's requests
    watch: Watch | None = None  # told every token that it samples
    decoder: StreamDecoder | None = None  # only where there are stop strings
    tail: str = ""  # the text that a stop string may have begun in
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)  # see `page_digests`; as far as they are known
    registered: int = 0  # full pages that are findable by others
    entered_at: int = 0  # tokens that were cached when it entered its slot
    cached: int = 0  # the same at its first entrance
    computed: int = 0  # tokens through the model before its last entrance
    context: int = 0  # keys that those attended to

    @property
    def sharable(self) -> int:
        """Tokens that it may take from the cache: the last scored token must be computed, for its output."""
        return self.scored - 1

    def reads_next(self) -> bytes:
        """The sharable tokens of the first page that is not registered: what others may have, or be reading, too."""
        start = self.registered * PAGE
        return self.tokens[start : min(start + PAGE, self.sharable)].tobytes()


class Schedule:
    """Slots and queue. `policy_version` is part of what makes two prefixes equal."""

    def __init__(self, config: ModelConfig, pool: PagePool, max_sequences: int, max_step_tokens: int):
        s, t = max_sequences, config.max_positions
        self.config, self.pool, self.max_step_tokens = config, pool, max_step_tokens
        self.policy_version = 0
        self.waiting: deque[Request] = deque()
        self.order: list[int] = []  # running slots, oldest first
        self.requests: list[Request | None] = [None] * s
        self.free_slots = list(range(s - 1, -1, -1))
        self.tokens = np.zeros((s, t), np.int32)
        self.logprobs = np.zeros((s, t), np.float32)  # entry i belongs to token i
        self.table = np.full((s, pages_for(t)), -1, np.int32)
        self.held = np.zeros(s, np.int32)  # pages in `table`
        self.registered = np.zeros(s, np.int32)
        self.length = np.zeros(s, np.int32)
        self.computed = np.zeros(s, np.int32)
        self.prefix = np.zeros(s, np.int32)  # tokens of the prefix; forced and sampled ones follow
        self.wanted_from = np.zeros(s, np.int32)  # the first position whose logits or hidden state is wanted
        self.limit = np.zeros(s, np.int32)
        self.seed = np.zeros(s, np.uint64)
        self.temperature = np.ones(s, np.float32)
        self.top_p = np.ones(s, np.float32)
        self.top_k = np.zeros(s, np.int32)
        self.stop_tokens = np.full((s, 2), -1, np.int32)
        self.watched = np.zeros(s, bool)  # has stop strings
        self.live = np.zeros(s, bool)  # somebody watches its tokens come
        self.restricted = np.zeros(s, bool)  # the support of its draws may be cut: top-p, top-k, bans
        self.reads = np.zeros(s, bool)  # wants hidden states, no tokens
        self.wanted = np.zeros((s, t), bool)  # of those slots: at which positions
        self.copies: list[tuple[int, int]] = []  # (from page, to page), to be made before the next step
        self.preemptions = 0
        self._spent = [0, 0, 0, 0, 0.0]  # sampled, prefill, cached and scorer tokens, FLOPs
        self._taking: tuple[np.ndarray, np.ndarray] = (np.zeros(0, np.int32), np.zeros(0, np.int32))

    @property
    def spent(self) -> Cost:
        """Of all requests that have left, withdrawn ones included."""
        sampled, prefill, cached, scorer, flops = self._spent
        return Cost(sampled, prefill, cached, scorer, flops=flops)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.order)

    @property
    def started(self) -> bool:
        """Whether any request has computed something that depends on the weights."""
        return bool(self.order) or any(r.started for r in self.waiting)

    def request(self, slot: int) -> Request:
        request = self.requests[slot]
        assert request is not None
        return request

    # ------------------------------------------------------------------------------------------ what to compute

    def rows(self) -> Rows | None:
        """What to compute now, with pages taken for it: decoding rows first, then chunks of prompts, oldest first."""
        while self.order:
            order = np.array(self.order, dtype=np.int32)
            # The token at the limit is never read by the model: nothing follows it.
            need = np.minimum(self.length[order], self.limit[order] - 1) - self.computed[order]
            if (need > 1).any() or len(order) > self.max_step_tokens:
                first = np.argsort(need > 1, kind="stable")
                order, need = order[first], need[first]
                take = np.clip(self.max_step_tokens - (np.cumsum(need) - need), 0, need)
                take[0] = max(take[0], 1)
                order, take = order[take > 0], take[take > 0]
                slot_N = np.repeat(order, take)
                offset = np.arange(len(slot_N)) - np.repeat(np.cumsum(take) - take, take)
                position_N = (np.repeat(self.computed[order], take) + offset).astype(np.int32)
            else:
                take, slot_N, position_N = need, order, self.computed[order]
            try:
                want = (self.computed[order] + take + (PAGE - 1)) // PAGE
                for i in np.flatnonzero(want > self.held[order]):
                    self._allocate(int(order[i]), int(want[i]))
            except OutOfPages:
                self._preempt(self.order[-1])
                continue
            self._taking = order, take
            return Rows(slot_N, position_N, self.table)
        return None

    def advance(self) -> None:
        """The rows were computed: counts them, and makes findable which pages were filled and which prefixes read."""
        order, take = self._taking
        before, wanted = self.computed[order], self.wanted_from[order]
        now = self.computed[order] = before + take
        filled, read = now // PAGE > self.registered[order], (before < wanted) & (now >= wanted)
        for slot in order[filled | read].tolist():
            self._publish(slot)

    def _publish(self, slot: int) -> None:
        """Makes all that a slot has computed findable."""
        request, tokens, computed = self.request(slot), self.tokens[slot], int(self.computed[slot])
        while (request.registered + 1) * PAGE <= computed:
            page = request.registered
            contents = tokens[page * PAGE : (page + 1) * PAGE].tobytes()
            if len(request.digests) == page + 1:
                request.digests.append(chain(request.digests[page], contents))
            self.pool.register(request.pages[page], request.digests[page], contents, request.digests[page + 1])
            request.registered += 1
        self.registered[slot] = page = request.registered
        if page * PAGE < computed:
            contents = tokens[page * PAGE : computed].tobytes()
            self.pool.register(request.pages[page], request.digests[page], contents)

    def _allocate(self, slot: int, want: int) -> None:
        request = self.request(slot)
        while len(request.pages) < want:
            page = self.pool.allocate()
            self.table[slot, len(request.pages)] = page
            request.pages.append(page)
            self.held[slot] = len(request.pages)

    # ------------------------------------------------------------------------------------------ coming and going

    def admit(self) -> None:
        """Takes waiting requests in order while a slot and the pages for their known tokens plus one are there.

        A request waits for what some running request is about to read, instead of reading it as well, if that is all
        it needs of its next page or half a page more than is cached: so the samples of one group share their prompt.
        With nothing running the first one always enters, so waiting ends.
        """
        self.copies = []
        if not (self.waiting and self.free_slots):
            return
        order = np.array(self.order, dtype=np.int32)
        target = np.minimum(self.length[order], self.limit[order] - 1)
        promised = int(np.maximum((target + PAGE - 1) // PAGE - self.held[order], 0).sum())
        being_read: dict[bytes, list[tuple[bytes, int]]] = {}  # sorted (contents, slot) by the digest before them
        for slot in order[self.computed[order] < self.wanted_from[order]].tolist():
            request = self.request(slot)
            insort(being_read.setdefault(request.digests[request.registered], []), (request.reads_next(), slot))
        deferred: list[Request] = []
        while self.waiting and self.free_slots:
            request = self.waiting[0]
            if not request.started:
                request.digests = list(request.call.digests_under(self.policy_version))
            pages = self.pool.match(request.digests[1 : 1 + request.sharable // PAGE])
            request.registered = len(pages)
            parent, contents = request.digests[len(pages)], request.reads_next()
            cached, source = self.pool.closest(parent, contents)
            promising = closest(being_read.get(parent, ()), contents)[0]
            if promising > cached and (promising * TOKEN_BYTES == len(contents) or promising - cached >= PAGE // 2):
                self.pool.release(pages)
                deferred.append(self.waiting.popleft())
                continue
            wanted = max(0, pages_for(min(len(request.tokens) + 1, request.call.limit - 1)) - len(pages))
            if self.order and wanted + promised > self.pool.available:
                self.pool.release(pages)
                break
            if cached:
                wanted -= 1
                pages.append(self.pool.allocate())
                self.copies.append((source, pages[-1]))
            promised += wanted
            self.waiting.popleft()
            slot = self._enter(request, pages, request.registered * PAGE + cached)
            if cached * TOKEN_BYTES < len(contents):
                insort(being_read.setdefault(parent, []), (contents, slot))
        self.waiting.extendleft(reversed(deferred))

    def _enter(self, request: Request, pages: list[int], cached: int) -> int:
        slot = self.free_slots.pop()
        self.requests[slot] = request
        self.order.append(slot)
        n, p = len(request.tokens), request.params
        request.pages, request.entered_at = pages, cached
        if not request.started:
            request.cached, request.started = cached, True
        self.table[slot, : len(pages)] = pages
        self.held[slot], self.registered[slot] = len(pages), request.registered
        self.tokens[slot, :n] = request.tokens
        if request.logprobs is not None:
            self.logprobs[slot, :n] = request.logprobs
        self.length[slot], self.computed[slot] = n, cached
        self.prefix[slot], self.limit[slot] = len(request.call.prefix), request.call.limit
        self.wanted_from[slot] = request.scored - 1
        self.seed[slot] = request.seed
        self.temperature[slot], self.top_p[slot], self.top_k[slot] = p.temperature, p.top_p, p.top_k
        missing = len(p.stop_tokens) - self.stop_tokens.shape[1]
        if missing > 0:
            self.stop_tokens = np.pad(self.stop_tokens, ((0, 0), (0, missing)), constant_values=-1)
        self.stop_tokens[slot] = -1
        self.stop_tokens[slot, : len(p.stop_tokens)] = p.stop_tokens
        self.watched[slot] = bool(p.stop)
        self.live[slot] = request.watch is not None
        self.restricted[slot] = p.top_p < 1 or p.top_k > 0 or bool(request.bans)
        self.reads[slot] = request.positions is not None
        if request.positions is not None:
            self.wanted[slot] = False
            self.wanted[slot, request.positions] = True
        return slot

    def _leave(self, slot: int) -> Request:
        request, computed = self.request(slot), int(self.computed[slot])
        if computed > request.entered_at:
            self._publish(slot)
        request.computed += computed - request.entered_at
        request.context += causal_context(request.entered_at, computed)
        self.pool.release(request.pages)
        request.pages = []
        self.requests[slot] = None
        self.order.remove(slot)
        self.free_slots.append(slot)
        return request

    def _preempt(self, slot: int) -> None:
        length, computed = int(self.length[slot]), int(self.computed[slot])
        request = self._leave(slot)
        request.tokens = self.tokens[slot, :length].copy()
        request.logprobs = self.logprobs[slot, :length].copy()
        # The logits of position i score token i + 1; a reading has the hidden states of what it computed.
        request.scored = max(request.scored, min(length, computed + 1))
        self.waiting.appendleft(request)
        self.preemptions += 1

    def finish(self, slot: int, stop: StopReason) -> tuple[Request, Completion]:
        start, end = int(self.prefix[slot]), int(self.length[slot])
        request = self._leave(slot)
        cost = self._settle(request, end, int(self.computed[slot]))
        forced = len(request.params.forced)
        kept = None
        if request.kept:
            none = np.zeros(0, np.int32)
            kept = (*[none] * forced, *[none if k is None else k for k in request.kept])
        return request, Completion(
            tokens=tuple(self.tokens[slot, start:end].tolist()),
            logprobs=tuple(self.logprobs[slot, start:end].tolist()),
            stop=stop,
            policy_version=self.policy_version,
            temperature=request.params.temperature,
            forced=forced,
            kept=kept,
            cost=cost,
        )

    def finish_reading(self, slot: int) -> tuple[Request, Cost]:
        request = self._leave(slot)
        return request, self._settle(request, int(self.length[slot]), int(self.computed[slot]))

    def withdraw(self, call: Call | None = None) -> None:
        """Drops the requests of `call`, or all; their slots and pages are free at once."""
        for slot in [s for s in self.order if call is None or self.request(s).call is call]:
            request = self._leave(slot)
            self._settle(request, int(self.length[slot]), int(self.computed[slot]))
        gone = [r for r in self.waiting if call is None or r.call is call]
        for request in gone:
            if request.started:
                self._settle(request, len(request.tokens), request.scored - 1)
        if gone:
            self.waiting = deque(r for r in self.waiting if call is not None and r.call is not call)

    def _settle(self, request: Request, length: int, reached: int) -> Cost:
        """What a request that leaves has consumed; `reached` tokens of its `length` have been through the model.

        What a preemption made it compute again is in the FLOPs only, so that prefill and cached tokens add up to what
        was given.
        """
        prefix, given = len(request.call.prefix), len(request.call.prefix) + len(request.params.forced)
        # Every position that predicts a forced or sampled token had its logits computed; a reading has none of either.
        scored = 0 if request.positions is not None else max(request.scored, min(length, reached + 1)) - prefix
        prefill = max(0, min(given, reached) - request.cached)
        flops = forward_flops(self.config, request.computed, request.context, scored)
        spent = (length - given, prefill, request.cached, 0 if request.positions is None else prefill)
        self._spent = [total + new for total, new in zip(self._spent, (*spent, flops), strict=True)]
        return Cost(*spent, flops=flops)
