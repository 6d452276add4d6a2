"""What other processes do to a store in the tests. Nothing here imports torch, so that starting one takes little."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

from mull.store import Store
from tests.store.made import rich


def write_many(folder: str, first: int, batches: int, each: int) -> None:
    """Commits `batches` times `each` traces, some of which every writer has."""
    with Store.open(folder, shard_bytes=20_000) as store:
        for b in range(batches):
            own = [rich(first + b * each + i) for i in range(each)]
            store.add([*own, rich(b)])


def write_until_killed(folder: str, first: int, said: str, limit: int = 100_000) -> None:
    """Commits batches for ever; after each commit appends the hashes to the file `said`."""
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with Store.open(folder, shard_bytes=30_000) as store:
        for b in itertools.count():
            records = [rich(first + b * 8 + i) for i in range(8)]
            store.add(records)
            os.write(out, "".join(record.hash + "\n" for record in records).encode())
            if b * 8 > limit:
                return


def die_at(folder: str, first: int, where: str) -> None:
    """Commits one batch, and is killed at a chosen place of the second."""
    store = Store.open(folder)
    store.add([rich(first + i) for i in range(4)])
    write, fsync = os.write, os.fsync

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def half(fd: int, data: memoryview) -> int:
        write(fd, data[: len(data) // 2])
        die()
        return 0

    class Dying:
        """A connection on which the n-th insertion of a chain, or the commit, is the last thing that happens."""

        def __init__(self, db: sqlite3.Connection):
            self.db = db

        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if where == "before the commit" and sql == "COMMIT":
                die()
            got = self.db.execute(sql, *values)
            if (where == "in the transaction" and "INTO chains" in sql) or (where == "after" and sql == "COMMIT"):
                die()
            return got

        def __getattr__(self, name: str) -> object:
            return getattr(self.db, name)

    if where == "in a line":
        os.write = half  # type: ignore[assignment]
    elif where == "before the transaction":
        os.fsync = lambda fd: (fsync(fd), die())[0]
    else:
        store._db = Dying(store._db)  # type: ignore[assignment]
    store.add([rich(first + 100 + i) for i in range(4)])


def wait_then_kill(process, said: Path, rng: random.Random) -> None:
    """Waits for the writer's first commit, then for a random moment, then kills it."""
    deadline = time.monotonic() + 120
    while not (said.exists() and said.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(rng.random() * 0.15)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
