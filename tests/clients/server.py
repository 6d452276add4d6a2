"""`mull serve` as users have it: a process over the model that ships.

with served("-o", "think_tokens=64") as server:
    server.url, server.key, server.metrics()
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START, STOP, QUIET = 600.0, 120.0, 60.0  # seconds that it may take to start, to end, and to give everything back
# What must be back at its start once nobody asks for anything.
HELD = ("memory_pages_used", "memory_pages_reserved", "branches_reserved", "sequences", "running", "queue_depth")
KEY = "sk-clients-0123456789abcdef"
NAME = "nano"


@dataclass
class Served:
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    key: str = KEY

    def get(self, path: str) -> str:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.key}"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return answer.read().decode()

    def metrics(self) -> dict[str, float]:
        """Sums over the labels of what /metrics tells."""
        found: Counter[str] = Counter()
        for name, value in re.findall(r"^mull_(\w+?)(?:\{.*\})? (\S+)$", self.get("/metrics"), re.MULTILINE):
            found[name] += float(value)  # type: ignore[assignment]
        return dict(found)

    def held(self) -> dict[str, float]:
        """What is still in use though nobody asks for anything: {} in the end."""
        end = time.monotonic() + QUIET
        while (found := {key: value for key in HELD if (value := self.metrics()[key])}) and time.monotonic() < end:
            time.sleep(0.2)
        return found

    def troubles(self) -> list[str]:
        """Lines of its log that no server should write."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line[:2000] for line in lines if _trouble(line)]

    def cpu_seconds(self) -> float:
        """Processor time that the server has taken; 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _trouble(line: str) -> bool:
    """Whether a line is an error, or no line of a JSON log at all."""
    try:
        entry = json.loads(line)
    except ValueError:
        return True
    if entry.get("event") == "reload failed":
        return False  # the operator has named no folder of a model, and the log says so
    return entry.get("level") not in ("info", "warning") or entry.get("status", 0) >= 500


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[Served]:
    """A server of its own, with an API key, from its start to an orderly end. Its files are in `folder`.

    AssertionError where it has not started, has lost memory, has logged an error, or does not end well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "keys").write_text(f"{KEY}\n")
    log = folder / "log"
    command = [sys.executable, "-m", "mull", "serve", "--model", NAME, "--port", "0", "--keys", str(folder / "keys")]
    with (folder / "out").open("wb") as out, log.open("wb") as err:
        process = subprocess.Popen([*command, "-o", "threads=1", *options], stdout=out, stderr=err)
    try:
        server = Served(_address(process, folder / "out", log), process, log)
        yield server
        assert process.poll() is None, f"the server has died:\n{_tail(log)}"
        assert server.held() == {}
        assert server.troubles() == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP) == 0, _tail(log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], out: Path, log: Path) -> str:
    end = time.monotonic() + START
    while not (found := re.search(r"(http://\S+)/v1", out.read_text())):
        assert process.poll() is None and time.monotonic() < end, f"the server has not started:\n{_tail(log)}"
        time.sleep(0.1)
    return found[1]


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
