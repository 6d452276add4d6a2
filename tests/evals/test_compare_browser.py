"""What a browser makes of the compare page. Skipped, and said so, where no Chromium is installed."""

import json
from typing import Any

import pytest

from mull.evals.compare_page import write_compare
from tests.evals import chromium
from tests.evals.compare_fixture import NS, STRATEGIES, example_data, tree
from tests.evals.test_compare_page import hostile
from tests.evals.test_report import HOSTILE
from tests.evals.test_report_browser import OVERLAPS, click, count, select, text

pytestmark = chromium.needed

VIEWER = "document.getElementById('tree-canvas').viewer"


@pytest.fixture
def show(browser, tmp_path):
    """Writes a page, opens it, and checks that its scripts ran to their end without an error."""

    def show(data: Any = None, **window):
        browser.open(write_compare(data or example_data(), tmp_path / "compare.html"), **window)
        assert browser.problems == []
        assert browser.run("document.documentElement.dataset.ready") == "yes"
        return browser

    yield show
    assert browser.problems == []


def type_into(browser, selector: str, value: str) -> None:
    browser.run(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
        " e.dispatchEvent(new Event('input')); })()"
    )


def state(browser) -> dict[str, Any]:
    return browser.run(f"{VIEWER}.state()")


def mouse(browser, kind: str, x: float, y: float, **more: Any) -> None:
    browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, pointerType="mouse", **more)


def box(browser, selector: str) -> list[float]:
    """left, top, right, bottom in the window"""
    return browser.run(
        f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
        " return [r.left, r.top, r.right, r.bottom]; })()"
    )


def middle(browser, selector: str) -> tuple[float, float]:
    """The middle of an element that is first scrolled into the window."""
    browser.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
    left, top, right, bottom = box(browser, selector)
    return (left + right) / 2, (top + bottom) / 2


def click_step(browser, i: int, times: int = 1) -> None:
    browser.run("document.getElementById('tree-canvas').scrollIntoView({block: 'center'})")
    x, y = browser.run(f"{VIEWER}.place({i})")
    for n in range(1, times + 1):
        mouse(browser, "mousePressed", x, y, button="left", buttons=1, clickCount=n)
        mouse(browser, "mouseReleased", x, y, button="left", clickCount=n)


# ------------------------------------------------------------------------------------------------ accuracy


def test_every_strategy_is_drawn_and_nothing_is_fetched(show):
    page = show()
    assert count(page, "#accuracy-chart .series .line") == len(STRATEGIES)
    assert count(page, "#accuracy-chart .series .band") == len(STRATEGIES)
    assert count(page, "#accuracy-chart .series .dot") == len(STRATEGIES) * len(NS)
    assert (count(page, "#accuracy-chart .prediction"), count(page, "#accuracy-chart .observed")) == (3, 2)
    assert page.run(
        "[...document.querySelectorAll('.prediction')].every((e) => e.getAttribute('fill') === 'var(--panel)')"
    )
    assert count(page, "#scorer-charts .multiple") == 4 and count(page, "#scorer-charts svg[role=img]") == 7
    assert count(page, "#difficulty-chart g[aria-label=dot] :is(circle, path)") == 5 * len(STRATEGIES)
    assert all(r.startswith(("file:", "data:")) for r in page.requests)
    assert sum(r.startswith("file:") for r in page.requests) == 1


def test_a_point_lies_where_its_numbers_are(show):
    page = show()
    found = page.run("""(() => {
      const ticks = [...document.querySelectorAll('#accuracy-chart .axis:not(.x) .tick')];
      const middle = (e) => { const r = e.getBoundingClientRect(); return r.y + r.height / 2; };
      const at = (label) => middle(ticks.find((t) => t.textContent === label).querySelector('text'));
      const dots = document.querySelectorAll('.series[data-strategy="majority"] .dot');
      return [...dots].map((d) => 0.4 + 0.4 * (at('40%') - middle(d)) / (at('40%') - at('80%')));
    })()""")
    curve = next(c for c in example_data()["curves"] if (c["strategy"], c["task"]) == ("majority", "mean"))
    assert found == pytest.approx([p["accuracy"] for p in curve["points"]], abs=0.004)


def test_oracle_is_labelled_and_is_no_strategy(show):
    page = show()
    assert "not a strategy" in text(page, "#reference-key")
    assert "picks by the reference answer, not a strategy" in page.run(
        "document.querySelector('.oracle text').textContent"
    )
    assert "oracle" not in text(page, "#strategies") and count(page, "#reference-key button") == 0
    assert page.run("getComputedStyle(document.querySelector('.oracle')).pointerEvents") == "none"
    assert page.run("document.querySelector('.oracle path').getAttribute('stroke-dasharray')") == "6 4"
    # the pointer on the curve, away from every strategy's points, selects nothing; nor do the keys
    spot = page.run("""(() => {
      const svg = document.querySelector('#accuracy-chart svg');
      svg.scrollIntoView({block: 'center'});
      const path = document.querySelector('.oracle path');
      const p = path.getPointAtLength(path.getTotalLength()), box = svg.getBoundingClientRect();
      return [box.x + p.x, box.y + p.y];
    })()""")
    mouse(page, "mouseMoved", *spot)
    assert "oracle" not in page.run("document.querySelector('.tip').textContent")
    assert page.run("[...document.querySelectorAll('.series')].every((g) => g.dataset.strategy !== 'oracle pass@k')")
    page.run("document.querySelector('#accuracy-chart svg').focus()")
    names = set()
    for _ in range(2 * len(STRATEGIES)):
        page.press("ArrowDown")
        names.add(page.run("document.querySelector('.tip strong').textContent"))
    assert names == set(STRATEGIES)


def test_hover_and_keys_show_a_point_in_full(show):
    page = show()
    mouse(page, "mouseMoved", *middle(page, '.series[data-strategy="revision, critic"] .dot:last-child'))
    tip = text(page, ".tip")
    for part in ("revision, critic", "64 samples", "%", " to ", "n=400", "FLOPs", "tokens"):
        assert part in tip
    assert page.run("document.querySelector('.series.active').dataset.strategy") == "revision, critic"
    mouse(page, "mouseMoved", 5, 5)
    assert page.run("document.querySelector('.tip').hidden") and count(page, ".series.active") == 0
    page.run("document.querySelector('#accuracy-chart svg').focus()")
    page.press("ArrowRight")
    assert "majority" in text(page, ".tip") and "1 sample:" in text(page, ".tip")
    page.press("ArrowRight")
    assert "2 samples:" in text(page, ".tip")


def test_a_prediction_says_what_was_published_and_found(show):
    page = show()
    mouse(page, "mouseMoved", *middle(page, '.series[data-strategy="beam, PRM"] .prediction'))
    tip = text(page, ".tip")
    assert "predicted" in tip and "published 2026-11-21" in tip and "the interval" in tip


def test_strategies_can_be_hidden_and_shown(show):
    page = show()
    click(page, "#strategies button")
    assert count(page, ".series") == len(STRATEGIES) - 1
    assert page.run("document.querySelector('#strategies button').ariaPressed") == "false"
    click(page, "#show-none")
    assert count(page, ".series") == 0 and count(page, ".oracle path") == 1
    click(page, "#strategies li:nth-child(3) button")
    assert page.run("getComputedStyle(document.querySelector('.series .band')).opacity") == "0.13"  # few: bands for all
    click(page, "#show-all")
    assert count(page, ".series") == len(STRATEGIES)


def test_tasks_and_units(show):
    page = show()
    mean = page.run("document.querySelector('.series .line').getAttribute('d')")
    select(page, "#accuracy-task", "countdown")
    assert page.run("document.querySelector('.series .line').getAttribute('d')") != mean
    assert count(page, "#accuracy-chart .prediction") == 0  # they are about the mean
    select(page, "#accuracy-task", "mean")
    assert "+" in text(page, "#strategies button b") and count(page, "#strategies button b") == len(STRATEGIES)
    click(page, "input[name=x-axis][value=tokens]")
    assert "tokens per question" in text(page, "#accuracy-chart")
    assert count(page, ".series") == len(STRATEGIES) and count(page, ".prediction") == 0  # they are about FLOPs
    select(page, "#scorer-task", "chain")
    select(page, "#difficulty-task", "countdown")
    select(page, "#difficulty-budget", "about 4 samples' compute")
    assert "about 4 samples" in page.run("document.querySelector('#difficulty-chart svg').ariaLabel")


# --------------------------------------------------------------------------------------------------- trees


def test_a_tree_is_opened_and_a_step_read(show):
    page = show()
    assert state(page)["steps"] == 41 and state(page)["shown"] == 41
    data = example_data()["trees"][0]
    step = next(i for i, n in enumerate(data["nodes"]) if n["ok"] is False and i != data["winner"])
    click_step(page, step)
    assert state(page)["chosen"] == step
    panel = text(page, "#node-panel")
    assert data["nodes"][step]["text"].strip() in text(page, "#node-panel pre")
    assert f"{data['nodes'][step]['score']:.3f}" in panel and "a false line" in panel and "stop" in panel
    path, at = [], step
    while at >= 0:
        path.insert(0, data["nodes"][at]["text"].strip())
        at = data["nodes"][at]["parent"]
    shown = page.run("[...document.querySelectorAll('#node-panel ol button')].map((b) => b.textContent)")
    assert shown == path
    click(page, "#node-panel ol button")
    assert state(page)["chosen"] == 0 and "Prompt" in text(page, "#node-panel h3")


def test_the_tree_is_really_painted(show):
    page = show()
    x, y = page.run(f"{VIEWER}.place(4)")
    step, corner = page.run(f"""(() => {{
      const canvas = document.getElementById('tree-canvas'), box = canvas.getBoundingClientRect();
      {VIEWER}.time();
      const image = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      const alpha = (x, y) => image.data[4 * (Math.round(y) * canvas.width + Math.round(x)) + 3];
      return [alpha({x} - box.x, {y} - box.y), alpha(3, 3)];
    }})()""")
    assert (step, corner) == (255, 0)


def test_search_finds_steps_and_jumps(show):
    page = show()
    select(page, "#tree-select", "1")
    data = example_data()["trees"][1]
    hits = [i for i, n in enumerate(data["nodes"]) if "wait" in n["text"].lower()]
    assert len(hits) > 3
    type_into(page, "#step-query", "wAiT")
    assert text(page, "#step-count") == f"{len(hits)} hits" and state(page)["hits"] == len(hits)
    click(page, "#step-next")
    assert state(page)["chosen"] == hits[0] and text(page, "#step-count") == f"1 of {len(hits)}"
    click(page, "#step-previous")
    assert state(page)["chosen"] == hits[-1]
    left, top, right, bottom = box(page, "#tree-canvas")
    x, y = page.run(f"{VIEWER}.place({hits[-1]})")
    assert left < x < right and top < y < bottom
    # a hit that is folded away is unfolded
    click(page, "#collapse-others")
    page.run("document.querySelector('#step-query').focus()")
    page.press("Enter")
    assert state(page)["chosen"] in hits
    type_into(page, "#step-query", "no such step")
    assert text(page, "#step-count") == "no hit" and page.run("document.querySelector('#step-next').disabled")


def test_folding_by_mouse_button_and_key(show):
    page = show()
    data = example_data()["trees"][0]

    def below(i):
        return sum(1 + below(j) for j, n in enumerate(data["nodes"]) if n["parent"] == i)

    inner = next(i for i in range(1, 41) if below(i) > 2)
    before = page.run(f"{VIEWER}.place({inner})")
    click_step(page, inner, times=2)
    assert state(page)["shown"] == 41 - below(inner)
    scrolled = page.run(f"{VIEWER}.place({inner})")
    assert scrolled[0] == pytest.approx(before[0], abs=1)  # it stays in place
    assert text(page, "#node-panel .fold") == "Unfold"
    click(page, "#node-panel .fold")
    assert state(page)["shown"] == 41
    page.run("document.getElementById('tree-canvas').focus()")
    page.press("Enter")
    assert state(page)["shown"] == 41 - below(inner)
    click(page, "#expand-all")
    assert state(page)["shown"] == 41
    click(page, "#collapse-others")
    assert state(page)["shown"] < 41 and state(page)["chosen"] >= 0


def test_keys_walk_the_tree(show):
    page = show()
    nodes = example_data()["trees"][0]["nodes"]
    winner = example_data()["trees"][0]["winner"]
    assert state(page)["chosen"] == winner
    page.run("document.getElementById('tree-canvas').focus()")
    page.press("ArrowLeft")
    assert state(page)["chosen"] == nodes[winner]["parent"]
    page.press("ArrowRight")
    assert state(page)["chosen"] == winner  # along the winner's path
    for _ in range(9):
        page.press("ArrowLeft")
    assert state(page)["chosen"] == 0
    page.press("ArrowRight")
    page.press("ArrowDown")
    page.press("ArrowUp")
    assert nodes[state(page)["chosen"]]["parent"] == 0
    zoom = state(page)["k"]
    page.press("+")
    page.wait(lambda: state(page)["k"] > zoom)
    page.press("w")
    assert state(page)["chosen"] == winner


def test_trees_are_chosen_by_strategy_task_answer_and_question(show):
    page = show()
    assert text(page, "#tree-count") == "1 of 6"
    select(page, "#tree-strategy", "MCTS, PRM")
    assert text(page, "#tree-count") == "1 of 2" and state(page)["steps"] == 240
    select(page, "#tree-task", "countdown")
    assert text(page, "#tree-count") == "1 of 1" and state(page)["steps"] == 90
    select(page, "#tree-outcome", "wrong")
    assert text(page, "#tree-count") == "none" and page.run("document.getElementById('viewer').hidden")
    for picker in ("strategy", "task", "outcome"):
        select(page, f"#tree-{picker}", "")
    type_into(page, "#tree-query", "A=3;")
    assert text(page, "#tree-count") == "1 of 1" and "a=3;" in text(page, "#tree-facts pre")
    assert "its budget ran out" in text(page, "#tree-facts")
    type_into(page, "#tree-query", "")
    click(page, "#tree-next")
    assert text(page, "#tree-count") == "2 of 6" and state(page)["steps"] == 240


def test_five_thousand_steps_open_and_pan_smoothly(show):
    data: Any = example_data()
    data["trees"] = [tree(0, "MCTS, PRM", 5000)]
    page = show(data)
    assert state(page)["steps"] == 5000 and state(page)["shown"] < 500  # folded around the winner's path
    click(page, "#expand-all")
    assert state(page)["shown"] == 5000
    page.run("document.getElementById('tree-canvas').scrollIntoView({block: 'center'})")

    def median_of_frames():
        return sorted(page.run(f"Array.from({{length: 15}}, () => {VIEWER}.time())"))[7]

    # milliseconds of script for a frame, all drawn without a GPU on what may be a busy machine
    assert median_of_frames() < 40 and 10 < state(page)["inView"] < 500
    click(page, "#zoom-fit")
    assert median_of_frames() < 200 and state(page)["inView"] == 5000
    click(page, "#go-winner")
    before = state(page)
    left, top, _, _ = box(page, "#tree-canvas")
    mouse(page, "mousePressed", left + 300, top + 40, button="left", buttons=1, clickCount=1)
    for step in range(1, 11):
        mouse(page, "mouseMoved", left + 300 - 6 * step, top + 40 + 20 * step, button="left", buttons=1)
    mouse(page, "mouseReleased", left + 240, top + 240, button="left")
    after = state(page)
    assert (after["x"] - before["x"], after["y"] - before["y"]) == pytest.approx((-60, 200), abs=1)


def test_odd_trees(show):
    """No scores and no visits; several roots; a long chain; scores that are no probabilities; nothing at all."""
    data: Any = example_data()
    plain, roots, chain = (tree(i, "majority", 12) for i in range(3))
    for n in plain["nodes"]:
        n.update(score=None, visits=0, logprob=None, stop=None, ok=None)
    for n in roots["nodes"]:
        n["parent"] = -1
    roots["nodes"][3]["score"] = -7.5
    chain["nodes"] = [
        {**chain["nodes"][1], "parent": i - 1, "text": "w" * 900 if i % 2 else "宽" * 40} for i in range(300)
    ]
    chain.update(winner=-1, leaves=[{"node": 299, "answer": "", "correct": None}])
    empty = {**tree(3, "majority", 5), "nodes": [], "leaves": [], "winner": -1}
    data["trees"] = [plain, roots, chain, empty]
    page = show(data)
    for i, steps in enumerate((12, 12, 300, 0)):
        select(page, "#tree-select", str(i))
        assert state(page)["steps"] == state(page)["shown"] == steps
        page.run(f"{VIEWER}.time()")
    for key in ("trees",):
        data[key] = []
    assert text(show(data), "#tree-count") == "none"


# ---------------------------------------------------------------------------------------------- the rest


def test_right_answers_by_wrong_reasoning(show):
    page = show()
    assert text(page, "#wrong-count") == "1 of 8"
    assert (count(page, "#wrong-view li.bad"), count(page, "#wrong-view li.ok")) == (1, 2)
    assert "3+5 is 8" in text(page, "#wrong-view .why")
    select(page, "#wrong-selector", "beam, PRM")
    assert text(page, "#wrong-count") == "1 of 2" and text(page, "#wrong-view header h3") == "beam, PRM"
    click(page, "#wrong-next")
    assert text(page, "#wrong-count") == "2 of 2" and page.run("document.querySelector('#wrong-next').disabled")


def test_the_table_of_points_sorts(show):
    page = show()
    page.run("document.querySelector('#points-details').open = true")

    def column(i):
        return page.run(f"[...document.querySelectorAll('#points tbody tr')].map((r) => r.cells[{i}].dataset.v)")

    before = column(3)
    click(page, "#points thead th:nth-child(4) button")
    assert column(3) == sorted(before, key=float)
    assert page.run("document.querySelector('#points thead th:nth-child(4)').ariaSort") == "ascending"
    click(page, "#points thead th:nth-child(4) button")
    assert column(3) == sorted(before, key=float, reverse=True)
    click(page, "#points thead th:nth-child(1) button")
    names = column(0)
    assert sorted(names, key=str.lower)[0] == names[0] and len(set(names[:21])) == 1


def test_hostile_text_does_not_run(show):
    page = show(hostile())
    for button in ("#tree-next", "#wrong-next", "#expand-all", "#step-next"):
        click(page, button)
    page.run(
        "document.querySelectorAll('#strategies button').forEach((b) => b.dispatchEvent(new Event('pointerenter')))"
    )
    page.run("document.querySelector('#accuracy-chart svg').focus()")
    page.press("ArrowRight")
    click_step(page, 0)
    assert count(page, "img") == 0 and count(page, "script") == 4
    assert page.run("'owned' in window") is False
    shown = HOSTILE.split("\u2028")[0]
    assert shown in text(page, "#node-panel") and shown in text(page, "#wrong-view") and shown in text(page, "h1")


@pytest.mark.parametrize("width", [360, 700, 1280, 2000])
def test_no_overlap_and_no_sideways_scrolling(show, width):
    page = show(width=width)
    for unit in ("flops", "tokens"):
        click(page, f"input[name=x-axis][value={unit}]")
        assert page.run(OVERLAPS) == [], unit
        assert page.run("document.documentElement.scrollWidth") <= width


def test_resizing_and_dark_mode_draw_again(show):
    page = show(width=1280)
    before = page.run("document.querySelector('#accuracy-chart svg').clientWidth")
    page.call("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=2, mobile=False)
    page.wait(lambda: page.run("document.querySelector('#accuracy-chart svg').getAttribute('width')") != str(before))
    page.wait(lambda: page.run("document.documentElement.scrollWidth") <= 420)
    width, css = page.run(
        "(() => { const c = document.getElementById('tree-canvas'); return [c.width, c.clientWidth]; })()"
    )
    assert width == pytest.approx(2 * css, abs=2)
    page = show(dark=True)
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"


def test_everything_has_a_name_for_screen_readers(show):
    page = show()
    nameless = page.run("""[...document.querySelectorAll('button, select, input, canvas, svg[role=img]')].filter((e) =>
      !(e.ariaLabel || e.textContent.trim() || e.closest('label')?.textContent.trim())).map((e) => e.outerHTML)""")
    assert nameless == []
    label = page.run("document.querySelector('#accuracy-chart svg').ariaLabel")
    assert "majority: from" in label and "which is not a strategy" in label
    assert "41 steps" in page.run("document.getElementById('tree-canvas').ariaLabel") and count(page, "h1") == 1


def test_a_run_with_almost_nothing(show):
    data: Any = example_data()
    for key in (
        "curves",
        "references",
        "predictions",
        "scorers",
        "difficulty",
        "latency",
        "fits",
        "trees",
        "strategies",
    ):
        data[key] = []
    data["wrong_reasoning"] = {"rows": [], "traces": []}
    page = show(data)
    assert "No point to draw" in text(page, "#accuracy-chart") and "No scorer was used." in text(page, "#scorers")
    data = example_data()
    for c in data["curves"]:
        c["points"] = c["points"][:1]
    data["curves"][0]["points"][0]["accuracy"] = None
    data["references"], data["predictions"] = [], []
    data["scorers"] = [{**data["scorers"][0], "points": data["scorers"][0]["points"][:1]}]
    page = show(data)
    assert count(page, ".series .dot") == len(STRATEGIES) - 1
