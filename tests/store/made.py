"""Traces with every field filled, and small graded ones by their texts."""

from __future__ import annotations

import random
from functools import cache
from tempfile import TemporaryDirectory

import numpy as np

from mull.chat import Chat
from mull.errors import StopReason
from mull.models.nano import write_tokenizer
from mull.store import Made, Record
from mull.types import Cost, Question, Span, SpanKind, StepKind, StepVerdict, Trace, Verdict

MADE = Made("nano", "ab12", 3, "runs/one", {"temperature": 0.7, "top_p": 0.95, "top_k": 0}, "train")


@cache
def chat() -> Chat:
    with TemporaryDirectory() as folder:
        write_tokenizer(folder)
        return Chat.load(folder)


def rich(seed: int) -> Record:
    """A small tree with a value that is not the default in every field of every type."""
    rng = random.Random(seed)
    n = rng.randint(1, 5)
    kept = tuple(np.array(sorted(rng.sample(range(999), rng.randint(0, 3))), np.int32) for _ in range(n))
    odd = tuple(np.array([i], np.int64 if i % 2 else np.int32) for i in range(2))
    spans = [
        Span(SpanKind.PROMPT, (1, 2, seed % 100)),
        Span(
            *(SpanKind.SAMPLED, tuple(rng.randrange(999) for _ in range(n)), 0),
            tuple(-rng.random() for _ in range(n)),
            *(4, 0.7, StopReason.STOP, kept, 0.1 + rng.random(), 7, False),
        ),
        Span(SpanKind.FORCED, (5, rng.randrange(99)), 1, score=float("-inf"), pruned=True),
        Span(SpanKind.TOOL, (), 2, score=float("nan")),
        Span(SpanKind.SAMPLED, (9, 8), 0, (-0.0, -1e-300), 0, 1.0, StopReason.LENGTH, odd, visits=2),
    ]
    steps = [
        StepVerdict("a=1", True),
        StepVerdict("check \ud800\n", False, StepKind.CHECK, "a is 2"),
        StepVerdict("", None),
    ]
    trace = Trace(
        *(Question(f"q/1/{seed}", "q", "what is\u2028\x00 \udfff 1+1?", 1), "beam", spans, [3, 4], ["2", "\ud83d"]),
        [Verdict(True, "2"), Verdict(None, error="the grader timed out")],
        *("2", 3, Verdict(False, None, "wrong"), True, ["the server went away"]),
        Cost(5, 3, 1, 2, 0, 0.25, 1e12, rng.random()),
        rng.choice([float("-inf"), -1.5, None]),
    )
    return Record(trace, MADE, ["a=1\ncheck", "ünï"], [steps, None])


def chain(
    question: str, thought: str, answer: str = "1", correct: bool | None = True, steps: bool | None = None,
    split: str = "train", text: str = "", task: str = "q", level: int = 1, made: Made | None = None,
) -> Record:  # fmt: skip
    """One graded chain of one question, a token a character."""
    tokens = tuple(map(ord, f"{thought}|{answer}"))
    spans = [
        Span(SpanKind.PROMPT, (1,)),
        Span(SpanKind.SAMPLED, tokens, 0, (-1.0,) * len(tokens), stop=StopReason.STOP),
    ]
    verdict = Verdict(correct, answer)
    trace = Trace(
        *(Question(question, task, text or question, level), "sample", spans, [1], [answer], [verdict]),
        *(answer, 1, verdict, False, [], Cost(sampled_tokens=len(tokens))),
    )
    judged = None if steps is None else [StepVerdict(thought, steps)]
    return Record(trace, made or Made("nano", split=split), [thought], [judged])


def same(a: object, b: object) -> bool:
    """Equal in type and in every field, NaN equal to NaN, arrays in their type and values."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.tolist() == b.tolist()
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple))
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    names = getattr(a, "__slots__", None)
    if names and not isinstance(a, str):
        return all(same(getattr(a, name), getattr(b, name)) for name in names)
    return a == b
