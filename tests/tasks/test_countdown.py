import random
from fractions import Fraction
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.tasks.base import SPLITS, split_of
from mull.tasks.countdown import LEVELS, MOST_CHARS, Countdown, _read
from mull.types import Problem, Question, Reference, StepKind

TASK = Countdown()


def problem(text: str, answer: str) -> Problem:
    return Problem(Question("countdown/0/x", "countdown", text), Reference(answer))


HAND = problem("3 7 12 -> 33", "7*3+12")
TWICE = problem("3 3 8 8 -> 24", "8/(3-8/3)")  # its only solution passes through 1/3


def judged(thought: str, p: Problem = HAND) -> list[tuple[bool | None, str]]:
    return [(s.ok, s.kind.value) for s in TASK.check_steps(p, thought)]


def test_validate():
    result = TASK.validate()
    assert result.checked == 200 and result.failures == []


@pytest.mark.parametrize("answer", ["3*7+12", "12+7*3", "((7)*(3))+12", " 12 + 3 * 7 ", "12+(3*7)\n"])
def test_right_answers(answer: str):
    assert TASK.check(HAND, answer).correct is True
    assert TASK.check(HAND, answer).answer == TASK.canonical(HAND.question, answer) == "12+3*7"


@pytest.mark.parametrize(
    "answer",
    [
        "33",
        "33=33",
        "3*7+12=33",
        "3*7+12 yes",
        "3*7+12 (I checked)",
        "3*7+12\n12+3*7",
        "12+21",  # 21 is not given
        "3*12-3",  # a number twice, another not at all
        "3*7+12+7-7",
        "3*7+12*1",
        "3*7+12.0",
        "3*7+012",
        "3*7+1 2",
        "3x7+12",
        "3×7+12",
        "-(-3)*7+12",
        "--3*7+12",
        "+3*7+12",
        "3*7--12",
        "３*７+１２",
        "3*7+1²",
        "12+3*7*(3-2)",
        "12/(7-7)*3",
        "9**9**9",
        "3**7+12",
        "(3*7+12",
        "3*7+12)",
        "3(7)+12",
        "3 7 12",
        "'3'*7+12",
        "",
        " ",
        "\t3*7+12",
        "(" * 10_000 + "3*7+12" + ")" * 10_000,
        "(" * 40 + "3*7+12" + ")" * 40,
        "9" * 100_000,
    ],
)
def test_wrong_answers(answer: str):
    verdict = TASK.check(HAND, answer)
    assert verdict.correct is False and verdict.answer is None and verdict.error
    assert TASK.canonical(HAND.question, answer) is None


def test_an_answer_that_misses_the_target_has_a_canonical_form_and_is_wrong():
    verdict = TASK.check(HAND, "(12-3)*7")
    assert (verdict.correct, verdict.answer, verdict.error) == (False, "(12-3)*7", "")


def test_values_are_exact_and_equal_numbers_are_told_apart():
    assert TASK.check(TWICE, "8/(3-8/3)").correct is True
    assert TASK.check(TWICE, "8*3").correct is False
    assert TASK.check(TWICE, "(8-3)*8/3").correct is False
    assert TASK.check(problem("3 3 1 -> 1", ""), "3/3*1").correct is True
    assert TASK.check(problem("1 3 9 -> 3", ""), "9/3*1").correct is True
    assert TASK.check(problem("1 3 10 -> 3", ""), "10/3*1").correct is False  # not rounded


@pytest.mark.parametrize(
    "same",
    [
        ["3+(7-2)", "7+3-2", "7-2+3", "7-(2-3)", "3-(2-7)"],
        ["3*(7/2)", "7*3/2", "3/2*7", "7/(2/3)"],
        ["3*(7-2)", "(7-2)*3"],
        ["2/(7-3)", "2/((7-3))"],
    ],
)
def test_canonical_forms_of_equal_expressions_are_equal(same: list[str]):
    question = Question("x", "countdown", "2 3 7 -> 10")
    forms = {TASK.canonical(question, text) for text in same}
    assert len(forms) == 1 and None not in forms


def test_canonical_form_keeps_the_value_and_is_its_own():
    question, values = Question("x", "countdown", "2 3 5 7 -> 99"), {}
    rng = random.Random(0)
    for _ in range(500):
        a, b, c, d = rng.sample("2357", 4)
        x, y, z = rng.choices("+-*/", k=3)
        text = rng.choice([f"{a}{x}{b}{y}{c}{z}{d}", f"({a}{x}{b}){y}({c}{z}{d})", f"{a}{x}({b}{y}({c}{z}{d}))"])
        form = TASK.canonical(question, text)
        assert form is None or TASK.canonical(question, form) == form
        if form is not None:
            value = eval(text.translate(str.maketrans({n: f"Fraction({n})" for n in "2357"})), {"Fraction": Fraction})
            assert values.setdefault(form, value) == value
    assert len(values) > 100


@pytest.mark.parametrize(
    ("line", "ok", "kind"),
    [
        ("3*7=21 21+12=33 yes", True, "work"),
        ("12-3=9 9*7=63 no", True, "backtrack"),
        ("12*7=84 back", True, "backtrack"),
        ("3*12=36 no", True, "backtrack"),  # it is not the target, true
        ("3-12=-9 -9*7=-63 no", True, "backtrack"),
        ("12-3=9 9*7=63 yes", False, "work"),
        ("3*7=21 21+12=33 no", False, "backtrack"),
        ("3*7=21 21+12=33 back", False, "backtrack"),
        ("3*7=20 20+12=32 no", False, "backtrack"),
        ("3*7=21 21+12=33 33*1=33 yes", False, "work"),
        ("3*7=21 21+7=28 no", False, "backtrack"),  # the 7 is used up
        ("3*3=9 9+12=21 no", False, "backtrack"),
        ("3*11=33 yes", False, "work"),
        ("7/3=2 back", False, "backtrack"),
        ("3/0=3 back", False, "backtrack"),
        ("21+12=33 3*7=21 yes", False, "work"),  # 21 is used before it is there
        ("3*7=21", True, "work"),
        ("3*7+12=33 yes", None, "other"),
        ("yes", None, "other"),
        ("check 3*7+12=33 ok", True, "other"),
    ],
)
def test_lines(line: str, ok: bool | None, kind: str):
    assert judged(line) == [(ok, kind)]


def test_partial_result_equal_to_the_target_is_no_solution():
    assert judged("3*11=33 yes", problem("3 11 5 -> 33", "")) == [(False, "work")]


def test_repeated_attempts_are_true_and_checks_count_after_a_claim():
    assert judged("12-3=9 9*7=63 no\n12-3=9 9*7=63 no")[1] == (True, "backtrack")
    assert judged("3*7=21 21+12=33 yes\ncheck 3*7+12=33 ok")[1] == (True, "check")
    assert judged("3*7=21 21+12=33 yes\ncheck 3*7+12=33 no")[1] == (False, "check")


def test_splits_share_no_problem_and_membership_is_a_hash_of_the_key():
    for level in TASK.levels:
        seen = {
            split: {tuple(map(str, _read(p.question.text))) for seed in range(3) for p in stream(level, split, seed)}
            for split in SPLITS
        }
        assert not (seen["train"] & seen["test"] or seen["train"] & seen["valid"] or seen["test"] & seen["valid"])
        assert all(split_of(p.question.text) == "test" for p in stream(level, "test", 0))


def stream(level, split, seed, n=100):
    return islice(TASK.stream(level, split, seed), n)


@pytest.mark.parametrize("level", TASK.levels)
def test_problems_are_as_the_level_says_and_every_gold_step_is_true(level: int):
    count, largest, low, high = LEVELS[level]
    dead_ends = 0
    for p in stream(level, "train", 1, 200):
        numbers, target = _read(p.question.text)
        assert (
            len(numbers) == count and numbers == sorted(numbers) and max(numbers) <= largest and low <= target <= high
        )
        gold = TASK.solve(p)
        steps = TASK.check_steps(p, gold.thought)
        assert all(step.ok for step in steps) and steps[-1].text.endswith(" yes") and len(steps) <= 3
        dead_ends += len(steps) - 1
    assert dead_ends > 50


def test_same_seed_same_problems_and_solutions():
    def run(seed: int):
        rng = random.Random(seed)
        return [
            (p, TASK.imperfect(p, rng), TASK.solve(p))
            for level in TASK.levels
            for p in stream(level, "valid", seed, 20)
        ]

    assert run(5) == run(5) != run(6)


@pytest.mark.parametrize(("level", "low", "high"), [(1, 0.35, 0.48), (2, 0.34, 0.47), (3, 0.12, 0.24), (4, 0.12, 0.24)])
def test_imperfect_writers_are_right_about_as_often_as_intended(level: int, low: float, high: float):
    rng = random.Random(level)
    right = length = attempts = false = 0
    for p in stream(level, "train", 9, 1000):
        s = TASK.imperfect(p, rng)
        steps = TASK.check_steps(p, s.thought)
        assert steps and all(step.ok is not None for step in steps), s.thought  # slips are not in the format
        assert len(s.thought) <= MOST_CHARS and s.thought.isascii()
        assert TASK.canonical(p.question, s.answer) is not None
        right += TASK.check(p, s.answer).correct is True
        length += len(s.thought)
        attempts += sum(step.kind is not StepKind.CHECK for step in steps)
        false += sum(step.ok is False for step in steps)
    assert low < right / 1000 < high
    assert length / 1000 < 120 and 0.02 < false / attempts < 0.1


GOLD = TASK.solve(next(TASK.stream(4, "train", 0))).thought + "\n3*7=21 21+12=33 yes\ncheck 3*7+12=33 ok"


@given(st.one_of(st.text(), st.text("37129+-*/=() \nyesnobackch"), st.text("(3+*/-7")))
def test_no_text_breaks_the_checks(text: str):
    TASK.check(HAND, text)
    TASK.canonical(HAND.question, text)
    TASK.check_steps(HAND, text)


@given(
    st.lists(st.tuples(st.integers(0, len(GOLD)), st.integers(0, 3), st.text("(=13-*/+ \n²", max_size=3)), max_size=8)
)
def test_no_mutation_of_a_good_thought_breaks_the_checks(edits: list[tuple[int, int, str]]):
    text = GOLD
    for at, gone, new in edits:
        text = text[:at] + new + text[at + gone :]
    steps = TASK.check_steps(HAND, text)
    assert len(steps) == sum(bool(line.strip()) for line in text.split("\n"))
    for line in text.split("\n"):
        TASK.check(HAND, line)
