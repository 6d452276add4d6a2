"""What a request may spend: bounds that hold for every wish."""

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from mull.serve.plan import CHAINS, LEVELS, SINGLE, VOTE, WORDS, Plan, Wish, plan

TALK = ({"role": "user", "content": "2+2?"},)
DEFAULTS = dict(room=400, default="medium", think_tokens=256, answer_tokens=64, most_samples=64)

wishes = st.builds(
    Wish,
    messages=st.just(TALK),
    effort=st.sampled_from([None, *LEVELS]),
    think=st.sampled_from([None, True, False]),
    think_budget=st.none() | st.integers(0, 3000),
    max_tokens=st.none() | st.integers(1, 3000),
    strategy=st.sampled_from(["", "beam", "mcts"]),
    samples=st.none() | st.integers(1, 300),
    temperature=st.sampled_from([None, 0.0, 0.7, 1.0]),
)


@given(wishes, st.integers(2, 2000), st.integers(0, 500), st.integers(1, 100), st.integers(1, 100))
@example(Wish(TALK, think_budget=0), 2, 0, 1, 1)
@example(Wish(TALK, max_tokens=1), 2, 100, 64, 8)
def test_every_plan_fits_and_has_room_for_an_answer(wish, room, think_tokens, answer_tokens, most):
    made = plan(
        wish, room=room, default="medium", think_tokens=think_tokens, answer_tokens=answer_tokens, most_samples=most
    )
    assert made.answer_tokens >= 1 and made.think_tokens >= 0 and 1 <= made.samples <= max(1, most)
    assert made.branch_tokens < room  # the closing tag needs a place as well
    if wish.max_tokens is not None:
        assert made.tokens is not None and made.tokens <= wish.max_tokens and made.branch_tokens <= wish.max_tokens
    if wish.think_budget is not None:
        assert made.think_tokens <= wish.think_budget
        assert made.tokens is not None and made.tokens <= wish.think_budget + made.answer_tokens
    assert made.most_tokens <= made.samples * made.branch_tokens
    assert made.think_tokens > 0 or made.single


def test_efforts_differ_and_no_thought_means_one_answer_at_once():
    spent = {level: plan(Wish(TALK, effort=level), **DEFAULTS) for level in LEVELS}
    assert [spent[level].samples for level in LEVELS] == [CHAINS[level] for level in LEVELS] == [1, 1, 8, 32]
    assert spent["none"].think_tokens == 0 and spent["low"].think_tokens == 256
    assert spent["none"].single and spent["low"].single and spent["medium"].strategy == VOTE
    for wish in (Wish(TALK, effort="high", think=False), Wish(TALK, effort="high", think_budget=0)):
        assert replace(plan(wish, **DEFAULTS), tokens=None) == spent["none"]
    assert set(WORDS.values()) == set(LEVELS)
    assert plan(Wish(TALK), **DEFAULTS) == spent["medium"]


def test_a_calibration_file_decides_where_there_is_one():
    known = {"low": 4, "medium": 16, "high": 256}
    made = plan(Wish(TALK, effort="high"), **DEFAULTS, calibration=known)
    assert (made.strategy, made.samples) == ("auto:effort=high", 64)  # the operator's limit holds
    assert plan(Wish(TALK, effort="low"), **DEFAULTS, calibration=known).strategy == "auto:effort=low"
    assert plan(Wish(TALK, effort="none"), **DEFAULTS, calibration=known).strategy == SINGLE
    typed = plan(Wish(TALK, strategy="beam:expand=2", samples=8), **DEFAULTS, calibration=known)
    assert (typed.strategy, typed.samples) == ("beam:expand=2", 8)


def test_temperature_is_obeyed_by_one_chain_and_ignored_aloud_by_many():
    one = plan(Wish(TALK, effort="low", temperature=0.0, top_p=0.5), **DEFAULTS)
    assert (one.temperature, one.top_p, one.ignored) == (0.0, 0.5, ())
    many = plan(Wish(TALK, effort="high", temperature=0.0, top_p=0.5), **DEFAULTS)
    assert (many.temperature, many.top_p, many.ignored) == (1.0, 1.0, ("temperature", "top_p"))
    assert plan(Wish(TALK, effort="high", temperature=1.0), **DEFAULTS).ignored == ()


def test_a_small_budget_leaves_half_of_it_to_the_answer():
    made = plan(Wish(TALK, effort="low", max_tokens=20), **DEFAULTS)
    assert (made.answer_tokens, made.think_tokens) == (10, 10)
    made = plan(Wish(TALK, effort="low", max_tokens=200), **DEFAULTS)
    assert (made.answer_tokens, made.think_tokens) == (64, 136)


def test_a_reduced_plan_says_what_was_wanted():
    high = plan(Wish(TALK, effort="high"), **DEFAULTS)
    half, one = high.reduced(16), high.reduced(16).reduced(1)
    assert (half.samples, half.wanted, half.strategy) == (16, 32, VOTE)
    assert (one.samples, one.wanted, one.strategy, one.single) == (1, 32, SINGLE, True)
    assert high.reduced(32) is high and high.reduced(99) is high
    assert replace(one, wanted=0) == Plan("high", SINGLE, 1, 256, 64, None)
