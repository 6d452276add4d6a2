"""From what a user types to a task. Explicit dispatch: a task that is not here is named by its file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from mull.errors import UserError, nearest
from mull.tasks.base import Checked

PUZZLES = ("addition", "chain", "countdown", "maze", "matrix")
_FILES = (".jsonl", ".jsonl.gz")
_DATA = ("name", "levels", "description", "max_thought")  # of `Checked`
_METHODS = ("stream", "problems", "up_to", "check", "check_steps", "canonical")


def load_task(spec: str) -> Checked:
    """The task that `spec` names:

    - one of `PUZZLES`, with exact checks of every step (a `Task`, with a solver);
    - `gym:NAME`, a set of reasoning-gym;
    - `path/to/set.jsonl` or `.jsonl.gz`, a data set used wholly as a test set; `path/to/set.jsonl:train` (or `:valid`,
      `:hash`) uses it otherwise, see `DatasetTask`;
    - `path/to/file.py:ClassName`, a class of your own, made without arguments.

    UserError when there is no such task, file or class, or the class is not a task.
    """
    spec = spec.strip()
    if spec == "addition":
        from mull.tasks.addition import Addition

        return Addition()
    if spec == "chain":
        from mull.tasks.chain import Chain

        return Chain()
    if spec == "countdown":
        from mull.tasks.countdown import Countdown

        return Countdown()
    if spec == "maze":
        from mull.tasks.maze import MazeTask

        return MazeTask()
    if spec == "matrix":
        from mull.tasks.matrix import MatrixTask

        return MatrixTask()
    if spec.startswith("gym:"):
        from mull.tasks.gym import GymTask

        return GymTask(spec.removeprefix("gym:"))
    head, _, tail = spec.rpartition(":")
    if spec.endswith(_FILES) or head.endswith(_FILES):
        from mull.tasks.dataset import DatasetTask

        path, split = (spec, "test") if spec.endswith(_FILES) else (head, tail)
        return DatasetTask(path, split)  # type: ignore[arg-type]  # it refuses an unknown split itself
    if head.endswith(".py"):
        return _own(Path(head), tail)
    if spec.endswith(".py"):
        raise UserError(f"the task {spec!r} names a file but no class in it: write {spec}:ClassName")
    raise UserError(
        f"unknown task {spec!r}{nearest(spec, PUZZLES)}; a task is one of {', '.join(PUZZLES)}, gym:NAME, "
        "a path ending in .jsonl or .jsonl.gz, or path/to/file.py:ClassName"
    )


def _own(path: Path, name: str) -> Checked:
    """An instance of the class `name` of a user's file. Each call runs the file anew."""
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"the task file {path} does not exist{nearest(path.name, beside)}")
    module_name = f"mull_user_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up here
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        raise UserError(f"the task file {path} does not run: {type(problem).__name__}: {problem}") from problem
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [
            n for n, thing in vars(module).items() if isinstance(thing, type) and thing.__module__ == module_name
        ]
        raise UserError(f"the task file {path} has no class {name!r}{nearest(name, classes)}")
    try:
        task = found()
    except TypeError as problem:  # abstract methods left out, or arguments asked for
        raise UserError(f"the task {path}:{name} cannot be made without arguments: {problem}") from problem
    missing = [member for member in (*_DATA, *_METHODS) if not hasattr(task, member)]
    if missing:
        raise UserError(f"the task {path}:{name} lacks {', '.join(missing)}: subclass mull.tasks.base.Task")
    return task
