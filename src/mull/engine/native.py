"""Builds and loads the CPU attention kernel with the machine's own C++ compiler, once, into the user's cache folder.

Where there is no compiler the engine runs on torch alone (`status()` says so); results agree to float rounding.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("paged_attention.cpp")


def _cache_folder() -> Path:
    return Path(os.environ.get("MULL_CACHE") or Path.home() / ".cache" / "mull")


def _cpu() -> str:
    """What `-march=native` depends on: a cache folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
    except OSError:
        return platform.processor() + platform.machine()


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The loaded library, or None; and one sentence about it."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if os.environ.get("MULL_NATIVE") == "0":
        return None, "native attention is switched off (MULL_NATIVE=0): the engine runs on torch alone"
    if not compiler:
        return None, "no C++ compiler was found (g++ or clang++): the engine runs on torch alone, several times slower"
    flags = ["-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math"]
    flags += ["-fopenmp", "-fopenmp-simd", "-ffp-contract=fast", "-fno-signed-zeros"]
    if "AVX512" in _cpu().upper():
        flags.append("-mprefer-vector-width=512")
    digest = hashlib.blake2b(
        _SOURCE.read_bytes() + " ".join([compiler, *flags]).encode() + _cpu().encode(), digest_size=8
    ).hexdigest()
    library = _cache_folder() / f"paged_attention-{digest}.so"
    if not library.exists():
        try:
            library.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=library.parent) as temporary:
                built = Path(temporary) / "kernel.so"
                subprocess.run(
                    [compiler, *flags, str(_SOURCE), "-o", str(built)], check=True, capture_output=True, timeout=120
                )
                os.replace(built, library)
        except (OSError, subprocess.SubprocessError) as error:
            detail = getattr(error, "stderr", None) or str(error).encode()
            last = detail.decode(errors="replace").strip().splitlines()[-1:]
            return (
                None,
                f"{compiler} could not build the attention kernel ({' '.join(last)}): the engine runs on torch alone",
            )
    loaded = ctypes.CDLL(str(library))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    loaded.write_pages.argtypes = [pointer] * 5 + [size] + [pointer] * 2 + [size] * 3
    loaded.write_pages.restype = None
    loaded.paged_attention.argtypes = [pointer] * 4 + [size] + [pointer] * 3 + [size] * 5 + [ctypes.c_float]
    loaded.paged_attention.restype = None
    return loaded, f"native attention kernel built by {compiler}"


def status() -> str:
    return load()[1]
