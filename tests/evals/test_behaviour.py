import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.evals import behaviour
from mull.evals.behaviour import Thought, describe
from mull.types import StepKind, StepVerdict

W, C, B, O = StepKind.WORK, StepKind.CHECK, StepKind.BACKTRACK, StepKind.OTHER  # noqa: E741


def step(kind: StepKind, ok: bool | None = True, text: str = "x") -> StepVerdict:
    return StepVerdict(text, ok, kind)


def thought(problem: str, correct: bool | None, *steps: StepVerdict, tokens: int = 10, task: str = "chain") -> Thought:
    return Thought(task, problem, correct, steps, tokens)


def test_counts_by_hand():
    b = describe(
        [
            thought("1", True, step(W), step(C), step(B), step(O, None)),
            thought("1", False, step(W, False), step(W), tokens=30),
            thought("2", True, step(W, False), step(C, True, "check 1+1=3 no"), tokens=20),
        ]
    )
    assert b.thoughts == 3
    assert b.lines.mean == pytest.approx((3 + 2) / 2)  # problem 1: 4 and 2 lines; problem 2: 2 lines
    assert b.checks_per_thought.mean == pytest.approx((0.5 + 1) / 2)
    assert b.checks_per_line.mean == pytest.approx((1 / 6 + 1 / 2) / 2)
    assert b.with_check.mean == pytest.approx((0.5 + 1) / 2)
    assert b.with_backtrack.mean == pytest.approx((0.5 + 0) / 2)
    assert b.backtracks_per_line.mean == pytest.approx((1 / 6) / 2)
    assert b.false_steps.mean == pytest.approx((1 / 5 + 1 / 2) / 2)  # the line without a claim is not counted
    assert b.false_steps.samples == 7
    assert b.right_with_false_step.mean == pytest.approx((0 + 1) / 2)
    assert b.says_no.mean == pytest.approx((0 + 1) / 2)
    assert (b.lengths.median, b.lengths.longest, b.lengths.mean.mean) == (20.0, 30, 20.0)


def test_whether_checking_helped():
    b = describe(
        [
            thought("1", True, step(C)),
            thought("1", False, step(W)),
            thought("2", True, step(C)),
            thought("2", True, step(W)),
            thought("3", False, step(W)),  # never checked: in "without", not in the gain
            thought("4", None, step(C)),  # unscorable: in no accuracy
        ]
    )
    assert b.accuracy_with_check.mean == 1.0 and b.accuracy_with_check.n == 2
    assert b.accuracy_with_check.unscorable == 1 and b.unscorable == 1
    assert b.accuracy_without_check.mean == pytest.approx(1 / 3)
    assert b.check_gain.mean == 0.5 and b.check_gain.n == 2 and b.check_gain.samples == 4


def test_gain_within_a_problem_is_not_fooled_by_difficulty():
    """Checks happen on the hard problem only, and help there; across problems they look harmful."""
    hard = [thought("hard", i < 4, step(C)) for i in range(8)] + [thought("hard", False, step(W)) for _ in range(2)]
    easy = [thought("easy", True, step(W)) for _ in range(10)]
    b = describe(hard + easy)
    assert b.accuracy_with_check.mean == b.accuracy_without_check.mean == 0.5
    assert b.check_gain.mean == 0.5


def test_after_a_check_that_says_no():
    no = step(C, True, "check 2+2=5 no")
    b = describe(
        [thought("1", True, no), thought("1", False, no), thought("2", False, step(C, True, "check 2+2=4 ok"))]
    )
    assert (b.accuracy_after_no.mean, b.accuracy_after_no.n) == (0.5, 1)


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        (C, "check 3+4=8 no", True),
        (C, "check: is it prime? No.", True),
        (C, "check 3+4=7 ok", False),
        (C, "no, check that 3+4=7", False),
        (C, "check piano", False),  # ends in the letters, not in the word
        (W, "no", False),
        (C, "", False),
    ],
)
def test_what_says_no(kind, text, says):
    assert behaviour.check_says_no(step(kind, True, text)) is says


def test_a_task_may_have_its_own_no():
    b = describe([thought("1", True, step(C, True, "✗"))], says_no=lambda s: s.text == "✗")
    assert b.says_no.mean == 1.0


def test_nothing_and_empty_thoughts():
    b = describe([])
    assert b.thoughts == 0 and math.isnan(b.with_check.mean) and math.isnan(b.lengths.median)
    b = describe([thought("1", False, tokens=0)])
    assert (b.lines.mean, b.with_check.mean, b.false_steps.n) == (0.0, 0.0, 0)


def test_by_task_keeps_tasks_apart():
    tasks = behaviour.by_task([thought("1", True, step(C)), thought("1", True, step(W), task="addition")])
    assert list(tasks) == ["addition", "chain"]
    assert (tasks["chain"].with_check.mean, tasks["addition"].with_check.mean) == (1.0, 0.0)


def test_every_row_names_an_estimate():
    b = describe([thought("1", True, step(C))])
    for name, _, _ in behaviour.ROWS:
        assert {"mean", "low", "high", "n"} == set(getattr(b, name).as_dict())


steps = st.builds(
    StepVerdict,
    st.sampled_from(["a", "check no", "check ok"]),
    st.sampled_from([True, False, None]),
    st.sampled_from(list(StepKind)),
)
thoughts = st.builds(
    Thought,
    st.sampled_from(["chain", "maze"]),
    st.sampled_from("123"),
    st.sampled_from([True, False, None]),
    st.lists(steps, max_size=5),
    st.integers(0, 99),
)


@given(st.lists(thoughts, max_size=12))
def test_order_never_matters_and_shares_are_shares(many):
    b = describe(many)
    assert repr(b) == repr(describe(many[::-1]))
    for name, _, unit in behaviour.ROWS:
        estimate = getattr(b, name)
        if estimate.n:
            assert estimate.low <= estimate.mean <= estimate.high
            assert unit != "share" or 0 <= estimate.low <= estimate.high <= 1
