"""The page in a real browser: ask, watch, read, compare, stop. Skipped, and said so, where no Chromium is installed."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.evals import chromium
from tests.serve.pace import paced_service
from tests.serve.tools import QUESTION, serving, until
from tests.serve.watching import SIDEWAYS, Page

pytestmark = chromium.needed

LINE = re.compile(r"Thinking (\d+) s · ([\d.]+k?)/([\d.]+k?) tokens · (\d+)/(\d+) branches")
THINKING = "document.querySelector('.answer')?.dataset.state === 'thinking'"
VIEWER = "[...document.querySelectorAll('canvas')].at(-1).viewer"


@pytest.fixture(scope="module")
def shown():
    with serving(paced_service(thoughts="shown", effort="medium")) as served:
        yield served


@pytest.fixture(scope="module")
def hidden():
    with serving(paced_service(effort="medium")) as served:
        yield served


@pytest.fixture
def page(browser, shown):
    """With thoughts shown; nothing went wrong in it, and it has asked nobody but its server."""
    page = Page(browser, shown.url).open()
    yield page
    assert browser.problems == []
    assert all(r.startswith(f"{shown.url}/") for r in browser.requests)


def test_the_thinking_line_lives_and_folds_into_what_it_took(page, shown):
    page.ask(QUESTION)
    seen: list[str] = []
    now = "((line) => [line.querySelector('.words').textContent, line.ariaExpanded])(document.querySelector('.line'))"
    while page.state not in ("done", "failed"):
        line, unfolded = page.run(now)  # of one moment: the answer may come in the next
        if line not in seen[-1:]:
            seen.append(line)
        if line.startswith("Thinking"):
            assert unfolded == "true" or "branches" not in line
    found = [m for m in map(LINE.fullmatch, seen) if m]
    assert len(found) > 3 and {m[5] for m in found} == {"8"} and found[0][3] == "1.2k"
    assert len({m[1] for m in found}) > 1 and len({m[2] for m in found}) > 2
    page.ended()
    assert re.fullmatch(r"Thought for .* seconds?", page.line)
    assert page.run("document.querySelector('.line').ariaExpanded") == "false" and page.count("[role=tab]") == 0
    assert page.text(".answer .text").strip() and "agree" in page.text(".chips")
    assert not shown.service.jobs


def test_copy_as_curl_is_the_call_that_gives_the_same_answer(page, shown):
    page.run("(() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; })()")
    page.click(".example-ask code", "9")
    page.ended()
    page.click(".foot button", "Copy as curl")
    page.until("'copied' in window")
    words = shlex.split(page.run("copied").replace("\\\n", " "))
    assert words[:2] == ["curl", f"{shown.url}/v1/chat/completions"]
    body = json.loads(words[words.index("-d") + 1])
    with shown.http() as http:
        answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == page.text(".answer .text").strip()
    assert page.text(".chips .right, .chips .wrong") in ("correct", "not correct")
    page.click(".foot button", "Copy")


def test_a_step_of_the_tree_can_be_read_by_mouse_and_by_keys(page):
    page.ask(QUESTION)
    page.until(THINKING)
    page.tab("Search tree")
    page.until(f"{VIEWER}.state().nodes > 1")  # it grows while it thinks
    page.ended()
    page.until(f"{VIEWER}.state().chosen !== null")
    assert page.text(".node h4") == "Answer" and page.text(".node pre") == page.text(".answer .text").strip()
    page.run("document.querySelector('canvas').scrollIntoView({block: 'center'})")
    page.mouse(*page.run(f"{VIEWER}.where(0)"))
    page.until(f"{VIEWER}.state().chosen === 0")
    page.until("document.querySelector('.node h4').textContent === 'Step 1'")
    first = page.text(".node pre")
    assert first and "</think>" not in first and page.count(".node li") == 0  # no way leads there
    assert page.run("document.activeElement.tagName") == "CANVAS"
    page.press("ArrowRight")
    page.until(f"{VIEWER}.state().chosen !== 0")
    page.until("document.querySelectorAll('.node li').length === 2")
    assert page.texts(".node li")[0] == first and page.text(".node .here") == page.text(".node pre")
    page.press("ArrowLeft")
    page.until(f"{VIEWER}.state().chosen === 0")
    page.press("ArrowDown")
    page.until(f"{VIEWER}.state().chosen > 0")
    page.press("w")
    page.until("document.querySelector('.node h4').textContent === 'Answer'")
    page.press("+")
    page.until(f"{VIEWER}.state().zoom > 1.2")
    page.press("0")
    page.until(f"{VIEWER}.state().zoom === 1")
    page.tab("Votes")
    assert page.run("document.querySelector('.votes .won th').textContent") == page.text(".answer .text").strip()
    shares = [int(re.search(r"(\d+)%", t)[1]) for t in page.texts(".votes .num")]  # type: ignore[index]
    assert shares == sorted(shares, reverse=True) and 90 < sum(shares) < 110
    page.tab("Thought")
    assert page.text(".raw").strip()
    page.tab("Numbers")
    facts = dict(zip(page.texts(".facts dt"), page.texts(".facts dd"), strict=True))
    assert (
        "Model" not in facts
        and facts["Strategy"] == "adaptive"
        and "FLOPs" in facts["Compute"]
        and facts["Request"].startswith("req_")
    )
    numbers = [int(t.replace(",", "")) for t in page.texts(".key b")]
    assert len(numbers) == 5 and sum(numbers) == 29 + 8 * (120 + 24)
    assert "prompt 29" in page.run("document.querySelector('.spent').ariaLabel")


def test_answer_now_ends_the_thinking(page, shown):
    page.effort("high")
    page.ask(QUESTION)
    page.click("button.now")
    page.ended(60)
    assert "answered early" in page.texts(".chips .note") and page.text(".answer .text").strip()
    assert page.count("button.now") == 0 and not shown.service.jobs


def test_escape_stops_and_the_question_can_be_asked_again(page, shown):
    page.effort("high")
    page.ask(QUESTION)
    page.until(THINKING)
    assert page.count("button.send[aria-label=Stop]") == 1
    page.press("Escape")
    page.ended(20)
    assert (
        page.line.startswith("Stopped after")
        and page.run("document.querySelector('.answer').dataset.state") == "stopped"
    )
    until(lambda: not shown.service.jobs, 10)
    page.click(".answer button", "Try again")
    page.until(THINKING)
    page.click("button.send")
    page.ended(20)
    assert page.count(".turn") == 1 and page.line.startswith("Stopped")


def test_two_efforts_think_side_by_side(page, shown):
    page.click("nav button", "Compare")
    page.effort("low", 0)
    page.effort("high", 1)
    page.ask(QUESTION)
    thinking = "[...document.querySelectorAll('.answer')].every((a) => a.dataset.state === 'thinking')"
    page.until(f"document.querySelectorAll('.answer').length === 2 && {thinking}", 30)
    assert len(shown.service.jobs) == 2
    assert page.texts(".answer .column") == ["A low effort", "B high effort"]
    assert page.count(".picker") == 0  # of models, of which there is one
    page.until("document.querySelectorAll('.answer')[0].dataset.state === 'done'")
    page.run("document.querySelectorAll('button.now')[0]?.click()")
    page.ended()
    assert all(t.strip() for t in page.texts(".answer .text")) and page.count(".turn") == 1
    left, right = page.run("[...document.querySelectorAll('.answer')].map((a) => a.getBoundingClientRect().x)")
    assert left < right - 300
    # each side goes on with its own answer
    page.ask("again?")
    page.until("document.querySelectorAll('.answer').length === 4")
    page.press("Escape")
    page.ended(20)


def test_advanced_settings_reach_the_server(page, shown):
    page.click(".buttons button", "Advanced")
    page.fill(".advanced select", "vote")
    page.fill(".advanced input[max='64']", "3")
    page.until("document.querySelector('.prediction').textContent === 'up to 432 tokens'")
    page.fill(".advanced label:nth-of-type(3) input", "60")
    page.fill(".advanced label:nth-of-type(4) input", "7")
    page.fill(".advanced label:nth-of-type(5) input", "0.5")
    page.until("document.querySelector('.prediction').textContent === 'up to 84 tokens'")
    page.ask(QUESTION)
    page.until(THINKING)
    plan = next(iter(shown.service.jobs.values())).plan
    assert (plan.strategy, plan.samples, plan.tokens) == ("vote", 3, 60 + 24)
    page.ended()
    labels = page.texts(".chips .note")
    assert "budget exhausted" in labels and "ignored: temperature" in labels
    page.tab("Numbers")
    assert dict(zip(page.texts(".facts dt"), page.texts(".facts dd"), strict=True))["Seed"] == "7"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("[3120, 8000, 950, 12345, 2500000].map(w.short).join()", "3.1k,8k,950,12.3k,2.5M"),
        ("[0, 14.9, 125].map(w.clock).join()", "0 s,14 s,2 min 5 s"),
        ("[0.042, 2.34, 14.2, 88].map(w.took).join()", "0.04 s,2.3 s,14 s,1 min 28 s"),
        ("w.power(12345678)", "1.23×10⁷"),
        (
            "w.thinkingLine({state: 'thinking', began: 0, text: '', plan: {},"
            " progress: {tokens: 3140, most_tokens: 8000, done: 4, branches: 16}}, 14400)",
            "Thinking 14 s · 3.1k/8k tokens · 4/16 branches",
        ),
        (
            "w.thinkingLine({state: 'done', plan: {think_tokens: 9}, result: {mull: {seconds: 14}}})",
            "Thought for 14 seconds",
        ),
        (
            "w.thinkingLine({state: 'done', plan: {think_tokens: 9}, result: {mull: {seconds: 1.2}}})",
            "Thought for 1 second",
        ),
        (
            "JSON.stringify(w.agreement({content: 'A b', mull: {votes:"
            " [{answer: 'a  b', count: 3}, {answer: 'c', count: 1}]}}))",
            '{"count":3,"of":4,"share":0.75}',
        ),
        ("w.trouble({message: 'It is busy', status: 429})", "It is busy."),
        ("w.trouble({message: 'Gone.', status: 503})", "Gone. Nothing is wrong with the question."),
    ],
)
def test_numbers_and_states_in_words(page, call, said):
    assert page.run(f"import('./mull/assets/words.js').then((w) => {call})") == said


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_nothing_scrolls_sideways(page, width):
    page.open(width=width, height=800)
    assert page.run(SIDEWAYS) <= 0
    page.click(".buttons button", "Advanced")
    page.until("!!document.querySelector('.advanced')")
    assert page.run(SIDEWAYS) <= 0
    page.click(".buttons button", "Advanced")
    page.click("nav button", "Compare")
    page.until("document.querySelectorAll('.effort').length === 2")
    assert page.run(SIDEWAYS) <= 0
    page.click("nav button", "Compare")
    page.fill(".example:nth-child(2) select", "4")  # the longest question
    page.click(".example:nth-child(2) .example-ask")
    page.until("!!document.querySelector('.answer')")
    assert page.run(SIDEWAYS) <= 0
    page.ended()
    for tab in ("Summary", "Search tree", "Thought", "Votes", "Numbers"):
        page.tab(tab)
        assert page.run(SIDEWAYS) <= 0, tab
        assert page.run(
            "(({scrollWidth, clientWidth}) => scrollWidth <= clientWidth)(document.querySelector('.tabpanel'))"
        )


def test_all_of_it_by_keyboard(page):
    assert page.focused.startswith("TEXTAREA")
    page.type("1+1=?")
    page.press("Enter", shift=True)
    page.until("document.querySelector('#question').value !== ''")
    assert page.count(".turn") == 0
    page.tab_to(lambda at: at.startswith("INPUT"))
    page.press("ArrowLeft")
    page.until("document.querySelector('input[name=effort-0][value=low]').checked")
    page.tab_to(lambda at: "Ask" in at)
    page.press("Enter")
    page.until("!!document.querySelector('.answer')")
    page.ended()
    page.run("document.querySelector('#question').focus()")
    page.tab_to(lambda at: at.startswith("BUTTON.line"))
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(outline) != "none"
    page.press("Enter")
    page.tab_to(lambda at: page.run("document.activeElement.role") == "tab")
    assert page.run("document.activeElement.textContent") == "Summary" and page.run(outline) != "none"
    page.press("ArrowRight")
    assert page.run("document.activeElement.textContent") == "Search tree"
    page.press("End")
    assert (
        page.run("document.activeElement.textContent") == "Numbers"
        and page.run("document.activeElement.ariaSelected") == "true"
    )
    page.press("ArrowRight")
    assert page.run("document.activeElement.textContent") == "Summary"
    page.press("Tab")
    assert page.run("document.activeElement.role") == "tabpanel"
    page.tab_to(lambda at: "Dark mode" in at)
    page.press(" ")
    page.until("document.documentElement.dataset.theme === 'dark'")


def test_hidden_thoughts_are_hidden_on_the_page(browser, hidden):
    page = Page(browser, hidden.url).open()
    page.ask(QUESTION)
    page.until(THINKING)
    page.tab("Search tree")
    page.ended()
    assert page.texts("[role=tab]") == ["Summary", "Search tree", "Votes", "Numbers"]
    hint = "document.querySelector('.node .hint')?.textContent.includes('keeps thoughts hidden')"
    page.until(f"({VIEWER}.choose(0), {hint})")  # the last drawing of the tree may come after the answer
    assert page.count(".node pre") == 0
    page.tab("Summary")
    assert page.count(".summary li") > 1 and "agree" in page.text(".summary")
    assert browser.problems == [] and all(r.startswith(f"{hidden.url}/") for r in browser.requests)
