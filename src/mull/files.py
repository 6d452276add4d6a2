"""Files that a kill or a full disk cannot leave half-written, and JSON lines that bear a torn end."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mull.errors import UserError


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, none when it is absent.

    A last line without its line end is what a kill tore, and is skipped; a bad line before it is a UserError.
    """
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as f:
        for number, line in enumerate(f, 1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError as e:
                raise UserError(f"{path}, line {number}: not valid JSON ({e.msg}): repair or delete the line") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder, empty when the file is absent; UserError where it is neither."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON ({e}): download the model again") from e
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: download the model again")
    return content


def append_line(fd: int, value: Mapping[str, Any]) -> None:
    """Appends one JSON object and a line end to a file opened with O_APPEND: all of it, or (on an error) nothing."""
    line = memoryview((json.dumps(plain(value), allow_nan=False) + "\n").encode())
    before = os.fstat(fd).st_size
    try:
        while line:
            line = line[os.write(fd, line) :]
    except BaseException:
        os.ftruncate(fd, before)
        raise


def cut_torn_line(fd: int) -> None:
    """Removes what follows the last line end, so that the next line is not appended to half of another."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - 65536)
        if (at := os.pread(fd, end - start, start).rfind(b"\n")) >= 0:
            os.ftruncate(fd, start + at + 1)
            return
        end = start
    os.ftruncate(fd, 0)


def write_whole(path: Path, data: bytes, sync: bool = True) -> None:
    """Replaces a file in one step: a reader sees the old content or the new one.

    A kill may leave the part file `.part-NAME` behind.
    """
    part = path.with_name(f".part-{path.name}")
    try:
        with open(part, "wb") as f:
            f.write(data)
            if sync:
                f.flush()
                os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Waits until a file or a folder's list of names is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)


def disk_is_full(error: BaseException | None, path: Path) -> bool:
    """Whether an error means that the disk of `path` is full, also behind writers that wrap the system's error
    (torch's zip writer, safetensors' Rust)."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        if isinstance(error, RuntimeError) and "writ" in str(error) and shutil.disk_usage(path).free < 1 << 20:
            return True
        error = error.__cause__ or error.__context__
    return False


def plain(value: Any) -> Any:
    """`value` as what JSON can hold: numpy and torch values become Python's, NaN and infinities None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # scalars and arrays of numpy and torch
        return plain(value.tolist())
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")
