"""Critiques as training data: what is written, what is learnt from, and errors planted where they are said to be."""

import random
from collections import Counter
from functools import cache
from tempfile import TemporaryDirectory

import pytest

from mull.chat import Chat
from mull.learn.critique import (
    MARKER,
    WRONG_ANSWER,
    critique_sample,
    critique_text,
    first_wrong,
    parse_critique,
    plant,
)
from mull.models.nano import write_tokenizer
from mull.tasks.addition import Addition
from mull.tasks.chain import Chain
from mull.tasks.countdown import Countdown
from mull.types import Problem, Question, Reference, StepVerdict

TASKS = (Chain(), Addition(), Countdown())
RIGHT, SILENT, WRONG = StepVerdict("a", True), StepVerdict("b", None), StepVerdict("c", False, why="c  is\n66")


@cache
def chat() -> Chat:
    with TemporaryDirectory() as folder:
        write_tokenizer(folder)
        return Chat.load(folder)


def problems(task, n=40):
    return [p for level in task.levels[1:4] for p in task.problems(level, "train", 3, n // 3)]


def test_the_first_false_line_is_named_and_the_answer_is_the_step_after_the_last():
    assert critique_text([RIGHT, SILENT], True) == critique_text([RIGHT], None) == critique_text([], None) == "ok"
    assert critique_text([RIGHT, SILENT, WRONG, WRONG], True) == "3 c is 66", "a right answer by wrong reasoning"
    assert critique_text([RIGHT, SILENT], False) == f"3 {WRONG_ANSWER}"
    assert critique_text([], False) == f"1 {WRONG_ANSWER}"
    assert critique_text([WRONG], False) == critique_text([WRONG, RIGHT], True) == "1 c is 66", "mended later or not"
    assert critique_text([StepVerdict("x", False)], None) == "1 the step is false"


@pytest.mark.parametrize(
    "text", ["", "o", "okay", "ok.", "0 wrong", "02 wrong", "-1 x", "2wrong", "step 2", "yes", "²"]
)
def test_what_is_no_critique_is_not_read_as_one(text):
    assert parse_critique(text) == (None, None, "")


def test_every_critique_of_a_task_can_be_read_back():
    seen = Counter()
    for task in TASKS:
        rng = random.Random(1)
        for problem in problems(task):
            solution = task.imperfect(problem, rng)
            steps = task.check_steps(problem, solution.thought)
            right = task.check(problem, solution.answer).correct
            fine, step, why = parse_critique(critique_text(steps, right))
            seen[fine] += 1
            if fine:
                assert right and step is None and all(s.ok is not False for s in steps)
            elif step == len(steps) + 1:
                assert not right and why == WRONG_ANSWER
            else:
                assert steps[step - 1].ok is False and why == steps[step - 1].why
                assert all(s.ok is not False for s in steps[: step - 1])
    assert seen[True] > 20 and seen[False] > 20


def test_only_the_critique_and_its_end_are_learnt_and_the_prefix_is_the_policys():
    prefix = [*chat().prompt("a=1;b=a+2;b?"), *chat().reply("b=1+2=4", "4")]
    sample = critique_sample(chat(), prefix, "1 b is 3")
    assert list(sample.tokens[: len(prefix)]) == prefix
    learnt = [token for token, weight in zip(sample.tokens, sample.ce, strict=True) if weight]
    assert learnt == [*chat().encode("1 b is 3"), chat().turn_end]
    assert list(sample.tokens[len(prefix) :]) == [*chat().encode(MARKER), *learnt]
    assert not any(sample.mask) and not any(sample.advantages)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_planted_error_is_the_first_false_line_and_the_only_change(task):
    lines, kinds, missed = Counter(), Counter(), 0
    for i, problem in enumerate(problems(task)):
        thought = task.solve(problem).thought
        planted = plant(problem, task, thought, random.Random(i))
        missed += planted is None
        if planted is None:
            continue
        spoilt, number = planted
        before, after = task.check_steps(problem, thought), task.check_steps(problem, spoilt)
        changed = [k for k, (old, new) in enumerate(zip(before, after, strict=True), 1) if old.text != new.text]
        assert changed == [number] == [first_wrong(after)]
        assert before[: number - 1] == after[: number - 1]
        assert int(critique_text(after, False).split()[0]) == number
        lines[number] += 1
        old, new = before[number - 1].text, after[number - 1].text
        kinds["digits" if [c for c in old if not c.isdigit()] == [c for c in new if not c.isdigit()] else "other"] += 1
    assert missed == 0 and len(lines) > 1, "errors stand in different lines"
    assert kinds["digits"] > 5 and (kinds["other"] > 0 or task.name == "addition")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_thoughts_that_are_wrong_already_get_an_earlier_error_or_none(task):
    rng, moved, none = random.Random(5), 0, 0
    for problem in problems(task, 120):
        thought = task.imperfect(problem, rng).thought
        was = first_wrong(task.check_steps(problem, thought))
        planted = plant(problem, task, thought, rng)
        if planted is None:
            none += 1
        elif was is not None:
            moved += 1
            assert planted[1] < was
    assert moved > 3 and none > 3


def test_planting_is_a_function_of_the_seed():
    task = Chain()
    [problem] = task.problems(3, "train", 0, 1)
    thought = task.solve(problem).thought
    draws = [plant(problem, task, thought, random.Random(seed)) for seed in (1, 1, 2, 3, 4)]
    assert draws[0] == draws[1] and len(set(draws)) > 2


def test_blank_lines_are_no_steps_and_lines_without_claims_stay():
    task = Chain()
    problem = Problem(Question("q", "chain", "a=7;b=a+15;c=b*3;c?"), Reference("66"))
    thought = "let us see\n\nb=7+15=22\n\nc=22*3=66"
    found = {plant(problem, task, thought, random.Random(seed)) for seed in range(20)}
    assert {number for _, number in found} == {2, 3}
    assert all(spoilt.startswith("let us see\n\n") and len(spoilt.split("\n")) == 5 for spoilt, _ in found)
    assert plant(problem, task, "let us see", random.Random(0)) is None
    assert plant(problem, task, "", random.Random(0)) is None


def test_a_checker_that_looks_ahead_does_not_mislabel_earlier_lines():
    """Where an edit changes the verdict on a line before it, the edit is not kept."""

    class LooksAhead:
        def check_steps(self, problem, thought):
            lines = thought.split("\n")
            return [StepVerdict(line, lines == ["1", "2"] or line == "2") for line in lines]

    problem = Problem(Question("q", "t", "?"), Reference("2"))
    for seed in range(10):
        planted = plant(problem, LooksAhead(), "1\n2", random.Random(seed))
        assert planted is None or planted[1] == 1, "a change of line 2 makes line 1 false"
