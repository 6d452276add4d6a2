"""Rewards before they become advantages: overlong penalty, truncated rollouts, bonuses.

What to do with a rollout that ran out of tokens is a choice with consequences, so it is one explicit function of
`(rewards, truncated)`, each a list with one entry per rollout:

- `keep_truncated`: the grader's word stands. An unfinished rollout that already shows the right answer is paid, and
  the model may learn never to stop.
- `zero_truncated`: reward 0, as in Oat. The model learns to finish in time, at the price of noise: sound reasoning
  that was cut is punished.
- `leave_out_truncated`: reward None. The rollout enters neither the baseline nor the loss nor its denominator.

DAPO (arXiv 2503.14476, section 3.4) and TRL's `mask_truncated_completions` do a fourth thing: the reward counts in
the baseline, but the rollout is left out of the loss. That is `mask_truncated`, applied to the *advantages*.
"""

from __future__ import annotations

from collections.abc import Sequence

from mull.learn.advantages import Advantages, Rewards


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """DAPO's soft penalty (arXiv 2503.14476, equation 13), to be added to the reward.

    0 up to `limit - buffer` tokens, then falling linearly to -1 at `limit`, and -1 beyond.

    >>> [overlong_penalty(n, limit=100, buffer=20) for n in (80, 90, 100, 130)]
    [0.0, -0.5, -1.0, -1.0]
    """
    if not 0 < buffer <= limit:
        raise ValueError(f"the buffer must be between 1 token and the limit of {limit}, not {buffer}")
    over = min(max(length - (limit - buffer), 0), buffer)
    return -over / buffer if over else 0.0


def with_penalty(rewards: Rewards, penalties: Sequence[float]) -> list[float | None]:
    """reward + penalty (numbers at or below zero) for every scorable rollout, right or wrong."""
    return [None if r is None else r + p for r, p in zip(rewards, penalties, strict=True)]


def with_bonus(rewards: Rewards, bonuses: Sequence[float]) -> list[float | None]:
    """reward + bonus only where the reward is above zero: a form bonus cannot be earned by a wrong answer.

    Paid unconditionally, a small bonus is the only difference within a group of wrong answers, and division by the
    group's std makes a full-size advantage of it.
    """
    return [None if r is None else r + (b if r > 0 else 0.0) for r, b in zip(rewards, bonuses, strict=True)]


def keep_truncated(rewards: Rewards, truncated: Sequence[bool]) -> list[float | None]:
    """The rewards as they are."""
    return [r for r, _ in zip(rewards, truncated, strict=True)]


def zero_truncated(rewards: Rewards, truncated: Sequence[bool]) -> list[float | None]:
    """Reward 0 for truncated rollouts, whatever the grader said (also where it could say nothing)."""
    return [0.0 if cut else r for r, cut in zip(rewards, truncated, strict=True)]


def leave_out_truncated(rewards: Rewards, truncated: Sequence[bool]) -> list[float | None]:
    """Reward None for truncated rollouts: in no baseline, in no loss, in no denominator."""
    return [None if cut else r for r, cut in zip(rewards, truncated, strict=True)]


def mask_truncated(advantages: Sequence[float | None], truncated: Sequence[bool]) -> Advantages:
    """Advantage None for truncated rollouts: their rewards have counted in the baseline, their tokens do not."""
    return [None if cut else a for a, cut in zip(advantages, truncated, strict=True)]
