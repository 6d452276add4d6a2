from __future__ import annotations

import doctest
import io
import os
import re
import subprocess
import sys
import time
from typing import Any

import pytest

import mull.progress
from mull.progress import Progress, duration, printable, sparkline

NASTY = "[bold]not markup[/bold] [/] [link=file:///x] \x1b[2J\x1b]0;title\x07 \u202ebackwards \x9b31m\x00"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def progress(clock: Clock, **kwargs: Any) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress("rl", kwargs.pop("total", 100), file=out, clock=clock, **kwargs), out


def drive(shown: Progress, clock: Clock, steps: range, seconds: float = 1.0) -> None:
    for step in steps:
        clock.now += seconds
        shown.update(step, reward=step / 100, length=87.4, tokens_per_s=12_345.0, entropy=None)


def test_doctests():
    assert doctest.testmod(mull.progress).failed == 0


def test_plain_lines_come_every_so_many_seconds_with_the_first_and_the_last():
    clock = Clock()
    shown, out = progress(clock, every=10, total=35)
    with shown:
        drive(shown, clock, range(1, 36))
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/35", "11/35", "21/35", "31/35", "35/35"]
    assert lines[1] == "rl 11/35  reward 0.110  length 87  12.3k tok/s  0:24 left"
    assert "left" not in lines[-1]


def test_the_last_state_is_shown_when_the_loop_breaks_off():
    clock = Clock()
    shown, out = progress(clock, every=1000)
    with pytest.raises(KeyError), shown:
        drive(shown, clock, range(1, 8))
        raise KeyError
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/100", "7/100"]


def test_time_left_follows_the_recent_speed_and_a_resumed_run_counts_from_its_start():
    clock = Clock()
    shown, _ = progress(clock, start=40)
    assert shown.seconds_left() is None
    drive(shown, clock, range(41, 51), seconds=2.0)
    assert shown.seconds_left() == pytest.approx(2.0 * 50)
    clock = Clock()
    shown, _ = progress(clock, total=1000)
    drive(shown, clock, range(1, 101), seconds=10.0)  # slow at first
    drive(shown, clock, range(101, 201), seconds=0.5)
    assert shown.seconds_left() == pytest.approx(0.5 * 800)


def test_quiet_prints_only_what_is_important():
    clock = Clock()
    shown, out = progress(clock, mode="quiet")
    with shown:
        drive(shown, clock, range(1, 101), seconds=60)
        shown.sample("q", "t", "a")
        shown.say("checkpoint written")
        shown.say("the run collapsed", important=True)
    assert out.getvalue() == "the run collapsed\n"


def test_model_text_is_shown_literally_in_plain_lines():
    clock = Clock()
    shown, out = progress(clock)
    with shown:
        shown.sample(NASTY, "line one\nline two " + NASTY, NASTY, correct=False)
        shown.say(NASTY)
        shown.update(1, note=NASTY)
    text = out.getvalue()
    assert "[bold]not markup[/bold] [/]" in text and "(wrong)" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert len(text.splitlines()) == 3


def test_the_live_panel_shows_everything_and_no_foreign_control_codes():
    clock = Clock()
    shown, out = progress(clock, mode="live")
    with shown:
        drive(shown, clock, range(1, 51))
        shown.sample("3+4=?", NASTY, "[red]7", correct=True)
        shown.say("saved [1]")
        drive(shown, clock, range(51, 101))
    text = out.getvalue()
    assert "step 100/100" in text and "reward 1.000" in text and "12.3k tok/s" in text and "0:50 left" in text
    assert "3+4=?" in text and "[bold]not markup[/bold] [/]" in text and "→ [red]7 (right)" in text
    assert "saved [1]" in text
    assert "\x1b[2J" not in text and "\x1b]0;title" not in text and "\u202e" not in text and "\x00" not in text
    assert "\x1b[?25h" in text  # the cursor is given back


def test_the_cursor_comes_back_when_the_loop_fails():
    clock = Clock()
    shown, out = progress(clock, mode="live")
    with pytest.raises(KeyError), shown:
        raise KeyError
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def test_live_redraws_are_rationed():
    clock = Clock()
    shown, out = progress(clock, mode="live", total=10**6)
    with shown:
        drive(shown, clock, range(1, 2), seconds=1)
        before = len(out.getvalue())
        drive(shown, clock, range(2, 1000), seconds=0.0001)  # less than one redraw's time altogether
        assert len(out.getvalue()) == before


def test_a_terminal_gets_the_panel_and_a_pipe_gets_lines():
    assert Progress("x", 1, file=io.StringIO()).mode == "plain"
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        assert Progress("x", 1, file=terminal).mode == "live"
        assert Progress("x", 1, file=terminal, mode="plain").mode == "plain"
    os.close(ours)


def test_a_file_that_cannot_hold_unicode_gets_replacements_and_no_error():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    with Progress("rl", 2, file=out) as shown:
        shown.sample("é", "→", "x")
        shown.update(1, reward=0.5)
    assert b"rl 1/2  reward 0.500" in raw.getvalue()


def test_a_step_costs_next_to_nothing():
    clock = Clock()
    shown, _ = progress(clock, total=10**9)
    began = time.process_time()
    drive(shown, clock, range(1, 20_001), seconds=1e-6)
    assert (time.process_time() - began) / 20_000 < 1e-3


def test_small_words():
    assert printable("tab\there\r\nnext") == "tab here\nnext"
    assert duration(float("inf")) == "?" and duration(float("nan")) == "?" and duration(-1) == "?"
    assert sparkline([1.0, 1.0], 5) == "▁▁" and len(sparkline([0.1 * i for i in range(1000)], 60)) == 60


def test_rich_is_imported_only_where_it_is_drawn():
    code = (
        "import sys, mull.progress\nwith mull.progress.Progress('x', 1) as p: p.update(1)\nprint('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["x 1/1", "False"]
