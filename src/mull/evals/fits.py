"""Laws of accuracy against compute, with intervals, and predictions from them that can be held to account.

    log        accuracy = a + b * log2(C / C0)
    error      1 - accuracy = a * (C / C0)^-b
    accuracy   accuracy = a * (C / C0)^b
    coverage   log pass@k = a * k^b          Brown et al. 2024, "Large Language Monkeys", arXiv 2407.21787

C0 is the smallest compute of the fit, so that `a` is the fitted value of a point that was measured and not of C = 1,
far outside. Coverage keeps the paper's form (C0 = 1; a < 0, b < 0).

All are least squares on the mean over problems, every point with the same weight: of accuracy (of log pass@k for
coverage, as its law is stated). No logarithm is taken of an error or accuracy, so a point without a single mistake
is no trouble. Intervals are by bootstrap over problems, whose rows hold together (see `curves.fit_log`).

A `Prediction` is published before the run that tests it, cannot be changed afterwards, and takes what was observed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mull.errors import UserError
from mull.evals import metrics
from mull.evals.metrics import Estimate
from mull.files import write_whole

Law = Literal["log", "error", "accuracy", "coverage"]
Predicted = Literal["log", "error", "accuracy", "coverage", "sigmoid"]  # the last is of `mull.evals.sigmoid`
FORMULAS: dict[Law, str] = {
    "log": "accuracy = a + b · log₂(C/C₀)",
    "error": "1 − accuracy = a · (C/C₀)^−b",
    "accuracy": "accuracy = a · (C/C₀)^b",
    "coverage": "log pass@k = a · k^b",
}
STEEPEST = 3.0  # exponents are sought from -3 to 3; a doubling would change the value by a factor of eight


@dataclass(frozen=True, slots=True)
class Parameter:
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A law with its two parameters and their 95% intervals. `draws_R2` are the bootstrap's (a, b)."""

    law: Law
    a: Parameter
    b: Parameter
    c0: float
    up_to: float  # the largest compute that it has seen
    n: int  # problems
    spread: float  # standard deviation of one problem's value at one compute, between problems
    draws_R2: np.ndarray = field(repr=False, compare=False)

    def at(self, compute: float) -> float:
        """The fitted accuracy (or pass@k), kept within [0, 1]."""
        return float(_curve(self.law, np.array([[self.a.value, self.b.value]]), compute / self.c0)[0])

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without the draws: `compare_data.FitRow` but for what the fit is about."""
        params = [{"name": name, **asdict(p)} for name, p in (("a", self.a), ("b", self.b))]
        return {"law": self.law, "formula": FORMULAS[self.law], "params": params, "n": self.n}


def fit_line(compute_X: Sequence[float], values_PX: np.ndarray, seed: int = 0, resamples: int = 2000) -> Fit:
    """The log-linear law. `values_PX[p, x]` is problem p's accuracy at compute x, NaN where it is not scorable.

    Its slope and interval are those of `curves.fit_log`; this one keeps the draws, which a prediction needs.
    """
    return _fit("log", compute_X, values_PX, seed, resamples)


def fit_power(
    compute_X: Sequence[float],
    values_PX: np.ndarray,
    of: Literal["error", "accuracy"] = "error",
    seed: int = 0,
    resamples: int = 2000,
) -> Fit:
    """A power law of the error (the usual one) or of the accuracy."""
    return _fit(of, compute_X, values_PX, seed, resamples)


def fit_coverage(k_X: Sequence[float], values_PX: np.ndarray, seed: int = 0, resamples: int = 2000) -> Fit:
    """The coverage law. `values_PX[p, x]` is problem p's pass@k at `k_X[x]` (see `metrics.pass_at_k_of`)."""
    return _fit("coverage", k_X, values_PX, seed, resamples)


def predict(fit: Fit, compute: float, problems: int = 0, seed: int = 0) -> Estimate:
    """The law's value at `compute` with a 95% interval.

    The interval is of the law itself. With `problems` it is of a mean *measured* on so many new problems, whose own
    noise comes on top; a run on the problems of the fit shares their luck and strays less. Neither covers that the
    law may be the wrong one.
    """
    if not compute > 0:
        raise ValueError(f"no prediction at compute {compute}")
    draws_R = _curve(fit.law, fit.draws_R2, compute / fit.c0)
    if problems:
        noise_R = np.random.default_rng(seed).normal(0, fit.spread / math.sqrt(problems), len(draws_R))
        draws_R = np.clip(draws_R + noise_R, 0, 1)
    low, high = metrics.percentile_interval(draws_R)
    mean = fit.at(compute)
    return Estimate(mean, min(low, mean), max(high, mean), fit.n)


# ------------------------------------------------------------------------------------------------ fitting


def _curve(law: Law, ab_R2: np.ndarray, times: float) -> np.ndarray:
    """`[R]` accuracies at `times` C0, within [0, 1]."""
    a_R, b_R = ab_R2[:, 0], ab_R2[:, 1]
    with np.errstate(over="ignore"):  # a draw may shoot off; it is clipped
        if law == "log":
            value_R = a_R + b_R * math.log2(times)
        elif law == "error":
            value_R = 1 - a_R * times**-b_R
        elif law == "accuracy":
            value_R = a_R * times**b_R
        else:
            value_R = np.exp(a_R * times**b_R)
    return np.clip(value_R, 0, 1)


def _fit(law: Law, compute_X: Sequence[float], values_PX: np.ndarray, seed: int, resamples: int) -> Fit:
    x_X = np.asarray(compute_X, dtype=np.float64)
    values_PX = np.asarray(values_PX, dtype=np.float64)
    if values_PX.ndim != 2 or values_PX.shape[1] != len(x_X):
        raise ValueError(f"values of shape {values_PX.shape} for {len(x_X)} points")
    if not np.isfinite(x_X).all() or (x_X <= 0).any() or len(set(x_X.tolist())) < 2:
        raise ValueError("a law needs positive compute at two different points at least")
    c0 = 1.0 if law == "coverage" else float(x_X.min())
    log_X = np.log(x_X / c0)
    means_RX = np.vstack([np.nanmean(values_PX, axis=0), metrics.resampled_means(values_PX, seed, resamples)])
    if law == "log":
        centred_X = np.log2(x_X / c0) - np.log2(x_X / c0).mean()
        b_R = means_RX @ centred_X / (centred_X @ centred_X)
        a_R = means_RX.mean(1) - b_R * np.log2(x_X / c0).mean()
    elif law == "coverage":
        with np.errstate(divide="ignore"):
            logs_RX = np.log(means_RX)
        if not np.isfinite(logs_RX[0]).all():
            raise ValueError("the coverage law needs a solved problem at every k")
        # a resample that happens to solve nothing at some k has no law
        a_R, b_R = _monomial(log_X, np.where(np.isfinite(logs_RX).all(1, keepdims=True), logs_RX, np.nan))
    else:
        a_R, b_R = _monomial(log_X, 1 - means_RX if law == "error" else means_RX)
        b_R = -b_R if law == "error" else b_R
    ab_R2 = np.stack([a_R, b_R], axis=1)
    variance = float(np.nanmean(np.nanvar(values_PX, axis=0, ddof=1))) if len(values_PX) > 1 else 0.0
    a, b = (_parameter(ab_R2[:, i]) for i in range(2))
    return Fit(law, a, b, c0, float(x_X.max()), len(values_PX), math.sqrt(variance), ab_R2[1:])


def _parameter(draws_R: np.ndarray) -> Parameter:
    """The first is the estimate, the rest its bootstrap."""
    value = float(draws_R[0])
    low, high = metrics.percentile_interval(draws_R[1:])
    return Parameter(value, min(low, value), max(high, value))


def _monomial(log_X: np.ndarray, y_RX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of y = a * exp(b * log_X), one per row; a row with NaN gives NaN.

    For a fixed b the best a is y.f / f.f, and what remains is |y|^2 - (y.f)^2 / f.f: so b alone is sought, first on
    a grid (there may be several local optima), then between the grid's neighbours by golden section.
    """
    grid_G = np.linspace(-STEEPEST, STEEPEST, 601)
    f_GX = np.exp(np.outer(grid_G, log_X - log_X.mean()))  # centred, lest a steep exponent overflow
    f_GX /= np.linalg.norm(f_GX, axis=1, keepdims=True)
    known_R = np.asarray(np.isfinite(y_RX).all(axis=1))
    y_RX = np.where(known_R[:, None], y_RX, 0.0)
    best_R = np.abs(y_RX @ f_GX.T).argmax(1)

    def gain(b_R: np.ndarray) -> np.ndarray:
        f_RX = np.exp(b_R[:, None] * (log_X - log_X.mean()))
        return np.abs((y_RX * f_RX).sum(1)) / np.linalg.norm(f_RX, axis=1)

    step = grid_G[1] - grid_G[0]
    low_R, high_R = grid_G[best_R] - step, grid_G[best_R] + step
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(40):  # 0.618^40 of a step: 5e-9
        inner_R = high_R - ratio * (high_R - low_R)
        outer_R = low_R + ratio * (high_R - low_R)
        left_R = gain(inner_R) > gain(outer_R)
        high_R, low_R = np.where(left_R, outer_R, high_R), np.where(left_R, low_R, inner_R)
    b_R = (low_R + high_R) / 2
    f_RX = np.exp(b_R[:, None] * log_X)
    a_R = (y_RX * f_RX).sum(1) / (f_RX * f_RX).sum(1)
    b_R = np.where(y_RX.any(1), b_R, 0.0)  # all zero: any exponent does
    return np.where(known_R, a_R, np.nan), np.where(known_R, b_R, np.nan)


# -------------------------------------------------------------------------------------------- predictions


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a law, fitted to points up to `up_to`, says about `compute`; and later what was found there."""

    strategy: str
    task: str
    unit: str  # of `up_to` and `compute`: flops, tokens or samples
    law: Predicted
    up_to: float
    compute: float
    value: float
    low: float
    high: float
    made: str  # ISO time
    commit: str
    observed: Estimate | None = None
    observed_at: str | None = None

    @property
    def key(self) -> tuple[str, str, str, str, float]:
        """What it is about. A file holds one prediction of a key."""
        return self.strategy, self.task, self.unit, self.law, self.compute

    @property
    def inside(self) -> bool | None:
        """Whether the observed mean lies in the predicted interval; None before it is known."""
        if self.observed is None or math.isnan(self.observed.mean):
            return None
        return bool(self.low <= self.observed.mean <= self.high)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: `compare_data.PredictionRow`."""
        observed = None if self.observed is None else self.observed.as_dict()
        return {**asdict(self), "observed": observed, "inside": self.inside}


def make_prediction(
    fit: Fit, compute: float, *, strategy: str, task: str, unit: str, made: str, commit: str, problems: int = 0
) -> Prediction:
    """`predict` as a record. `compute` must lie beyond what the fit has seen: anything else is no prediction."""
    if not compute > fit.up_to:
        raise ValueError(f"the fit has seen compute up to {fit.up_to:g}: {compute:g} is no prediction")
    e = predict(fit, compute, problems)
    return Prediction(strategy, task, unit, fit.law, fit.up_to, compute, e.mean, e.low, e.high, made, commit)


def read_predictions(path: Path | str) -> list[Prediction]:
    """The predictions of a file, none when it is absent."""
    path = Path(path)
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["predictions"]
        return [_from_dict(row) for row in rows]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is not a file of predictions ({type(e).__name__}: {e}): move it away") from None


def publish(path: Path | str, predictions: Iterable[Prediction]) -> list[Prediction]:
    """Adds predictions to a file, and gives all that it then holds.

    One that the file holds already stays as it was first made (a resumed run makes the same again); one that differs
    from the published one in its numbers is refused with a UserError, and nothing is written.
    """
    held = {p.key: p for p in read_predictions(path)}
    for new in predictions:
        if new.observed is not None:
            raise ValueError(f"{new.key} carries an observation: a prediction is published before it is tested")
        old = held.setdefault(new.key, new)
        numbers = [[p.up_to, p.value, p.low, p.high] for p in (old, new)]
        if not np.allclose(*numbers, rtol=1e-9):
            raise UserError(
                f"{path} holds another prediction for {new.strategy} on {new.task} at {new.compute:g} {new.unit}, "
                f"made {old.made}: a published prediction stays; write to a new file"
            )
    _write(Path(path), held.values())
    return list(held.values())


def observe(path: Path | str, prediction: Prediction, observed: Estimate, at: str) -> Prediction:
    """Writes beside a published prediction what was found, at ISO time `at`. A second, different one is refused."""
    held = {p.key: p for p in read_predictions(path)}
    if prediction.key not in held:
        raise UserError(f"{path} holds no prediction for {prediction.key}: publish it before the run that tests it")
    old = held[prediction.key]
    new = replace(old, observed=_plain(observed), observed_at=at)
    if old.observed is not None:
        if old.observed != new.observed:
            raise UserError(f"{path} holds another observation for {prediction.key}, of {old.observed_at}: it stays")
        return old
    held[prediction.key] = new
    _write(Path(path), held.values())
    return new


def _plain(e: Estimate) -> Estimate:
    """What `Estimate.as_dict` keeps, so that an estimate equals itself read back."""
    return Estimate(float(e.mean), float(e.low), float(e.high), e.n)


def _from_dict(row: dict[str, Any]) -> Prediction:
    row = {k: v for k, v in row.items() if k != "inside"}
    if row["law"] not in get_args(Predicted):
        raise ValueError(f"no law {row['law']!r}")
    if (found := row["observed"]) is not None:
        mean = math.nan if found["mean"] is None else found["mean"]
        row["observed"] = Estimate(mean, found["low"], found["high"], found["n"])
    return Prediction(**row)


def _write(path: Path, predictions: Iterable[Prediction]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"predictions": [p.as_dict() for p in predictions]}, indent=2, ensure_ascii=False)
    write_whole(path, (text + "\n").encode())
