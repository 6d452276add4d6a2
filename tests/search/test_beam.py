"""Beam, DVTS and lookahead over trees small enough to solve by hand; and what every scored search must bear."""

import asyncio
import math
import zlib
from functools import partial

import pytest

from mull.engine.scripted import ScriptedSampler
from mull.errors import SamplerLost, StopReason, UserError
from mull.ledger import Budget
from mull.search.beam import beam, dvts
from mull.search.rebase import rebase
from mull.search.sample import Decoding, sample
from mull.search.tree import NO_ANSWER, Steps, Tree
from mull.types import SpanKind, Trace
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


def steps_of(trace: Trace) -> list[tuple]:
    """Every sampled path with what the search made of it, whatever came first."""
    return sorted(
        (lines(trace, i), span.temperature, -1.0 if span.score is None else span.score, span.pruned, span.visits)
        for i, span in enumerate(trace.spans)
        if span.kind is SpanKind.SAMPLED
    )


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
        one = search(beam, wild(), expand, word_score, expand=expand, lookahead=lookahead, seed=seed)
        other = search(dvts, wild(), expand, word_score, expand=expand, lookahead=lookahead, seed=seed)
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
        scores = {step[0]: step[2] for step in steps_of(trace) if step[1] == 1.0}
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
    # And with the budget gone before the search has an answer, they are what there is.
    trace = search(beam, sampler_of(script), 1, lookahead=3, budget=Budget(tokens=7, answer_tokens=2, samples=1))
    assert trace.answer == "9" and trace.exhausted


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


def words(tokens: tuple[int, ...]) -> dict[str, float] | None:
    """Thoughts of up to three words, any of which may be the last; one that was cut goes on like any other."""
    text = thought(tokens)
    if text.endswith("</think>"):
        return {"12": 0.6, "7": 0.4}
    if "</think>" in text:
        return None
    return {"</think>": 1.0} if text.count("\n") >= 3 else {"a\n": 0.4, "bbb\n": 0.4, "</think>": 0.2}


def word_score(text: str) -> float:
    """A number between 0 and 1 that looks like chance."""
    return zlib.crc32(text.encode()) % 1000 / 1000


def wild(**options) -> ScriptedSampler:
    return ScriptedSampler(words, chat(), **options)


class Unordered(ScriptedSampler):
    """Answers late or soon, by the prefix: what is asked first need not arrive first."""

    async def sample(self, prefix_tokens, params, n=1):
        for _ in range(zlib.crc32(bytes(t % 256 for t in prefix_tokens)) % 7):
            await asyncio.sleep(0)
        return await super().sample(prefix_tokens, params, n)


SEARCHES = {
    "beam": partial(beam, expand=2),
    "lookahead": partial(beam, expand=2, lookahead=2),
    "dvts": partial(dvts, expand=2),
    "dvts that looks ahead": partial(dvts, expand=2, lookahead=1, aggregate="min", choose="best"),
    "rebase": rebase,
    "rebase by product": partial(rebase, aggregate="product", balance=0.3, choose="best"),
}
every_search = pytest.mark.parametrize("strategy", SEARCHES.values(), ids=SEARCHES.keys())


@every_search
def test_budgets_are_kept_to_the_token(strategy):
    full = search(strategy, wild(), 6, word_score, budget=Budget(samples=6, answer_tokens=4))
    assert not full.exhausted
    ample = 6 * full.cost.sampled_tokens
    for tokens in (*range(full.cost.sampled_tokens + 8), ample):
        sampler, budget = wild(), Budget(tokens=tokens, samples=6, answer_tokens=4)
        trace = search(strategy, sampler, 6, word_score, budget=budget, steps=Steps(max_tokens=5))
        assert_sound(trace, sampler, budget)
        assert (trace.answer == NO_ANSWER) == (tokens == 0) and (tokens < 2 or trace.answer in ("12", "7", "1"))
        if tokens < 6:
            assert trace.exhausted  # not a token for each path
        if not trace.exhausted:
            assert all(span.stop is StopReason.STOP for span in trace.spans if span.kind is SpanKind.SAMPLED)
            assert ends_are_leaves_or_pruned(trace)
    assert same_but_for_the_clock(trace, full)


def ends_are_leaves_or_pruned(trace: Trace) -> bool:
    parents = {span.parent for span in trace.spans}
    ends = {i for i, span in enumerate(trace.spans) if i not in parents and not span.pruned and span.temperature == 1.0}
    return ends <= set(trace.leaves)


@every_search
def test_a_lost_sampler_ends_paths_and_not_the_search(strategy):
    whole = wild()
    search(strategy, whole, 6, word_score)
    for k in range(len(whole.calls)):
        for failing in ({k}, set(range(k, 99))):  # one request, or all from there on
            sampler, budget = wild(fail=dict.fromkeys(failing, SamplerLost("gone away"))), Budget(samples=6)
            trace = search(strategy, sampler, 6, word_score, budget=budget)
            assert_sound(trace, sampler, budget)
            assert "the sampler was lost: gone away" in trace.lost and not trace.exhausted
            assert trace.answer in ("12", "7") or (trace.answer == NO_ANSWER and not trace.leaves)
            if len(failing) == 1:
                assert trace.answer != NO_ANSWER or k == 0


@every_search
def test_a_lost_scorer_counts_as_its_lowest_score(strategy):
    for failing in ({0}, {1}, {2}, set(range(99))):
        scorer = ScriptedScorer(word_score, fail=dict.fromkeys(failing, SamplerLost("gone away")))
        sampler, budget = wild(), Budget(samples=6)
        trace = run(strategy, sampler, budget, scorer=scorer, canonical=canonical)
        assert_sound(trace, sampler, budget)
        assert trace.answer in ("12", "7") and "the scorer was lost: gone away" in trace.lost


@every_search
def test_a_scorer_without_numbers_leaves_an_answer(strategy):
    for value in (lambda text: math.nan, lambda text: math.nan if "b" in text else 0.5):
        sampler, budget = wild(), Budget(samples=6)
        trace = search(strategy, sampler, 6, value, budget=budget)
        assert_sound(trace, sampler, budget)
        assert trace.answer in ("12", "7") and "gave no number" in trace.lost[0]


@every_search
def test_when_every_path_dies_there_is_still_an_end(strategy):
    for script in ({"": {"stop": 1.0}}, {"": {"a\n": 1.0}, "a\n": {"stop": 1.0}}):
        sampler, budget = sampler_of({**script, "</think>": {"5": 1.0}, "a\n</think>": {"5": 1.0}}), Budget(samples=4)
        trace = search(strategy, sampler, 4, budget=budget)
        assert_sound(trace, sampler, budget)
        assert trace.answer in ("5", NO_ANSWER) and not trace.exhausted


@every_search
def test_a_thought_without_end_is_ended(strategy):
    sampler, budget = wild(), Budget(samples=4, think_tokens=7)
    sampler._follows = lambda tokens: {"9": 1.0} if thought(tokens).endswith("</think>") else {"x" * 9: 1.0}
    trace = search(strategy, sampler, 4, budget=budget, steps=Steps(max_tokens=3))
    assert trace.answer[:1] == "9" and any(span.kind is SpanKind.FORCED for span in trace.spans)
    assert_sound(trace, sampler, budget)


@every_search
def test_the_seed_decides_and_nothing_else(strategy):
    one = search(strategy, wild(), 6, word_score, seed=4)
    assert same_but_for_the_clock(one, search(strategy, wild(), 6, word_score, seed=4))
    assert any(steps_of(one) != steps_of(search(strategy, wild(), 6, word_score, seed=s)) for s in (5, 6))
    for sampler in (wild(yields=7), Unordered(words, chat()), Unordered(words, chat(), yields=3)):
        other = search(strategy, sampler, 6, word_score, seed=4)
        assert steps_of(one) == steps_of(other) and one.answers == other.answers and one.answer == other.answer
        assert lines(one, one.chosen) == lines(other, other.chosen)


@every_search
def test_cancelling_leaves_nothing_running(strategy):
    async def cancelled(after: int) -> bool:
        sampler, scorer = Unordered(words, chat(), yields=2), ScriptedScorer(word_score)
        work = strategy(QUESTION, sampler, chat(), Budget(samples=6), scorer=scorer, canonical=canonical)
        task = asyncio.create_task(work)
        for _ in range(after):
            await asyncio.sleep(0)
        if task.done():
            return False
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sampler.running == scorer.running == 0 and asyncio.all_tasks() == {asyncio.current_task()}
        return True

    after = 0
    while asyncio.run(cancelled(after)):
        after += 3
    assert after > 15


@every_search
def test_what_is_shown_of_a_search(strategy):
    """Every step that lived has a score; what was not gone on from is marked, what was has been visited."""
    trace = search(strategy, wild(), 6, word_score)
    parents = {span.parent for span in trace.spans}
    for i, span in enumerate(trace.spans):
        if span.kind is SpanKind.SAMPLED and span.temperature == 1.0 and i not in trace.leaves:
            assert span.pruned == (span.visits == 0)
            assert span.visits == 0 or i in parents
    assert any(span.pruned for span in trace.spans)
    assert trace.answer and trace.chosen in trace.leaves and not trace.spans[trace.chosen].pruned
