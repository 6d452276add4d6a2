"""The algorithms that compare a chain with its group, each as four choices. docs/methods has the table with the papers.

What tells the tokens of a chain apart (a critic, step rewards) is in recipes/credit.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mull.learn import advantages, losses
from mull.learn.advantages import Rewards, constant

Algorithm = Literal["mull", "grpo", "dr_grpo", "rloo", "reinforce_pp", "dapo", "cispo", "gspo", "expert"]


@dataclass(frozen=True)
class Method:
    """An algorithm, as four choices: rewards to advantages, the policy loss, how token losses are averaged, and which
    groups teach nothing."""

    advantages: Callable[[list[Rewards]], list[advantages.Advantages]]
    policy: losses.PolicyLoss
    aggregate: losses.Aggregate
    useless: Callable[[Rewards], bool] = constant


def method(name: Algorithm, ratio_cap: float, clip_low: float, clip_high: float | None, longest: int) -> Method:
    """The choices that a name stands for; each function's docstring names the paper.

    `ratio_cap`: of the truncated importance ratio (mull, rloo) and of cispo. `clip_high` None: 0.28 for dapo
    (clip-higher), 0.2 for the others. `longest`: tokens that a chain may have, by which dr_grpo and rloo divide.
    """

    def each(f: Callable[[Rewards], advantages.Advantages]):
        return lambda groups: [f(group) for group in groups]

    truncated = functools.partial(losses.truncated_ratio, cap=ratio_cap)
    high = clip_high if clip_high is not None else 0.28 if name == "dapo" else 0.2
    clipped = functools.partial(losses.ppo_clip, low=clip_low, high=high)
    by_length = functools.partial(losses.constant_length, length=longest)
    mean = advantages
    match name:
        case "mull":
            return Method(each(mean.mean_centred), truncated, losses.token_mean)
        case "grpo":
            return Method(each(mean.grpo), clipped, losses.sequence_mean)
        case "dr_grpo":
            return Method(each(mean.mean_centred), clipped, by_length)
        case "rloo":
            return Method(each(mean.rloo), truncated, by_length)
        case "reinforce_pp":
            return Method(mean.reinforce_pp_baseline, clipped, losses.token_mean)
        case "dapo":
            return Method(each(mean.grpo), clipped, losses.token_mean)
        case "cispo":
            return Method(each(mean.grpo), functools.partial(losses.cispo, cap=ratio_cap), losses.token_mean)
        case "gspo":
            return Method(each(mean.grpo), losses.gspo, losses.sequence_mean)
        case "expert":  # weight 1 whatever the ratio: cross-entropy on the right chains
            likelihood = functools.partial(losses.cispo, floor=1.0, cap=1.0)
            return Method(each(mean.positive), likelihood, losses.token_mean, lambda rs: not any(mean.positive(rs)))
