"""The conversation of `mull chat`: lines in, turns and commands out, and what Ctrl-C means when.

While the model thinks, the first Ctrl-C asks for an answer now and the second stops this turn; while it answers, the
first one stops it. At the prompt it leaves. Where nobody types (a pipe) it ends the program, as anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import TypeVar

from mull.cli.chat_models import Answer, Talker, Wants
from mull.cli.chat_screen import Screen, numbers, votes
from mull.errors import UserError, nearest
from mull.serve.plan import WORDS

T = TypeVar("T")

TICK = 0.2  # seconds between two looks at the clock
HELP = {
    "/effort LEVEL": f"think less or more: {', '.join(WORDS)}",
    "/new": "begin another conversation",
    "/numbers": "what the last answer cost",
    "/votes": "which answers its branches came to",
    "/help": "this",
    "/quit": "leave, as Ctrl-D does",
}
COMMANDS = [line.split()[0] for line in HELP]


def converse(talker: Talker, wants: Wants, about: str = "") -> int:
    """Until there are no more lines, or /quit; the exit code, which is 2 where a question of a pipe failed."""
    typed = sys.stdin.isatty()
    screen = Screen(terminal=typed and sys.stdout.isatty())
    with asyncio.Runner() as runner:
        runner.run(talker.open())
        try:
            talker.check(wants)
            talk = Talk(talker, wants, screen, runner, typed)
            if typed:
                effort = f" · effort {wants.effort}" if wants.effort else ""
                screen.say(f"{about or talker.name}{effort} · /help")
            for line in lines(screen, typed):
                if not talk.take(line):
                    break
        finally:
            runner.run(talker.close())
    return 0 if typed or not talk.failed else 2


def lines(screen: Screen, typed: bool) -> Iterator[str]:
    """What is typed, or what comes out of a pipe, without empty lines."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    if not typed:
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # lines can be edited, and found again with the arrow keys
    while True:
        try:
            if screen.terminal:
                line = input("> ")
            else:  # input would write the prompt among the answers
                print("> ", end="", file=sys.stderr, flush=True)
                line = input()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if line.strip():
            yield line.strip()


class Talk:
    """A conversation and what was said last in it."""

    def __init__(self, talker: Talker, wants: Wants, screen: Screen, runner: asyncio.Runner, typed: bool):
        self.talker, self.wants, self.screen, self.runner, self.typed = talker, wants, screen, runner, typed
        self.messages: list[dict[str, str]] = []
        self.last: Answer | None = None
        self.turn = 0
        self.failed = False

    def take(self, line: str) -> bool:
        """One line: a command or a question. False: the conversation is over."""
        if not re.match(r"/[a-z]+(\s|$)", line):
            self.runner.run(self._ask(line))
            return True
        command, _, rest = line.partition(" ")
        match command, rest.strip():
            case "/quit" | "/exit", "":
                return False
            case "/help", "":
                self._print(f"{name:15}{what}" for name, what in HELP.items())
            case "/new", "":
                self.messages, self.last = [], None
                self.screen.say("a new conversation")
            case "/effort", level:
                if level in WORDS:
                    self.wants.effort = level
                    self.screen.say(f"effort {level}" + (", which --strategy overrides" if self.wants.strategy else ""))
                else:
                    self._complain(f"/effort wants one of {', '.join(WORDS)}{nearest(level, WORDS)}")
            case (("/numbers" | "/votes"), ""):
                if self.last is None:
                    self._complain("there is no answer yet")
                else:
                    self._print((numbers if command == "/numbers" else votes)(self.last))
            case _, more:
                known = command in COMMANDS and more
                said = f"{command} takes nothing behind it" if known else f"no such command: {command}"
                self._complain(f"{said}{'' if known else nearest(command, COMMANDS)}; see /help")
        return True

    def _print(self, told) -> None:
        for line in told:
            self.screen.out.print(line)

    def _complain(self, sentence: str) -> None:
        self.failed = True
        self.screen.complain(sentence)

    # ------------------------------------------------------------------------------------------ one turn

    async def _ask(self, question: str) -> None:
        self.messages.append({"role": "user", "content": question})
        self.turn += 1
        work, hurry, answer = asyncio.ensure_future(self._told()), None, None

        async def answer_now() -> None:
            self.screen.hurried()
            if not await self.talker.answer_now():
                work.cancel()

        def interrupt() -> None:
            nonlocal hurry
            if self.screen.thinking and hurry is None:
                hurry = asyncio.ensure_future(answer_now())
            else:
                work.cancel()

        problem = ""
        with on_interrupt(interrupt) if self.typed else contextlib.nullcontext():
            self.screen.begin()  # in here: who sees that it thinks may press Ctrl-C at once
            try:
                answer = await work
            except asyncio.CancelledError:
                if (me := asyncio.current_task()) is not None and me.cancelling():  # not the turn, the program is ended
                    raise
            except UserError as mistake:
                problem = str(mistake)
            finally:
                for task in (work, *([hurry] if hurry else [])):
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                self.screen.end(answer)
        if problem:
            self._complain(problem)
        elif answer is None:
            self.screen.say("(stopped)")
        elif not answer.content:
            self._complain("the answer is empty" + (": its tokens ran out" if answer.finish == "length" else ""))
        self.last = answer or self.last
        if said := self.screen.answer:
            self.messages.append({"role": "assistant", "content": answer.content if answer else said})
        else:
            self.messages.pop()

    async def _told(self) -> Answer:
        told = self.talker.ask(list(self.messages), self.wants, self.turn)
        async with aclosing(told), aclosing(ticking(told, TICK)) as events:
            async for event in events:
                if event is None:
                    self.screen.tick()
                    continue
                self.screen.tell(event)
                if isinstance(event, Answer):
                    return event
        raise AssertionError("a turn ends with its answer")


async def ticking(events: AsyncGenerator[T], seconds: float) -> AsyncGenerator[T | None]:
    """The events, and None whenever none has come for so many seconds."""
    pending: asyncio.Future | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(events, None))
            await asyncio.wait({pending}, timeout=seconds)
            if not pending.done():
                yield None
                continue
            event, pending = pending.result(), None
            if event is None:
                return
            yield event
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


@contextlib.contextmanager
def on_interrupt(call: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls this, in the running event loop, and nothing else."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGINT, call)
    except NotImplementedError:  # Windows
        before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(call))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
