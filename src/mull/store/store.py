"""The golden-data store: graded traces, each kept once, in append-only shards under one catalogue.

    STORE/catalogue.sqlite      what is committed, and where it lies (SQLite, WAL)
    STORE/shards/1f….jsonl      one record a line; each writer has files of its own

To commit, a writer appends its lines to its own shard and waits until they are on the disk. Then one transaction
gives all of them rows with their place and a checksum. A kill before the transaction leaves bytes that no row points
to, and nobody ever reads those; a kill after it loses nothing. Shards are never changed, so any number of processes
may write and read at once. The folder must be on a local disk: SQLite's WAL does not work over a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from mull.errors import UserError
from mull.files import disk_is_full, sync
from mull.store import catalogue
from mull.store.catalogue import ChainRow, Count, Transaction
from mull.store.records import Record, from_line, to_line
from mull.types import Question, Trace

SHARD_BYTES = 64 << 20
PATIENCE = 60.0  # seconds to wait for other writers


@dataclass(frozen=True, slots=True)
class Added:
    new: int
    equal: int  # to a trace that was there already, or to an earlier one of the same call


@dataclass
class Check:
    """What `Store.check` found."""

    traces: int = 0
    damaged: dict[str, str] = field(default_factory=dict)  # hash: a sentence
    catalogue: str = "ok"  # what SQLite's own integrity check says
    uncommitted: int = 0  # bytes in shards that no row points to: what writers were killed in, and lost races

    @property
    def sound(self) -> bool:
        return not self.damaged and self.catalogue == "ok"


@dataclass(frozen=True, slots=True)
class Worked:
    """A chain as text."""

    row: ChainRow
    question: str
    thought: str
    answer: str


class Store:
    """Open one with `Store.open`. It belongs to the process (and thread) that opened it: others open their own."""

    def __init__(self, folder: Path, db: sqlite3.Connection, shard_bytes: int):
        self.folder = folder
        self.shard_bytes = shard_bytes
        self._db = db
        self._pid = os.getpid()
        self._shard: tuple[str, int] | None = None  # name and file descriptor of the one to append to
        self._reading: dict[str, int] = {}

    @classmethod
    def open(cls, folder: Path | str, shard_bytes: int = SHARD_BYTES, patience: float = PATIENCE) -> Store:
        """The store in a folder, made where it is absent. A shard that has reached `shard_bytes` is followed by
        another. UserError where the folder cannot be one."""
        folder = Path(folder)
        with _clear(folder):
            (folder / "shards").mkdir(parents=True, exist_ok=True)
            return cls(folder, catalogue.connect(folder / "catalogue.sqlite", patience), shard_bytes)

    @classmethod
    def rebuild(cls, folder: Path | str) -> Store:
        """The store with a new catalogue, made from what its shards hold, where the old one is lost or damaged and has
        been moved away. No other process may have the store open.

        Every whole line comes back, those of an interrupted `add` and forgotten ones too; lines that are torn or do
        not hold the trace that they say are left out.
        """
        folder = Path(folder)
        if (folder / "catalogue.sqlite").exists():
            raise UserError(f"{folder} has a catalogue: move {folder / 'catalogue.sqlite'} away to make it anew")
        store = cls.open(folder)
        with store._clear():
            for path in sorted((folder / "shards").glob("*.jsonl")):
                with open(path, "rb") as f, Transaction(store._db):
                    shard, offset = catalogue.shard_id(store._db, path.name), 0
                    for line in f:
                        with contextlib.suppress(ValueError, KeyError, TypeError):
                            record = from_line(line)
                            if line.endswith(b"\n") and json.loads(line)["hash"] == record.hash:
                                catalogue.insert(store._db, record, shard, offset, len(line), _checksum(line))
                        offset += len(line)
        return store

    def close(self) -> None:
        self._leave_shard()
        for fd in self._reading.values():
            os.close(fd)
        self._reading.clear()
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Traces."""
        with self._clear():
            return self._db.execute("SELECT count(*) FROM traces").fetchone()[0]

    # ------------------------------------------------------------------------------------------------ writing

    def add(self, records: Iterable[Record]) -> Added:
        """Commits records, all of them or none. One that is equal to a trace in the store is not added again.

        When it returns, they are on the disk.
        """
        given = list(records)
        fresh: dict[str, Record] = {}
        for record in given:
            fresh.setdefault(record.hash, record)
        with self._clear():
            for old in catalogue.known(self._db, fresh):
                del fresh[old]
            todo = [(record, to_line(record)) for record in fresh.values()]
            if not todo:
                return Added(0, len(given))
            name, offset = self._append(b"".join(line for _, line in todo))
            new = 0
            with Transaction(self._db):
                shard = catalogue.shard_id(self._db, name)
                for record, line in todo:
                    new += catalogue.insert(self._db, record, shard, offset, len(line), _checksum(line))
                    offset += len(line)
        return Added(new, len(given) - new)

    def _append(self, block: bytes) -> tuple[str, int]:
        """(shard, offset) of a block that is now on the disk."""
        if self._shard and os.fstat(self._shard[1]).st_size >= self.shard_bytes:
            self._leave_shard()
        if self._shard is None:
            name = f"{uuid.uuid4().hex}.jsonl"
            path = self.folder / "shards" / name
            self._shard = name, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            sync(path.parent)
        name, fd = self._shard
        before = os.fstat(fd).st_size
        try:
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, before)  # give the space back
            self._leave_shard()  # after a failed fsync nobody knows what the file holds
            raise
        return name, before

    def _leave_shard(self) -> None:
        if self._shard is not None:
            os.close(self._shard[1])
        self._shard = None

    def forget(self, hashes: Iterable[str]) -> int:
        """Takes traces out of the catalogue; how many. Their lines stay where they are, and are not read again."""
        with self._clear(), Transaction(self._db):
            gone = 0
            for h in set(hashes):
                which = "(SELECT id FROM traces WHERE hash = ?)"
                self._db.execute(f"DELETE FROM chains WHERE trace = {which}", (h,))
                gone += self._db.execute("DELETE FROM traces WHERE hash = ?", (h,)).rowcount
        return gone

    # ------------------------------------------------------------------------------------------------ reading

    def record(self, hash: str) -> Record:
        """The whole record of a trace. UserError where there is none, or where what its shard holds is not it."""
        with self._clear():
            found = self._db.execute(
                "SELECT name, offset, length, digest FROM traces JOIN shards ON shards.id = shard WHERE hash = ?",
                (hash,),
            ).fetchone()
        if found is None:
            raise UserError(f"the store {self.folder} has no trace {hash}: Store.chains lists those that it has")
        return self._read(hash, *found)

    def trace(self, hash: str) -> Trace:
        return self.record(hash).trace

    def records(self) -> Iterator[Record]:
        """All, in the order in which they were committed."""
        with self._clear():
            hashes = [row[0] for row in self._db.execute("SELECT hash FROM traces ORDER BY id")]
        return (self.record(h) for h in hashes)

    def chains(self, where: str = "", values: Sequence[Any] = ()) -> list[ChainRow]:
        """The chains for which `where` holds: SQL over the fields of `ChainRow`, ? for each of `values`.

        >>> rows = store.chains("task = ? AND correct AND tokens < 200", ["chain"])  # doctest: +SKIP
        """
        with self._clear():
            return catalogue.chain_rows(self._db, where, values)

    def counts(self, where: str = "", values: Sequence[Any] = ()) -> dict[str, Count]:
        """Of each question that has such chains, how many were judged and how many were right."""
        with self._clear():
            return catalogue.counts(self._db, where, values)

    def questions(self) -> dict[str, Question]:
        """By id, every question that a trace was added for."""
        with self._clear():
            return catalogue.questions(self._db)

    def worked(self, rows: Iterable[ChainRow]) -> Iterator[Worked]:
        """The chains' texts, in the same order."""

        @lru_cache(maxsize=256)
        def texts(hash: str) -> tuple[str, list[str], list[str]]:
            record = self.record(hash)
            return record.trace.question.text, record.thoughts, record.trace.answers

        for row in rows:
            question, thoughts, answers = texts(row.trace)
            yield Worked(row, question, thoughts[row.leaf], answers[row.leaf])

    def _read(self, hash: str, shard: str, offset: int, length: int, check: bytes) -> Record:
        path = self.folder / "shards" / shard
        try:
            if shard not in self._reading:
                if len(self._reading) >= 64:
                    os.close(self._reading.pop(next(iter(self._reading))))
                self._reading[shard] = os.open(path, os.O_RDONLY)
            line = os.pread(self._reading[shard], length, offset)
        except OSError as e:
            raise _damaged(path, offset, f"it cannot be read: {e.strerror}") from None
        if len(line) < length:
            raise _damaged(path, offset, f"{length} bytes should be there, and {len(line)} are")
        if _checksum(line) != check:
            raise _damaged(path, offset, "what is there is not what was written")
        record = from_line(line)
        if record.hash != hash:
            raise _damaged(path, offset, "the catalogue has another trace in this place")
        return record

    def check(self) -> Check:
        """Reads everything that is committed and compares it with its checksums; never raises for what is damaged."""
        out = Check()
        with self._clear():
            out.catalogue = "; ".join(row[0] for row in self._db.execute("PRAGMA integrity_check"))
            hashes = [row[0] for row in self._db.execute("SELECT hash FROM traces ORDER BY id")]
            committed = self._db.execute("SELECT total(length) FROM traces").fetchone()[0]
        for h in hashes:
            out.traces += 1
            try:
                self.record(h)
            except UserError as e:
                out.damaged[h] = str(e)
        held = sum(p.stat().st_size for p in (self.folder / "shards").glob("*.jsonl"))
        out.uncommitted = max(0, held - int(committed))
        return out

    def _clear(self) -> contextlib.AbstractContextManager[None]:
        assert os.getpid() == self._pid, "a store belongs to the process that opened it: open it again in this one"
        return _clear(self.folder)


def _checksum(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()


def _damaged(path: Path, offset: int, what: str) -> UserError:
    return UserError(
        f"{path} is damaged at byte {offset} ({what}): put back a good copy of this file, or give what Store.check "
        "finds damaged to Store.forget and go on without it"
    )


@contextlib.contextmanager
def _clear(folder: Path) -> Iterator[None]:
    """What a user can do something about becomes one sentence."""
    try:
        yield
    except sqlite3.Error as e:
        code = getattr(e, "sqlite_errorcode", None)  # the low byte says which kind
        kind = None if code is None else code & 0xFF
        file = folder / "catalogue.sqlite"
        if kind == sqlite3.SQLITE_FULL or disk_is_full(e, folder):
            raise _full(folder) from e
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise UserError(f"{file} is held by another process that does not let go: end it, and try again") from e
        if kind in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise UserError(f"{file} is damaged ({e}): move it and {file}-wal away and call Store.rebuild") from e
        if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise UserError(f"{file} cannot be written ({e}): choose a folder that you may write to") from e
        raise
    except OSError as e:
        if disk_is_full(e, folder):
            raise _full(folder) from e
        raise UserError(f"the store {folder} cannot be made or written: {e.strerror}; choose another folder") from e


def _full(folder: Path) -> UserError:
    return UserError(
        f"the disk is full under {folder} (what was committed before is safe): free some space and add the traces again"
    )
