"""What a browser makes of the report page. Skipped, and said so, where no Chromium is installed."""

import base64
import copy
import json
from typing import Any

import pytest

from mull.evals.report import write_report
from tests.evals import chromium
from tests.evals.report_fixture import opinion, report
from tests.evals.test_report import HOSTILE, hostile

pytestmark = chromium.needed


@pytest.fixture
def show(browser, tmp_path):
    """Writes a report, opens it, and checks that its script ran to its end without an error."""

    def show(data: Any = None, **window):
        browser.open(write_report(data or report(), tmp_path / "report.html"), **window)
        assert browser.problems == []
        assert browser.run("document.documentElement.dataset.ready") == "yes"
        return browser

    return show


def count(browser, selector: str) -> int:
    return browser.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def text(browser, selector: str) -> str:
    return browser.run(f"document.querySelector({json.dumps(selector)}).innerText")


def click(browser, selector: str) -> None:
    browser.run(f"document.querySelector({json.dumps(selector)}).click()")


def select(browser, selector: str, value: str) -> None:
    browser.run(
        f"(() => {{ const s = document.querySelector({json.dumps(selector)}); s.value = {json.dumps(value)};"
        " s.dispatchEvent(new Event('change')); })()"
    )


# ------------------------------------------------------------------------------------------------- drawing


def test_both_panels_draw_every_line_band_and_point(show):
    data = report()
    page = show(data)
    positive = {id(c): sum(p["flops"] > 0 for p in c["points"]) for c in data["train"]}
    dotted = sum(n for c in data["train"] if c["role"] != "control" for n in [positive[id(c)]])
    assert count(page, "#train-chart g[aria-label=line] path") == len(data["train"])
    assert count(page, "#train-chart g[aria-label=area] path") == len(data["train"])
    assert count(page, "#train-chart g[aria-label=dot] circle") == dotted
    assert count(page, "#train-chart g[aria-label=line][stroke-dasharray]") == 1  # the control
    mean = [c for c in data["test"] if c["task"] == "mean"]
    assert count(page, "#test-chart g[aria-label=line] path") == len(mean) == 4
    assert count(page, "#test-chart g[aria-label=dot] :is(circle, path)") == sum(len(c["points"]) for c in mean)
    assert count(page, "#metrics svg") == len(data["metrics"])
    assert count(page, "#length-chart g[aria-label=rect] rect") > 20
    assert all(r.startswith(("file:", "data:")) for r in page.requests)
    assert sum(r.startswith("file:") for r in page.requests) == 1


def test_the_base_is_a_level_at_its_accuracy(show):
    page = show()
    y = page.run("""(() => {
      const svg = document.querySelector('#train-chart svg');
      const rule = [...svg.querySelectorAll('g[aria-label=rule] line')].find(
        (l) => l.closest('g').getAttribute('stroke') === 'var(--base)');
      const ticks = [...svg.querySelectorAll('g[aria-label="y-axis tick label"] text')];
      const middle = (box) => box.y + box.height / 2;
      const at = (label) => middle(ticks.find((t) => t.textContent === label).getBoundingClientRect());
      const here = rule.getBoundingClientRect();
      return (at('0%') - here.y) / (at('0%') - at('100%'));
    })()""")
    assert y == pytest.approx(0.344, abs=0.01)


def test_the_axis_can_be_tokens(show):
    page = show()
    assert "FLOPs of training" in text(page, "#train-chart")
    assert "10¹³" in text(page, "#train-chart")
    click(page, "input[name=x-axis][value=tokens]")
    for chart in ("#train-chart", "#test-chart"):
        assert "tokens" in text(page, chart) and "FLOPs" not in text(page, chart)
    assert "1M" in text(page, "#train-chart")
    assert page.problems == []


def test_lines_can_be_hidden_and_shown(show):
    page = show()
    before = count(page, "#train-chart g[aria-label=line] path")
    click(page, "#train-panel .chips button")
    assert count(page, "#train-chart g[aria-label=line] path") == before - 1
    assert page.run("document.querySelector('#train-panel .chips button').ariaPressed") == "false"
    click(page, "#train-panel .chips button")
    assert count(page, "#train-chart g[aria-label=line] path") == before
    # all of them hidden is no error either
    page.run("document.querySelectorAll('#train-panel .chips button').forEach((b) => b.click())")
    assert "No point to draw" in text(page, "#train-chart") and page.problems == []


def test_the_test_curve_of_each_task(show):
    page = show()
    assert "+4.0 points" in text(page, "#test-fit")
    mean = page.run("document.querySelector('#test-chart g[aria-label=line] path').getAttribute('d')")
    select(page, "#test-task", "maze")
    assert mean != page.run("document.querySelector('#test-chart g[aria-label=line] path').getAttribute('d')")
    assert count(page, "#test-chart g[aria-label=line] path") == 4 and page.problems == []


def test_hovering_shows_a_point(show):
    page = show()
    spot = page.run("""(() => {
      const dot = document.querySelector('#test-chart g[aria-label=dot] circle');
      dot.scrollIntoView({block: 'center'});
      const r = dot.getBoundingClientRect();
      return [r.x + r.width / 2, r.y + r.height / 2];
    })()""")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=spot[0], y=spot[1], pointerType="mouse")
    page.wait(lambda: page.run("document.querySelector('#test-chart g[aria-label=tip]').textContent"))
    tip = page.run("document.querySelector('#test-chart g[aria-label=tip]').textContent")
    assert " votes" in tip and "FLOPs" in tip and "n=2,000" in tip


# ------------------------------------------------------------------------------------------------- thoughts


def test_opens_on_a_question_that_was_learned_and_marks_its_lines(show):
    page = show()
    assert text(page, "#pick-count") == "1 of 2"
    assert "a=7;b=a+15" in text(page, ".question")
    assert (count(page, ".thought.before li.ok"), count(page, ".thought.before li.bad")) == (1, 2)
    assert (count(page, ".thought.after li.ok"), count(page, ".thought.after li.bad")) == (5, 1)
    assert (count(page, ".thought.after .badge.check"), count(page, ".thought.after .badge.backtrack")) == (2, 1)
    assert "22*3 is 66" in text(page, ".thought.before .why")
    assert text(page, ".thought.after footer").endswith("right")


def test_picking_by_task_and_outcome(show):
    page = show()
    select(page, "#pick-outcome", "")
    assert text(page, "#pick-count") == "1 of 8"
    select(page, "#pick-task", "matrix")
    assert text(page, "#pick-count") == "1 of 1"
    assert "It answered without a thought." in text(page, ".thought.before")
    assert "could not be judged" in text(page, ".thought.after")
    # an outcome that the task does not have cannot be chosen, and a choice that is gone falls back to all
    assert page.run("document.querySelector('#pick-outcome option[value=fixed]').disabled") is True
    select(page, "#pick-task", "chain")
    select(page, "#pick-outcome", "broken")
    assert text(page, "#pick-count") == "1 of 1" and text(page, ".thought.before footer").endswith("right")
    select(page, "#pick-task", "maze")
    assert page.run("document.querySelector('#pick-outcome').value") == ""


def test_keyboard_walks_through_the_questions(show):
    page = show()
    select(page, "#pick-outcome", "")
    page.run("document.querySelector('#pick-next').focus()")
    for _ in range(3):
        page.press("ArrowRight")
    assert text(page, "#pick-count") == "4 of 8"
    page.press("ArrowLeft")
    assert text(page, "#pick-count") == "3 of 8"
    for _ in range(20):
        page.press("ArrowRight")
    assert text(page, "#pick-count") == "8 of 8"
    assert page.run("document.querySelector('#pick-next').disabled") is True


# ------------------------------------------------------------------------------------------------- safety


def test_hostile_text_does_not_run(show):
    page = show(hostile())
    page.run("document.querySelectorAll('.chips button').forEach((b) => b.click())")
    page.run("document.querySelectorAll('.chips button').forEach((b) => b.click())")
    for outcome in ("", "fixed"):
        select(page, "#pick-outcome", outcome)
        for _ in range(8):
            click(page, "#pick-next")
    assert count(page, "img") == 0 and count(page, "script") == 4
    assert page.run("'owned' in window") is False
    assert HOSTILE.split("\u2028")[0] in text(page, ".thought.after")  # shown as it is
    assert page.problems == []


def test_markup_would_not_run_even_if_it_got_in(show):
    page = show()
    page.run("document.body.insertAdjacentHTML('beforeend', '<img src=data:x onerror=\"window.owned = 1\">')")
    page.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.owned = 1'}))")
    page.wait(lambda: len(page.problems) >= 2)
    refused = [p for p in page.problems if "security policy" in p.lower() or "script-src" in p]
    assert len(refused) >= 2, page.problems
    assert page.run("'owned' in window") is False


# ------------------------------------------------------------------------------------------------- layout

OVERLAPS = """(() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    const labels = [...svg.querySelectorAll('text')].filter((t) => t.textContent && !t.closest('[aria-label=tip]'));
    const boxes = labels.map((t) => [t.textContent, t.getBoundingClientRect()]);
    for (const [i, [a, p]] of boxes.entries())
      for (const [b, q] of boxes.slice(i + 1))
        if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 3 && q.top < p.bottom - 3)
          found.push([a, b]);
    const page = document.documentElement.clientWidth;
    for (const [a, p] of boxes) if (p.left < 0 || p.right > page) found.push([a, 'outside']);
  }
  return found;
})()"""


@pytest.mark.parametrize("width", [360, 390, 700, 1280, 2000])
def test_no_overlap_and_no_sideways_scrolling(show, width):
    page = show(width=width)
    for unit in ("flops", "tokens"):
        click(page, f"input[name=x-axis][value={unit}]")
        assert page.run(OVERLAPS) == [], unit
        assert page.run("document.documentElement.scrollWidth") <= width


def test_long_words_and_many_tasks_do_not_break_the_layout(show):
    data: Any = report()
    data["thoughts"][0]["question"] = "x" * 500
    data["thoughts"][0]["after"]["lines"] = [
        {"text": "y" * 800, "ok": False, "kind": "backtrack", "why": "z" * 300}
    ] * 90
    data["command"] = "mull rl " + "-o a=" + "b" * 400
    data["title"] = "t" * 200
    tasks = [c for c in data["train"] if c["role"] == "task"]
    data["train"] += [{**copy.deepcopy(tasks[0]), "name": f"a task with a long name, number {i}"} for i in range(12)]
    page = show(data, width=360)
    assert page.run("document.documentElement.scrollWidth") <= 360
    assert page.run("document.querySelector('.thought.after ol').clientHeight") <= 460


def test_resizing_draws_again(show):
    page = show(width=1280)
    before = page.run("document.querySelector('#train-chart svg').clientWidth")
    page.call("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=1, mobile=False)
    page.wait(lambda: page.run("document.querySelector('#train-chart svg').getAttribute('width')") != str(before))
    page.wait(lambda: page.run("document.documentElement.scrollWidth") <= 420)
    assert page.run(OVERLAPS) == [] and page.problems == []


def test_dark_mode_and_print(show):
    page = show(dark=True)
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    pdf = base64.b64decode(page.call("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") >= 2
    page.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert count(page, "#train-chart svg") == 1
    assert page.run("getComputedStyle(document.querySelector('details')).display") == "none"
    assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.call("Emulation.setEmulatedMedia", media="")


def test_everything_has_a_name_for_screen_readers(show):
    page = show()
    nameless = page.run("""[...document.querySelectorAll('button, select, input, svg[role=img]')].filter((e) =>
      !(e.ariaLabel || e.innerText || e.closest('label')?.innerText)).map((e) => e.outerHTML.slice(0, 80))""")
    assert nameless == []
    label = page.run("document.querySelector('#train-chart svg').ariaLabel")
    assert "mean of tasks: from" in label and "before training: 34.4%" in label
    assert count(page, "h1") == 1


# -------------------------------------------------------------------------------------------- thin data


def test_a_scorers_opinion_and_the_truth_are_on_one_chart(show):
    data: Any = report()
    data["opinion"] = opinion()
    page = show(data, width=700)
    lines = page.run("""[...document.querySelectorAll('#opinion .chart g[aria-label=line]')].map(
      (g) => g.getAttribute('stroke') + (g.getAttribute('stroke-dasharray') ?? ''))""")
    assert sorted(lines) == sorted(["var(--check)", "var(--check)6 4", "var(--trained)", "var(--trained)"])
    label = page.run("document.querySelector('#opinion svg[role=img]').ariaLabel")
    assert "the scorer's opinion: from 30.0% to 90.0%" in label and "right answers: from 20.0% to 1.5%" in label
    assert page.run(OVERLAPS) == [] and "The truth: 24.0%, then 4.5%" in text(page, "#opinion .note")
    assert page.run("[...document.querySelectorAll('#opinion .key')].map((k) => k.innerText)") == [
        "the scorer's opinion",
        "right answers",
    ]
    data["opinion"] = {"steps": [1], "scorer": [0.5], "truth": [None]}  # no answer could be judged
    page = show(data, width=360)
    assert count(page, "#opinion .chart svg") == 1 and page.run("document.documentElement.scrollWidth") <= 360
    assert count(show(report()), "#opinion") == 0


def test_a_run_with_almost_nothing(show):
    data: Any = report()
    nothing = {"mean": None, "low": 0.0, "high": 1.0, "n": 0}
    data["pass_at_1"] = {"base": nothing, "trained": nothing, "gain": None, "controls": []}
    for key in ("train", "test", "thoughts", "behaviours", "metrics", "ledger"):
        data[key] = []
    data["lengths"] = {"before": [], "after": []}
    page = show(data)
    assert "No point to draw" in text(page, "#train-chart") and "No point to draw" in text(page, "#test-chart")
    assert "No thoughts were kept." in text(page, "#thought-view")


def test_one_point_zero_compute_and_gaps(show):
    data: Any = report()
    data["train"] = [{**data["train"][0], "points": data["train"][0]["points"][:2]}]  # the first has zero FLOPs
    data["test"] = [{**data["test"][0], "points": copy.deepcopy(data["test"][0]["points"])}]
    data["test"][0]["points"][3]["accuracy"] = None
    data["metrics"] = [{"name": "reward", "unit": "share", "steps": [1], "values": [0.5]}]
    data["metrics"].append({"name": "entropy", "unit": "", "steps": [1, 2], "values": [None, None]})
    data["lengths"] = {"before": [7, 7, 7], "after": [7]}
    page = show(data)
    assert count(page, "#train-chart g[aria-label=dot] circle") == 1
    assert count(page, "#test-chart g[aria-label=dot] circle") == 6
    assert page.run("document.querySelector('#test-task').hidden") is True
