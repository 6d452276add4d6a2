"""What is asked next, in cases worked by hand."""

import math
import random
from collections import Counter

import pytest

from mull.errors import UserError
from mull.store import Count
from mull.store.curriculum import Curriculum, choose, weighted


def test_worth_by_hand():
    """With target 1/2 and sharpness 2 it is 4 E[p (1 - p)] = 4 ab / ((a + b)(a + b + 1)) for Beta(a, b)."""
    plan = Curriculum()
    for count, a, b in ((Count(0, 0), 1, 1), (Count(4, 8), 5, 5), (Count(8, 8), 9, 1), (Count(0, 3), 1, 4)):
        assert plan.worth(count) == pytest.approx(4 * a * b / ((a + b) * (a + b + 1)))
    assert plan.worth(Count(0, 0)) == pytest.approx(2 / 3)
    assert plan.worth(Count(500, 1000)) == pytest.approx(1, abs=0.01)
    assert plan.worth(Count(7, 7)) == pytest.approx(plan.worth(Count(0, 7)))
    # E[p^3 (1 - p)] under Beta(1, 1) is 1/20; at p = 3/4 it is 27/256
    assert Curriculum(target=0.75, sharpness=4).worth(Count(0, 0)) == pytest.approx((1 / 20) / (27 / 256))
    assert Curriculum(sharpness=0).worth(Count(1, 9)) == pytest.approx(1)


def test_worth_is_highest_at_the_target():
    for target in (0.25, 0.5, 0.8):
        plan = Curriculum(target=target, sharpness=4)
        best = max(range(1001), key=lambda right: plan.worth(Count(right, 1000)))
        assert abs(best / 1000 - target) < 0.005
    narrow, wide = Curriculum(sharpness=20), Curriculum(sharpness=2)
    assert narrow.worth(Count(20, 100)) < 0.5 * wide.worth(Count(20, 100))


def test_standing():
    plan = Curriculum()
    cases = {
        "open": [Count(0, 0), Count(7, 7), Count(0, 7), Count(7, 8), Count(1, 100), Count(89, 100)],
        "solved": [Count(8, 8), Count(90, 100)],
        "never": [Count(0, 8)],
    }
    assert all(plan.standing(count) == standing for standing, counts in cases.items() for count in counts)
    assert Curriculum(evidence=9).standing(Count(8, 8)) == "open"
    assert Curriculum(solved=0.8).standing(Count(7, 8)) == "solved"


COUNTS = (
    {f"half{i}": Count(4, 8) for i in range(100)}
    | {f"solved{i}": Count(8, 8) for i in range(100)}
    | {f"never{i}": Count(0, 8) for i in range(100)}
)


def kinds(asked: list[str]) -> Counter[str]:
    return Counter(q.rstrip("0123456789") for q in asked)


def test_shares():
    asked = choose(COUNTS, 40, random.Random(0))
    assert kinds(asked) == {"half": 34, "solved": 2, "never": 4} and len(set(asked)) == 40
    none = Curriculum(solved_share=0, never_share=0)
    assert kinds(choose(COUNTS, 40, random.Random(0), none)) == {"half": 40}
    assert kinds(choose(COUNTS, 40, random.Random(0), Curriculum(solved_share=0.5, never_share=0.5))) == {
        "solved": 20,
        "never": 20,
    }
    # Too few are open: solved ones do not fill the gap.
    few = {q: c for q, c in COUNTS.items() if not q.startswith("half") or q in ("half1", "half2")}
    assert kinds(choose(few, 40, random.Random(0))) == {"half": 2, "solved": 2, "never": 4}
    assert choose({}, 5, random.Random(0)) == []


def test_shares_hold_on_average_for_small_numbers():
    total: Counter[str] = Counter()
    for seed in range(1500):
        total += kinds(choose(COUNTS, 2, random.Random(seed)))
    assert sum(total.values()) == 3000
    assert abs(total["solved"] / 3000 - 0.05) < 0.015 and abs(total["never"] / 3000 - 0.1) < 0.02


def test_the_seed_decides_and_the_order_of_the_counts_does_not():
    turned = dict(reversed(COUNTS.items()))
    assert choose(COUNTS, 30, random.Random(3)) == choose(turned, 30, random.Random(3))
    assert choose(COUNTS, 30, random.Random(3)) != choose(COUNTS, 30, random.Random(4))


def test_worthier_questions_are_asked_more_often():
    counts = {"half": Count(4, 8), "hard": Count(1, 16)}
    plan, n = Curriculum(), 20_000
    asked = Counter(choose(counts, 1, random.Random(i), plan)[0] for i in range(n))
    share = plan.worth(counts["half"]) / (plan.worth(counts["half"]) + plan.worth(counts["hard"]))
    assert abs(asked["half"] / sum(asked.values()) - share) < 4 * math.sqrt(share * (1 - share) / n)


def test_weighted_draws_without_replacement_as_by_hand():
    """Weights 1, 2, 3: the pair {b, c} comes with 3/6 2/3 + 2/6 3/4 = 7/12."""
    n, rng = 20_000, random.Random(0)
    pairs = Counter(frozenset(weighted("abc", [1, 2, 3], 2, rng)) for _ in range(n))
    assert abs(pairs[frozenset("bc")] / n - 7 / 12) < 4 * math.sqrt(7 / 12 * 5 / 12 / n)
    assert sorted(weighted("abc", [1, 2, 3], 9, rng)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "bad", [{"target": 0}, {"target": 1}, {"evidence": 0}, {"solved_share": 0.7, "never_share": 0.4}]
)
def test_a_plan_that_makes_no_sense_is_refused(bad):
    with pytest.raises(UserError):
        Curriculum(**bad)
