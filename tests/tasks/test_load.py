import json
import textwrap
from pathlib import Path

import pytest

from mull.errors import UserError
from mull.tasks.base import Checked, Task
from mull.tasks.dataset import DatasetTask
from mull.tasks.load import _DATA, _METHODS, PUZZLES, load_task


@pytest.mark.parametrize("name", PUZZLES)
def test_puzzles_by_name(name: str):
    task = load_task(name)
    assert isinstance(task, Task) and isinstance(task, Checked) and task.name == name


def test_the_members_asked_of_a_users_task_are_those_of_the_contract():
    contract = {member for member in vars(Checked) if not member.startswith("_")}
    assert {*_DATA, *_METHODS} == contract


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("chian", r"unknown task 'chian'; did you mean 'chain'\?; a task is one of addition, chain"),
        ("", "unknown task ''; a task is one of"),
        ("Addition", "did you mean 'addition'"),
        ("http://x", "unknown task"),
        ("tasks.py", r"names a file but no class in it: write tasks.py:ClassName"),
        ("nowhere/tasks.py:Mine", r"the task file nowhere/tasks.py does not exist"),
        ("nowhere.jsonl", r"data set nowhere.jsonl does not exist"),
        ("gym:", "reasoning-gym set ''"),
        ("gym:chain_sums", r"reasoning-gym set 'chain_sums' is not among .*did you mean 'chain_sum'\?"),
    ],
)
def test_mistakes_are_one_sentence(spec: str, sentence: str):
    with pytest.raises(UserError, match=sentence) as caught:
        load_task(spec)
    assert "\n" not in str(caught.value)


def test_data_sets_with_and_without_a_split(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}+1?", "answer": n + 1}) + "\n" for n in range(40)))
    task = load_task(str(path))
    assert isinstance(task, DatasetTask) and len(task.problems(0, "test", 0, 40)) == 40
    assert len(load_task(f"{path}:train").problems(0, "train", 0, 40)) == 40
    hashed = load_task(f"{path}:hash")
    assert all(0 < len(hashed.up_to(0, split, 0, 99)) < 40 for split in ("train", "test"))
    with pytest.raises(UserError, match=r"unknown split 'trian'.*did you mean 'train'"):
        load_task(f"{path}:trian")


OWN = """
    import random
    from dataclasses import dataclass
    from mull.tasks.base import Solution, Task
    from mull.types import Reference, Verdict

    @dataclass
    class Note:  # a dataclass looks its module up in sys.modules
        text: str

    class Double(Task):
        name = "double"
        levels = (1,)
        description = "Doubles a number."

        def draw(self, level, rng):
            n = rng.randrange(10_000)
            return str(n), f"2*{n}=", Reference(str(2 * n))

        def check(self, problem, answer):
            return Verdict(answer.strip() == problem.reference.answer, answer.strip())

        def check_steps(self, problem, thought):
            return []

        def canonical(self, question, answer):
            return answer.strip() or None

        def solve(self, problem):
            return Solution("", problem.reference.answer)

        def imperfect(self, problem, rng):
            return self.solve(problem)

        def red_team(self, problem):
            return [problem.reference.answer + " or 1"]

    class Half(Task):
        name = "half"

    class Odd:
        name, levels = "odd", (0,)

    def function():
        return Double()
"""


def test_a_class_of_ones_own(tmp_path: Path):
    path = tmp_path / "my tasks.py"
    path.write_text(textwrap.dedent(OWN))
    task = load_task(f"{path}:Double")
    assert isinstance(task, Task) and task.validate(5).failures == []
    for name, sentence in [
        ("Doubl", r"has no class 'Doubl'; did you mean 'Double'\?"),
        ("function", "has no class 'function'"),
        ("Half", "cannot be made without arguments: .*abstract"),
        ("Odd", "lacks description, max_thought, stream, .*subclass mull.tasks.base.Task"),
    ]:
        with pytest.raises(UserError, match=sentence):
            load_task(f"{path}:{name}")


def test_a_file_of_ones_own_that_does_not_run(tmp_path: Path):
    path = tmp_path / "tasks.py"
    path.write_text("class Double(Task): pass\n")
    with pytest.raises(UserError, match=r"tasks.py does not run: NameError: name 'Task' is not defined"):
        load_task(f"{path}:Double")
    path.write_text("class Double(\n")
    with pytest.raises(UserError, match=r"does not run: SyntaxError"):
        load_task(f"{path}:Double")
    with pytest.raises(UserError, match=r"task.py does not exist; did you mean 'tasks.py'\?"):
        load_task(f"{tmp_path}/task.py:Double")
