"""The catalogue: which traces are committed, where they lie, and a row for each of their chains. SQLite in WAL mode.

A trace without a row here was never committed, whatever lies in a shard. Curation is SQL over the view `chain`, whose
columns are the fields of `ChainRow`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mull.errors import UserError
from mull.store.records import Record, is_right
from mull.store.text import digest, squeezed
from mull.types import Question, SpanKind

VERSION = 1  # of the tables

_TABLES = """
CREATE TABLE shards (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE questions (id TEXT PRIMARY KEY, task TEXT NOT NULL, text TEXT NOT NULL, level INTEGER NOT NULL);
CREATE TABLE traces (
  id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE,
  shard INTEGER NOT NULL REFERENCES shards, offset INTEGER NOT NULL, length INTEGER NOT NULL, digest BLOB NOT NULL,
  question TEXT NOT NULL REFERENCES questions, split TEXT NOT NULL, strategy TEXT NOT NULL,
  policy TEXT NOT NULL, weights TEXT NOT NULL, version INTEGER NOT NULL, run TEXT NOT NULL,
  correct INTEGER, exhausted INTEGER NOT NULL, lost INTEGER NOT NULL,
  sampled_tokens INTEGER NOT NULL, flops REAL NOT NULL, seconds REAL NOT NULL
);
CREATE INDEX traces_of_question ON traces (question);
CREATE TABLE chains (
  trace INTEGER NOT NULL REFERENCES traces, leaf INTEGER NOT NULL, correct INTEGER, steps INTEGER,
  tokens INTEGER NOT NULL, forced INTEGER NOT NULL, again INTEGER NOT NULL, stop TEXT NOT NULL, text TEXT NOT NULL,
  PRIMARY KEY (trace, leaf)
) WITHOUT ROWID;
CREATE VIEW chain AS SELECT
  traces.hash AS trace, leaf, question, task, level, split, chains.correct AS correct, steps, tokens, forced, again,
  stop, strategy, policy, weights, version, run, chains.text AS text, traces.id AS number
FROM chains JOIN traces ON traces.id = chains.trace JOIN questions ON questions.id = traces.question;
"""


@dataclass(frozen=True, slots=True)
class ChainRow:
    """One chain of one trace: enough to choose by."""

    trace: str  # the trace's hash
    leaf: int  # its place among the trace's leaves
    question: str
    task: str
    level: int
    split: str  # that the question was drawn from; "" where nobody said
    correct: bool | None  # None: could not be judged
    steps: bool | None  # all steps that make a claim are true; None: none does, or nobody judged them
    tokens: int  # sampled, on the path to the leaf
    forced: bool  # some of its tokens were put there by the strategy
    again: bool  # it answers a later turn of a conversation, not the question as first put
    stop: str  # why its last span ended, "" where it was forced
    strategy: str
    policy: str
    weights: str
    version: int
    run: str
    text: str  # equal for chains of equal text, but for white space


@dataclass(frozen=True, slots=True)
class Count:
    """How a question fared: chains that were judged, and those of them that were right."""

    right: int
    judged: int


def connect(path: Path, patience: float) -> sqlite3.Connection:
    """The catalogue, made where it is absent. Other processes that hold it are waited for, `patience` seconds."""
    db = sqlite3.connect(path, timeout=patience, isolation_level=None)
    try:
        deadline = time.monotonic() + patience
        while True:  # turning WAL on does not wait by itself
            try:
                db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as e:
                if "locked" not in str(e) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        db.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, too
        if not _version(db):
            with Transaction(db):
                if not _version(db):  # nobody else made the tables while this process waited
                    for statement in _TABLES.split(";\n"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {VERSION}")
        if (found := _version(db)) != VERSION:
            raise UserError(
                f"{path} is a catalogue of format {found}, and this version of mull reads {VERSION}: use the version "
                "that wrote it, or another folder"
            )
    except BaseException:
        db.close()
        raise
    return db


def _version(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


class Transaction:
    """All of it or nothing. It takes the write lock at once, so that nothing read inside can be stale."""

    def __init__(self, db: sqlite3.Connection):
        self.db = db

    def __enter__(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            if kind is None:
                self.db.execute("COMMIT")
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")


def shard_id(db: sqlite3.Connection, name: str) -> int:
    db.execute("INSERT OR IGNORE INTO shards (name) VALUES (?)", (name,))
    return db.execute("SELECT id FROM shards WHERE name = ?", (name,)).fetchone()[0]


def insert(db: sqlite3.Connection, record: Record, shard: int, offset: int, length: int, check: bytes) -> bool:
    """Adds a trace and its chains; False, and nothing added, where an equal trace is there already."""
    trace, made, q = record.trace, record.made, record.trace.question
    db.execute("INSERT OR IGNORE INTO questions VALUES (?, ?, ?, ?)", (q.id, q.task, _utf8(q.text), q.level))
    got = db.execute(
        "INSERT OR IGNORE INTO traces VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(record.hash, shard, offset, length, check, q.id, made.split, trace.strategy),
            *(made.policy, made.weights, made.version, made.run),
            *(trace.verdict and trace.verdict.correct, trace.exhausted, len(trace.lost)),
            *(trace.cost.sampled_tokens, trace.cost.flops, trace.cost.seconds),
        ),
    )
    if not got.rowcount:
        return False
    for i, leaf in enumerate(trace.leaves):
        path = trace.path(leaf)
        root, last = leaf, path[-1]
        while trace.spans[root].parent >= 0:
            root = trace.spans[root].parent
        correct, steps = is_right(record, i)
        db.execute(
            "INSERT INTO chains VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(got.lastrowid, i, correct, steps),
                sum(len(span.tokens) for span in path if span.kind is SpanKind.SAMPLED),
                any(span.kind is SpanKind.FORCED for span in path),
                root != 0,
                last.stop.value if last.stop else "",
                digest(squeezed(record.thoughts[i]), squeezed(trace.answers[i])),
            ),
        )
    return True


def known(db: sqlite3.Connection, hashes: Iterable[str]) -> set[str]:
    """Those that are committed."""
    found = (db.execute("SELECT hash FROM traces WHERE hash = ?", (h,)).fetchone() for h in hashes)
    return {row[0] for row in found if row}


_COLUMNS = [f.name for f in fields(ChainRow)]
_BOOLS = [i for i, f in enumerate(fields(ChainRow)) if "bool" in str(f.type)]


def chain_rows(db: sqlite3.Connection, where: str, values: Sequence[Any]) -> list[ChainRow]:
    rows = []
    for row in select(db, f"SELECT {', '.join(_COLUMNS)}", where, "ORDER BY number, leaf", values):
        got = list(row)
        for i in _BOOLS:
            got[i] = None if got[i] is None else bool(got[i])
        rows.append(ChainRow(*got))
    return rows


def counts(db: sqlite3.Connection, where: str, values: Sequence[Any]) -> dict[str, Count]:
    found = select(
        db, "SELECT question, total(correct), count(correct)", where, "GROUP BY question ORDER BY question", values
    )
    return {question: Count(int(right), judged) for question, right, judged in found}


def questions(db: sqlite3.Connection) -> dict[str, Question]:
    found = db.execute("SELECT id, task, text, level FROM questions ORDER BY id")
    return {row[0]: Question(*row) for row in found}


def select(db: sqlite3.Connection, what: str, where: str, rest: str, values: Sequence[Any]) -> list[tuple]:
    """`where` is an SQL expression over the columns of the view `chain`, with ? for each of `values`."""
    try:
        return db.execute(f"{what} FROM chain WHERE ({where or '1'}\n) {rest}", tuple(values)).fetchall()
    except (sqlite3.OperationalError, sqlite3.ProgrammingError) as e:
        if getattr(e, "sqlite_errorcode", sqlite3.SQLITE_ERROR) != sqlite3.SQLITE_ERROR:
            raise  # not the expression's fault
        raise UserError(
            f"the chains cannot be chosen by {where!r} ({e}): write an SQL condition over the columns "
            f"{', '.join(_COLUMNS)}"
        ) from None


def _utf8(text: str) -> str:
    """SQLite refuses lone surrogates; the shard keeps the text as it was."""
    return text.encode("utf-8", "replace").decode()
