"""MCTS over trees small enough to solve by hand, and over large ones whose best leaf is known."""

import asyncio
import math
from collections import Counter
from functools import partial

import pytest

from mull.engine.scripted import ScriptedSampler
from mull.errors import SamplerLost, UserError
from mull.ledger import Budget
from mull.search.branches import Branch, Statistics
from mull.search.mcts import Search, mcts
from mull.search.node import Node
from mull.search.tree import Tree
from mull.types import SpanKind
from tests.search import hardships
from tests.search.hardships import search
from tests.search.tools import QUESTION, ScriptedScorer, assert_sound, canonical, chat, run, sampler_of, thought


def start(sampler, judge=None, budget=None, seed=0, **options) -> Search:
    """A search that has not begun; `judge` scores texts, None: there is no scorer."""
    scorer = None if judge is None else ScriptedScorer(judge)
    tree = Tree("mcts", QUESTION, sampler, chat(), budget or Budget(), seed=seed, scorer=scorer)
    rule = {key: options.pop(key) for key in ("select", "c", "virtual_loss") if key in options}
    return Search(Statistics(tree, canonical, **rule), **options)


def simulate(search: Search, n: int) -> Search:
    asyncio.run(search.run(n))
    return search


def branches(search: Search) -> dict[str, Branch]:
    """Every branch by its text."""
    found, todo = {}, [search.root]
    while todo:
        branch = todo.pop()
        found[thought(branch.node.tokens)] = branch
        todo += branch.children
    return found


def assert_landed(search: Search) -> None:
    """Nothing is in the air: virtual loss is wholly taken back, and no branch waits for an expansion."""
    for text, branch in branches(search).items():
        assert (branch.flying, branch.growing) == (0, False), text


def binary(depth: int, **options) -> ScriptedSampler:
    """`depth` lines "a" or "b", equally likely; the answer is the number of "a"s."""

    def follows(tokens):
        text, closed, answer = thought(tokens).partition("</think>")
        if closed:
            return None if answer else {str(text.count("a")): 1.0}
        return {"</think>": 1.0} if text.count("\n") == depth else {"a\n": 1.0, "b\n": 1.0}

    return ScriptedSampler(follows, chat(), **options)


def in_favour_of_a(text: str) -> float:
    """1 as long as all lines are "a"; .5 after a "b", .2 after a "b" at once."""
    return 0.2 if text.startswith("b") else 0.5 if "b" in text else 1.0


# ------------------------------------------------------------------------------------------- the rules, by hand

# First three steps from the root, then of "a", then of "b": equal ones are one child of double weight.
BY_HAND = ["a\n", "b\n", "a\n", "c\n", "d\n", "c\n", "e\n", "f\n", "f\n"]
WORTH = {"a\n": 0.6, "b\n": 0.5, "a\nc\n": 0.1, "a\nd\n": 0.2, "b\ne\n": 0.9, "b\nf\n": 0.3}


def statistics(search: Search) -> dict[str, tuple[int, float]]:
    return {text: (b.visits, pytest.approx(b.total)) for text, b in branches(search).items()}


def test_puct_by_hand():
    """Priors 2/3 and 1/3. 1: a .6+.67 over b .5+.33. 2: a .6+.67/2=.93 over b .83, then c .1+.67=.77 over d .2+.33=.53.
    3: a .35+.67*1.41/3=.66 under b .5+.33*1.41=.97; there e .9+.33=1.23 over f .3+.67=.97."""
    after = [simulate(start(ScriptedSampler(BY_HAND, chat()), WORTH.get, expand=3, parallel=1), n) for n in (1, 2, 3)]
    tree = branches(after[2])
    assert {text: branch.prior for text, branch in tree.items()} == {
        text: pytest.approx(prior)
        for text, prior in {
            "": 1,
            "a\n": 2 / 3,
            "b\n": 1 / 3,
            "a\nc\n": 2 / 3,
            "a\nd\n": 1 / 3,
            "b\ne\n": 1 / 3,
            "b\nf\n": 2 / 3,
        }.items()
    }
    assert statistics(after[0]) == {"": (1, 0.6), "a\n": (1, 0.6), "b\n": (0, 0)}
    second = {"": (2, 0.7), "a\n": (2, 0.7), "b\n": (0, 0), "a\nc\n": (1, 0.1), "a\nd\n": (0, 0)}
    assert statistics(after[1]) == second
    third = {"": (3, 1.6), "b\n": (1, 0.9), "b\ne\n": (1, 0.9), "b\nf\n": (0, 0)}
    assert statistics(after[2]) == {**second, **third}
    assert [len(s.tree.sampler.calls) for s in after] == [1, 2, 3]  # one expansion each


def test_uct_by_hand():
    """1: a .6 over b .5, as ln 1 is 0. 2: a, then d .2 over c .1. 3: a .4+sqrt(ln 2/2)=.99 under b .5+sqrt(ln 2)."""
    last = simulate(start(ScriptedSampler(BY_HAND, chat()), WORTH.get, select="uct", expand=3, parallel=1), 3)
    assert statistics(last) == {
        "": (3, 1.7),
        "a\n": (2, 0.8),
        "b\n": (1, 0.9),
        "a\nc\n": (0, 0),
        "a\nd\n": (1, 0.2),
        "b\ne\n": (1, 0.9),
        "b\nf\n": (0, 0),
    }


def preferred(children: list[Branch], visits: int, total: float, **options) -> str:
    search = start(hardships.wild(), hardships.chance, **options)
    search.root.children, search.root.visits, search.root.total, search.root.flying = children, visits, total, 1
    return chr(search.stats.preferred(search.root).node.span)


def branch(name: str, visits: int, mean: float, prior: float = 0.5, first: float | None = None, flying=0) -> Branch:
    return Branch(Node(ord(name), ()), first, prior=prior, visits=visits, total=visits * mean, flying=flying)


def test_what_the_rules_prefer():
    # PUCT, N=16: .5+.25*4/(1+9)=.6 and .2+.75*4/(1+5)=.7; with c=.1: .51 and .25.
    pair = lambda: [branch("x", 9, 0.5, 0.25), branch("y", 5, 0.2, 0.75)]  # noqa: E731
    assert preferred(pair(), 16, 6.0) == "y" and preferred(pair(), 16, 6.0, c=0.1) == "x"
    # N is 4, whoever selects: .5+.5*2/5=.7 over .19+.5*2/2=.69; with the one that selects it would be .72 and .75.
    assert preferred([branch("x", 4, 0.5), branch("y", 1, 0.19)], 4, 2.0) == "x"
    # UCT, the same: .5+sqrt(ln 16/9)=1.055 and .2+sqrt(ln 16/5)=.945.
    assert preferred(pair(), 16, 6.0, select="uct") == "x" and preferred(pair(), 16, 6.0, select="uct", c=9.0) == "y"
    # Never visited and never scored: UCT goes there at once, the likelier first; PUCT values it like the parent.
    new = lambda: [*pair(), branch("z", 0, 0.0, 0.1), branch("w", 0, 0.0, 0.2)]  # noqa: E731
    assert preferred(new(), 16, 6.0, select="uct") == "w"
    assert preferred([branch("x", 9, 0.5, 0.5), branch("z", 0, 0.0, 0.5)], 9, 4.5) == "z"  # .5+1.5 over .5+.15
    assert preferred([branch("x", 9, 0.5, 0.9), branch("z", 0, 0.0, 0.1)], 9, 0.9) == "x"  # .1+.3 under .5+.27
    # Scored but never visited: one visit of that value.
    assert preferred([branch("x", 1, 0.5), branch("z", 0, 0.0, first=0.6)], 1, 0.5, select="uct") == "z"
    assert preferred([branch("x", 1, 0.5), branch("z", 0, 0.0, first=0.4)], 1, 0.5, select="uct") == "x"
    # One on its way to x counts as a visit of value 0: .45+.25*4/11=.54 against .46+.25*4/11 for the other.
    twins = [branch("x", 9, 0.5, 0.25, flying=1), branch("y", 10, 0.46, 0.25)]
    assert preferred(twins, 16, 6.0, virtual_loss=1.0) == "y" and preferred(twins, 16, 6.0, virtual_loss=0.0) == "x"
    # On its way to a child that was never visited it is still a visit: UCT sends the next one to the other.
    new = [branch("x", 0, 0.0, 0.9, flying=1), branch("y", 0, 0.0, 0.1)]
    assert preferred(new, 0, 0.0, select="uct", virtual_loss=0.0) == "y"
    assert preferred(new, 9, 4.5, select="puct", virtual_loss=0.0) == "x"  # .5+.9*3/2 over .5+.1*3


def test_uniform_priors_share_out_visits_evenly_where_all_is_worth_the_same():
    for rule in ("puct", "uct"):
        s = simulate(start(binary(12), lambda text: 0.5, select=rule, expand=12, parallel=1), 200)
        a, b = s.root.children
        assert abs(a.visits - b.visits) <= (2 if rule == "uct" else 200 * abs(a.prior - b.prior) + 2)
    lone = ["a\n", "b\n", "c\n", *(f"{x}\n" for x in range(97))]
    s = start(ScriptedSampler(lone, chat()), lambda text: 0.5, expand=3, parallel=1)
    simulate(s, 30)
    assert [child.prior for child in s.root.children] == [pytest.approx(1 / 3)] * 3
    assert [child.visits for child in s.root.children] == [10, 10, 10]


def test_priors_are_mean_probabilities_times_how_often_a_step_came():
    sampler = sampler_of({"": {"a\n": 0.2, "bbb\n": 0.8}})
    s = simulate(start(sampler, lambda text: 0.5, expand=10, seed=3), 1)
    times = Counter(child for child in (n.tokens for n in s.tree.nodes[1:]))
    weight = {}
    for child in s.root.children:
        probability, length = (0.2, 2) if thought(child.node.tokens) == "a\n" else (0.8, 4)
        weight[child] = times[child.node.tokens] * probability ** (1 / length)
    assert len(weight) == 2 and sum(times.values()) == 10
    for child in s.root.children:
        assert child.prior == pytest.approx(weight[child] / sum(weight.values()))
    pruned = sum(span.pruned for span in s.tree.trace.spans)
    assert pruned == 8  # the equal ones


# ------------------------------------------------------------------------------------------------ what it finds


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


def hidden(tokens: tuple[int, ...]) -> dict[str, float] | None:
    """Six lines; nine of ten that begin with "a" answer 1, those that begin with "b" anything from 2 to 9."""
    text, closed, answer = thought(tokens).partition("</think>")
    if closed:
        return None if answer else {"1": 9.0, "2": 1.0} if text[0] == "a" else {str(n): 1.0 for n in range(2, 10)}
    return {"</think>": 1.0} if text.count("\n") == 6 else {"a\n": 1.0, "b\n": 1.0}


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


def test_agreement_is_with_the_other_finished_chains():
    s = simulate(start(ScriptedSampler(hidden, chat()), value="rollout", seed=1, expand=6), 30)
    answers = [leaf.answer for leaf in s.stats.finished]
    assert len(s.stats.finished) > 10
    for leaf, form in s.stats.finished.items():
        share = (answers.count(leaf.answer) - 1) / (len(answers) - 1)
        assert s.stats.confidence(form) == pytest.approx(share)
    for b in branches(s).values():  # W is the sum over its simulations, with what is known now
        assert s.stats.total(b) == pytest.approx(sum(n * s.stats.confidence(form) for form, n in b.answers.items()))
        assert sum(b.answers.values()) == b.visits
    assert s.stats.confidence(None) == 0.0


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


# ---------------------------------------------------------------------------------------- exact backups, and what costs


@pytest.mark.parametrize("parallel", [1, 3, 8])
@pytest.mark.parametrize("value", ["scorer", "rollout", "both"])
@pytest.mark.parametrize("rule", ["puct", "uct"])
def test_backups_are_exact(value, rule, parallel):
    scored = simulate(start(hardships.wild(), hardships.chance, value=value, select=rule, parallel=parallel), 60)
    deep = simulate(start(binary(9), hardships.chance, value=value, select=rule, parallel=parallel), 60)
    for s in (scored, deep):
        assert_landed(s)
        assert s.root.visits == 60 or s.root.solved
        for b in branches(s).values():
            below, spent = sum(c.visits for c in b.children), sum(c.total for c in b.children)
            if b.node.done:
                # A rollout that was valued higher up, and came here, brought the mixed value along.
                assert not b.children and (value == "both" or b.total == pytest.approx(b.visits * b.node.score))
            elif b is s.root:
                assert (b.visits, b.total) == (below, pytest.approx(spent))
            elif value == "scorer":  # its first visit may have ended there, with its own score
                ended = b.visits - below
                assert ended in (0, 1) and b.total == pytest.approx(spent + ended * b.node.score)
            elif b.expanded:  # rollouts from here went on through the children
                assert (b.visits, b.total) == (below, pytest.approx(spent)) and not b.rollouts
            else:
                assert b.visits == len(b.rollouts) and b.total == pytest.approx(sum(r.value for r in b.rollouts))
            assert b.visits == b.node.visits == s.tree.trace.spans[b.node.span].visits
            assert not b.children or sum(c.prior for c in b.children) == pytest.approx(1.0)
            steps = [c.node.tokens for c in b.children]
            assert len(set(steps)) == len(steps)
            assert b.solved == (not b.node.open or (b.expanded and all(c.solved for c in b.children)))


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


# ------------------------------------------------------------------------------------------------ many at once


def rounds(parallel: int, value: str) -> tuple[int, int, int]:
    """(turns of the event loop, most requests at once, simulations) of one search whose requests take 20 turns."""

    async def go():
        sampler = binary(9, yields=20)
        s = start(sampler, hardships.chance, value=value, parallel=parallel, expand=3)
        task = asyncio.create_task(s.run(64))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        await task
        assert_landed(s)
        return turns, sampler.peak, s.root.visits

    return asyncio.run(go())


@pytest.mark.parametrize("value", ["scorer", "rollout", "both"])
def test_simulations_overlap(value):
    one, eight = rounds(1, value), rounds(8, value)
    assert one[1:] == (1, 64) and 7 <= eight[1] <= 8 and eight[2] == 64
    assert eight[0] < one[0] / 3, (one, eight)


def test_virtual_loss_sends_them_different_ways():
    """Without it, or any exploration, simulations that begin together agree on where to go, and wait for each other."""

    def peak(virtual_loss: float) -> int:
        sampler = binary(9, yields=20)
        value = lambda text: 0.4 + 0.2 * hardships.chance(text)  # noqa: E731
        simulate(start(sampler, value, parallel=8, virtual_loss=virtual_loss, c=0.0), 48)
        return sampler.peak

    assert peak(1.0) == 8 and peak(0.0) <= 2


@pytest.mark.parametrize("value", ["scorer", "rollout", "both"])
def test_virtual_loss_leaves_the_distribution_of_answers(value):
    """Answers over 200 seeds, one simulation at a time and eight at once.

    Tolerance: not told apart by chi-square at the 1% level, and no answer's share differs by more than 10 in 100.
    """

    def noisy(text: str) -> float:
        return 0.5 * in_favour_of_a(text) + 0.5 * hardships.chance(text)

    def answers(parallel: int) -> Counter:
        options = {"parallel": parallel, "value": value, "expand": 3}
        return Counter(
            search(mcts, binary(3), Budget(samples=32), noisy, seed=seed, **options).answer for seed in range(200)
        )

    one, eight = answers(1), answers(8)
    kinds = sorted(one.keys() | eight.keys())
    chi2 = sum((one[k] - eight[k]) ** 2 / (one[k] + eight[k]) for k in kinds)
    assert chi2 < {3: 9.21, 4: 11.34}[len(kinds)], (one, eight)
    assert max(abs(one[k] - eight[k]) for k in kinds) <= 0.1 * 200, (one, eight)


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("value", ["scorer", "rollout", "both"])
@pytest.mark.parametrize("error", [RuntimeError("a bug"), SamplerLost("gone")])
def test_virtual_loss_is_taken_back_when_simulations_fail(value, error):
    for k in range(0, 40, 3):
        s = start(hardships.Unordered(hardships.lines, chat(), fail={k: error}), hardships.chance, value=value)
        try:
            simulate(s, 20)
            assert k >= len(s.tree.sampler.calls) or isinstance(error, SamplerLost)
        except RuntimeError:
            assert str(error) == "a bug"
        assert_landed(s)
        assert s.tree.sampler.running == 0


@pytest.mark.parametrize("value", ["scorer", "rollout", "both"])
def test_virtual_loss_is_taken_back_when_the_search_is_cancelled(value):
    async def cancelled(after: int) -> bool:
        s = start(hardships.Unordered(hardships.lines, chat()), hardships.chance, value=value)
        task = asyncio.create_task(s.run(20))
        for _ in range(after):
            await asyncio.sleep(0)
        if task.done():
            return False
        in_the_air = s.root.flying
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_landed(s)
        assert s.tree.sampler.running == s.tree.scorer.running == 0
        return in_the_air > 0 or after == 0

    after = 0
    while asyncio.run(cancelled(after)):
        after += 1
    assert after > 20


def test_virtual_loss_is_taken_back_when_the_budget_ends():
    for tokens in range(2, 120, 7):
        for value in ("scorer", "rollout", "both"):
            s = start(hardships.wild(), hardships.chance, Budget(tokens=tokens, answer_tokens=4), value=value)
            simulate(s, 50)
            assert_landed(s)


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
