"""`mull serve` as command lines of docs/serving.md and deploy/ start it: a process, or what its settings come to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mull.cli import main
from mull.serve.settings import Settings

START, STOP = 120.0, 90.0  # seconds, on a machine that is busy
BIN = Path(sys.executable).parent


@dataclass
class Started:
    url: str
    process: subprocess.Popen[bytes]
    folder: Path

    def http(self, key: str = "") -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def log(self) -> list[dict[str, Any]]:
        lines = (self.folder / "err").read_text().splitlines()
        return [json.loads(line) for line in lines if not line.startswith("warning: ")]


def environment(**more: str) -> dict[str, str]:
    """For commands of a page: `mull` is this one, and nothing goes through a proxy of this machine."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **more}


@contextlib.contextmanager
def started(words: Sequence[str], folder: Path, **variables: str) -> Iterator[Started]:
    """The server that `mull WORDS` starts in a folder, from its address to an orderly end by SIGTERM. It must be told
    to take port 0. AssertionError where it does not start, or does not end with 0."""
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        command = [sys.executable, "-m", "mull", *words]
        process = subprocess.Popen(command, cwd=folder, env=environment(**variables), stdout=out, stderr=err)
    try:
        end = time.monotonic() + START
        while not (found := re.search(r"(http://\S+)/v1", (folder / "out").read_text())):
            said = (folder / "err").read_text()[-2000:]
            assert process.poll() is None and time.monotonic() < end, f"the server has not started:\n{said}"
            time.sleep(0.05)
        yield Started(found[1], process, folder)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP) == 0, (folder / "err").read_text()[-2000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def settings_of(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What `mull WORDS` would serve with, by the real command line. AssertionError where it refuses them."""
    import mull.serve.main

    taken: list[Settings] = []
    monkeypatch.setattr(mull.serve.main, "serve", taken.append)
    assert main(list(words)) == 0, f"mull {' '.join(words)} is refused"
    [settings] = taken
    return settings
