"""The import order of the design: a file imports only from floors strictly below its own.

A unit is a top-level module or package of mull. Files of one package may import each other; two units of the same
floor may not. An import under `if TYPE_CHECKING`, or inside a function, counts like any other: the order is
about what a reader must know, not about what happens to run.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "mull"

FLOORS: list[set[str]] = [
    {"mull"},  # the package's own __init__: its version
    {"errors"},  # floor 1 of the design: errors is below types, which needs the stop reasons
    {"types", "files", "machine"},
    {"ledger", "chat", "models", "graders", "config", "runfolder", "progress"},
    {"engine", "tasks", "learn"},
    {"scorers", "store"},
    {"search", "dist"},
    {"evals", "serve"},
    {"recipes"},
    {"cli"},
    {"__main__"},
]
FLOOR = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}


def unit_of(module: str) -> str:
    """`mull.engine.local` → `engine`; `mull` → `mull`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "mull"


def imported_modules(path: Path, root: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every module of mull that the file imports, wherever in the file the import stands."""
    rel = path.relative_to(root).with_suffix("")
    package = ["mull", *rel.parts[:-1]]
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for (
                alias
            ) in node.names:  # `from mull import types` names a module, `from mull.types import Cost` a thing in one
                deeper = root.joinpath(*module.split(".")[1:], alias.name)
                is_module = deeper.is_dir() or deeper.with_suffix(".py").exists()
                found.append((node.lineno, f"{module}.{alias.name}" if is_module else module))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                found.append((node.lineno, node.args[0].value))
    return [(line, name) for line, name in found if name == "mull" or name.startswith("mull.")]


def violations(root: Path) -> list[str]:
    """One sentence for each import that goes sideways or up, and for each unit that has no floor."""
    found: list[str] = []
    for path in sorted(root.rglob("*.py")):
        rel = path.relative_to(root)
        own = "mull" if rel == Path("__init__.py") else rel.parts[0].removesuffix(".py")
        if own not in FLOOR:
            found.append(f"{rel}: {own} has no floor: give it one in design and in this table")
            continue
        for line, name in imported_modules(path, root):
            other = unit_of(name)
            if other == own:
                continue
            if other not in FLOOR:
                found.append(f"{rel}:{line}: imports {name}, which has no floor")
            elif FLOOR[other] >= FLOOR[own]:
                found.append(f"{rel}:{line}: floor {FLOOR[own]} imports {name} of floor {FLOOR[other]}")
    return found


def test_every_file_imports_from_floors_below_its_own():
    assert violations(SRC) == []


def test_the_table_agrees_with_the_tree():
    """No unit of the tree is missed, so that an empty list of violations means something."""
    units = {p.name.removesuffix(".py") for p in SRC.iterdir() if p.suffix == ".py" or any(p.glob("**/*.py"))}
    assert units - {"__init__"} <= set(FLOOR)
    assert len(FLOOR) == sum(len(units) for units in FLOORS)
    assert imported_modules(SRC / "types.py", SRC) != []  # the parser does see imports


def plant(root: Path, files: dict[str, str]) -> list[str]:
    for name in {"engine/__init__.py", "tasks/__init__.py", "search/__init__.py", "types.py", "__init__.py"} | set(
        files
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files.get(name, ""))
    return violations(root)


@pytest.mark.parametrize(
    "source",
    [
        "import mull.search",
        "from mull.search import vote",
        "from mull import search",
        "from ..search import vote",
        "from .. import search",
        "import mull.types, mull.search.tree",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mull.search import vote",
        "def f():\n    from mull.search import vote",
        "import importlib\nimportlib.import_module('mull.search')",
        "from mull.tasks import base",  # sideways: another package of the same floor
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, source: str):
    found = plant(tmp_path, {"engine/local.py": source})
    assert len(found) == 1 and found[0].startswith("engine/local.py:"), found


@pytest.mark.parametrize(
    "source",
    [
        "from mull.types import Cost",
        "from mull import types",
        "from . import local",
        "from mull.engine.api import x",
        "from mull import __version__",
        "import torch",
        "from ..types import Cost",
        "import mullet.search",
    ],
)
def test_imports_from_below_and_from_the_own_package_pass(tmp_path: Path, source: str):
    assert plant(tmp_path, {"engine/local.py": source}) == []


def test_a_unit_without_a_floor_is_found(tmp_path: Path):
    assert len(plant(tmp_path, {"brandnew.py": ""})) == 1
    assert len(plant(tmp_path / "b", {"engine/local.py": "import mull.brandnew"})) == 1
