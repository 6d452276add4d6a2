"""What the documents say holds: the tour runs, paths and links exist, commands and config keys parse.

    python tests/test_docs.py [MODEL FOLDER]

runs the tour and writes its outputs into docs/tour.md anew.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "docs" / "tour.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
DOCUMENTS += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "methods").glob("*.md"))]

# ---------------------------------------------------------------------------------------------- reading Markdown


@dataclass
class Block:
    info: str  # what stands behind the opening fence
    text: str
    line: int  # of the opening fence
    start: int = 0  # of the text, in characters
    end: int = 0


def blocks(markdown: str) -> list[Block]:
    """The fenced code blocks."""
    found = []
    for match in re.finditer(r"^```([^\n`]*)\n(.*?)^```[ ]*$", markdown, re.MULTILINE | re.DOTALL):
        line = markdown.count("\n", 0, match.start()) + 1
        found.append(Block(match[1].strip(), match[2], line, match.start(2), match.end(2)))
    return found


def without_blocks(markdown: str) -> str:
    """The prose: no code blocks, no comments, no footnotes (those of README name other projects' files)."""
    markdown = re.sub(r"<!--.*?-->|^\[\^[\w-]+\]:.*$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^```[^\n`]*\n.*?^```[ ]*$", "", markdown, flags=re.MULTILINE | re.DOTALL)


def inline_code(markdown: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", without_blocks(markdown))]


# ------------------------------------------------------------------------------------------------------ the tour


def run_tour(model_folder: Path) -> list[tuple[Block, str]]:
    """Runs the tour's Python blocks in order, in one namespace; (output block, what the code above it printed)."""
    from mull.models import nano

    shipped = nano.shipped_folder
    nano.shipped_folder = lambda: model_folder
    namespace: dict[str, Any] = {"__name__": "tour"}
    results, printed = [], None
    try:
        for block in blocks(TOUR.read_text()):
            if block.info == "python":
                assert not printed, f"docs/tour.md, line {block.line}: the block above it printed and shows no output"
                code = compile("\n" * block.line + block.text, str(TOUR), "exec")  # line numbers as in the file
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(code, namespace)
                printed = out.getvalue()
            elif printed is not None:
                assert block.info in ("text", "text weights"), f"docs/tour.md, line {block.line}: {block.info!r}"
                results.append((block, printed))
                printed = None
    finally:
        nano.shipped_folder = shipped
    return results


def a_model(folder: Path) -> Path:
    """The model that ships, or where it is not built yet a small one with random weights."""
    from mull.errors import UserError
    from mull.models import hf, nano

    try:
        return nano.shipped_folder()
    except UserError:
        config = replace(nano.nano_config(), hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2)
        nano.write_tokenizer(folder / "tokenizer")
        hf.save(hf.init(replace(config, num_kv_heads=1), seed=0), folder / "model", source=folder / "tokenizer")
        return folder / "model"


def test_the_tour_runs_and_prints_what_it_says(tmp_path: Path):
    results = run_tour(a_model(tmp_path))
    compared = [(block, printed) for block, printed in results if block.info == "text"]
    assert len(compared) >= 8
    for block, printed in compared:
        assert printed == block.text, f"docs/tour.md, line {block.line}: run python tests/test_docs.py"


# ----------------------------------------------------------------------------------------------- a task of one's own


def test_the_readmes_task_can_be_trained_on(tmp_path: Path):
    from mull.recipes.rl import RLConfig, rl
    from mull.recipes.sft import SFTConfig, sft
    from mull.tasks.base import Task
    from mull.tasks.load import load_task

    [code] = [block.text for block in blocks((ROOT / "README.md").read_text()) if block.info == "python"]
    (tmp_path / "reverse.py").write_text(code)
    spec = f"{tmp_path / 'reverse.py'}:Reverse"
    task = load_task(spec)
    assert isinstance(task, Task)
    validation = task.validate(n=100)
    assert validation.checked == 200 and validation.failures == []
    small: dict[str, Any] = {"tasks": (spec,), "compile": False, "eval_problems": 4, "eval_samples": 1}
    small |= {"think_tokens": 24, "answer_tokens": 8, "checkpoint_every": 1}
    start = str(a_model(tmp_path))
    tuned = sft(
        SFTConfig(model=start, out=tmp_path / "sft", source="imperfect", steps=2, step_tokens=256, **small),
        mode="quiet",
    )
    trained = rl(
        RLConfig(model=str(tuned), out=tmp_path / "rl", steps=1, groups=2, group_size=2, eval_every=1, **small),
        mode="quiet",
    )
    assert (trained / "config.json").exists()


# ------------------------------------------------------------------------------------------------ paths and links

FOLDERS = ("src/", "docs/", "tests/", "runs/", "benchmarks/", "constraints/", ".ci/")
SCRIPTS = "".join(script.read_text() for script in (ROOT / "runs").glob("*.sh"))
MADE = {  # by running mull: by the documents' own examples, and by the scripts in runs/
    *("runs/demo", "runs/rl", "runs/sft", "runs/qwen", "runs/nano", "docs/evidence"),
    *("runs/prm", "runs/compare", "runs/calibrate", "runs/random"),
    *re.findall(r"runs/[a-z-]+\b(?![._])", SCRIPTS),
}


FILES = (".py", ".cpp", ".sh", ".md")
EXAMPLES = ("reverse.py",)  # a reader's own file


def paths_in(code: str) -> list[str]:
    """The paths of this repository that a piece of code names: `src/mull/types.py`, `tests/conformance/`."""
    return [w.rstrip(".,;:)") for w in code.split() if w.startswith(FOLDERS) and not set("*<>{}…=") & set(w)]


def files_in(code: str) -> list[str]:
    """The file names in a piece of code, perhaps relative to the package: `learn/advantages.py`, `types.py`."""
    words = [w.rstrip(".,;:)") for w in code.split()]
    return [w for w in words if w.endswith(FILES) and not w.startswith((*FOLDERS, "path/")) and w not in EXAMPLES]


def is_made(path: str) -> bool:
    return any(path == made or path.startswith(made + "/") for made in MADE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_paths_exist(document: Path):
    text = document.read_text()
    missing = []
    for target in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", without_blocks(text)):
        path, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        linked = (document.parent / path).resolve() if path else document
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            missing.append(target)
    code = inline_code(text) + [line for block in blocks(text) for line in block.text.splitlines()]
    for path in [path for piece in code for path in paths_in(piece)]:
        if not is_made(path) and not (ROOT / path).exists():
            missing.append(path)
    for name in [name for piece in inline_code(text) for name in files_in(piece)]:
        if not any((base / name).exists() for base in (document.parent, ROOT, ROOT / "src", ROOT / "src" / "mull")):
            missing.append(name)
    assert not missing


def anchors(document: Path) -> set[str]:
    """As GitHub makes them from headings: lower case, punctuation out, spaces to hyphens."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_footnotes_have_their_text(document: Path):
    text = document.read_text()
    used = set(re.findall(r"\[\^([\w-]+)\](?!:)", without_blocks(text)))
    defined = set(re.findall(r"^\[\^([\w-]+)\]:", text, re.MULTILINE))
    assert used == defined


# ------------------------------------------------------------------------------------------------------- commands


def commands(document: Path) -> list[str]:
    """Every command line `mull …` of the document, from code blocks for a shell and from inline code."""
    text = document.read_text()
    lines = inline_code(text)
    for block in blocks(text):
        if block.info in ("", "sh", "bash", "console"):
            lines += block.text.replace("\\\n", " ").splitlines()
    lines = [re.sub(r"^(\$ )?(OMP_\w+=\w+ )*(\.venv/bin/)?", "", line.strip()) for line in lines]
    return [line for line in lines if line.startswith("mull ")]


def parse(line: str) -> None:
    """AssertionError, or the parser's own error, where the command line would be refused."""
    import typer

    from mull import cli
    from mull.cli.training import meant, row_of
    from mull.config import load

    words = shlex.split(line, comments=True)[1:]
    group: Any = typer.main.get_command(cli.app)
    if words[0].startswith("-"):
        assert words in (["--help"], ["--version"]), line
        return
    assert words[0] in group.commands, f"{line}: there is no such command"
    command, arguments = group.commands[words[0]], words[1:]
    while arguments and hasattr(command, "commands"):  # a group of commands
        assert arguments[0] in command.commands, f"{line}: there is no such command"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if not arguments or arguments == ["--help"]:
        return  # the command's name alone
    ctx = command.make_context(words[0], list(arguments))
    if row := row_of(words):
        overrides = [
            *(ctx.params["override"] or []),
            *([f"algorithm={a}"] if (a := ctx.params.get("algorithm")) else []),
        ]
        load(meant(row, None, overrides).load()[0], None, overrides)


@pytest.mark.parametrize("line", sorted({line for document in DOCUMENTS for line in commands(document)}))
def test_commands_parse(line: str):
    parse(line)


@pytest.mark.parametrize(
    "line", ["mull rl --nonsense 3", "mull rl -o lrr=1", "mull rll", "mull eval --n many --task x"]
)
def test_a_command_that_is_wrong_is_noticed(line: str):
    with pytest.raises(Exception):  # noqa: B017  # the parser's, mull's or ours: all make test_commands_parse fail
        parse(line)


def test_readme_names_every_command():
    import typer

    from mull import cli

    group: Any = typer.main.get_command(cli.app)
    named = {shlex.split(line, comments=True)[1] for line in commands(ROOT / "README.md")}
    assert named >= set(group.commands)


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text()
        code = inline_code(text) + [line.strip() for block in blocks(text) for line in block.text.splitlines()]
        for piece in code:
            if match := re.match(r"make(?: \w+=\S+)* ([a-z-]+)(?:\s|$)", piece):
                assert match[1] in targets, f"{document.name}: {piece}"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        new = run_tour(Path(sys.argv[1]) if len(sys.argv) > 1 else a_model(Path(scratch)))
    text = TOUR.read_text()
    for block, printed in reversed(new):
        text = text[: block.start] + printed + text[block.end :]
    TOUR.write_text(text)
