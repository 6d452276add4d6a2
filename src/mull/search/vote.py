"""Self-consistency: sample several chains and take the answer that most of them reach (Wang et al. 2203.11171)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from mull.chat import Chat
from mull.engine.sampler import Sampler
from mull.ledger import Budget
from mull.search.sample import ON_POLICY, Decoding, sample
from mull.types import Question, Trace

Canonical = Callable[[Question, str], str | None]


async def vote(
    question: Question,
    sampler: Sampler,
    chat: Chat,
    budget: Budget,
    decoding: Decoding = ON_POLICY,
    seed: int = 0,
    *,
    canonical: Canonical,
) -> Trace:
    """The majority answer of `budget.samples` chains; of equally frequent answers the one reached first.

    `canonical` (a task's, which sees the question alone) says which answers are equal; unreadable ones do not vote.
    """
    trace = await sample(question, sampler, chat, budget, decoding, seed)
    trace.strategy = "vote"
    trace.answer = majority(trace, canonical)
    if trace.leaves:
        trace.chosen = trace.leaves[trace.answers.index(trace.answer)]
    return trace


def majority(trace: Trace, canonical: Canonical) -> str:
    """The answer text whose canonical form most leaves share; "" when no answer can be read."""
    forms = [canonical(trace.question, answer) for answer in trace.answers]
    counts = Counter(form for form in forms if form is not None)
    if not counts:
        return trace.answers[0] if trace.answers else ""
    winner = max(counts, key=lambda form: (counts[form], -forms.index(form)))
    return trace.answers[forms.index(winner)]
