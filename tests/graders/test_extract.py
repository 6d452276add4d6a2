import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.graders.extract import MAX_LINE, extract_answer, last_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{42}.", "42"),
        (r"First \boxed{3}, but no: \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),  # an escaped brace is not a brace
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{5} and then \boxed{6", "5"),  # truncated: the last balanced one
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed{5} #### 6 Answer: 7", "5"),  # the box is the strongest convention
        ("We add.\n#### 1,200", "1,200"),
        ("#### 3\nno\n#### 4", "4"),
        ("#### 3\nAnswer: 4", "3"),
        ("Answer: 12", "12"),
        ("**Answer:** 12", "12"),
        ("**Final Answer**: $12$", "$12$"),
        ("The final answer is 7. I hope it is correct", "7. I hope it is correct"),  # nothing is searched for inside
        ("so the answer is 7.", "7"),
        ("Answer: 3\nWait.\nAnswer: 4", "4"),
        ("Answer:\n42\nbye", "42"),
        ("Answer:", None),
        ("  17 ", "17"),
        ("17.", "17"),
        ("`17`", "17"),
        ("3.5", "3.5"),
        ("It is 5\nor 7", None),
        ("x" * (MAX_LINE + 1), None),
        ("", None),
        (" \n ", None),
        (r"<think>\boxed{3}</think>\boxed{4}", "4"),
        (r"\boxed{3}</think>so 4", "so 4"),  # the box was in the thought
        (r"<think>maybe \boxed{3}", None),  # a draft in a truncated thought is not an answer
        (r"unanswered: 5", "unanswered: 5"),
    ],
)
def test_conventions(text: str, answer: str | None):
    assert extract_answer(text) == answer


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*"\\{}$#:*.\n 5a", "\\boxed{", "####", "Answer:", "answer is", "</think>", "\ud800"])))
def test_never_raises(pieces: list[str]):
    answer = extract_answer("".join(pieces))
    assert answer is None or answer.strip() == answer != ""


def test_thousands_of_open_boxes_cost_linear_time():
    assert last_boxed("\\boxed{" * 200_000) is None
    assert last_boxed("\\boxed{" * 50_000 + "1" + "}" * 50_000) == "1"
