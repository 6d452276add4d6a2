"""The tree of a Monte-Carlo tree search, by hand: which branch its rules prefer, what the priors are, and that every
branch holds exactly what its simulations brought."""

from collections import Counter

import pytest

from mull.engine.scripted import ScriptedSampler
from mull.search.branches import Branch
from mull.search.mcts import Search
from mull.search.node import Node
from tests.search import hardships
from tests.search.simulations import assert_landed, binary, branches, hidden, simulate, start
from tests.search.tools import chat, sampler_of, thought

# ------------------------------------------------------------------------------------------------------------ the rules

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


# -------------------------------------------------------------------------------------------------------- exact backups


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
