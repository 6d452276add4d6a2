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

import numpy as np

PAGE = 16  # tokens; equals the float32 lanes of a 512-bit register, which the CPU kernel's key layout relies on


def root_digest(version: int) -> bytes:
    """Where every chain of one policy version starts."""
    return b"v%d" % version


def chain(previous: bytes, tokens: np.ndarray) -> bytes:
    """The digest of a prefix that ends with one more full page; `tokens` are that page's int32 ids."""
    return hashlib.blake2b(tokens.tobytes(), key=previous[:64], digest_size=16).digest()


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

    def match(self, version: int, tokens: np.ndarray, limit: int) -> tuple[list[int], bytes]:
        """Takes hold of the longest run of cached pages that `tokens[:limit]` starts with.

        Returns the pages and the digest where the run ends.
        """
        pages: list[int] = []
        digest = root_digest(version)
        for start in range(0, limit - PAGE + 1, PAGE):
            following = chain(digest, tokens[start : start + PAGE])
            page = self.page_of.get(following)
            if page is None:
                break
            digest = following
            self.counts[page] += 1
            self.idle.pop(page, None)
            pages.append(page)
        return pages, digest

    def register(self, page: int, digest: bytes) -> None:
        """Makes a full page findable. The first page with a digest wins; a later twin stays private."""
        if digest not in self.page_of:
            self.page_of[digest] = page
            self.digest_of[page] = digest

    def release(self, pages: Sequence[int]) -> None:
        for page in pages:
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
