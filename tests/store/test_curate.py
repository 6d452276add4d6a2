"""Every chain is kept or has a reason, and each option changes which."""

import random
from collections import Counter
from typing import Any

import pytest

from mull.errors import UserError
from mull.store import Store
from mull.store.curate import REASONS, curate
from tests.store.made import chain

LONG = "a=1\nb=a+2=3\nc=b*4=12\nd=c-5=7\ne=d+6=13\nf=e*2=26\ng=f-9=17\nh=g+8=25\ni=h-5=20\nj=i+2=22"
NEAR = LONG.replace("j=i+2=22", "j=i+2=23")  # 67 words with the answer: 2 of 63 shingles differ, 61 / 65
OTHER = "d is seven, so e makes thirteen, and the rest follows"


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store") as store:
        yield store


def kept(store: Store, **options) -> list[str]:
    out = curate(store, store.chains(), **options)
    assert len(out.kept) + len(out.why) == len(store.chains())
    assert set(out.why.values()) <= set(REASONS)
    assert out.counts == {"kept": len(out.kept)} | {r: n for r in REASONS if (n := list(out.why.values()).count(r))}
    return [worked.thought for worked in store.worked(out.kept)]


def test_every_chain_is_kept_or_has_its_reason(store):
    again = chain("a", "again")
    again.trace.spans.insert(1, again.trace.spans[0].__class__(again.trace.spans[0].kind, (2,)))
    again.trace.spans[2].parent, again.trace.leaves, again.trace.chosen = 1, [2], 2
    store.add(
        [
            *(chain("a", LONG), chain("a", f" {LONG}\n\n"), chain("a", NEAR), chain("a", OTHER, steps=False)),
            *(chain("a", "wrong", correct=False), chain("a", "who knows", correct=None), again),
            *(
                chain("b", LONG),
                chain("c", LONG, split="test"),
                chain("d", LONG, split="valid"),
                chain("e", LONG, split=""),
            ),
        ]
    )
    out = curate(store, store.chains(), no_false_step=True, contaminated={"b": "equal to …", "x": "…"})
    assert out.counts == {
        "kept": 2,
        "not judged": 1,
        "wrong answer": 1,
        "a false step": 1,
        "a later turn": 1,
        "drawn for a held-out split": 2,
        "contaminated": 1,
        "equal chain": 1,
        "near duplicate": 1,
    }
    assert out.contaminated == {"b": "equal to …"}
    assert [row.question for row in out.kept] == ["a", "e"]
    assert len(store.chains()) == 11  # nothing was deleted


def test_options_change_what_is_kept(store):
    store.add([chain("a", LONG), chain("a", NEAR), chain("a", OTHER, steps=False), chain("b", LONG, split="test")])
    a, b = kept(store)
    assert a == OTHER and b in (LONG, NEAR)
    assert sorted(kept(store, near=None)) == sorted([LONG, NEAR, OTHER])
    assert sorted(kept(store, near=0.94)) == sorted([LONG, NEAR, OTHER])  # 61 / 65 is below
    assert len(kept(store, near=0.938)) == 2
    assert OTHER not in kept(store, no_false_step=True)
    assert len(kept(store, each=1)) == 1
    assert len(kept(store, splits=())) == 3


def test_shortest_first_and_the_shortest_of_near_duplicates(store):
    longer = LONG + "\nk=j+0=22"
    store.add([chain("a", longer), chain("a", LONG), chain("a", OTHER), chain("b", "x y"), chain("b", "x")])
    assert kept(store) == [OTHER, LONG, "x", "x y"]
    assert kept(store, each=1) == [OTHER, "x"]


def test_diverse_by_hand(store):
    """The shortest one first; then what shares least with it; then what is least like the nearest of both."""
    texts = {
        "short": "a b c d e f",
        "like": "a b c d e f g",  # shares 2 of 3 shingles with the short one
        "apart": "p q r s t u v w",
        "between": "a b c d e q r s t u v",  # shares one with the short one, two with the one apart
    }
    store.add([chain("q", text) for text in texts.values()])
    assert kept(store, order="diverse", each=2, near=None) == [texts["short"], texts["apart"]]
    assert kept(store, order="diverse", each=3, near=None) == [texts["short"], texts["apart"], texts["between"]]
    assert kept(store, order="shortest", each=2, near=None) == [texts["short"], texts["like"]]


def test_random_is_by_seed_and_question_alone(store, tmp_path):
    records = [chain("a", f"{i} " * 9) for i in range(20)]
    store.add(records)
    drawn = {seed: kept(store, order="random", each=3, seed=seed) for seed in range(6)}
    assert len({tuple(d) for d in drawn.values()}) > 3
    with Store.open(tmp_path / "other") as other:  # added in another order, one by one, beside other questions
        shuffled = [*records, *(chain("b", f"{i}") for i in range(9))]
        random.Random(0).shuffle(shuffled)
        for record in shuffled:
            other.add([record])
        for seed, before in drawn.items():
            rows = curate(other, other.chains(), order="random", each=3, seed=seed).kept
            assert [w.thought for w in other.worked(rows) if w.row.question == "a"] == before
    counted = Counter(t for seed in range(150) for t in kept(store, order="random", each=3, seed=seed, near=None))
    assert len(counted) == 20 and min(counted.values()) > 7  # chance gives 22 each


def test_near_duplicates_are_of_one_question(store):
    store.add([chain("a", LONG), chain("b", LONG)])
    assert kept(store) == [LONG, LONG]


def test_what_makes_no_sense_is_refused(store):
    bad: list[dict[str, Any]] = [{"order": "longest"}, {"each": 0}, {"near": 0.0}, {"near": 1.5}]
    for options in bad:
        with pytest.raises(UserError):
            curate(store, [], **options)
