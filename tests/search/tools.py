"""A tokenizer, scripted scorers, and small trees of thought whose every path is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from tempfile import TemporaryDirectory

from mull.chat import Chat
from mull.engine.scripted import ScriptedSampler
from mull.models.nano import write_tokenizer
from mull.scorers.base import Score
from mull.types import Cost, Question, SpanKind, Trace

QUESTION = Question("q/1", "sums", "2+2?")


@cache
def chat() -> Chat:
    with TemporaryDirectory() as folder:
        write_tokenizer(folder)
        return Chat.load(folder)


def canonical(question: Question, answer: str) -> str | None:
    """Any number is an answer."""
    return answer if answer.lstrip("-").isdigit() else None


def thought(tokens: Sequence[int]) -> str:
    """What follows the prompt, as text."""
    return chat().decode(tokens[_prompt_length() :])


@cache
def _prompt_length() -> int:
    return len(chat().prompt(QUESTION.text))


@dataclass
class ScriptedScorer:
    """Scores by a function of the text that follows the prompt; a token is charged for each that no scored prefix held
    (`fail` is raised by that many-th call, from 0)."""

    value: Callable[[str], float]
    fail: dict[int, BaseException] = field(default_factory=dict)
    calls: list[list[str]] = field(default_factory=list)
    seen: set[tuple[int, ...]] = field(default_factory=set)
    running: int = 0

    async def score(self, prefixes: Sequence[Sequence[int]]) -> list[Score]:
        self.calls.append([thought(p) for p in prefixes])
        number = len(self.calls) - 1
        self.running += 1
        try:
            await asyncio.sleep(0)
            if number in self.fail:
                raise self.fail[number]
            return [Score(self.value(thought(p)), self._read(tuple(p))) for p in prefixes]
        finally:
            self.running -= 1

    def _read(self, prefix: tuple[int, ...]) -> Cost:
        known = next((n for n in range(len(prefix), 0, -1) if prefix[:n] in self.seen), 0)
        self.seen.add(prefix)
        return Cost(scorer_tokens=len(prefix) - known, flops=float(len(prefix) - known))


def sampler_of(tree: dict[str, dict[str, float]], **options) -> ScriptedSampler:
    """A sampler over a tree of thought: from the text after the prompt to the next steps with their weights.

    A step is a line with its "\\n", or ends in "</think>"; behind that stand answers. Elsewhere the
    turn ends.

    >>> sampler_of({"": {"a\\n": 1, "b\\n": 3}, "a\\n": {"</think>": 1}, "a\\n</think>": {"1": 1}})
    """

    def follows(tokens: tuple[int, ...]):
        return tree.get(thought(tokens))

    return ScriptedSampler(follows, chat(), **options)


def run(strategy, sampler, budget, **options) -> Trace:
    return asyncio.run(strategy(QUESTION, sampler, chat(), budget, **options))


def texts(trace: Trace) -> list[str]:
    """Every sampled step."""
    return [chat().decode(span.tokens) for span in trace.spans if span.kind is SpanKind.SAMPLED]


def assert_sound(trace: Trace, sampler: ScriptedSampler, budget) -> None:
    """What holds after every search: nothing runs, every token is in the ledger and within the budget, and the trace
    is a tree whose leaves carry its answers."""
    assert sampler.running == 0
    assert trace.cost.sampled_tokens == sampler.cost.sampled_tokens == budget.spent.sampled_tokens
    if budget.tokens is not None:
        assert budget.spent.sampled_tokens <= budget.tokens
    assert all(-1 <= span.parent < i for i, span in enumerate(trace.spans))
    assert sum(len(s.tokens) for s in trace.spans if s.kind is SpanKind.SAMPLED) == trace.cost.sampled_tokens
    assert len(trace.leaves) == len(trace.answers) and trace.answer
