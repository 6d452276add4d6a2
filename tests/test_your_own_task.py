"""docs/your_own_task.md holds: its file is a task, its code prints what it says, its commands train on it.

python tests/test_your_own_task.py

runs the page's Python blocks and writes what they print into the page anew.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shlex
import tempfile
from pathlib import Path

import pytest

from mull.chat import Chat
from mull.cli import main
from mull.files import read_jsonl
from mull.models import hf
from mull.tasks.base import SPLITS, Task
from mull.tasks.load import load_task
from mull.types import Problem, StepKind
from tests.test_docs import a_model, blocks

PAGE = Path(__file__).parent.parent / "docs" / "your_own_task.md"


def the_file() -> str:
    """The one block of the page that is a task's file."""
    [code] = [b.text for b in blocks(PAGE.read_text()) if b.info == "python" and "class Shift(Task)" in b.text]
    return code


def typed() -> list[str]:
    """The command lines of the page's shell blocks, not those that its prose names."""
    text = "".join(b.text for b in blocks(PAGE.read_text()) if b.info == "sh").replace("\\\n", " ")
    return text.splitlines()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder, with the page's file in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shift.py").write_text(the_file())
    return tmp_path


@pytest.fixture
def task(home: Path) -> Task:
    found = load_task("shift.py:Shift")
    assert isinstance(found, Task)
    return found


def asked(task: Task, question: str) -> Problem:
    """The problem of this text, which `draw` is made to give."""
    start, end = (60 * int(h) + int(m) for h, m in (t.split(":") for t in question.removesuffix("?").split("-")))

    class Chosen(random.Random):
        numbers = iter((start, (end - start) % 1440))

        def randrange(self, *_args: int) -> int:  # type: ignore[override]
            return next(self.numbers)

    problem = task.problem(3, Chosen())[1]
    assert problem.question.text == question
    return problem


# ------------------------------------------------------------------------------------------------------ the page


def run_page() -> list[tuple[int, int, int, str]]:
    """Runs the blocks behind the file in one session; (line, start, end of an output block, what was printed)."""
    namespace: dict[str, object] = {"__name__": "page"}
    results, printed = [], None
    for block in blocks(PAGE.read_text()):
        if block.info == "python" and block.text != the_file():
            assert not printed, f"line {block.line}: the block above it printed and shows no output"
            code = compile("\n" * block.line + block.text, str(PAGE), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, namespace)
            printed = out.getvalue()
        elif block.info == "text" and printed is not None:
            results.append((block.line, block.start, block.end, printed))
            printed = None
    return results


def test_the_pages_code_prints_what_it_says(home: Path):
    results = run_page()
    assert len(results) == 4
    text = PAGE.read_text()
    for line, start, end, printed in results:
        assert printed == text[start:end], f"docs/your_own_task.md, line {line}: run python {Path(__file__).name}"


def test_the_file_is_short():
    assert sum(bool(line.strip()) for line in the_file().splitlines()) <= 100


# ------------------------------------------------------------------------------------------------------ the task


def test_it_validates_at_every_level_and_has_enough_problems(task: Task):
    validation = task.validate(n=300, seed=1)
    assert validation.checked == 900 and validation.failures == []
    for level in task.levels:
        for split in SPLITS:
            assert len(task.up_to(level, split, 0, 300)) == 300


@pytest.mark.parametrize(
    ("question", "answer"),
    [("9:47-17:05?", "7:18"), ("22:30-6:10?", "7:40"), ("0:00-23:59?", "23:59"), ("8:05-8:20?", "0:15")],
)
def test_answers_by_hand(task: Task, question: str, answer: str):
    problem = asked(task, question)
    assert problem.reference.answer == answer == task.solve(problem).answer
    assert task.check(problem, answer).correct and task.check(problem, answer.zfill(5)).correct
    assert task.check(problem, answer.zfill(5)).answer == answer  # one form, so one candidate in a vote
    assert task.canonical(problem.question, answer.zfill(5)) == answer
    for wrong in task.red_team(problem):
        verdict = task.check(problem, wrong)
        assert verdict.correct is False and verdict.answer == task.canonical(problem.question, wrong)


def test_the_lines_of_the_pages_first_example(task: Task):
    problem = asked(task, "9:47-17:05?")
    assert task.solve(problem).thought == "10:00 +0:13\n17:00 +7:13\n17:05 +7:18"
    lines = {
        "16:47 +7:00": True,  # another way of working
        "9:47 +0:00": True,
        "10:00 +0:12": False,
        "17:06 +7:19": False,  # true of a shift that went on
        "9:46 +23:59": False,
        "17:05 7:18": None,
        "10:00 +0:13 ": None,
        "": None,
    }
    verdicts = task.check_steps(problem, "\n".join(lines))
    assert [v.ok for v in verdicts] == list(lines.values())[:-1]  # an empty line is no step
    assert all(bool(v.why) == (v.ok is False) for v in verdicts)
    again = task.check_steps(problem, "10:00 +0:12\n10:00 +0:13\n10:00 +0:13\n17:05 +7:18")
    assert [v.kind for v in again] == [StepKind.WORK, StepKind.BACKTRACK, StepKind.CHECK, StepKind.WORK]


def test_the_imperfect_writer_is_imperfect(task: Task):
    """Right now and then at every level; false lines in right and in wrong answers; decimal hours; no thought."""
    rng = random.Random(0)
    for level in task.levels:
        right = false_in_right = without = decimal = 0
        for problem in task.problems(level, "train", 3, 400):
            worked = task.imperfect(problem, rng)
            verdict = task.check(problem, worked.answer)
            false = [v for v in task.check_steps(problem, worked.thought) if v.ok is False]
            right += bool(verdict.correct)
            false_in_right += bool(verdict.correct and false)
            without += not worked.thought
            decimal += verdict.answer is None
            assert verdict.correct or false or not worked.thought  # a wrong answer comes from somewhere
        assert 0.6 < right / 400 < 0.85 and 0.01 < false_in_right / 400 < 0.1
        assert 0.2 < without / 400 < 0.4 and decimal > 0


# -------------------------------------------------------------------------------------------------- the commands


@pytest.mark.slow
def test_the_pages_commands_train_on_it(home: Path, capsys: pytest.CaptureFixture[str]):
    """The page's own command lines, made short; what RL was paid is what the task's check says."""
    start = str(a_model(home))
    small = ["--quiet", "-o", "compile=false", "-o", "threads=1", "-o", "think_tokens=64", "-o", "eval_problems=4"]
    small += ["-o", "eval_samples=1", "-o", "checkpoint_every=1"]
    shorter = {
        "mull sft": ["--model", start, "--steps", "40", "-o", "step_tokens=512", "-o", "levels=1", *small],
        "mull rl": ["--steps", "2", "-o", "groups=2", "-o", "group_size=16", "-o", "levels=1", *small],
    }
    for command, further in shorter.items():
        [line] = [line for line in typed() if line.startswith(command + " ")]
        code = main([*shlex.split(line, comments=True)[1:], *further])
        assert code == 0, capsys.readouterr().err
    for run in ("sft", "rl"):
        hf.load(home / "runs" / run / "model")
        Chat.load(home / "runs" / run / "model")
    assert (home / "runs" / "rl" / "report.html").is_file()
    rows = list(read_jsonl(home / "runs" / "rl" / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["unscorable"] == 0 and set(row["reward_by_task"]) == {"shift"} for row in rows[1:])
    task, chains = load_task("shift.py:Shift"), 0
    for file in sorted((home / "runs" / "rl" / "traces").glob("*.jsonl")):
        for row in read_jsonl(file):
            problem = asked(task, row["text"])  # type: ignore[arg-type]
            for chain in row["chains"]:
                chains += 1
                assert task.check(problem, chain["answer"]).correct == chain["correct"]
    assert chains == 2 * 16


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "shift.py").write_text(the_file())
        back = os.getcwd()
        os.chdir(scratch)
        new = run_page()
        os.chdir(back)
    page = PAGE.read_text()
    for _, first, last, output in reversed(new):
        page = page[:first] + output + page[last:]
    PAGE.write_text(page)
