"""What a request is doing, seen through the two contracts that every strategy uses.

A strategy knows nothing of streams, budgets bars or stop buttons. It asks a sampler for tokens and a scorer for scores:
`Live.sampler` and `Live.scorer` pass both on and take notes. From the notes come the progress line, the tree that grows
on the page, the tokens of a single chain as they are drawn, the count of all that was sampled (also by branches that
were given up, and by work that was cancelled half-way), and an answer at once when nobody wants to wait any longer.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mull.chat import Chat
from mull.chat.steps import chain_ends, thought_end
from mull.engine.sampler import Sampler
from mull.errors import SamplerLost, StopReason
from mull.scorers.base import Score, Scorer
from mull.types import Completion, Cost, SamplingParams, Trace

LOOP = 48  # tokens of a cycle, at most
LOOPS = 4  # equal cycles in a row that count as going round in circles, if they are LEAST tokens or more together
LEAST = 96


@dataclass
class Step:
    """A node of the tree as it is seen from outside: a line of thought, or an answer."""

    id: int
    parent: int  # -1: the question
    text: str
    tokens: int
    answer: bool = False
    score: float | None = None


@dataclass(eq=False)
class Branch:
    """A sample that is being drawn."""

    parent: int  # the step that it goes on from
    answering: bool
    tokens: list[int] = field(default_factory=list)
    looped: bool = False

    def repeats(self) -> bool:
        """Whether its last tokens are one cycle over and over."""
        n = len(self.tokens)
        if n < LEAST or n % 16:
            return False
        tail = self.tokens[-LOOP * LOOPS :]
        for cycle in range(1, LOOP + 1):
            times = max(LOOPS, -(-LEAST // cycle))
            if cycle * times > n or tail[-1] != tail[-1 - cycle]:
                continue
            window = self.tokens[-cycle * times :]
            if window[cycle:] == window[:-cycle]:
                return True
        return False


class Live:
    """The notes of one request. `prompt` is what is asked; `most_tokens` what may be sampled, for the progress line."""

    def __init__(self, chat: Chat, prompt: Sequence[int], most_tokens: int):
        self.chat, self.prompt, self.most_tokens = chat, tuple(prompt), most_tokens
        self.started = time.monotonic()
        self.steps: list[Step] = []
        self.touched: list[int] = []  # ids of steps that are new or have changed, in that order
        self.running: dict[Branch, None] = {}  # in the order in which they began
        self.sampled = 0  # tokens, also of what was cancelled or given up
        self.answer_tokens = 0  # those of them behind a closing tag
        self.cost = Cost()  # of what came to its end
        self.branches = 0  # samples that were begun at the question
        self.looped = 0
        self.first_token: float | None = None  # seconds after the start
        self.thinking: Branch | None = None  # the latest branch that thinks, and the latest that answers
        self.speaking: Branch | None = None
        self.changed = asyncio.Event()
        self._known: dict[bytes, int] = {_key(self.prompt): -1}
        self._read = 0  # tokens that any request for the question had to compute

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def cached(self) -> int:
        """Prompt tokens that were in the cache when the question came."""
        return max(0, len(self.prompt) - self._read) if self.cost.cached_tokens else 0

    @property
    def answers(self) -> list[Step]:
        return [step for step in self.steps if step.answer and step.text]

    def sampler(self, inner: Sampler) -> Watched:
        return Watched(self, inner)

    def scorer(self, inner: Scorer | None) -> Judged | None:
        return None if inner is None else Judged(self, inner)

    # --------------------------------------------------------------------------------------- taking notes

    def begin(self, prefix: Sequence[int], n: int) -> list[Branch]:
        inside = self._inside(prefix)
        parent, answering = self.find(prefix), self._closed(inside)
        made = [Branch(parent, answering) for _ in range(n)]
        if answering:
            self.speaking = made[0]
        else:
            self.thinking = made[0]
        if len(inside) == 0:
            self.branches += n
        self.running.update(dict.fromkeys(made))
        self.tell()
        return made

    def token(self, branch: Branch, token: int) -> bool:
        """Notes a token; True when the branch should end because it goes round in circles."""
        branch.tokens.append(token)
        self.sampled += 1
        if branch.answering:
            self.answer_tokens += 1
        elif token in self.chat.think_close and branch.tokens[-len(self.chat.think_close) :] == [
            *self.chat.think_close
        ]:
            branch.answering = True
        if self.first_token is None:
            self.first_token = self.seconds
        self.tell()
        if branch.repeats():
            branch.looped = True
            self.looped += 1
        return branch.looped

    def end(self, branch: Branch, prefix: Sequence[int], completion: Completion) -> None:
        """A sample has come: its steps join the tree."""
        self.running.pop(branch, None)
        self.cost = self.cost + completion.cost
        if branch.parent == -1:
            self._read = max(self._read, completion.cost.prefill_tokens)
        if not branch.tokens:  # of a sampler that cannot be watched
            for token in completion.tokens[completion.forced :]:
                self.token(branch, token)
        known = [*prefix]
        if self._closed(self._inside(prefix)):
            ends, last = [len(completion.tokens)], True
        else:
            ends, last = chain_ends(self.chat, completion.tokens)
        parent, start = branch.parent, 0
        for end in ends:
            piece = completion.tokens[start:end]
            answer = last and end == ends[-1]
            text = self.chat.decode([t for t in piece if t not in self.chat.end_ids])
            known += piece
            key = _key(known)
            if (found := self._known.get(key)) is None:
                found = len(self.steps)
                self.steps.append(Step(found, parent, text.strip() if answer else text, len(piece), answer))
                self.touched.append(found)
                self._known[key] = found
            parent, start = found, end
        self.tell()

    def leave(self, branch: Branch) -> None:
        """A sample was withdrawn or lost: what it drew stays counted."""
        self.running.pop(branch, None)
        self.tell()

    def score(self, prefix: Sequence[int], score: Score) -> None:
        self.cost = self.cost + score.cost
        at = self._known.get(_key(prefix), -1)
        if at >= 0:
            self.steps[at].score = score.value
            self.touched.append(at)

    def known(self, thought: Sequence[int]) -> None:
        """Makes a step of a thought that was broken off, so that an answer can stand behind it."""
        prefix = [*self.prompt, *thought]
        at = self.find(prefix)
        behind = len(prefix) - next(n for n in range(len(prefix), 0, -1) if _key(prefix[:n]) in self._known)
        if behind:
            self.steps.append(Step(len(self.steps), at, self.chat.decode(prefix[-behind:]), behind))
            self.touched.append(len(self.steps) - 1)
            self._known[_key(prefix)] = len(self.steps) - 1

    # ------------------------------------------------------------------------------------------ looking

    def find(self, prefix: Sequence[int]) -> int:
        """The step that a prefix ends in, or behind: what a strategy wrote itself is no step."""
        key = _key(prefix)
        for n in range(len(prefix), len(self.prompt), -1):
            if (at := self._known.get(key[: 4 * n])) is not None:
                return at
        return -1

    def places(self, trace: Trace) -> list[int]:
        """Of each span of a trace the step that it ends in, or behind. Equal steps of several branches are one step."""
        keys: list[bytes] = []
        places: list[int] = []
        for span in trace.spans:
            keys.append((keys[span.parent] if span.parent >= 0 else b"") + _key(span.tokens))
            behind = places[span.parent] if span.parent >= 0 else -1
            places.append(self._known.get(keys[-1], behind))
        return places

    def partial(self) -> list[int]:
        """The longest unfinished thought as it stands, tokens behind the prompt: what an answer can be forced from."""
        best: list[int] = []
        for key, at in self._known.items():
            if at < 0 or self.steps[at].answer or not key.startswith(_key(self.prompt)):
                continue
            tokens = np.frombuffer(key, np.int32)[len(self.prompt) :].tolist()
            if len(tokens) > len(best) and not self._closed(tokens):
                best = tokens
        for branch in self.running:
            if branch.parent == -1 and not branch.answering and len(branch.tokens) > len(best):
                best = [t for t in branch.tokens if t not in self.chat.end_ids]
        return best

    # ------------------------------------------------------------------------------------------- inside

    def _inside(self, prefix: Sequence[int]) -> Sequence[int]:
        """What the model has written since it was last asked. A strategy may have added turns, with thoughts."""
        asked = len(self.prompt)
        ours = tuple(prefix[:asked]) == self.prompt
        inside, tag = prefix[asked:] if ours else prefix, tuple(self.chat.think_open)
        for i in range(len(inside) - len(tag), -1, -1):
            if tuple(inside[i : i + len(tag)]) == tag:
                return inside[i + len(tag) :]
        return inside if ours else ()

    def _closed(self, inside: Sequence[int]) -> bool:
        return thought_end(self.chat, inside) is not None

    def tell(self) -> None:
        self.changed.set()


@dataclass
class Watched:
    """A `Sampler` that passes everything on and takes notes of it."""

    live: Live
    inner: Sampler

    def __post_init__(self) -> None:
        self._tells = "watch" in inspect.signature(self.inner.sample).parameters

    @property
    def policy_version(self) -> int:
        return self.inner.policy_version

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # a context length, a model: what a strategy may look at besides

    async def sample(self, prefix_tokens: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]:
        live = self.live
        branches = live.begin(prefix_tokens, n)
        more: dict[str, Any] = {"watch": lambda i, token: live.token(branches[i], token)} if self._tells else {}
        try:
            got = await self.inner.sample(prefix_tokens, params, n, **more)
            got = [self._closed(b, c, params) if b.looped else c for b, c in zip(branches, got, strict=True)]
            for branch, completion in zip(branches, got, strict=True):
                live.end(branch, prefix_tokens, completion)
            return got
        except SamplerLost as gone:
            for branch, completion in zip(branches, gone.completions, strict=False):
                live.end(branch, prefix_tokens, completion)
            raise
        finally:
            for branch in branches:
                live.leave(branch)

    def _closed(self, branch: Branch, completion: Completion, params: SamplingParams) -> Completion:
        """A thought that went round in circles, as if it had been closed there: its answer can follow at once.

        The tag was not sampled: nothing may train on such a chain.
        """
        tag = tuple(self.live.chat.think_close)
        if branch.answering or completion.stop is not StopReason.LENGTH:
            return completion
        kept = None if completion.kept is None else (*completion.kept, *[np.zeros(0, np.int32)] * len(tag))
        return replace(
            completion,
            tokens=(*completion.tokens, *tag),
            logprobs=(*completion.logprobs, *[0.0] * len(tag)),
            stop=StopReason.STOP,
            kept=kept,
        )


@dataclass
class Judged:
    """A `Scorer` that passes everything on and takes notes of it."""

    live: Live
    inner: Scorer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # of_sampled, where the scorer has it

    async def score(self, prefixes: Sequence[Sequence[int]]) -> list[Score]:
        scores = await self.inner.score(prefixes)
        for prefix, score in zip(prefixes, scores, strict=True):
            self.live.score(prefix, score)
        self.live.tell()
        return scores


def _key(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, np.int32).tobytes()
