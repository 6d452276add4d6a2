import random
from itertools import islice, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.errors import UserError
from mull.tasks.addition import Addition, _are_parts, _read
from mull.tasks.base import SPLITS
from mull.types import Problem, Question, Reference, StepKind

TASK = Addition()


def problem(text: str, answer: str) -> Problem:
    return Problem(Question("addition/0/x", "addition", text), Reference(answer))


HAND = problem("624+259=?", "883")
CARRY = problem("343+706=?", "1049")  # the paper's example
SCRATCHPAD = "624+259,C:0\n2+5,3C:1\n6+2,83C:0\n,883C:0\n883"


def judged(thought: str, p: Problem = HAND) -> list[tuple[bool | None, str]]:
    return [(s.ok, s.kind.value) for s in TASK.check_steps(p, thought)]


def stream(level, split, seed, n=100):
    return islice(TASK.stream(level, split, seed), n)


def test_validate_copes_with_the_few_problems_of_one_digit():
    result = TASK.validate()
    assert result.failures == []
    ones = TASK.up_to(1, "train", 0, 50)
    assert result.checked == 450 + len(ones) and 40 < len(ones) < 50
    with pytest.raises(UserError, match="has only about"):
        TASK.problems(1, "train", 0, 50)
    assert sum(len(TASK.up_to(1, split, 0, 60)) for split in SPLITS) == 55


def test_the_scratchpad_of_the_paper():
    assert TASK.solve(HAND).thought == SCRATCHPAD
    assert TASK.solve(CARRY).thought == "343+706,C:0\n4+0,9C:0\n3+7,49C:0\n,049C:1\n1049"
    assert TASK.solve(problem("0+0=?", "0")).thought == "0+0,C:0\n,0C:0\n0"
    assert judged(SCRATCHPAD) == [(True, "work")] * 5


@pytest.mark.parametrize(
    "line",
    [
        "259+624,C:0",
        "5+2,3C:1",
        "600+200=800",
        "24+59=83",
        "624+200=824",
        "874+9=883",
        "13+70=83",
        "4+9=13",
        "624+0=624",
    ],
)
def test_true_lines(line: str):
    assert judged(line) == [(True, "work")]


@pytest.mark.parametrize(
    "line",
    [
        "624+258,C:0",
        "624+259,C:1",
        "2+5,3C:0",  # the carry is forgotten
        "2+5,4C:1",
        "2+4,3C:1",
        "6+2,3C:1",  # not the next digits
        "6+2,73C:0",
        "6+2,83C:1",
        "6+2,83C:00",
        ",3C:1",
        ",883C:1",
        ",0883C:0",
        "0+0,883C:0",
        "893",
        "600+200=700",
        "500+383=883",  # true, but the problem has no such parts
        "624+624=1248",  # each number is there once
        "1+1=2",
    ],
)
def test_false_lines(line: str):
    assert judged(line) == [(False, "work")]


def test_lines_that_claim_nothing():
    lines = ["hm", "2+5,3C:", "2+5=", "+,C:0", "2 + 5, 3 C: 1", "0883", "８８３", "check 883", "check 883 maybe"]
    assert judged("\n".join(lines)) == [(None, "other")] * len(lines)


def test_a_check_from_the_left_and_a_repair():
    slip = "624+259,C:0\n2+5,3C:1\n6+2,73C:0\n,873C:0\n873"
    check = "624+200=824\n824+50=874\n874+9=883\ncheck 873 no"
    assert [ok for ok, _ in judged(slip)] == [True, True, False, False, False]
    assert judged(f"{slip}\n{check}\n{SCRATCHPAD}")[5:] == [
        *[(True, "check")] * 4,
        (True, "check"),
        (True, "check"),
        (True, "backtrack"),
        (True, "backtrack"),
        (True, "backtrack"),
    ]
    assert judged(f"{slip}\ncheck 873 ok")[-1] == (False, "check")
    assert judged(f"{SCRATCHPAD}\ncheck 883 ok")[-1] == (True, "check")
    assert judged(f"{SCRATCHPAD}\ncheck 883 no")[-1] == (False, "check")
    assert judged("check 883 ok\ncheck 5 no") == [(True, "other"), (True, "other")]  # nobody claimed these


def test_parts_agree_with_trying_every_way_to_share_out_the_digits():
    for a, b, digits in [(24, 59, 2), (90, 10, 2), (105, 995, 3), (7, 0, 1)]:
        parts = [n // 10**p % 10 * 10**p for n in (a, b) for p in range(digits)]
        pairs = set()
        for sides in product((0, 1, 2), repeat=len(parts)):
            pairs.add(tuple(sum(v for v, s in zip(parts, sides, strict=True) if s == side) for side in (1, 2)))
        top = a + b + 2
        for x in range(0, top, 1 if top < 200 else 5):
            for y in range(0, top, 1 if top < 200 else 5):
                assert _are_parts(a, b, digits, x, y) == ((x, y) in pairs), (a, b, x, y)


def test_splits_share_no_unordered_pair():
    for level in TASK.levels:
        seen = {
            split: {tuple(sorted(_read(p.question.text)[:2])) for seed in range(3) for p in stream(level, split, seed)}
            for split in SPLITS
        }
        assert not (seen["train"] & seen["test"] or seen["train"] & seen["valid"] or seen["test"] & seen["valid"])


@pytest.mark.parametrize("level", TASK.levels)
def test_problems_have_the_level_s_digits_and_every_gold_step_is_true(level: int):
    for p in stream(level, "train", 1):
        a, b, digits = _read(p.question.text)
        assert len(str(a)) == len(str(b)) == digits == level and p.reference.answer == str(a + b)
        gold = TASK.solve(p)
        steps = TASK.check_steps(p, gold.thought)
        assert gold.answer == p.reference.answer and len(gold.thought) <= TASK.max_thought
        assert len(steps) == level + 2 and all((s.ok, s.kind) == (True, StepKind.WORK) for s in steps)


def test_same_seed_same_problems_and_solutions():
    def run(seed: int):
        rng = random.Random(seed)
        return [
            (p, TASK.imperfect(p, rng), TASK.solve(p)) for level in TASK.levels for p in stream(level, "valid", seed, 9)
        ]

    assert run(5) == run(5) != run(6)


@pytest.mark.parametrize(
    ("level", "low", "high"), [(1, 0.7, 0.9), (2, 0.56, 0.72), (3, 0.45, 0.6), (4, 0.4, 0.56), (5, 0.35, 0.52)]
)
def test_imperfect_writers_are_right_about_as_often_as_intended(level: int, low: float, high: float):
    rng = random.Random(level)
    right = checks = repaired = empty = 0
    for p in stream(level, "train", 9, 1000):
        s = TASK.imperfect(p, rng)
        steps = TASK.check_steps(p, s.thought)
        assert all(step.ok is not None for step in steps), s.thought  # a writer's slips are not in the format
        assert len(s.thought) <= TASK.max_thought and s.thought.isascii()
        right += TASK.check(p, s.answer).correct is True
        checks += any(step.kind is StepKind.CHECK for step in steps)
        repaired += any(step.kind is StepKind.BACKTRACK for step in steps)
        empty += not steps
    assert low < right / 1000 < high
    assert 50 < checks < 150 and 80 < empty < 200
    assert repaired > 0 or level == 1


def test_answers_are_strict():
    assert TASK.check(HAND, "883").correct and TASK.check(HAND, " 883\n").correct
    for wrong in ["0883", "883.0", "624+259", "624+259=883", "883 or 884", "８８３", "", "8_83", "+883", "9" * 10_000]:
        assert TASK.check(HAND, wrong).correct is False
    assert TASK.check(problem("99999+99999=?", "199998"), "199998").correct
    assert TASK.check(problem("9999999999+9999999999=?", "19999999998"), "19999999998").correct


GOLD = SCRATCHPAD + "\n624+200=824\n824+50=874\n874+9=883\ncheck 883 ok"


@given(st.one_of(st.text(), st.text("624589+,C:=\n ok")))
def test_no_text_breaks_the_checks(text: str):
    TASK.check(HAND, text)
    TASK.canonical(HAND.question, text)
    TASK.check_steps(HAND, text)


@given(
    st.lists(st.tuples(st.integers(0, len(GOLD)), st.integers(0, 3), st.text("0259+,C:=\n²٨", max_size=3)), max_size=8)
)
def test_no_mutation_of_a_good_thought_breaks_the_checks(edits: list[tuple[int, int, str]]):
    text = GOLD
    for at, gone, new in edits:
        text = text[:at] + new + text[at + gone :]
    steps = TASK.check_steps(HAND, text)
    assert len(steps) == sum(bool(line.strip()) for line in text.split("\n"))
