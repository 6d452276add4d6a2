"""What a hidden thought is about: a few titled sections, made while it is being thought. No torch.

A section stands for some lines of thought, a part. Parts double in size, so that a thought of any length has few
sections. Here they are quotations, which work for any model and cost nothing: the title says how a part begins and the
text how it ends. `written.py` lets the model write them where it can.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mull.serve.live import Live
    from mull.serve.plan import Plan
    from mull.serve.written import Written

FIRST, EQUAL = 4, 2  # lines of the first groups, and how many groups have the same size
TITLE, TEXT = 60, 240  # characters
_CHECK = re.compile(r"\b(check|verif\w+|confirm\w*|double-check|test)\b", re.I)
_BACK = re.compile(r"\b(wait|back|wrong|mistake|instead|actually|no)\b", re.I)
_MARKS = re.compile(r"^[\s#>*\-\d.)]*(?=[^\W\d_]{3})|\*\*|`{1,3}")


@dataclass(frozen=True)
class Section:
    title: str
    text: str


class Summary:
    """Sections of one request, in the order in which they can be told; none is ever taken back.

    With a `writer` the parts of thoughts are given to it instead, and it tells their sections."""

    def __init__(self, plan: Plan, writer: Written | None = None):
        self.single, self._writer = plan.single, writer
        self._lines: list[str] = []  # of the group under way
        self._rest = ""  # a line that has not ended
        self._groups = 0
        self._told = 0  # answers that were reported

    def push(self, text: str) -> Iterator[Section]:
        """Of a single chain's thought, as it comes."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            yield from self._line(line)

    def branches(self, live: Live) -> Iterator[Section]:
        """Of many branches: how many have come to an answer, and how far they agree. Told at the first answer, and at
        every doubling."""
        answers = [step.text for step in live.answers]
        if len(answers) >= max(1, 2 * self._told):
            self._told = len(answers)
            yield agreement(answers, max(live.branches, len(answers)))

    def rest(self, thought: str, votes: Sequence[tuple[str, int]]) -> Iterator[Section]:
        """What is left to tell when all is done: of many branches, the thought that gave the answer."""
        if not self.single:
            if sum(n for _, n in votes) > max(1, self._told):
                yield agreement([a for a, n in votes for _ in range(n)], sum(n for _, n in votes))
            self._lines, self._rest, self._groups = [], "", 0
            yield from self.push(thought)
        yield from self._line(self._rest)
        self._rest = ""
        if self._lines:
            yield from self._section()

    def _line(self, line: str) -> Iterator[Section]:
        if not line.strip():
            return
        self._lines.append(line.strip())
        if len(self._lines) >= FIRST * 2 ** (self._groups // EQUAL):
            yield from self._section()

    def _section(self) -> Iterator[Section]:
        lines, self._lines = self._lines, []
        self._groups += 1
        if self._writer is None:
            yield quoted(lines)
        else:
            self._writer.take(lines)


def quoted(lines: Sequence[str]) -> Section:
    """
    >>> quoted(["b = 9", "check: 9 - 4 = 5"])
    Section(title='Checking: b = 9', text='check: 9 - 4 = 5')
    """
    return Section(_title(lines), short(lines[-1], TEXT))


def agreement(answers: Sequence[str], branches: int) -> Section:
    """
    >>> agreement(["4", "4", "5"], 8)
    Section(title='3 of 8 lines of thought have an answer', text='2 of 3 agree: 4')
    """
    answer, times = Counter(answers).most_common(1)[0]
    title = f"{len(answers)} of {branches} lines of thought have an answer"
    return Section(title, f"{times} of {len(answers)} agree: {short(answer, TEXT)}")


def _title(lines: Sequence[str]) -> str:
    words = short(_MARKS.sub("", lines[0]).strip() or lines[0], TITLE)
    if any(_BACK.search(line) for line in lines):
        return f"Reconsidering: {words}"
    if any(_CHECK.search(line) for line in lines):
        return f"Checking: {words}"
    return words


def short(text: str, most: int) -> str:
    """Cut at a word, with an ellipsis where something is left out."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    cut = text[: most - 1]
    return (cut.rpartition(" ")[0] if " " in cut[most // 2 :] else cut) + "…"
