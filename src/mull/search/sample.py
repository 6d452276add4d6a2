"""The two smallest strategies: sample, and sample with the thought ended by force when its budget is spent.

Both return a trace with one leaf per sample, ungraded and without a choice among the leaves: see `vote.py` for that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from mull.chat import Chat
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import StopReason
from mull.ledger import Budget
from mull.types import Completion, Cost, Question, SamplingParams, Span, SpanKind, Trace

T = TypeVar("T")


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

    A chain that does not end within that has no answer ("") and its leaf says `StopReason.LENGTH`. Each chain may use
    an equal share of `budget.tokens`; the trace is `exhausted` when that cut one short (or left no token for any).
    """
    prompt = chat.prompt(question.asked)
    trace = Trace(question, "sample", [Span(SpanKind.PROMPT, tuple(prompt))])
    wanted = budget.think_tokens + budget.answer_tokens
    most = min(wanted, _share(budget))
    if most < 1:
        trace.exhausted = True
        return trace
    for completion in await sampler.sample(prompt, _params(decoding, most, seed), budget.samples):
        leaf = _grow(trace, 0, completion, budget)
        _, answer, closed = chat.split(completion.tokens)
        _bear(trace, leaf, answer if closed and completion.stop is StopReason.STOP else "")
        trace.exhausted |= most < wanted and completion.stop is StopReason.LENGTH
    return trace


async def sample_forced(
    question: Question, sampler: Sampler, chat: Chat, budget: Budget, decoding: Decoding = ON_POLICY, seed: int = 0
) -> Trace:
    """Chains whose thought is closed by force after `budget.think_tokens` tokens, so that every one gives an answer.

    The forced half of s1's budget forcing (Muennighoff et al. 2025, 2501.19393), with the model's own end-of-thought
    token and no added phrase. think_tokens 0 asks for an answer without any thought. `budget.tokens` is shared as in
    `sample`: the answers' part is kept free, thoughts are closed earlier.
    """
    prompt = chat.prompt(question.asked)
    trace = Trace(question, "sample_forced", [Span(SpanKind.PROMPT, tuple(prompt))])
    close = chat.think_close
    think_tokens = min(budget.think_tokens, _share(budget) - budget.answer_tokens)
    if think_tokens < 0:
        trace.exhausted = True
        return trace

    async def one(i: int) -> tuple[int, str]:
        """(leaf, answer) of chain i."""
        here, prefix, closed = 0, list(prompt), False
        if think_tokens > 0:
            params = _params(decoding, think_tokens, derive_seed(seed, i, 0))
            # Where the tag is spelled out of several tokens, its last one alone says nothing.
            stop = {"stop_tokens": close} if len(close) == 1 else {"stop": (chat.decode(close),)}
            [thought] = await sampler.sample(prefix, replace(params, **stop))
            here = _grow(trace, 0, thought, budget)
            prefix += thought.tokens
            if thought.tokens[-1] in chat.end_ids:  # ended its turn while thinking: there is nothing to answer from
                return here, ""
            closed = thought.stop is StopReason.STOP
            trace.exhausted |= think_tokens < budget.think_tokens and not closed
        if not closed:
            trace.spans.append(Span(SpanKind.FORCED, tuple(close), here))
            here = len(trace.spans) - 1
            prefix += close
        [answer] = await sampler.sample(prefix, _params(decoding, budget.answer_tokens, derive_seed(seed, i, 1)))
        leaf = _grow(trace, here, answer, budget)
        return leaf, chat.split(answer.tokens, think=False)[1] if answer.stop is StopReason.STOP else ""

    # In the order of the seeds, not of arrival: what shares the sampler's batches must not decide a vote.
    for leaf, answer in await together(one(i) for i in range(budget.samples)):
        _bear(trace, leaf, answer)
    return trace


def _share(budget: Budget) -> int:
    """Tokens that each chain may sample."""
    return budget.tokens_left // max(1, budget.samples)


def _params(decoding: Decoding, max_tokens: int, seed: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k,
        seed=seed,
    )


def _grow(trace: Trace, parent: int, completion: Completion, budget: Budget) -> int:
    """Adds a completion to the tree (its forced tokens as a span of their own, which nothing trains on) and its cost to
    trace and budget; returns the index of its last span."""
    trace.cost = trace.cost + completion.cost
    budget.charge(completion.cost)
    n = completion.forced
    if n:
        trace.spans.append(Span(SpanKind.FORCED, completion.tokens[:n], parent))
        parent = len(trace.spans) - 1
    if n == len(completion.tokens):
        return parent
    trace.spans.append(
        Span(
            SpanKind.SAMPLED,
            completion.tokens[n:],
            parent,
            completion.logprobs[n:],
            completion.policy_version,
            completion.temperature,
            completion.stop,
            completion.kept[n:] if completion.kept is not None else None,
        )
    )
    return len(trace.spans) - 1


def _bear(trace: Trace, leaf: int, answer: str) -> None:
    trace.leaves.append(leaf)
    trace.answers.append(answer)
    if len(trace.leaves) == 1:
        trace.answer, trace.chosen = answer, leaf


def leaf_cost(trace: Trace, leaf: int) -> Cost:
    """Sampled tokens on the path to one leaf; shared spans are charged to every leaf that stands on them."""
    return Cost(sampled_tokens=sum(len(s.tokens) for s in trace.path(leaf) if s.kind is SpanKind.SAMPLED))
