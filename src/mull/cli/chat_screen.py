"""How `mull chat` looks: a line that is redrawn while the model thinks, the summary above it, then the answer.

In a terminal everything is on it. Elsewhere (a pipe, a file) answers alone are on stdout, and what is about them on
stderr. A model's text is never printed as markup or control codes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mull.cli.chat_models import Answer, Told
from mull.progress import printable
from mull.serve.job import Delta, Progress, Thought
from mull.serve.summary import Section

EARLY = {"asked": "answered early", "time": "time was up", "lost": "the model was lost"}


class Screen:
    """One turn at a time: `begin`, `tell` for every event, `tick` where none comes, `end`."""

    def __init__(self, terminal: bool, clock: Callable[[], float] = time.monotonic):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # some cannot print a middle dot
        plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}
        self.out = Console(file=sys.stdout, **plain)
        self.about = self.out if terminal else Console(file=sys.stderr, **plain)
        self.terminal, self._clock = terminal, clock
        self.thinking = False  # nothing of an answer has come yet
        self.answer = ""  # as far as it was printed
        self._live: Live | None = None

    def say(self, text: str, style: str = "dim") -> None:
        """A line about the conversation."""
        self.about.print(Text(printable(text), style))

    def complain(self, sentence: str) -> None:
        if self.terminal:
            self.say(sentence, "red")
        else:
            self.about.print(Text(f"error: {printable(sentence)}"))

    # ------------------------------------------------------------------------------------------ one turn

    def begin(self) -> None:
        self.thinking, self.answer = True, ""
        self._began, self._thought_for = self._clock(), 0.0
        self._progress: Progress | None = None
        self._thought = self._rest = ""  # of a raw thought: whether there was one, and a line that has not ended
        self._hurried = False
        if self.terminal and not self.out.is_dumb_terminal:
            self._live = Live(
                self._line(),
                console=self.out,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start(refresh=True)
        elif self.terminal:
            self.say("Thinking…")

    def tell(self, event: Told) -> None:
        match event:
            case Progress():
                self._progress = event
                self.tick()
            case Section():
                self._thought = "summary"
                if self.terminal:
                    self.about.print(Text(printable(event.title), "dim bold"))
                    self.about.print(Text(printable(event.text), "dim"))
            case Thought():
                self._thought = "raw"
                *lines, self._rest = (self._rest + event.text).split("\n")
                for line in lines:
                    self.about.print(Text(printable(line), "dim"))
            case Delta():
                self._speak()
                self.answer += event.text
                self.out.print(Text(printable(event.text)), end="")
                self.out.file.flush()
            case Answer():
                self._speak()

    def tick(self) -> None:
        if self._live is not None:
            self._live.update(self._line(), refresh=True)

    def hurried(self) -> None:
        """An answer was asked for at once."""
        self._hurried = True
        self.tick()

    def end(self, answer: Answer | None) -> None:
        """After the last event; None where the turn was stopped or failed."""
        self._stop_line()
        if self.answer:
            self.out.print()
        if answer is not None:
            self.say(spent(answer, self._thought_for, bool(self._thought)))

    def _speak(self) -> None:
        """The thinking is over."""
        if self.thinking:
            self.thinking, self._thought_for = False, self._clock() - self._began
            self._stop_line()

    def _stop_line(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._rest:
            self.about.print(Text(printable(self._rest), "dim"))
            self._rest = ""

    def _line(self) -> Text:
        seconds = self._clock() - self._began
        line = thinking_line(seconds, self._progress, self._hurried)
        return Text(line[: max(1, self.out.width - 1)], "cyan", no_wrap=True)


# ---------------------------------------------------------------------------------------------------- words


def thinking_line(seconds: float, progress: Progress | None, hurried: bool = False) -> str:
    """
    >>> thinking_line(14.2, Progress(3100, 8000, 4, 16, 14.0))
    'Thinking 14 s · 3.1k/8k tokens · 4/16 branches'
    """
    parts = [f"{'Answering now' if hurried else 'Thinking'} {lasting(int(seconds))}"]
    if progress is not None:
        parts.append(f"{short(progress.tokens)}/{short(progress.most_tokens)} tokens")
        if progress.branches > 1:
            parts.append(f"{progress.done}/{progress.branches} branches")
    return " · ".join(parts)


def spent(answer: Answer, seconds: float, thought: bool) -> str:
    """What a turn took, in one line.

    >>> spent(Answer("4", completion=30, reasoning=26), 14.2, True)
    'Thought for 14 s · 26 tokens'
    """
    known, labels = answer.statistics, []
    if thought or answer.reasoning:
        parts, tokens = [f"Thought for {lasting(seconds)}"], answer.reasoning
    else:
        parts, tokens = [f"Answered in {lasting(seconds)}"], answer.completion
    if tokens is not None:
        parts.append(f"{tokens:,} tokens")
    if early := known.get("early"):
        labels.append(EARLY.get(early, str(early)))
    if known.get("exhausted"):
        labels.append("budget exhausted")
    if known.get("wanted"):
        labels.append(f"room for {known.get('samples')} of {known['wanted']} branches")
    if answer.finish == "length":
        labels.append("cut off")
    if ignored := known.get("ignored"):
        labels.append(f"not obeyed: {', '.join(map(str, ignored))}")
    return " · ".join([*parts, *labels])


def numbers(answer: Answer) -> list[str]:
    """What an answer cost, a line for each figure that is known."""
    known, lines = answer.statistics, list[tuple[str, str]]()

    def add(name: str, value: Any, said: str) -> None:
        if value:
            lines.append((name, said))

    if known:
        lines.append(("effort", f"{known.get('effort')}: {known.get('strategy')}, {known.get('samples')} branches"))
    if answer.prompt is not None:
        cached = f", {answer.cached:,} of them from the cache" if answer.cached else ""
        lines.append(("prompt", f"{answer.prompt:,} tokens{cached}"))
    if answer.reasoning is not None:
        wasted = known.get("wasted_tokens")
        gone = f", {wasted:,} of them in branches that the answer did not come from" if wasted else ""
        lines.append(("thought", f"{answer.reasoning:,} tokens{gone}"))
    if answer.completion is not None:
        lines.append(("answer", f"{answer.completion - (answer.reasoning or 0):,} tokens"))
    add("scorer", known.get("scorer_tokens"), f"{known.get('scorer_tokens')} tokens read")
    if (seconds := known.get("seconds")) is not None:
        first = known.get("first_token")
        lines.append(("time", f"{seconds:.2f} s" + (f", the first token after {first:.2f} s" if first else "")))
    add("compute", known.get("flops"), f"{known.get('flops', 0):.3g} FLOPs")
    add("circles", known.get("looped"), f"{known.get('looped')} branches went round in circles and were closed")
    add("lost", known.get("lost"), f"{known.get('lost')} things failed on the way")
    return [f"{name:9}{said}" for name, said in lines] or ["the server does not say what it cost"]


def votes(answer: Answer) -> list[str]:
    found: Sequence[Any] = answer.statistics.get("votes") or ()
    most = max((len(str(one["count"])) for one in found), default=0)
    lines = [f"{one['count']:{most}} × {' '.join(str(one['answer']).split())}" for one in found]
    return lines or ["there was no vote: " + ("no branch came to an answer" if answer.statistics else "it is no mull")]


def lasting(seconds: float) -> str:
    """
    >>> lasting(0.52), lasting(14), lasting(125)
    ('0.5 s', '14 s', '2 min 5 s')
    """
    if seconds < 9.95 and seconds != int(seconds):
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def short(n: int) -> str:
    """
    >>> short(812), short(3140), short(8000)
    ('812', '3.1k', '8k')
    """
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if n >= size:
            return f"{n / size:.1f}".removesuffix(".0") + letter
    return str(n)
