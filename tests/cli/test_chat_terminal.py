"""`mull chat` as somebody at a terminal sees it: a process on a pseudo-terminal, and `mull serve` as another."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.tools import QUESTION, scripted_service, serving, thinking

pytestmark = pytest.mark.slow
PATIENCE = 200.0  # seconds that a process may take to start on a busy machine
CTRL_C, CTRL_D = "\x03", "\x04"
LIVE = re.compile(r"Thinking \d+ s · [\d.k]+/[\d.k]+ tokens")
BEGUN = r"Thinking \d+ s · (?!0/)[\d.k]+/[\d.k]+ tokens"  # stopped before that, there is no thought to be shown


class Terminal:
    """`mull ARGUMENTS` on a terminal of 100 columns."""

    def __init__(self, *arguments: str, **environment: str):
        given = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment}
        given.pop("NO_COLOR", None) if "NO_COLOR" not in environment else None
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execve(sys.executable, [sys.executable, "-m", "mull", *arguments], given)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.seen, self.at = "", 0

    def until(self, pattern: str, seconds: float = PATIENCE) -> str:
        """What is written up to and with the pattern, from where the last such call ended."""
        end = time.monotonic() + seconds
        while not (found := re.compile(pattern, re.DOTALL).search(self.seen, self.at)):
            assert time.monotonic() < end and self._read(), f"{pattern!r} did not come: {self.seen[self.at :]!r}"
        start, self.at = self.at, found.end()
        return self.seen[start : self.at]

    def interrupt_prompt(self) -> None:
        """Ctrl-C at the prompt, pressed until a line ends: CPython looks for signals before it waits for a key, and one
        that comes between the two, as a program's can, waits for the next."""
        self.until("> ")
        before = len(self.seen)
        while True:
            self.type(CTRL_C)
            again = time.monotonic() + 5.0
            while time.monotonic() < again:
                assert self._read(), "it ended without a word"
                if "\n" in self.seen[before:]:
                    return

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def ask(self, text: str) -> None:
        self.until("> ")
        self.type(text + "\r")
        self.until(re.escape(text))

    def leave(self) -> int:
        """The exit code, once it ends."""
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> bool:
        """False at the end."""
        if select.select([self.fd], [], [], 1.0)[0]:
            with contextlib.suppress(OSError):  # Linux says so when the other side has gone
                if piece := os.read(self.fd, 4096):
                    self.seen += piece.decode("utf-8", "replace")
                    return True
            return False
        return True


@contextlib.contextmanager
def terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    made = Terminal(*arguments, **environment)
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            os.kill(made.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.waitpid(made.pid, 0)
        os.close(made.fd)


def shown(text: str) -> str:
    """What stands on a screen after this, colours left out: of all that moves and erases, what rich's Live uses."""
    rows, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[?\d;]*[a-zA-Z]|.", text, re.DOTALL):
        if piece == "\n":
            row += 1
            rows += [""] * (row == len(rows))
        elif piece == "\r":
            column = 0
        elif piece == "\x1b[2K":
            rows[row] = ""
        elif piece == "\x1b[1A":
            row = max(0, row - 1)
        elif not piece.startswith("\x1b"):
            rows[row] = rows[row][:column].ljust(column) + piece + rows[row][column + 1 :]
            column += 1
    return "\n".join(rows)


def test_a_conversation_with_a_local_model(tmp_path: Path):
    many = ["--strategy", "vote", "--samples", "256", "--think-tokens", "900"]
    with terminal("chat", "--model", "nano", *many) as t:
        t.until("nano.*/help")
        t.ask(QUESTION)
        drawn = t.until("Thought for [^\r]*tokens")
        lines = LIVE.findall(drawn)
        assert len(lines) > 1 and "/256 branches" in drawn  # more than one state of it,
        between = drawn[drawn.index(lines[0]) : drawn.rindex(lines[-1])]
        assert "\x1b[2K" in between and "\x1b[36mThinking" in drawn  # in place, in colour
        assert "Thinking" not in shown(drawn), "the live line is still there"
        assert "lines of thought have an answer" in shown(drawn) and "\x1b[2m" in drawn  # the summary, dim
        assert shown(drawn).splitlines()[-2].strip() == "67"
        t.ask("/votes")
        assert re.search(r"\d+ × 67", t.until("67"))
        t.ask(QUESTION)
        t.until(BEGUN)
        t.type(CTRL_C)
        assert "answered early" in t.until("Thought for [^\r]*early") and t.at
        t.ask("/quit")
        assert t.leave() == 0


def test_no_colours_and_no_cursor_where_the_terminal_has_none(tmp_path: Path):
    with terminal("chat", "--model", "nano", "--effort", "low", TERM="dumb") as t:
        t.ask(QUESTION)
        said = t.until("Thought for [^\r]*tokens")
        assert "Thinking…" in said and "\x1b[" not in said.replace("\x1b[?2004l", "")
        t.until("> ")
        t.type(CTRL_D)
        assert t.leave() == 0


@contextlib.contextmanager
def serve(folder: Path, *options: str) -> Iterator[str]:
    """The base URL of a `mull serve` of its own."""
    command = [sys.executable, "-m", "mull", "serve", "--model", "nano", "--port", "0", *options]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving nano at"), (folder / "log").read_text()
        yield line.split()[3].rstrip(",")
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_a_conversation_with_mull_serve(tmp_path: Path):
    """Answer now, go on, and leave by Ctrl-C at the prompt, without colours."""
    long = ["--strategy", "mcts:value=rollout", "--samples", "64", "--think-tokens", "20000"]
    with (
        serve(tmp_path, "-o", "think_tokens=900") as url,
        terminal("chat", "--endpoint", url, *long, NO_COLOR="1") as t,
    ):
        t.ask(QUESTION)
        t.until(BEGUN)
        t.type(CTRL_C)
        t.until("Answering now|answered early")
        said = t.until("Thought for [^\r]*answered early") if "early" not in t.seen[: t.at] else t.seen[: t.at]
        assert not re.search(r"\x1b\[[\d;]*3\d[\d;]*m", said), "a colour"
        t.ask("/effort low")
        t.until("which --strategy overrides")
        t.ask("/numbers")
        assert "mcts:value=rollout, 64 branches" in t.until("FLOPs")
        t.interrupt_prompt()
        assert t.leave() == 0


def test_stopping_keeps_the_conversation(tmp_path: Path):
    made = scripted_service(thinking("first\nthen\n", "[b]4\x1b[31m"), seconds=3.0)
    with serving(made) as server, terminal("chat", "--endpoint", server.url) as t:
        t.ask("one?")
        t.until(r"Thinking \d s")
        t.type(CTRL_C)
        t.until(r"Answering now \d s")
        t.type(CTRL_C)
        assert "4" not in shown(t.until(r"\(stopped\)"))
        t.ask("two?")
        said = t.until("Thought for [^\r]*tokens")
        assert "[b]4\ufffd[31m\r\n" in said  # neither markup nor a colour
        assert "one?" not in made.main.tools.chat.decode(made.main.tools.sampler.calls[-1].prefix)  # type: ignore[attr-defined]
        t.ask("/quit")
        assert t.leave() == 0
