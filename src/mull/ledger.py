"""Counting compute. One ledger counts everything; curves are drawn from it and budgets are enforced by it.

FLOPs are counted from the model's shape: 2 per multiply-add of every matrix product that ran, plus attention's
4·H·D per query and visible key and layer (Kaplan et al. 2020, 2001.08361, table 1, with the attention term kept).
Training counts three times the forward pass. Norms, rotations and softmax are left out, as is usual.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from mull.models.config import ModelConfig
from mull.types import Cost


def forward_flops(config: ModelConfig, tokens: int, context: int, head_tokens: int | None = None) -> float:
    """FLOPs of a forward pass over `tokens` positions.

    `context` is the sum over positions of the number of keys each one attends to; `head_tokens` the number of
    positions whose logits were computed (all of them by default).
    """
    head = config.vocab_size * config.hidden_size
    body = config.matmul_params - head
    attention = 4.0 * config.num_layers * config.num_heads * config.head_dim * context
    return 2.0 * body * tokens + 2.0 * head * (tokens if head_tokens is None else head_tokens) + attention


def causal_context(start: int, end: int) -> int:
    """Keys attended to by positions start..end-1, each seeing itself and everything before it.

    >>> causal_context(0, 3)
    6
    """
    return (end * (end + 1) - start * (start + 1)) // 2


def train_flops(config: ModelConfig, lengths: list[int]) -> float:
    """FLOPs of forward and backward over sequences of the given lengths (padding is not counted)."""
    return 3.0 * forward_flops(config, sum(lengths), sum(causal_context(0, n) for n in lengths))


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
