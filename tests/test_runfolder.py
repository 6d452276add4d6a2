from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mull.files
from mull.errors import UserError
from mull.files import read_jsonl, write_whole
from mull.runfolder import RunFolder

CONFIG = "steps = 10\n[optim]\nlr = 0.1\nclip = nan\n"


def open_run(path: Path, **kwargs: Any) -> RunFolder:
    return RunFolder.create(path, kwargs.pop("config", CONFIG), "mull rl --steps 10", kwargs.pop("seed", 3), **kwargs)


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": {"a": torch.full((300,), float(step))}}


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ------------------------------------------------------------------------------------------------- basics


def test_a_folder_tells_what_ran(tmp_path: Path):
    with open_run(tmp_path / "a" / "run") as run:
        run.log(1, {"reward": 0.5})
    about = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert about["command"] == "mull rl --steps 10" and about["seed"] == 3
    (start,) = about["starts"]
    assert start["python"] and start["torch"].startswith("2.") and start["machine"] and start["version"]
    assert (tmp_path / "a" / "run" / "config.toml").read_text() == CONFIG
    with open_run(tmp_path / "a" / "run", resume=True, seed=99):
        pass
    about = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert about["seed"] == 3 and len(about["starts"]) == 2


def test_metrics_hold_numbers_of_any_library_and_no_nan(tmp_path: Path):
    with open_run(tmp_path) as run:
        run.log(
            1, {"a": np.float32(0.5), "b": torch.tensor(2), "c": float("nan"), "d": [1, np.inf], "e": "é", "f": None}
        )
        run.log(2, {"a": True})
        with pytest.raises(TypeError, match="object"):
            run.log(3, {"a": object()})
        rows = list(run.metrics())
    assert rows == [
        {"step": 1, "a": 0.5, "b": 2, "c": None, "d": [1, None], "e": "é", "f": None},
        {"step": 2, "a": True},
    ]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_every_metrics_line_is_on_its_way_to_the_disk_at_once(tmp_path: Path):
    def child() -> None:
        run = open_run(tmp_path)
        run.log(1, {"reward": 1})
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(child) == -signal.SIGKILL
    assert [r["step"] for r in read_jsonl(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize("torn", ['{"step": 3, "rew', "", '{"step": 3}'])
def test_a_torn_last_line_is_skipped_and_then_cut(tmp_path: Path, torn: str):
    with open_run(tmp_path) as run:
        run.log(1, {"note": "x" * 200_000})  # longer than one block of the search for the last line end
        run.log(2, {})
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write(torn)
    assert [r["step"] for r in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2]
    with open_run(tmp_path, resume=True) as run:
        run.log(3, {})
        assert [r["step"] for r in run.metrics()] == [1, 2, 3]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path):
    with open_run(tmp_path):
        pass
    (tmp_path / "metrics.jsonl").write_text("x" * 100_000)
    with open_run(tmp_path, resume=True) as run:
        run.log(1, {})
        assert list(run.metrics()) == [{"step": 1}]


def test_a_bad_line_in_the_middle_is_the_users_to_repair(tmp_path: Path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        list(read_jsonl(tmp_path / "m.jsonl"))


def test_truncating_removes_what_the_resumed_run_will_log_again(tmp_path: Path):
    with open_run(tmp_path) as run:
        for step in (1, 2, 3, 4):
            run.log(step, {"x": step})
            run.add_traces(step, [{"thought": "hm\n[bold]"}, {"thought": "\ud800"}])
        run.add_traces(1, [{"thought": "more"}])
        run.truncate_metrics(after_step=2)
        run.log(3, {"x": 30})
        assert [(r["step"], r["x"]) for r in run.metrics()] == [(1, 1), (2, 2), (3, 30)]
    assert sorted(p.name for p in (tmp_path / "traces").iterdir()) == ["step_000001.jsonl", "step_000002.jsonl"]
    assert len(list(read_jsonl(tmp_path / "traces" / "step_000001.jsonl"))) == 3


# ---------------------------------------------------------------------------------------------- who may open


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path):
    open_run(tmp_path).close()
    with pytest.raises(UserError, match="already holds a run"):
        open_run(tmp_path)
    with pytest.raises(UserError, match=r"another config \(it differs in optim\.lr, optim\.kind\)"):
        open_run(tmp_path, resume=True, config='steps = 10\n[optim]\nlr = 0.2\nclip = nan\nkind = "muon"\n')
    open_run(tmp_path, resume=True, config="# same\n" + CONFIG).close()
    with pytest.raises(UserError, match="differs in steps"):
        open_run(tmp_path, resume=True, config=CONFIG.replace("10", "20"))
    open_run(tmp_path, resume=True, config=CONFIG.replace("10", "20"), may_change=["steps"]).close()
    assert "steps = 20" in (tmp_path / "config.toml").read_text()


def test_a_folder_that_was_moved_goes_on(tmp_path: Path):
    config = 'out = "OUT"\n' + CONFIG
    with open_run(tmp_path / "here", config=config.replace("OUT", "here")) as run:
        run.log(1, {"x": 1})
    (tmp_path / "here").rename(tmp_path / "there")
    with open_run(tmp_path / "there", resume=True, config=config.replace("OUT", "there")) as run:
        assert [r["x"] for r in run.metrics()] == [1]
    assert 'out = "there"' in (tmp_path / "there" / "config.toml").read_text(), "where it lies now"
    with pytest.raises(UserError, match=r"\(it differs in optim\.out\)"):
        open_run(tmp_path / "there", resume=True, config=config.replace("OUT", "there") + 'out = "x"\n')


def test_resuming_what_never_started_starts_it(tmp_path: Path):
    with open_run(tmp_path / "new", resume=True) as run:
        assert run.latest() is None and run.best() is None and list(run.metrics()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be made"):
            open_run(path)


def test_two_processes_cannot_write_one_folder_and_a_dead_one_holds_nothing(tmp_path: Path):
    def second() -> None:
        with pytest.raises(UserError, match="in use by another process"):
            open_run(tmp_path, resume=True)

    with open_run(tmp_path):
        assert in_child(second) == 0

    ready, hold = os.pipe(), os.pipe()

    def first() -> None:  # dies with a forked worker still alive
        open_run(tmp_path, resume=True)
        if os.fork() == 0:
            os.close(hold[1])
            os.write(ready[1], b"x")
            os.read(hold[0], 1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(first) == -signal.SIGKILL
    os.read(ready[0], 1)
    open_run(tmp_path, resume=True).close()
    for fd in (*ready, *hold):
        os.close(fd)


# ---------------------------------------------------------------------------------------------- checkpoints


def test_recent_and_best_checkpoints_are_kept(tmp_path: Path):
    with open_run(tmp_path, keep=2) as run:
        for step, score in enumerate([0.1, 0.9, 0.3, None, float("nan"), 0.9], 1):
            run.save_checkpoint(step, state(step), score=score)
        assert run.steps() == [2, 5, 6]
        assert run.best() == (2, 0.9)  # the earliest of equals
        assert run.mark_best(6, 0.95) and not run.mark_best(5, 0.5)
        run.save_checkpoint(7, state(7))
        assert run.steps() == [6, 7]
        with pytest.raises(ValueError, match="no checkpoint of step 2"):
            run.mark_best(2, 1.0)
    with open_run(tmp_path, keep=2, resume=True) as run:
        latest = run.latest()
        assert latest is not None and latest[0] == 7
        assert torch.equal(latest[1]["weights"]["a"], torch.full((300,), 7.0))
        assert run.best() == (6, 0.95)


def test_the_model_writer_writes_inside_the_checkpoint_or_not_at_all(tmp_path: Path):
    def whole(folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyError("bug in the writer")

    with open_run(tmp_path) as run:
        run.save_checkpoint(1, state(1), whole)
        assert (run.checkpoint(1) / "model" / "config.json").exists()
        for step in (1, 2):
            with pytest.raises(KeyError):
                run.save_checkpoint(step, state(step), broken)
        assert run.steps() == [1] and run.latest() is not None
        assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_000001"]


def test_a_state_that_could_not_be_loaded_is_refused_at_once(tmp_path: Path):
    with open_run(tmp_path) as run:
        with pytest.raises(TypeError, match=r"state\['a'\]\[1\] is a ndarray"):
            run.save_checkpoint(1, {"a": [1, np.zeros(3)]})
        assert run.steps() == []


def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path: Path):
    with open_run(tmp_path) as run:
        run.save_checkpoint(1, state(1))
        run.save_checkpoint(2, state(2))
        (run.checkpoint(2) / "state.pt").write_bytes(b"rot")
        with pytest.warns(UserWarning, match="step_000002 cannot be read"):
            latest = run.latest()
        assert latest is not None and latest[0] == 1
        (run.checkpoint(1) / "state.pt").unlink()
        with pytest.warns(UserWarning), pytest.raises(UserError, match="no checkpoint"):
            run.latest()


# ------------------------------------------------------------------------------------------- kills, full disks


def work_from(run: RunFolder, steps: int) -> None:
    """A small run: each step logs, then every second step saves; as a recipe does it."""
    latest = run.latest()
    done = latest[0] if latest else 0
    run.truncate_metrics(done)
    for step in range(done + 1, steps + 1):
        run.log(step, {"reward": step / 10})
        run.add_traces(step, [{"thought": "x" * 100}])
        if step % 2 == 0:
            run.save_checkpoint(step, {"step": step, "w": torch.full((50,), float(step))}, score=-abs(step - 4.0))


def check_finished(path: Path) -> None:
    with open_run(path, resume=True) as run:
        assert [r["step"] for r in run.metrics()] == list(range(1, 7))
        assert run.steps() == [4, 6] and run.best() == (4, 0.0)
        assert not [p for p in path.rglob(".*") if p.name != ".lock"]


def test_a_kill_at_every_file_operation_leaves_a_run_that_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Kills the run at its n-th file operation, for every n, resuming each time from what the kill left."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # slow, and no matter to a kill
    monkeypatch.setattr("mull.machine.commit", lambda: "")
    watched = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}

    def killed_at(n: int, path: Path) -> Callable[[], None]:
        def work() -> None:
            count = 0

            def hook(event: str, _: object) -> None:
                nonlocal count
                if event in watched:
                    count += 1
                    if count == n:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)  # cannot be removed: hence the process of its own
            with open_run(path, resume=True) as run:
                work_from(run, 6)

        return work

    ends, n, loaded = [], 0, 0
    while not ends or ends[-1] != 0:  # until the n-th operation is beyond the end of the run
        n += 1
        path = tmp_path / str(n)
        ends.append(in_child(killed_at(n, path)))
        assert ends[-1] in (0, -signal.SIGKILL)
        if ends[-1] == 0 or n % 5 == 0:  # kill it again in the middle of what it does after the first kill
            in_child(killed_at(7 + n // 3, path))
        for checkpoint in path.glob("checkpoints/step_*"):  # as the kill left it: all that is visible is whole
            held = torch.load(checkpoint / "state.pt", weights_only=True)
            assert torch.equal(held["w"], torch.full((50,), float(held["step"])))
            assert json.loads((checkpoint / "meta.json").read_text())["step"] == held["step"]
            loaded += 1
        with open_run(path, resume=True) as run:
            steps = [r["step"] for r in run.metrics()]
            assert steps == list(range(1, len(steps) + 1))
            assert not run.steps() or steps[-1] >= run.steps()[-1]
            work_from(run, 6)
        check_finished(path)
    assert n > 60 and loaded > n / 2


def test_a_kill_while_a_checkpoint_is_replaced(tmp_path: Path):
    """With one checkpoint kept, saving the same step again must not have a moment without any."""
    real, calls = os.rename, 0

    def work(n: int) -> None:
        nonlocal calls
        calls = 0

        def rename(a: Any, b: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
            real(a, b)

        with open_run(tmp_path, resume=True, keep=1) as run:
            os.rename = rename
            run.save_checkpoint(2, {"step": 2})

    with open_run(tmp_path, keep=1) as run:
        run.save_checkpoint(2, {"step": 2})
    for n in (1, 2):
        assert in_child(lambda n=n: work(n)) == -signal.SIGKILL
        with open_run(tmp_path, resume=True, keep=1) as run:
            assert run.latest() == (2, {"step": 2})


def test_kills_at_random_moments(tmp_path: Path):
    def work() -> None:
        with open_run(tmp_path, resume=True) as run:
            work_from(run, 10**6)

    rng, rows, kills = random.Random(0), [], 0
    while kills < 12 or (len(rows) < 10 and kills < 200):
        kills += 1
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.005, 0.08) * (1 + kills / 20))  # ever later: a busy machine must get somewhere, too
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        with open_run(tmp_path, resume=True) as run:
            latest, rows = run.latest(), [r["step"] for r in run.metrics()]
            assert rows == list(range(1, len(rows) + 1))
            assert latest is None or latest[0] == latest[1]["step"] <= len(rows)
    assert len(rows) >= 10


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A kill just before the new content takes its place finds the old content whole."""
    write_whole(tmp_path / "f", b"old")

    def killed(*_: object) -> None:
        assert (tmp_path / "f").read_bytes() == b"old"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "f", b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def full(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_saving_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def writer(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"x" * 100)
        full()

    with open_run(tmp_path) as run:
        run.save_checkpoint(2, state(2))
        with pytest.raises(UserError, match=r"disk is full under .*step 2 is safe"):
            run.save_checkpoint(4, state(4), writer)

        real = open

        class FullFile:
            def __init__(self, *args: Any) -> None:
                self.file = real(*args)

            def __enter__(self) -> Any:
                return types.SimpleNamespace(write=full, flush=self.file.flush)

            def __exit__(self, *_: object) -> None:
                self.file.close()

        with monkeypatch.context() as m:
            m.setattr("mull.runfolder.open", FullFile, raising=False)  # torch.save writes to it
            with pytest.raises(UserError, match="disk is full"):
                run.save_checkpoint(4, state(4))
        with monkeypatch.context() as m:
            m.setattr(os, "fsync", full)
            with pytest.raises(UserError, match="disk is full"):
                run.save_checkpoint(4, state(4))
        latest = run.latest()
        assert latest is not None and latest[0] == 2
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]  # the space was given back
        run.save_checkpoint(4, state(4))
        assert run.steps() == [2, 4]


def test_a_full_disk_while_logging_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) < 10:
            full()
        return real(fd, data[: len(data) // 2])

    with open_run(tmp_path) as run:
        run.log(1, {"reward": 0.25})
        with monkeypatch.context() as m:
            m.setattr(mull.files.os, "write", half)
            with pytest.raises(UserError, match="no checkpoint was written yet"):
                run.log(2, {"reward": 0.5})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "reward": 0.25}\n'
        run.log(2, {"reward": 0.5})
        assert len(list(run.metrics())) == 2


def test_another_os_error_is_not_called_a_full_disk(tmp_path: Path):
    def writer(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with open_run(tmp_path) as run, pytest.raises(OSError, match="Input/output"):
        run.save_checkpoint(1, state(1), writer)


# ------------------------------------------------------------------------------------- TensorBoard


def test_scalars_go_to_tensorboard_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int):
            seen.append((Path(folder).name, purge_step))

        def add_scalar(self, *args: Any) -> None:
            seen.append(args)

        def close(self) -> None:
            seen.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with open_run(tmp_path) as run:
        run.log(5, {"reward": 0.5, "note": "x", "flag": True, "nothing": None})
        run.log(6, {"reward": 0.6})
    assert seen == [("tensorboard", 5), ("reward", 0.5, 5), ("reward", 0.6, 6), "closed"]
