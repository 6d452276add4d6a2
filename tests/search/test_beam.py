"""Beam, DVTS and lookahead over trees small enough to solve by hand; and what every scored search must bear."""

import asyncio
from functools import partial

import pytest

from mull.errors import StopReason, UserError
from mull.ledger import Budget
from mull.search.beam import beam, dvts
from mull.search.node import Steps
from mull.search.rebase import rebase
from mull.search.sample import Decoding, sample
from mull.search.tree import Tree
from mull.types import SpanKind, Trace
from tests.search import hardships
from tests.search.hardships import chance, wild
from tests.search.tools import QUESTION, ScriptedScorer, assert_sound, canonical, chat, run, sampler_of, texts, thought

GREEDY = Decoding(temperature=0.0)

# Two ways to go: "a" looks good and comes to nothing, "b" is the one that the scorer likes in the end.
TRAP = {
    "": {"a\n": 1.0, "b\n": 1.0},
    "a\n": {"c\n": 1.0},
    "b\n": {"d\n": 1.0},
    "a\nc\n": {"</think>": 1.0},
    "b\nd\n": {"</think>": 1.0},
    "a\nc\n</think>": {"1": 1.0},
    "b\nd\n</think>": {"2": 1.0},
}
# One path and no other.
LINE = {"": {"a\n": 1.0}, "a\n": {"b\n": 1.0}, "a\nb\n": {"</think>": 1.0}, "a\nb\n</think>": {"7": 1.0}}


def trap_score(text: str) -> float:
    if text == "a\n":
        return 0.9
    if text == "b\n":
        return 0.6
    return 0.95 if text.startswith("b") else 0.1


def search(strategy, sampler, n, value=lambda text: 0.5, budget=None, **options) -> Trace:
    scorer = ScriptedScorer(value)
    return run(strategy, sampler, budget or Budget(samples=n), scorer=scorer, canonical=canonical, **options)


def lines(trace: Trace, leaf: int) -> str:
    return thought(path_tokens(trace, leaf))


def path_tokens(trace: Trace, leaf: int) -> tuple[int, ...]:
    return tuple(token for span in trace.path(leaf) for token in span.tokens)


def same_but_for_the_clock(one: Trace, other: Trace) -> bool:
    fields = ("spans", "leaves", "answers", "answer", "chosen", "exhausted", "lost")
    costs = [(t.cost.sampled_tokens, t.cost.scorer_tokens, t.cost.flops) for t in (one, other)]
    return costs[0] == costs[1] and all(getattr(one, f) == getattr(other, f) for f in fields)


# -------------------------------------------------------------------------------------- beams on solvable trees


def test_a_beam_of_one_path_is_greedy_at_temperature_0():
    script = {**TRAP, "": {"a\n": 1.0, "b\n": 1.2}}
    greedy = run(sample, sampler_of(script), Budget(), decoding=GREEDY)
    for strategy in (beam, dvts):
        one = search(strategy, sampler_of(script), 1, expand=1, decoding=GREEDY)
        assert lines(one, one.chosen) == lines(greedy, greedy.leaves[0]) == "b\nd\n</think>2<|end|>"
        assert one.cost.sampled_tokens == greedy.cost.sampled_tokens


@pytest.mark.parametrize("expand", [1, 4])
def test_a_beam_of_one_path_is_a_plain_chain_of_steps(expand):
    async def chain(seed):
        tree = Tree("chain", QUESTION, sampler_of(TRAP), chat(), Budget(), seed=seed)
        node = tree.root
        while node.open:
            [node] = await tree.extend(node)
        return node.tokens

    seen = set()
    for seed in range(8):
        trace = search(beam, sampler_of(TRAP), 1, expand=expand, seed=seed)
        assert path_tokens(trace, trace.chosen) == asyncio.run(chain(seed))
        assert len(trace.spans) == 5  # the prompt, two lines, the end of the thought, the answer
        seen.add(trace.answer)
    assert seen == {"1", "2"}


@pytest.mark.parametrize("expand", [2, 3, 4])
@pytest.mark.parametrize("lookahead", [0, 1])
def test_dvts_with_one_root_is_a_beam_of_one(expand, lookahead):
    for seed in range(6):
        one = search(beam, wild(), expand, chance, expand=expand, lookahead=lookahead, seed=seed)
        other = search(dvts, wild(), expand, chance, expand=expand, lookahead=lookahead, seed=seed)
        assert same_but_for_the_clock(one, other) and len(one.leaves) > 0


def test_a_wide_beam_finds_the_optimum_that_a_greedy_one_misses():
    """Eight paths, of which one is kept, or four. With one to three of the eight on "a", four hold "b"."""
    script = {**TRAP, "": {"a\n": 1.0, "b\n": 2.0}}
    seeds = 0
    for seed in range(8):
        narrow = search(beam, sampler_of(script), 8, trap_score, expand=8, seed=seed)
        wide = search(beam, sampler_of(script), 8, trap_score, expand=2, seed=seed)
        assert texts(wide)[:8] == texts(narrow)[:8]  # they see the same first steps
        if 1 <= texts(wide)[:8].count("a\n") <= 3:
            assert (narrow.answer, wide.answer) == ("1", "2")
            seeds += 1
    assert seeds >= 4


def test_copies_of_the_best_step_are_not_dropped_for_worse_ones():
    """With three different steps at all, a beam of different ones would go on from bad ones as well."""
    script = {"": {"a\n": 3.0, "b\n": 1.0, "c\n": 1.0}, "a\n": {"</think>": 1.0}, "a\n</think>": {"1": 1.0}}
    value = {"a\n": 0.9, "b\n": 0.2, "c\n": 0.1}
    for seed in range(5):
        sampler = sampler_of(script)
        trace = search(beam, sampler, 8, lambda text: value.get(text, 0.9), expand=4, seed=seed)
        assert texts(trace)[:8].count("a\n") >= 2 and len(set(texts(trace)[:8])) > 1
        assert [(thought(call.prefix), call.n) for call in sampler.calls[:2]] == [("", 8), ("a\n", 8)]
        assert trace.answers == ["1"] * 8


def test_lookahead_finds_what_a_myopic_score_misses():
    for seed in range(5):
        trace = search(beam, sampler_of(TRAP), 4, trap_score, expand=4, lookahead=1, seed=seed)
        assert trace.answer == "2" and trace.strategy == "lookahead"
        first = [(i, span) for i, span in enumerate(trace.spans) if span.parent == 0 and span.score is not None]
        scores = {lines(trace, i): span.score for i, span in first}
        assert (scores["a\n"], scores["b\n"]) == (0.1, 0.95)  # of the path one step on


def test_lookahead_costs_what_it_says():
    """By hand, two paths on the only way: 2 tokens a line, 1 for the end of the thought, 2 for the answer and its end.

    Each round samples two steps, finds them equal, and looks on from the one that stays.
    """
    plain = search(beam, sampler_of(LINE), 2, expand=2)
    assert plain.cost.sampled_tokens == 2 * (2 + 2 + 1 + 2)
    ahead = {1: 2 + 1 + 2, 2: (2 + 1) + (1 + 2) + 2, 9: (2 + 1 + 2) + (1 + 2) + 2}  # after each of the three steps
    for lookahead, extra in ahead.items():
        sampler, budget = sampler_of(LINE), Budget(samples=2)
        trace = search(beam, sampler, 2, expand=2, lookahead=lookahead, budget=budget)
        assert trace.cost.sampled_tokens - plain.cost.sampled_tokens == extra
        assert sum(len(s.tokens) for s in trace.spans if s.temperature == 0 and s.kind is SpanKind.SAMPLED) == extra
        assert_sound(trace, sampler, budget)


def test_paths_that_lookahead_completes_do_not_vote_beside_the_search():
    """The greedy way out is "9", which the scorer likes; what the search itself samples is "8"."""
    script = {"": {"a\n": 1.0}, "a\n": {"</think>": 1.0}, "a\n</think>": {"9": 1.01, "8": 1.0}}
    for seed in range(20):
        trace = search(beam, sampler_of(script), 1, lambda t: 1.0 if "9" in t else 0.2, lookahead=3, seed=seed)
        if "8" in lines(trace, trace.chosen):
            assert trace.answer == "8" and "9" in trace.answers
            break
    else:
        raise AssertionError("8 was never sampled")


def likes(start: str, text: str) -> float:
    return 0.9 if text.startswith(start) else 0.2


def test_paths_that_lookahead_completes_are_chosen_from_when_there_are_no_others():
    script = {"": {"a\n": 1.0, "b\n": 1.0}}
    for line, answer in (("a\n", "1"), ("b\n", "2")):
        script |= {line: {"</think>": 1.0}, line + "</think>": {answer: 1.0}}
    for good, answer in (("a", "1"), ("b", "2")):
        # For four first steps, and for the looks from two of them.
        budget = Budget(tokens=4 * 2 + 2 * (1 + 2), answer_tokens=2, samples=4)
        value = partial(likes, good)
        trace = search(beam, sampler_of(script), 4, value, expand=4, lookahead=2, budget=budget)
        assert trace.answers in (["1", "2"], ["2", "1"]) and trace.answer == answer and trace.exhausted


def test_equal_paths_go_on_once_and_are_scored_once():
    scorer = ScriptedScorer(lambda t: 0.5)
    sampler, budget = sampler_of(LINE), Budget(samples=4)
    trace = run(beam, sampler, budget, scorer=scorer, canonical=canonical, expand=2)
    assert scorer.calls == [["a\n"], ["a\nb\n"], ["a\nb\n</think>"], ["a\nb\n</think>7<|end|>"]]
    assert [call.n for call in sampler.calls] == [4, 4, 4, 4]
    assert [span.pruned for span in trace.spans] == [False] + 3 * [False, True, True, True] + 4 * [False]
    assert trace.answers == ["7"] * 4 and trace.cost.scorer_tokens == len(path_tokens(trace, trace.leaves[0]))
    assert_sound(trace, sampler, budget)


def test_how_often_an_answer_is_reached_counts_in_the_vote():
    script = {"": {"</think>": 1.0}, "</think>": {"1": 4.0, "2": 1.0}}
    value = lambda text: 0.6 if "2" in text else 0.5  # noqa: E731
    vote = search(beam, sampler_of(script), 8, value, expand=8)
    assert vote.answers.count("1") > vote.answers.count("2") > 0
    assert vote.answer == "1" and search(beam, sampler_of(script), 8, value, expand=8, choose="best").answer == "2"


def test_a_finished_path_is_one_of_the_n():
    """Half of the first steps end the thought; whatever finishes, no more than N paths are there at once."""
    script = {"": {"</think>": 1.0, "a\n": 1.0}, "</think>": {"3": 1.0}, **{k: v for k, v in LINE.items() if k}}
    for strategy in (partial(beam, expand=2), partial(dvts, expand=3), rebase):
        for n in range(1, 8):
            sampler, budget = sampler_of(script), Budget(samples=n)
            trace = search(strategy, sampler, n, budget=budget)
            assert 1 <= len(trace.leaves) <= n and all(a in ("3", "7") for a in trace.answers)
            assert sampler.calls[0].n == n and all(call.n <= n for call in sampler.calls)
            assert_sound(trace, sampler, budget)


def test_trees_of_dvts_cannot_crowd_each_other_out():
    """The scorer likes "a" best: a beam goes on from nothing else, two trees from the best that each of them has."""
    script = {"": {"a\n": 1.0, "b\n": 9.0}, **{k: v for k, v in TRAP.items() if k}}
    value = lambda text: 0.9 if text.startswith("a") else 0.5  # noqa: E731
    found = {"beam": set(), "dvts": set()}
    for seed in range(12):
        found["beam"].add(frozenset(search(beam, sampler_of(script), 4, value, expand=4, seed=seed).answers))
        found["dvts"].add(frozenset(search(dvts, sampler_of(script), 8, value, expand=4, seed=seed).answers))
    assert found["beam"] == {frozenset("1"), frozenset("2")}  # whichever the best of four firsts was
    assert frozenset("12") in found["dvts"]  # each tree its own
    trace = search(dvts, sampler_of(script), 8, value, expand=4)
    assert len(trace.leaves) == 8


def test_aggregates_decide_which_path_is_best():
    """Scores along "a": .2, .9, .9, .9; along "b": .6, .6, .6, .6."""

    def value(text):
        return 0.6 if text.startswith("b") else 0.2 if text == "a\n" else 0.9

    for strategy in (partial(beam, expand=1), rebase_all):
        answers = {
            how: search(strategy, sampler_of(TRAP), 8, value, aggregate=how, choose="best").answer
            for how in ("last", "mean", "min", "product")
        }
        assert answers == {"last": "1", "mean": "1", "min": "2", "product": "1"} or answers["product"] == "2"
        assert (answers["last"], answers["mean"], answers["min"]) == ("1", "1", "2")
        assert answers["product"] == ("1" if 0.2 * 0.9**3 > 0.6**4 else "2")


rebase_all = partial(rebase, balance=1e6)  # goes on from every path alike


@pytest.mark.parametrize("options", [{"expand": 0}, {"lookahead": -1}])
@pytest.mark.parametrize("strategy", [beam, dvts])
def test_numbers_that_make_no_beam_are_refused(strategy, options):
    with pytest.raises(UserError, match=next(iter(options))):
        search(strategy, sampler_of(LINE), 4, **options)


# ----------------------------------------------------------------------------- what every scored search must bear

SEARCHES = {
    "beam": partial(beam, expand=2),
    "lookahead": partial(beam, expand=2, lookahead=2),
    "dvts": partial(dvts, expand=2),
    "dvts that looks ahead": partial(dvts, expand=2, lookahead=1, aggregate="min", choose="best"),
    "rebase": rebase,
    "rebase by product": partial(rebase, aggregate="product", balance=0.3, choose="best"),
}
every_search = pytest.mark.parametrize("strategy", SEARCHES.values(), ids=SEARCHES.keys())
HARDSHIPS = (
    hardships.keeps_budgets_to_the_token,
    hardships.bears_a_lost_sampler,
    hardships.bears_a_lost_scorer,
    hardships.depends_on_the_seed_alone,
    hardships.leaves_nothing_running,
)


@pytest.mark.parametrize("bears", HARDSHIPS, ids=lambda bears: bears.__name__)
@every_search
def test_hardships(strategy, bears):
    bears(strategy, 6)


@every_search
def test_dead_ends_and_thoughts_without_end(strategy):
    hardships.bears_dead_ends(strategy)
    hardships.ends_a_thought_without_end(strategy)


@every_search
def test_a_search_that_was_cut_says_so(strategy):
    """Where the trace is not exhausted every step was whole, and every path that was kept came to its answer."""
    whole = 0
    for tokens in range(0, 200, 2):
        budget = Budget(tokens=tokens, samples=6, answer_tokens=4)
        trace = search(strategy, wild(), 6, chance, budget=budget, steps=Steps(max_tokens=5))
        if tokens < 6:
            assert trace.exhausted  # not a token for each path
        if not trace.exhausted:
            assert all(span.stop is StopReason.STOP for span in trace.spans if span.kind is SpanKind.SAMPLED)
            assert ends(trace) <= set(trace.leaves)
            whole += 1
    assert 0 < whole < 100


def ends(trace: Trace) -> set[int]:
    """Where paths end that the search itself sampled and did not prune."""
    parents = {span.parent for span in trace.spans}
    return {i for i, span in enumerate(trace.spans) if i not in parents and not span.pruned and span.temperature == 1.0}


@every_search
def test_what_is_shown_of_a_search(strategy):
    """What was not gone on from is marked, what was has been visited, and what was chosen stands unmarked."""
    trace = search(strategy, wild(), 6, chance)
    parents = {span.parent for span in trace.spans}
    for i, span in enumerate(trace.spans):
        if span.kind is SpanKind.SAMPLED and span.temperature == 1.0 and i not in trace.leaves:
            assert span.pruned == (span.visits == 0)
            assert span.visits == 0 or i in parents
    assert any(span.pruned for span in trace.spans)
    assert trace.answer and trace.chosen in trace.leaves and not trace.spans[trace.chosen].pruned
