"""A service over the shipped model that thinks slowly enough to be watched, with the same answers as at full speed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mull.serve.service import Service
from mull.types import Completion, SamplingParams
from tests.serve.tools import nano_service


@dataclass
class Paced:
    """A sampler that tells what another has drawn token by token, all branches of a call side by side."""

    inner: Any
    seconds: float  # from token to token

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def sample(
        self,
        prefix_tokens: Sequence[int],
        params: SamplingParams,
        n: int = 1,
        watch: Callable[[int, int], bool] | None = None,
    ) -> list[Completion]:
        drawn = await self.inner.sample(prefix_tokens, params, n)
        told = [c.tokens[c.forced :] for c in drawn]
        for t in range(max(map(len, told), default=0)):
            await asyncio.sleep(self.seconds)
            for i, tokens in enumerate(told):
                if watch and t < len(tokens):
                    watch(i, tokens[t])
        return drawn


def paced_service(seconds: float = 0.02, **settings: Any) -> Service:
    return paced(nano_service(**{"think_tokens": 120, "answer_tokens": 24, **settings}), seconds)


def paced(service: Service, seconds: float) -> Service:
    """The same service, slowed down."""
    for model in service.models.values():
        version = model.weights.current
        version.tools = replace(version.tools, sampler=Paced(version.tools.sampler, seconds))
    return service
