"""Stored responses: kept, owned, expiring, bounded; through kills, several processes, and files that are none."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from mull.errors import UserError
from mull.serve import responses_store
from mull.serve.responses_store import Store, Stored

MB = 1 << 20


def stored(id: str, text: str = "hi", thought: str = "hm") -> Stored:
    output = [{"id": f"msg_{id}", "type": "message", "text": text}]
    return Stored({"id": id, "output": output}, [{"id": f"in_{id}", "text": "what?"}], thought)


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path):
    made = Store(tmp_path / "s.db" if request.param == "file" else None, 30, 256 * MB)
    yield made
    made.close()


def run(work):
    return asyncio.run(work)


def test_what_was_stored_comes_back(store):
    odd = Stored(
        {"id": "resp_1", "output": [{"id": "m", "t": "\ud800 \0 \u2028 ü"}]},
        [{"id": "i", "n": [1, None, True]}],
        "a\0b",
    )
    run(store.put(odd, "me"))
    assert run(store.get("resp_1", "me")) == odd
    assert run(store.get("resp_2", "me")) is None


def test_another_key_sees_nothing(store):
    run(store.put(stored("a"), "me"))
    for other in ("", "you", "ME"):
        assert run(store.get("a", other)) is None
        assert run(store.delete("a", other)) is False
        assert run(store.items({"msg_a", "in_a"}, other)) == {}
    assert run(store.get("a", "me")) == stored("a")


def test_what_is_deleted_is_gone(store):
    run(store.put(stored("a"), ""))
    run(store.put(stored("b"), ""))
    assert run(store.delete("a", "")) is True and run(store.delete("a", "")) is False
    assert run(store.get("a", "")) is None and run(store.items({"msg_a"}, "")) == {}
    assert run(store.get("b", "")) == stored("b")


def test_items_are_found_by_their_ids(store):
    run(store.put(stored("a"), ""))
    again = stored("b")
    again.input.append(stored("a").input[0])  # a conversation's items are in every response of it
    run(store.put(again, ""))
    assert run(store.items({"msg_a", "in_b", "in_a", "nobody"}, "")) == {
        "msg_a": stored("a").response["output"][0],
        "in_b": stored("b").input[0],
        "in_a": stored("a").input[0],
    }
    run(store.delete("a", ""))
    assert set(run(store.items({"msg_a", "in_a"}, ""))) == {"in_a"}


def test_responses_expire(store, monkeypatch):
    run(store.put(stored("a"), ""))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 29.9 * 86400)
    assert run(store.get("a", "")) is not None
    monkeypatch.setattr(time, "time", lambda: now + 30.1 * 86400)
    assert run(store.get("a", "")) is None and run(store.items({"msg_a"}, "")) == {}
    assert run(store.delete("a", "")) is False
    assert count(store) == 1
    run(store.put(stored("b"), ""))  # sweeps
    assert count(store) == 1 and run(store.get("b", "")) is not None


def test_days_say_when(tmp_path):
    for days in (1, 0.000001):
        store = Store(None, days, MB)
        run(store.put(stored("a"), ""))
        time.sleep(0.1)
        assert (run(store.get("a", "")) is not None) == (days == 1)
        store.close()


def count(store: Store) -> int:
    return store._thread.submit(lambda: store._db.execute("SELECT count(*) FROM responses").fetchone()[0]).result()


def test_the_oldest_make_room(store):
    store.most_bytes = MB

    async def fill():
        for n in range(300):
            await store.put(stored(f"r{n}", "x" * 10_000), "")

    run(fill())
    kept = [n for n in range(300) if run(store.get(f"r{n}", "")) is not None]
    assert kept == list(range(kept[0], 300)) and 50 < len(kept) <= 100
    run(store.put(stored("big", "x" * 2 * MB), ""))  # larger than all that may be: it is the only one
    assert run(store.get("big", "")) is not None and count(store) == 1


def test_a_file_that_stays_small_does_not_grow_without_end(tmp_path):
    store = Store(tmp_path / "s.db", 30, MB)

    async def fill():
        for n in range(600):
            await store.put(stored(f"r{n}", "x" * 10_000), "")

    run(fill())
    store.close()
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 2 * MB


def test_a_file_outlives_the_process_and_memory_does_not(tmp_path):
    for path, there in ((tmp_path / "s.db", True), (None, False)):
        store = Store(path, 30, MB)
        run(store.put(stored("a"), ""))
        store.close()
        store = Store(path, 30, MB)
        assert (run(store.get("a", "")) == stored("a")) is there
        store.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from mull.serve.responses_store import Store, Stored
async def main():
    store = Store(Path(sys.argv[1]), 30, 1 << 28)
    for n in range(int(sys.argv[3])):
        id = f"{sys.argv[2]}{n}"
        await store.put(Stored({"id": id, "output": []}, [], "x" * 3000), "")
        print(id, flush=True)
asyncio.run(main())
"""


def writer(path, name: str, times: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(times)], stdout=subprocess.PIPE, text=True
    )


def test_a_kill_loses_nothing_that_was_stored(tmp_path):
    process = writer(tmp_path / "s.db", "r", 1_000_000)
    assert process.stdout is not None
    seen = [process.stdout.readline().strip() for _ in range(200)]
    os.kill(process.pid, signal.SIGKILL)
    seen += process.communicate()[0].split("\n")[:-1]
    store = Store(tmp_path / "s.db", 30, 256 * MB)
    assert len(seen) >= 200 and all(run(store.get(id, "")) is not None for id in seen)
    [ok] = store._thread.submit(lambda: store._db.execute("PRAGMA integrity_check").fetchone()).result()
    assert ok == "ok"
    store.close()


def test_several_processes_write_to_one_new_file(tmp_path):
    writers = [writer(tmp_path / "s.db", name, 60) for name in "abcd"]
    seen = [id for w in writers for id in w.communicate(timeout=200)[0].split()]
    assert len(seen) == 240 and all(w.returncode == 0 for w in writers)
    store = Store(tmp_path / "s.db", 30, 256 * MB)
    assert count(store) == 240
    store.close()


def test_nobody_else_may_read_the_file_and_deleted_text_is_not_in_it(tmp_path):
    store = Store(tmp_path / "s.db", 30, MB)
    run(store.put(stored("a", "a very private word"), ""))
    run(store.put(stored("b", "another word"), ""))
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}
    assert b"very private" in b"".join(p.read_bytes() for p in tmp_path.iterdir())
    run(store.delete("a", ""))
    left = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert b"very private" not in left and b"another word" in left
    store.close()


def test_a_file_that_cannot_be_used_is_said(tmp_path):
    path = tmp_path / "s.db"
    path.write_bytes(b"this is no database\n" * 100)
    with pytest.raises(UserError, match=r"s\.db .*not a database"):
        Store(path, 30, MB)
    assert path.read_bytes().startswith(b"this is no database")
    for bad in (tmp_path, tmp_path / "no" / "folder.db"):
        with pytest.raises(UserError, match="cannot be stored"):
            Store(bad, 30, MB)
    db = sqlite3.connect(tmp_path / "later.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UserError, match="another version"):
        Store(tmp_path / "later.db", 30, MB)


def test_what_fails_half_way_changes_nothing(store):
    run(store.put(stored("a"), ""))
    with pytest.raises(sqlite3.IntegrityError):
        run(store.put(stored("a", "other"), ""))
    assert run(store.get("a", "")) == stored("a")
    store._thread.submit(lambda: store._db.execute("PRAGMA max_page_count = 30")).result()
    with pytest.raises(sqlite3.Error):
        run(store.put(stored("big", "x" * MB), ""))
    assert run(store.get("big", "")) is None and run(store.get("a", "")) == stored("a")
    store._thread.submit(lambda: store._db.execute("PRAGMA max_page_count = 100000")).result()
    run(store.put(stored("c"), ""))
    assert run(store.get("c", "")) == stored("c")


def test_the_event_loop_goes_on_while_another_process_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(responses_store, "WAIT", 5.0)
    store = Store(tmp_path / "s.db", 30, MB)
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def scene() -> int:
        put = asyncio.ensure_future(store.put(stored("a"), ""))
        ticks = 0
        while ticks < 20:
            await asyncio.sleep(0.01)
            ticks += 1
        assert not put.done()
        other.execute("COMMIT")
        await put
        return ticks

    assert run(scene()) == 20 and run(store.get("a", "")) is not None
    other.close()
    store.close()
