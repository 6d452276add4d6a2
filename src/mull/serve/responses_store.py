"""Stored responses: what `GET /v1/responses/{id}` returns and `previous_response_id` goes on from. SQLite, no torch.

A row holds all that was said up to its response, so that a conversation can go on from any of its responses though
earlier ones were deleted or have expired. Rows belong to the API key that made them: to any other key they are absent.
Several processes may open one file, and a killed one loses nothing that it had stored. All work is done in one thread,
away from the event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mull.errors import UserError

T = TypeVar("T")
Item = dict[str, Any]

VERSION = 1  # of the tables
WAIT = 10.0  # seconds for another process to finish what it writes
_TABLES = """
CREATE TABLE IF NOT EXISTS responses (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, expires REAL NOT NULL,
    response TEXT NOT NULL, input TEXT NOT NULL, thought TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_expiry ON responses (expires);
CREATE TABLE IF NOT EXISTS items (
    id TEXT NOT NULL, response INTEGER NOT NULL REFERENCES responses ON DELETE CASCADE,
    PRIMARY KEY (id, response)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_response ON items (response);
"""


@dataclass(frozen=True)
class Stored:
    response: Item  # as it was sent, without encrypted content
    input: list[Item] = field(default_factory=list)  # the conversation before it, each item with an id
    thought: str = ""  # raw


class Store:
    """`path` None: in memory, gone with the process. Rows expire after so many `days`, and the oldest go earlier when
    all together take more than `most_bytes`."""

    def __init__(self, path: Path | None, days: float, most_bytes: int):
        self.path, self.seconds, self.most_bytes = path, 86400 * days, most_bytes
        self._thread, self._closed = ThreadPoolExecutor(1, "mull-store"), False
        try:
            self._db = self._thread.submit(self._opened).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def put(self, stored: Stored, owner: str) -> None:
        """sqlite3.Error where it cannot be stored, for example on a full disk."""
        await self._do(lambda: self._put(stored, owner))

    async def get(self, id: str, owner: str) -> Stored | None:
        return await self._do(lambda: self._get(id, owner))

    async def delete(self, id: str, owner: str) -> bool:
        """Whether there was one. Its text is overwritten in the file."""
        return await self._do(lambda: self._delete(id, owner))

    async def items(self, ids: set[str], owner: str) -> dict[str, Item]:
        """By id, those that any stored response was made from or came to."""
        return await self._do(lambda: self._items(ids, owner))

    def close(self) -> None:
        """May be called again."""
        if not self._closed:
            self._closed = True
            self._thread.submit(self._db.close).result()
            self._thread.shutdown()

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # ------------------------------------------------------------------------------- inside, in the one thread

    def _opened(self) -> sqlite3.Connection:
        try:
            if self.path:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's other files get the same mode
            db = sqlite3.connect(self.path or ":memory:", timeout=WAIT, isolation_level=None)
            found = _patiently(lambda: self._prepared(db))
        except (sqlite3.Error, OSError) as e:
            raise UserError(f"responses cannot be stored in {self.path} ({e}): name another file as store") from None
        if found not in (0, VERSION):
            db.close()
            raise UserError(f"{self.path} was made by another version of mull: name another file as store")
        return db

    def _prepared(self, db: sqlite3.Connection) -> int:
        """The version of the tables that were found; 0: none, and they were made."""
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing, a power cut at most the last moments
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON")
        [found] = db.execute("PRAGMA user_version").fetchone()
        if found == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT")
        return found

    def _put(self, stored: Stored, owner: str) -> None:
        now, response = time.time(), stored.response
        row = (response["id"], owner, now + self.seconds, _json(response), _json(stored.input), stored.thought)
        with _Transaction(self._db) as db:
            number = db.execute(
                "INSERT INTO responses (id, owner, expires, response, input, thought) VALUES (?, ?, ?, ?, ?, ?)", row
            ).lastrowid
            ids = {item["id"] for item in (*stored.input, *response["output"])}
            db.executemany("INSERT INTO items VALUES (?, ?)", [(id, number) for id in ids])
            db.execute("DELETE FROM responses WHERE expires <= ?", (now,))
            while self._bytes() > self.most_bytes:
                oldest = "SELECT number FROM responses WHERE number != ? ORDER BY number LIMIT 16"
                if not db.execute(f"DELETE FROM responses WHERE number IN ({oldest})", (number,)).rowcount:
                    break

    def _get(self, id: str, owner: str) -> Stored | None:
        row = self._db.execute(
            "SELECT response, input, thought FROM responses WHERE id = ? AND owner = ? AND expires > ?",
            (id, owner, time.time()),
        ).fetchone()
        return None if row is None else Stored(json.loads(row[0]), json.loads(row[1]), row[2])

    def _delete(self, id: str, owner: str) -> bool:
        now = time.time()
        with _Transaction(self._db) as db:
            cursor = db.execute("DELETE FROM responses WHERE id = ? AND owner = ? AND expires > ?", (id, owner, now))
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log, too, still has the text
        return cursor.rowcount > 0

    def _items(self, ids: set[str], owner: str) -> dict[str, Item]:
        found: dict[str, Item] = {}
        for id in ids:
            row = self._db.execute(
                "SELECT r.response, r.input FROM items i JOIN responses r ON r.number = i.response "
                "WHERE i.id = ? AND r.owner = ? AND r.expires > ? LIMIT 1",
                (id, owner, time.time()),
            ).fetchone()
            if row is not None:
                found[id] = next(i for i in [*json.loads(row[0])["output"], *json.loads(row[1])] if i["id"] == id)
        return found

    def _bytes(self) -> int:
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size


class _Transaction:
    """Takes the lock at its beginning: one that reads first and writes then could be refused in the middle."""

    def __init__(self, db: sqlite3.Connection):
        self.db = db

    def __enter__(self) -> sqlite3.Connection:
        self.db.execute("BEGIN IMMEDIATE")
        return self.db

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self.db.execute("COMMIT")
        finally:
            if self.db.in_transaction:  # SQLite ends it itself when the disk is full
                self.db.execute("ROLLBACK")


def _patiently(work: Callable[[], T]) -> T:
    """Processes that open a new file at once get in each other's way, also where SQLite does not wait by itself."""
    end = time.monotonic() + WAIT
    while True:
        try:
            return work()
        except sqlite3.OperationalError as e:
            if "locked" not in str(e) or time.monotonic() > end:
                raise
            time.sleep(0.02)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
