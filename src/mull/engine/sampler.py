"""The Sampler contract: what a strategy asks of whatever generates tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mull.types import Completion, SamplingParams

_MASK = (1 << 64) - 1


class Sampler(Protocol):
    """Continues prefixes. Batching across callers and sharing of equal prefixes is the sampler's business.

    `sample` returns `n` independent continuations of one prefix; the i-th uses the seed
    `derive_seed(params.seed, params.first + i)`. Cancelling the awaiting task withdraws its requests and frees their
    memory. Raises UserError when the prefix cannot fit in the model's context or in the sampler's memory.
    """

    @property
    def policy_version(self) -> int: ...

    async def sample(self, prefix_tokens: Sequence[int], params: SamplingParams, n: int = 1) -> list[Completion]: ...


def derive_seed(*parts: int) -> int:
    """A 63-bit seed from integers, well mixed (splitmix64 steps; Steele et al. 2014).

    >>> derive_seed(1, 2) != derive_seed(2, 1)
    True
    """
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & _MASK)) & _MASK
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1
