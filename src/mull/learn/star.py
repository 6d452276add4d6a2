"""STaR (Zelikman et al. 2022, 2203.14465), the pure parts: the hint in and out, which chains become samples, how many
steps an iteration trains, and which sample comes next.

Rationalization. A problem that the model failed is asked again with its answer as a hint in the question; `hinted` is
the one place that puts the hint there. Nothing takes it out again: a training sample is built from the prompt of the
*plain* question and from the tokens that the model sampled, so the hint was never in it. A thought that quotes the
hint is refused (`quotes_hint`), since without the hint in the prompt it would be about nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mull.errors import StopReason, UserError
from mull.learn.samples import supervised
from mull.types import Question, Sample, SpanKind, Trace

HINT = "{question}\nhint: {answer}"
_FIELD = re.compile(r"\{(question|answer)\}")


# ------------------------------------------------------------------------------------------------- the hint


def refuse_bad_hint(template: str) -> None:
    """UserError for a template that does not hold the question and, after it, the answer, once each."""
    if _FIELD.findall(template) != ["question", "answer"]:
        raise UserError(f"hint={template!r} must hold {{question}} and then {{answer}}, once each, such as {HINT!r}")


def hinted(question: Question, answer: str, template: str = HINT) -> Question:
    """The question as it is asked with its answer as a hint. Its id stays: it is the same problem.

    >>> hinted(Question("a/1/0", "a", "6+7=?"), "13").text
    '6+7=?\\nhint: 13'
    """
    values = {"question": question.text, "answer": answer}
    return replace(question, text=_FIELD.sub(lambda field: values[field[1]], template))


def quotes_hint(text: str, answer: str, template: str = HINT) -> bool:
    """Whether a chain's text repeats the hint, or the words that introduce one.

    Words of the model's own ("as the answer is said to be 13") are not found: nothing short of reading would.
    """
    _, _, after = template.partition("{question}")
    words = after.partition("{answer}")[0].strip()
    whole = after.replace("{answer}", answer).strip()
    # An introduction without letters, such as an opening bracket, may stand in any chain for reasons of its own.
    return (whole in text and whole != answer) or (any(c.isalpha() for c in words) and words in text)


# ------------------------------------------------------------------------------------------ what was sampled


@dataclass(frozen=True, slots=True)
class Tried:
    """One chain and how it was judged."""

    tokens: tuple[int, ...]  # sampled, the end token included
    ended: bool  # by itself; a chain that was cut off is never right and never learnt
    correct: bool | None  # None: the grader could not judge
    answer: str
    false_lines: int | None = None  # lines of the thought that are false; None: the task judged none of them
    quotes_hint: bool = False
    error: str = ""  # why it could not be judged

    @property
    def right(self) -> bool:
        return self.ended and self.correct is True

    @property
    def failed(self) -> bool:
        """Wrong, or cut off. What could not be judged is neither right nor failed."""
        return not self.ended or self.correct is False


@dataclass(frozen=True, slots=True)
class Asked:
    """One problem of an iteration: the chain to the plain question and, where that failed, the one with the hint."""

    question: Question  # plain
    prompt: tuple[int, ...]  # of the plain question
    plain: Tried
    hinted: Tried | None = None


def tried(trace: Trace, text: str, judged: Sequence[bool | None], answer: str = "", template: str = "") -> Tried:
    """The one chain of a graded trace. `text` is the completion's, `judged` whether each line of its thought is true;
    `answer` and `template` are those of the hint, if there was one. ValueError for a trace of several chains."""
    if len(trace.leaves) != 1 or len(trace.verdicts) != 1:
        raise ValueError(f"{len(trace.leaves)} chains and {len(trace.verdicts)} verdicts: STaR learns from one chain")
    [verdict], path = trace.verdicts, trace.path(trace.leaves[0])
    known = [ok for ok in judged if ok is not None]
    return Tried(
        tuple(token for span in path if span.kind is SpanKind.SAMPLED for token in span.tokens),
        path[-1].stop is StopReason.STOP,
        verdict.correct,
        trace.answers[0],
        known.count(False) if known else None,
        bool(template) and quotes_hint(text, answer, template),
        verdict.error if verdict.correct is None else "",
    )


# ------------------------------------------------------------------------------------- from chains to samples


@dataclass(frozen=True, slots=True)
class Kept:
    """A chain to learn: always to the plain prompt, whether it was sampled with a hint or without."""

    cell: str  # task and level
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    rationalized: bool

    def sample(self) -> Sample:
        """Cross-entropy on rationale, answer and end token; the prompt is context."""
        return supervised(self.prompt, self.tokens)


def keep(
    asked: Sequence[Asked], seed: int = 0, rationalized_share: float = 1.0, clean_lines: bool = False
) -> list[Kept]:
    """Algorithm 1 of the paper, lines 5 and 6: right chains, and rationalizations of what failed, in order.

    `rationalized_share` is the chance that a rationalization is taken (the paper's code has 1). `clean_lines` also
    asks that no line of the thought is known to be false; the paper looks at the answer alone.
    """
    found = []
    for i, one in enumerate(asked):
        chain, rationalized = one.plain, False
        if not chain.right:
            if one.hinted is None or not one.plain.failed or one.hinted.quotes_hint:
                continue
            chain, rationalized = one.hinted, True
            if random.Random(f"{seed}/{i}").random() >= rationalized_share:
                continue
        if chain.right and not (clean_lines and chain.false_lines):
            cell = f"{one.question.task}/{one.question.level}"
            found.append(Kept(cell, one.prompt, chain.tokens, rationalized))
    return found


class Mixture:
    """Which kept chain is document i of an iteration's training: a function of (seed, i), so that a count of documents
    is the whole data cursor. Every chain once in each epoch, in a new order each time; `balance` takes tasks and levels
    in turn instead, each through epochs of its own, so that what is already easy does not crowd out the rest."""

    def __init__(self, kept: Sequence[Kept], seed: int, balance: bool = False):
        cells: dict[str, list[int]] = {}
        for i, one in enumerate(kept):
            cells.setdefault(one.cell if balance else "", []).append(i)
        self._kept, self._seed = kept, seed
        self._cells = [cells[name] for name in sorted(cells)]
        self._orders: dict[int, tuple[int, list[int]]] = {}  # cell: (epoch, its order)

    def __call__(self, i: int) -> Kept:
        turn, cell = divmod(i, len(self._cells))
        epoch, place = divmod(turn, len(self._cells[cell]))
        if self._orders.get(cell, (-1, []))[0] != epoch:
            order = list(self._cells[cell])
            random.Random(f"{self._seed}/{cell}/{epoch}").shuffle(order)
            self._orders[cell] = (epoch, order)
        return self._kept[self._orders[cell][1][place]]


# ---------------------------------------------------------------------------------------------- the schedule


def steps_of(iteration: int, first: int, times: float = 1.0, plus: int = 0) -> int:
    """Optimiser steps of iteration 1, 2, …: `first`, then `times` as many and `plus` more each time.

    The paper has 40 steps, times 1.2; for addition with rationalization 300 steps, plus 20.

    >>> [steps_of(n, 40, times=1.2) for n in (1, 2, 3, 16)], [steps_of(n, 300, plus=20) for n in (1, 2, 16)]
    ([40, 48, 58, 616], [300, 320, 600])
    """
    return max(1, round(first * times ** (iteration - 1)) + plus * (iteration - 1))
