"""What a user's `pip install` gets: bounds that keep CUDA away, a light import, and every file of the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    requirement.name.lower().replace("_", "-"): requirement
    for line in (ROOT / "constraints" / "cpu-py311.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for requirement in [Requirement(line)]
}


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_torch_has_an_upper_bound():
    """Without one, pip on a CPU machine takes a newer CUDA build and several GB of libraries with it."""
    torch = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    assert torch.specifier.contains("2.11.0") and torch.specifier.contains("2.13.0+cpu")
    assert not torch.specifier.contains("2.13.1") and not torch.specifier.contains("2.15.0")


def test_the_core_is_small():
    core = {Requirement(r).name for r in PROJECT["dependencies"]}
    assert core == {"torch", "numpy", "safetensors", "tokenizers", "jinja2", "typer", "rich"}


def test_the_constraints_pin_exactly_and_satisfy_the_metadata():
    for name, pin in PINS.items():
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), f"{name} is not pinned to one version"
        assert pin.url is None
    assert str(PINS["torch"].specifier) == "==2.13.0"  # not +cpu: pip could not find that everywhere
    extras = [r for name in ("hf", "tasks", "dev") for r in PROJECT["optional-dependencies"][name]]
    for wanted in map(Requirement, [*PROJECT["dependencies"], *extras]):
        if wanted.name != "mull":
            version = str(PINS[wanted.name.lower()].specifier).removeprefix("==")
            assert wanted.specifier.contains(version), f"{wanted} against the tested {version}"
    assert not [name for name in PINS if name.startswith(("nvidia", "triton"))]


def test_every_extra_that_the_code_names_exists():
    """`MissingExtra(package, extra, ...)` tells people to install mull[extra]: it must be there."""
    named: dict[str, str] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for extra in re.findall(r"""MissingExtra\(\s*["'][^"']+["'],\s*["']([^"']+)["']""", path.read_text()):
            named[extra] = path.name
    assert set(named) <= set(PROJECT["optional-dependencies"]), named


def test_importing_mull_drags_nothing_heavy_in():
    done = run(sys.executable, "tests/check_core.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("planted", ["import sympy", "import transformers.utils"])
def test_a_heavy_import_would_be_noticed(tmp_path: Path, planted: str):
    (tmp_path / "mull").mkdir()
    (tmp_path / "mull" / "__init__.py").write_text("")
    (tmp_path / "mull" / "errors.py").write_text(planted)
    for name in ("sympy", "transformers"):  # stand-ins: the real ones take seconds to import
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "transformers" / "utils.py").write_text("")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, 'tests']; import check_core; print(check_core.problems(False))"
    )
    done = run(sys.executable, "-c", code)
    assert "which the core must do without" in done.stdout, done.stdout + done.stderr


def test_the_wheel_holds_the_model_and_the_report_assets(tmp_path: Path):
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    planted = [
        "mull/nano/planted.safetensors",
        "mull/nano/planted/tokenizer.json",
        "mull/nano/planted.log",  # a kind of file that git ignores
        "mull/evals/assets/planted.min.js",
        "mull/serve/page/planted.log",
    ]
    for name in planted:
        (tree / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "src" / name).write_bytes(b"x")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=tree)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("mull-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    source = {str(p.relative_to(tree / "src")) for p in (tree / "src").rglob("*") if p.is_file()}
    assert set(planted) <= source <= held
    assert not [name for name in held if "__pycache__" in name or name.startswith(("tests", "runs"))]


@pytest.mark.slow
def test_the_source_archive_holds_all_that_the_repository_does(tmp_path: Path):
    """Its tests read deploy/ and the scripts in runs/ as well."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    tracked = run("git", "ls-files").stdout.splitlines()
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path))
    assert done.returncode == 0, done.stderr
    [archive] = tmp_path.glob("mull-*.tar.gz")
    with tarfile.open(archive) as packed:
        held = {name.partition("/")[2] for name in packed.getnames()}
    assert len(tracked) > 100 and [name for name in tracked if name not in held and not name.startswith(".")] == []


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and PROJECT["license"] == "Apache-2.0"
