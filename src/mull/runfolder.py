"""A run folder: everything that one run leaves behind, written so that `kill -9` at any moment costs one step at most.

    RUN/config.toml               the resolved config
    RUN/run.json                  command, seed, versions, commit, machine; one entry per start
    RUN/metrics.jsonl             one object per line, each with its "step"
    RUN/tensorboard/              the same scalars, where tensorboard is installed
    RUN/traces/step_000010.jsonl  sampled traces
    RUN/checkpoints/step_000010/  state.pt, meta.json, and model/ if a writer was given

A checkpoint is written beside its place, synced, and renamed: it is there whole or not at all. Before one is deleted
or replaced it is renamed away, for the same reason. A metrics line is one append; a reader skips a torn last line.
What a run logged after its last checkpoint is cut off on resume, because the resumed run will log it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mull.errors import UserError
from mull.files import append_line, cut_torn_line, disk_is_full, plain, read_jsonl, sync, sync_tree, write_whole
from mull.machine import describe

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock
    fcntl = None


class RunFolder:
    """One run's folder, open for writing by this process alone. Make it with `RunFolder.create`."""

    def __init__(self, path: Path, keep: int, lock: int | None):
        self.path = path
        self.keep = keep  # checkpoints to keep besides the best one
        self._lock = lock
        self._metrics: int | None = None  # file descriptor
        self._board: Any = None

    # ------------------------------------------------------------------------------------ opening, closing

    @classmethod
    def create(
        cls,
        path: Path | str,
        config: str,
        command: str,
        seed: int,
        resume: bool = False,
        keep: int = 2,
        may_change: Sequence[str] = (),
    ) -> RunFolder:
        """Opens a run folder, making it where it is absent.

        `config` is the resolved config as TOML. `resume`: go on with the run that the folder holds, if any; its config
        must be equal except for `out`, as a folder may have been moved, and the top-level keys in `may_change` (such as
        the number of steps).

        Raises UserError when the folder holds a run and `resume` is off, when it holds a different run, when another
        process is writing to it, and when it cannot be made.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        except OSError as e:
            raise UserError(
                f"run folder {path} cannot be made or written: {e.strerror}; choose another --out"
            ) from None
        self = cls(path, max(1, keep), lock)
        try:
            with self._clear_errors():
                self._claim(config, resume, may_change)
                self._tidy()
                self._note_start(command, seed)
                write_whole(path / "config.toml", config.encode())  # last: now the folder holds a run
                self._metrics = os.open(path / "metrics.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                cut_torn_line(self._metrics)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None
        for fd in (self._metrics, self._lock):
            if fd is not None:
                os.close(fd)
        self._metrics = self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(self, config: str, resume: bool, may_change: Sequence[str]) -> None:
        held = self.path / "config.toml"
        if not held.exists():
            return
        if not resume:
            raise UserError(f"{self.path} already holds a run: go on with it by --resume, or choose another folder")
        try:
            old = tomllib.loads(held.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            raise UserError(f"{held} cannot be parsed: restore it, or choose another folder") from None
        free = ("out", *may_change)
        changed = [k for k in _differences(old, tomllib.loads(config)) if k.split(".")[0] not in free]
        if changed:
            raise UserError(
                f"{self.path} holds a run with another config (it differs in {', '.join(changed[:5])}"
                f"{', …' if len(changed) > 5 else ''}): resume with the same config, or choose another folder"
            )

    def _note_start(self, command: str, seed: int) -> None:
        """Adds this start to run.json; the first one's command and seed stay at the top."""
        file = self.path / "run.json"
        fresh = not (self.path / "config.toml").exists() or not file.exists()
        run = {"command": command, "seed": seed, "starts": []} if fresh else json.loads(file.read_text())
        run["starts"].append({"command": command, **describe()})
        write_whole(file, (json.dumps(run, indent=1) + "\n").encode())

    # --------------------------------------------------------------------------------------------- metrics

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line {"step": step, **metrics}; log a step before saving its checkpoint.

        Values: numbers (of numpy or torch too), text, lists, dicts, None. NaN and infinities become null, which every
        JSON reader understands.
        """
        assert self._metrics is not None, "the run folder is closed"
        row = plain({"step": step, **metrics})
        with self._clear_errors():
            append_line(self._metrics, row)
        if (board := self._tensorboard(step)) is not None:
            for key, value in row.items():
                if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                    board.add_scalar(key, value, step)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines logged so far."""
        return read_jsonl(self.path / "metrics.jsonl")

    def truncate_metrics(self, after_step: int) -> None:
        """Removes metrics and traces of steps beyond `after_step`: on resume, so that nothing is there twice."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row.get("step", 0) <= after_step]
        with self._clear_errors():
            write_whole(self.path / "metrics.jsonl", "".join(kept).encode())
            if self._metrics is not None:
                os.close(self._metrics)
            self._metrics = os.open(self.path / "metrics.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            for file in self.path.glob("traces/step_*.jsonl"):
                if _step_of(file) > after_step:
                    file.unlink()

    def _tensorboard(self, step: int) -> Any:
        """The TensorBoard writer, opened at the first log; None where the package is absent."""
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._board = _NoBoard()
            else:  # purge_step hides what an interrupted run wrote beyond the step that this one starts from
                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        return None if isinstance(self._board, _NoBoard) else self._board

    def add_traces(self, step: int, traces: Sequence[Mapping[str, Any]]) -> None:
        """Appends sampled traces to the step's own file, one JSON object per line."""
        lines = "".join(json.dumps(plain(dict(t)), ensure_ascii=False) + "\n" for t in traces)
        with self._clear_errors():
            (self.path / "traces").mkdir(exist_ok=True)
            file = self.path / "traces" / f"step_{step:06d}.jsonl"
            before = file.read_bytes() if file.exists() else b""
            write_whole(file, before + lines.encode(errors="replace"), sync=False)

    # ----------------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(
        self,
        step: int,
        state: Mapping[str, Any],
        model_writer: Callable[[Path], None] | None = None,
        score: float | None = None,
    ) -> Path:
        """Writes checkpoints/step_N, whole or not at all, then deletes what is neither recent nor best.

        `state`: nested dicts, lists and tuples of tensors, numbers, text and None. `model_writer(folder)` writes the
        model's own files. `score`: what `best` goes by, higher is better. Raises TypeError for a state that could not
        be loaded again, and UserError when the disk is full (earlier checkpoints stay).
        """
        import torch

        _check_state(state, "state")
        root = self.path / "checkpoints"
        final, temp = root / f"step_{step:06d}", root / f".new-step_{step:06d}"
        with self._clear_errors():
            try:
                shutil.rmtree(temp, ignore_errors=True)
                temp.mkdir(parents=True)
                with open(temp / "state.pt", "wb") as f:
                    torch.save(dict(state), f)
                if model_writer is not None:
                    (temp / "model").mkdir()
                    model_writer(temp / "model")
                (temp / "meta.json").write_text(json.dumps({"step": step, "score": plain(score)}))
                sync_tree(temp)
                shutil.rmtree(root / f".old-step_{step:06d}", ignore_errors=True)
                if final.exists():  # the same step again: the old one must live until the new one is in place
                    os.rename(final, root / f".old-step_{step:06d}")
                os.rename(temp, final)
                sync(root)
            except BaseException:
                shutil.rmtree(temp, ignore_errors=True)  # give the space back
                self._put_back()
                raise
            self._tidy()
        return final

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(_step_of(p) for p in self.path.glob("checkpoints/step_*") if p.name[5:].isdigit())

    def checkpoint(self, step: int) -> Path:
        """The folder of a step's checkpoint; its model files, if any, are in `model/`."""
        return self.path / "checkpoints" / f"step_{step:06d}"

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of the newest checkpoint, None when there is none.

        A checkpoint that a dying disk damaged is skipped with a warning; UserError when none can be read.
        """
        import torch

        for step in reversed(self.steps()):
            try:
                return step, torch.load(self.checkpoint(step) / "state.pt", map_location="cpu", weights_only=True)
            except Exception as e:  # torch raises many kinds for a damaged file
                warnings.warn(
                    f"checkpoint {self.checkpoint(step)} cannot be read ({type(e).__name__}); trying an older one"
                )
        if self.steps():
            raise UserError(f"no checkpoint in {self.path / 'checkpoints'} can be read: start again in another folder")
        return None

    def mark_best(self, step: int, score: float) -> bool:
        """Gives a checkpoint its score afterwards; True when it is now the best. The best one is never deleted."""
        if step not in self.steps():
            raise ValueError(f"there is no checkpoint of step {step}")
        with self._clear_errors():
            meta = json.dumps({"step": step, "score": plain(score)})
            write_whole(self.checkpoint(step) / "meta.json", meta.encode())
        best = self.best()
        return best is not None and best[0] == step

    def best(self) -> tuple[int, float] | None:
        """(step, score) of the checkpoint with the highest score, the earliest of equals; None when none has one."""
        scored: list[tuple[int, float]] = []
        for step in self.steps():
            with contextlib.suppress(OSError, ValueError, KeyError):
                score = json.loads((self.checkpoint(step) / "meta.json").read_text())["score"]
                if score is not None:
                    scored.append((step, score))
        return max(scored, key=lambda s: (s[1], -s[0]), default=None)

    def _tidy(self) -> None:
        """Finishes what a kill interrupted, and deletes checkpoints that are neither recent nor best."""
        self._put_back()
        root, best = self.path / "checkpoints", self.best()
        for step in self.steps()[: -self.keep]:
            if best is None or step != best[0]:
                os.rename(self.checkpoint(step), root / f".gone-step_{step:06d}")
        for folder in root.glob(".*-step_*"):
            shutil.rmtree(folder)
        for pattern in (".part-*", "traces/.part-*", "checkpoints/step_*/.part-*"):
            for file in self.path.glob(pattern):
                file.unlink()

    def _put_back(self) -> None:
        """Restores a checkpoint whose replacement stopped between its two renames."""
        root = self.path / "checkpoints"
        for old in root.glob(".old-step_*"):
            if not (place := root / old.name.removeprefix(".old-")).exists():
                os.rename(old, place)

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """A full disk becomes one sentence."""
        try:
            yield
        except Exception as e:
            if not disk_is_full(e, self.path):
                raise
            steps = self.steps()
            left = f"the checkpoint of step {steps[-1]} is safe" if steps else "no checkpoint was written yet"
            raise UserError(
                f"the disk is full under {self.path} ({left}): free some space and go on with --resume"
            ) from e


class _NoBoard:
    """Stands for a TensorBoard that is not installed."""

    def close(self) -> None:
        pass


# ------------------------------------------------------------------------------------------------ helpers


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _differences(a: Any, b: Any, at: str = "") -> list[str]:
    """The dotted keys in which two parsed TOML documents differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = dict.fromkeys([*a, *b])
        return [d for k in keys for d in _differences(a.get(k), b.get(k), f"{at}.{k}" if at else k)]
    same = type(a) is type(b) and (a == b or (a != a and b != b))  # nan equals nan here
    return [] if same else [at]


def _lock(path: Path) -> int | None:
    """Holds the folder for this process; the system lets go of it when the process ends, however it ends.

    A record lock, not flock: worker processes forked by a killed run do not inherit it and keep it from being resumed.
    """
    if fcntl is None:
        return None
    fd = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise UserError(f"{path} is in use by another process: wait for it, or choose another folder") from None
    return fd


def _check_state(value: Any, at: str) -> None:
    """Raises TypeError for what `torch.load(weights_only=True)` would refuse, before it is too late."""
    import torch

    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_state(item, f"{at}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            _check_state(item, f"{at}[{i}]")
    elif not (value is None or isinstance(value, torch.Tensor) or type(value) in (bool, int, float, str)):
        raise TypeError(
            f"{at} is a {type(value).__name__}: a checkpoint holds tensors, numbers, text, dicts and lists only"
        )
