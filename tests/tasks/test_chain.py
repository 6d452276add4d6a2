import random
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.tasks.base import SPLITS, split_of
from mull.tasks.chain import Chain
from mull.types import Problem, Question, Reference, StepKind

TASK = Chain()


def problem(text: str, answer: str) -> Problem:
    return Problem(Question("chain/0/x", "chain", text), Reference(answer))


HAND = problem("a=7;b=a+15;c=b*3;d=c-8;e=b+1;d?", "58")


def judged(thought: str, p: Problem = HAND) -> list[tuple[bool | None, str]]:
    return [(s.ok, s.kind.value) for s in TASK.check_steps(p, thought)]


def test_validate():
    result = TASK.validate()
    assert result.checked == 200 and result.failures == []


@pytest.mark.parametrize(
    "line",
    [
        "b=7+15=22",
        "b=15+7=22",  # a sum's operands may be swapped
        "b=a+15=7+15=22",
        "b=22",
        "a=7",
        "c=22*3=66",
        "c=(7+15)*3=66",
        "d=66-8=58",
        "d=((7+15)*3)-8=58",
        "d=(7+15)*3-8=58",
        "e=22+1=23",  # not needed, but true
    ],
)
def test_true_lines(line: str):
    assert judged(line) == [(True, "work")]


@pytest.mark.parametrize(
    "line",
    [
        "b=7+15=23",
        "c=7+15*3=66",  # without its parentheses this is 52
        "c=21*3=66",  # from a wrong value
        "c=21*3=63",
        "c=22+44=66",  # right value, but not how c is defined
        "d=8-66=58",  # a difference's operands may not be swapped
        "d=58-0=58",
        "z=7+15=22",
        "b=7+15=)=22",
        "b=7+(15=22",
        "b=23",
    ],
)
def test_false_lines(line: str):
    assert judged(line) == [(False, "work")]


def test_a_wrong_value_makes_every_line_that_uses_it_false_until_it_is_corrected():
    thought = "b=7+15=22\nc=22*3=56\nd=56-8=48\ncheck 22*3=56 no\nc=22*3=66\nd=66-8=58\ncheck 66-8=58 ok"
    assert judged(thought) == [
        (True, "work"),
        (False, "work"),
        (False, "work"),
        (True, "check"),
        (True, "backtrack"),
        (True, "backtrack"),
        (True, "check"),
    ]


def test_a_check_is_judged_by_its_arithmetic_and_its_verdict():
    assert judged("c=22*3=56\ncheck 22*3=56 ok")[1] == (False, "check")
    assert judged("c=22*3=66\ncheck 22*3=66 no")[1] == (False, "check")
    assert judged("check 1+1=2 ok") == [(True, "other")]  # nothing of one's own was checked
    assert judged("c=22*3=66\nc=22*3=66")[1] == (True, "check")
    assert judged("hm\n\ncheck this\nb=7+15=\nb=7+15") == [(None, "other")] * 4


def test_key_ignores_names_order_operands_and_what_is_not_needed():
    from mull.tasks.chain import _key, _read

    same = ["a=7;b=a+15;c=b*a;c?", "y=7;x=y*z;w=z+3;z=y+15;x?"]
    assert len({_key(_read(text)) for text in same}) == 1
    different = ["a=7;b=a-15;c=b*a;c?", "a=8;b=a+15;c=b*a;c?", "a=7;b=a+15;c=b-a;c?", "a=7;b=a+15;c=a-b;c?"]
    assert len({_key(_read(text)) for text in [*same, *different]}) == 5


def test_splits_share_no_problem_and_membership_is_a_hash_of_the_key():
    for level in TASK.levels:
        seen = {
            split: {p.question.id for seed in range(3) for p in islice(TASK.stream(level, split, seed), 50)}
            for split in SPLITS
        }
        assert not (seen["train"] & seen["test"] or seen["train"] & seen["valid"] or seen["test"] & seen["valid"])
        rng = random.Random(level)
        keys = [TASK.problem(level, rng)[0] for _ in range(400)]
        assert {split_of(k) for k in keys} == set(SPLITS)


@pytest.mark.parametrize("level", TASK.levels)
def test_problems_are_as_the_level_says(level: int):
    from mull.tasks.chain import HOPS, SCRAMBLED_FROM, UNNEEDED, _read

    scrambled = 0
    for p in islice(TASK.stream(level, "train", 1), 200):
        system = _read(p.question.text)
        assert HOPS[level][0] <= len(system.order) <= HOPS[level][1]
        assert UNNEEDED[level][0] <= len(system.all_hops) - len(system.order) <= UNNEEDED[level][1]
        assert all(0 <= v <= 99 for v in system.values.values())
        assert system.values[system.asked] == int(p.reference.answer)
        text_order = list(system.defs)
        scrambled += any(text_order.index(a) > text_order.index(b) for a, b in pairwise(system.order))
    assert scrambled > 150 if level >= SCRAMBLED_FROM else scrambled == 0


def test_same_seed_same_problems_and_solutions():
    def run(seed: int):
        rng = random.Random(seed)
        return [
            (p, TASK.imperfect(p, rng), TASK.solve(p))
            for level in TASK.levels
            for p in islice(TASK.stream(level, "valid", seed), 20)
        ]

    assert run(5) == run(5) != run(6)


@pytest.mark.parametrize(("level", "low", "high"), [(1, 0.5, 0.66), (2, 0.36, 0.54), (3, 0.3, 0.47), (4, 0.25, 0.43)])
def test_imperfect_writers_are_right_about_as_often_as_intended(level: int, low: float, high: float):
    rng = random.Random(level)
    right = checks = repaired = 0
    for p in islice(TASK.stream(level, "train", 9), 1000):
        s = TASK.imperfect(p, rng)
        steps = TASK.check_steps(p, s.thought)
        assert all(step.ok is not None for step in steps), s.thought  # a writer's slips are not in the format
        assert len(s.thought) <= TASK.max_thought and s.thought.isascii()
        right += TASK.check(p, s.answer).correct is True
        checks += any(step.kind is StepKind.CHECK for step in steps)
        repaired += any(step.kind is StepKind.BACKTRACK for step in steps)
    assert low < right / 1000 < high
    assert checks > 50 and repaired > 2


def test_answers_are_strict():
    assert TASK.check(HAND, "58").correct and TASK.check(HAND, " 58\n").correct
    for wrong in ["58.", "058", "58 58", "5٨", "５８", "d=58", "", "5_8", "+58", "58\n\n59", "-58", "9" * 10_000]:
        assert TASK.check(HAND, wrong).correct is False
    assert TASK.canonical(HAND.question, "59") == "59" and TASK.canonical(HAND.question, "59?") is None


GOLD = TASK.solve(next(TASK.stream(4, "train", 0))).thought + "\ncheck 22*3=66 ok\nb=((7+15)*3)-8=58"


@given(st.one_of(st.text(), st.text("abc0159=+-*/() \ncheko"), st.text("(=1a")))
def test_no_text_breaks_the_checks(text: str):
    TASK.check(HAND, text)
    TASK.canonical(HAND.question, text)
    TASK.check_steps(HAND, text)


@given(
    st.lists(st.tuples(st.integers(0, len(GOLD)), st.integers(0, 3), st.text("(=1a-*+ \n²", max_size=3)), max_size=8)
)
def test_no_mutation_of_a_good_thought_breaks_the_checks(edits: list[tuple[int, int, str]]):
    text = GOLD
    for at, gone, new in edits:
        text = text[:at] + new + text[at + gone :]
    steps = TASK.check_steps(HAND, text)
    assert len(steps) == sum(bool(line.strip()) for line in text.split("\n"))
