"""Programs in a client's own environment, and what they tell."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.clients import environments

PROGRAMS = Path(__file__).parent / "programs"
TELLS = "checks: "  # as in programs/checks.py
LIMIT = 3000.0  # seconds that a program may take, on a machine that is busy


def names(program: str) -> list[str]:
    """The checks of a program that cannot be imported here."""
    return re.findall(r"^def (check_\w+)\(", (PROGRAMS / program).read_text(), re.MULTILINE)


def told(interpreter: Path, program: str, folder: Path, **variables: str) -> dict[str, str]:
    """Of each check of the program what went wrong, which is nothing where nothing did."""
    out = run([str(interpreter), str(PROGRAMS / program)], folder, variables)
    line = next((line for line in out.splitlines() if line.startswith(TELLS)), None)
    assert line is not None, f"{program} has told nothing:\n{out[-4000:]}"
    found = json.loads(line.removeprefix(TELLS))
    assert list(found) == names(program)
    return found


def run(command: list[str], folder: Path, variables: dict[str, str], statuses: tuple[int, ...] = (0,)) -> str:
    """What a command of a client prints, run in a folder of its own, which is its home too; AssertionError where it
    ends with another status than these."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command,
        cwd=folder,
        env=environments.lent(folder, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=LIMIT,
    )
    assert done.returncode in statuses, f"{' '.join(command[:3])} ended with {done.returncode}:\n{done.stdout[-12000:]}"
    return done.stdout
