"""Bookkeeping of key/value memory: pages, reference counts and the prefix cache. No torch here.

Memory is divided into pages of `PAGE` tokens. A page is findable by what comes before it (a digest of the policy
version and all earlier tokens) and by its own tokens, so a sequence that starts like another under the same weights
takes that one's full pages as they are. Of the page after those it needs a copy of its own, for sequences part inside
it; it finds the one that agrees longest, full or not, so sharing is exact to the token. Pages only ever grow: what is
registered of one stays true while its owner writes on. A page that nobody holds stays findable until its memory is
needed (least recently used first). There is no fork or free of prefixes to misuse: callers hold pages by count only.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PAGE = 16  # tokens; equals the float32 lanes of a 512-bit register, which the CPU kernel's key layout relies on
TOKEN_BYTES = 4  # contents of pages are handled as the bytes of their int32 ids


def root_digest(version: int) -> bytes:
    """Where every chain of one policy version starts."""
    return b"v%d" % version


def chain(parent: bytes, contents: bytes) -> bytes:
    """The digest of a prefix that ends with one more full page; `contents` are that page's int32 ids."""
    return hashlib.blake2b(contents + parent, digest_size=16).digest()


def page_digests(version: int, tokens: np.ndarray) -> list[bytes]:
    """The root of `version`, then the digests of all full pages of int32 `tokens`: page i follows entry i."""
    digests, contents, size = [root_digest(version)], tokens.tobytes(), PAGE * TOKEN_BYTES
    for start in range(0, len(contents) - size + 1, size):
        digests.append(chain(digests[-1], contents[start : start + size]))
    return digests


def common_start(a: bytes, b: bytes) -> int:
    """How many tokens two contents have in common before they part."""
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    if a != b:
        differing = int.from_bytes(a, "little") ^ int.from_bytes(b, "little")
        n = ((differing & -differing).bit_length() - 1) // 8
    return n // TOKEN_BYTES


def closest(entries: Sequence[tuple[bytes, int]], contents: bytes) -> tuple[int, int]:
    """(tokens in common, page) of the sorted (contents, page) that begins most like `contents`, or (0, -1).

    In sorted order it lies next to where `contents` would.
    """
    at = bisect_left(entries, (contents,))
    best = (0, -1)
    for other, page in entries[max(0, at - 1) : at + 1]:
        common = common_start(other, contents)
        if common > best[0]:
            best = common, page
    return best


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


class Known(NamedTuple):
    """What is findable of a page."""

    parent: bytes  # digest of everything before it
    contents: bytes
    digest: bytes | None  # of everything up to its end, when it is full


class PagePool:
    """Allocates `num_pages` pages. A page is free, held (count > 0), or cached (count 0 and findable)."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self.counts = [0] * num_pages
        self.known: dict[int, Known] = {}
        self.page_of: dict[bytes, int] = {}  # full pages by digest
        self.followers: dict[bytes, list[tuple[bytes, int]]] = {}  # by parent: sorted (contents, page)
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
            self._unregister(page)
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

    def closest(self, parent: bytes, contents: bytes) -> tuple[int, int]:
        """(tokens in common, page) of the page after `parent` that begins most like `contents`; (0, -1) if none does.

        It may be copied from until the next step computes; it counts as used.
        """
        common, page = closest(self.followers.get(parent, ()), contents)
        if page in self.idle:
            self.idle.move_to_end(page)
        return common, page

    def register(self, page: int, parent: bytes, contents: bytes, digest: bytes | None = None) -> None:
        """Makes a held page findable: `contents` after `parent`, and under its own digest when it is full.

        A page that has grown is registered again. The first page with some contents wins: a later one that holds no
        more than another does stays private.
        """
        if page in self.known:
            self._unregister(page)
        followers = self.followers.setdefault(parent, [])
        at = bisect_left(followers, (contents,))
        if at < len(followers) and followers[at][0].startswith(contents):
            return
        followers.insert(at, (contents, page))
        self.known[page] = Known(parent, contents, digest)
        if digest is not None:
            self.page_of[digest] = page
        if at and contents.startswith(followers[at - 1][0]) and self.counts[outgrown := followers[at - 1][1]] == 0:
            del self.idle[outgrown]
            self._unregister(outgrown)
            self.free.append(outgrown)

    def release(self, pages: Sequence[int]) -> None:
        """Lets go of a sequence's pages, given in order. Its end is dropped first when memory is needed: a page whose
        predecessors are gone can never be found again."""
        for page in reversed(pages):
            self.counts[page] -= 1
            if self.counts[page] == 0:
                if page in self.known:
                    self.idle[page] = None
                else:
                    self.free.append(page)

    def forget(self) -> None:
        """Drops every cached page that nobody holds (their weights are gone)."""
        for page in self.idle:
            self._unregister(page)
            self.free.append(page)
        self.idle.clear()

    def _unregister(self, page: int) -> None:
        known = self.known.pop(page)
        if known.digest is not None:
            del self.page_of[known.digest]
        followers = self.followers[known.parent]
        del followers[bisect_left(followers, (known.contents, page))]
        if not followers:
            del self.followers[known.parent]
