"""Persistent helper processes that answer JSON lines, each request under a deadline.

For graders whose work cannot be trusted to end: a request that overruns costs its process, never the caller's. The
parent kills and reaps it, starts another for the next request, and raises `Unscorable` for this one.

What protects what:
- the parent's deadline (wall-clock) bounds every call, whatever the helper does, C code included;
- the helper's own alarm (`math_worker.py`) ends it even when the parent was killed with -9;
- an idle helper ends by itself when its standard input closes, so none outlives the parent;
- a fork of the parent starts helpers of its own: two processes on one pipe would read each other's answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from mull.errors import Unscorable


class _Worker:
    def __init__(self, command: Sequence[str], startup_s: float):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.owner = os.getpid()
        self.served = 0
        self.unread = b""
        self.deadline = time.monotonic() + startup_s

    def ask(self, request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """One line there, one line back, with its "seconds" added. TimeoutError or OSError (it died): it is spent."""
        if self.served == 0:  # importing takes seconds on a busy machine: not the request's time
            self._read_line(self.deadline)
        self.served += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": self.served, "seconds": deadline_s, **request}).encode() + b"\n")
        start = time.monotonic()
        reply = json.loads(self._read_line(start + deadline_s))
        if reply.get("id") != self.served:
            raise OSError("the reply belongs to another request")
        return {**reply, "seconds": time.monotonic() - start}

    def _read_line(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.unread:
                left = deadline - time.monotonic()
                if left <= 0 or not ready.select(left):
                    raise TimeoutError
                chunk = os.read(self.process.stdout.fileno(), 65536)
                if not chunk:
                    raise OSError("it ended")
                self.unread += chunk
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    def kill(self) -> None:
        """Kills and reaps, from any thread; who waits for its answer sees the end of the pipe. In a fork: nothing."""
        if os.getpid() == self.owner:
            with contextlib.suppress(OSError):
                self.process.kill()
            self.process.wait()

    def end(self) -> None:
        """`kill`, and closes the pipes: only when nobody waits on them (a wait on a closed pipe never returns)."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _kill_all(workers: set[_Worker]) -> None:
    for worker in list(workers):
        worker.kill()


class Workers:
    """Up to `size` processes of `command`, started when first needed. Callable from any thread."""

    def __init__(self, command: Sequence[str], size: int, deadline_s: float, startup_s: float = 60.0):
        if size < 1 or deadline_s <= 0:
            raise ValueError(f"size and deadline_s must be positive, not {size} and {deadline_s}")
        self.command, self.size, self.deadline_s, self.startup_s = list(command), size, deadline_s, startup_s
        self.restarts = 0  # processes lost to a deadline or a crash
        self._alive: set[_Worker] = set()
        self._reset()
        self._finalizer = weakref.finalize(self, _kill_all, self._alive)  # also runs at interpreter exit

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._closed = False
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(self.size)

    def ask(self, request: dict[str, Any], deadline_s: float | None = None) -> dict[str, Any]:
        """The reply to one request, and the "seconds" that it took.

        Blocks while all workers are busy; that wait has no deadline of its own, it ends by theirs. Unscorable: the
        deadline passed, the process died, or it could not start.
        """
        if os.getpid() != self._pid:  # we are a fork: the parent's processes are not ours to use or to kill
            for worker in self._alive:
                worker.end()
            self._alive.clear()
            self._reset()
        deadline_s = self.deadline_s if deadline_s is None else deadline_s
        with self._slots:
            worker = None
            try:
                worker = self._take()
                reply = worker.ask(request, deadline_s)
            except (
                OSError,
                ValueError,
            ) as problem:  # TimeoutError is an OSError; ValueError: no JSON, or a closed pipe
                if worker is not None:
                    self._discard(worker)
                    self.restarts += 1
                late = isinstance(problem, TimeoutError)
                raise Unscorable(f"grader took over {deadline_s:g} s" if late else f"grader died: {problem}") from None
            except BaseException:  # an interrupt in between: an answer may still be under way, so the process is spent
                if worker is not None:
                    self._discard(worker)
                raise
            with self._lock:
                if not self._closed:
                    self._idle.append(worker)
                    return reply
            self._discard(worker)
            return reply

    def _take(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise RuntimeError("these workers are closed")
            if self._idle:
                return self._idle.pop()
            worker = _Worker(self.command, self.startup_s)
            self._alive.add(worker)
            return worker

    def _discard(self, worker: _Worker) -> None:
        worker.end()
        with self._lock:
            self._alive.discard(worker)

    def close(self) -> None:
        """Ends every process, busy ones included (their callers get Unscorable)."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = self._alive - set(idle)
            self._alive.difference_update(idle)
        for worker in idle:
            worker.end()
        for worker in busy:  # their callers end them
            worker.kill()
