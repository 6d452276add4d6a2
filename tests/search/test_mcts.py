"""MCTS as a whole, over trees whose best leaf is known: what it finds, what that costs, and what it must bear."""

import math
from collections import Counter
from functools import partial

import pytest

from mull.engine.scripted import ScriptedSampler
from mull.errors import UserError
from mull.ledger import Budget
from mull.search.mcts import mcts
from mull.types import SpanKind
from tests.search import hardships
from tests.search.hardships import search
from tests.search.simulations import assert_landed, binary, branches, hidden, in_favour_of_a, simulate, start
from tests.search.tools import ScriptedScorer, assert_sound, canonical, chat, run, sampler_of, thought

# -------------------------------------------------------------------------------------------------------- what it finds


@pytest.mark.parametrize("rule", ["puct", "uct"])
@pytest.mark.parametrize("parallel", [1, 8])
def test_visits_concentrate_on_the_optimal_leaf(rule, parallel):
    shares, at_leaf = [], []
    for n in (16, 64, 256, 1024):
        s = simulate(start(binary(9), in_favour_of_a, select=rule, expand=6, parallel=parallel), n)
        tree = branches(s)
        assert s.root.visits == n and not s.root.solved
        shares.append(tree["a\n"].visits / n)
        at_leaf.append(tree["a\n" * 9 + "</think>9<|end|>"].visits / n if n > 64 else 0.0)
    assert shares == sorted(shares) and shares[0] > 0.6 and shares[-1] > 0.97, shares
    assert at_leaf == sorted(at_leaf) and at_leaf[-1] > 0.65, at_leaf


@pytest.mark.parametrize("choose", ["vote", "visits"])
def test_deeper_values_overrule_a_step_that_looks_good(choose):
    """ "b" scores .7 and comes to .1, "a" scores .4 and comes to .9: a beam of one would be lost."""

    def value(text: str) -> float:
        if text.count("\n") == 1:
            return 0.7 if text[0] == "b" else 0.4
        return 0.1 if text[0] == "b" else 0.9

    for seed in range(5):
        budget, sampler = Budget(samples=40), binary(3)
        trace = search(mcts, sampler, budget, value, seed=seed, choose=choose, expand=6)
        path = thought([t for span in trace.path(trace.chosen) for t in span.tokens])
        assert path.startswith("a") and trace.chosen in trace.leaves


def first_steps(trace) -> dict[str, int]:
    """Visits of the first steps; those of equal steps stand on the first of them."""
    found: Counter[str] = Counter()
    for span in trace.spans:
        if span.parent == 0:
            found[chat().decode(span.tokens)] = max(found[chat().decode(span.tokens)], span.visits)
    return found


def test_agreement_of_rollouts_finds_the_right_branch_without_any_score():
    shares, right = {}, {}
    for n in (16, 128):
        traces = []
        for seed in range(8):
            sampler, budget = ScriptedSampler(hidden, chat()), Budget(samples=n)
            traces.append(run(mcts, sampler, budget, canonical=canonical, value="rollout", expand=6, seed=seed))
            assert_sound(traces[-1], sampler, budget)
            assert all(span.score is None for span in traces[-1].spans)
        shares[n] = sum(first_steps(trace)["a\n"] / n for trace in traces) / 8
        right[n] = sum(trace.answer == "1" for trace in traces)
    assert 0.5 < shares[16] < shares[128] and shares[128] > 0.8, shares
    assert right[16] >= 6 and right[128] == 8, right


def test_rollouts_with_a_scorer_ask_it_for_finished_chains_alone():
    scorer = ScriptedScorer(lambda text: 1.0 if text.startswith("a") else 0.2)
    budget = Budget(samples=30)
    trace = run(mcts, binary(4), budget, scorer=scorer, canonical=canonical, value="rollout", expand=6, choose="visits")
    assert all(text.endswith("<|end|>") for call in scorer.calls for text in call)
    path = thought([t for span in trace.path(trace.chosen) for t in span.tokens])
    assert path.startswith("a")
    assert first_steps(trace)["a\n"] > 2 * first_steps(trace)["b\n"] > 0


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_both_values_are_mixed(mix):
    """Steps are worth .8, finished chains .4; the first rollout starts at the root, which no scorer values."""
    s = start(binary(20), lambda t: 0.4 if "end" in t else 0.8, value="both", mix=mix, parallel=1, expand=2)
    simulate(s, 25)
    assert s.root.visits == 25
    assert s.root.total == pytest.approx(0.4 + 24 * (mix * 0.4 + (1 - mix) * 0.8))


def test_copies_of_a_finished_path_vote():
    """One way, two answers: "2" is worth more, "1" is given four times as often."""
    script = {"": {"</think>": 1.0}, "</think>": {"1": 4.0, "2": 1.0}}
    judge = lambda text: 0.6 if "2" in text else 0.5  # noqa: E731
    vote = search(mcts, sampler_of(script), Budget(samples=8), judge, expand=12)
    assert vote.answers.count("1") > vote.answers.count("2") > 0 and vote.answer == "1"
    best = search(mcts, sampler_of(script), Budget(samples=8), judge, expand=12, choose="visits")
    assert best.answer == "2" and not any(best.spans[leaf].pruned for leaf in best.leaves)


def test_the_most_visited_path_is_completed_where_no_chain_is():
    sampler, budget = binary(9), Budget(samples=3)
    trace = search(mcts, sampler, budget, in_favour_of_a, expand=6)
    path = thought([t for span in trace.path(trace.chosen) for t in span.tokens])
    assert path.startswith("a\n") and len(trace.leaves) == 1 and not trace.exhausted
    assert trace.spans[trace.chosen].kind is SpanKind.SAMPLED


def test_what_was_never_selected_is_marked():
    trace = search(mcts, hardships.wild(), Budget(samples=12))
    for i, span in enumerate(trace.spans):
        if span.kind is SpanKind.SAMPLED and i not in trace.leaves:
            assert span.pruned == (span.visits == 0) and (span.score is not None or span.pruned)
    assert any(span.pruned for span in trace.spans)


# -------------------------------------------------------------------------------------------------------- what it costs


def test_a_simulation_expands_once_and_an_expansion_uses_the_rollouts():
    sampler = binary(9)
    s = simulate(start(sampler, hardships.chance, value="rollout", parallel=1, expand=4), 40)
    steps = [call.n for call in sampler.calls if 10 in call.params.stop_tokens]
    assert all(n < 4 for n in steps)  # one of four at least came from the rollout that had valued the branch
    close = chat().think_close[0]
    rollouts = [c for c in sampler.calls if close in c.params.stop_tokens and 10 not in c.params.stop_tokens]
    assert 30 < len(rollouts) <= 40 and all(call.n == 1 for call in rollouts) and len(steps) < 40
    assert len(s.stats.finished) >= len(rollouts)


def test_finished_paths_are_visited_again_for_nothing():
    """One end is worth all there is, the other way never ends: simulations go back to the end."""
    script = {"": {"</think>": 1.0, "a\n": 1.0}, "</think>": {"1": 1.0}}
    script |= {"a\n" * n: {"a\n": 1.0} for n in range(1, 80)}
    sampler = sampler_of(script)
    s = simulate(start(sampler, lambda t: 0.0 if "a" in t else 1.0, expand=6), 200)
    end = branches(s)["</think>1<|end|>"]
    assert s.root.visits == 200 and end.visits > 150
    assert len(sampler.calls) == 200 - end.visits + 1 == len(s.tree.scorer.calls)


@pytest.mark.parametrize("value", ["scorer", "rollout", "both"])
def test_it_ends_when_all_leaves_are_complete(value):
    script = {"": {"a\n": 1.0}, "a\n": {"</think>": 1.0}, "a\n</think>": {"7": 1.0}}
    sampler, budget = sampler_of(script), Budget(samples=1000)
    trace = search(mcts, sampler, budget, lambda t: 0.5, parallel=1)
    assert trace.answer == "7" and trace.spans[0].visits == 3 and len(sampler.calls) == 3
    s = simulate(start(sampler_of(script), lambda t: 0.5, value=value), 1000)
    assert s.root.solved and s.root.visits < 40
    assert_landed(s)


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"value": "scorer", "scorer": None}, "needs a scorer"),
        ({"value": "both", "scorer": None}, "needs a scorer"),
        ({"expand": 0}, "expand=0: it must be 1 or more"),
        ({"parallel": 0}, "parallel=0"),
        ({"c": -1.0}, "c=-1.0: it must be 0 or more"),
        ({"c": math.nan}, "c=nan"),
        ({"virtual_loss": -0.5}, "virtual_loss=-0.5"),
        ({"mix": 1.5}, "a share, from 0 to 1"),
    ],
)
def test_options_that_make_no_search_are_refused(options, complaint):
    options = {"scorer": ScriptedScorer(hardships.chance), **options}
    with pytest.raises(UserError, match=complaint):
        run(mcts, hardships.wild(), Budget(), canonical=canonical, **options)


SEARCHES = {
    "puct": mcts,
    "uct by visits": partial(mcts, select="uct", choose="visits", parallel=3),
    "rollouts": partial(mcts, value="rollout", expand=2),
    "both": partial(mcts, value="both", parallel=2),
    "one at a time": partial(mcts, parallel=1, expand=2),
}
every_search = pytest.mark.parametrize("strategy", SEARCHES.values(), ids=SEARCHES.keys())


@every_search
def test_what_every_search_must_bear(strategy):
    hardships.keeps_budgets_to_the_token(strategy, 6)
    hardships.bears_a_lost_sampler(strategy, 6)
    hardships.bears_dead_ends(strategy)
    hardships.ends_a_thought_without_end(strategy)
    hardships.depends_on_the_seed_alone(strategy, 16)
    hardships.leaves_nothing_running(strategy, 6)
    hardships.bears_a_lost_scorer(strategy, 6)


def test_agreement_bears_it_too():
    async def agreement(*args, scorer, **options):
        return await mcts(*args, value="rollout", **options)

    hardships.keeps_budgets_to_the_token(agreement, 6)
    hardships.bears_a_lost_sampler(agreement, 6)
    hardships.bears_dead_ends(agreement)
    hardships.depends_on_the_seed_alone(agreement, 16)
    hardships.leaves_nothing_running(agreement, 6)
