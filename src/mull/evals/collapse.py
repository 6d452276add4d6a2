"""Says at once when a reinforcement-learning run collapses, what kind of collapse it is, and at which step it began.

The detector watches four numbers of each step: mean reward, mean entropy of the sampled tokens (nats per token), mean
length of the answers (tokens), and the fraction cut off at the length limit. Each is smoothed by an exponential moving
average (weight `Thresholds.weight` on the newest value) and compared with the best that a slower average has reached
(a fast one's best is mostly luck). A fall counts only beyond the series' own noise: `sigmas` standard deviations of
the fast average, estimated from successive differences, which a trend hardly touches. An alarm needs `patience` steps
in a row; it is raised once, and can be raised again only after the signal was healthy for as long.

What counts, in the order of naming when several set in at one step:

    broken     a value is NaN or infinite: at once, no patience
    length     answers shrink below `short` of the longest average so far while the reward suffers, or below
               `very_short` without any gain in reward; or most answers are cut off; or the length doubles and more
               since the best reward while the reward suffers
    entropy    below `flat` of its starting level while the task is unsolved: nothing is explored any more;
               or far above the starting level: noise
    reward     the average loses `fall` of what it had gained over zero

Growing length and falling entropy are what a healthy run does, so neither is an alarm alone. The thresholds were
chosen on synthetic series (the tests) and describe gross failure: a run that merely stalls is not a collapse.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Thresholds:
    weight: float = 0.3  # of the newest value in the fast average
    slow: float = 0.1  # and in the slow one, whose best is the reference
    warmup: int = 8  # steps before the first alarm; they also set the starting levels
    patience: int = 3  # steps in a row
    sigmas: float = 5.0
    fall: float = 0.5  # share of the best average reward that must be lost
    suffers: float = 0.2  # share of the best average reward whose loss makes an odd length suspicious
    least: float = 0.03  # reward differences below this are never an alarm
    short: float = 0.35
    very_short: float = 0.2
    doubled: float = 2.0
    cut_off: float = 0.5  # fraction of truncated answers, if it rose by `cut_off_rise` since the start
    cut_off_rise: float = 0.3
    flat: float = 0.1
    solved: float = 0.9  # at this reward a vanishing entropy is mastery
    wild: float = 4.0  # entropy above this multiple of the start, and `wild_nats` above it
    wild_nats: float = 0.5


@dataclass(frozen=True, slots=True)
class Collapse:
    """One alarm. `began` is the step at which the series broke, `noticed` the step of the alarm."""

    kind: str  # "reward", "entropy", "length" or "broken"
    began: int
    noticed: int
    why: str

    def __str__(self) -> str:
        return f"the run collapsed ({self.kind}) from step {self.began} on: {self.why} (noticed at step {self.noticed})"


@dataclass(slots=True)
class _Series:
    """One watched number: its history, its moving average, and how noisy that average is."""

    weight: float
    slow_weight: float
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    mean: float = 0.0
    slow: float = 0.0
    highest: float = -math.inf  # of the slow average, after the warm-up
    start: float = 0.0  # median of the warm-up
    difference2: float = 0.0  # moving average of squared successive differences, outliers clipped

    def add(self, step: int, value: float, warmup: int) -> None:
        self.steps.append(step)
        self.values.append(value)
        n = len(self.values)
        # While the average is young it is a plain mean, so that the first value has no special weight.
        self.mean += max(self.weight, 1.0 / n) * (value - self.mean)
        self.slow += max(self.slow_weight, 1.0 / n) * (value - self.slow)
        if n > 1:
            d2 = (value - self.values[-2]) ** 2
            if n > warmup:  # a collapse's own jump must not hide it
                d2 = min(d2, 9.0 * self.difference2)
            self.difference2 += max(0.03, 1.0 / (n - 1)) * (d2 - self.difference2)
        if n <= warmup:
            self.start = float(np.median(self.values))
        if n >= warmup:
            self.highest = max(self.highest, self.slow)

    @property
    def sigma(self) -> float:
        """Standard deviation of the moving average: successive differences of white noise have variance 2·σ²."""
        return math.sqrt(self.difference2 / 2 * self.weight / (2 - self.weight))


class CollapseDetector:
    """Feed it every step; it answers with an alarm at the step that makes one due, else with None.

    It is a function of the series alone. A resumed run feeds it the metrics that its folder holds (see `scan`).
    """

    def __init__(self, thresholds: Thresholds | None = None):
        self.t = thresholds or Thresholds()
        self._series = {
            name: _Series(self.t.weight, self.t.slow) for name in ("reward", "entropy", "length", "truncated")
        }
        self._at_best = 0.0  # average length when the slow average of the reward was highest
        self._bad: dict[str, int] = {}  # kind → bad steps in a row
        self._good: dict[str, int] = {}
        self._raised: dict[str, Collapse] = {}  # alarms in force
        self._recovered: dict[str, int] = {}  # kind → step of its last recovery

    @property
    def collapsed(self) -> Collapse | None:
        """The first alarm that is still in force."""
        return min(self._raised.values(), key=lambda c: c.noticed, default=None)

    def update(
        self,
        step: int,
        reward: float | None,
        entropy: float | None = None,
        length: float | None = None,
        truncated: float | None = None,
    ) -> Collapse | None:
        """The numbers of one step, None where one was not measured. Steps must come in ascending order."""
        given = {"reward": reward, "entropy": entropy, "length": length, "truncated": truncated}
        broken = [name for name, value in given.items() if value is not None and not math.isfinite(value)]
        for name, value in given.items():
            if value is not None and math.isfinite(value):
                self._series[name].add(step, float(value), self.t.warmup)
        r, lengths = self._series["reward"], self._series["length"]
        if r.values and r.slow >= r.highest:
            self._at_best = lengths.slow
        signs = {"length": self._length_sign(), "entropy": self._entropy_sign(), "reward": self._reward_sign()}
        found: Collapse | None = None
        if self._changed(step, "broken", bool(broken), patience=1):
            found = Collapse("broken", step, step, f"{' and '.join(broken)} is not a finite number")
            self._raised["broken"] = found
        for kind, sign in signs.items():
            if self._changed(step, kind, sign is not None, self.t.patience) and sign is not None:
                watched, why = sign
                first = bisect_right(watched.steps, self._recovered.get(kind, -1))
                alarm = Collapse(kind, onset(watched.steps[first:], watched.values[first:]), step, why)
                self._raised[kind] = alarm
                found = found or alarm
        return found

    def _changed(self, step: int, kind: str, bad: bool, patience: int) -> bool:
        """Hysteresis: True once, when `kind` has been bad for `patience` steps and was not raised already."""
        self._bad[kind] = self._bad.get(kind, 0) + 1 if bad else 0
        self._good[kind] = 0 if bad else self._good.get(kind, 0) + 1
        if kind in self._raised:
            if self._good[kind] >= max(patience, self.t.patience):
                del self._raised[kind]
                self._recovered[kind] = step
            return False
        return self._bad[kind] >= patience

    # Each sign: None, or (the series that shows it, the reason in words).

    def _lost(self, share: float) -> bool:
        """Whether the reward is clearly below its best, by at least `share` of that."""
        r = self._series["reward"]
        if len(r.values) <= self.t.warmup:
            return False
        needed = max(share * max(r.highest, 0.0), self.t.sigmas * r.sigma, self.t.least)
        return r.highest - r.mean > needed

    def _reward_sign(self) -> tuple[_Series, str] | None:
        r = self._series["reward"]
        if not self._lost(self.t.fall):
            return None
        return r, f"the reward fell from an average of {r.highest:.3g} to {r.mean:.3g}"

    def _length_sign(self) -> tuple[_Series, str] | None:
        t, n, cut, r = self.t, self._series["length"], self._series["truncated"], self._series["reward"]
        if len(cut.values) > t.warmup and cut.mean > max(t.cut_off, cut.start + t.cut_off_rise):
            return cut, f"{cut.mean:.0%} of the answers are cut off at the length limit"
        if len(n.values) <= t.warmup:
            return None
        suffers = self._lost(t.suffers)
        gained = bool(r.values) and r.mean > r.start + max(2 * r.sigma, 0.1 * abs(r.start), t.least)
        if n.mean < t.short * n.highest and (suffers or (n.mean < t.very_short * n.highest and not gained)):
            return n, f"answers shrank from {n.highest:.0f} to {n.mean:.0f} tokens"
        if suffers and n.mean > t.doubled * self._at_best > 0:
            return n, f"answers grew from {self._at_best:.0f} to {n.mean:.0f} tokens while the reward fell"
        return None

    def _entropy_sign(self) -> tuple[_Series, str] | None:
        t, e, r = self.t, self._series["entropy"], self._series["reward"]
        if len(e.values) <= t.warmup:
            return None
        if e.mean < t.flat * e.start and not (r.values and r.mean >= t.solved):
            return e, f"the entropy fell from {e.start:.3g} to {e.mean:.2g} nats per token: nothing new is tried"
        if e.mean > max(t.wild * e.start, e.start + t.wild_nats):
            return e, f"the entropy rose from {e.start:.3g} to {e.mean:.3g} nats per token"
        return None


def onset(steps: list[int], values: list[float], window: int = 60, shortest: int = 3) -> int:
    """The step at which a series broke: where two separate straight lines fit its last `window` values best.

    Returns the first step of the second line. Least squares over all splits that leave `shortest` values on each
    side; fewer values than that: the last step.
    """
    y = np.asarray(values[-window:])
    x = np.arange(len(y), dtype=float)
    if len(y) < 2 * shortest:
        return steps[-1]
    splits = range(shortest, len(y) - shortest + 1)
    best = min(splits, key=lambda k: _misfit(x[:k], y[:k]) + _misfit(x[k:], y[k:]))
    return steps[len(steps) - len(y) + best]


def _misfit(x: np.ndarray, y: np.ndarray) -> float:
    """Sum of squared residuals of the least-squares line."""
    dx, dy = x - x.mean(), y - y.mean()
    return float(dy @ dy - (dx @ dy) ** 2 / (dx @ dx))


def scan(rows: Iterable[Mapping[str, Any]], detector: CollapseDetector | None = None) -> list[Collapse]:
    """Every alarm of a run's metrics rows ("step", "reward", "entropy", "length", "truncated"; absent: not measured).

    With a `detector`, brings it up to date with a run that is resumed.
    """
    detector = detector or CollapseDetector()
    found: list[Collapse] = []
    for row in rows:
        values = [row.get(name) for name in ("reward", "entropy", "length", "truncated")]
        if any(v is not None for v in values) and (alarm := detector.update(row["step"], *values)):
            found.append(alarm)
    return found
