"""Where and by what a figure was made: versions, commit, processor. Nothing that identifies a person or a host."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path


def describe() -> dict[str, str]:
    """{"version", "commit", "python", "torch", "machine", "started"}; commit is "" outside a checkout of mull."""
    from mull import __version__

    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = ""
    return {
        "version": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch,
        "machine": machine(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def commit() -> str:
    """The checkout's commit, with "+changes" when tracked files differ from it; "" when this is no checkout of mull."""
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed mull may lie inside somebody else's checkout, whose commit would say nothing.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return ""
    head = git("rev-parse", "HEAD")
    return "" if head is None else head + ("+changes" if git("status", "--porcelain", "-uno") else "")


def machine() -> str:
    """In words: "2 × Intel(R) Xeon(R) …, 8 GB, Linux x86_64", and the GPU when torch is loaded and sees one."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    words = [f"{cores} × {processor}"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        words.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GB")
    words.append(f"{platform.system()} {platform.machine()}")
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        words.append(torch.cuda.get_device_name(0))
    return ", ".join(words)
