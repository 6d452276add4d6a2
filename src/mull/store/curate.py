"""Which chains to learn from, and for every other one why not.

Nothing is deleted: dropping is a decision of each curation, made over the rows of the catalogue, with the reason kept.
A chain is asked in the order of `REASONS`, and the first one that holds is its reason.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mull.errors import UserError
from mull.store.catalogue import ChainRow
from mull.store.near import NearIndex, jaccard, shingles
from mull.store.store import Store

Order = Literal["shortest", "random", "diverse"]
ORDERS: tuple[Order, ...] = ("shortest", "random", "diverse")
REASONS = (
    "not judged",
    "wrong answer",
    "a false step",
    "a later turn",
    "drawn for a held-out split",
    "contaminated",
    "equal chain",
    "near duplicate",
    "more than asked for",
)


@dataclass
class Curated:
    """What was kept, by question id and then by preference; `why` has a reason for every other chain."""

    kept: list[ChainRow] = field(default_factory=list)
    why: dict[tuple[str, int], str] = field(default_factory=dict)  # (trace, leaf): one of REASONS
    contaminated: dict[str, str] = field(default_factory=dict)  # the questions that were, and how

    @property
    def counts(self) -> dict[str, int]:
        """Chains by reason, those that were kept under "kept"."""
        n = Counter(self.why.values())
        return {"kept": len(self.kept)} | {reason: n[reason] for reason in REASONS if n[reason]}


def curate(
    store: Store,
    rows: Iterable[ChainRow],
    each: int = 4,
    order: Order = "shortest",
    near: float | None = 0.8,
    no_false_step: bool = False,
    contaminated: Mapping[str, str] | None = None,
    splits: Sequence[str] = ("test", "valid"),
    seed: int = 0,
) -> Curated:
    """At most `each` right chains of every question, no two of them equal or near duplicates.

    `order`: what is preferred, and which one of several near duplicates stays. "shortest": fewest sampled tokens, as
    long-to-short distillation takes them. "random": by `seed` and the question, whatever other questions there are.
    "diverse": the shortest one, then always the one that is least like the nearest of those taken.
    `near`: the Jaccard similarity of shingles (`near.shingles`) from which a chain is a near duplicate; None: keep all
    but equal ones. `no_false_step`: leave out right answers by wrong reasoning, where steps were judged.
    `contaminated`: {question id: how}, see `decontaminate.contaminated`; `splits`: never learn from chains whose
    question was drawn for one of these.

    The result depends on the chains, `seed` and nothing else: not on when or by whom they were added.
    """
    if order not in ORDERS:
        raise UserError(f"chains cannot be ordered by {order!r}: write one of {', '.join(ORDERS)}")
    if each < 1 or (near is not None and not 0 < near <= 1):
        raise UserError(f"each={each} and near={near}: give each at least 1, and near a similarity above 0 up to 1")
    out = Curated()
    left: dict[str, list[ChainRow]] = {}
    held = contaminated or {}
    for row in rows:
        reason = _unfit(row, no_false_step, held, splits)
        if reason is None:
            left.setdefault(row.question, []).append(row)
        else:
            out.why[row.trace, row.leaf] = reason
            if reason == "contaminated":
                out.contaminated[row.question] = held[row.question]
    for question in sorted(left):
        _choose(store, left[question], out, each, order, near, random.Random(f"{seed}/{question}"))
    return out


def _unfit(row: ChainRow, no_false_step: bool, held: Mapping[str, str], splits: Sequence[str]) -> str | None:
    checks = (
        ("not judged", row.correct is None),
        ("wrong answer", row.correct is False),
        ("a false step", no_false_step and row.steps is False),
        ("a later turn", row.again),
        ("drawn for a held-out split", row.split in splits),
        ("contaminated", row.question in held),
    )
    return next((reason for reason, holds in checks if holds), None)


def _choose(
    store: Store, rows: list[ChainRow], out: Curated, each: int, order: Order, near: float | None, rng: random.Random
) -> None:
    """Of one question's fit chains those to keep, in order of preference."""
    rows.sort(key=lambda row: (row.tokens, row.trace, row.leaf))
    if order == "random":
        rng.shuffle(rows)
    different = {row.text: row for row in reversed(rows)}  # of equal ones the first
    unequal = [row for row in rows if different[row.text] is row]
    out.why |= {(row.trace, row.leaf): "equal chain" for row in rows if different[row.text] is not row}
    if near is not None or order == "diverse":
        shingled = {w.row: shingles(f"{w.thought}\n{w.answer}") for w in store.worked(unequal)}
    else:
        shingled = {}
    if near is not None:
        index: NearIndex[ChainRow] = NearIndex(near)
        apart = []
        for row in unequal:
            if index.add(row, shingled[row]) is None:
                apart.append(row)
            else:
                out.why[row.trace, row.leaf] = "near duplicate"
        unequal = apart
    taken = diverse(unequal, shingled.__getitem__, each) if order == "diverse" else unequal[:each]
    out.kept += taken
    out.why |= {(row.trace, row.leaf): "more than asked for" for row in set(unequal) - set(taken)}


def diverse(rows: Sequence[ChainRow], shingled: Callable[[ChainRow], np.ndarray], n: int) -> list[ChainRow]:
    """The first row, then `n` - 1 times the one whose nearest among those taken is least like it (the greedy 2-
    approximation of the k-center problem, Gonzalez 1985); of equal ones the first."""
    if not rows:
        return []
    taken = [rows[0]]
    likeness = {row: jaccard(shingled(row), shingled(rows[0])) for row in rows[1:]}
    while likeness and len(taken) < n:
        taken.append(best := min(likeness, key=likeness.__getitem__))
        del likeness[best]
        for row in likeness:
            likeness[row] = max(likeness[row], jaccard(shingled(row), shingled(best)))
    return taken
