"""Particle filtering against trees whose every path, and so the exact target, can be written down."""

import asyncio
import math
import random
import statistics
import sys
from collections import Counter

import pytest

from mull.errors import SamplerLost, UserError
from mull.ledger import Budget
from mull.search.node import Node, Steps
from mull.search.particles import CLIP, Cloud, Particle, draw, log_potential, particles, propagate, systematic
from mull.search.sample import Decoding
from mull.search.tree import NO_ANSWER, Tree
from mull.types import Trace
from tests.search.tools import QUESTION, ScriptedScorer, assert_sound, canonical, chat, run, sampler_of, thought

# Paths of one to four steps; one dies while thinking; a good beginning that ends badly, and the other way round.
PATHS = {
    "": {"a\n": 0.5, "b\n": 0.3, "q</think>": 0.1, "stop": 0.1},
    "a\n": {"c\n": 0.6, "</think>": 0.4},
    "a\nc\n": {"d</think>": 0.7, "stop": 0.3},
    "b\n": {"e</think>": 0.5, "f</think>": 0.5},
    "q</think>": {"1": 0.5, "2": 0.5},
    "a\n</think>": {"1": 1.0},
    "a\nc\nd</think>": {"2": 0.8, "3": 0.2},
    "b\ne</think>": {"3": 1.0},
    "b\nf</think>": {"1": 0.25, "2": 0.75},
    **{cut + "</think>": {"1": 1.0} for cut in ("", "b\n", "a\nc\n")},  # where every particle died: thoughts cut short
}
SCORES = {
    "a\n": 0.9,
    "b\n": 0.2,
    "q</think>": 0.5,
    "a\nc\n": 0.8,
    "a\n</think>": 0.3,
    "a\nc\nd</think>": 0.95,
    "b\ne</think>": 0.9,
    "b\nf</think>": 0.1,
    "q</think>1<|end|>": 0.7,
    "q</think>2<|end|>": 0.2,
    "a\n</think>1<|end|>": 0.05,
    "a\nc\nd</think>2<|end|>": 0.3,
    "a\nc\nd</think>3<|end|>": 0.9,
    "b\ne</think>3<|end|>": 0.85,
    "b\nf</think>1<|end|>": 0.6,
    "b\nf</think>2<|end|>": 0.02,
}


def complete_paths(text: str = "", p: float = 1.0) -> list[tuple[str, float]]:
    """Every path that ends in an answer, with the policy's probability."""
    if text.endswith("<|end|>"):
        return [(text, p)]
    found = []
    for step, q in PATHS.get(text, {}).items():
        grown = text + step + ("<|end|>" if text.endswith("</think>") else "")
        found += complete_paths(grown, p * q)
    return found


def scored(text: str) -> float:
    return SCORES[text]


def exact(potential: str, temperature: float = 1.0) -> tuple[float, dict[str, float]]:
    """Z, and the target's distribution over answers."""
    mass: Counter[str] = Counter()
    for text, p in complete_paths():
        s = SCORES[text]
        phi = s if potential == "probability" else s / (1 - s)
        mass[text.removesuffix("<|end|>")[-1]] += p * phi ** (1 / temperature)
    total = math.fsum(mass.values())
    return total, {answer: m / total for answer, m in mass.items()}


def search(n: int, seed: int = 0, value=scored, tree=PATHS, **options) -> Trace:
    scorer = ScriptedScorer(value)
    return run(particles, sampler_of(tree), Budget(samples=n), scorer=scorer, canonical=canonical, seed=seed, **options)


def cloud_of(n: int, seed: int, ess: float = 0.5) -> Cloud:
    async def go():
        tree = Tree("t", QUESTION, sampler_of(PATHS), chat(), Budget(), seed=seed, scorer=ScriptedScorer(scored))
        return await propagate(tree, n, lambda s: log_potential(s, "probability"), ess)

    return asyncio.run(go())


def test_the_paths_of_the_example_are_what_the_tests_say():
    paths = complete_paths()
    assert {text.count("\n") for text, _ in paths} == {0, 1, 2} and {text for text, _ in paths} < set(SCORES)
    assert math.fsum(p for _, p in paths) == pytest.approx(1 - 0.1 - 0.5 * 0.6 * 0.3), "the rest dies"


# ---------------------------------------------------------------------------------------------- the estimate


@pytest.mark.parametrize("n", [1, 3, 4])
@pytest.mark.parametrize("ess", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("potential", "temperature"), [("probability", 1.0), ("odds", 2.0)])
def test_the_evidence_estimate_is_unbiased(n, ess, potential, temperature):
    z, _ = exact(potential, temperature)
    options = {"ess": ess, "potential": potential, "score_temperature": temperature}
    logs = [search(n, seed, **options).evidence for seed in range(250)]
    got = [math.exp(log) for log in logs if log is not None]
    assert len(got) == 250
    error = statistics.stdev(got) / math.sqrt(len(got))
    assert abs(statistics.fmean(got) - z) < 3 * error < 0.35 * z


def test_the_estimate_sharpens_with_the_number_of_particles():
    z, _ = exact("probability")
    spread = {n: statistics.stdev(math.exp(cloud_of(n, seed).log_evidence) for seed in range(40)) for n in (4, 64)}
    assert spread[64] < 0.4 * spread[4] and spread[64] < 0.2 * z, "a quarter is expected"


def test_weights_converge_to_the_target():
    _, target = exact("probability")
    distance = {}
    for n in (4, 32, 256):
        far = []
        for seed in range(256 // n + 5):
            got: Counter[str] = Counter()
            for node, mass in cloud_of(n, seed).masses().items():
                if node.done:
                    got[node.answer] += mass
            far.append(sum(abs(got[a] - target[a]) for a in target) / 2)
        distance[n] = statistics.fmean(far)
    assert distance[4] > 2 * distance[32] > 3 * distance[256] and distance[256] < 0.08, distance


def test_a_draw_is_a_sample_of_the_target():
    _, target = exact("probability")
    answers = Counter(search(32, seed, pick="draw").answer for seed in range(200))
    for answer, p in target.items():
        assert abs(answers[answer] / 200 - p) < 3.5 * math.sqrt(p * (1 - p) / 200), (answers, target)


# ------------------------------------------------------------------------------------------------ the weights

STRAIGHT = {"": {"x\n": 0.5, "y\n": 0.5}}
for _x in "xy":
    STRAIGHT |= {f"{_x}\n": {"z\n": 1.0}, f"{_x}\nz\n": {"</think>": 1.0}, f"{_x}\nz\n</think>": {"1": 0.5, "2": 0.5}}


@pytest.mark.parametrize("ess", [0.0, 0.5, 1.0])
def test_what_is_said_at_every_step_counts_once(ess):
    """A constant score of 0.5 is one factor of 0.5, however many steps repeat it."""
    trace = search(8, value=lambda _: 0.5, tree=STRAIGHT, ess=ess)
    assert trace.evidence == pytest.approx(math.log(0.5), abs=1e-12)
    assert not any(span.pruned for span in trace.spans), "equal weights are never resampled"
    even = search(8, value=lambda _: 0.5, tree=STRAIGHT, ess=ess, potential="odds")
    assert even.evidence == pytest.approx(0.0, abs=1e-12)
    cool = search(8, value=lambda _: 0.5, tree=STRAIGHT, ess=ess, score_temperature=0.25)
    assert cool.evidence == pytest.approx(4 * math.log(0.5), abs=1e-12)


def test_a_weight_is_the_last_score_whatever_was_thought_before():
    rising = {0: 0.001, 1: 0.2, 2: 0.9}

    def value(text):
        return 0.75 if text.endswith("<|end|>") else rising[text.count("\n") % 3]

    for ess in (0.0, 1.0):
        assert search(5, value=value, tree=STRAIGHT, ess=ess).evidence == pytest.approx(math.log(0.75), abs=1e-12)


def test_a_score_of_zero_can_be_redeemed():
    def value(text):
        return 0.8 if text.endswith("<|end|>") else 0.0

    assert search(3, value=value, tree=STRAIGHT).evidence == pytest.approx(math.log(0.8), abs=1e-9)
    never = search(3, value=lambda _: 0.0, tree=STRAIGHT)
    assert never.evidence == pytest.approx(math.log(CLIP)) and never.answer in "12" and not never.lost


def test_potentials():
    assert log_potential(0.25, "probability") == math.log(0.25) and log_potential(1.0, "probability") == 0.0
    assert log_potential(0.25, "odds") == pytest.approx(math.log(1 / 3))
    assert log_potential(1.0, "odds") == pytest.approx(-log_potential(0.0, "odds")) == pytest.approx(16.118, abs=1e-3)


def test_when_the_population_is_drawn_anew():
    """Two kinds of weights, w and 1, half and half: ESS is N (1 + w)^2 / (2 (1 + w^2)), by hand 0.9 N for w = 0.5 and
    0.6 N (nearly) for w = 0.1."""
    even = Cloud([Particle(Node(0, ()), log_weight=math.log(w)) for w in (0.5, 1.0, 0.5, 1.0)])
    assert even.effective == pytest.approx(4 * 0.9)
    uneven = Cloud([Particle(Node(0, ()), log_weight=math.log(w)) for w in (0.1, 1.0, 0.1, 1.0)])
    assert uneven.effective == pytest.approx(4 * 1.21 / 2.02)
    lone = Cloud([Particle(Node(0, ()), log_weight=w) for w in (-math.inf, -700.0, -math.inf)])
    assert lone.effective == 1.0 and lone.log_evidence == pytest.approx(-700 - math.log(3))

    seed = next(s for s in range(50) if _heads(s) == 4)

    def drawn(w: float, ess: float) -> bool:
        trace = search(8, seed, value=lambda text: w if text.startswith("x") else 1.0, tree=STRAIGHT, ess=ess)
        return any(span.pruned for span in trace.spans)

    assert not drawn(0.5, 0.89) and drawn(0.5, 0.91), "0.9 N by hand"
    assert not drawn(0.1, 0.59) and drawn(0.1, 0.61), "0.599 N by hand"
    assert not drawn(0.1, 0.0)


def _heads(seed: int) -> int:
    """How many of eight first steps are x."""
    trace = search(8, seed, value=lambda _: 1.0, tree=STRAIGHT)
    return sum(span.parent == 0 and chat().decode(span.tokens) == "x\n" for span in trace.spans)


def test_a_resampled_particle_goes_on_as_another_child():
    """Of two beginnings one is hopeless; all particles go on from the other, each with its own seed."""
    seed = next(s for s in range(50) if _heads(s) == 2)
    tree = {**STRAIGHT, "y\n": {f"z{i}\n": 1.0 for i in range(9)}}
    tree |= {f"y\nz{i}\n": {"</think>": 1.0} for i in range(9)} | {f"y\nz{i}\n</think>": {"3": 1.0} for i in range(9)}
    trace = search(8, seed, value=lambda text: 1e-6 if text.startswith("x") else 1.0, tree=tree, ess=0.9)
    firsts = [i for i, span in enumerate(trace.spans) if span.parent == 0]
    dropped = [i for i in firsts if trace.spans[i].pruned]
    assert len(firsts) == 8 and [chat().decode(trace.spans[i].tokens) for i in dropped] == ["x\n"] * 2
    assert not any(span.parent in dropped for span in trace.spans)
    seconds = [chat().decode(span.tokens) for span in trace.spans if span.parent in firsts]
    assert len(seconds) == 8 and len(set(seconds)) > 3, seconds
    assert {trace.spans[i].visits for i in firsts} == {0, 1, 2} and trace.spans[0].visits == 8
    assert sum(trace.spans[leaf].visits for leaf in trace.leaves) == 8 and trace.answer == "3"


def test_finished_particles_wait_with_their_weight_and_multiply():
    """A short path of weight 1 against long ones of weight 0.1: copies of the finished one take the others' places."""
    tree = {"": {"x\n": 0.5, "s</think>": 0.5}, "s</think>": {"7": 1.0}, "x\n": {"x\n": 1.0}}
    tree |= {"x\n" * i: {"x\n": 1.0} for i in range(2, 9)} | {"x\n" * 9: {"</think>": 1.0}}
    tree |= {"x\n" * 9 + "</think>": {"8": 1.0}}

    def value(text):
        return 0.9 if text.startswith("s") else 0.9 if text.count("x") < 5 else 0.01

    sampler = sampler_of(tree)
    n = 16
    scorer = ScriptedScorer(value)
    trace = run(particles, sampler, Budget(samples=n), scorer=scorer, canonical=canonical, seed=1, ess=0.9)
    seven = [leaf for leaf, answer in zip(trace.leaves, trace.answers, strict=True) if answer == "7"]
    assert trace.answer == "7" and trace.spans[trace.chosen].visits > 1, "a leaf that several particles stand on"
    assert sum(trace.spans[leaf].visits for leaf in seven) >= n - 2 > len(seven)


# -------------------------------------------------------------------------------------------------- resampling


def test_systematic_resampling_rounds_up_or_down_and_is_unbiased():
    rng = random.Random(5)
    for n in (1, 2, 5, 8, 33):
        weights = [rng.random() ** 3 * rng.choice([0, 1, 1, 10]) for _ in range(n)]
        weights[rng.randrange(n)] = 0.7
        total, counts = math.fsum(weights), []
        for u in [(k + 0.5) / 1000 for k in range(1000)]:
            counts.append(systematic(weights, n, u))
            assert sum(counts[-1]) == n
            for count, w in zip(counts[-1], weights, strict=True):
                assert math.floor(n * w / total) <= count <= math.ceil(n * w / total)
        for i, w in enumerate(weights):  # the mean over a grid of u is exact to a grid step
            assert statistics.fmean(c[i] for c in counts) == pytest.approx(n * w / total, abs=2e-3)


def test_systematic_resampling_at_its_edges():
    for n in (3, 7, 10, 49):  # n times 1/n is not exactly 1 in floating point
        for u in (0.0, 0.5, 1 - 2**-53):
            assert systematic([1.0] * n, n, u) == [1] * n
            assert systematic([0.1] * n, n, 0.5) == [1] * n
    assert systematic([0.0, 3.0, 0.0], 4, 1 - 2**-53) == [0, 4, 0] == systematic([0.0, 3.0, 0.0], 4, 0.0)
    assert systematic([0.5, 0.25, 0.25], 4, 0.3) == [2, 1, 1]


def test_resampling_has_its_own_randomness(monkeypatch):
    """A fixed place of the grid would bias what small populations keep; a global generator would make runs differ."""
    module, seen = sys.modules["mull.search.particles"], []
    monkeypatch.setattr(module, "systematic", lambda w, n, u: seen.append(u) or systematic(w, n, u))
    runs = []
    for _ in range(2):
        for seed in range(40):
            search(4, seed, ess=1.0)
        runs.append(seen.copy())
        seen.clear()
        random.seed(0)
    assert runs[0] == runs[1] and len(set(runs[0])) == len(runs[0]) > 60
    assert 0 <= min(runs[0]) < 0.1 < 0.9 < max(runs[0]) < 1 and 0.4 < statistics.fmean(runs[0]) < 0.6


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
