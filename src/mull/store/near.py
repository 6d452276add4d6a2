"""Near duplicates: MinHash with locality-sensitive hashing, and exact Jaccard to decide.

Broder, "On the resemblance and containment of documents" (1997): two sets have the same smallest element under a
random order of everything with a probability that is their Jaccard similarity. So the share of equal entries in two
signatures of N such smallest elements estimates it, with standard error sqrt(J (1 - J) / N). Banding (Leskovec,
Rajaraman, Ullman, Mining of Massive Datasets, 3.4) finds candidates without comparing all pairs: of `bands` pieces of
`rows` entries each, two texts share one with probability 1 - (1 - J^rows)^bands.

Here the signature finds candidates alone; whether one is a near duplicate is decided by the shingles themselves.
"""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b
from typing import Generic, TypeVar

import numpy as np

from mull.store.text import words

SIZE = 5  # words in a shingle
PERMUTATIONS = 128
RECALL = 0.99  # of pairs that are exactly as similar as the threshold

Key = TypeVar("Key", bound=Hashable)


def shingles(text: str, size: int = SIZE) -> np.ndarray:
    """The different runs of `size` words (`text.words`) as sorted uint64 hashes; a shorter text is one."""
    w = words(text)
    runs = {w[i : i + size] for i in range(max(1, len(w) - size + 1))}
    hashes = [blake2b("\x1f".join(run).encode("utf-8", "surrogatepass"), digest_size=8).digest() for run in runs]
    return np.sort(np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Size of the intersection over size of the union, of two results of `shingles`."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def signature(shingled: np.ndarray, permutations: int = PERMUTATIONS) -> np.ndarray:
    """The smallest hash under each of `permutations` orders, uint64. Order i is SplitMix64's finaliser (Steele et al.
    2014) of the shingle's hash xor the i-th number of a SplitMix64 stream: a bijection, so no two shingles tie."""
    seeds_N = _mixed(np.arange(1, permutations + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return _mixed(shingled ^ seeds_N[:, None]).min(axis=1)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def rows_of(threshold: float, permutations: int = PERMUTATIONS) -> int:
    """The longest bands that still find a pair of similarity `threshold` with probability `RECALL`."""
    fitting = [r for r in range(1, permutations + 1) if permutations % r == 0]
    return max(r for r in fitting if r == 1 or 1 - (1 - threshold**r) ** (permutations // r) >= RECALL)


class NearIndex(Generic[Key]):
    """Texts, by their shingles, to which others may be near. `threshold`: the Jaccard similarity of near duplicates."""

    def __init__(self, threshold: float = 0.8, permutations: int = PERMUTATIONS):
        self.threshold, self.permutations = threshold, permutations
        self.rows = rows_of(threshold, permutations)
        self._shingled: dict[Key, np.ndarray] = {}
        self._bands: dict[tuple[int, bytes], list[Key]] = {}

    def add(self, key: Key, shingled: np.ndarray) -> tuple[Key, float] | None:
        """Adds a text unless one of the index is near: then that one, the most similar, comes back with its similarity.

        So of a chain of texts, each near the one before it, the second is left out and the third may be kept.
        """
        bands = self._cut(shingled)
        found = {other: None for band in bands for other in self._bands.get(band, ())}
        similar = [(jaccard(shingled, self._shingled[other]), other) for other in found]
        if similar and (best := max(similar, key=lambda s: s[0]))[0] >= self.threshold:
            return best[1], best[0]
        self._shingled[key] = shingled
        for band in bands:
            self._bands.setdefault(band, []).append(key)
        return None

    def _cut(self, shingled: np.ndarray) -> list[tuple[int, bytes]]:
        signed = signature(shingled, self.permutations)
        return [(i, signed[i : i + self.rows].tobytes()) for i in range(0, self.permutations, self.rows)]
