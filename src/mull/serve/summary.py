"""What a hidden thought is about, in its own words: a few titled sections, made while it is being thought. No torch.

Extractive, so that it works for any model and costs nothing: a section stands for some lines of thought, its title says
how they begin and its text how they end. Groups double in size, so that a thought of any length has few sections.
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
    """Sections of one request, in the order in which they can be told; none is ever taken back."""

    def __init__(self, plan: Plan):
        self.single = plan.single
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
            yield self._section()

    def _line(self, line: str) -> Iterator[Section]:
        if not line.strip():
            return
        self._lines.append(line.strip())
        if len(self._lines) >= FIRST * 2 ** (self._groups // EQUAL):
            yield self._section()

    def _section(self) -> Section:
        lines, self._lines = self._lines, []
        self._groups += 1
        return Section(_title(lines), _short(lines[-1], TEXT))


def agreement(answers: Sequence[str], branches: int) -> Section:
    """
    >>> agreement(["4", "4", "5"], 8)
    Section(title='3 of 8 lines of thought have an answer', text='2 of 3 agree: 4')
    """
    answer, times = Counter(answers).most_common(1)[0]
    title = f"{len(answers)} of {branches} lines of thought have an answer"
    return Section(title, f"{times} of {len(answers)} agree: {_short(answer, TEXT)}")


def _title(lines: Sequence[str]) -> str:
    words = _short(_MARKS.sub("", lines[0]).strip() or lines[0], TITLE)
    if any(_BACK.search(line) for line in lines):
        return f"Reconsidering: {words}"
    if any(_CHECK.search(line) for line in lines):
        return f"Checking: {words}"
    return words


def _short(text: str, most: int) -> str:
    """Cut at a word, with an ellipsis where something is left out."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    cut = text[: most - 1]
    return (cut.rpartition(" ")[0] if " " in cut[most // 2 :] else cut) + "…"
