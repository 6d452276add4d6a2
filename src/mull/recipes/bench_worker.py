"""What a benchmark's worker process says to `mull bench`: JSON lines over a pipe of its own. Standard library only.

A worker loads and warms up one system, reports `ready`, and then runs one round for every line that it is sent. So
the systems of one comparison can take turns, each in its own process, and never run at the same time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Round = Callable[[int], dict[str, Any]]  # number of the set of prompts -> at least {"tokens": completion tokens}


class Pipe:
    """The worker's end. Whatever libraries print goes to stderr, so that it cannot get among the messages."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, **message: Any) -> None:
        print(json.dumps(message), file=self._out, flush=True)

    def wait(self) -> int | None:
        """The number of the round to run, or None when there are no more."""
        line = sys.stdin.readline()
        return int(line) if line.strip() else None


def read_work(argv: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(work, setting) of `worker WORK.json SETTING`; SETTING is JSON."""
    return json.loads(Path(argv[1]).read_text()), json.loads(argv[2])


def serve(pipe: Pipe, work: dict[str, Any], run: Round, **about: Any) -> None:
    """Warms up with the first `work["warmups"]` sets, reports, then serves rounds until there are no more."""
    trial = {}
    for number in range(work["warmups"]):
        trial = timed(run, number)
    pipe.send(ready=True, trial=trial, **about)
    while (number := pipe.wait()) is not None:
        pipe.send(**timed(run, number))


def timed(run: Round, number: int) -> dict[str, Any]:
    """One round with its wall-clock seconds, and the cores that other processes kept busy meanwhile."""
    clock = Clock()
    return {**run(number), **clock.stop()}


class Clock:
    """Wall-clock seconds, and what else ran: all busy time of the machine less this process's own."""

    def __init__(self) -> None:
        self.load = os.getloadavg()[0]
        self.busy, self.own, self.started = busy_seconds(), time.process_time(), time.perf_counter()

    def stop(self) -> dict[str, float | None]:
        seconds = time.perf_counter() - self.started
        busy, own = busy_seconds(), time.process_time() - self.own
        others = None if busy is None or self.busy is None else max(0.0, busy - self.busy - own) / seconds
        return {"seconds": seconds, "load_before": self.load, "others": others}


def busy_seconds() -> float | None:
    """Seconds of processor time that this machine has spent on anything; None where the system does not say."""
    try:
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    except (OSError, ValueError):
        return None
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def until_end(tokens: list[int], end_ids: list[int]) -> list[int]:
    """The real completion: up to and including its first end token; what follows is padding.

    >>> until_end([5, 6, 2, 0, 0], [2])
    [5, 6, 2]
    """
    for i, token in enumerate(tokens):
        if token in end_ids:
            return tokens[: i + 1]
    return tokens
