"""The problems that real evaluations are run on: eight of the chain task, as lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path

from mull.tasks.chain import Chain
from mull.types import Problem

N = 8


def problems() -> tuple[Chain, list[Problem]]:
    task = Chain()
    return task, task.problems(1, "test", 0, N)


def written(path: Path) -> list[Problem]:
    """Writes questions and answers, one problem a line."""
    found = problems()[1]
    lines = [{"id": p.question.id, "question": p.question.text, "answer": p.reference.answer} for p in found]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


def graded(answers: dict[str, str]) -> float:
    """The share of right answers, by question ids, as our own task judges them."""
    task, found = problems()
    assert set(answers) == {problem.question.id for problem in found}
    return sum(task.check(problem, answers[problem.question.id]).correct is True for problem in found) / N
