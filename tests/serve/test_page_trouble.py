"""The page when things go wrong, and for those who see or use it differently: refusals, keys, hostile text, a server
that goes away, large trees, screen readers, dark mode. Skipped, and said so, where no Chromium is installed."""

from __future__ import annotations

import pytest

from tests.evals import chromium
from tests.serve.pace import paced_service
from tests.serve.tools import QUESTION, nano, nano_service, scripted_service, serving
from tests.serve.watching import NAMELESS, Page

pytestmark = chromium.needed

THINKING = "document.querySelector('.answer')?.dataset.state === 'thinking'"
HOSTILE = '<img src=x onerror="window.owned=1"></textarea><script>window.owned=2</script>\u2028&amp;${1}'


@pytest.fixture(scope="module")
def server():
    with serving(paced_service(thoughts="shown", effort="medium")) as served:
        yield served


@pytest.fixture
def page(browser, server):
    page = Page(browser, server.url).open()
    yield page
    assert browser.problems == []


def open_page(browser, served, **options) -> Page:
    return Page(browser, served.url).open(**options)


# ------------------------------------------------------------------------------------------------- refusals


def test_who_finds_no_room_is_told_how_long_to_wait(browser):
    """With room for one and no queue, the first side is served and the second is sent away."""
    with serving(paced_service(max_sequences=1, queue=0, effort="low")) as served:
        page = open_page(browser, served)
        page.click("nav button", "Compare")
        page.effort("low", 1)
        page.ask(QUESTION)
        page.ended()
        states = page.run("[...document.querySelectorAll('.answer')].map((a) => a.dataset.state)")
        assert sorted(states) == ["done", "failed"]
        assert "try again later" in page.text(".failed p") and page.count(".failed [role=alert]") == 1
        waits = "document.querySelector('.failed button').textContent"
        page.until(f"{waits} === 'Try again'", 70)  # it has counted down
        page.click(".failed button")
        page.until("document.querySelectorAll('.answer[data-state=done]').length === 2")
    assert all("429" in problem for problem in browser.problems) and browser.problems  # the browser's own word on it


def test_a_narrowed_search_says_so(browser):
    with serving(paced_service(0.005, max_sequences=2, queue_seconds=0.3, effort="medium")) as served:
        page = open_page(browser, served)
        page.ask(QUESTION)
        page.ended()
        assert "fan-out reduced from 8 to 2" in page.texts(".chips .note")
        page.tab("Numbers")
        assert "2, reduced from 8" in page.texts(".facts dd")


def test_what_cannot_be_asked_is_one_sentence(page, browser):
    page.ask("word " * 2000)
    page.ended()
    assert page.state == "failed" and "new conversation has room" in page.text(".failed p")
    page.click("nav button", "New")
    page.until("!!document.querySelector('.example')")
    assert page.count(".turn") == 0
    assert all("400" in problem for problem in browser.problems)
    browser.problems.clear()


def test_a_server_that_goes_away_in_the_middle(browser):
    with serving(paced_service(0.1)) as served:
        page = open_page(browser, served)
        page.effort("high")
        page.ask(QUESTION)
        page.until(THINKING)
    page.ended(60)
    assert page.state == "failed" and "broke off" in page.text(".failed p") and "mull serve" in page.text(".failed p")
    page.click(".failed button")
    page.until("document.querySelector('.failed p')?.textContent.includes('cannot be reached')")


def test_a_key_is_asked_for_and_kept_for_this_tab(browser, tmp_path):
    (tmp_path / "keys").write_text("open-sesame\n")
    with serving(nano_service(keys=tmp_path / "keys", effort="none")) as served:
        page = Page(browser, served.url).open(ready=".keyfield")
        assert page.count(".example") == page.count(".failed") == 0
        for key, found in (("wrong", ".failed"), ("open-sesame", ".example")):
            page.fill("#key", key)
            page.click(".keyfield button")
            page.until(f"!!document.querySelector('{found}')")
        assert page.count(".keyfield") == page.count(".failed") == 0
        page.run("(() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; })()")
        page.ask("1+1=?")
        page.ended()
        assert page.state == "done"
        page.click(".foot button", "Copy as curl")
        page.until("'copied' in window")
        assert "$MULL_API_KEY" in page.run("copied") and "sesame" not in page.run("copied")
        page.reload()  # the key is remembered
        assert page.run("Object.keys(localStorage).length") == 0
        assert page.run("Object.values(sessionStorage).join()") == "open-sesame"
    assert all("401" in problem for problem in browser.problems)


# ------------------------------------------------------------------------------------------------- safety


def test_hostile_text_stays_text(browser):
    def script(prefix):
        text = nano()[1].decode(prefix)
        if text.endswith("</think>"):
            return HOSTILE
        return None if text.endswith(HOSTILE) else f"{HOSTILE}\n{HOSTILE}</think>"

    made = scripted_service(script, thoughts="shown", think_tokens=400, answer_tokens=200)
    with serving(made) as served:
        page = open_page(browser, served)
        page.click(".buttons button", "Advanced")
        page.fill(".advanced select", "vote")
        page.fill(".advanced input[max='64']", "3")
        page.ask(HOSTILE)
        page.ended()
        for tab in ("Summary", "Search tree", "Thought", "Votes", "Numbers"):
            page.tab(tab)
            assert page.count("#app img") == page.count("#app script") == 0
        page.tab("Votes")
        assert page.text(".votes th[scope=row]") == page.text(".question p") == HOSTILE
        assert page.text(".answer .text").strip() == HOSTILE
        assert page.run("'owned' in window") is False
    assert browser.problems == [] and all(r.startswith(f"{served.url}/") for r in browser.requests)


def test_the_browser_itself_holds_the_page_to_its_server(page, browser):
    """The policy works: what the page's own code never does is refused when something else tries."""
    blocked = page.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
    assert blocked == "refused" and any("Content Security Policy" in p for p in browser.problems)
    for attempt in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.head.append(Object.assign(document.createElement('script'), { text: 'window.owned = 1' }))",
        "document.body.setAttribute('onclick', 'window.owned = 2')",
        "eval('window.owned = 3')",
        "setTimeout('window.owned = 4')",
    ):
        # in a task of its own, because the debugger's may evaluate strings
        tried = f"try {{ {attempt}; done('done'); }} catch {{ done('refused'); }}"
        assert page.run(f"new Promise((done) => setTimeout(() => {{ {tried} }}))") == "refused", attempt
    page.click("body")
    assert page.run("'owned' in window") is False and page.count(".example") > 0
    browser.problems.clear()


# ------------------------------------------------------------------------------------------------ large trees


def test_thousands_of_nodes(page):
    """A beam's tree of 5,000 steps: laid out once, all in view at first, legible where one zooms in."""
    page.ask("1+1=?")
    page.until(THINKING)
    page.tab("Search tree")
    page.press("Escape")
    page.ended()
    page.run("""(async () => {
      const { makeTree } = await import('./mull/assets/tree.js');
      const canvas = document.querySelector('canvas');
      canvas.viewer.close();
      const nodes = new Map();
      for (let id = 0; id < 5000; id++) {
        const parent = id < 40 ? -1 : Math.min(Math.floor(id / 1.05) - 38, id - 1);
        const score = (id % 101) / 100;
        nodes.set(id, { id, parent, tokens: 1 + (id % 40), answer: id > 4900, score, text: `step ${id}` });
      }
      const won = new Set([4999]);
      window.tree = { nodes, running: [], won, pruned: new Set([7]), winner: 4999, changed: 1 };
      for (let at = 4999; at >= 0; at = nodes.get(at).parent) won.add(at);
      canvas.viewer = makeTree(canvas, (id) => { window.picked = id; });
      canvas.viewer.show(tree);
    })()""")
    state = "document.querySelector('canvas').viewer.state()"
    page.until(f"{state}.seen === 5001")
    assert page.run(f"{state}.cost") < 2000  # milliseconds, on a machine that is busy otherwise
    frames = page.run("""new Promise((done) => {
      const viewer = document.querySelector('canvas').viewer, times = [];
      const step = (last) => requestAnimationFrame((now) => {
        if (last) times.push(now - last);
        if (times.length === 20) return done(times.sort((a, b) => a - b)[10]);
        viewer.zoomBy(1.05);
        step(now);
      });
      step(0);
    })""")
    assert frames < 250  # the median of frames while it is zoomed, on a busy machine without a GPU
    page.run("document.querySelector('canvas').viewer.goWinner()")
    page.until(f"{state}.chosen === 4999 && {state}.zoom > 5")
    assert 0 < page.run(f"{state}.seen") < 1500 and page.run("picked") == 4999
    box = page.run("(({left, right}) => [left, right])(document.querySelector('canvas').getBoundingClientRect())")
    x, y = page.run("document.querySelector('canvas').viewer.where(4999)")
    assert box[0] < x < box[1] and y > 0


# ------------------------------------------------------------------------------------------ seen and heard


def test_dark_mode_is_the_system_s_until_one_chooses(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.run(ground) == "rgb(251, 250, 248)"
    page.open(dark=True)
    assert page.run(ground) == "rgb(21, 23, 26)"
    page.run("document.querySelector('[aria-label=\"Dark mode\"]').click()")
    page.until(f"{ground} === 'rgb(251, 250, 248)'")
    page.reload(dark=True)
    assert page.run(ground) == "rgb(251, 250, 248)"
    assert page.run("document.querySelector('[aria-label=\"Dark mode\"]').ariaPressed") == "false"


def test_a_screen_reader_hears_little_and_enough(page):
    page.run("""(() => {
      window.heard = [];
      const status = document.querySelector('[role=status]');
      const note = new MutationObserver(() => heard.push(status.textContent));
      note.observe(status, { childList: true, characterData: true, subtree: true });
    })()""")
    page.ask(QUESTION)
    page.until(THINKING)
    assert page.run(NAMELESS) == []
    page.ended()
    page.until("heard.at(-1).startsWith('Thought for')")
    heard = page.run("heard")
    assert len(heard) <= 4 and heard[0] == "Thinking." and f"Answer: {page.text('.answer .text').strip()}" in heard[-1]
    assert page.run("document.querySelector('[role=status]').ariaLive") == "polite"
    for tab in ("Search tree", "Votes", "Numbers"):
        page.tab(tab)
        assert page.run(NAMELESS) == []
    names, controls = page.run("""(() => {
      const panel = document.querySelector('[role=tabpanel]');
      const tab = document.querySelector('[role=tab][aria-selected=true]');
      return [[panel.getAttribute('aria-labelledby'), tab.id], [tab.getAttribute('aria-controls'), panel.id]];
    })()""")
    assert names[0] == names[1] and controls[0] == controls[1]
    assert page.count("h1") == 1 and page.run("document.documentElement.lang") == "en"
    assert page.count("[role=tab][tabindex='0']") == 1


def test_movement_stops_where_it_is_not_wanted(page):
    page.ask(QUESTION)
    page.until("!!document.querySelector('.pulse')")
    moving = "getComputedStyle(document.querySelector('.pulse')).animationName"
    assert page.run(moving) == "pulse"
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    page.until(f"{moving} === 'none'", 10)
    page.press("Escape")
    page.ended(20)


def test_the_newest_weights_are_named_beside_their_answer(browser):
    """After a hot swap the page says which weights a side was answered by."""
    service = paced_service(0.002, effort="low")
    with serving(service) as served:
        page = open_page(browser, served)
        page.click("nav button", "Compare")
        service.main.tools.sampler.policy_version = 3  # type: ignore[misc]
        page.ask(QUESTION)
        page.ended()
        assert page.texts(".answer .column")[0] == "A low effort, weights 3"


def test_a_strict_server_is_offered_what_it_takes(browser):
    with serving(paced_service(0.002, params="strict_o1", effort="low")) as served:
        page = open_page(browser, served)
        assert page.texts(".switch span") == ["Low", "Medium", "High"]
        page.click(".buttons button", "Advanced")
        page.until("!!document.querySelector('.advanced')")
        assert "Temperature" not in page.text(".advanced")
        page.ask(QUESTION)
        page.ended()
        assert page.state == "done" and browser.problems == []
