"""The store keeps what was committed, once, whatever happens to those who write to it."""

import errno
import multiprocessing
import os
import random
import sqlite3

import pytest

from mull.errors import UserError
from mull.store import Count, Store
from mull.store.store import Added
from tests.store import writers
from tests.store.made import chain, rich, same

SPAWN = multiprocessing.get_context("spawn")


def assert_whole(folder) -> None:
    with Store.open(folder) as store:
        found = store.check()
        assert found.sound and found.traces == len(store), found


def test_what_was_added_comes_back_whole(tmp_path):
    records = [rich(i) for i in range(10)]
    with Store.open(tmp_path) as store:
        assert store.add(records) == Added(10, 0)
        assert all(same(store.record(r.hash), r) for r in records)
    with Store.open(tmp_path) as store:
        assert all(same(a, b) for a, b in zip(store.records(), records, strict=True))
        assert same(store.trace(records[4].hash), records[4].trace)
        assert store.questions()["q/1/3"].level == 1
    assert_whole(tmp_path)


def test_an_equal_trace_is_stored_once(tmp_path):
    dearer = rich(1)
    dearer.trace.cost = dearer.trace.cost + dearer.trace.cost
    with Store.open(tmp_path) as store:
        assert store.add([rich(0), rich(1), dearer, rich(0)]) == Added(2, 2)
        assert store.add([dearer, rich(2)]) == Added(1, 1)
        assert store.add([]) == Added(0, 0)
        assert store.record(dearer.hash).trace.cost == rich(1).trace.cost
        assert len(store) == 3 and store.check().uncommitted == 0


def test_add_is_all_or_nothing(tmp_path):
    with Store.open(tmp_path) as store:
        bad = rich(1)
        bad.trace.spans[1].tokens = ("no", "tokens")  # type: ignore[assignment]
        with pytest.raises(ValueError):
            store.add([rich(0), bad])
        assert len(store) == 0
        assert store.add([rich(0)]) == Added(1, 0)


def test_shards_roll_over_and_writers_have_their_own(tmp_path):
    with Store.open(tmp_path, shard_bytes=5000) as a, Store.open(tmp_path, shard_bytes=5000) as b:
        for i in range(0, 40, 2):
            a.add([rich(i)])
            b.add([rich(i + 1)])
        sizes = [p.stat().st_size for p in (tmp_path / "shards").iterdir()]
        assert len(sizes) > 2 and max(sizes) < 5000 + 3000
        assert len(a) == len(b) == 40
    assert_whole(tmp_path)


def test_a_row_for_each_chain(tmp_path):
    record = rich(5)
    with Store.open(tmp_path) as store:
        store.add([record])
        first, second = store.chains()
    made = record.made
    assert (first.trace, first.leaf, first.question, first.task, first.level) == (record.hash, 0, "q/1/5", "q", 1)
    assert (first.correct, first.steps, first.forced, first.again, first.stop) == (True, False, True, False, "")
    assert first.tokens == len(record.trace.spans[1].tokens)
    assert (second.correct, second.steps, second.forced, second.stop, second.tokens) == (None, None, False, "length", 2)
    assert (second.strategy, second.policy, second.weights) == ("beam", made.policy, made.weights)
    assert (second.version, second.run, second.split) == (3, "runs/one", "train")


def test_a_chain_of_a_later_turn_is_marked(tmp_path):
    record = rich(5)
    record.trace.spans[4].parent = -1
    with Store.open(tmp_path) as store:
        store.add([record])
        assert [row.again for row in store.chains()] == [False, True]


def test_curation_is_sql(tmp_path):
    with Store.open(tmp_path) as store:
        store.add(
            [
                chain("a", "x=1", correct=True, steps=True),
                chain("a", "x = 1  \n", correct=True),
                chain("a", "x=2", correct=False, steps=False),
                chain("b", "y", correct=None),
                chain("b", "yy", correct=False, split="test"),
            ]
        )
        assert [r.question for r in store.chains("correct AND steps IS NOT 0")] == ["a", "a"]
        assert [r.tokens for r in store.chains("question = ? AND tokens > ?", ["b", 3])] == [4]
        assert [r.question for r in store.chains("split = 'test' OR correct IS NULL")] == ["b", "b"]
        assert store.counts() == {"a": Count(2, 3), "b": Count(0, 1)}
        assert store.counts("split = ?", ["test"]) == {"b": Count(0, 1)}
        rows = store.chains("question = 'a' AND correct")
        assert [w.thought for w in store.worked(reversed(rows))] == ["x = 1  \n", "x=1"]
        assert len({row.text for row in rows}) == 2  # "x = 1" and "x=1" differ by more than runs of white space
        for where, values in (("tokns > 3", []), ("correct = ?", []), ("1) --", []), ("1; DROP TABLE chains", [])):
            with pytest.raises(UserError, match=r"SQL condition over the columns trace, leaf"):
                store.chains(where, values)


def test_what_is_not_there_is_said(tmp_path):
    with Store.open(tmp_path) as store, pytest.raises(UserError, match="has no trace 00"):
        store.trace("00")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        Store.open(tmp_path / "file" / "store")


# ------------------------------------------------------------------------------------------- many processes


def test_two_processes_write_at_once(tmp_path):
    processes = [SPAWN.Process(target=writers.write_many, args=(str(tmp_path), 1000 * i, 12, 6)) for i in (1, 2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    assert [p.exitcode for p in processes] == [0, 0]
    wanted = {rich(1000 * i + j).hash for i in (1, 2) for j in range(72)} | {rich(b).hash for b in range(12)}
    with Store.open(tmp_path) as store:
        assert {r.hash for r in store.records()} == wanted
        assert len(store.chains()) == 2 * len(wanted)
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    "where", ["in a line", "before the transaction", "in the transaction", "before the commit", "after"]
)
def test_killed_at_the_worst_moments(tmp_path, where: str):
    process = SPAWN.Process(target=writers.die_at, args=(str(tmp_path), 0, where))
    process.start()
    process.join()
    assert process.exitcode == -9
    first, second = [rich(i) for i in range(4)], [rich(100 + i) for i in range(4)]
    with Store.open(tmp_path, patience=5) as store:
        assert len(store) == (8 if where == "after" else 4)
        found = store.check()
        assert found.sound and (found.uncommitted > 0) == (where != "after")
        assert all(same(store.record(r.hash), r) for r in first)
        assert store.add(second) == (Added(0, 4) if where == "after" else Added(4, 0))
        assert all(same(store.record(r.hash), r) for r in second)
    assert_whole(tmp_path)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    """Two writers, one killed at random moments and replaced: nothing that was said to be committed is lost."""
    rng, told = random.Random(0), tmp_path / "said"
    told.mkdir()
    folder = str(tmp_path / "store")
    steady = SPAWN.Process(target=writers.write_until_killed, args=(folder, 10_000_000, str(told / "steady")))
    steady.start()
    for i in range(10):
        said = told / str(i)
        process = SPAWN.Process(target=writers.write_until_killed, args=(folder, 100_000 * i, str(said)))
        process.start()
        writers.wait_then_kill(process, said, rng)
        with Store.open(folder) as store:
            assert store._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert store.add([chain(f"after {i}", "x")]) == Added(1, 0)
    writers.wait_then_kill(steady, told / "steady", rng)
    claimed = {h for file in told.iterdir() for h in file.read_text().split("\n")[:-1]}
    with Store.open(folder) as store:
        assert claimed <= {row.trace for row in store.chains()} and len(claimed) > 80
        assert len(store.chains("text <> ''")) == 2 * (len(store) - 10) + 10
    assert_whole(folder)


def test_another_process_that_holds_the_catalogue(tmp_path):
    with Store.open(tmp_path, patience=0.1) as store:
        other = sqlite3.connect(tmp_path / "catalogue.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="held by another process"):
            store.add([rich(0)])
        other.execute("ROLLBACK")
        other.close()
        assert store.add([rich(0)]) == Added(1, 0)
    assert_whole(tmp_path)


# ------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("how", ["torn", "altered", "gone"])
def test_damage_to_a_shard_is_noticed(tmp_path, how: str):
    with Store.open(tmp_path) as store:
        store.add([rich(0), rich(1)])
    [shard] = (tmp_path / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    line = data.index(b"\n") + 1
    if how == "gone":
        shard.unlink()
    elif how == "torn":
        shard.write_bytes(data[:-10])
    else:  # a right verdict into a wrong one: still JSON, and the same content hash
        at = data.index(b"[[true,", line)
        data[at : at + 7] = b"[[null,"
        shard.write_bytes(data)
    with Store.open(tmp_path) as store:
        with pytest.raises(UserError, match=rf"{shard.name} is damaged at byte {line}.*good copy.*Store.forget"):
            store.record(rich(1).hash)
        found = store.check()
        assert not found.sound and found.traces == 2
        assert set(found.damaged) == ({rich(0).hash, rich(1).hash} if how == "gone" else {rich(1).hash})
        assert store.forget(found.damaged) == len(found.damaged)
        assert store.check().sound and len(store.chains()) == 2 * len(store)
        store.add([rich(1)])
        assert same(store.record(rich(1).hash), rich(1))


def test_a_lost_catalogue_is_made_anew_from_the_shards(tmp_path):
    records = [rich(i) for i in range(6)]
    with Store.open(tmp_path) as store:
        store.add(records[:3])
        store.add(records[3:])
        before = store.chains()
    [shard] = (tmp_path / "shards").iterdir()
    with pytest.raises(UserError, match=r"move .*sqlite away"):
        Store.rebuild(tmp_path)
    (tmp_path / "catalogue.sqlite").write_bytes(b"no catalogue" * 1000)
    with pytest.raises(UserError, match=r"damaged.*Store.rebuild"):
        Store.open(tmp_path)
    (tmp_path / "catalogue.sqlite").unlink()
    lines = shard.read_bytes().splitlines(keepends=True)
    other = lines[1].replace(b'"tokens":[1,', b'"tokens":[7,')  # its own hash no longer fits
    shard.write_bytes(lines[0] + other + b"".join(lines[2:]) + lines[1][:50])
    with Store.rebuild(tmp_path) as store:
        assert [r for r in before if r.trace != records[1].hash] == store.chains()
        assert store.add(records) == Added(1, 5)
    assert_whole(tmp_path)


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    with Store.open(tmp_path) as store:
        store.add([rich(0)])
        size = sum(p.stat().st_size for p in (tmp_path / "shards").iterdir())
        real = os.write

        def full(fd: int, data: memoryview) -> int:
            if len(data) < 3000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(fd, data[:100])

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(UserError, match=r"the disk is full under .* free some space"):
            store.add([rich(i) for i in range(1, 10)])
        monkeypatch.undo()
        assert sum(p.stat().st_size for p in (tmp_path / "shards").iterdir()) == size
        assert store.add([rich(1)]) == Added(1, 0)
    assert_whole(tmp_path)


def test_a_catalogue_that_may_not_grow_is_one_sentence(tmp_path):
    with Store.open(tmp_path) as store:
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(UserError, match="the disk is full"):
            for i in range(1000):
                store.add([rich(10 * i + j) for j in range(10)])
        store._db.execute("PRAGMA max_page_count = 1000000")
        before = len(store)
        assert store.add([rich(99_999)]) == Added(1, 0) and len(store) == before + 1
    assert_whole(tmp_path)


def test_another_format_of_catalogue_is_refused(tmp_path):
    with Store.open(tmp_path) as store:
        store._db.execute("PRAGMA user_version = 7")
    with pytest.raises(UserError, match="format 7"):
        Store.open(tmp_path)
