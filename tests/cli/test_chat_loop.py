"""`mull chat`'s conversations: what the next turn is asked with, commands, Ctrl-C, and questions from a pipe."""

from __future__ import annotations

import io
import signal
import sys
import threading
import time
from typing import Any

import pytest

from mull.cli.chat_loop import converse
from mull.cli.chat_models import Wants
from mull.engine.scripted import Script
from mull.serve.service import Service
from tests.cli.chat_tools import local, said, talking
from tests.serve.tools import QUESTION, nano_service, scripted_service, thinking

# ------------------------------------------------------------------------------------------------ conversations


def test_a_conversation_is_what_the_next_turn_is_asked_with(capsys: pytest.CaptureFixture[str]):
    service = scripted_service(thinking("t\n", "4"))
    sampler: Any = service.main.tools.sampler
    with talking(local(service)) as talks:
        assert talks.talk.take("first?") and talks.talk.take("and /then?")
        assert [m["content"] for m in talks.talk.messages] == ["first?", "4", "and /then?", "4"]
        prompt = service.main.tools.chat.decode(sampler.calls[-1].prefix)
        assert "first?" in prompt and "and /then?" in prompt and prompt.count("t\n") <= 1  # no earlier thought
        assert talks.talk.take("/new") and talks.talk.take("third?")
        assert "first?" not in service.main.tools.chat.decode(sampler.calls[-1].prefix)
        assert len(talks.talk.messages) == 2
    out, err = said(capsys)
    assert out == ["4", "4", "4"] and sum("Thought for" in line for line in err) == 3


def test_commands(capsys: pytest.CaptureFixture[str]):
    service = scripted_service(thinking("t\n", "4"))
    with talking(local(service)) as talks:
        for line in ("/numbers", "/effort hihg", "/votse", "/new now", "/help", "/effort medium", "/etc/x is 4?"):
            assert talks.talk.take(line)
        out, err = said(capsys)
        assert out[-1] == "4" and [line.split()[0] for line in out[:-1]] == [
            *("/effort", "/new", "/numbers", "/votes", "/help", "/quit"),
        ]
        assert err[0] == "error: there is no answer yet"
        assert err[1].startswith("error: /effort wants one of none,") and err[1].endswith("did you mean 'high'?")
        assert err[2] == "error: no such command: /votse; did you mean '/votes'?; see /help"
        assert err[3] == "error: /new takes nothing behind it; see /help" and err[4] == "effort medium"
        assert talks.talk.last is not None and talks.talk.last.statistics["effort"] == "medium"
        assert talks.talk.take("/votes") and talks.talk.take("/numbers")
        out, _ = said(capsys)
        [vote, *figures] = out
        assert vote.endswith(" × 4") and figures[0] == "effort   medium: adaptive, 8 branches"
        assert {line.split()[0] for line in figures} >= {"effort", "prompt", "thought", "answer", "time"}
        assert not talks.talk.take("/quit")


def test_what_a_question_came_to_is_forgotten_where_it_failed(capsys: pytest.CaptureFixture[str]):
    with talking(local(nano_service())) as talks:
        assert talks.talk.take("why? " * 300)
        assert talks.talk.messages == [] and talks.talk.failed and talks.talk.take(QUESTION)
        assert len(talks.talk.messages) == 2
    assert said(capsys)[1][0].startswith("error: the conversation has")


# ------------------------------------------------------------------------------------------------------- Ctrl-C


def slow(script: Script, seconds: float) -> Service:
    return scripted_service(script, seconds=seconds)


def test_ctrl_c_answers_now_and_twice_it_stops_and_the_conversation_goes_on(capsys: pytest.CaptureFixture[str]):
    service = slow(thinking("t\n", "4"), 1.5)
    with talking(local(service)) as talks:
        begun = time.monotonic()
        talks.interrupt(0.2)
        talks.talk.take("one?")
        assert talks.talk.last is not None and talks.talk.last.statistics["early"] == "asked"
        assert 1.5 < time.monotonic() - begun < 2.9  # its thought was not waited for
        talks.interrupt(0.2, 0.4)
        begun = time.monotonic()
        talks.talk.take("two?")
        assert time.monotonic() - begun < 1.4
        assert [m["content"] for m in talks.talk.messages] == ["one?", "4"] and talks.talk.turn == 2
        talks.talk.take("three?")
        assert [m["content"] for m in talks.talk.messages] == ["one?", "4", "three?", "4"]
    out, err = said(capsys)
    assert out == ["4", "4"] and any("answered early" in line for line in err) and "(stopped)" in err


def test_ctrl_c_at_the_moment_that_thinking_is_shown_answers_now():
    service = slow(thinking("t\n", "4"), 1.0)
    with talking(local(service)) as talks:
        begin = talks.screen.begin

        def shown_and_pressed() -> None:
            begin()
            signal.raise_signal(signal.SIGINT)

        talks.screen.begin = shown_and_pressed  # type: ignore[method-assign]
        talks.talk.take("one?")
        assert talks.talk.last is not None and talks.talk.last.statistics["early"] == "asked"


def test_a_pipe_that_is_interrupted_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one?\ntwo?\n"))
    threading.Timer(0.5, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)).start()
    service = slow(thinking("t\n", "4"), 30.0)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        converse(local(service), Wants("low"))
    assert time.monotonic() - begun < 20


# -------------------------------------------------------------------------------------------------------- pipes


def test_questions_from_a_pipe_give_answers_alone(monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\nfirst?\n   \n/effort medium\nsecond?\r\n/votes"))
    service = scripted_service(thinking("t\n", "4"))
    assert converse(local(service), Wants("low")) == 0
    out, err = said(capsys)
    assert out[:2] == ["4", "4"] and out[2].endswith(" × 4") and len(out) == 3
    assert [line.split(" · ")[0].split()[0] for line in err] == ["Thought", "effort", "Thought"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("/nothing\nq?\n"))
    assert converse(local(service), Wants("low")) == 2  # something failed, and the rest was answered
    assert said(capsys)[0] == ["4"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert converse(local(service), Wants("low")) == 0 and said(capsys) == ([], [])


def test_a_pipe_with_invalid_utf8_is_read(monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe?\n"), encoding="utf-8"))
    service = scripted_service(thinking("t\n", "4"))
    assert converse(local(service), Wants("low")) == 0 and said(capsys)[0] == ["4"]
