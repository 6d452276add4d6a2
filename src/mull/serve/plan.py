"""From what a request asks for to what is spent on it: effort -> strategy, chains and tokens. No torch.

    none, minimal     no thought: the answer at once
    low               one chain
    medium, high,     chains that vote until the majority is clear; with a calibration file, `auto`'s plan for the
    xhigh, max        question's difficulty

A thinking budget bounds all branches together; an answer's tokens are kept beside it, so that there is always one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Level = Literal["none", "low", "medium", "high"]
LEVELS: tuple[Level, ...] = get_args(Level)
CHAINS: dict[Level, int] = {"none": 1, "low": 1, "medium": 8, "high": 32}  # without a calibration file
WORDS: dict[str, Level] = {
    "none": "none", "minimal": "none", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip
SINGLE = "wait:waits=0"  # one chain, closed by force at its budget, so that an answer always follows
VOTE = "adaptive"


@dataclass(frozen=True)
class Wish:
    """What a request asks for, whichever API it came by. None: it did not say."""

    messages: tuple[Mapping[str, Any], ...]
    effort: Level | None = None
    think: bool | None = None  # False: no thought, whatever the effort
    think_budget: int | None = None  # tokens of thought, over all branches
    max_tokens: int | None = None  # thoughts and answer together
    strategy: str = ""  # a vendor's field: as in --strategy
    samples: int | None = None  # its N
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()  # of the answer alone
    summary: bool = True  # whether anybody will see one
    end_user: str = field(default="", compare=False)
    model: str = ""  # as it is called here; empty: the main one


@dataclass(frozen=True)
class Plan:
    level: Level
    strategy: str  # as in --strategy
    samples: int  # its N
    think_tokens: int  # of one chain, at most
    answer_tokens: int
    tokens: int | None  # that may be sampled in all; None: what the chains may have
    temperature: float = 1.0
    top_p: float = 1.0
    ignored: tuple[str, ...] = ()  # parameters that this plan cannot obey
    wanted: int = 0  # chains that were asked for, where fan-out was reduced; else 0
    summary: int = 0  # tokens that the writing of one section of its summary may hold; 0: sections are quoted

    @property
    def single(self) -> bool:
        """Whether one chain is all there is, so that its tokens can be passed on as they come."""
        return self.strategy == SINGLE and self.samples == 1

    @property
    def branch_tokens(self) -> int:
        return self.think_tokens + self.answer_tokens

    @property
    def most_tokens(self) -> int:
        """An upper bound of what will be sampled."""
        bound = self.samples * self.branch_tokens
        return bound if self.tokens is None else min(bound, self.tokens)

    def reduced(self, samples: int) -> Plan:
        """With fewer chains, because there is no room for all; says so in `wanted`."""
        if samples >= self.samples:
            return self
        fixed = self.strategy == SINGLE or self.strategy.startswith("auto")  # an effort's plan asks nobody for its N
        strategy = SINGLE if samples == 1 else VOTE if fixed else self.strategy
        return replace(self, samples=samples, strategy=strategy, wanted=self.wanted or self.samples)


def plan(
    wish: Wish,
    *,
    room: int,
    default: Level,
    think_tokens: int,
    answer_tokens: int,
    most_samples: int,
    calibration: Mapping[str, int] | None = None,
) -> Plan:
    """What to spend on a request.

    `room`: tokens of the model's context that the prompt leaves, at least 2. `think_tokens` and `answer_tokens`: what a
    chain may have when nobody says otherwise. `calibration`: for low, medium and high the most chains that `auto` may
    sample; None where there is no calibration file.
    """
    level = "none" if wish.think is False or wish.think_budget == 0 else wish.effort or default
    answer = max(1, min(answer_tokens, room - 1, wish.max_tokens or room))
    total = wish.max_tokens
    if total is not None and total < 2 * answer and level != "none":
        answer = max(1, total // 2)  # a small budget is shared: half of it must do for the answer
    if wish.think_budget is not None:
        total = min(total or 1 << 31, wish.think_budget + answer)
    thought = 0 if level == "none" else max(0, min(think_tokens, room - answer - 1))
    if total is not None:
        thought = min(thought, total - answer)
    strategy, samples = SINGLE, CHAINS[level]
    if wish.strategy:
        strategy, samples = wish.strategy, wish.samples or samples
    elif level != "none" and calibration is not None:
        strategy, samples = f"auto:effort={level}", calibration[level]
    elif samples > 1 or (wish.samples or 1) > 1:
        strategy, samples = VOTE, wish.samples or samples
    samples = max(1, min(samples, most_samples))
    if thought == 0:
        strategy, samples = SINGLE, 1
    ignored: tuple[str, ...] = ()
    temperature, top_p = wish.temperature, wish.top_p
    if strategy != SINGLE:
        # Many equal chains know no more than one, and scorers read the model's own distribution.
        ignored = tuple(k for k, v in (("temperature", temperature), ("top_p", top_p)) if v not in (None, 1))
        temperature = top_p = None
    return Plan(
        level,
        strategy,
        samples,
        thought,
        answer,
        total,
        1.0 if temperature is None else temperature,
        1.0 if top_p is None else top_p,
        ignored,
    )
