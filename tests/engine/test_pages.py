"""The page pool's book-keeping, by hand and by random histories. No torch."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mull.engine.pages import PAGE, OutOfPages, PagePool, chain, page_digests, root_digest


def tokens(*pages: int, rest: int = 0) -> np.ndarray:
    return np.array([p for page in pages for p in [page] * PAGE] + [7] * rest, np.int32)


def test_digests_are_of_full_pages_their_past_and_the_version():
    a = page_digests(0, tokens(1, 2, rest=PAGE - 1))
    assert len(a) == 2 and a[0] == chain(root_digest(0), tokens(1)) and a[1] == chain(a[0], tokens(2))
    assert page_digests(0, tokens(1, 2, 3))[:2] == a
    assert page_digests(0, tokens(3, 2))[1] != a[1], "the same page after another past is another page"
    assert set(page_digests(1, tokens(1, 2))).isdisjoint(a), "and so it is under other weights"
    assert page_digests(0, tokens(rest=PAGE - 1)) == []


def test_a_released_page_is_found_again_until_its_memory_is_needed():
    pool, digests = PagePool(3), page_digests(0, tokens(1, 2, 3))
    held = [pool.allocate() for _ in range(3)]
    for page, digest in zip(held, digests, strict=True):
        pool.register(page, digest)
    with pytest.raises(OutOfPages):
        pool.allocate()
    pool.release(held)
    assert pool.held == 0 and pool.match(digests) == held and pool.held == 3
    pool.release(held)
    pool.release([pool.allocate()])
    assert pool.match(digests) == held[:2], "the end of a sequence goes first: without its start it is lost"
    pool.release(held[:2])
    pool.forget()
    assert pool.match(digests) == [] and sorted(pool.free) == [0, 1, 2]


def test_a_twin_page_stays_private():
    pool, [digest] = PagePool(2), page_digests(0, tokens(1))
    first, twin = pool.allocate(), pool.allocate()
    pool.register(first, digest)
    pool.register(twin, digest)
    assert pool.match([digest]) == [first]
    pool.release([twin])
    assert pool.free == [twin] and pool.counts[first] == 2


class Histories(RuleBasedStateMachine):
    """Sequences come, grow, share and go in any order; a page's content is modelled beside the pool."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(7)
        self.version = 0
        self.sequences: list[tuple[list[int], list[int], list[bytes]]] = []  # pages, their contents, digests
        self.content: dict[int, tuple] = {}  # what a page's memory holds: (version, contents up to its end)

    @rule(contents=st.lists(st.integers(0, 1), max_size=5))
    def arrive(self, contents):
        digests = page_digests(self.version, tokens(*contents))
        pages = self.pool.match(digests)
        for i, page in enumerate(pages):
            assert self.content[page] == (self.version, tuple(contents[: i + 1])), "a wrong page was found"
        self.sequences.append((pages, contents[: len(pages)], digests[: len(pages)]))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), content=st.integers(0, 1))
    def grow(self, data, content):
        pages, contents, digests = data.draw(st.sampled_from(self.sequences))
        available = self.pool.available
        try:
            page = self.pool.allocate()
        except OutOfPages:
            assert available == 0
            return
        assert all(page not in other for other, _, _ in self.sequences), "a held page was given away"
        pages.append(page)
        contents.append(content)
        digests.append(chain(digests[-1] if digests else root_digest(self.version), tokens(content)))
        self.content[page] = (self.version, tuple(contents))
        self.pool.register(page, digests[-1])

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def leave(self, data):
        at = data.draw(st.integers(0, len(self.sequences) - 1))
        self.pool.release(self.sequences.pop(at)[0])

    @precondition(lambda self: not self.sequences)
    @rule()
    def new_weights(self):
        self.version += 1
        self.pool.forget()

    @invariant()
    def the_books_agree(self):
        pool = self.pool
        counts = [sum(pages.count(page) for pages, _, _ in self.sequences) for page in range(pool.num_pages)]
        assert pool.counts == counts
        held = {page for page, count in enumerate(counts) if count}
        free, idle = set(pool.free), set(pool.idle)
        assert len(free) == len(pool.free) and not free & idle and not free & held and not idle & held
        assert free | idle | held == set(range(pool.num_pages))
        assert pool.held == len(held) and pool.available == pool.num_pages - len(held)
        assert {d: p for p, d in pool.digest_of.items()} == pool.page_of and len(pool.digest_of) == len(pool.page_of)
        assert idle <= set(pool.digest_of) and not free & set(pool.digest_of)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40)


def test_needs_no_torch():
    code = "import sys, mull.engine.pages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
