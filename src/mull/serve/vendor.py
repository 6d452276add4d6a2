"""The `mull` object of every response: what was spent and how the answer was found, in one field that no client of
OpenAI's reads. No text of a thought is in it."""

from __future__ import annotations

from typing import Any

from mull.serve.job import Result


def vendor(result: Result) -> dict[str, Any]:
    """As `shapes.Statistics` describes it."""
    plan = result.plan
    return {
        "strategy": plan.strategy,
        "effort": plan.level,
        "samples": plan.samples,
        "wanted": plan.wanted,
        "votes": [{"answer": answer, "count": count} for answer, count in result.votes],
        "early": result.early,
        "exhausted": result.exhausted,
        "looped": result.looped,
        "lost": len(result.lost),  # what exactly is for the log: it may name other servers
        "wasted_tokens": result.wasted_tokens,
        "summary_tokens": result.summary_tokens,
        "scorer_tokens": result.scorer_tokens,
        "seconds": round(result.seconds, 3),
        "first_token": None if result.first_token is None else round(result.first_token, 3),
        "flops": result.flops,
        "ignored": list(plan.ignored),
    }
