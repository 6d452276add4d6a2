"""Summaries of thoughts: few sections, in order, told as early as they can be, and never taken back."""

from hypothesis import given
from hypothesis import strategies as st

from mull.serve.plan import SINGLE, VOTE, Plan
from mull.serve.summary import FIRST, Section, Summary

LOW, HIGH = Plan("low", SINGLE, 1, 99, 9, None), Plan("high", VOTE, 8, 99, 9, None)


def told(thought: str, pieces: int = 1) -> list[Section]:
    summary, out = Summary(LOW), []
    size = max(1, -(-len(thought) // pieces))
    for at in range(0, len(thought), size):
        out += summary.push(thought[at : at + size])
    return [*out, *summary.rest(thought, ())]


def test_a_short_thought_has_one_section_of_its_first_and_last_line():
    assert told("a = 3\nb = a + 4\nb = 7") == [Section("a = 3", "b = 7")]
    assert told("") == told(" \n\n ") == []


def test_sections_come_while_the_thought_goes_on():
    summary = Summary(LOW)
    first = [s for i in range(FIRST) for s in summary.push(f"line {i}\n")]
    assert first == [Section("line 0", f"line {FIRST - 1}")]


def test_a_long_thought_has_few_sections():
    assert len(told("".join(f"step {i} of the work\n" for i in range(2000)))) < 20


@given(st.text(st.sampled_from("ab \n.#*9"), max_size=300), st.integers(1, 40))
def test_it_does_not_matter_in_which_pieces_a_thought_comes(thought, pieces):
    assert told(thought, pieces) == told(thought)
    for section in told(thought):
        assert section.title.strip() and section.text.strip() and len(section.title) <= 80 and len(section.text) <= 240


def test_titles_say_where_a_thought_checks_or_turns_back():
    assert told("b = 9\ncheck: 9 - 4 = 5")[0].title == "Checking: b = 9"
    assert told("b = 9\nno, b = 8")[0].title == "Reconsidering: b = 9"
    assert told("**Plan** the `sum`")[0].title == "Plan the sum"
    assert told("- 3 + 4")[0].title == "- 3 + 4"  # a sum is no list
    assert told("(1+14)*5")[0].title == "(1+14)*5"


def test_of_many_branches_agreement_is_told_and_then_the_thought_that_won():
    summary = Summary(HIGH)
    sections = list(summary.rest("a\nb", [("4", 5), ("5", 3)]))
    assert sections == [Section("8 of 8 lines of thought have an answer", "5 of 8 agree: 4"), Section("a", "b")]
    assert list(Summary(HIGH).rest("a", [("4", 1)])) == [Section("a", "a")]
