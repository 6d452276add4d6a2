"""The `mull` object of every response: what was spent and how the answer was found, in one field that no client of
OpenAI's reads. No text of a thought is in it."""

from __future__ import annotations

from typing import Any

from mull.serve.job import Result


def vendor(result: Result) -> dict[str, Any]:
    """JSON-able. `branches` is what was planned, `reduced_from` what was asked for where there was no room for it;
    `early` says why thinking was ended before it was done ("" where it was not)."""
    plan = result.plan
    return {
        "effort": plan.level,
        "strategy": plan.strategy,
        "branches": plan.samples,
        "reduced_from": plan.wanted or None,
        "think_tokens": plan.think_tokens,
        "answer_tokens": plan.answer_tokens,
        "budget_tokens": plan.tokens,
        "path_tokens": result.path_tokens,
        "wasted_tokens": result.wasted_tokens,
        "scorer_tokens": result.scorer_tokens,
        "flops": result.flops,
        "seconds": round(result.seconds, 3),
        "first_token_seconds": None if result.first_token is None else round(result.first_token, 3),
        "votes": [{"answer": answer, "count": count} for answer, count in result.votes],
        "early": result.early,
        "exhausted": result.exhausted,
        "looped": result.looped,
        "lost": len(result.lost),  # what exactly is for the log: it may name other servers
        "ignored": list(plan.ignored),
        "policy_version": result.policy_version,
    }
