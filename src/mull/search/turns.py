"""Conversations of more than one turn: a second attempt at the same question, and a question asked after others.

In a second turn the first is read as it was sampled, thought and all, token by token: what a policy is trained on is
what it saw. (Chat templates drop the thoughts of earlier turns when they render a conversation from text.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from mull.chat import Chat
from mull.chat.template import Messages
from mull.engine.sampler import Sampler, derive_seed
from mull.engine.together import together
from mull.errors import StopReason, UserError
from mull.ledger import Budget
from mull.search.sample import ON_POLICY, Decoding
from mull.types import Completion, Question, SamplingParams, Span, SpanKind, Trace

INSTRUCTION = "There may be an error. Try again."


def bridge(chat: Chat, instruction: str) -> list[int]:
    """What stands between the end token of an answer and the thought of the next turn, which begins with it.

    Found by rendering a conversation with two different answers: what both have in common from the answer's end token
    on. UserError for a template whose answers have no end token there.
    """
    asked, again = {"role": "user", "content": "0"}, {"role": "user", "content": instruction}
    one, other = (chat.prompt([asked, {"role": "assistant", "content": a}, again]) for a in ("0", "1"))
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))))
    common = one[len(one) - same :]
    if chat.turn_end not in common:
        raise UserError(f"the chat template of {chat.name} puts no end token behind an answer: a second turn needs one")
    return common[common.index(chat.turn_end) + 1 :]


def between_turns(chat: Chat, first: Completion, instruction: str) -> list[int]:
    """The forced tokens between a first attempt and a second one. A turn that was cut off is ended by force."""
    ended = first.tokens[-1] in chat.end_ids
    return [*([] if ended else [chat.turn_end]), *bridge(chat, instruction)]


async def two_turns(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    instruction: str = INSTRUCTION,
) -> Trace:
    """`budget.samples` first attempts, and after each a second one, asked for with a fixed instruction.

    Each attempt has think_tokens + answer_tokens. The leaves come in pairs: first attempt, second attempt, of one chain
    after the other (see `attempts`); a second attempt's path is prompt, first attempt, forced instruction, second
    attempt. The instruction says the same whether the first attempt was right or wrong: nothing is leaked.
    The trace's own answer is the second attempt of the first chain.
    """
    prompt = chat.prompt(question.asked)
    trace = Trace(question, "two_turns", [Span(SpanKind.PROMPT, tuple(prompt))])
    wanted = budget.think_tokens + budget.answer_tokens
    most = min(wanted, budget.tokens_left // max(1, 2 * budget.samples))
    if most < 1:
        trace.exhausted = True
        return trace
    params = SamplingParams(most, decoding.temperature, decoding.top_p, decoding.top_k)

    async def again(i: int, first: Completion, forced: list[int]) -> Completion:
        prefix = [*prompt, *first.tokens, *forced]
        return (await sampler.sample(prefix, params.with_seed(derive_seed(seed, 1, i))))[0]

    firsts = await sampler.sample(prompt, params.with_seed(derive_seed(seed, 0)), budget.samples)
    forced = [between_turns(chat, first, instruction) for first in firsts]
    seconds = await together(again(i, c, f) for i, (c, f) in enumerate(zip(firsts, forced, strict=True)))
    for first, put, second in zip(firsts, forced, seconds, strict=True):
        here = _grow(trace, 0, first, chat, budget)
        trace.spans.append(Span(SpanKind.FORCED, tuple(put), here))
        _grow(trace, len(trace.spans) - 1, second, chat, budget)
        cut = StopReason.LENGTH in (first.stop, second.stop)
        trace.exhausted |= most < wanted and cut
    if seconds:
        trace.answer, trace.chosen = trace.answers[1], trace.leaves[1]
    return trace


def attempts(pairs: Sequence) -> tuple[list, list]:
    """(what belongs to the first attempts, what belongs to the second) of a list with an entry per leaf."""
    return list(pairs[0::2]), list(pairs[1::2])


async def converse(
    question: Question,
    messages: Messages,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
) -> Trace:
    """`sample` for a question that is asked in a conversation: `messages` end with it, in whatever words."""
    prompt = chat.prompt(messages)
    trace = Trace(question, "converse", [Span(SpanKind.PROMPT, tuple(prompt))])
    wanted = budget.think_tokens + budget.answer_tokens
    most = min(wanted, budget.tokens_left // max(1, budget.samples))
    if most < 1:
        trace.exhausted = True
        return trace
    params = SamplingParams(most, decoding.temperature, decoding.top_p, decoding.top_k, seed=seed)
    for completion in await sampler.sample(prompt, params, budget.samples):
        _grow(trace, 0, completion, chat, budget)
        trace.exhausted |= most < wanted and completion.stop is StopReason.LENGTH
    if trace.leaves:
        trace.answer, trace.chosen = trace.answers[0], trace.leaves[0]
    return trace


def _grow(trace: Trace, parent: int, completion: Completion, chat: Chat, budget: Budget) -> int:
    """Adds an attempt as a leaf, with its answer ("" for one that was cut off) and its cost; returns its span."""
    trace.cost = trace.cost + completion.cost
    budget.charge(completion.cost)
    c = completion
    span = Span(SpanKind.SAMPLED, c.tokens, parent, c.logprobs, c.policy_version, c.temperature, c.stop, c.kept)
    trace.spans.append(span)
    _, answer, closed = chat.split(c.tokens)
    trace.leaves.append(len(trace.spans) - 1)
    trace.answers.append(answer if closed and c.stop is StopReason.STOP else "")
    return trace.leaves[-1]
