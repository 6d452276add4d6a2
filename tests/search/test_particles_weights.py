"""The weights of particles: the evidence estimate, the target, potentials, and systematic resampling, all exact."""

import math
import random
import statistics
import sys
from collections import Counter

import pytest

from mull.ledger import Budget
from mull.search.node import Node
from mull.search.particles import CLIP, Cloud, Particle, log_potential, particles, systematic
from tests.search.clouds import SCORES, cloud_of, complete_paths, exact, search
from tests.search.tools import ScriptedScorer, canonical, chat, run, sampler_of


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
