"""Imports every module of mull and says what that dragged in: the core must do with its own dependencies.

    python tests/check_core.py           no optional package may be imported by importing mull
    python tests/check_core.py --plain   moreover, in an environment that holds `pip install mull` and nothing else:
                                         no CUDA package and no triton came with it

Prints what it found and exits with 1 when that is not so. Needs nothing but mull itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys

# What belongs to an extra or is slow to import. A module of mull may import these inside a function only.
HEAVY = {
    "transformers", "sympy", "reasoning_gym", "math_verify", "fastapi", "pydantic", "uvicorn", "ray", "tensorboard",
    "datasets", "peft", "trl", "matplotlib", "pandas", "scipy", "huggingface_hub", "httpx2", "vllm", "hypothesis",
    "pytest",
}  # fmt: skip
# The server is an extra as a whole; what a request is and what it may spend is not.
SERVER, ITS_CORE = "mull.serve.", ("errors", "settings", "plan", "summary", "live", "job")
TORCH_FREE = ("mull.types", "mull.errors", "mull.config", "mull.tasks", "mull.graders")


def modules() -> list[str]:
    """The names of all modules of the installed mull, except those that run when imported."""
    import mull

    found = ["mull", *(m.name for m in pkgutil.walk_packages(mull.__path__, "mull.", onerror=_fail))]
    return sorted(name for name in found if not name.endswith("__main__") and in_the_core(name))


def in_the_core(name: str) -> bool:
    return not name.startswith(SERVER) or name.removeprefix(SERVER) in ITS_CORE


def _fail(name: str) -> None:
    raise ImportError(f"{name} cannot be imported")


def torch_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in TORCH_FREE)


def problems(plain: bool) -> list[str]:
    found: list[str] = []
    names = modules()
    for free_first in (True, False):  # the torch-free part first, while torch is still unloaded
        for name in names:
            if torch_free(name) == free_first and name != "mull":
                importlib.import_module(name)
                if free_first and "torch" in sys.modules:
                    return [f"{name} imports torch, and must not"]
                if heavy := sorted(HEAVY & set(sys.modules)):
                    return [f"importing {name} imports {', '.join(heavy)}, which the core must do without"]
    if plain:
        for dist in importlib.metadata.distributions():
            name = dist.metadata["Name"].lower()
            if name.startswith("nvidia-") or name in {
                "triton",
                "transformers",
                "pytest",
                "reasoning-gym",
                "math-verify",
            }:
                found.append(f"a plain install of mull brought {name} {dist.version}")
    print(f"imported {len(names)} modules of mull {importlib.metadata.version('mull')}")
    return found


if __name__ == "__main__":
    failures = problems(plain="--plain" in sys.argv[1:])
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(bool(failures))
