"""What `mull chat` prints: the line while it thinks, what stays of it, and a model's text as text alone.

(What a real terminal sees is in test_chat_terminal.py.)
"""

from __future__ import annotations

import doctest
import io
import sys

import pytest

from mull.cli import chat_screen
from mull.cli.chat_models import Answer
from mull.cli.chat_screen import Screen, numbers, spent, thinking_line, votes
from mull.serve.job import Delta, Progress, Thought


def test_doctests():
    assert doctest.testmod(chat_screen).failed == 0


def test_the_line_and_what_stays_of_it():
    assert thinking_line(3.9, None) == "Thinking 3 s"
    assert thinking_line(65, Progress(812, 900, 0, 1, 65)) == "Thinking 1 min 5 s · 812/900 tokens"
    assert thinking_line(2, None, hurried=True) == "Answering now 2 s"
    assert spent(Answer("4"), 3.04, True) == "Thought for 3.0 s"
    assert spent(Answer("4", completion=3, reasoning=0), 0.2, False) == "Answered in 0.2 s · 3 tokens"
    known = {"early": "asked", "exhausted": True, "wanted": 32, "samples": 8, "ignored": ["temperature"]}
    assert spent(Answer("4", "length", reasoning=1234, statistics=known), 61, True) == (
        "Thought for 1 min 1 s · 1,234 tokens · answered early · budget exhausted · room for 8 of 32 branches"
        " · cut off · not obeyed: temperature"
    )
    assert numbers(Answer("4")) == ["the server does not say what it cost"]
    assert votes(Answer("4", statistics={"votes": [{"answer": "4\n5", "count": 12}, {"answer": "6", "count": 3}]})) == [
        "12 × 4 5",
        " 3 × 6",
    ]


def test_a_models_text_is_no_control_code_and_no_markup(capsys: pytest.CaptureFixture[str]):
    screen = Screen(terminal=False)
    screen.begin()
    for event in (
        Thought("\x1b[2Jdim\u202e\n"),
        Delta("[bold]a\x1b]0;title\x07"),
        Delta("\x9b31mb :smile:"),
        Answer(""),
    ):
        screen.tell(event)
    screen.end(Answer("", statistics={"early": "a\x1bsked"}))
    out, err = capsys.readouterr()
    assert out == "[bold]a\ufffd]0;title\ufffd\ufffd31mb :smile:\n"
    assert err.startswith("\ufffd[2Jdim\ufffd\n") and "a\ufffdsked" in err and "\x1b" not in err


def test_what_cannot_be_encoded_is_printed_all_the_same(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    screen = Screen(terminal=True)
    screen.begin()
    screen.tell(Delta("4 · ä"))
    screen.end(Answer("4", reasoning=3))
    sys.stdout.flush()
    assert b"4 ? ?\n" in raw.getvalue() and b"tokens" in raw.getvalue()
