"""The page pool's book-keeping, by hand and by random histories. No torch."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mull.engine.pages import PAGE, OutOfPages, PagePool, chain, closest, common_start, page_digests, root_digest


def tokens(*pages: int, rest: int = 0) -> np.ndarray:
    return np.array([p for page in pages for p in [page] * PAGE] + [7] * rest, np.int32)


def raw(ids) -> bytes:
    return np.array(ids, np.int32).tobytes()


def test_digests_are_of_full_pages_their_past_and_the_version():
    a = page_digests(0, tokens(1, 2, rest=PAGE - 1))
    assert a[0] == root_digest(0) and len(a) == 3
    assert a[1] == chain(a[0], raw(tokens(1))) and a[2] == chain(a[1], raw(tokens(2)))
    assert page_digests(0, tokens(1, 2, 3))[:3] == a
    assert page_digests(0, tokens(3, 2))[2] != a[2], "the same page after another past is another page"
    assert set(page_digests(1, tokens(1, 2))).isdisjoint(a), "and so it is under other weights"
    assert page_digests(0, tokens(rest=PAGE - 1)) == [root_digest(0)]


def test_common_start_counts_whole_tokens():
    for a, b, n in (([], [1], 0), ([1], [1], 1), ([1, 2], [1, 3], 1), ([256, 5], [257, 5], 0), ([1, 2, 3], [1, 2], 2)):
        assert common_start(raw(a), raw(b)) == common_start(raw(b), raw(a)) == n
    # Ids that differ in their last byte only: the bytes before agree, the tokens do not.
    assert common_start(raw([9, 1]), raw([9, 1 + 2**24])) == 1


ids = st.lists(st.sampled_from([0, 1, 256, 2**24, 2**24 + 1]), max_size=6)


@given(st.lists(ids, max_size=12, unique_by=tuple), ids)
def test_the_closest_entry_is_the_one_that_a_full_search_finds(stored, wanted):
    entries = sorted((raw(x), i) for i, x in enumerate(stored))
    common, page = closest(entries, raw(wanted))
    assert common == max([common_start(raw(x), raw(wanted)) for x in stored], default=0)
    assert page == -1 if common == 0 else common_start(raw(stored[page]), raw(wanted)) == common


def register(pool: PagePool, page: int, digests: list[bytes], i: int, contents) -> None:
    pool.register(page, digests[i], raw(contents), digests[i + 1] if len(contents) == PAGE else None)


def test_a_released_page_is_found_again_until_its_memory_is_needed():
    pool, digests = PagePool(3), page_digests(0, tokens(1, 2, 3))
    held = [pool.allocate() for _ in range(3)]
    for i, page in enumerate(held):
        register(pool, page, digests, i, tokens(i + 1))
    with pytest.raises(OutOfPages):
        pool.allocate()
    pool.release(held)
    assert pool.held == 0 and pool.match(digests[1:]) == held and pool.held == 3
    pool.release(held)
    pool.release([pool.allocate()])
    assert pool.match(digests[1:]) == held[:2], "the end of a sequence goes first: without its start it is lost"
    assert pool.closest(digests[2], raw([3])) == (0, -1), "in part as well"
    pool.release(held[:2])
    pool.forget()
    assert pool.match(digests[1:]) == [] and sorted(pool.free) == [0, 1, 2] and not pool.followers


def test_a_twin_page_stays_private():
    pool, digests = PagePool(2), page_digests(0, tokens(1))
    first, twin = pool.allocate(), pool.allocate()
    register(pool, first, digests, 0, tokens(1))
    register(pool, twin, digests, 0, tokens(1))
    assert pool.match(digests[1:]) == [first]
    pool.release([twin])
    assert pool.free == [twin] and pool.counts[first] == 2


def test_a_partly_filled_page_is_found_by_any_start_of_it_until_another_holds_more():
    pool, root = PagePool(4), root_digest(0)
    a, b, c = (pool.allocate() for _ in range(3))
    pool.register(a, root, raw([1, 2, 3]))
    assert pool.closest(root, raw([1, 2, 9, 9])) == (2, a)
    assert pool.closest(root, raw([2])) == (0, -1) and pool.closest(b"elsewhere", raw([1])) == (0, -1)
    pool.register(b, root, raw([1, 2]))
    pool.release([b])
    assert b in pool.free, "it holds nothing that the other lacks"
    pool.register(c, root, raw([1, 2, 3, 4]))
    assert pool.closest(root, raw([1, 2, 3, 4, 5])) == (4, c)
    pool.register(a, root, raw([1, 2, 3, 5]))
    assert pool.closest(root, raw([1, 2, 3, 5])) == (4, a), "a page that has grown is found by its growth"
    pool.release([a])
    d = pool.allocate()
    pool.register(d, root, raw([1, 2, 3, 5, 6]))
    assert a in pool.free, "and one that nobody holds makes room for one that holds more"


def test_what_was_found_counts_as_used():
    pool, root = PagePool(2), root_digest(0)
    a, b = pool.allocate(), pool.allocate()
    pool.register(a, root, raw([1, 2]))
    pool.register(b, root, raw([3, 4]))
    pool.release([a])
    pool.release([b])
    assert pool.closest(root, raw([1])) == (1, a)
    assert pool.allocate() == b


class Histories(RuleBasedStateMachine):
    """Sequences come, fork, grow and go in any order; what a page's memory holds is modelled beside the pool: of each
    cell the version and all tokens up to it."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(7)
        self.version = 0
        self.sequences: list[tuple[list[int], list[int]]] = []  # pages, tokens
        self.cells = [[None] * PAGE for _ in range(7)]

    def cell(self, sequence: list[int], at: int):
        return (self.version, tuple(sequence[: at + 1]))

    @rule(data=st.data(), more=st.lists(st.integers(0, 1), max_size=20))
    def arrive(self, data, more):
        """Like one that is there up to some token, then otherwise."""
        start = data.draw(st.sampled_from([[], *[t for _, t in self.sequences]]))
        wanted = [*start[: data.draw(st.integers(0, len(start)))], *more]
        digests = page_digests(self.version, np.array(wanted, np.int32))
        pages = self.pool.match(digests[1:])
        at = len(pages) * PAGE
        common, source = self.pool.closest(digests[len(pages)], raw(wanted[at : at + PAGE]))
        for i in range(at):
            assert self.cells[pages[i // PAGE]][i % PAGE] == self.cell(wanted, i), "a wrong page was found"
        for j in range(common):
            assert self.cells[source][j] == self.cell(wanted, at + j), "a wrong part of a page was found"
        if common:
            try:
                page = self.pool.allocate()
            except OutOfPages:
                return self.pool.release(pages)
            self.cells[page] = list(self.cells[source])
            pages = [*pages, page]
        self.sequences.append((pages, wanted[: at + common]))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=20), told=st.booleans())
    def grow(self, data, more, told):
        pages, contents = data.draw(st.sampled_from(self.sequences))
        full = len(contents) // PAGE
        for token in more:
            if len(contents) == len(pages) * PAGE:
                available = self.pool.available
                try:
                    page = self.pool.allocate()
                except OutOfPages:
                    assert available == 0
                    break
                assert all(page not in other for other, _ in self.sequences), "a held page was given away"
                pages.append(page)
            contents.append(token)
            self.cells[pages[-1]][(len(contents) - 1) % PAGE] = self.cell(contents, len(contents) - 1)
        digests = page_digests(self.version, np.array(contents, np.int32))
        for i in range(full, len(pages)):
            part = contents[i * PAGE : (i + 1) * PAGE]
            if part and (told or len(part) == PAGE):
                register(self.pool, pages[i], digests, i, part)

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
        counts = [sum(pages.count(page) for pages, _ in self.sequences) for page in range(pool.num_pages)]
        assert pool.counts == counts
        held = {page for page, count in enumerate(counts) if count}
        free, idle = set(pool.free), set(pool.idle)
        assert len(free) == len(pool.free) and not free & idle and not free & held and not idle & held
        assert free | idle | held == set(range(pool.num_pages))
        assert pool.held == len(held) and pool.available == pool.num_pages - len(held)
        assert idle <= set(pool.known) and not free & set(pool.known)
        assert {k.digest: p for p, k in pool.known.items() if k.digest} == pool.page_of
        listed = [(parent, c, p) for parent, entries in pool.followers.items() for c, p in entries]
        assert sorted((k.parent, k.contents, p) for p, k in pool.known.items()) == sorted(listed)
        assert all(entries == sorted(entries) and entries for entries in pool.followers.values())
        assert len({(parent, c) for parent, c, _ in listed}) == len(listed)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40)


def test_needs_no_torch():
    code = "import sys, mull.engine.pages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
