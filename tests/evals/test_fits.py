"""The laws against closed forms, their intervals against known truths, and predictions that cannot be rewritten."""

import json
import math

import numpy as np
import pytest

from mull.errors import UserError
from mull.evals import curves, fits
from mull.evals.metrics import Estimate, pass_at_k_of

COMPUTE = [3e8 * 2**i for i in range(7)]


def rows(mean_X, problems=4) -> np.ndarray:
    """Problems that all behave like the mean."""
    return np.repeat(np.asarray(mean_X)[None], problems, axis=0)


def marks(rng: np.random.Generator, p_X, problems: int) -> np.ndarray:
    """One sample per problem and point, right with probability p."""
    return (rng.random((problems, len(p_X))) < np.asarray(p_X)).astype(float)


# ------------------------------------------------------------------------------------------- closed forms


def test_line_is_the_log_fit_of_curves():
    values_PX = marks(np.random.default_rng(0), np.linspace(0.2, 0.7, 7), 80)
    old, new = curves.fit_log(COMPUTE, values_PX, seed=3), fits.fit_line(COMPUTE, values_PX, seed=3)
    assert (new.b.value, new.b.low, new.b.high) == pytest.approx((old.b, old.low, old.high))
    assert new.at(COMPUTE[2]) == pytest.approx(old.at(COMPUTE[2]))
    assert new.a.value == pytest.approx(old.at(COMPUTE[0]))


@pytest.mark.parametrize("b", [0.0, 0.02, 0.31, 1.7])
def test_power_law_of_the_error(b):
    error_X = 0.8 * (np.array(COMPUTE) / COMPUTE[0]) ** -b
    fit = fits.fit_power(COMPUTE, rows(1 - error_X))
    assert (fit.a.value, fit.b.value) == pytest.approx((0.8, b), abs=1e-6)
    assert (fit.b.low, fit.b.high) == pytest.approx((b, b), abs=1e-6)
    later = COMPUTE[-1] * 8
    assert fit.at(later) == pytest.approx(1 - 0.8 * (later / COMPUTE[0]) ** -b)
    assert fit.at(1.0) == pytest.approx(max(0.0, 1 - 0.8 * (1 / COMPUTE[0]) ** -b), abs=1e-5)


def test_power_law_of_the_accuracy():
    accuracy_X = 0.11 * (np.array(COMPUTE) / COMPUTE[0]) ** 0.4
    fit = fits.fit_power(COMPUTE, rows(accuracy_X), of="accuracy")
    assert (fit.a.value, fit.b.value) == pytest.approx((0.11, 0.4), abs=1e-6)
    assert fit.at(1e30) == 1.0


def test_coverage_law_with_the_paper_s_numbers():
    """SWE-bench Lite in the paper: a = -1.74, b = -0.21."""
    k_X = [1, 2, 4, 8, 16, 32, 64]
    fit = fits.fit_coverage(k_X, rows(np.exp(-1.74 * np.array(k_X) ** -0.21)))
    assert (fit.a.value, fit.b.value) == pytest.approx((-1.74, -0.21), abs=1e-6)
    assert fit.at(250) == pytest.approx(math.exp(-1.74 * 250**-0.21))
    # the smallest k need not be 1: the law is in k, not in its ratio to the first
    assert fits.fit_coverage(k_X[2:], rows(np.exp(-1.74 * np.array(k_X[2:]) ** -0.21))).a.value == pytest.approx(-1.74)


def test_perfect_and_hopeless_points_do_not_break_the_power_laws():
    fit = fits.fit_power([1, 2, 4, 8], rows([0.5, 0.75, 1.0, 1.0]))  # log(0) in a log-log fit
    assert math.isfinite(fit.b.value) and fit.b.value > 0.9
    flat = fits.fit_power([1, 2, 4], rows([1.0, 1.0, 1.0]))
    assert (flat.a.value, flat.b.value) == (0.0, 0.0) and flat.at(100) == 1.0
    with pytest.raises(ValueError, match="solved"):
        fits.fit_coverage([1, 2, 4], rows([0.0, 0.1, 0.2]))


def test_bad_input_is_refused():
    for compute in ([1.0, 1.0], [0.0, 1.0], [1.0, math.inf]):
        with pytest.raises(ValueError, match="two different points"):
            fits.fit_power(compute, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="shape"):
        fits.fit_line([1, 2, 4], np.zeros((3, 2)))
    with pytest.raises(ValueError):
        fits.predict(fits.fit_line([1, 2], rows([0.1, 0.2])), 0.0)


def test_unscorable_entries_are_left_out():
    values_PX = np.array([[0.0, 1.0], [np.nan, 1.0], [0.0, np.nan]])
    assert fits.fit_line([1, 2], values_PX).b.value == pytest.approx(1.0)
    assert math.isfinite(fits.fit_power([1, 2], values_PX).b.value)


# ---------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("law", ["log", "error", "coverage"])
def test_intervals_cover_the_truth(law):
    """The parameter and the law's value at eight times the compute, each in about 95 of 100 data sets."""
    rng = np.random.default_rng(11)
    x_X = np.array([1.0, 2, 4, 8, 16])
    truth, later, trials = {"log": (0.3, 0.06), "error": (0.7, 0.2), "coverage": (-1.6, -0.4)}[law], 128.0, 200
    a, b = truth
    curve = {
        "log": lambda c: a + b * np.log2(c),
        "error": lambda c: 1 - a * c**-b,
        "coverage": lambda c: np.exp(a * c**b),
    }
    fit_of = {"log": fits.fit_line, "error": fits.fit_power, "coverage": fits.fit_coverage}[law]
    parameter, value, measured = 0, 0, 0
    for trial in range(trials):
        fit = fit_of(x_X.tolist(), marks(rng, curve[law](x_X), 150), seed=trial, resamples=300)
        parameter += fit.b.low <= b <= fit.b.high
        e = fits.predict(fit, later)
        value += e.low <= curve[law](later) <= e.high
        found = marks(rng, [curve[law](later)], 150).mean()
        e = fits.predict(fit, later, problems=150, seed=trial)
        measured += e.low <= found <= e.high
    for hits in (parameter, value, measured):
        assert 0.895 <= hits / trials <= 0.99


def test_a_measured_mean_strays_more_than_the_law():
    fit = fits.fit_line([1, 2, 4, 8], marks(np.random.default_rng(1), [0.3, 0.4, 0.5, 0.6], 400))
    law, few, many = (fits.predict(fit, 16, problems=n) for n in (0, 50, 5000))
    assert law.mean == few.mean == many.mean
    assert few.high - few.low > many.high - many.low >= 0.98 * (law.high - law.low)


def test_same_seed_same_fit():
    values_PX = marks(np.random.default_rng(2), [0.3, 0.4, 0.5], 50)
    a, b = (fits.fit_power([1, 2, 4], values_PX, seed=5) for _ in range(2))
    assert a == b and (a.draws_R2 == b.draws_R2).all()
    assert a.b != fits.fit_power([1, 2, 4], values_PX, seed=6).b


def test_coverage_from_pools_of_samples():
    """Problems with Beta-distributed difficulty: the law, fitted up to k = 16, is near the truth at k = 64."""
    rng = np.random.default_rng(3)
    right_P = rng.binomial(64, rng.beta(0.4, 2.0, size=300))
    ks = [1, 2, 4, 8, 16, 64]
    values_PX = np.array([[pass_at_k_of(64, int(c), k) for k in ks] for c in right_P])
    e = fits.predict(fits.fit_coverage(ks[:-1], values_PX[:, :-1]), 64)
    assert e.mean == pytest.approx(values_PX[:, -1].mean(), abs=0.03)


# --------------------------------------------------------------------------------------------- predictions


@pytest.fixture
def fit():
    return fits.fit_line([1, 2, 4, 8], marks(np.random.default_rng(1), [0.3, 0.4, 0.5, 0.6], 100))


def made(fit, compute=32.0, task="chain", **changes):
    about = {"strategy": "beam, prm", "task": task, "unit": "flops", "made": "2026-11-21T10:00:00", "commit": "abc"}
    return fits.make_prediction(fit, compute, **{**about, **changes})


def test_publish_then_observe(fit, tmp_path):
    path = tmp_path / "run" / "predictions.json"
    one, two = made(fit), made(fit, task="countdown")
    assert (one.up_to, one.compute, one.inside) == (8.0, 32.0, None)
    assert fits.publish(path, [one, two]) == [one, two] == fits.read_predictions(path)
    hit = fits.observe(path, one, Estimate(one.value + 0.01, 0.1, 0.9, 100, samples=300), "2026-11-21T11:00:00")
    miss = fits.observe(path, two, Estimate(one.high + 0.01, 0.1, 0.9, 100), "2026-11-21T11:00:00")
    assert (hit.inside, miss.inside) == (True, False)
    assert fits.read_predictions(path) == [hit, miss]
    row = json.loads(path.read_text())["predictions"][0]
    assert row["inside"] is True and row["observed"]["n"] == 100 and row["made"] == "2026-11-21T10:00:00"


def test_a_published_prediction_stays(fit, tmp_path):
    path = tmp_path / "predictions.json"
    first = made(fit)
    fits.publish(path, [first])
    # a resumed run makes the same one again: the first stays, its date too
    assert fits.publish(path, [made(fit, made="2026-11-22T10:00:00", commit="def")]) == [first]
    before = path.read_bytes()
    other = fits.fit_line([1, 2, 4, 8], marks(np.random.default_rng(9), [0.3, 0.4, 0.5, 0.6], 100))
    with pytest.raises(UserError, match="a published prediction stays"):
        fits.publish(path, [made(fit, task="maze"), made(other)])
    assert path.read_bytes() == before


def test_an_observation_stays_and_needs_its_prediction(fit, tmp_path):
    path = tmp_path / "predictions.json"
    fits.publish(path, [made(fit)])
    found = Estimate(0.7, 0.6, 0.8, 100)
    with pytest.raises(UserError, match="publish it before"):
        fits.observe(path, made(fit, task="maze"), found, "later")
    seen = fits.observe(path, made(fit), found, "later")
    assert fits.observe(path, made(fit), found, "later still") == seen
    with pytest.raises(UserError, match="another observation"):
        fits.observe(path, made(fit), Estimate(0.71, 0.6, 0.8, 100), "later still")
    # publishing again does not wipe out what was observed
    assert fits.publish(path, [made(fit)]) == [seen]
    with pytest.raises(ValueError, match="before it is tested"):
        fits.publish(path, [seen])


def test_what_the_fit_has_seen_is_no_prediction(fit):
    with pytest.raises(ValueError, match="no prediction"):
        made(fit, compute=8.0)


def test_a_broken_file_is_the_user_s_to_move(tmp_path):
    path = tmp_path / "predictions.json"
    for text in ("{", "[]", '{"predictions": [{}]}', '{"predictions": [{"law": "guess", "observed": null}]}'):
        path.write_text(text)
        with pytest.raises(UserError, match="not a file of predictions"):
            fits.read_predictions(path)
