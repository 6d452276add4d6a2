"""The saturating law of accuracy against training compute: Khatri et al. 2025, "ScaleRL", arXiv 2510.13786.

    R(C) = R0 + (A - R0) / (1 + (C_mid / C)^B)

R0 is the accuracy before training, A the asymptote, C_mid the compute at which half of the way is done, B how steep it
is there. For a fixed (B, C_mid) the law is linear, so A (and R0, where it is fitted) is closed-form least squares, and
only (B, C_mid) are sought: on a grid, then on ever finer grids around the best cell.

Intervals, and what they cover:
- of A, B and C_mid: profile likelihood. The noise is estimated from the residuals, so the threshold is F(1, n - p) in
  place of the chi-square's 3.84, to which it tends. They treat the points as independent: they are about *these* runs
  on *these* problems.
- of predictions: bootstrap over problems and over seeds, crossed (every seed was measured on the same problems).

Where this departs from the paper: it seeks A and C_mid on a grid and fits B; here A is what has the closed form. A
fit whose C_mid lies beyond its last point does not know A, and says so; so does one whose interval of A reaches 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from mull.evals import metrics
from mull.evals.fits import Parameter
from mull.evals.metrics import Estimate

Start = Literal["measured", "fitted"]  # R0: what was measured before training, or one of the fit's parameters
Verdict = Literal["bounded", "unbounded", "unidentified"]
FORMULA = "accuracy = R₀ + (A − R₀) / (1 + (C_mid/C)^B)"
LEAST_POINTS = 5  # different amounts of compute; three or four parameters leave fewer nothing to be wrong by

FLATTEST, STEEPEST = 0.15, 12.0  # B is sought between these
BELOW, ABOVE = math.log(16), math.log(256)  # C_mid is sought so far below the first point and above the last


@dataclass(frozen=True, slots=True)
class SigmoidFit:
    """The law with 95% intervals. `draws_R4` are the bootstrap's (R0, A, log B, log C_mid)."""

    r0: Parameter
    a: Parameter
    b: Parameter
    c_mid: Parameter
    verdict: Verdict
    from_compute: float  # the smallest compute that the fit used
    up_to: float  # the largest
    n: int  # problems
    seeds: int
    points: int  # evaluations
    noise: float  # standard deviation of one evaluation of one seed around the law
    a_of_seed: tuple[float, ...]  # each seed's own asymptote, fitted alone
    draws_R4: np.ndarray = field(repr=False, compare=False)

    def at(self, compute: float) -> float:
        """The fitted accuracy; R0 at compute 0."""
        log_c = math.log(compute) if compute > 0 else -math.inf
        theta_14 = np.array([[self.r0.value, self.a.value, math.log(self.b.value), math.log(self.c_mid.value)]])
        return float(_value(theta_14, np.array([log_c]))[0, 0])

    @property
    def sentence(self) -> str:
        """What may be said about the asymptote."""
        a = self.a
        if self.verdict == "unidentified":
            return (
                "The asymptote is not identified: the fitted midpoint lies beyond the last point, "
                "and points below the midpoint say nothing about where the curve ends."
            )
        if self.verdict == "unbounded":
            return f"The asymptote is unbounded: anything from {a.low:.1%} to 100% fits the points."
        return f"The asymptote is {a.value:.1%} [{a.low:.1%}, {a.high:.1%}]."

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without the draws."""
        params = [
            {"name": name, **asdict(p)}
            for name, p in (("R₀", self.r0), ("A", self.a), ("B", self.b), ("C_mid", self.c_mid))
        ]
        plain = ("verdict", "sentence", "from_compute", "up_to", "n", "seeds", "points", "noise")
        return {
            "law": "sigmoid",
            "formula": FORMULA,
            "params": params,
            **{name: getattr(self, name) for name in plain},
            "a_of_seed": list(self.a_of_seed),
        }


def fit_sigmoid(
    compute: ArrayLike,
    seeds: ArrayLike,
    rates_PX: np.ndarray,
    start_PS: np.ndarray,
    start: Start = "fitted",
    from_compute: float = 0.0,
    seed: int = 0,
    resamples: int = 1000,
) -> SigmoidFit:
    """Fits the law to evaluations of several runs on the same problems.

    Evaluation x is of run `seeds[x]` (0 .. S-1) at `compute[x]` > 0; `rates_PX[p, x]` is problem p's accuracy in
    it, NaN where it is not scorable; `start_PS` the same before training. Evaluations below `from_compute` are left
    out, as the paper leaves out its first 1,500 GPU-hours. ValueError for too few different amounts of compute.
    """
    compute_X, seed_X = np.asarray(compute, dtype=np.float64), np.asarray(seeds, dtype=np.int64)
    rates_PX, start_PS = np.asarray(rates_PX, dtype=np.float64), np.asarray(start_PS, dtype=np.float64)
    if rates_PX.shape != (len(start_PS), len(compute_X)) or len(seed_X) != len(compute_X):
        raise ValueError(f"rates of shape {rates_PX.shape}, {len(compute_X)} points, {len(start_PS)} problems")
    if not np.isfinite(compute_X).all() or (compute_X <= 0).any():
        raise ValueError("the points of a law need positive compute; what was measured at 0 is `start_PS`")
    kept_X = compute_X >= from_compute
    compute_X, seed_X, rates_PX = compute_X[kept_X], seed_X[kept_X], rates_PX[:, kept_X]
    if len(np.unique(compute_X)) < LEAST_POINTS:
        raise ValueError(f"a sigmoid needs points at {LEAST_POINTS} different amounts of compute at least")

    x_X = np.log(compute_X)
    runs = start_PS.shape[1]
    grid = _grid(x_X)
    problems, by_seed_RS = _resamples(len(rates_PX), runs, seed, resamples)
    mean_RX, begin_RS = _means(problems, rates_PX), _means(problems, start_PS)
    weight_RX = by_seed_RS[:, seed_X]
    if start == "fitted":  # what was measured before training are points like the others, where the law is R0
        x_X = np.concatenate([np.full(runs, -math.inf), x_X])
        mean_RX, weight_RX = np.hstack([begin_RS, mean_RX]), np.hstack([by_seed_RS, weight_RX])
        r0_R, free = None, 4
    else:
        r0_R, free = (begin_RS * by_seed_RS).sum(1) / by_seed_RS.sum(1), 3
    theta_R4, rss_R = _solve(mean_RX, weight_RX, x_X, r0_R, grid)

    r0_1 = None if r0_R is None else r0_R[:1]
    left = max(len(x_X) - free, 1)
    noise = math.sqrt(max(rss_R[0], 0.0) / left)
    room = rss_R[0] + noise**2 * f_95(left)  # what a value's best fit may leave, for it to be in the interval
    a, log_b, log_mid = (_profile(i, mean_RX[0], x_X, r0_1, grid, theta_R4[0], room) for i in (1, 2, 3))
    r0 = _percentiles(theta_R4[:, 0])
    b, c_mid = (Parameter(*np.exp([p.value, p.low, p.high]).tolist()) for p in (log_b, log_mid))
    own = np.array([np.concatenate([np.arange(runs) == s, seed_X == s]) for s in range(runs)], dtype=np.float64)
    own_SX = own if start == "fitted" else own[:, runs:]
    own_r0_S = None if r0_R is None else begin_RS[0]
    a_of_seed = _solve(np.repeat(mean_RX[:1], runs, axis=0), own_SX, x_X, own_r0_S, grid)[0][:, 1]
    verdict: Verdict = "bounded"
    if c_mid.value >= compute_X.max():
        verdict = "unidentified"
    elif a.high >= 1.0:
        verdict = "unbounded"
    return SigmoidFit(
        r0=r0,
        a=a,
        b=b,
        c_mid=c_mid,
        verdict=verdict,
        from_compute=float(compute_X.min()),
        up_to=float(compute_X.max()),
        n=len(rates_PX),
        seeds=runs,
        points=len(compute_X),
        noise=noise,
        a_of_seed=tuple(a_of_seed.tolist()),
        draws_R4=theta_R4[1:],
    )


def predict(fit: SigmoidFit, compute: float, measured: bool = False, seed: int = 0) -> Estimate:
    """The law's value at `compute` with a 95% interval; with `measured`, of what an evaluation of the same seeds will
    find there, their mean: its own noise, as large as that of the points of the fit, comes on top.

    It covers the luck of the problems and of the seeds, which the evaluation will share: on the problems and seeds of
    the fit it is too wide rather than too narrow. It does not cover that the law may be the wrong one.
    """
    if not compute > 0:
        raise ValueError(f"no prediction at compute {compute}")
    draws_R = _value(fit.draws_R4, np.array([math.log(compute)]))[:, 0]
    if measured:
        rng = np.random.default_rng(seed)
        draws_R = np.clip(draws_R + rng.normal(0, fit.noise / math.sqrt(fit.seeds), len(draws_R)), 0, 1)
    low, high = metrics.percentile_interval(draws_R)
    value = fit.at(compute)
    return Estimate(value, min(low, value), max(high, value), fit.n)


def f_95(freedom: int) -> float:
    """The 95% quantile of F(1, n): the square of Student's two-sided one, by Hill's expansion around the normal's
    (Abramowitz and Stegun 26.7.5), whose error is below 1% from 3 degrees of freedom on; below, exactly.

    >>> [round(f_95(n), 2) for n in (1, 2, 10, 10**6)]
    [161.45, 18.51, 4.96, 3.84]
    """
    if freedom < 3:
        return {1: 161.4476, 2: 18.5128}[freedom]
    z, n = metrics.Z95, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return (z + sum(term / n**k for k, term in enumerate(terms, 1))) ** 2


# ------------------------------------------------------------------------------------------------ fitting
# Axes: R fits at once (the estimate and its resamples, or the values of a profile), X points, G cells of the grid.
# w[r, x] is the weight of a point in fit r: how often its seed was drawn.

Grid = tuple[np.ndarray, np.ndarray]  # ascending log B and log C_mid
Held = tuple[int, np.ndarray]


def _value(theta_R4: np.ndarray, x_X: np.ndarray) -> np.ndarray:
    """`[R, X]` accuracies at log compute `x_X`."""
    r0_R1, a_R1, log_b_R1, mid_R1 = (theta_R4[:, i : i + 1] for i in range(4))
    return r0_R1 + (a_R1 - r0_R1) * _logistic(np.exp(log_b_R1) * (x_X - mid_R1))


def _logistic(z: np.ndarray) -> np.ndarray:
    """1 / (1 + (C_mid/C)^B) at z = B log(C/C_mid), without overflow."""
    return 0.5 * (1 + np.tanh(z / 2))


def _grid(x_X: np.ndarray, cells: tuple[int, int] = (44, 88)) -> Grid:
    mids = np.linspace(x_X.min() - BELOW, x_X.max() + ABOVE, cells[1])
    return np.linspace(math.log(FLATTEST), math.log(STEEPEST), cells[0]), mids


def _resamples(problems: int, seeds: int, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each problem `[1+R, P]` and each seed `[1+R, S]` counts; the first row counts each once."""
    rng = np.random.default_rng(seed)
    by_problem = rng.multinomial(problems, np.full(problems, 1 / problems), size=resamples)
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    return tuple(np.vstack([np.ones_like(c[:1]), c]).astype(np.float64) for c in (by_problem, by_seed))  # type: ignore


def _means(counts_RP: np.ndarray, rates_PX: np.ndarray) -> np.ndarray:
    known_PX = np.isfinite(rates_PX)
    if not known_PX.any(axis=0).all():
        raise ValueError("an evaluation has no problem that could be scored")
    return (counts_RP @ np.where(known_PX, rates_PX, 0.0)) / np.maximum(counts_RP @ known_PX, 1e-9)


def _solve(
    y_RX: np.ndarray, w_RX: np.ndarray, x_X: np.ndarray, r0_R: np.ndarray | None, grid: Grid, held: Held | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares: `[R, 4]` parameters (R0, A, log B, log C_mid) and what each leaves, `[R]`.

    R0 is fitted where `r0_R` is None. `held`: one parameter (1: A, 2: log B, 3: log C_mid) and its value in each fit.
    """
    which, held_R = held or (0, np.zeros(len(y_RX)))
    a_R = held_R if which == 1 else None
    wy_RX = w_RX * y_RX
    sums = (w_RX.sum(1)[:, None], wy_RX.sum(1)[:, None], (wy_RX * y_RX).sum(1)[:, None])

    def best_of(log_b: np.ndarray, mid: np.ndarray) -> list[np.ndarray]:
        """(R0, A, log B, log C_mid, what is left) of each fit's best among cells `[G]`, or `[R, G]` of its own."""
        f = _logistic(np.exp(log_b)[..., None] * (x_X - mid[..., None]))
        terms = (_over_points(f, w_RX), _over_points(f * f, w_RX), _over_points(f, wy_RX))
        r0, a, rss = _linear(*sums, *terms, r0_R, a_R)
        best = rss.argmin(1)[:, None]
        log_b, mid = np.broadcast_to(log_b, rss.shape), np.broadcast_to(mid, rss.shape)
        return [np.take_along_axis(v, best, 1)[:, 0] for v in (r0, a, log_b, mid, rss)]

    if which in (2, 3):
        free = grid[3 - which]
        pair = [held_R[:, None] + 0 * free, free + 0 * held_R[:, None]]
        found = best_of(*(pair if which == 2 else pair[::-1]))
    else:
        found = best_of(*(m.ravel() for m in np.meshgrid(*grid, indexing="ij")))
    around = np.linspace(-1, 1, 7)
    steps = [0.0 if which == 2 + i else g[1] - g[0] for i, g in enumerate(grid)]
    near = np.meshgrid(*(around if step else [0.0] for step in steps), indexing="ij")
    for _ in range(8):  # each time around the best, at 40% of the width: in the end 1/1500 of a cell
        cells = [np.clip(found[2 + i][:, None] + steps[i] * near[i].ravel(), grid[i][0], grid[i][-1]) for i in range(2)]
        found = best_of(*cells)
        steps = [0.4 * step for step in steps]
    return np.stack(found[:4], axis=1), found[4]


def _over_points(f: np.ndarray, w_RX: np.ndarray) -> np.ndarray:
    """The sum over points of f times w, `[R, G]`, where f is `[G, X]` or, one for each fit, `[R, G, X]`."""
    return w_RX @ f.T if f.ndim == 2 else np.einsum("rgx,rx->rg", f, w_RX)


def _linear(
    w: np.ndarray,
    wy: np.ndarray,
    wyy: np.ndarray,
    wf: np.ndarray,
    wff: np.ndarray,
    wfy: np.ndarray,
    r0_R: np.ndarray | None,
    a_R: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R0, A, residual sum of squares) of y = R0 (1-f) + A f for each cell, from the weighted sums over the points
    of 1, y, y², f, f² and f·y. Both are shares: they are kept within [0, 1]."""
    wgf, wgg, wgy = wf - wff, w - 2 * wf + wff, wy - wfy  # g = 1 - f
    tiny = 1e-12 * w

    def best_a(r0: np.ndarray) -> np.ndarray:
        return np.clip((wfy - r0 * wgf) / np.maximum(wff, tiny), 0, 1)

    def best_r0(a: np.ndarray) -> np.ndarray:
        return np.clip((wgy - a * wgf) / np.maximum(wgg, tiny), 0, 1)

    shape = np.zeros_like(wf)
    if r0_R is not None:
        r0 = r0_R[:, None] + shape
        a = best_a(r0) if a_R is None else a_R[:, None] + shape
    elif a_R is not None:
        a = a_R[:, None] + shape
        r0 = best_r0(a)
    else:
        determinant = np.maximum(wff * wgg - wgf * wgf, tiny * w)
        a = np.clip((wfy * wgg - wgy * wgf) / determinant, 0, 1)
        r0 = best_r0(a)
        for _ in range(2):  # one of the two may have met its bound
            a = best_a(r0)
            r0 = best_r0(a)
    rss = wyy - 2 * r0 * wgy - 2 * a * wfy + r0 * r0 * wgg + 2 * r0 * a * wgf + a * a * wff
    return r0, a, np.maximum(rss, 0.0)


# ---------------------------------------------------------------------------------------------- intervals


def _profile(
    which: int,
    y_X: np.ndarray,
    x_X: np.ndarray,
    r0_1: np.ndarray | None,
    grid: Grid,
    theta_4: np.ndarray,
    room: float,
) -> Parameter:
    """Parameter `which` (1: A, 2: log B, 3: log C_mid) with the values whose best fit leaves at most `room`."""

    def left(value_V: np.ndarray) -> np.ndarray:
        y_VX = np.repeat(y_X[None], len(value_V), axis=0)
        r0_V = None if r0_1 is None else np.repeat(r0_1, len(value_V))
        return _solve(y_VX, np.ones_like(y_VX), x_X, r0_V, grid, (which, value_V))[1]

    value = float(theta_4[which])
    ends = (0.0, 1.0) if which == 1 else (grid[which - 2][0], grid[which - 2][-1])
    tried_V = np.unique(np.append(np.linspace(*ends, 81), value))
    inside = np.flatnonzero((left(tried_V) <= room) | (tried_V == value))
    within_2 = tried_V[[inside[0], inside[-1]]]
    without_2 = tried_V[[max(inside[0] - 1, 0), min(inside[-1] + 1, len(tried_V) - 1)]]
    for _ in range(9):  # the ends lie between a value inside and its neighbour outside
        middle_2 = (within_2 + without_2) / 2
        inside_2 = left(middle_2) <= room
        within_2, without_2 = np.where(inside_2, middle_2, within_2), np.where(inside_2, without_2, middle_2)
    return Parameter(value, min(float(within_2[0]), value), max(float(within_2[1]), value))


def _percentiles(draws_R: np.ndarray) -> Parameter:
    """The first is the estimate, the rest its bootstrap."""
    low, high = metrics.percentile_interval(draws_R[1:])
    value = float(draws_R[0])
    return Parameter(value, min(low, value), max(high, value))
