"""Tokens for requests that run at once: reserved before they start, settled after, never more than the budget."""

from __future__ import annotations

import asyncio

from mull.ledger import Budget


class Purse:
    """What may still be asked for under a budget while requests are under way.

    A request reserves its longest case. What it really sampled is charged to the budget by whoever asked; `settle` then
    gives the reservation back. Requests that do not fit whole wait for that, so that steps are not cut because others,
    which will turn out short, have been promised more than they need.
    """

    def __init__(self, budget: Budget):
        self.budget = budget
        self.reserved = 0
        self._settled = asyncio.Event()

    def free(self, kept: int = 0) -> int:
        """Tokens that nobody has spent or reserved, `kept` of them held back."""
        return self.budget.tokens_left - self.reserved - kept

    async def reserve(self, n: int, most: int, kept: int = 0) -> tuple[int, int]:
        """(requests, tokens for each) that may start now, of `n` that need up to `most`: as many whole ones as fit;
        once nothing else is under way, one with what is left; (0, 0) when nothing is left."""
        while True:
            free = self.free(kept)
            if free >= most:
                granted = min(n, free // most), most
                break
            if self.reserved == 0:
                granted = (1, free) if free > 0 else (0, 0)
                break
            await self._settled.wait()
        self.reserved += granted[0] * granted[1]
        return granted

    def settle(self, tokens: int) -> None:
        """Gives a reservation back, its cost having been charged."""
        self.reserved -= tokens
        self._settled.set()
        self._settled = asyncio.Event()
