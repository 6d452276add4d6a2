"""The local engine: continuous batching over the very model object that is being trained.

Every step gathers all tokens that can be computed (one per decoding sequence, chunks of waiting prompts), runs one
forward pass, and samples one token per sequence that has caught up. Sequences come and go at any step; `schedule.py`
says which. Steps run in the event loop's own thread, one after the other, so a run is a function of its requests: the
same program asks and samples the same things again, bit for bit.

Memory is bounded: `memory_bytes` of pages. A request waits until there is room. One that could never fit is refused at
once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from mull.chat import Chat
from mull.engine.lanes import Lanes, split
from mull.engine.memory import Rows, default_bytes, make_pages, page_bytes
from mull.engine.pages import PagePool
from mull.engine.sampler import derive_seed
from mull.engine.sampling import banned_next, bans_of, draw, uniforms
from mull.engine.schedule import Call, Request, Schedule, Watch, pages_for
from mull.engine.weights import WeightsWatch
from mull.errors import StopReason, UserError
from mull.models.transformer import Transformer
from mull.types import Completion, Cost, SamplingParams

_NO_SAMPLING = SamplingParams(max_tokens=1)  # stands in a reading's slot; nothing looks at it

# Turns of the event loop at the start and after answers, so that strategies, and what waits for those, can ask for more
# before the next step: a task that awaited a sample needs one turn, each `gather` around it two more.
_TURNS = 6
# After a step of which somebody is told (`watch`), so that a streamed token is on its way before the next is drawn.
_TOLD = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """Final hidden states of a sequence (after the last norm) at the P positions that were asked for, on the CPU."""

    hidden_PE: torch.Tensor  # float32
    cost: Cost  # `scorer_tokens` equals `prefill_tokens`: what was really read


class LocalEngine:
    """A `Sampler` over a `Transformer` in this process.

    The model may be trained between requests: the engine looks at the weights before it starts on new work, and when
    they have changed it raises `policy_version` and forgets cached prefixes. Changing them while requests run is an
    error that those requests get. One event loop at a time; loops may follow one another (`asyncio.run` many times).
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
        dtype = torch.float32 if model.device.type == "cpu" else model.dtype
        if memory_bytes is None:
            memory_bytes = default_bytes(model.device)
        per_page = page_bytes(self.config, dtype)
        num_pages = min(memory_bytes // per_page, max_sequences * pages_for(self.config.max_positions))
        if num_pages < 1:
            raise UserError(
                f"memory_bytes={memory_bytes} holds not one page of {per_page} bytes: give the engine more memory"
            )
        ends = [i for i in chat.end_ids if i < self.config.vocab_size]
        if not ends:
            raise UserError(
                f"the tokenizer's end tokens {list(chat.end_ids)} are outside the model's vocabulary of"
                f" {self.config.vocab_size}: take the tokenizer that belongs to the model"
            )
        self._end = np.zeros(self.config.vocab_size, bool)
        self._end[ends] = True
        self.pool = PagePool(num_pages)
        self.memory = make_pages(self.config, num_pages, dtype, model.device)
        self.schedule = Schedule(self.config, self.pool, max_sequences, max_step_tokens)
        self.schedule.policy_version = policy_version
        self._weights = WeightsWatch(model)
        self._lanes = Lanes(model.device)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: asyncio.Task | None = None
        self.steps = 0
        self.step_rows = 0

    @property
    def policy_version(self) -> int:
        """Of the weights that the engine last worked with."""
        return self.schedule.policy_version

    @property
    def preemptions(self) -> int:
        return self.schedule.preemptions

    @property
    def spent(self) -> Cost:
        """Everything that was computed for finished and for withdrawn requests."""
        return self.schedule.spent

    # ------------------------------------------------------------------------------------------ the contract

    async def sample(
        self, prefix_tokens: Sequence[int], params: SamplingParams, n: int = 1, watch: Watch | None = None
    ) -> list[Completion]:
        """See `Sampler.sample`. `watch(i, token)` hears of every token of the i-th sample in the step that draws it
        (forced ones left out), and ends the sample there (`StopReason.LENGTH`) by returning True. It is called between
        two steps of all requests, so it must be quick and never raise."""
        prefix = self._checked(prefix_tokens, params, n)
        if n == 0:
            return []
        return await self._answer(self._samples(prefix, params, n, watch))

    async def read(self, tokens: Sequence[int], positions: Sequence[int]) -> Reading:
        """Hidden states of `tokens` at ascending `positions`; what follows the last position is not read.

        Shares steps, pages and cached prefixes with everything else: what lies before `positions[0]` may come from the
        cache, so that extending a sequence that was read or sampled costs the new tokens alone. No logits are
        computed. Cancelling withdraws it. UserError as from `sample`, and for positions outside `tokens`.
        """
        sequence, wanted = self._checked_reading(tokens, positions)
        request = self._reading(sequence, wanted)
        [cost] = await self._answer([request])
        return Reading(torch.cat(request.hidden), cost)

    async def _answer(self, requests: list[Request]) -> list:
        """Queues the requests of one call and waits for their results."""
        call, loop = requests[0].call, asyncio.get_running_loop()
        self._belong_to(loop)
        self.schedule.waiting.extend(requests)
        if self._runner is None or self._runner.done():
            self._runner = loop.create_task(self._run())
        try:
            return await call.future
        except BaseException:
            self.schedule.withdraw(call)
            raise

    def forget(self) -> None:
        """Drops every cached prefix, so that what comes next pays for what it reads."""
        self.pool.forget()

    def restore_version(self, version: int) -> None:
        """Sets the policy version and forgets every cached prefix, after a checkpoint was loaded or to start afresh."""
        if self.schedule.started:
            raise RuntimeError("the policy version was set while requests were running: wait for them first")
        self._weights.remember()
        self.schedule.policy_version = version
        self.pool.forget()

    def _checked(self, prefix_tokens: Sequence[int], params: SamplingParams, n: int) -> np.ndarray:
        room, given = self.config.max_positions, len(params.forced)
        if n < 0:
            raise UserError(f"n={n} samples were asked for: ask for at least one")
        if not len(prefix_tokens):
            raise UserError("the prefix is empty: the model needs at least one token to continue")
        given += len(prefix_tokens)
        if given >= room:
            raise UserError(f"the prompt has {given} tokens and the model's context is {room}: shorten it")
        if params.max_tokens < max(1, len(params.forced)):
            raise UserError(f"max_tokens={params.max_tokens} leaves no room for a token: raise it")
        if not 0 <= params.temperature < math.inf:
            raise UserError(f"temperature={params.temperature} must be a number from 0 (greedy) upwards")
        if not 0 < params.top_p <= 1:
            raise UserError(f"top_p={params.top_p} must lie above 0 and at most at 1")
        if params.top_k < 0:
            raise UserError(f"top_k={params.top_k} must be 0 (no limit) or more")
        if "" in params.stop:
            raise UserError("a stop string is empty: it would end everything at once")
        if not all(params.banned):
            raise UserError("a banned sequence is empty: give at least one token")
        for sequence in params.banned:
            self._check_ids("banned sequence", sequence)
        if len({sequence[-1] for sequence in params.banned}) >= self.config.vocab_size:
            raise UserError("the banned sequences leave no token to sample: ban fewer")
        asked = f"{len(prefix_tokens)} prompt tokens and max_tokens={params.max_tokens} need"
        self._check_room(min(room, len(prefix_tokens) + params.max_tokens) - 1, asked, "lower max_tokens")
        self._check_ids("forced text", params.forced)
        return self._check_ids("prompt", prefix_tokens)

    def _checked_reading(self, tokens: Sequence[int], positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """What is to be read, up to the last position; and the positions."""
        wanted = np.asarray(positions, dtype=np.int64)
        if not len(tokens):
            raise UserError("there is nothing to read: give at least one token")
        if not len(wanted) or wanted[0] < 0 or wanted[-1] >= len(tokens) or (np.diff(wanted) <= 0).any():
            raise UserError(
                f"positions to read at must ascend from 0 to {len(tokens) - 1} at most, and these do not: {positions}"
            )
        n = int(wanted[-1]) + 1
        if n > self.config.max_positions:
            raise UserError(
                f"{n} tokens were to be read and the model's context is {self.config.max_positions}: shorten them"
            )
        self._check_room(n, f"{n} tokens to read need", "shorten them")
        return self._check_ids("text to read", tokens[:n]), wanted

    def _check_room(self, tokens: int, asked: str, remedy: str) -> None:
        pages = pages_for(tokens)
        if pages > self.pool.num_pages:
            raise UserError(
                f"{asked} {pages} memory pages and the engine has {self.pool.num_pages}: {remedy} or give the engine"
                " more memory"
            )

    def _check_ids(self, name: str, ids: Sequence[int]) -> np.ndarray:
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            raise UserError(f"the {name} has token ids outside the model's vocabulary of {self.config.vocab_size}")
        return np.asarray(ids, dtype=np.int32)

    def _samples(self, prefix: np.ndarray, params: SamplingParams, n: int, watch: Watch | None) -> list[Request]:
        limit = min(self.config.max_positions, len(prefix) + params.max_tokens)
        call = Call(prefix, asyncio.get_running_loop().create_future(), limit, [None] * n, n)
        known = np.r_[prefix, np.asarray(params.forced, np.int32)] if params.forced else prefix
        requests, bans = list[Request](), bans_of(params.banned)
        for i in range(n):
            seed = derive_seed(params.seed, params.first + i)
            request = Request(call, i, params, seed, known, len(prefix), bans=bans, watch=watch)
            if params.stop:
                request.decoder = self.chat.stream()
                request.tail = "".join(map(request.decoder.push, params.forced))
            requests.append(request)
        return requests

    def _reading(self, sequence: np.ndarray, positions: np.ndarray) -> Request:
        call = Call(sequence, asyncio.get_running_loop().create_future(), len(sequence) + 1, [None], 1)
        return Request(call, 0, _NO_SAMPLING, 0, sequence, int(positions[0]) + 1, positions)

    def _belong_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Takes leave of an event loop that has ended, with whatever it left unfinished."""
        if loop is self._loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise RuntimeError("the engine is in use by another event loop: give each thread an engine of its own")
        if self._runner is not None and not self._runner.done() and not self._runner.get_loop().is_closed():
            self._runner.cancel()
            self._fail(asyncio.CancelledError())
        self.schedule.withdraw()
        self._loop, self._runner = loop, None

    async def _run(self) -> None:
        """Steps while there is work."""
        me = asyncio.current_task()
        try:
            turns = _TURNS
            while True:
                for _ in range(turns):
                    await asyncio.sleep(0)
                if not self.schedule.busy:
                    return
                turns = _TOLD if self.schedule.live.any() else 1
                for request, result in self._step():
                    call = request.call
                    call.results[request.index] = result
                    call.running -= 1
                    if not call.running and not call.future.done():
                        call.future.set_result(call.results)
                        turns = _TURNS
        except BaseException as error:
            if self._runner is me:
                self._fail(error)
            if not isinstance(error, Exception):
                raise
        finally:
            # A task that was cancelled keeps this frame, which would keep the task, the engine, and the engine's pages.
            self._runner = None if self._runner is me else self._runner
            del me

    def _fail(self, error: BaseException) -> None:
        """Everybody who waits gets the error; the engine is empty and usable afterwards."""
        requests = [*self.schedule.waiting, *map(self.schedule.request, self.schedule.order)]
        self.schedule.withdraw()
        for call in dict.fromkeys(request.call for request in requests):
            if call.future.done():
                continue
            if isinstance(error, Exception):
                call.future.set_exception(error)
            else:
                call.future.cancel()

    # ---------------------------------------------------------------------------------------------- one step

    @torch.inference_mode()
    def _step(self) -> list[tuple[Request, Completion | Cost]]:
        """Computes a step; returns the requests that end with it and their results (a reading's is its cost)."""
        s = self.schedule
        self._notice_weights()
        s.admit()
        if s.copies:
            self.memory.copy(s.copies)
        rows = s.rows()
        assert rows is not None, "work is waiting, nothing runs, and nothing was admitted"
        hidden_NE = self._lanes.run(self._forward, split(rows, self._lanes.count))
        self.steps += 1
        self.step_rows += len(rows.slot_N)
        s.advance()

        # Logits are needed where the next token is to be sampled, or is forced and wants its log-probability.
        outputs = rows.position_N >= s.wanted_from[rows.slot_N]
        read: list[tuple[Request, Completion | Cost]] = []
        if s.reads.any():
            reads = s.reads[rows.slot_N]
            wanted = np.flatnonzero(outputs & reads & s.wanted[rows.slot_N, rows.position_N])
            read += self._hand_out(hidden_NE, rows, wanted)
            outputs &= ~reads
        scored = np.flatnonzero(outputs)
        if not len(scored):
            return read
        slot_R, position_R = rows.slot_N[scored], rows.position_N[scored]
        logits_RV = self.model.logits(_take(hidden_NE, scored))
        fresh_R = position_R + 1 == s.length[slot_R]
        if not fresh_R.all():
            self._score_forced(logits_RV, slot_R, position_R, np.flatnonzero(~fresh_R))
        fresh = np.flatnonzero(fresh_R)
        finished = self._sample(_take(logits_RV, fresh), slot_R[fresh], position_R[fresh]) if len(fresh) else []
        # A request whose forced tokens fill its limit ends without sampling anything.
        full = (s.length[slot_R] == s.limit[slot_R]) & (position_R == s.limit[slot_R] - 2) & ~fresh_R
        return read + finished + [s.finish(slot, StopReason.LENGTH) for slot in slot_R[full].tolist()]

    def _hand_out(
        self, hidden_NE: torch.Tensor, rows: Rows, wanted: np.ndarray
    ) -> list[tuple[Request, Completion | Cost]]:
        """Gives readings their rows of this step; returns those that have them all."""
        s, slot_R, done = self.schedule, rows.slot_N[wanted], []
        found_RE = _take(hidden_NE, wanted).float().cpu()
        borders = [0, *(np.flatnonzero(slot_R[1:] != slot_R[:-1]) + 1).tolist(), len(wanted)]
        for start, end in pairwise(borders if len(wanted) else []):
            slot = int(slot_R[start])
            s.request(slot).hidden.append(found_RE[start:end])
            if s.computed[slot] == s.length[slot]:
                done.append(s.finish_reading(slot))
        return done

    @torch.inference_mode()
    def _forward(self, rows: Rows) -> torch.Tensor:
        """Final hidden states [N, E]; keys and values of the rows are in memory afterwards."""
        tokens_N = self.schedule.tokens[rows.slot_N, rows.position_N].astype(np.int64)
        positions_N = torch.from_numpy(rows.position_N.astype(np.int64)).to(self.model.device)
        return self.model(torch.from_numpy(tokens_N).to(self.model.device), positions_N, self.memory.attend(rows))

    def _sample(
        self, logits_RV: torch.Tensor, slot_R: np.ndarray, position_R: np.ndarray
    ) -> list[tuple[Request, Completion]]:
        """Draws the token after each position; returns the requests that end with it."""
        s, at_R = self.schedule, position_R + 1
        top_p_R, top_k_R = s.top_p[slot_R], s.top_k[slot_R]
        uniform_R = uniforms(s.seed[slot_R], at_R - s.prefix[slot_R])
        restricted = np.flatnonzero(s.restricted[slot_R]).tolist()
        banned: dict[int, np.ndarray] = {}
        for r in restricted:
            if bans := s.request(slot := int(slot_R[r])).bans:
                banned[r] = banned_next(bans, s.tokens[slot, : at_R[r]])
        banned = {r: ids for r, ids in banned.items() if len(ids)}
        drawn = draw(logits_RV, s.temperature[slot_R], top_p_R, top_k_R, uniform_R, banned)
        s.tokens[slot_R, at_R] = drawn.tokens_R
        s.logprobs[slot_R, at_R] = drawn.logprobs_R
        s.length[slot_R] += 1
        for r in restricted:
            s.request(int(slot_R[r])).kept.append(drawn.kept_R[r])
        enough_R = s.length[slot_R] >= s.limit[slot_R]
        for r in np.flatnonzero(s.live[slot_R]).tolist():
            request = s.request(int(slot_R[r]))
            assert request.watch is not None
            enough_R[r] |= request.watch(request.index, int(drawn.tokens_R[r])) is True
        stopped_R = self._end[drawn.tokens_R] | (s.stop_tokens[slot_R] == drawn.tokens_R[:, None]).any(-1)
        for r in np.flatnonzero(s.watched[slot_R]).tolist():
            stopped_R[r] |= _completes_stop(s.request(int(slot_R[r])), int(drawn.tokens_R[r]))
        ended = np.flatnonzero(stopped_R | enough_R).tolist()
        reasons = [StopReason.STOP if stopped_R[r] else StopReason.LENGTH for r in ended]
        return [s.finish(int(slot_R[r]), stop) for r, stop in zip(ended, reasons, strict=True)]

    def _score_forced(
        self, logits_RV: torch.Tensor, slot_R: np.ndarray, position_R: np.ndarray, forced: np.ndarray
    ) -> None:
        """Log-probabilities of forced tokens, at temperature 1 for greedy requests and never cut by top-p or top-k."""
        s, slot, at = self.schedule, slot_R[forced], position_R[forced] + 1
        temperature = np.where(s.temperature[slot] == 0, 1, s.temperature[slot]).astype(np.float32)
        logits = _take(logits_RV, forced) / torch.from_numpy(temperature).to(logits_RV.device)[:, None]
        chosen = torch.from_numpy(s.tokens[slot, at].astype(np.int64)).to(logits.device)
        s.logprobs[slot, at] = logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0].cpu().numpy()

    def _notice_weights(self) -> None:
        started = self.schedule.started
        if not self._weights.changed(thorough=not started):
            return
        self._weights.remember()
        self.schedule.policy_version += 1
        if started:
            # Pages of running requests are of the old weights; the failure that follows withdraws them all.
            raise RuntimeError("the model's weights changed while requests were running: wait for them, then train")
        self.pool.forget()


def _take(x: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """x[rows] for ascending rows, without a copy when those are all."""
    return x if len(rows) == len(x) else x[torch.from_numpy(rows).to(x.device)]


def _completes_stop(request: Request, token: int) -> bool:
    """Whether a stop string ends in the text that this token adds. (One that was forced stops nothing.)"""
    assert request.decoder is not None
    text = request.decoder.push(token)
    longest = max(map(len, request.params.stop))
    known = request.tail[len(request.tail) - min(len(request.tail), longest - 1) :]
    request.tail = known + text
    return any(request.tail.find(s, max(0, len(known) - len(s) + 1)) >= 0 for s in request.params.stop)
