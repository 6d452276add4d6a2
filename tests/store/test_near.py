"""MinHash estimates Jaccard, the bands find what they must, and shingles decide."""

import random

import numpy as np
import pytest

from mull.store.near import NearIndex, jaccard, rows_of, shingles, signature
from mull.store.text import words


def sets_of(similarity: float, size: int, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of `size` hashes whose Jaccard similarity is `similarity`, about."""
    both = round(2 * size * similarity / (1 + similarity))
    pool = rng.sample(range(1 << 62), 2 * size - both)
    a, b = pool[:size], pool[size - both :]
    return tuple(np.sort(np.array(x, np.uint64)) for x in (a, b))  # type: ignore[return-value]


def test_jaccard_by_hand():
    a, b = shingles("one two three four", 2), shingles("two three four five", 2)
    assert len(a) == 3 and jaccard(a, b) == 2 / 4  # "two three" and "three four" of four different pairs
    assert jaccard(a, a) == 1 and jaccard(a, shingles("six seven", 2)) == 0
    assert len(shingles("one two", 5)) == 1 and jaccard(shingles(""), shingles("...")) == 0
    assert jaccard(shingles("One,  two!"), shingles("one\ntwo")) == 1
    assert np.array_equal(a, np.unique(a))


@pytest.mark.parametrize("similarity", [0.1, 0.5, 0.8, 0.95])
def test_minhash_estimates_jaccard(similarity: float):
    """The share of equal entries has Jaccard's value as its mean and the binomial's spread: no bias, no correlation
    between the orders that would make 128 of them worth less."""
    rng = random.Random(7)
    errors, exact = [], []
    for _ in range(100):
        a, b = sets_of(similarity, 60, rng)
        exact.append(jaccard(a, b))
        errors.append(np.mean(signature(a) == signature(b)) - exact[-1])
    se = np.sqrt(np.mean(exact) * (1 - np.mean(exact)) / 128)
    assert abs(np.mean(exact) - similarity) < 0.02
    assert abs(np.mean(errors)) < 4 * se / np.sqrt(100)
    assert 0.75 < np.std(errors) / se < 1.25


def test_bands_find_pairs_at_the_threshold():
    assert rows_of(0.8) == 4 and rows_of(0.5) == 2 and rows_of(0.01) == 1
    rng, missed = random.Random(1), 0
    for i in range(150):
        a, b = sets_of(0.82, 100, rng)
        index: NearIndex[int] = NearIndex(0.8)
        index.add(i, a)
        missed += index.add(-1, b) is None
    assert missed <= 4


def test_the_nearest_is_exact_and_below_the_threshold_is_none():
    rng = random.Random(2)
    text = [str(rng.randrange(10_000)) for _ in range(100)]
    other = [*text[:89], *("x" * (i + 1) for i in range(11))]
    index: NearIndex[str] = NearIndex(0.8)
    assert index.add("text", shingles(" ".join(text))) is None
    assert index.add("other", shingles(" ".join(other))) is None  # 85 of 107 shingles: not near enough
    assert index.add("far", shingles(" ".join([*text[:50], *map(str, range(50))]))) is None
    between = shingles(" ".join([*text[:95], *other[95:]]))  # 91 of 101 with the text, 86 of 106 with the other
    assert index.add("between", between) == ("text", 91 / 101)
    assert index.add("again", between) == ("text", 91 / 101)  # what was near was not added
    assert NearIndex(0.9).add("alone", between) is None


def test_words_keep_what_changes_the_meaning():
    assert words("3+4") != words("3*4") and words("(3+4)*2") != words("3+(4*2)") and words("3.5") != words("35")
    assert words("It costs $1,000. Why?") == words("it costs 1000 why") == ("it", "costs", "1000", "why")
    assert words("#.#\n..#") == ("#", ".", "#", ".", ".", "#")
    assert words("1,2") == ("1", "2") and words("ＡＢ１") == ("ab", "1")
