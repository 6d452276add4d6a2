"""Two cores decode better as two lanes than as one: a step's rows in as many parts as there are threads.

A decoding step is hundreds of small operations. Splitting each of them over the cores costs more in waking threads
than it saves (measured on two cores: one thread sampled 18 k tokens/s, two threads within every operation 14 k).
Splitting the rows instead leaves the threads alone for a whole forward pass. Sequences do not see each other within a
step, so the parts are independent; which row is in which part follows from the step alone, so runs stay reproducible.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import torch

from mull.engine.memory import Rows

_SMALLEST = 32  # rows below which a part is not worth a thread
_pool_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(thread_name_prefix="mull-lane")
        return _pool


class Lanes:
    """Runs the parts of a step side by side: on CPU in torch's number of threads, elsewhere in one piece."""

    def __init__(self, device: torch.device):
        self._on_cpu = device.type == "cpu"

    @property
    def count(self) -> int:
        return torch.get_num_threads() if self._on_cpu else 1

    def run(self, forward: Callable[[Rows], torch.Tensor], parts: list[Rows]) -> torch.Tensor:
        """The parts' results end to end. Within a part every operation has one thread on CPU."""
        if not self._on_cpu:
            return torch.cat([forward(part) for part in parts])
        threads = torch.get_num_threads()
        if threads > 1 and sum(len(part.slot_N) for part in parts) > 1:
            torch.set_num_threads(1)
        others = [_threads().submit(_alone, forward, part) for part in parts[1:]]
        try:
            done = [forward(parts[0])]
            done += [other.result() for other in others]
        finally:
            wait(others)  # also when a part has failed: nothing may still write to memory afterwards
            torch.set_num_threads(threads)
        return torch.cat(done) if len(done) > 1 else done[0]


def _alone(forward: Callable[[Rows], torch.Tensor], part: Rows) -> torch.Tensor:
    if torch.get_num_threads() != 1:  # a new thread starts with its own default
        torch.set_num_threads(1)
    return forward(part)


def split(rows: Rows, parts: int) -> list[Rows]:
    """`rows` in at most `parts` parts of about equal size. All rows of one slot stay together, in order."""
    n = len(rows.slot_N)
    parts = min(parts, n // _SMALLEST)
    if parts < 2:
        return [rows]
    borders = np.flatnonzero(rows.slot_N[1:] != rows.slot_N[:-1]) + 1
    cuts = {int(borders[np.abs(borders - n * i // parts).argmin()]) for i in range(1, parts)} if len(borders) else set()
    ends = [*sorted(cuts), n]
    return [
        Rows(rows.slot_N[start:end], rows.position_N[start:end], rows.table)
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
