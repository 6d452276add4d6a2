"""When a flywheel stops, and which of its models is the best: pure functions of valid results and compute.

Compute is what sampling and training have spent, S_t after turn t. It is counted in doublings, because
accuracy rises about evenly with its logarithm: D_t = 1 + log2(S_t / S_1), and D_0 = 0 for the base, so that the first
turn counts as one doubling of nothing. Turn t is compared with the best turn b before it (the one before, as long as
each is better than the last) on the same valid problems:

    it paid if  gain(t over b) >= threshold * (D_t - D_b)

where the gain is the mean of the paired difference or one end of its 95% interval. `patience` turns in a row that did
not pay end the run. The model of the highest valid accuracy is the result, the earliest of equals. Being the highest
of several, its valid accuracy is biased upwards; its test accuracy, which decided nothing, is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mull.evals.metrics import Estimate, Marks, paired_difference, pass_at_1

Evidence = Literal["mean", "low", "high"]


@dataclass(frozen=True)
class Turn:
    """What the rule may know of a turn; turn 0 is the base."""

    number: int
    valid: Marks  # of the model that the turn left, on the valid problems
    flops: float  # spent on sampling and training up to its end


@dataclass(frozen=True)
class Judged:
    """A turn by the rule."""

    number: int
    gain: Estimate  # over the turn before, paired
    best: int  # the best turn before it
    over_best: Estimate  # gain over that one, paired: what decides
    doublings: float  # of compute, since that one
    paid: bool

    @property
    def per_doubling(self) -> tuple[float, float, float] | None:
        """(mean, low, high) of the gain over the best for each doubling of compute; None: nothing was spent."""
        if self.doublings <= 0:
            return None
        gain = self.over_best
        return gain.mean / self.doublings, gain.low / self.doublings, gain.high / self.doublings


def best_of(turns: Sequence[Turn]) -> int:
    """The place of the turn with the highest valid accuracy, the earliest of equals."""
    accuracy = [pass_at_1(turn.valid).mean for turn in turns]
    return max(range(len(turns)), key=lambda i: (-1.0 if math.isnan(accuracy[i]) else accuracy[i], -i))


def judged(turns: Sequence[Turn], threshold: float, evidence: Evidence = "mean") -> list[Judged]:
    """Every turn but the base, by the rule. `threshold`: accuracy for each doubling of compute."""
    out = []
    for i in range(1, len(turns)):
        best, turn = turns[best_of(turns[:i])], turns[i]
        over_best = paired_difference(best.valid, turn.valid)
        doublings = _doublings(turns, turn) - _doublings(turns, best)
        paid = getattr(over_best, evidence) >= threshold * doublings and over_best.n > 0
        out.append(
            Judged(
                turn.number,
                paired_difference(turns[i - 1].valid, turn.valid),
                best.number,
                over_best,
                doublings,
                paid,
            )
        )
    return out


def _doublings(turns: Sequence[Turn], turn: Turn) -> float:
    return 1 + math.log2(turn.flops / turns[1].flops) if turn.flops > 0 and turns[1].flops > 0 else 0.0


def stopped(
    turns: Sequence[Turn], threshold: float, evidence: Evidence, patience: int, most: int
) -> tuple[str, str] | None:
    """(kind, sentence) of why there is no other turn; None: there is one."""
    found = judged(turns, threshold, evidence)
    tail = found[-patience:]
    if len(tail) == patience and not any(turn.paid for turn in tail):
        last = tail[-1]
        rate = last.per_doubling
        each = "" if rate is None else f", which is {points(rate[0])} for each doubling of compute"
        which = {"mean": "", "low": " at the low end", "high": " at the high end"}[evidence]
        in_a_row = "" if patience == 1 else f"; {patience} turns in a row did not pay"
        return "stopped paying", (
            f"turn {last.number} gained {points(last.over_best.mean)} points over turn {last.best} on valid problems "
            f"(95% interval {points(last.over_best.low)} to {points(last.over_best.high)}){each}: below the threshold "
            f"of {points(threshold)}{which}{in_a_row}"
        )
    if len(found) >= most:
        return "all turns done", f"all {most} turns are done" + (", and the last one paid" if found[-1].paid else "")
    return None


def nothing_to_learn(turn: int, lessons: int, counts: Mapping[str, int]) -> tuple[str, str]:
    """(kind, sentence) for a turn that found no lesson, or the same `lessons` as the turn before it. `counts`: chains
    by reason."""
    what = "nothing to learn from" if not lessons else f"the same {lessons} lessons as the turn before it"
    return (
        "nothing to learn",
        f"turn {turn} found {what} ({'; '.join(f'{n} {reason}' for reason, n in counts.items())})",
    )


def points(share: float) -> str:
    """Hundredths, signless zero: "1.5".

    >>> points(0.0149), points(-0.0001)
    ('1.5', '0.0')
    """
    return "?" if math.isnan(share) else f"{round(100 * share, 1) + 0.0:.1f}"
