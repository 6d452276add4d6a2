"""Adaptive self-consistency: when it stops, what it saves, and how often it says what the full vote would have said."""

import asyncio
import math
import random
from fractions import Fraction

import pytest

from mull.errors import SamplerLost, UserError
from mull.ledger import Budget
from mull.search.adaptive import adaptive_vote, lead, relative_votes, top_two
from mull.search.node import Steps
from mull.search.sample import Decoding
from mull.search.tree import NO_ANSWER
from mull.types import Trace
from tests.search.tools import QUESTION, ScriptedScorer, assert_sound, canonical, chat, run, sampler_of, thought


def question_of(p: dict[str, float]):
    """A tree of thought whose answers have the probabilities `p`."""
    return {"": {"so\n": 1.0}, "so\n": {"</think>": 1.0}, "so\n</think>": p}


def ask(p: dict[str, float], n: int, seed: int = 0, **options) -> Trace:
    return run(adaptive_vote, sampler_of(question_of(p)), Budget(samples=n), canonical=canonical, seed=seed, **options)


# -------------------------------------------------------------------------------------------------- the rule


def test_the_lead_by_hand():
    assert [lead(a, 0) for a in range(5)] == [0.5, 0.75, 0.875, 0.9375, 0.96875]
    assert lead(1, 1) == lead(7, 7) == 0.5
    assert lead(2, 1) == 11 / 16 and lead(5, 1) == (2**7 - 1 - 7) / 2**7
    assert [next(a for a in range(99) if lead(a, b) >= 0.95) for b in range(5)] == [4, 6, 8, 9, 11]


def test_the_lead_is_the_posterior_of_whole_counts_exactly():
    """Against the integral of x^a (1-x)^b as a polynomial, in exact fractions."""

    def integral(a, b, low):
        terms = [Fraction((-1) ** k * math.comb(b, k)) * (1 - low ** (a + k + 1)) / (a + k + 1) for k in range(b + 1)]
        return sum(terms, Fraction(0))

    for a in range(12):
        for b in range(a + 1):
            assert lead(a, b) == float(integral(a, b, Fraction(1, 2)) / integral(a, b, Fraction(0)))


def test_the_lead_of_fractional_votes_is_the_integral():
    """Simpson's rule on the density."""

    def numeric(a, b, steps=4000):
        def area(low, high):
            h = (high - low) / steps
            f = [((low + i * h) ** a) * ((1 - low - i * h) ** b) for i in range(steps + 1)]
            return h / 3 * (f[0] + f[-1] + 4 * math.fsum(f[1:-1:2]) + 2 * math.fsum(f[2:-1:2]))

        upper = area(0.5, 1.0)
        return upper / (upper + area(0.0, 0.5))

    for a, b in [(1.5, 0.5), (2.5, 1.25), (3.7, 0.0), (4.2, 4.1), (9.5, 3.3), (40.5, 30.25), (1.01, 1.0)]:
        assert lead(a, b) == pytest.approx(numeric(a, b), abs=2e-6), (a, b)
    for a, b in [(3, 0), (4, 4), (20, 11), (300, 260), (2000, 1900)]:  # both ways of computing meet
        assert lead(a + 1e-9, b) == pytest.approx(lead(a, b), abs=1e-7)
    assert lead(0.3, 0.3) == pytest.approx(0.5, abs=1e-15) and 0.5 < lead(0.4, 0.3) < lead(0.5, 0.3) < lead(0.5, 0.2)


def test_votes_are_relative_to_the_best_score():
    forms = ["1", "2", None, "1"]
    assert relative_votes(forms, [0.2, 0.1, 0.9, 0.05]) == [1.0, 0.5, 0.0, 0.25], "nonsense sets no standard"
    assert top_two(forms, [1.0, 0.5, 0.0, 0.25]) == (1.25, 0.5)
    assert relative_votes(forms, [0.0, 0.0, 0.9, 0.0]) == [1.0, 1.0, 0.0, 1.0]
    assert relative_votes([], []) == [] and top_two([], []) == top_two([None], [0.0]) == (0.0, 0.0)


def test_what_weighing_guarantees():
    rng = random.Random(3)
    for _ in range(300):
        n = rng.randrange(1, 20)
        forms = [rng.choice(["1", "2", "3", None]) for _ in range(n)]
        scores = [rng.random() for _ in range(n)]
        a, b = top_two(forms, relative_votes(forms, scores))
        counts = sorted((forms.count(x) for x in ("1", "2", "3")), reverse=True)
        assert a + b <= counts[0] + counts[1], "never more observations than chains"
        assert lead(a, b) <= lead(counts[0] + counts[1], 0) + 1e-12, "no clearer than if these had all agreed"
        scaled = relative_votes(forms, [s / 8 for s in scores])
        assert scaled == pytest.approx(relative_votes(forms, scores)), "the scorer's scale does not matter"
        same = relative_votes(forms, [0.3] * n)
        assert top_two(forms, same) == tuple(counts[:2]), "equal scores are plain counts"


def simulate(p: float, most: int, rng: random.Random, scores=None, threshold: float = 0.95) -> tuple[str, str, int]:
    """(early answer, full vote's, chains used) of a question with two answers, "1" with probability p."""
    forms = ["1" if rng.random() < p else "2" for _ in range(most)]
    values = [scores(form, rng) for form in forms] if scores else [1.0] * most

    def leader(n):
        sums = {x: math.fsum(v for f, v in zip(forms[:n], values[:n], strict=True) if f == x) for x in forms[:n]}
        return max(sums, key=lambda x: sums[x])

    used = next(
        (n for n in range(1, most) if lead(*top_two(forms[:n], relative_votes(forms[:n], values[:n]))) >= threshold),
        most,
    )
    return leader(used), leader(most), used


def noise(form: str, rng: random.Random) -> float:
    return rng.random()


def leaning(form: str, rng: random.Random) -> float:
    """Prefers answer 1 a little, whatever the policy thinks."""
    return rng.betavariate(2, 2) * (1.0 if form == "1" else 0.8)


@pytest.mark.parametrize("threshold", [0.8, 0.95])
@pytest.mark.parametrize("scores", [None, noise, leaning])
def test_an_early_answer_is_right_about_the_policy_as_often_as_promised(scores, threshold):
    """Over questions with p uniform, as the prior has it, although it looks after every chain: it is what the full
    vote says, and (where scores do not prefer another) the policy's likelier answer."""
    rng = random.Random(11)
    early = agreed = right = 0
    for _ in range(1500):
        p = rng.random()
        said, full, used = simulate(p, 24, rng, scores, threshold)
        if used < 24:
            early += 1
            right += (said == "1") == (p > 0.5)
            agreed += said == full
    assert early > 700
    least = threshold - 2 * math.sqrt(threshold * (1 - threshold) / early)
    assert agreed / early >= least
    assert scores is leaning or right / early >= least


# ------------------------------------------------------------------------------------------------ the strategy


@pytest.mark.parametrize(("batch", "used"), [(1, 4), (2, 4), (3, 6), (4, 4), (5, 5), (40, 20)])
def test_where_it_stops_when_all_agree(batch, used):
    trace = ask({"4": 1.0}, 20, batch=batch)
    assert trace.answers == ["4"] * used and trace.answer == "4" and not trace.exhausted
    assert trace.strategy == "adaptive"


def test_where_it_stops_by_hand():
    """Against the rule on the answers as they came."""
    stops = set()
    for seed in range(12):
        trace = ask({"4": 0.7, "5": 0.3}, 30, seed, batch=1)
        votes = [sorted((trace.answers[:n].count(x) for x in "45"), reverse=True) for n in range(1, 31)]
        stop = next((n for n, (a, b) in enumerate(votes, 1) if lead(a, b) >= 0.95), 30)
        assert len(trace.answers) == stop
        stops.add(stop)
    assert len(stops) > 4
    assert [len(ask({"4": 1.0}, 20, batch=1, threshold=t).answers) for t in (0.7, 0.9, 0.99, 1.0)] == [1, 3, 6, 20]


def test_easy_questions_are_cheap_and_hard_ones_are_not():
    easy = [len(ask({"4": 0.95, "5": 0.05}, 24, seed).leaves) for seed in range(20)]
    hard = [len(ask({"4": 0.36, "5": 0.34, "6": 0.3}, 24, seed).leaves) for seed in range(20)]
    assert sum(easy) / 20 < 6 and sum(hard) / 20 > 15
    assert max(hard) == 24


def test_it_says_what_the_full_vote_says():
    """Early or not, of the same chains."""
    agreed, questions = 0, 40
    for i in range(questions):
        p = (i + 0.5) / questions
        short, full = (ask({"4": p, "5": 1 - p}, 16, seed=i, threshold=t) for t in (0.95, 1.0))
        assert full.answers[: len(short.answers)] == short.answers and len(full.answers) == 16
        agreed += short.answer == full.answer
    assert agreed >= 0.95 * questions


def test_the_unreadable_have_no_vote():
    trace = ask({"well": 0.8, "4": 0.2}, 40, seed=1)
    readable = [a for a in trace.answers if a == "4"]
    assert trace.answer == "4" and len(readable) >= 4 > len([a for a in trace.answers[:-4] if a == "4"])
    assert len(ask({"well": 1.0}, 12).answers) == 12 and ask({"well": 1.0}, 12).answer == "well"


def test_scores_decide_who_leads_and_equal_ones_change_nothing():
    p = {"4": 0.6, "5": 0.4}
    for seed in range(6):
        plain = ask(p, 24, seed)
        for constant in (0.2, 1.0, 0.0, math.nan):
            scorer = ScriptedScorer(lambda text, constant=constant: constant)
            same = ask(p, 24, seed, scored=True, scorer=scorer)
            assert (same.answer, same.answers) == (plain.answer, plain.answers)
            assert same.strategy == "adaptive_weighted" and same.cost.scorer_tokens > 0
    sure = ScriptedScorer(lambda text: 0.9 if "5" in text else 0.02)
    weighed = ask(p, 24, 3, scored=True, scorer=sure)
    assert weighed.answer == "5" and weighed.answers.count("5") < weighed.answers.count("4") + 12
    quiet = ScriptedScorer(lambda text: 1.0)
    assert ask(p, 24, 3, scorer=quiet).answers == ask(p, 24, 3).answers and quiet.calls == []


def test_a_weak_scorer_cannot_stop_it_before_four_chains_agree():
    scorer = ScriptedScorer(lambda text: 1.0)
    assert [len(ask({"4": 1.0}, 20, batch=1, scored=True, scorer=scorer).leaves)] == [4]
    swings = ScriptedScorer(lambda text: 1.0 if len(swings.calls) == 1 else 0.5)
    assert len(ask({"4": 1.0}, 20, batch=1, scored=True, scorer=swings).leaves) > 4, "an outstanding chain prolongs it"


def test_what_is_no_setting_is_refused():
    for bad, said in (
        ({"threshold": 0.5}, "threshold=0.5 is no confidence"),
        ({"threshold": math.nan}, "no confidence"),
        ({"batch": 0}, "batch=0 would never sample"),
        ({"scored": True}, "give a scorer"),
    ):
        with pytest.raises(UserError, match=said):
            ask({"4": 1.0}, 4, **bad)


# ------------------------------------------------------------------------------- budgets, losses, cancelling


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_budget_holds_to_the_token(scored, batch):
    whole = len("so\n") + 1 + len("12") + 1
    for tokens in (*range(12), 15, 20, 27, 34, 41, 70):
        sampler = sampler_of({})
        sampler._follows = lambda tokens: (
            {"12": 0.6, "7": 0.4}
            if thought(tokens).endswith("</think>")
            else {"</think>": 1}
            if thought(tokens)
            else {"so\n": 1}
        )
        budget = Budget(tokens=tokens, answer_tokens=3, samples=6)
        trace = run(
            adaptive_vote,
            sampler,
            budget,
            canonical=canonical,
            batch=batch,
            scored=scored,
            scorer=ScriptedScorer(lambda text: 0.5),
            steps=Steps(max_tokens=6),
        )
        assert_sound(trace, sampler, budget)
        assert trace.answer != NO_ANSWER or tokens < 2
        assert trace.exhausted or len(trace.leaves) >= 4
        assert trace.exhausted if tokens < 3 * whole else True


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("at", range(6))
def test_a_lost_sampler_leaves_what_was_voted(at, scored):
    sampler = sampler_of(question_of({"4": 0.5, "5": 0.5}), fail={at: SamplerLost("gone")})
    budget = Budget(samples=12)
    scorer = ScriptedScorer(lambda text: 0.5)
    trace = run(adaptive_vote, sampler, budget, canonical=canonical, scored=scored, scorer=scorer, batch=2)
    assert_sound(trace, sampler, budget)
    assert trace.lost == ["the sampler was lost: gone"]
    assert trace.answer == NO_ANSWER if at == 0 else trace.answer in "45"
    assert at < 2 or len(trace.leaves) >= 2, "what was sampled before stays"


def test_a_lost_scorer_makes_all_votes_equal():
    p = {"4": 0.7, "5": 0.3}
    for at in (0, 1, 2):
        scorer = ScriptedScorer(lambda text: 0.9 if "5" in text else 0.1, fail={at: SamplerLost("gone")})
        trace = ask(p, 24, 5, scored=True, scorer=scorer, threshold=1.0)
        plain = ask(p, 24, 5, threshold=1.0)
        assert trace.answers == plain.answers and trace.answer == plain.answer == "4"
        assert trace.lost == ["the scorer was lost: gone"] and len(scorer.calls) == at + 1, "it is not asked again"


def test_cancelling_leaves_nothing_running():
    async def go():
        sampler = sampler_of(question_of({"4": 1.0}), yields=9)
        task = asyncio.create_task(
            adaptive_vote(QUESTION, sampler, chat(), Budget(samples=8), canonical=canonical, threshold=1.0)
        )
        for _ in range(25):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sampler.running == 0 and sampler.calls[-1].cancelled
        return len(asyncio.all_tasks())

    assert asyncio.run(go()) == 1


def test_a_bug_propagates():
    with pytest.raises(RuntimeError, match="a bug"):
        sampler = sampler_of(question_of({"4": 1.0}), fail={1: RuntimeError("a bug")})
        run(adaptive_vote, sampler, Budget(samples=4), canonical=canonical)


def test_the_seed_decides_and_arrival_does_not():
    def asked(yields: int, seed: int):
        sampler = sampler_of(question_of({"4": 0.5, "5": 0.5}), yields=yields)
        if yields > 1:
            plain = sampler.sample

            async def reordered(prefix, params, n=1):
                for _ in range(params.seed % 11):
                    await asyncio.sleep(0)
                return await plain(prefix, params, n)

            sampler.sample = reordered
        return run(adaptive_vote, sampler, Budget(samples=16), canonical=canonical, seed=seed).answers

    first = [asked(1, seed) for seed in range(6)]
    assert first == [asked(4, seed) for seed in range(6)] and len({tuple(answers) for answers in first}) > 3


def test_decoding_is_passed_on():
    sampler = sampler_of(question_of({"4": 1.0}))
    run(adaptive_vote, sampler, Budget(samples=4), decoding=Decoding(0.7, 0.9, 5), canonical=canonical)
    assert {(c.params.temperature, c.params.top_p, c.params.top_k) for c in sampler.calls} == {(0.7, 0.9, 5)}
