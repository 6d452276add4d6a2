"""The page of a scaling law: as text, and (where there is a Chromium) what a browser makes of it."""

import copy
import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from mull.errors import UserError
from mull.evals import evidence
from mull.evals.scale_page import render_scale, write_scale
from tests.evals import chromium
from tests.evals.scale_fixture import FIRST, SECOND, example_data
from tests.evals.test_report import ASSETS, HOSTILE, Page
from tests.evals.test_report_browser import OVERLAPS, count, select, text

KEPT = {"law", "task", "name", "unit"}  # what the page's script compares with


def hostile() -> Any:
    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        return value + HOSTILE if isinstance(value, str) and key not in KEPT else value

    return poison(example_data())


def test_hostile_text_stays_text_and_nothing_is_fetched():
    page = Page(render_scale(hostile()))
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 4 and "img" not in names
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "<" not in page.scripts[0] and any(HOSTILE in t for t in page.texts)
    page = Page(render_scale(example_data()))
    for tag, attributes in page.tags:
        for key in ("src", "href", "action", "srcset"):
            assert not attributes.get(key) or attributes[key] == "data:,", (tag, attributes)
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "Content-Security-Policy" in a.values()]
    assert policy and policy.startswith("default-src 'none'") and policy.count("sha256-") == 3
    css = ASSETS.joinpath("scale.css").read_text()
    assert "url(" not in css and "@import" not in css


def test_render_is_pure_and_needs_every_field(tmp_path):
    data = example_data()
    before = copy.deepcopy(data)
    assert render_scale(data) == render_scale(json.loads(json.dumps(data))) and data == before
    assert write_scale(data, tmp_path / "deep" / "scale.html").read_text() == render_scale(data)
    del data["errors"]
    with pytest.raises(UserError, match="errors"):
        render_scale(data)


def test_words_and_tables():
    data = example_data()
    texts = Page(render_scale(data)).texts
    everything = " ".join(texts)
    assert data["summary"][0] in texts and data["summary"][1] in texts and data["command"] in texts
    assert "2026-11-21 05:00:00; the second half began 2026-11-21 05:00:04" in texts
    assert "200, held out, 4 samples of each" in texts and "0, 1, 2" in texts
    assert "2 of 4 observations fell inside the predicted 95% interval." in texts and "not yet run" in texts
    assert "accuracy = R₀ + (A − R₀) / (1 + (C_mid/C)^B)" in texts and "fitted to first half" in texts
    a = data["fits"][0]["params"][1]
    assert f"A = {a['value']:.1%}" in texts and f"{a['low']:.1%} to {a['high']:.1%}" in texts
    assert re.search(r"C_mid = \d\.\d\d × 10¹²", everything) and "{{" not in everything
    # in each group of three the law that was nearest is set in bold
    bold = re.findall(r"<b>(.*?)</b>", render_scale(data).split("How far each law")[-1])
    assert bold == ["1.2 points"] * 3 and "6.1 points" in texts and "−0.4%" in everything


def test_nothing_was_found_yet():
    data = example_data()
    data.update(errors=[], predictions=[], fits=[], summary=[], begun=None)
    texts = Page(render_scale(data)).texts
    assert "nano-base on chain and countdown" in texts and "2026-11-21 05:00:00" in texts
    for sentence in ("The second half has not been run yet.", "Nothing was fitted.", "No prediction was published"):
        assert any(sentence in t for t in texts), sentence


def test_numbers_that_are_none_or_nan():
    data = example_data()
    data["charts"][0]["points"][0]["accuracy"] = math.nan
    data["fits"][0]["params"][0]["value"] = math.inf
    data["predictions"][0]["observed"]["mean"] = math.nan
    assert not re.search(r"\b(nan|inf|None)\b", " ".join(Page(render_scale(data)).texts))


def test_its_figures_are_evidence():
    """What runs/scale_evidence.py makes of the same data."""
    script = Path(__file__).parents[2] / "runs" / "scale_evidence.py"
    spec = importlib.util.spec_from_file_location("scale_evidence", script)
    assert spec and spec.loader
    made: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    data = example_data()
    rows = {
        f.__name__: [made.row(data, **r) for r in f(data)] for f in (made.predictions, made.parameters, made.errors)
    }
    for name, found in rows.items():
        assert len({evidence.validate(r, name)["claim"] for r in found}) == len(found) > 5
    claims = [r["claim"] for r in rows["predictions"]]
    assert claims[:2] == [f"all problems / 1.5 times the fitted compute / {w}" for w in ("predicted", "found, inside")]
    assert any("A, bounded" in r["claim"] for r in rows["parameters"])
    of_task = {f["task"]: f["n"] for f in data["fits"]}
    asked = {r["n"] for r in rows["predictions"] if r["claim"].startswith("chain") and "predicted" in r["claim"]}
    assert asked == {of_task["chain"]} != {data["problems"]}, "a task has fewer problems than all together"
    assert "commit" not in made.row({**data, "commit": ""}, "c", 0.5, 0.4, 0.6, 9, "share"), "evidence.write has one"


# --------------------------------------------------------------------------------------------- in a browser


@pytest.fixture
def show(browser, tmp_path):
    """Writes a page, opens it, and checks that its script ran to its end without an error."""

    def show(data: Any = None, **window):
        browser.open(write_scale(data or example_data(), tmp_path / "scale.html"), **window)
        assert browser.problems == []
        assert browser.run("document.documentElement.dataset.ready") == "yes"
        return browser

    return show


@chromium.needed
def test_the_chart_draws_what_was_fitted_said_and_found(show):
    page = show()
    chart = "#law-chart svg"
    assert count(page, f"{chart} .dot") == 3 * len(FIRST + SECOND)
    assert count(page, f"{chart} .dot.held-out") == 3 * len(SECOND)
    assert (count(page, f"{chart} .prediction"), count(page, f"{chart} .observed")) == (2, 2)
    laws = page.run("[...document.querySelectorAll('#law-chart .law')].map((l) => l.dataset.law)")
    assert laws == ["error", "log", "refit", "sigmoid"] and count(page, f"{chart} .band") == 1
    # the held-out points, and they alone, lie in the shaded half
    edge = float(page.run("document.querySelector('.beyond').getAttribute('x')"))
    xs = page.run("""[...document.querySelectorAll('#law-chart svg .dot')].map(
        (d) => [+d.getAttribute('cx'), d.matches('.held-out')])""")
    assert all((x > edge + 0.01) == held_out for x, held_out in xs)
    label = page.run("document.querySelector('#law-chart svg').ariaLabel")
    assert f"{3 * len(FIRST + SECOND)} evaluations, {3 * len(SECOND)} of them held out" in label
    assert all(r.startswith(("file:", "data:")) for r in page.requests)
    select(page, "#law-task", "chain")
    assert (count(page, f"{chart} .prediction"), count(page, f"{chart} .observed")) == (2, 0)
    assert page.problems == []


@chromium.needed
def test_keys_walk_from_point_to_point(show):
    page = show()
    page.run("document.querySelector('#law-chart svg').focus()")
    page.press("ArrowRight")
    assert "seed 0, step 1" in text(page, ".tip") and "FLOPs" in text(page, ".tip")
    for _ in range(200):
        page.press("ArrowRight")
    assert "predicted" in text(page, ".tip") and "outside the interval" in text(page, ".tip")


@chromium.needed
@pytest.mark.parametrize("width", [360, 1280])
def test_no_overlap_and_no_sideways_scrolling(show, width):
    page = show(width=width)
    assert page.run(OVERLAPS) == []
    assert page.run("document.documentElement.scrollWidth") <= width


@chromium.needed
def test_almost_nothing_and_hostile_text(show):
    data = example_data()
    for chart in data["charts"]:
        chart["points"] = []
    assert "No point to draw" in text(show(data), "#law-chart")
    data = example_data()
    data["charts"] = [{**data["charts"][0], "points": data["charts"][0]["points"][:1], "lines": []}]
    data["predictions"] = []
    assert count(show(data), "#law-chart .dot") == 1
    page = show(hostile())
    assert count(page, "img") == 0 and page.run("'owned' in window") is False
