"""The page of a server with two models: who is asked, and whose an answer is. Skipped, and said so, where no Chromium
is installed."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mull.search.allocate import Calibration, Plan, Point
from tests.evals import chromium
from tests.serve.beside import foreign, two_service
from tests.serve.pace import paced
from tests.serve.test_service import counted
from tests.serve.tools import QUESTION, serving
from tests.serve.watching import NAMELESS, SIDEWAYS, Page

pytestmark = chromium.needed

PICKED = "[...document.querySelectorAll('.picker select')].map((e) => e.value)"
LABELS = (
    "[...document.querySelectorAll('.picker select')].map((e) => e.labels[0].querySelector('.sr-only').textContent)"
)
CHECKED = "[...document.querySelectorAll('.switch input:checked')].map((e) => e.value)"
NAMES = "[...document.querySelectorAll('.answer')].map((e) => e.ariaLabel)"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory):
    folder = foreign(tmp_path_factory.mktemp("models") / "foreign", 0.03, 256)
    with serving(paced(two_service(folder, think_tokens=48, max_samples=4), 0.005)) as served:
        yield served


@pytest.fixture
def page(browser, two):
    page = Page(browser, two.url).open()
    page.run("(() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; })()")
    yield page
    assert browser.problems == []
    assert all(r.startswith(f"{two.url}/") for r in browser.requests)


def bodies(page: Page) -> list[dict[str, Any]]:
    """What "Copy as curl" gives of every answer, in their order."""
    found = []
    for at in range(page.count(".answer .foot")):
        page.run(
            f"(window.copied = '', [...document.querySelectorAll('.answer .foot')][{at}].querySelectorAll('button')[1]"
            ".click())"
        )
        page.until("window.copied !== ''")
        words = shlex.split(page.run("copied").replace("\\\n", " "))
        found.append(json.loads(words[words.index("-d") + 1]))
    return found


def answers(two: Any, asked: list[dict[str, Any]]) -> list[str]:
    """What the server answers to these bodies."""
    with two.http() as http:
        told = [http.post("/v1/chat/completions", json=body).json() for body in asked]
    assert [one["model"] for one in told] == [body["model"] for body in asked]
    return [one["choices"][0]["message"]["content"] for one in told]


def texts(page: Page) -> list[str]:
    return [text.strip() for text in page.texts(".answer .text")]


def test_two_models_answer_side_by_side_and_go_on_with_their_own_words(page, two):
    before = [counted(two.service, "model_requests_total", model=m, outcome="answered") for m in two.service.models]
    page.effort("medium")
    page.click("nav button", "Compare")
    page.until("document.querySelectorAll('.picker select').length === 2")
    assert page.run(LABELS) == ["Model of A", "Model of B"]
    assert page.run(PICKED) == ["nano", "other"] and page.run(CHECKED) == ["medium", "medium"]
    page.ask(QUESTION)
    page.ended()
    assert page.texts(".answer .column") == ["A nano, medium effort", "B other, medium effort"]
    assert page.run(NAMES) == ["Answer A, model nano, effort medium", "Answer B, model other, effort medium"]
    first = bodies(page)
    assert [body["model"] for body in first] == ["nano", "other"] and texts(page) == answers(two, first)
    assert texts(page)[0] != texts(page)[1]
    after = [counted(two.service, "model_requests_total", model=m, outcome="answered") for m in two.service.models]
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 2]  # the page's, and those of `answers`
    page.ask("again?")
    page.until("document.querySelectorAll('.answer').length === 4")
    page.ended()
    for side, body in enumerate(bodies(page)[2:]):
        assert body["model"] == ("nano", "other")[side]
        assert [turn["content"] for turn in body["messages"]] == [QUESTION, texts(page)[side], "again?"]
    page.click("nav button", "New")
    assert page.run(PICKED) == ["nano", "other"]  # it is the conversation that is new


def test_what_somebody_chose_stays_and_one_model_is_compared_by_its_efforts(page, two):
    page.click("nav button", "Compare")
    page.until("document.querySelectorAll('.picker select').length === 2")
    page.fill(".effort:nth-child(2) select", "nano")
    page.effort("none", 1)
    page.click("nav button", "Compare")
    page.until("document.querySelectorAll('.picker select').length === 1")
    assert page.run(LABELS) == ["Model"]
    page.fill(".picker select", "other")
    page.click("nav button", "Compare")
    page.until("document.querySelectorAll('.picker select').length === 2")
    assert page.run(PICKED) == ["other", "nano"] and page.run(CHECKED) == ["low", "none"]
    page.fill(".effort:nth-child(1) select", "nano")
    page.ask(QUESTION)
    page.ended()
    assert page.texts(".answer .column") == ["A low effort, nano", "B none effort, nano"]
    assert [body["model"] for body in bodies(page)] == ["nano", "nano"]


def test_one_side_asks_the_model_that_is_picked_and_says_which(page, two):
    page.fill(".picker select", "other")
    page.ask(QUESTION)
    page.ended()
    assert page.texts(".answer .column") == ["other, low effort"] and page.run(NAMES) == ["Answer, model other"]
    page.tab("Numbers")
    assert dict(zip(page.texts(".facts dt"), page.texts(".facts dd"), strict=True))["Model"] == "other"
    assert "other: Thought for" in page.text("[role=status]")
    page.fill(".picker select", "nano")
    page.ask("again?")
    page.until("document.querySelectorAll('.answer').length === 2")
    page.ended()
    assert page.texts(".answer .column") == ["other, low effort", "nano, low effort"]  # the first stays the other's
    asked = bodies(page)
    assert [body["model"] for body in asked] == ["other", "nano"] and texts(page) == answers(two, asked)
    assert [turn["content"] for turn in asked[1]["messages"]] == [QUESTION, texts(page)[0], "again?"]


def test_an_effort_costs_what_it_costs_with_that_model(page, two):
    most = {}
    for name in ("nano", "other"):
        page.fill(".picker select", name)
        page.until(f"document.querySelector('.picker select').value === '{name}'")
        page.effort("high")
        page.ask(QUESTION)
        page.ended()
        with two.http() as http:
            known = http.get(f"/mull/efforts?model={name}").json()["efforts"]["high"]
        most[name] = f"about {round(known['median_tokens'])} tokens"
        page.until(f"document.querySelector('.prediction').textContent.startsWith('{most[name]} ')", 20)
        page.click("nav button", "New")
    assert most["nano"] != most["other"]


@pytest.mark.parametrize("width", [360, 1280])
def test_the_pickers_have_names_and_room_and_keys(page, width):
    page.open(width=width, height=800)
    assert page.text(".head .model") == "nano, other" and "nano and other think" in page.text(".welcome")
    assert page.run("document.title") == "mull · nano, other"
    for sides in (1, 2):
        assert page.run(SIDEWAYS) <= 0 and page.run(NAMELESS) == [] and page.count(".picker select") == sides
        if sides == 1:
            page.click("nav button", "Compare")
            page.until("document.querySelectorAll('.picker select').length === 2")
    page.run("document.getElementById('question').focus()")
    page.tab_to(lambda at: at.startswith("SELECT"))
    assert page.run("document.activeElement.labels[0].textContent").startswith("Model of A")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.press("o")  # as one types the beginning of a name
    page.until(f"{PICKED}[0] === 'other'")
    page.ask(QUESTION)
    page.ended()
    assert page.run(SIDEWAYS) <= 0 and page.run(NAMELESS) == []
    assert page.texts(".answer .column")[0] == "A low effort, other"


def test_a_strategy_that_the_other_model_cannot_run_is_left_out(browser, tmp_path: Path):
    """The scorer is the main model's: with the other one there is no beam to choose, and its efforts are the built-in
    ones, where the main model's follow a file."""
    points = tuple(Point((Plan("vote", n),), float(6 * n), 0.1 * n) for n in (2, 4))
    known = Calibration("nano", "", "last", 4, "spread", (), 4.0, points, {"low": 0, "medium": 1, "high": 1})
    known.save(tmp_path / "calibration.json")
    folder = foreign(tmp_path / "foreign", 0.03, 256)
    service = two_service(folder, scorer="a/folder", calibration=str(tmp_path / "calibration.json"))
    version = service.models["other"].weights.current
    version.tools = replace(version.tools, scorer=None)
    with serving(service) as served:
        page = Page(browser, served.url).open()
        assert "not calibrated" not in page.text(".prediction")
        page.click(".buttons button", "Advanced")
        page.fill(".advanced select", "beam")
        page.fill(".picker select", "other")
        page.until("document.querySelector('.advanced select').value === ''")
        assert "beam" not in page.texts(".advanced option") and "vote" in page.texts(".advanced option")
        assert page.text(".prediction").endswith(" · not calibrated")
        page.ask(QUESTION)
        page.ended()
        assert page.texts(".answer .column") == ["other, low effort"] and browser.problems == []
