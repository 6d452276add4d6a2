"""The page in a browser, as its tests use it: ask, wait, click, press keys. See `tests/evals/chromium.py`."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.evals.chromium import Browser

CODES = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38}
CODES |= {"ArrowRight": 39, "ArrowDown": 40}
TEXTS = {"Enter": "\r", " ": " "}
ENDED = "['done', 'failed', 'stopped'].includes"
# The page's seeds, 1, 2, …: some of nano's thoughts are empty, and a test must not meet one now and then.
SEEDS = "(() => { let seed = 0; crypto.getRandomValues = (array) => array.fill(++seed); })()"
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Elements that a screen reader would announce without a name.
NAMELESS = """[...document.querySelectorAll(
    'button, select, input, textarea, canvas, progress, [role=tablist], svg[role=img]')]
  .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent.trim()))
  .map((e) => e.outerHTML)"""


class Page:
    """A page of one server in the browser."""

    def __init__(self, browser: Browser, url: str):
        self.browser, self.url = browser, url
        self.run, self.wait, self.call = browser.run, browser.wait, browser.call

    def open(self, ready: str = ".example", **window: Any) -> Page:
        """Loads it anew, with nothing remembered of earlier visits."""
        self.browser.visit(f"{self.url}/", **window)
        self.run("(() => { localStorage.clear(); sessionStorage.clear(); })()")
        return self.reload(ready, **window)

    def reload(self, ready: str = ".example", **window: Any) -> Page:
        self.browser.visit(f"{self.url}/", **window)
        self.until(f"!!document.querySelector({json.dumps(ready)})")
        self.run(SEEDS)
        return self

    # ------------------------------------------------------------------------------------------------ reading

    def until(self, expression: str, seconds: float = 90) -> None:
        self.wait(lambda: self.run(expression), seconds)

    def count(self, selector: str) -> int:
        return self.run(f"document.querySelectorAll({json.dumps(selector)}).length")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''")

    def texts(self, selector: str) -> list[str]:
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")

    @property
    def line(self) -> str:
        """The newest thinking line."""
        return self.run("[...document.querySelectorAll('.line .words')].at(-1)?.textContent ?? ''")

    @property
    def focused(self) -> str:
        said = "`${tagName}.${className} ${ariaLabel ?? ''}`"
        return self.run(f"(({{tagName, className, ariaLabel}}) => {said})(document.activeElement)")

    @property
    def state(self) -> str:
        """Of the first answer."""
        return self.run("document.querySelector('.answer')?.dataset.state")

    def ended(self, seconds: float = 120) -> None:
        """Waits for every answer."""
        all_of_them = "[...document.querySelectorAll('.answer')]"
        self.until(f"{all_of_them}.length && {all_of_them}.every((a) => {ENDED}(a.dataset.state))", seconds)
        self.until("!!document.querySelector('button.send[aria-label=Ask]')")

    # ------------------------------------------------------------------------------------------------- acting

    def click(self, selector: str, text: str = "") -> None:
        """Clicks the last element that the selector finds, with this text where one is given."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        self.until(f"{found}.some((e) => e.textContent.includes({json.dumps(text)}))")
        self.run(f"{found}.findLast((e) => e.textContent.includes({json.dumps(text)})).click()")

    def mouse(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def fill(self, selector: str, value: str) -> None:
        """Sets a field or a choice as a user would."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            " for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true})); })()"
        )

    def press(self, key: str, shift: bool = False) -> None:
        """A key with all that the browser's own handling needs: Tab moves, Enter sends, Space presses."""
        number = CODES.get(key, ord(key[0].upper()))
        code = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": number}
        typed = TEXTS.get(key, key if len(key) == 1 else "")
        more = {"text": typed} if typed and not shift else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", modifiers=8 * shift, **code, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", modifiers=8 * shift, **code)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def tab_to(self, found: Callable[[str], bool], most: int = 60) -> None:
        """Tab until what has the focus is found."""
        for _ in range(most):
            self.press("Tab")
            if found(self.focused):
                return
        raise AssertionError(f"the Tab key does not lead there; it is at {self.focused}")

    def effort(self, level: str, side: int = 0) -> None:
        self.click(f"input[name=effort-{side}][value={level}]")

    def ask(self, text: str) -> None:
        self.run("document.getElementById('question').focus()")
        self.type(text)
        self.press("Enter")
        self.until("!!document.querySelector('.answer')")

    def tab(self, title: str) -> None:
        """Opens a tab of the newest answer."""
        if self.run("[...document.querySelectorAll('.line')].at(-1).ariaExpanded") != "true":
            self.click(".line")
        self.click(".answer [role=tab]", title)
        chosen = "[...document.querySelectorAll('[role=tab][aria-selected=true]')].at(-1)?.textContent"
        self.until(f"{chosen} === {json.dumps(title)}")
        if title == "Search tree":
            self.until("!![...document.querySelectorAll('canvas')].at(-1)?.viewer")

    def picture(self, path: Path) -> None:
        time.sleep(0.4)  # until movements have come to rest
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
