"""Bookkeeping of key/value memory: pages, reference counts and the prefix cache. No torch here.

Memory is divided into pages of `PAGE` tokens. A full page is known by a digest of everything up to its end (policy
version, then token contents), so a sequence that starts with the same tokens under the same weights takes the same
pages and computes nothing for them. A page that nobody holds stays findable until its memory is needed (least
recently used first). There is no fork or free of prefixes to misuse: callers hold pages by count only.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PAGE = 16  # tokens; equals the float32 lanes of a 512-bit register, which the CPU kernel's key layout relies on


def root_digest(version: int) -> bytes:
    """Where every chain of one policy version starts."""
    return b"v%d" % version


def chain(previous: bytes, tokens: np.ndarray) -> bytes:
    """The digest of a prefix that ends with one more full page; `tokens` are that page's int32 ids."""
    return hashlib.blake2b(tokens.tobytes(), key=previous[:64], digest_size=16).digest()


def page_digests(version: int, tokens: np.ndarray) -> list[bytes]:
    """The digests of all full pages of int32 `tokens`, in order."""
    digests = [root_digest(version)]
    for start in range(0, len(tokens) - PAGE + 1, PAGE):
        digests.append(chain(digests[-1], tokens[start : start + PAGE]))
    return digests[1:]


@dataclass
class Rows:
    """The tokens of one engine step: row n is position `position_N[n]` of the sequence in slot `slot_N[n]`.

    Rows of one slot are adjacent and ascending. `table` is the engine's page table [slots, pages], int32.
    """

    slot_N: np.ndarray  # int32
    position_N: np.ndarray  # int32
    table: np.ndarray


class OutOfPages(Exception):
    """No page is free: the scheduler must queue or preempt."""


class PagePool:
    """Allocates `num_pages` pages. A page is free, held (count > 0), or cached (count 0 and findable by digest)."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self.counts = [0] * num_pages
        self.digest_of: dict[int, bytes] = {}
        self.page_of: dict[bytes, int] = {}
        self.free = list(range(num_pages - 1, -1, -1))
        self.idle: OrderedDict[int, None] = OrderedDict()  # cached pages that nobody holds, oldest first

    @property
    def available(self) -> int:
        return len(self.free) + len(self.idle)

    @property
    def held(self) -> int:
        return self.num_pages - self.available

    def allocate(self) -> int:
        if self.free:
            page = self.free.pop()
        elif self.idle:
            page, _ = self.idle.popitem(last=False)
            del self.page_of[self.digest_of.pop(page)]
        else:
            raise OutOfPages
        self.counts[page] = 1
        return page

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """Takes hold of the longest run of cached pages that a sequence with these page digests starts with."""
        pages: list[int] = []
        for digest in digests:
            page = self.page_of.get(digest)
            if page is None:
                break
            self.counts[page] += 1
            self.idle.pop(page, None)
            pages.append(page)
        return pages

    def register(self, page: int, digest: bytes) -> None:
        """Makes a full page findable. The first page with a digest wins; a later twin stays private."""
        if digest not in self.page_of:
            self.page_of[digest] = page
            self.digest_of[page] = digest

    def release(self, pages: Sequence[int]) -> None:
        """Lets go of a sequence's pages, given in order. Its end is dropped first when memory is needed: a page whose
        predecessors are gone can never be found again."""
        for page in reversed(pages):
            self.counts[page] -= 1
            if self.counts[page] == 0:
                if page in self.digest_of:
                    self.idle[page] = None
                else:
                    self.free.append(page)

    def forget(self) -> None:
        """Drops every cached page that nobody holds (their weights are gone)."""
        for page in self.idle:
            del self.page_of[self.digest_of.pop(page)]
            self.free.append(page)
        self.idle.clear()
