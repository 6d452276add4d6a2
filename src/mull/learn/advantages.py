"""From the rewards of rollouts to one advantage per rollout. Plain floats, pure functions.

A reward of None means that the rollout could not be judged (or is left out on purpose, see `shaping`). Its advantage
is None too: it enters no baseline, and no sample is made of it. Positions are kept, so that nothing has to be
filtered, reshaped or re-aligned afterwards.

Functions of one group (the rollouts of one question) take and return one list: `mean_centred`, `grpo`, `rloo`,
`positive`.
Functions of a whole batch take and return a list of groups: `reinforce_pp`, `reinforce_pp_baseline`.

Dr.GRPO (arXiv 2503.20783) has no function here: its advantage is `mean_centred`. What else it changes is the
aggregation of the loss, `losses.constant_length`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

Rewards = Sequence[float | None]
Advantages = list[float | None]

FLAT = 1e-6  # rewards within this distance (relative to their size, if above 1) are the same reward
EPSILON = 1e-4  # added to a standard deviation, as in TRL's GRPOTrainer


def scorable(rewards: Rewards) -> list[float]:
    """The rewards that are not None. ValueError for NaN or infinity: an unscorable rollout is None, never NaN."""
    known = [float(r) for r in rewards if r is not None]
    if not all(map(math.isfinite, known)):
        raise ValueError(f"a reward is not finite: {list(rewards)}; a rollout that cannot be judged has reward None")
    return known


def constant(rewards: Rewards) -> bool:
    """Whether a group teaches nothing because all of its scorable rewards are equal (or fewer than two exist).

    Compares the rewards with each other, not their mean with 0 and 1: four rewards of 0.5 are as constant as four
    of 1.

    >>> constant([0.5, 0.5, None]), constant([0.0, 1.0]), constant([1.0])
    (True, False, True)
    """
    known = scorable(rewards)
    if len(known) < 2:
        return True
    low, high = min(known), max(known)
    return high - low <= FLAT * max(1.0, abs(low), abs(high))


def mean_centred(rewards: Rewards) -> Advantages:
    """R - mean(R): the default, and Dr.GRPO's. No division by std, which would weigh easy and hard questions more.

    A constant group, and so a group of one, gets exactly zero.

    >>> mean_centred([1.0, 0.0, None, 0.0, 1.0])
    [0.5, -0.5, None, -0.5, 0.5]
    """
    return _centred(rewards, lambda known: 1.0)


def grpo(rewards: Rewards) -> Advantages:
    """(R - mean) / (std + 1e-4): GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    The paper does not say which std. TRL and verl take the sample std (n - 1), and so does this. The constant is
    TRL's; smaller ones (1e-6, 1e-8) blow differences as small as rounding up to full-size advantages. A constant
    group gets exactly zero.
    """
    return _centred(rewards, lambda known: 1.0 / (_std(known) + EPSILON))


def rloo(rewards: Rewards) -> Advantages:
    """R_i minus the mean of the *other* rewards, = G/(G-1) (R_i - mean): RLOO (arXiv 2402.14740).

    A group of one has no others. Its advantage is zero, never its raw reward.
    """
    return _centred(rewards, lambda known: len(known) / (len(known) - 1))


def reinforce_pp(groups: Sequence[Rewards]) -> list[Advantages]:
    """Whitens over the whole batch: (R - mean) / (std + 1e-4): REINFORCE++ (arXiv 2501.03262).

    Departure: mean and std are over rollouts. The reference implementations take them over tokens, so that long
    rollouts count for more; with one reward per rollout that only adds a length bias. Sample std. A batch of equal
    rewards gets zeros. Note that a constant group in a batch that is not constant does *not* get zeros here.
    """
    flat = _centred([r for rewards in groups for r in rewards], lambda known: 1.0 / (_std(known) + EPSILON))
    return _like(groups, flat)


def reinforce_pp_baseline(groups: Sequence[Rewards]) -> list[Advantages]:
    """REINFORCE++-baseline: subtracts each group's mean, then divides by the std of that over the whole batch.

    Constant groups get exactly zero, and a question with little spread in its rewards is not blown up.
    """
    centred = [mean_centred(rewards) for rewards in groups]
    known = [a for advantages in centred for a in advantages if a is not None]
    scale = 1.0 / (_std(known) + EPSILON) if len(known) > 1 else 0.0
    return [[None if a is None else a * scale for a in advantages] for advantages in centred]


def positive(rewards: Rewards) -> Advantages:
    """The reward itself where it is above zero, None elsewhere: only right chains are learnt from.

    Expert iteration (RAFT, arXiv 2304.06767; rejection sampling fine-tuning, arXiv 2308.01825): with rewards of 0 and 1
    and a likelihood loss it is supervised fine-tuning on the model's own verified chains.

    >>> positive([1.0, 0.0, None, 0.5])
    [1.0, None, None, 0.5]
    """
    scorable(rewards)
    return [r if r is not None and r > 0 else None for r in rewards]


def random_rewards(n: int, rng: random.Random) -> list[float]:
    """The control of every claim about RL: fair coin flips that know nothing of the rollouts."""
    return [float(rng.random() < 0.5) for _ in range(n)]


def _centred(rewards: Rewards, scale: Callable[[list[float]], float]) -> Advantages:
    known = scorable(rewards)
    if constant(rewards):
        return [None if r is None else 0.0 for r in rewards]
    mean = math.fsum(known) / len(known)
    factor = scale(known)
    return [None if r is None else (float(r) - mean) * factor for r in rewards]


def _std(values: Sequence[float]) -> float:
    """Sample standard deviation of at least two values."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def _like(groups: Sequence[Rewards], flat: Advantages) -> list[Advantages]:
    out, start = [], 0
    for rewards in groups:
        out.append(flat[start : start + len(rewards)])
        start += len(rewards)
    return out
