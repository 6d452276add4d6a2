"""What the tests of the commands share."""

from __future__ import annotations

import pytest

from mull.cli import main

QUICK = ["-o", "compile=false", "-o", "threads=1", "-o", "levels=1", "-o", "think_tokens=12", "-o", "answer_tokens=6"]
RL = [
    "rl",
    "--quiet",
    "--task",
    "any.py:Any",
    "--steps",
    "2",
    "-o",
    "groups=2",
    "-o",
    "group_size=4",
    "-o",
    "eval_problems=4",
    *QUICK,
]


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The sentence with which a command is refused."""
    code = main(args)
    out, err = capsys.readouterr()
    assert code == 2, (code, out, err)
    [line] = [line for line in err.splitlines() if line.strip()]
    assert line.startswith("error: ") and "Traceback" not in err
    return line.removeprefix("error: ")
