"""The local engine: continuous batching over the very model object that is being trained.

Every step gathers all tokens that can be computed (one per decoding sequence, chunks of waiting prompts), runs one
forward pass, and samples one token per sequence that has caught up. Sequences come and go at any step. Bookkeeping
is in arrays over slots, because a step has to cost microseconds per sequence, not more.

Memory is bounded: `memory_bytes` of pages. A request waits until there is room; if running sequences outgrow it, the
youngest one returns to the queue with what it has (its randomness depends on its seed and position alone, so its
tokens do not change). A request that could never fit is refused at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from mull.chat import Chat
from mull.engine.memory import Rows, make_pages, page_bytes
from mull.engine.pages import PAGE, OutOfPages, PagePool, chain
from mull.engine.sampler import derive_seed
from mull.engine.sampling import draw, uniforms
from mull.errors import StopReason, UserError
from mull.models.flops import causal_context, forward_flops
from mull.models.transformer import Transformer
from mull.types import Completion, Cost, SamplingParams


@dataclass(eq=False)
class _Request:
    prefix: np.ndarray  # int32
    params: SamplingParams
    future: asyncio.Future[Completion]
    limit: int  # total tokens at which it ends
    tokens: np.ndarray | None = None  # all that is known when it enters: prefix, forced, and what preemption left
    logprobs: np.ndarray | None = None
    kept: list[np.ndarray | None] = field(default_factory=list)
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    digest: bytes = b""  # of the full pages registered so far
    registered: int = 0  # how many pages that is
    cached: int = 0
    prefilled: int = 0
    context: int = 0  # keys attended to, for the FLOPs
    computed: int = 0  # tokens through the model
    head: int = 0  # positions whose logits were computed
    cancelled: bool = False


class LocalEngine:
    """A `Sampler` over a `Transformer` in this process.

    The model may be trained between requests: whenever its parameters have changed (torch counts in-place changes),
    the engine raises `policy_version` and forgets cached prefixes. Changing them while requests run is refused.
    """

    def __init__(
        self,
        model: Transformer,
        chat: Chat,
        max_sequences: int = 512,
        memory_bytes: int | None = None,
        max_step_tokens: int = 4096,
        policy_version: int = 0,
    ):
        self.model, self.chat, self.config = model, chat, model.config
        self.policy_version = policy_version
        self.max_step_tokens = max_step_tokens
        dtype = torch.float32 if model.device.type == "cpu" else model.dtype
        if memory_bytes is None:
            memory_bytes = 2 << 30 if model.device.type == "cpu" else torch.cuda.mem_get_info(model.device)[0] // 2
        per_page = page_bytes(self.config, dtype)
        pages_per_sequence = -(-self.config.max_positions // PAGE)
        num_pages = min(memory_bytes // per_page, max_sequences * pages_per_sequence)
        if num_pages < 1:
            raise UserError(
                f"memory_bytes={memory_bytes} holds not one page of {per_page} bytes: give the engine more memory"
            )
        self.pool = PagePool(num_pages)
        self.memory = make_pages(self.config, num_pages, dtype, model.device)
        s, t = max_sequences, self.config.max_positions
        self._requests: list[_Request | None] = [None] * s
        self._free_slots = list(range(s - 1, -1, -1))
        self._order: list[int] = []  # running slots, oldest first
        self._waiting: deque[_Request] = deque()
        self._tokens = np.zeros((s, t), np.int32)
        self._logprobs = np.zeros((s, t), np.float32)  # entry i belongs to token i
        self._table = np.full((s, pages_per_sequence), -1, np.int32)
        self._length = np.zeros(s, np.int32)
        self._computed = np.zeros(s, np.int32)
        self._prefix = np.zeros(s, np.int32)  # tokens of the prefix; forced and sampled ones follow
        self._limit = np.zeros(s, np.int32)
        self._seed = np.zeros(s, np.uint64)
        self._temperature = np.ones(s, np.float32)
        self._top_p = np.ones(s, np.float32)
        self._top_k = np.zeros(s, np.int32)
        self._watched = np.zeros(s, bool)  # has stop strings or stop tokens of its own
        self._end = np.zeros(self.config.vocab_size, bool)
        self._end[list(chat.end_ids)] = True
        self._weights_seen = self._weights_counter()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mull-engine")
        self._runner: asyncio.Task | None = None
        self.steps = 0
        self.step_rows = 0
        self.preemptions = 0

    # ------------------------------------------------------------------------------------------ the contract

    async def sample(self, prefix_tokens: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        """See `Sampler.sample`."""
        requests = [self._submit(prefix_tokens, params.with_seed(derive_seed(params.seed, i))) for i in range(n)]
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run())
        try:
            return list(await asyncio.gather(*(r.future for r in requests)))
        except asyncio.CancelledError:
            for request in requests:
                request.cancelled = True
            if self._runner.done():
                self._drop_cancelled()
            raise

    def _submit(self, prefix_tokens: Sequence[int], params: SamplingParams) -> _Request:
        room = self.config.max_positions
        if not len(prefix_tokens):
            raise UserError("the prefix is empty: the model needs at least one token to continue")
        if len(prefix_tokens) + len(params.forced) >= room:
            raise UserError(
                f"the prompt has {len(prefix_tokens) + len(params.forced)} tokens and the model's context is {room}: shorten it"
            )
        if params.max_tokens < max(1, len(params.forced)):
            raise UserError(f"max_tokens={params.max_tokens} leaves no room for a token: raise it")
        limit = min(room, len(prefix_tokens) + params.max_tokens)
        if -(-limit // PAGE) > self.pool.num_pages:
            raise UserError(
                f"{len(prefix_tokens)} prompt tokens and max_tokens={params.max_tokens} need {-(-limit // PAGE)} memory pages and"
                f" the engine has {self.pool.num_pages}: lower max_tokens or give the engine more memory"
            )
        prefix = np.asarray(prefix_tokens, dtype=np.int32)
        if prefix.min() < 0 or prefix.max() >= self.config.vocab_size:
            raise UserError(f"the prompt has token ids outside the model's vocabulary of {self.config.vocab_size}")
        future = asyncio.get_running_loop().create_future()
        request = _Request(prefix, params, future, limit)
        self._waiting.append(request)
        return request

    async def _run(self) -> None:
        """Steps while there is work. The step runs in a thread so that the event loop stays responsive."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting or self._order:
                for request, completion in await loop.run_in_executor(self._thread, self._step):
                    if not request.future.done():
                        request.future.set_result(completion)
                await asyncio.sleep(0)  # let the answered strategies ask for their next samples before the next step
        except Exception as error:
            for request in [*self._waiting, *(self._requests[s] for s in self._order)]:
                if request is not None and not request.future.done():
                    request.future.set_exception(error)
            self._waiting.clear()
            for slot in list(self._order):
                self._leave(slot)

    # ---------------------------------------------------------------------------------------------- one step

    @torch.inference_mode()
    def _step(self) -> list[tuple[_Request, Completion]]:
        self._drop_cancelled()
        self._notice_weights()
        self._admit()
        rows = self._rows()
        if rows is None:
            return []
        device = self.model.device
        tokens_N = torch.from_numpy(self._tokens[rows.slot_N, rows.position_N].astype(np.int64)).to(device)
        positions_N = torch.from_numpy(rows.position_N.astype(np.int64)).to(device)
        hidden_NE = self.model(tokens_N, positions_N, self.memory.attend(rows))
        self.steps += 1
        self.step_rows += len(rows.slot_N)

        # Logits are needed where the next token is to be sampled, or is forced and wants its log-probability.
        scored = np.flatnonzero(rows.position_N >= self._prefix[rows.slot_N] - 1)
        slot_R, position_R = rows.slot_N[scored], rows.position_N[scored]
        finished: list[tuple[_Request, Completion]] = []
        self._advance(rows)
        if len(scored):
            index = torch.from_numpy(scored).to(device)
            logits_RV = self.model.logits(hidden_NE if len(scored) == len(rows.slot_N) else hidden_NE[index])
            step_R = position_R + 1 - self._prefix[slot_R]
            known_R = position_R + 1 < self._length[slot_R]
            if known_R.any():
                self._score_known(logits_RV, slot_R, position_R, known_R)
            fresh = np.flatnonzero(~known_R)
            if len(fresh):
                slot, at = slot_R[fresh], position_R[fresh] + 1
                drawn = draw(
                    logits_RV if len(fresh) == len(scored) else logits_RV[torch.from_numpy(fresh).to(device)],
                    self._temperature[slot],
                    self._top_p[slot],
                    self._top_k[slot],
                    uniforms(self._seed[slot], step_R[fresh]),
                )
                self._tokens[slot, at] = drawn.tokens_R
                self._logprobs[slot, at] = drawn.logprobs_R
                self._length[slot] += 1
                for i in np.flatnonzero((self._top_p[slot] < 1) | (self._top_k[slot] > 0)):
                    self._request(slot[i]).kept.append(drawn.kept_R[i])
                ended = self._end[drawn.tokens_R]
                full = self._length[slot] >= self._limit[slot]
                for i in np.flatnonzero(ended | full | self._watched[slot]):
                    stop = self._stop_reason(int(slot[i]), int(drawn.tokens_R[i]), bool(ended[i]), bool(full[i]))
                    if stop is not None:
                        finished.append(self._finish(int(slot[i]), stop))
        # A request whose forced tokens fill its limit ends without sampling anything.
        for slot in [
            s for s in self._order if self._length[s] >= self._limit[s] and self._computed[s] >= self._length[s] - 1
        ]:
            finished.append(self._finish(slot, StopReason.LENGTH))
        return finished

    def _score_known(
        self, logits_RV: torch.Tensor, slot_R: np.ndarray, position_R: np.ndarray, known_R: np.ndarray
    ) -> None:
        """Log-probabilities of forced tokens. (A preempted request's own tokens keep those they were sampled with.)"""
        for r in np.flatnonzero(known_R):
            slot, at = int(slot_R[r]), int(position_R[r]) + 1
            if at - self._prefix[slot] < len(self._request(slot).params.forced):
                temperature = float(self._temperature[slot]) or 1.0
                self._logprobs[slot, at] = (
                    (logits_RV[r] / temperature).log_softmax(-1)[int(self._tokens[slot, at])].item()
                )

    def _rows(self) -> Rows | None:
        """What to compute now, with pages taken for it: decoding rows first, then chunks of prompts, oldest first."""
        while True:
            order = np.array(self._order, dtype=np.int32)
            if not len(order):
                return None
            need = self._length[order] - self._computed[order]
            order = order[np.argsort(need > 1, kind="stable")]
            need = self._length[order] - self._computed[order]
            take = np.clip(self.max_step_tokens - (np.cumsum(need) - need), 0, need)
            take[0] = max(take[0], 1)
            order, take = order[take > 0], take[take > 0]
            try:
                end = self._computed[order] + take
                held = -(-self._computed[order] // PAGE)
                for slot, want in zip(
                    order[-(-end // PAGE) > held], (-(-end // PAGE))[-(-end // PAGE) > held], strict=True
                ):
                    request = self._request(slot)
                    while len(request.pages) < want:
                        page = self.pool.allocate()
                        self._table[slot, len(request.pages)] = page
                        request.pages.append(page)
                break
            except OutOfPages:
                self._preempt(self._order[-1])
        slot_N = np.repeat(order, take)
        offset = np.arange(len(slot_N)) - np.repeat(np.cumsum(take) - take, take)
        return Rows(slot_N, (np.repeat(self._computed[order], take) + offset).astype(np.int32), self._table)

    def _advance(self, rows: Rows) -> None:
        """Counts what was computed and makes newly filled pages findable."""
        slots, counts = np.unique(rows.slot_N, return_counts=True)
        before = self._computed[slots]
        self._computed[slots] = before + counts
        for slot, start, count in zip(slots, before, counts, strict=True):
            request = self._request(slot)
            request.computed += int(count)
            request.context += causal_context(int(start), int(start + count))
            given = len(request.prefix) + len(request.params.forced)
            request.prefilled += max(0, min(int(start + count), given) - int(start))
            while (request.registered + 1) * PAGE <= start + count:
                first = request.registered * PAGE
                request.digest = chain(request.digest, self._tokens[slot, first : first + PAGE])
                self.pool.register(request.pages[request.registered], request.digest)
                request.registered += 1

    def _stop_reason(self, slot: int, token: int, ended: bool, full: bool) -> StopReason | None:
        request = self._request(slot)
        if ended or token in request.params.stop_tokens:
            return StopReason.STOP
        if request.params.stop:
            # Enough of the tail to hold the longest stop string, at no less than one byte a token.
            longest = max(len(s.encode()) for s in request.params.stop)
            first = max(int(self._prefix[slot]), int(self._length[slot]) - longest - 4)
            tail = self.chat.decode(self._tokens[slot, first : self._length[slot]].tolist())
            if any(s in tail for s in request.params.stop):
                return StopReason.STOP
        return StopReason.LENGTH if full else None

    # --------------------------------------------------------------------------------------- coming and going

    def _request(self, slot: int) -> _Request:
        request = self._requests[slot]
        assert request is not None
        return request

    def _admit(self) -> None:
        """Takes waiting requests in order while a slot and the pages for their known tokens plus one are there.

        A request whose next page some running request is about to fill waits for it instead of computing it twice:
        that is how the samples of one group share their prompt.
        """
        being_filled = {self._next_digest(self._request(s)) for s in self._order}
        deferred: list[_Request] = []
        while self._waiting and self._free_slots:
            request = self._waiting[0]
            if request.tokens is None:
                request.tokens = np.r_[request.prefix, np.asarray(request.params.forced, np.int32)]
            # The token before the first one to be scored or sampled must be computed here: its logits are wanted.
            reusable = len(request.prefix) - 1
            request.pages, request.digest = self.pool.match(self.policy_version, request.tokens, reusable)
            request.registered = len(request.pages)
            following = self._next_digest(request)
            wait_for_twin = following is not None and following in being_filled
            wanted = -(-(len(request.tokens) + 1) // PAGE) - len(request.pages)
            if wait_for_twin or (wanted > self.pool.available and self._order):
                self.pool.release(request.pages)
                request.pages = []
                if not wait_for_twin:
                    break
                deferred.append(self._waiting.popleft())
                continue
            being_filled.add(following)
            self._enter(self._waiting.popleft())
        self._waiting.extendleft(reversed(deferred))

    def _next_digest(self, request: _Request) -> bytes | None:
        """Of the page of its prefix that the request will fill next; None when only sampled tokens are to come."""
        first = request.registered * PAGE
        if first + PAGE > len(request.prefix) - 1:
            return None
        return chain(request.digest, request.prefix[first : first + PAGE])

    def _enter(self, request: _Request) -> None:
        slot = request.slot = self._free_slots.pop()
        self._requests[slot] = request
        self._order.append(slot)
        assert request.tokens is not None
        shared, n, p = len(request.pages), len(request.tokens), request.params
        request.cached += shared * PAGE
        self._table[slot, :shared] = request.pages
        self._tokens[slot, :n] = request.tokens
        if request.logprobs is not None:
            self._logprobs[slot, :n] = request.logprobs
        self._length[slot], self._computed[slot] = n, shared * PAGE
        self._prefix[slot], self._limit[slot] = len(request.prefix), request.limit
        self._seed[slot] = p.seed
        self._temperature[slot], self._top_p[slot], self._top_k[slot] = p.temperature, p.top_p, p.top_k
        self._watched[slot] = bool(p.stop or p.stop_tokens)

    def _leave(self, slot: int) -> _Request:
        request = self._request(slot)
        self.pool.release(request.pages)
        request.pages = []
        self._requests[slot] = None
        self._order.remove(slot)
        self._free_slots.append(slot)
        return request

    def _preempt(self, slot: int) -> None:
        length = int(self._length[slot])
        request = self._leave(slot)
        request.tokens = self._tokens[slot, :length].copy()
        request.logprobs = self._logprobs[slot, :length].copy()
        self._waiting.appendleft(request)
        self.preemptions += 1

    def _finish(self, slot: int, stop: StopReason) -> tuple[_Request, Completion]:
        request = self._leave(slot)
        start, end = int(self._prefix[slot]), int(self._length[slot])
        forced = len(request.params.forced)
        kept = None
        if request.kept:
            kept = (
                *[np.zeros(0, np.int32)] * forced,
                *[k if k is not None else np.zeros(0, np.int32) for k in request.kept],
            )
        # Every position that predicts a forced or sampled token had its logits computed.
        flops = forward_flops(self.config, request.computed, request.context, end - start)
        cost = Cost(
            sampled_tokens=end - start - forced,
            prefill_tokens=request.prefilled,
            cached_tokens=request.cached,
            flops=flops,
        )
        return request, Completion(
            tokens=tuple(self._tokens[slot, start:end].tolist()),
            logprobs=tuple(self._logprobs[slot, start:end].tolist()),
            stop=stop,
            policy_version=self.policy_version,
            temperature=request.params.temperature,
            forced=forced,
            kept=kept,
            cost=cost,
        )

    def _drop_cancelled(self) -> None:
        if any(r.cancelled for r in self._waiting):
            self._waiting = deque(r for r in self._waiting if not r.cancelled)
        for slot in [s for s in self._order if self._request(s).cancelled]:
            self._leave(slot)

    # -------------------------------------------------------------------------------------------- the weights

    def _weights_counter(self) -> int:
        return sum(p._version for p in self.model.parameters())

    def _notice_weights(self) -> None:
        counter = self._weights_counter()
        if counter == self._weights_seen:
            return
        if self._order:
            raise RuntimeError("the model's weights changed while requests were running: wait for them, then train")
        self._weights_seen = counter
        self.policy_version += 1
        self.pool.forget()

    def restore_version(self, version: int) -> None:
        """Sets the policy version, after a checkpoint was loaded."""
        self._weights_seen = self._weights_counter()
        self.policy_version = version
        self.pool.forget()
