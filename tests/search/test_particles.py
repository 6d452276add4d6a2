"""Particle filtering as a strategy: what it answers, and what it does when a budget, a sampler or a scorer ends."""

import asyncio
import math
import random
from collections import Counter

import pytest

from mull.errors import SamplerLost, UserError
from mull.ledger import Budget
from mull.search.node import Node, Steps
from mull.search.particles import draw, log_potential, particles, propagate
from mull.search.sample import Decoding
from mull.search.tree import NO_ANSWER, Tree
from mull.types import Trace
from tests.search.clouds import PATHS, SCORES, scored, search
from tests.search.tools import QUESTION, ScriptedScorer, assert_sound, canonical, chat, run, sampler_of, thought

# ------------------------------------------------------------------------------------------------ the strategy


def test_one_particle_is_sampling():
    for seed in range(12):
        trace = search(1, seed)

        async def alone(seed=seed):
            tree = Tree("t", QUESTION, sampler_of(PATHS), chat(), Budget(), seed=seed)
            node = tree.root
            while node.open:
                [node] = await tree.extend(node)
            return node, tree.trace

        node, other = asyncio.run(alone())
        assert [s.tokens for s in trace.spans if not s.pruned][: len(other.spans)] == [s.tokens for s in other.spans]
        if node.done:
            assert trace.answer == node.answer
            assert trace.evidence == pytest.approx(math.log(SCORES[thought(node.tokens)]))
        else:
            assert trace.evidence == -math.inf and trace.lost and trace.answer in "123"


def test_how_the_answer_is_picked():
    """Two answers: the policy's favourite scores 0.6, a rare one 0.9."""
    tree = {"": {"a</think>": 0.9, "b</think>": 0.1}, "a</think>": {"1": 1.0}, "b</think>": {"2": 1.0}}

    def value(text):
        return 0.9 if text.startswith("b") else 0.6

    traces = {pick: search(24, 3, value=value, tree=tree, pick=pick) for pick in ("vote", "argmax", "draw")}
    assert {"1", "2"} == set(traces["vote"].answers)
    assert traces["vote"].answer == "1" and traces["argmax"].answer == "2"
    assert all(trace.chosen in trace.leaves for trace in traces.values())
    nodes = [Node(i, ()) for i in range(3)]
    drawn = Counter(draw(nodes, [0.2, 0.0, 0.8], seed).span for seed in range(500))
    assert 60 < drawn[0] < 140 and drawn[1] == 0 and draw([], [], 0) is None


def test_what_is_no_setting_is_refused():
    with pytest.raises(UserError, match="is not a share of the particles"):
        search(2, ess=1.5)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="score_temperature"):
            search(2, score_temperature=bad)


def test_when_every_particle_dies_an_answer_is_still_forced():
    tree = {"": {"a\n": 1.0}, "a\n": {"stop": 1.0}, "a\n</think>": {"5": 1.0}}
    trace = search(4, value=lambda _: 0.5, tree=tree)
    assert trace.evidence == -math.inf and "every particle died" in trace.lost[0]
    assert trace.answer == "5" and not trace.exhausted


# ------------------------------------------------------------------------------- budgets, losses, cancelling

LONG = {"": {"aa\n": 0.5, "b\n": 0.5}}
for _x in ("aa\n", "b\n"):
    LONG |= {_x: {"cc\n": 0.5, "d</think>": 0.5}, _x + "cc\n": {"</think>": 1.0}, _x + "d</think>": {"12": 1.0}}
    LONG |= {_x + "cc\n</think>": {"7": 0.5, "12": 0.5}}


def forgiving(tree):
    """Behind a thought that was closed early, too, there is an answer; a cut line goes on."""

    def follows(tokens):
        text = thought(tokens)
        return tree.get(text) or ({"7": 1.0} if text.endswith("</think>") else {"\n": 1.0} if text else None)

    return follows


def sampler_that_answers(**options):
    sampler = sampler_of(LONG, **options)
    sampler._follows = forgiving(LONG)
    return sampler


def judge(text: str) -> float:
    return 0.2 + 0.6 * (text.count("c") % 2) + 0.01 * len(text) % 0.1


@pytest.mark.parametrize("ess", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("yields", [1, 4])
def test_the_budget_holds_to_the_token(ess, n, yields):
    cut = 0
    for tokens in (0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 16, 23, 31, 44, 60, 90):
        sampler, budget = sampler_that_answers(yields=yields), Budget(tokens=tokens, answer_tokens=3, samples=n)
        trace = run(
            particles,
            sampler,
            budget,
            scorer=ScriptedScorer(judge),
            canonical=canonical,
            ess=ess,
            steps=Steps(max_tokens=6),
        )
        assert_sound(trace, sampler, budget)
        assert trace.answer != NO_ANSWER or tokens < 2
        if trace.exhausted:
            assert trace.evidence is None
            cut += 1
        else:
            assert len(trace.leaves) >= 1 and trace.evidence is not None and tokens > 4 * n
    assert cut >= 6


def test_an_endless_thought_is_closed_and_answered():
    endless = sampler_of({})
    endless._follows = lambda tokens: {
        "</think>": {"7": 1.0},
        "</think>7": None,
    }.get(thought(tokens)[-9:].lstrip("x\n"), {"x\n": 1.0})
    budget = Budget(think_tokens=9, samples=3)
    trace = run(particles, endless, budget, scorer=ScriptedScorer(judge), canonical=canonical)
    assert trace.answers == ["7"] * 3 and not trace.exhausted and trace.evidence is not None
    assert_sound(trace, endless, budget)


def test_a_score_that_is_no_number_counts_as_the_lowest():
    def value(text):
        return math.nan if text.startswith("b") else 0.5

    trace = search(12, 2, value=value, tree=LONG)
    assert trace.lost and trace.evidence is not None
    chosen = [chat().decode(s.tokens) for s in trace.path(trace.chosen)]
    assert "aa\n" in chosen and all(span.score in (None, 0.0, 0.5) for span in trace.spans)
    assert search(6, value=lambda _: math.nan, tree=LONG).answer in ("7", "12")


@pytest.mark.parametrize("at", range(7))
def test_a_lost_sampler_costs_its_particles(at):
    sampler = sampler_that_answers(fail={at: SamplerLost("gone")})
    budget = Budget(samples=6)
    trace = run(particles, sampler, budget, scorer=ScriptedScorer(judge), canonical=canonical, seed=1)
    assert_sound(trace, sampler, budget)
    assert "the sampler was lost: gone" in trace.lost and trace.evidence is None
    assert (trace.answer == NO_ANSWER) == (at == 0), "all particles stand on the root at first"


def test_a_lost_scorer_leaves_plain_sampling():
    """The weights stay what they were: what was known before is not undone."""
    first = search(16, 4, value=judge, tree=LONG)
    scorer = ScriptedScorer(judge, fail={k: SamplerLost("no scorer") for k in range(1, 20)})
    sampler, budget = sampler_of(LONG), Budget(samples=16)
    trace = run(particles, sampler, budget, scorer=scorer, canonical=canonical, seed=4, ess=0.0)
    assert_sound(trace, sampler, budget)
    assert "the scorer was lost: no scorer" in trace.lost and trace.evidence is None and first.evidence is not None

    async def go():
        scorer = ScriptedScorer(lambda t: 0.9 if t[0] == "b" else 0.1, fail={1: SamplerLost(""), 2: SamplerLost("")})
        tree = Tree("t", QUESTION, sampler_of(LONG), chat(), Budget(), seed=4, scorer=scorer)
        return await propagate(tree, 16, lambda s: log_potential(s, "probability"), 0.0)

    for p in asyncio.run(go()).particles:
        first_letter = thought(p.node.tokens)[0]
        expected = 0.9 if first_letter == "b" else 0.1
        assert p.node.done and math.exp(p.log_weight) == pytest.approx(expected)


def test_cancelling_leaves_nothing_running():
    async def go():
        sampler, scorer = sampler_of(LONG, yields=9), ScriptedScorer(judge)
        task = asyncio.create_task(
            particles(QUESTION, sampler, chat(), Budget(samples=4), scorer=scorer, canonical=canonical)
        )
        for _ in range(15):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sampler.running == 0 and scorer.running == 0 and sampler.calls[-1].cancelled
        return len(asyncio.all_tasks())

    assert asyncio.run(go()) == 1


def test_a_bug_propagates():
    with pytest.raises(RuntimeError, match="a bug"):
        run(
            particles,
            sampler_of(LONG, fail={2: RuntimeError("a bug")}),
            Budget(samples=6),
            scorer=ScriptedScorer(judge),
            canonical=canonical,
        )


def test_the_seed_decides_and_arrival_does_not():
    def shape(trace: Trace):
        return (trace.answer, trace.evidence, sorted((tuple(s.tokens), s.visits, s.pruned) for s in trace.spans))

    def searched(yields: int, seed: int):
        sampler = sampler_of(PATHS, yields=yields)
        if yields > 1:  # the later it was asked, the sooner it comes
            slow = sampler.sample

            async def reordered(prefix, params, n=1):
                for _ in range(params.seed % 11):
                    await asyncio.sleep(0)
                return await slow(prefix, params, n)

            sampler.sample = reordered
        trace = run(
            particles, sampler, Budget(samples=7), scorer=ScriptedScorer(scored), canonical=canonical, seed=seed
        )
        return shape(trace)

    random.seed(1)
    first = [searched(1, seed) for seed in range(6)]
    random.seed(2)
    assert first == [searched(5, seed) for seed in range(6)]
    assert len({shape[1] for shape in first}) > 3


def test_decoding_is_passed_on():
    sampler = sampler_of(PATHS)
    run(
        particles,
        sampler,
        Budget(samples=2),
        decoding=Decoding(0.7, 0.9, 5),
        scorer=ScriptedScorer(scored),
        canonical=canonical,
    )
    assert {(c.params.temperature, c.params.top_p, c.params.top_k) for c in sampler.calls} == {(0.7, 0.9, 5)}
