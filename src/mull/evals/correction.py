"""What a second attempt does to a first one: accuracies, their difference, and who changed sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mull.evals.metrics import Estimate, paired_difference, pass_at_1
from mull.types import Verdict


@dataclass(frozen=True, slots=True)
class Correction:
    """Shares of all pairs of attempts, each with an interval clustered by problem.

    `delta` is `second` minus `first`, paired, and equals `mended` minus `spoiled` as the problems are averaged.
    A pair of which either attempt could not be judged counts nowhere (`unscorable`).
    """

    first: Estimate
    second: Estimate
    delta: Estimate
    mended: Estimate  # wrong, then right (the paper's i->c)
    spoiled: Estimate  # right, then wrong (c->i)
    changed: Estimate  # another answer the second time, right or wrong
    unscorable: int

    def as_dict(self) -> dict[str, object]:
        names = ("first", "second", "delta", "mended", "spoiled", "changed")
        return {**{name: getattr(self, name).as_dict() for name in names}, "unscorable": self.unscorable}


def correction(pairs: Sequence[Sequence[tuple[Verdict, Verdict]]]) -> Correction:
    """From (first verdict, second verdict) of every sample of every problem."""
    judged = [[(a, b) for a, b in of if a.correct is not None and b.correct is not None] for of in pairs]
    first = [[a.correct for a, _ in of] for of in judged]
    second = [[b.correct for _, b in of] for of in judged]
    return Correction(
        first=pass_at_1(first),
        second=pass_at_1(second),
        delta=paired_difference(first, second),
        mended=pass_at_1([[not a.correct and bool(b.correct) for a, b in of] for of in judged]),
        spoiled=pass_at_1([[bool(a.correct) and not b.correct for a, b in of] for of in judged]),
        changed=pass_at_1([[a.answer != b.answer for a, b in of] for of in judged]),
        unscorable=sum(map(len, pairs)) - sum(map(len, judged)),
    )
