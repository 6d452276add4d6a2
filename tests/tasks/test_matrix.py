"""The matrix task: hand-judged lines and answers, uniqueness by brute force, splits, habits and slips."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.tasks import matrix as module
from mull.tasks.base import Solution
from mull.tasks.matrix import MatrixTask
from mull.types import Problem, Question, Reference, StepKind, Verdict

TASK = MatrixTask()
WORK, CHECK, BACK, OTHER = StepKind.WORK, StepKind.CHECK, StepKind.BACKTRACK, StepKind.OTHER


def hand(text: str, answer: str) -> Problem:
    return Problem(Question("matrix/1/hand", "matrix", text, 1), Reference(answer))


#            n: +1 by row         s: = by row          f: permutation
HAND = hand("1Ab 2Ac 3Aa\n2Bc 3Ba 4Bb\n3Ca 4Cb ?", "5Cc")
COLUMN = hand("1 3 2\n4 2 5\n5 5 ?", "7")  # third row = first + second; no rule fits by row


def right(problem: Problem, answer: str) -> bool:
    correct = TASK.check(problem, answer).correct
    assert correct is not None
    return correct


@pytest.mark.parametrize(
    ("line", "ok", "kind"),
    [
        ("n 123 234 34? +1 5", True, WORK),
        ("n 234 123 34? +1 5", True, WORK),  # rows in any order
        ("n 123 34? +1 5", True, WORK),
        ("n 34? +1 5", True, WORK),
        ("n 34? sum 7", False, WORK),  # fits the last row alone, gives a wrong value
        ("n 123 34? sum 7", False, WORK),
        ("n 123 234 34? sum 7", False, WORK),
        ("n 123 234 34? +1 6", False, WORK),
        ("n 123 234 34? +2 5", False, WORK),
        ("n 123 123 34? +1 5", False, WORK),  # the second row is not that
        ("n 124 234 34? +1 5", False, WORK),
        ("n 123 234 35? +1 5", False, WORK),
        ("n 123 234 34? perm 5", False, WORK),
        ("s AAA BBB CC? = C", True, WORK),
        ("s AAA BBB CC? = A", False, WORK),
        ("s AAA BBB CC? +1 C", False, WORK),
        ("s AAA CC? perm C", False, WORK),  # no three different values
        ("f bca cab ab? perm c", True, WORK),
        ("f bca ab? perm c", True, WORK),
        ("f ab? perm c", False, WORK),  # of which three values?
        ("f ab? +1 c", True, WORK),  # by luck, but nothing on the line is false
        ("f bca cab ab? +1 c", False, WORK),
        ("n col 123 234 34? +1 5", True, WORK),
        ("s col ABC ABC AB? +1 C", True, WORK),
        ("s col ABC ABC AB? = C", False, WORK),
        ("s AAA BBB CC? none", False, BACK),
        ("n 123 234 34? none", False, BACK),
        ("redo n 123 234 34? +1 5", True, BACK),
        ("redo n 123 234 34? +1 4", False, BACK),
        ("n 123 234 34 +1 5", False, WORK),
        ("n 123 234 34? +1 55", False, WORK),
        ("n 123 234 34? +3 6", False, WORK),
        ("n 123 234 456 34? +1 5", False, WORK),
        ("x 123 234 34? +1 5", None, OTHER),
        ("check 123 +1 ok", True, CHECK),
        ("check 123 sum ok", True, CHECK),  # 1 + 2 = 3
        ("check 234 sum no", True, CHECK),
        ("check 234 sum ok", False, CHECK),
        ("check 234 +1 no", False, CHECK),
        ("check 345 +1 ok", True, CHECK),  # the last row with a value put in
        ("check 346 +1 no", True, CHECK),
        ("check 346 +1 ok", False, CHECK),
        ("check 347 sum ok", True, CHECK),  # true of that row
        ("check abc perm ok", True, CHECK),
        ("check aba perm ok", False, CHECK),
        ("check 34A +1 no", True, CHECK),
        ("check 456 +1 ok", False, CHECK),  # no such row
        ("check AAA = ok", True, CHECK),
        ("check bca perm ok", True, CHECK),
        ("check bca +1 no", True, CHECK),
        ("check BBB perm no", True, CHECK),
        ("check col ABC +1 ok", True, CHECK),
        ("check ABC +1 ok", False, CHECK),  # a column, not a row
        ("check 34? +1 ok", False, WORK),
        ("give up", None, OTHER),
        ("5Cc", None, OTHER),
    ],
)
def test_one_line_is_judged_as_by_hand(line, ok, kind):
    (verdict,) = TASK.check_steps(HAND, line)
    assert (verdict.text, verdict.ok, verdict.kind) == (line, ok, kind)
    assert bool(verdict.why) == (ok is False)


@pytest.mark.parametrize(
    ("line", "ok", "kind"),
    [
        ("n 132 425 55? none", True, BACK),
        ("n 132 55? none", True, BACK),
        ("n 425 55? none", True, BACK),
        ("n 55? none", False, BACK),  # "=" fits the last row alone
        ("n 55? = 5", False, WORK),
        ("n col 145 325 25? sum 7", True, WORK),
        ("n col 145 325 25? none", False, BACK),
        ("n col 132 425 55? none", False, BACK),  # those are rows
        ("check col 325 sum ok", True, CHECK),
        ("check col 325 dif ok", False, CHECK),
        ("s AAA BBB CC? = C", False, WORK),  # no such attribute
    ],
)
def test_one_line_about_columns_is_judged_as_by_hand(line, ok, kind):
    (verdict,) = TASK.check_steps(COLUMN, line)
    assert (verdict.ok, verdict.kind) == (ok, kind)


def test_the_solver_turns_to_columns_where_no_rule_fits_by_row():
    solution = TASK.solve(COLUMN)
    assert solution == Solution("n 132 425 55? none\nn col 145 325 25? sum 7", "7")


def test_the_solver_on_three_attributes():
    thought = "n 123 234 34? +1 5\ns AAA BBB CC? = C\nf bca cab ab? perm c"
    assert TASK.solve(HAND) == Solution(thought, "5Cc")


WRONG = ["", "5CC", "5cC", "C5c", "5C", "5Cc ", " 5Cc", "5Cc\n", "5 C c", "5Cca", "5Cc?", "5Cc 5Cc", "?", "4Cc", "5Bc"]
WRONG += ["5Ca", "cell 5Cc", "(5Cc)", "5Cc.", "5Cc or 5Ca", "0Cc", "5Gc", "٥Cc", "5Çc"]


@pytest.mark.parametrize("answer", WRONG)
def test_only_the_exact_cell_is_right(answer):
    assert right(HAND, "5Cc")
    assert not right(HAND, answer)


def test_the_canonical_form_is_the_cell_and_needs_its_form_only():
    assert TASK.canonical(HAND.question, "9Aa") == "9Aa"
    for other in ("9aA", "9A", "", "9Aa ", "0Aa", "9Ga"):
        assert TASK.canonical(HAND.question, other) is None
    assert TASK.canonical(COLUMN.question, "7") == "7"
    assert TASK.canonical(COLUMN.question, "A") is None


def follows(rule: str, lines: list[list[int]]) -> bool:
    """Whether all three complete lines of values obey a rule: written apart from the task's own."""
    if rule == "perm":
        return len(set(lines[0])) == 3 and all(sorted(x) == sorted(lines[0]) for x in lines)
    if rule == "sum":
        return all(a + b == c for a, b, c in lines)
    if rule == "dif":
        return all(a - b == c for a, b, c in lines)
    return all(b - a == int(rule) == c - b for a, b, c in lines)


@pytest.mark.parametrize("level", TASK.levels)
def test_exactly_one_value_completes_each_attribute(level):
    for problem in TASK.problems(level, "train", 4, 100):
        cells = problem.question.text.split()
        assert len(cells) == 9 and cells[8] == "?"
        for i, gold in enumerate(problem.reference.answer):
            alphabet = next(a for a in ("123456789", "ABCDEF", "abcdef") if gold in a)
            rules = ["0", "1", "-1", "2", "-2", "perm"] + ["sum", "dif"] * (alphabet[0] == "1")
            possible = set()
            for value in alphabet:
                x = [alphabet.index(cell[i]) + 1 for cell in cells[:8]] + [alphabet.index(value) + 1]
                rows, cols = [x[0:3], x[3:6], x[6:9]], [x[0::3], x[1::3], x[2::3]]
                if any(follows(rule, rows) or follows(rule, cols) for rule in rules):
                    possible.add(value)
            assert possible == {gold}


def test_levels_are_as_documented():
    for level, size in module.ATTRIBUTES.items():
        drawn = TASK.problems(level, "train", 2, 150)
        assert {len(p.reference.answer) for p in drawn} == {size}
        # Only the hardest level may need columns.
        columns = sum("col" in TASK.solve(p).thought for p in drawn)
        assert columns == 0 if level < 4 else columns > 30
        rules = {line.split()[-2] for p in drawn for line in TASK.solve(p).thought.split("\n") if "none" not in line}
        assert set(module.DRAWN[level]) <= rules


def test_validate_finds_no_failure():
    result = TASK.validate(60, seed=3)
    assert result.checked == 60 * len(TASK.levels)
    assert result.failures == []


@pytest.mark.parametrize(
    "pays",
    [
        lambda gold, answer: gold in answer,  # a superset
        lambda gold, answer: answer.strip() == gold,
        lambda gold, answer: answer.lower() == gold.lower(),
        lambda gold, answer: sorted(answer) == sorted(gold),  # attributes in any order
        lambda gold, answer: answer[:1] == gold[:1],  # one attribute
    ],
)
def test_validate_notices_a_sloppy_checker(pays, monkeypatch):
    def check(self: MatrixTask, problem: Problem, answer: str) -> Verdict:
        return Verdict(pays(problem.reference.answer, answer))

    monkeypatch.setattr(MatrixTask, "check", check)
    assert any("is paid" in failure for failure in TASK.validate(5).failures)


def written(level: int, n: int = 500) -> list[tuple[Problem, Solution]]:
    rng = random.Random(level)
    return [(p, TASK.imperfect(p, rng)) for p in TASK.problems(level, "train", 11, n)]


@pytest.mark.parametrize(("level", "low", "high"), [(1, 0.42, 0.6), (2, 0.3, 0.48), (3, 0.2, 0.38), (4, 0.1, 0.26)])
def test_imperfect_solutions_are_right_as_often_as_they_should_be(level, low, high):
    solutions = written(level)
    assert low < sum(right(p, s.answer) for p, s in solutions) / len(solutions) < high
    assert max(len(s.thought) for _, s in solutions) <= TASK.max_thought
    assert all(TASK.canonical(p.question, s.answer) == s.answer for p, s in solutions)


@pytest.mark.parametrize("level", TASK.levels)
def test_imperfect_lines_have_known_forms_and_natural_faults(level):
    verdicts = [v for p, s in written(level) for v in TASK.check_steps(p, s.thought)]
    assert all("known form" not in v.why for v in verdicts)
    assert all(v.text == "give up" for v in verdicts if v.kind is OTHER)
    for kind in (WORK, CHECK, BACK):
        assert any(v.ok for v in verdicts if v.kind is kind)
    assert any(v.ok is False for v in verdicts if v.kind is WORK)
    assert any(v.text.startswith("redo") for v in verdicts) and any(v.text.endswith("none") for v in verdicts)


def test_a_thought_without_a_false_line_that_speaks_of_every_attribute_is_right():
    proven = 0
    for problem, solution in written(2):
        lines = [line.removeprefix("redo ") for line in solution.thought.split("\n")]
        last = {line[0]: line for line in lines if line[1:2] == " " and not line.endswith("none")}  # per attribute
        verdicts = TASK.check_steps(problem, "\n".join(last.values()))
        if len(last) == 2 and all(v.ok for v in verdicts):
            assert right(problem, solution.answer)
            proven += 1
    assert proven > 100


def test_diligence_and_fewer_slips_pay(monkeypatch):
    def rate(**habits: float) -> float:
        with monkeypatch.context() as patch:
            for name, value in habits.items():
                patch.setattr(module, name, value)
            solutions = written(2, 300)
        return sum(right(p, s.answer) for p, s in solutions) / len(solutions)

    base, diligent = rate(), rate(CAREFUL=1.0)
    assert diligent > base + 0.3
    assert rate(CAREFUL=1.0, COPY=0.0, FIRST=0.0, VALUE=0.0) > diligent
    assert rate(CAREFUL=0.0, HALF=0.0) < base


PROBLEMS = [p for level in TASK.levels for p in TASK.problems(level, "train", 13, 3)]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PROBLEMS), st.text(max_size=60) | st.text("nsf 123ABCabc?=+-\nchekolpremsudifn", max_size=60))
def test_no_text_breaks_the_checks(problem, text):
    assert len(TASK.check_steps(problem, text)) == len([x for x in text.split("\n") if x.strip()])
    assert right(problem, text) == (text == problem.reference.answer)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([HAND, COLUMN, *PROBLEMS]), st.data())
def test_no_mutation_of_the_gold_breaks_the_checks(problem, data):
    gold = TASK.solve(problem)
    text = gold.thought
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, len(text)))
        j = data.draw(st.integers(i, min(len(text), i + 6)))
        text = (
            text[:i] + data.draw(st.text("nsf 19AFaf?=+-\n٣²", max_size=4) | st.sampled_from(module.RULES)) + text[j:]
        )
    assert len(TASK.check_steps(problem, text)) == len([x for x in text.split("\n") if x.strip()])
    i = data.draw(st.integers(0, len(gold.answer)))
    assert not right(problem, gold.answer[:i] + data.draw(st.text(min_size=1, max_size=3)) + gold.answer[i:])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PROBLEMS), st.data())
def test_a_line_never_names_a_false_value_and_passes(problem, data):
    """Any rule and any value put on the gold's rows: true lines give the true value."""
    name_rows = data.draw(st.sampled_from([x for x in TASK.solve(problem).thought.split("\n") if "none" not in x]))
    head, _, gold = name_rows.rsplit(" ", 2)
    value = data.draw(st.sampled_from(module.VALUES[head[0]]))
    rule = data.draw(st.sampled_from(module.RULES))
    (verdict,) = TASK.check_steps(problem, f"{head} {rule} {value}")
    assert verdict.ok is False or value == gold
