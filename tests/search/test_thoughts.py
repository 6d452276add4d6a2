"""Tree of Thoughts over trees small enough to solve by hand."""

from functools import partial

import pytest

from mull.errors import UserError
from mull.ledger import Budget
from mull.search.sample import Decoding
from mull.search.thoughts import tot_bfs, tot_dfs
from mull.types import SpanKind, Trace
from tests.search import hardships
from tests.search.hardships import search
from tests.search.tools import ScriptedScorer, canonical, chat, run, sampler_of, texts, thought

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
SCORES = {"a\n": 0.9, "b\n": 0.6, "a\nc\n": 0.2, "b\nd\n": 0.7, "a\nc\n</think>": 0.3, "b\nd\n</think>": 0.7}


def trap_score(text: str) -> float:
    return SCORES.get(text, 0.1 if "1<" in text else 0.8)


def visited(trace: Trace) -> list[str]:
    """The paths that the search went on from, in the order of their spans."""
    ends = [i for i, span in enumerate(trace.spans) if span.visits and span.kind is SpanKind.SAMPLED]
    return [thought([t for span in trace.path(i) for t in span.tokens]) for i in ends]


def test_breadth_first_keeps_the_best_of_all_candidates_at_each_depth():
    for seed in range(5):
        narrow = search(tot_bfs, sampler_of(TRAP), Budget(samples=1), trap_score, seed=seed, expand=6)
        assert narrow.answer == "1" and visited(narrow)[0] == "a\n" and set(narrow.answers) == {"1"}
        wide = search(tot_bfs, sampler_of(TRAP), Budget(samples=2), trap_score, seed=seed, expand=6)
        assert wide.answer == "2" and set(wide.answers) == {"1", "2"}
        assert narrow.strategy == "tot_bfs"


def test_one_kept_path_is_greedy():
    """With one candidate at temperature 0 it is the greedy chain; with many the best-scored step at each depth."""
    likely = {**TRAP, "": {"a\n": 1.0, "b\n": 1.2}}
    options = {"expand": 1, "decoding": Decoding(temperature=0.0)}
    trace = search(tot_bfs, sampler_of(likely), Budget(samples=1), trap_score, **options)
    assert texts(trace) == ["b\n", "d\n", "</think>", "2<|end|>"]
    greedy_path, text = [], ""
    while text in TWO_LINES:
        text = max((text + step for step in TWO_LINES[text]), key=hardships.chance)
        greedy_path.append(text)
    for seed in range(5):
        sampler = sampler_of(TWO_LINES)
        trace = search(tot_bfs, sampler, Budget(samples=1), expand=32, seed=seed)
        assert [path.removesuffix("<|end|>") for path in visited(trace)] == greedy_path


# Every path of two lines out of three words, then an answer of two.
TWO_LINES = {"": {w: 1.0 for w in ("x\n", "y\n", "z\n")}}
TWO_LINES |= {a: {w: 1.0 for w in ("x\n", "y\n", "z\n")} for a in TWO_LINES[""]}
TWO_LINES |= {a + b: {"</think>": 1.0} for a in TWO_LINES[""] for b in TWO_LINES[""]}
TWO_LINES |= {a + b + "</think>": {"1": 1.0, "2": 1.0} for a in TWO_LINES[""] for b in TWO_LINES[""]}


def test_wide_enough_breadth_first_search_finds_the_best_leaf_of_all():
    """Nine paths of two lines, two answers each: 18 leaves, all kept."""
    leaves = [path + answer for path in TWO_LINES if path.endswith("</think>") for answer in "12"]
    best = max(leaves, key=lambda leaf: hardships.chance(leaf + "<|end|>"))
    for seed in range(3):
        trace = search(tot_bfs, sampler_of(TWO_LINES), Budget(samples=18), expand=24, seed=seed)
        path = thought([t for span in trace.path(trace.chosen) for t in span.tokens])
        assert path == best + "<|end|>"
        assert len([1 for span in trace.spans if span.visits]) >= 3 + 9 + 9 + 18


def test_a_finished_path_stays_only_while_it_is_among_the_best():
    early = {"": {"</think>": 1.0, "b\n": 1.0}, "</think>": {"1": 1.0}, **{k: v for k, v in TRAP.items() if "b" in k}}
    early["b\n"], early["b\nd\n"] = {"d\n": 1.0}, {"</think>": 1.0}

    def value(text: str) -> float:
        return 0.5 if text == "</think>1<|end|>" else trap_score(text)

    trace = search(tot_bfs, sampler_of(early), Budget(samples=2), value, expand=6)
    assert trace.answer == "2" and set(trace.answers) == {"1", "2"}
    low = search(tot_bfs, sampler_of(early), Budget(samples=2), lambda t: 0.1 if t[0] == "b" else 0.5, expand=6)
    assert low.answer == "1"


def test_a_vote_weighs_the_kept_paths():
    script = {"": {"a\n": 1.0, "b\n": 1.0, "c\n": 1.0}}
    for word, answer in (("a", "1"), ("b", "1"), ("c", "2")):
        script |= {f"{word}\n": {"</think>": 1.0}, f"{word}\n</think>": {answer: 1.0}}
    value = lambda text: 0.6 if text[0] == "c" else 0.4  # noqa: E731
    options = {"expand": 12, "seed": 1}
    assert search(tot_bfs, sampler_of(script), Budget(samples=3), value, **options).answer == "2"
    assert search(tot_bfs, sampler_of(script), Budget(samples=3), value, choose="vote", **options).answer == "1"


def test_depth_first_backtracks_as_written():
    """By hand, threshold .5: "a" (.9) first; its only child (.2) is below; back to "b" (.6), "d" (.7), the answer."""
    for seed in range(5):
        scorer = ScriptedScorer(trap_score)
        trace = run(
            tot_dfs, sampler_of(TRAP), Budget(samples=3), scorer=scorer, canonical=canonical, expand=6, seed=seed
        )
        assert visited(trace) in (
            ["a\n", "b\n", "b\nd\n", "b\nd\n</think>", "b\nd\n</think>2<|end|>"],
            ["b\n", "a\n", "b\nd\n", "b\nd\n</think>", "b\nd\n</think>2<|end|>"],  # "b" was sampled first
        )
        order = [call[0] for call in scorer.calls[1:]]
        assert order == ["a\nc\n", "b\nd\n", "b\nd\n</think>", "b\nd\n</think>2<|end|>"]
        assert trace.answer == "2" and set(trace.answers) == {"2"} and trace.strategy == "tot_dfs"
        pruned = {chat().decode(span.tokens) for span in trace.spans if span.pruned}
        assert "c\n" in pruned


def test_depth_first_backtracks_from_a_path_that_is_lost():
    """The second request, to go on from "a", fails."""
    sampler = sampler_of(TRAP, fail={1: hardships.GONE})
    trace = search(tot_dfs, sampler, Budget(samples=3), trap_score, expand=6)
    assert trace.answer == "2" and trace.lost == ["the sampler was lost: gone away"]
    assert visited(trace)[-4:] == ["b\n", "b\nd\n", "b\nd\n</think>", "b\nd\n</think>2<|end|>"]
    dead_end = {**TRAP, "a\n": {"stop": 1.0}}
    trace = search(tot_dfs, sampler_of(dead_end), Budget(samples=3), trap_score, expand=6)
    assert trace.answer == "2" and not trace.lost


def test_depth_first_ends_at_the_first_path_that_is_good_enough():
    sampler = sampler_of(TRAP)
    all_of_them = search(tot_dfs, sampler, Budget(samples=9), trap_score, expand=6, threshold=0.0, enough=0.9)
    assert set(all_of_them.answers) == {"1", "2"} and all_of_them.answer == "2"
    first = search(tot_dfs, sampler_of(TRAP), Budget(samples=9), trap_score, expand=6, threshold=0.0, enough=0.05)
    assert set(first.answers) == {"1"}
    one = search(tot_dfs, sampler_of(TRAP), Budget(samples=1), trap_score, expand=6, threshold=0.0)
    assert set(one.answers) == {"1"} and len([span for span in one.spans if span.pruned]) > 0


def test_depth_first_answers_where_nothing_passes_the_threshold():
    trace = search(tot_dfs, sampler_of(TRAP), Budget(samples=2), trap_score, expand=6, threshold=0.95)
    assert trace.answer == "1" and not trace.exhausted  # the most promising first step, completed
    few = search(tot_dfs, sampler_of(TRAP), Budget(samples=2), trap_score, expand=6, limit=1)
    assert few.answer == "1"


@pytest.mark.parametrize("limit", [1, 2, 5, 17])
def test_the_limit_counts_steps_gone_on_from(limit):
    sampler = hardships.wild()
    sampler._follows = lambda tokens: {"9": 1.0} if thought(tokens).endswith("</think>") else {"x\n": 1.0, "y\n": 1.0}
    trace = search(tot_dfs, sampler, Budget(samples=50, think_tokens=64, answer_tokens=1), limit=limit, threshold=-1.0)
    assert len([call for call in sampler.calls if call.n == 4]) == limit
    assert trace.answer == "9" and len(trace.leaves) == 1


@pytest.mark.parametrize(
    "strategy, options", [(tot_bfs, {"expand": 0}), (tot_dfs, {"expand": 0, "limit": 9}), (tot_dfs, {"limit": 0})]
)
def test_options_that_allow_nothing_are_refused(strategy, options):
    with pytest.raises(UserError, match="must be 1 or more"):
        search(strategy, hardships.wild(), Budget(), **options)


SEARCHES = {
    "bfs": tot_bfs,
    "bfs by vote": partial(tot_bfs, choose="vote", expand=3),
    "dfs": partial(tot_dfs, threshold=0.3, enough=2.0),
    "dfs strict": partial(tot_dfs, threshold=0.8),
}
every_search = pytest.mark.parametrize("strategy", SEARCHES.values(), ids=SEARCHES.keys())


@every_search
def test_what_every_search_must_bear(strategy):
    hardships.keeps_budgets_to_the_token(strategy, 3)
    hardships.bears_a_lost_sampler(strategy, 3)
    hardships.bears_a_lost_scorer(strategy, 3)
    hardships.bears_dead_ends(strategy)
    hardships.ends_a_thought_without_end(strategy)
    hardships.depends_on_the_seed_alone(strategy, 3)
    hardships.leaves_nothing_running(strategy, 3)
