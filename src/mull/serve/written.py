"""Summaries in the model's own words: each part of a thought is given back to it, in a conversation of its own.

It writes beside the thinking, one part at a time, and nobody waits for it: what is not ready when the answer begins, or
is no good, is quoted instead (`summary.py`). Its tokens are counted and bounded like all others. The answer does not
depend on it: it takes only memory and tokens that the thinking cannot come to need.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mull.chat import Chat
from mull.chat.template import CLOSE, OPEN
from mull.engine.sampler import derive_seed
from mull.errors import SamplerLost, StopReason, UserError
from mull.search.sources import Opened
from mull.serve.live import Live
from mull.serve.plan import Plan
from mull.serve.summary import Section, quoted, short
from mull.types import SamplingParams

INSTRUCTION = (
    "Below is a part of somebody's notes on a problem. Describe it for a reader who does not see it. On the first line"
    " write a title of two to eight words. On the next line say in one or two short sentences what is done there and"
    " what comes of it. Use words of your own, and write nothing else.\n\n"
)
WRITES = 96  # tokens of a section, at most
READS = 1024  # tokens of a part that are shown; of a longer one the beginning and the end
LEAST = 32  # of these, or nothing can be said about it
SPARE = 16  # tokens that text may grow by in a template
TEMPERATURE = 0.3
TITLE, WORDS, TEXT = 80, 12, 320  # of a title: characters and words; characters of what follows
RUN = 32  # characters in a row that may be the thought's own
LETTERS = 12  # that what follows has, or it is no sentence
MOST_WAIT, LEAST_WAIT, SHARE = 3.0, 0.25, 0.25  # seconds; and of the time that thinking took


def needed(chat: Chat, think_tokens: int, context: int) -> int:
    """Tokens that the writing of one section may hold, its prompt and all; 0: none can be written by this model, or of
    so short a thought."""
    reads = min(READS, think_tokens, context - _around(chat) - WRITES - SPARE)
    return _around(chat) + reads + WRITES + SPARE if reads >= LEAST else 0


def patience(seconds: float) -> float:
    """How long an answer that took so many seconds may wait for words about the thought that it came from."""
    return min(MOST_WAIT, max(LEAST_WAIT, SHARE * seconds))


def asked(chat: Chat, lines: Sequence[str], most: int) -> list[int] | None:
    """The prompt for a section about these lines, so that it and the section have `most` tokens or fewer; None where
    that cannot be."""
    text, reads = "\n".join(lines), most - WRITES - SPARE - _around(chat)
    tokens = chat.encode(text)
    if len(tokens) > reads:
        half = (reads - SPARE) // 2
        text = f"{chat.decode(tokens[:half])}\n…\n{chat.decode(tokens[-half:])}"
    prompt = chat.prompt(INSTRUCTION + text, think=False)
    return prompt if len(prompt) + WRITES <= most else None


@functools.lru_cache(maxsize=8)
def _around(chat: Chat) -> int:
    """Tokens of a prompt without the lines. More than any model has where its template refuses such a conversation."""
    try:
        return len(chat.prompt(INSTRUCTION, think=False))
    except UserError:
        return 1 << 60


@dataclass
class _Part:
    lines: tuple[str, ...]
    section: Section | None = None
    written: bool = False  # by the model, else quoted


class Written:
    """The sections of one job, told in the order of their parts. `wake` is set when one is ready."""

    def __init__(self, plan: Plan, tools: Opened, seed: int, wake: asyncio.Event):
        self.plan, self.tools, self.seed, self.wake = plan, tools, seed, wake
        self.live = Live(tools.chat, (), WRITES)  # counts what is sampled, also where it is cancelled
        self.room = None if plan.tokens is None else plan.tokens - plan.most_tokens  # tokens, of all sections
        self.written = self.quoted = 0  # sections that were told
        self._parts = deque[_Part]()  # that were not told yet
        self._told: list[str] = []  # texts
        self._task: asyncio.Future[None] | None = None
        self._asked = 0
        self._over = self._lost = False

    @property
    def busy(self) -> bool:
        return not self._over and any(part.section is None for part in self._parts)

    def take(self, lines: Sequence[str]) -> None:
        """One more part. It is told by `ready`, or at the latest by `over`."""
        self._look()
        self._parts.append(_Part(tuple(lines)))
        if not self._over and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(self._write())

    def ready(self) -> Iterator[Section]:
        """What can be told by now."""
        self._look()
        while self._parts and self._parts[0].section is not None:
            yield self._tell(self._parts.popleft())

    def over(self) -> Iterator[Section]:
        """All that was not told, at once. Nothing is written from now on."""
        yield from self.ready()
        self._over = True
        if self._task is not None:
            self._task.cancel()
        while self._parts:
            yield self._tell(self._parts.popleft())

    @property
    def tasks(self) -> list[asyncio.Future[None]]:
        """What is under way. Once it is cancelled, it is known what was sampled."""
        return [] if self._task is None else [self._task]

    def _look(self) -> None:
        """A mistake of ours is not hidden."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    def _tell(self, part: _Part) -> Section:
        self.written += part.written
        self.quoted += not part.written
        return part.section or quoted(part.lines)

    async def _write(self) -> None:
        while part := next((p for p in self._parts if p.section is None), None):
            made = await self._section(part.lines)
            part.section, part.written = made or quoted(part.lines), made is not None
            self.wake.set()

    async def _section(self, lines: Sequence[str]) -> Section | None:
        """In the model's words; None where it has none that will do, or no tokens left for them."""
        if self._lost or (self.room is not None and self.room - self.live.sampled < WRITES):
            return None
        chat = self.tools.chat
        if (prompt := asked(chat, lines, self.plan.summary)) is None:
            return None
        params = SamplingParams(WRITES, TEMPERATURE, seed=derive_seed(self.seed, 1 << 41, self._asked))
        self._asked += 1
        try:
            [completion] = await self.live.sampler(self.tools.sampler).sample(prompt, params)
        except (SamplerLost, UserError):  # the thinking finds out for itself; here nothing more is asked
            self._lost = True
            return None
        text = chat.decode([token for token in completion.tokens if token not in chat.end_ids])
        made = understood(text, lines, cut=completion.stop is StopReason.LENGTH)
        if made is None or made.text in self._told:
            return None
        self._told.append(made.text)
        return made


# ------------------------------------------------------------------------------------------------- what will do

_MARKS = " \t#>*_`\"'“”«»"
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


def understood(reply: str, lines: Sequence[str] = (), cut: bool = False) -> Section | None:
    """A title and up to two sentences out of what the model wrote about these lines; None where it is something else:
    no title on a line of its own, no sentence, one that goes round in circles, a copy of the lines or of what was
    asked. `cut`: it had no room to end, so that its last sentence may be half of one.

    >>> understood("**Title: Finding b**\\nThe value of b is worked out from a. It is seven. So far.")
    Section(title='Finding b', text='The value of b is worked out from a. It is seven.')
    """
    title, _, rest = reply.strip().partition("\n")
    said = [s for s in _SENTENCE.split(" ".join(rest.replace("**", "").split())) if s]
    if cut and said and said[-1][-1] not in ".!?。！？":
        said.pop()
    title = re.sub(r"^title\s*:\s*", "", title.strip(_MARKS), flags=re.I).strip(_MARKS)
    text = short(" ".join(said[:2]).strip(_MARKS), TEXT)
    if not _is_title(title.removesuffix(".")) or not _is_text(text) or title.casefold() == text.casefold():
        return None
    whole = f"{title} {text}"
    if any(tag in whole for tag in (OPEN, CLOSE, "<|", "\ufffd")) or not whole.isprintable():
        return None
    if _copies(text, "\n".join(lines)) or _copies(title, "\n".join(lines)) or _copies(whole, INSTRUCTION):
        return None
    return Section(title.removesuffix("."), text)


def _is_title(title: str) -> bool:
    fits = len(title) <= TITLE and len(title.split()) <= WORDS
    return fits and not title.endswith((":", "：", ",")) and sum(map(str.isalpha, title)) >= 2


def _is_text(text: str) -> bool:
    """Whether it is mostly words, and different ones."""
    plain = "".join(text.split())
    letters = sum(map(str.isalpha, plain))
    runs = [text[i : i + 4].casefold() for i in range(len(text) - 3)]
    return letters >= LETTERS and 2 * letters > len(plain) and len({*runs}) > 0.7 * len(runs)


def _copies(text: str, source: str) -> bool:
    """Whether more than RUN characters in a row are the source's, whatever their case and the space between them."""
    ours, theirs = (" ".join(t.casefold().split()) for t in (text, source))
    return any(ours[i : i + RUN + 1] in theirs for i in range(len(ours) - RUN))
