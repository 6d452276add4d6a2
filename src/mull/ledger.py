"""One ledger counts everything; curves are drawn from it and budgets are enforced by it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from mull.types import Cost


@dataclass
class Ledger:
    """Running sums of cost by phase.

    >>> ledger = Ledger()
    ... ledger.charge("rollout", Cost(sampled_tokens=5))
    ... ledger.total.sampled_tokens
    5
    """

    phases: dict[str, Cost] = field(default_factory=dict)

    def charge(self, phase: str, cost: Cost) -> None:
        self.phases[phase] = self.phases.get(phase, Cost()) + cost

    @property
    def total(self) -> Cost:
        return sum(self.phases.values(), Cost())

    def state(self) -> dict[str, dict[str, float]]:
        return {phase: asdict(cost) for phase, cost in self.phases.items()}

    @classmethod
    def restore(cls, state: dict[str, dict]) -> Ledger:
        return cls({phase: Cost(**cost) for phase, cost in state.items()})


@dataclass
class Budget:
    """What one question may spend. None: no limit. `spent` is charged by the strategy for everything it starts.

    `tokens` bounds sampled tokens; `think_tokens` bounds the thought of each sample, after which the end of thinking
    is forced and up to `answer_tokens` more are sampled for the answer.
    """

    tokens: int | None = None
    think_tokens: int = 512
    answer_tokens: int = 32
    samples: int = 1
    spent: Cost = field(default_factory=Cost)

    def charge(self, cost: Cost) -> None:
        self.spent = self.spent + cost

    @property
    def tokens_left(self) -> int:
        return 2**31 if self.tokens is None else max(0, self.tokens - self.spent.sampled_tokens)
