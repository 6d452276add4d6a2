"""The data that flows through mull. No behaviour beyond arithmetic on itself, and no torch at import.

    task ──Question──▶ strategy(question, sampler, scorer, budget) ──Trace──▶ grade ──▶ store
                           ▲                                          │
                           │ weights                                  ▼
                        learn ◀──Batch── pack ◀──list[Sample]── algorithm(traces)

Axis letters, used in names and comments everywhere: B sequences, T positions, N tokens of a ragged batch,
H heads, K key/value heads, D head width, V vocabulary, G rollouts of one group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mull.errors import StopReason

if TYPE_CHECKING:
    import numpy as np
    import torch

# ---------------------------------------------------------------------------------------------- problems


@dataclass(frozen=True, slots=True)
class Question:
    """What a strategy and a scorer may see.

    >>> Question(id="chain/1/5d0c9f3e", task="chain", text="a=3;b=a+4;b=?", level=1).task
    'chain'
    """

    id: str  # stable across runs: task, level and a hash of the content
    task: str
    text: str
    level: int = 0
    messages: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)  # a conversation that `text` is the end of

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(self.messages))  # JSON gives a list

    @property
    def asked(self) -> str | tuple[Mapping[str, Any], ...]:
        """What `Chat.prompt` is given."""
        return self.messages or self.text


@dataclass(frozen=True, slots=True)
class Reference:
    """What only a grader may see."""

    answer: str  # one correct final answer
    data: Mapping[str, Any] = field(default_factory=dict)  # whatever the task's checker needs, JSON-able


@dataclass(frozen=True, slots=True)
class Problem:
    question: Question
    reference: Reference


class StepKind(StrEnum):
    """What a line of thought does. `check` and `backtrack` are the "aha" behaviours that the report counts."""

    WORK = "work"  # a claim that moves forward
    CHECK = "check"  # re-computes or verifies an earlier claim
    BACKTRACK = "backtrack"  # gives up a branch or corrects an earlier claim
    OTHER = "other"  # makes no claim that could be false


@dataclass(frozen=True, slots=True)
class StepVerdict:
    """One line of a thought, judged exactly. `ok` is None when the line makes no checkable claim."""

    text: str
    ok: bool | None
    kind: StepKind = StepKind.WORK
    why: str = ""  # empty when ok


@dataclass(frozen=True, slots=True)
class Verdict:
    """A grader's word on one answer. `correct` is None when it could not be judged (see `errors.Unscorable`)."""

    correct: bool | None
    answer: str | None = None  # canonical form, equal for equal answers: what votes are counted by
    error: str = ""  # why `correct` is None, or why the answer was refused

    @property
    def reward(self) -> float | None:
        """1.0, 0.0, or None for an unscorable sample (which no baseline and no mean may count)."""
        return None if self.correct is None else float(self.correct)


# ------------------------------------------------------------------------------------------------- cost


@dataclass(frozen=True, slots=True)
class Cost:
    """What something consumed. Costs add up; a `Ledger` is their running sum.

    >>> (Cost(sampled_tokens=3, flops=6.0) + Cost(sampled_tokens=1)).sampled_tokens
    4
    """

    sampled_tokens: int = 0  # decoded by the policy, abandoned branches included
    prefill_tokens: int = 0  # prompt or forced tokens that were computed
    cached_tokens: int = 0  # prompt tokens found in the prefix cache: no FLOPs
    scorer_tokens: int = 0  # read by reward models and critics
    trained_tokens: int = 0  # through forward and backward
    tool_seconds: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0  # wall-clock

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f) + getattr(other, f) for f in self.__slots__))


# ------------------------------------------------------------------------------------------- generation


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to continue a prefix.

    `seed` fixes the request's randomness whatever else is in the batch. `temperature` 0 is greedy (log-probabilities
    are then those at temperature 1). `forced` tokens are emitted first, scored, and marked so that nothing trains on
    them. A stop string ends the request at the token that completes it (the token is kept).

    Where the tokens so far (the prefix's and forced ones included) end in all of a banned sequence but its last token,
    that one has probability zero and the others share what is left: log-probabilities and `Completion.kept` say so.
    A sequence of one token is banned everywhere. Samplers that cannot do this refuse it.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()  # besides the model's own end tokens
    seed: int = 0
    forced: tuple[int, ...] = ()
    first: int = 0  # of n samples the i-th has the seed of number first + i: several calls can make what one would have
    banned: tuple[tuple[int, ...], ...] = ()  # token sequences that no sampled token may complete

    def with_seed(self, seed: int) -> SamplingParams:
        return replace(self, seed=seed)


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation of a prefix, with everything that training needs to treat it honestly.

    `logprobs` are under the distribution that was sampled from (after temperature and the kept set). Where top-p,
    top-k or a ban cut the support, `kept[t]` holds the ids that survived at step t, so that a trainer can renormalise
    over the same set (empty where all did); it is None when the support was full.
    """

    tokens: tuple[int, ...]  # the sampled end or stop token included
    logprobs: tuple[float, ...]
    stop: StopReason
    policy_version: int
    temperature: float = 1.0
    forced: int = 0  # the first so many tokens were forced
    kept: tuple[np.ndarray, ...] | None = None
    cost: Cost = Cost()


# ------------------------------------------------------------------------------------------------ traces


class SpanKind(StrEnum):
    PROMPT = "prompt"
    SAMPLED = "sampled"
    FORCED = "forced"  # put there by the strategy: an end of thinking, a "Wait"
    TOOL = "tool"


@dataclass(slots=True)
class Span:
    """A run of tokens in a tree of thought; `parent` is an index into `Trace.spans`, -1 for the root."""

    kind: SpanKind
    tokens: tuple[int, ...]
    parent: int = -1
    logprobs: tuple[float, ...] = ()  # one per token of a sampled span, else empty
    policy_version: int = 0
    temperature: float = 1.0
    stop: StopReason | None = None
    kept: tuple[np.ndarray, ...] | None = None
    score: float | None = None  # a scorer's value of the prefix that ends here
    visits: int = 0
    pruned: bool = False


@dataclass(slots=True)
class Trace:
    """Everything one strategy did for one question: a tree of spans, its answer, and its cost.

    Sampling once is a root and one leaf; majority vote is a root with N leaves. `answers[i]` is the answer text of
    leaf `leaves[i]`. Verdicts are filled in afterwards by whoever knows the reference.
    """

    question: Question
    strategy: str
    spans: list[Span] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)  # one per leaf, once graded
    answer: str = ""  # the strategy's own choice
    chosen: int = -1  # the span of the leaf that gave it; -1: no single leaf did
    verdict: Verdict | None = None  # of `answer`, once graded
    exhausted: bool = False  # the budget ran out before the strategy was done
    lost: list[str] = field(default_factory=list)  # what failed on the way, one sentence each
    cost: Cost = Cost()
    evidence: float | None = None  # particle filters: log of an unbiased estimate of the target's normaliser

    def path(self, leaf: int) -> list[Span]:
        """The spans from the root to span `leaf`, in order."""
        spans: list[Span] = []
        while leaf >= 0:
            spans.append(self.spans[leaf])
            leaf = self.spans[leaf].parent
        return spans[::-1]


# ---------------------------------------------------------------------------------------------- learning


@dataclass(slots=True)
class Sample:
    """One token sequence to learn from, with one weight per token for each stream of the loss.

    An algorithm is a function from traces to samples. All lists have the length of `tokens`; entry t belongs to the
    prediction *of* token t. A weight of zero leaves the token out: prompts, forced and tool tokens have zeros, the
    sampled end token does not.
    """

    tokens: Sequence[int]
    advantages: Sequence[float]  # policy-gradient weight; zero: not in the policy-gradient loss
    mask: Sequence[bool]  # tokens that the policy sampled and the loss counts in its denominator
    logprobs: Sequence[float]  # the sampler's, under `temperature` and `kept`; 0 where `mask` is False
    ce: Sequence[float] | None = None  # cross-entropy weight (SFT); None: none
    temperature: float = 1.0
    kept: Sequence[np.ndarray | None] | None = None  # per token, aligned with `tokens`
    policy_version: int = 0
    group: int = 0  # samples of one group answered the same question


@dataclass(slots=True)
class Batch:
    """Samples packed for one forward pass, right-padded; axes B sequences, T positions.

    `targets[:, t] == tokens[:, t + 1]`; every other field is aligned with `targets`: entry t is about predicting
    token t + 1. Padding has zero in every weight. `denominator` is the count over the *whole* optimiser step, never
    of one micro-batch, so that splitting a step into micro-batches changes nothing.
    """

    tokens_BT: torch.Tensor  # int64, inputs
    targets_BT: torch.Tensor  # int64
    lengths_B: torch.Tensor  # int64, inputs per row
    advantages_BT: torch.Tensor  # float32
    mask_BT: torch.Tensor  # bool
    logprobs_BT: torch.Tensor  # float32, the sampler's
    ce_BT: torch.Tensor  # float32
    temperature_B: torch.Tensor  # float32
    kept_BTK: torch.Tensor | None  # int64 ids, -1 where unused; None when every support was full
    ref_logprobs_BT: torch.Tensor | None  # float32, a reference policy's, for the KL
    denominator: float
    sequences: float  # sequences in the whole optimiser step, for per-sequence aggregation
