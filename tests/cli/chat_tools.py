"""What tests of `mull chat` stand on: a local model to talk to, the events of a turn, and lines typed by a test."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from mull.cli.chat_loop import Talk
from mull.cli.chat_models import Local, Wants
from mull.cli.chat_screen import Screen
from mull.serve.job import Delta
from mull.serve.service import Service
from tests.serve.tools import QUESTION

TALK = [{"role": "user", "content": QUESTION}]


def local(service: Service, calibration: str = "") -> Local:
    return Local("nano", service.main.tools, calibration)


def told_by(talker: Any, wants: Wants | None = None, messages: Any = None, turn: int = 1) -> list[Any]:
    """All events of one turn."""

    async def run() -> list[Any]:
        await talker.open()
        try:
            talker.check(wants or Wants())
            return [event async for event in talker.ask(messages or TALK, wants or Wants(), turn)]
        finally:
            await talker.close()

    return asyncio.run(run())


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


class Talks:
    """A conversation without a terminal, whose lines come from a test."""

    def __init__(self, talker: Any, wants: Wants, typed: bool = True):
        self.runner = asyncio.Runner()
        self.screen = Screen(terminal=False)
        self.talk = Talk(talker, wants, self.screen, self.runner, typed)

    def interrupt(self, *after: float) -> None:
        """Ctrl-C, so many seconds from now."""
        for seconds in after:
            self.runner.get_loop().call_later(seconds, signal.raise_signal, signal.SIGINT)


@contextlib.contextmanager
def talking(talker: Any, wants: Wants | None = None) -> Iterator[Talks]:
    talks = Talks(talker, wants or Wants("low"))
    try:
        talks.runner.run(talker.open())
        yield talks
    finally:
        talks.runner.run(talker.close())
        talks.runner.close()


def said(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()
