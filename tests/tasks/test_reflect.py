"""Reflections are true to the last line, by the tasks' own checkers, and never show a held-out problem."""

from __future__ import annotations

import random

import pytest

from mull.errors import UserError
from mull.tasks.base import SPLITS, Solution, Task, split_of
from mull.tasks.load import load_task
from mull.tasks.reflect import TASKS, FollowUp, Reflection, reflect, section
from mull.types import Problem, Question, Reference, StepKind


def cases(n: int = 25):
    for name in TASKS:
        task = load_task(name)
        for level in task.levels:
            for problem in task.up_to(level, "train", 3, n):
                yield task, problem


def test_every_line_of_every_reflection_is_true():
    for task, problem in cases():
        got = reflect(task, problem, random.Random(problem.question.id))
        worked = [(problem, got.alternative)]
        if got.followup is not None:
            worked.append((got.followup.problem, got.followup.worked))
        for judged, solution in worked:
            where = f"{judged.question.text!r}: {solution.thought!r}"
            assert task.check(judged, solution.answer).correct is True, where
            steps = task.check_steps(judged, solution.thought)
            assert steps and all(step.ok is True for step in steps), where
            assert not [s for s in steps if s.kind is StepKind.OTHER and not s.text.startswith("check")], where


def test_the_alternative_is_another_way():
    same = 0
    for task, problem in cases():
        assert isinstance(task, Task)
        other, first = reflect(task, problem, random.Random(1)).alternative, task.solve(problem)
        assert other.thought != first.thought
        if task.name == "countdown":
            forms = [task.canonical(problem.question, x) for x in (other.answer, problem.reference.answer)]
            assert (forms[0] == forms[1]) == other.thought.startswith("check")
            same += forms[0] == forms[1]
        else:
            assert other.answer == first.answer
            shared = set(other.thought.split("\n")[:-1]) & set(first.thought.split("\n"))
            assert not shared
    assert 10 < same < 90, "some have one expression only, others have several"


@pytest.mark.parametrize("split", SPLITS)
def test_a_further_problem_is_of_the_split_that_was_asked_for_and_another_one(split):
    from mull.tasks import chain

    found = asked = 0
    for task, problem in cases(12):
        got = reflect(task, problem, random.Random(2), split).followup
        asked += 1
        if got is None:
            continue
        found += 1
        text = got.problem.question.text
        a, _, b = text.removesuffix("=?").partition("+")
        if task.name == "chain":
            key = chain._key(chain._read(text))
            assert got.problem.reference.answer != problem.reference.answer
        else:
            key = f"{min(int(a), int(b))}+{max(int(a), int(b))}" if task.name == "addition" else text
        assert split_of(key) == split and text != problem.question.text
        assert got.problem.question.level == problem.question.level + (task.name == "addition")
    assert found > (0.7 if split == "valid" else 0.8) * asked  # a sixteenth of all problems is there


def test_the_same_random_numbers_write_the_same_reflection():
    for task, problem in cases(3):
        one, again = (reflect(task, problem, random.Random(5)) for _ in range(2))
        assert one == again
    drawn = [reflect(*next(cases(1)), random.Random(seed)).followup for seed in range(5)]
    assert len({f.asked for f in drawn if f}) > 1


def test_chain_by_hand():
    task = load_task("chain")
    problem = Problem(Question("q", "chain", "y=1;h=y+14;k=h*5;v=k-8;v?", 1), Reference("67"))
    got = reflect(task, problem, random.Random(0))
    assert got.alternative == Solution("v=k-8=(h*5)-8=((y+14)*5)-8=((1+14)*5)-8=(15*5)-8=75-8=67", "67")
    # h is used twice, so it gets a line of its own; w, which nothing needs, gets none
    problem = Problem(Question("q", "chain", "y=2;h=y+1;w=y+9;k=h*5;v=k-h;v?", 2), Reference("12"))
    got = reflect(task, problem, random.Random(0))
    assert got.alternative.thought == "h=y+1=2+1=3\nv=k-h=(h*5)-h=(3*5)-3=15-3=12"
    assert got.followup is not None
    name, _, value = got.followup.asked.removeprefix("if ").partition(",")[0].partition("=")
    assert name == "y" and f"y={value};" in got.followup.problem.question.text


def test_addition_by_hand():
    task = load_task("addition")
    problem = Problem(Question("q", "addition", "624+209=?", 3), Reference("833"))
    got = reflect(task, problem, random.Random(0))
    assert got.alternative == Solution("624+200=824\n824+9=833\n833", "833")
    assert got.followup is not None
    d, e = got.followup.asked.removeprefix("with ").removesuffix(" at the end?").split(" and ")
    assert got.followup.problem.question.text == f"624{d}+209{e}=?"


def test_the_section_as_text():
    first = Solution("a=1+1=2", "2")
    more = FollowUp(Problem(Question("q", "t", "x"), Reference("3")), "if b=2, a?", Solution("b=2\na=3", "3"))
    whole = Reflection(first, more)
    assert section(whole) == "\nAnother way:\na=1+1=2\n2\nNext: if b=2, a?\nb=2\na=3\n3"
    assert section(whole, followup=False) == section(Reflection(first, None)) == "\nAnother way:\na=1+1=2\n2"
    assert section(whole, alternative=False) == "\nNext: if b=2, a?\nb=2\na=3\n3"
    assert section(Reflection(first, None), alternative=False) == ""


def test_a_task_without_reflections_is_refused():
    task = load_task("maze")
    problem = next(task.stream(task.levels[0], "train", 0))
    with pytest.raises(UserError, match="maze has no written reflections: choose among chain, countdown, addition"):
        reflect(task, problem, random.Random(0))
