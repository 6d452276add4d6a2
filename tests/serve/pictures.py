"""Takes the pictures of the page that the docs show: python -m tests.serve.pictures docs/img"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from mull.serve.service import Service
from tests.evals import chromium
from tests.serve.beside import changed, two_service
from tests.serve.pace import paced, paced_service
from tests.serve.tools import serving
from tests.serve.watching import Page

TRAINED = Path("runs/rl-against-sft/chain/rl-0/model")  # what runs/rl_against_sft.sh makes of nano
SHARP = 1.5  # pixels of a picture for one of the page
WINDOW = {"width": 1280, "height": 700}  # of the picture with two models


def advanced(page: Page, *values: str) -> None:
    """Strategy, samples and seed of the one side."""
    page.click(".buttons button", "Advanced")
    page.until("!!document.querySelector('.advanced')")
    for field, value in zip(
        ("select", "label:nth-of-type(2) input", "label:nth-of-type(4) input"), values, strict=True
    ):
        page.fill(f".advanced {field}", value)
    page.click(".buttons button", "Advanced")


def example(page: Page, task: int, level: str) -> None:
    page.fill(f".example:nth-child({task}) select", level)
    page.click(f".example:nth-child({task}) .example-ask")
    page.until("document.querySelector('.answer')?.dataset.state === 'thinking'")


def sharp(page: Page, width: int, height: int) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=SHARP, mobile=False)
    page.call("Emulation.setScrollbarsHidden", hidden=True)


def checkpoints(scratch: Path) -> Service:
    """nano and a model that it was trained to be, where there is one; else nano with noise on its weights."""
    name, model = ("rl-0", TRAINED) if TRAINED.exists() else ("noisy", changed(scratch / "noisy", 0.02))
    return paced(two_service(model, name, effort="medium", think_tokens=160, answer_tokens=24), 0.01)


def two_models(page: Page, **window: bool) -> None:
    """The same problem to both, with the votes of both to be seen."""
    page.open(**WINDOW, **window)
    sharp(page, *WINDOW.values())
    page.click("nav button", "Compare")
    page.click(".buttons button", "Advanced")
    page.until("document.querySelectorAll('.advanced').length === 2")
    for side in (1, 2):
        page.fill(f".advanced:nth-child({side}) label:nth-of-type(4) input", "1")
    page.click(".buttons button", "Advanced")
    example(page, 2, "1")
    page.ended(300)
    page.tab("Votes")
    page.run("document.querySelectorAll('.line')[0].click()")
    page.run("[...document.querySelectorAll('[role=tab]')].find((e) => e.textContent === 'Votes').click()")
    page.until("document.querySelectorAll('.votes').length === 2")


def main(folder: Path) -> None:
    binary = chromium.find()
    if binary is None:
        sys.exit("no Chromium or Chrome on this machine: nothing was taken")
    folder.mkdir(parents=True, exist_ok=True)
    browser = chromium.Browser(binary)
    try:
        with serving(paced_service(0.01, thoughts="shown", think_tokens=160, max_seconds=300)) as served:
            page = Page(browser, served.url).open(width=1280, height=980)
            sharp(page, 1280, 980)
            advanced(page, "beam", "16", "1")
            example(page, 3, "2")
            page.tab("Search tree")
            page.ended(300)
            page.picture(folder / "serve-light.png")

            page.open(width=1280, height=860, dark=True)
            sharp(page, 1280, 860)
            page.effort("high")
            advanced(page, "", "", "1")
            example(page, 1, "3")
            page.tab("Search tree")
            page.until("/ ([6-9]|1\\d)\\/\\d+ branches/.test(document.querySelector('.line').textContent)", 300)
            page.picture(folder / "serve-dark.png")
            page.press("Escape")
            page.ended()

            page.open(width=1280, height=860)
            sharp(page, 1280, 860)
            page.click("nav button", "Compare")
            page.effort("low", 0)
            page.effort("high", 1)
            page.click(".buttons button", "Advanced")
            page.until("document.querySelectorAll('.advanced').length === 2")
            for side in (1, 2):
                page.fill(f".advanced:nth-child({side}) label:nth-of-type(4) input", "1")
            page.click(".buttons button", "Advanced")
            example(page, 1, "2")
            page.ended(300)
            page.run("document.querySelectorAll('.line')[0].click()")
            page.tab("Votes")
            page.picture(folder / "serve-compare.png")

            page.open(width=390, height=844)
            sharp(page, 390, 844)
            page.effort("high")
            advanced(page, "", "", "1")
            example(page, 3, "1")
            page.ended(300)
            page.tab("Votes")
            page.picture(folder / "serve-narrow.png")
        with tempfile.TemporaryDirectory() as scratch, serving(checkpoints(Path(scratch))) as served:
            page = Page(browser, served.url)
            two_models(page)
            page.picture(folder / "serve-models.png")
    finally:
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
