"""Environments of real clients: each is made once, under a cache folder outside the checkout, from its own pins.

    python("openai")     # the interpreter of an environment that has what requirements/openai.txt names

A folder is called after a hash of the pins and of the Python that it is for, so that changed pins make a new one. No
client's packages can come near those of mull, nor of another client.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
LIMIT = 3600.0  # seconds that the making of one may take
KEEP = ("PATH", "LANG", "LC_ALL", "TMPDIR", "TMP", "TEMP")
NOWHERE = "http://127.0.0.1:9"  # nothing listens there


class Unavailable(Exception):
    """The environment cannot be made here; the message says why."""


def python(name: str) -> Path:
    """The interpreter of a client's environment, which is made where it is not there yet. Unavailable."""
    pins = REQUIREMENTS / f"{name}.txt"
    made_for = f"{platform.python_implementation()} {platform.python_version()} {sys.platform} {platform.machine()}"
    key = sha256(f"{made_for}\n{pins.read_text()}".encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mull" / "clients"
    folder = base / f"{name}-{key}"
    interpreter, ready = folder / "bin" / "python", folder / "ready"
    base.mkdir(parents=True, exist_ok=True)
    with _locked(base / f"{name}.lock"):
        if not ready.exists():
            print(f"making an environment for {name} in {folder}", file=sys.stderr, flush=True)
            try:
                _run([sys.executable, "-m", "venv", "--clear", str(folder)])
                # The pins are complete. Without --no-deps a resolver might add packages of hundreds of megabytes.
                install = [str(interpreter), "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
                _run([*install, *shlex.split(os.environ.get("PIP_ARGS", "")), "--requirement", str(pins)])
                _run([str(interpreter), "-m", "pip", "check"])
            except Unavailable as problem:
                shutil.rmtree(folder, ignore_errors=True)
                raise Unavailable(f"there is no environment for {name}: {problem}") from None
            ready.touch()
    return interpreter


def lent(home: Path, **more: str) -> dict[str, str]:
    """Environment variables for a client: none of mull's, of an API's or of a user's own settings and caches, and no
    way to any network but this machine."""
    kept = {key: value for key, value in os.environ.items() if key in KEEP}
    proxies = {key: NOWHERE for key in ("http_proxy", "https_proxy", "all_proxy")}
    proxies |= {key.upper(): value for key, value in proxies.items()}
    here = {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    python = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    return {**kept, "HOME": str(home), **proxies, **here, **offline, **threads, **python, **more}


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{shlex.join(command)} took more than {LIMIT:g} s") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
        errors = [line for line in lines if "error" in line.lower()] or [line for line in lines if line]
        raise Unavailable(" / ".join(errors[-2:])[:400] or f"{shlex.join(command)} failed")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
