"""The two smallest strategies: sample, and sample with the thought ended by force when its budget is spent.

Both return a trace with one leaf per sample, ungraded and without a choice among the leaves: see `vote.py` for that.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mull.chat import Chat
from mull.engine.sampler import Sampler, derive_seed
from mull.errors import StopReason
from mull.ledger import Budget
from mull.types import Completion, Cost, Question, SamplingParams, Span, SpanKind, Trace


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn. The defaults sample from the policy itself, which is what training needs."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


ON_POLICY = Decoding()


async def sample(
    question: Question, sampler: Sampler, chat: Chat, budget: Budget, decoding: Decoding = ON_POLICY, seed: int = 0
) -> Trace:
    """`budget.samples` independent chains of thought, each of at most think_tokens + answer_tokens tokens.

    A chain that does not end within that has no answer ("") and its leaf says `StopReason.LENGTH`.
    """
    prompt = chat.prompt(question.text)
    trace = Trace(question, "sample", [Span(SpanKind.PROMPT, tuple(prompt))])
    params = _params(decoding, budget.think_tokens + budget.answer_tokens, seed)
    for completion in await sampler.sample(prompt, params, budget.samples):
        leaf = _grow(trace, 0, completion, budget)
        _, answer, closed = chat.split(completion.tokens)
        _bear(trace, leaf, answer if closed and completion.stop is StopReason.STOP else "")
    return trace


async def sample_forced(
    question: Question, sampler: Sampler, chat: Chat, budget: Budget, decoding: Decoding = ON_POLICY, seed: int = 0
) -> Trace:
    """Chains whose thought is closed by force after `budget.think_tokens` tokens, so that every one gives an answer.

    The forced half of s1's budget forcing (Muennighoff et al. 2025, 2501.19393), with the model's own end-of-thought
    token and no added phrase. think_tokens 0 asks for an answer without any thought.
    """
    prompt = chat.prompt(question.text)
    trace = Trace(question, "sample_forced", [Span(SpanKind.PROMPT, tuple(prompt))])
    close = chat.think_close

    async def one(i: int) -> None:
        here, prefix = 0, list(prompt)
        if budget.think_tokens > 0:
            params = _params(decoding, budget.think_tokens, derive_seed(seed, i, 0), stop_tokens=close[-1:])
            [thought] = await sampler.sample(prefix, params)
            here = _grow(trace, 0, thought, budget)
            prefix += thought.tokens
            if thought.tokens[-1] in chat.end_ids:  # ended its turn while thinking: there is nothing to answer from
                return _bear(trace, here, "")
            closed = thought.tokens[-1] == close[-1]
        else:
            closed = False
        if not closed:
            trace.spans.append(Span(SpanKind.FORCED, tuple(close), here))
            here = len(trace.spans) - 1
            prefix += close
        [answer] = await sampler.sample(prefix, _params(decoding, budget.answer_tokens, derive_seed(seed, i, 1)))
        leaf = _grow(trace, here, answer, budget)
        _bear(trace, leaf, chat.split(answer.tokens, think=False)[1] if answer.stop is StopReason.STOP else "")

    await asyncio.gather(*(one(i) for i in range(budget.samples)))
    return trace


def _params(decoding: Decoding, max_tokens: int, seed: int, stop_tokens: tuple[int, ...] = ()) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        seed=seed,
        stop_tokens=stop_tokens,
    )


def _grow(trace: Trace, parent: int, completion: Completion, budget: Budget) -> int:
    """Adds a sampled span to the tree and its cost to trace and budget; returns its index."""
    trace.spans.append(
        Span(
            SpanKind.SAMPLED,
            completion.tokens,
            parent,
            completion.logprobs,
            completion.policy_version,
            completion.temperature,
            completion.stop,
            completion.kept,
        )
    )
    trace.cost = trace.cost + completion.cost
    budget.charge(completion.cost)
    return len(trace.spans) - 1


def _bear(trace: Trace, leaf: int, answer: str) -> None:
    trace.leaves.append(leaf)
    trace.answers.append(answer)
    if len(trace.leaves) == 1:
        trace.answer = answer


def leaf_cost(trace: Trace, leaf: int) -> Cost:
    """Sampled tokens on the path to one leaf; shared spans are charged to every leaf that stands on them."""
    return Cost(sampled_tokens=sum(len(s.tokens) for s in trace.path(leaf) if s.kind is SpanKind.SAMPLED))
