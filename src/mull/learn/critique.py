"""What a generative critic learns: to read a chain of thought and name its first wrong step, and why it is wrong.

The job of CriticGPT (McAleese et al. 2407.00215), with exact step checks in place of people. The critic reads exactly
the policy's tokens, whole or cut behind a step, then a marker, and writes its verdict and an end token:

    PROMPT b=7+15=22⏎                       ⏎#  ok<end>
    PROMPT b=7+15=22⏎c=22*3=56⏎             ⏎#  2 c is 66<end>
    PROMPT b=7+15=22⏎c=22*3=66</think>68<end>  ⏎#  3 the answer does not follow<end>

The marker comes last, so that an engine's prefix cache serves all that stands before it: what was read to judge a step
is not read again to judge the next one.

A step is a non-empty line of the thought, counted from 1; the answer is the step after the last line. The label is the
*first* false line even where a later one mends it: a critic says where a thought left the path, and a search that
rewinds to there loses nothing by it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from mull.learn.samples import supervised
from mull.types import Problem, Sample, StepVerdict

if TYPE_CHECKING:
    from mull.chat import Chat

MARKER = "\n#"  # spelled out of ordinary tokens by any tokenizer
OK = "ok"
WRONG_ANSWER = "the answer does not follow"
NO_REASON = "the step is false"
MOST_EDITS = 24  # tries to spoil one line

_WRONG = re.compile(r"([1-9][0-9]{0,5})(?:\s+(.*))?", re.DOTALL)
_NUMBER = re.compile(r"[0-9]+")
_OPERATOR = re.compile(r"(?<=[0-9a-z)])[-+*/](?=[0-9a-z(])")
_OPPOSITE = {"ok": "no", "yes": "no", "no": "yes", "true": "false", "false": "true"}
_VERDICT = re.compile(r"\b(ok|yes|no|true|false)\b")


class StepChecker(Protocol):
    """What is needed of a task here."""

    def check_steps(self, problem: Problem, thought: str) -> list[StepVerdict]: ...


# ------------------------------------------------------------------------------------------------- critiques


def critique_text(steps: Sequence[StepVerdict], answer_ok: bool | None) -> str:
    """What the critic should write of these judged lines and the answer (None: the thought has not come to one yet).

    Of a thought that is cut behind its k-th line, the critique is that of `steps[:k]` and None. A right answer by
    wrong reasoning is not ok. Lines that make no claim count as steps and are never wrong.

    >>> critique_text([StepVerdict("b=22", True), StepVerdict("c=56", False, why="c is 66")], False)
    '2 c is 66'
    """
    wrong = first_wrong(steps)
    if wrong is not None:
        return f"{wrong} {' '.join(steps[wrong - 1].why.split()) or NO_REASON}"
    return f"{len(steps) + 1} {WRONG_ANSWER}" if answer_ok is False else OK


def critique_sample(chat: Chat, prefix_tokens: Sequence[int], text: str) -> Sample:
    """The critique `text` of a prefix of the policy's tokens, to learn from: cross-entropy on the critique and its end
    token alone."""
    return supervised([*prefix_tokens, *chat.encode(MARKER)], [*chat.encode(text), chat.turn_end])


def parse_critique(text: str) -> tuple[bool | None, int | None, str]:
    """(whether all is ok, the wrong step, why) of what a critic wrote; (None, None, "") when it is no critique.

    >>> parse_critique("2 c is 66")
    (False, 2, 'c is 66')
    """
    text = text.strip()
    if text == OK:
        return True, None, ""
    match = _WRONG.fullmatch(text)
    return (False, int(match[1]), match[2] or "") if match else (None, None, "")


def first_wrong(steps: Sequence[StepVerdict]) -> int | None:
    """The number of the first false line, counted from 1."""
    return next((number for number, step in enumerate(steps, 1) if step.ok is False), None)


# -------------------------------------------------------------------------------------------- planted errors


def plant(problem: Problem, task: StepChecker, thought: str, rng: random.Random) -> tuple[str, int] | None:
    """(the thought with an error planted in one right line, that line's number); None where no error takes.

    The line is drawn evenly from the right lines before the first false one, the error from slips that people make:
    a digit wrong, a carry lost, two digits exchanged, a number taken from elsewhere, another operator, a verdict turned
    round. Edits know nothing of the task: one is kept only if `task.check_steps` says that this line is now the first
    false one and judges the lines before it as it did. What follows the line is left as it was, so it may contradict
    the error; cut the thought behind the line where the critic is not to see that.
    """
    before = task.check_steps(problem, thought)
    until = first_wrong(before) or len(before) + 1
    right = [number for number, step in enumerate(before[: until - 1], 1) if step.ok]
    lines = thought.split("\n")
    place = [i for i, line in enumerate(lines) if line.strip()]  # of each step in `lines`
    if len(place) != len(before):
        raise ValueError(f"the task judged {len(before)} steps of a thought of {len(place)} non-empty lines")
    elsewhere = _NUMBER.findall(problem.question.text + "\n" + thought)
    for number in rng.sample(right, len(right)):
        at = place[number - 1]
        for spoilt in _spoilt(lines[at], elsewhere, rng):
            changed = "\n".join([*lines[:at], spoilt, *lines[at + 1 :]])
            after = task.check_steps(problem, changed)
            if first_wrong(after) == number and _judged_alike(before[: number - 1], after[: number - 1]):
                return changed, number
    return None


def _judged_alike(before: Sequence[StepVerdict], after: Sequence[StepVerdict]) -> bool:
    return [(step.text, step.ok, step.kind) for step in before] == [(step.text, step.ok, step.kind) for step in after]


def _spoilt(line: str, elsewhere: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Up to MOST_EDITS different versions of a line, each with one slip in it."""
    numbers, signs, words = (list(pattern.finditer(line)) for pattern in (_NUMBER, _OPERATOR, _VERDICT))
    edits: list[tuple[list[re.Match[str]], Callable[[str], str]]] = [
        (numbers, lambda n: _digit(n, rng)),
        (numbers, lambda n: _carry(n, rng)),
        (numbers, lambda n: _exchange(n, rng)),
        (numbers, lambda n: rng.choice(elsewhere)),
        (signs, lambda sign: rng.choice("+-*/".replace(sign, ""))),
        (words, lambda word: _OPPOSITE[word]),
    ]
    possible = [(places, edit) for places, edit in edits if places]
    seen = {line}
    for _ in range(MOST_EDITS if possible else 0):
        places, edit = rng.choice(possible)
        where = rng.choice(places)
        new = edit(where[0])
        spoilt = line[: where.start()] + new + line[where.end() :]
        betrayed = len(new) > 1 and new[0] == "0" != where[0][0]  # nobody writes a zero in front
        if spoilt not in seen and not betrayed:
            seen.add(spoilt)
            yield spoilt


def _digit(number: str, rng: random.Random) -> str:
    """One digit wrong, mostly by one."""
    at = rng.randrange(len(number))
    wrong = (int(number[at]) + rng.choice((-1, 1, -1, 1, rng.randint(2, 8)))) % 10
    return number[:at] + str(wrong) + number[at + 1 :]


def _carry(number: str, rng: random.Random) -> str:
    """A carry lost or invented: wrong by one in some place, with what follows from it in the places before."""
    wrong = int(number) + rng.choice((-1, 1)) * 10 ** rng.randrange(len(number))
    return number if wrong < 0 else str(wrong).zfill(len(number) if number[0] == "0" else 1)


def _exchange(number: str, rng: random.Random) -> str:
    if len(number) < 2:
        return number
    at = rng.randrange(len(number) - 1)
    return number[:at] + number[at + 1] + number[at] + number[at + 2 :]
