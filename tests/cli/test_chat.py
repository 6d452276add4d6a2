"""`mull chat`: what it says and prints, its commands, pipes, Ctrl-C, and servers of every kind.

(What a real terminal sees is in test_chat_terminal.py.)
"""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mull.cli import chat_screen
from mull.cli.chat_loop import Talk, converse
from mull.cli.chat_models import Answer, Local, Wants
from mull.cli.chat_remote import Remote
from mull.cli.chat_screen import Screen, numbers, spent, thinking_line, votes
from mull.cli.main import main
from mull.engine.scripted import Script
from mull.errors import UserError
from mull.search.allocate import Calibration, Point
from mull.search.allocate import Plan as Spend
from mull.serve.job import Delta, Progress, Thought
from mull.serve.service import Service
from mull.serve.summary import Section
from tests.serve.tools import QUESTION, Served, nano_service, scripted_service, serving, thinking, until

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


# ------------------------------------------------------------------------------------------------- words


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


# --------------------------------------------------------------------------------------- a model in this process


def test_a_local_model_says_what_its_job_does():
    *events, answer = told_by(local(nano_service()), Wants(effort="low"))
    assert answer.content == text_of(events) and answer.finish in ("stop", "length")
    assert answer.reasoning > 10 and answer.completion > answer.reasoning and answer.prompt > 10
    assert answer.statistics["effort"] == "low" and answer.statistics["samples"] == 1
    assert any(isinstance(e, Section) for e in events) and not any(isinstance(e, Thought) for e in events)
    assert any(isinstance(e, Progress) for e in events)


def test_raw_thoughts_come_before_the_answer_also_of_many_branches():
    for effort in ("low", "medium"):
        *events, answer = told_by(local(nano_service()), Wants(effort=effort, thoughts=True))
        thought = "".join(e.text for e in events if isinstance(e, Thought))
        assert "h=" in thought and not any(isinstance(e, Section) for e in events)
        kinds = [type(e) for e in events if isinstance(e, (Thought, Delta))]
        assert kinds.index(Delta) == len([k for k in kinds if k is Thought]), "a thought came behind the answer"
        assert text_of(events) == answer.content


def test_every_option_changes_what_is_done(tmp_path: Path):
    service = nano_service()

    def asked(calibration: str = "", **wants: Any) -> Answer:
        return told_by(local(service, calibration), Wants(**wants))[-1]

    low = asked(effort="low")
    assert asked().statistics["effort"] == "medium"
    assert asked(effort="none").reasoning == 0 and asked(effort="minimal").reasoning == 0
    assert asked(effort="low", think_tokens=5).reasoning == 5 < low.reasoning
    assert asked(effort="none", answer_tokens=1).completion == 1
    assert asked(effort="low", samples=3).statistics["samples"] == 3
    assert asked(strategy="vote", samples=100).statistics["samples"] == 100
    beam = asked(strategy="beam:expand=2", samples=4)
    assert beam.statistics["strategy"] == "beam:expand=2" and beam.statistics["scorer_tokens"] == 0
    greedy = [asked(effort="low", temperature=0.0, seed=seed).completion for seed in (1, 2, 3)]
    assert len(set(greedy)) == 1
    warm = [asked(effort="low", seed=seed).completion for seed in range(6)]
    assert len(set(warm)) > 1 and asked(effort="low", seed=0).completion == low.completion == warm[0]
    assert asked(effort="medium", temperature=0.5).statistics["ignored"] == ["temperature"]
    points = (Point((Spend("vote", 4),), 4.0, 0.5), Point((Spend("vote", 6),), 6.0, 0.6))
    Calibration("nano", "", "last", 2, "agreement", (), 1.0, points, {"low": 0, "medium": 1, "high": 1}).save(
        tmp_path / "known.json"
    )
    calibrated = asked(str(tmp_path / "known.json"), effort="medium").statistics
    assert (calibrated["strategy"], calibrated["samples"]) == ("auto:effort=medium", 6)


def test_another_turn_draws_other_thoughts_and_a_full_context_is_one_sentence():
    talker = local(nano_service())
    one, two, again = (told_by(talker, Wants("low"), turn=turn)[-1].completion for turn in (1, 2, 1))
    assert one == again != two
    with pytest.raises(UserError, match=r"the conversation has \d+ tokens and the model's context is 1024: /new"):
        told_by(talker, messages=[{"role": "user", "content": "why? " * 300}])


# ------------------------------------------------------------------------------------------------ conversations


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


# ---------------------------------------------------------------------------------------------------- Ctrl-C


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


# ----------------------------------------------------------------------------------------------------- pipes


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


# -------------------------------------------------------------------------------------------------- mull serve


@pytest.fixture(scope="module")
def ours() -> Iterator[Served]:
    with serving(nano_service(effort="medium")) as server:
        yield server


def test_a_server_of_ours_tells_all_that_a_local_model_tells(ours: Served):
    *events, answer = told_by(Remote(f"{ours.url}/v1"), Wants(effort="low", seed=3))
    assert answer.content == text_of(events) and answer.reasoning > 10
    assert answer.statistics["effort"] == "low" and answer.statistics["seconds"] > 0
    assert {type(e) for e in events} >= {Progress, Section, Delta}
    same = told_by(Remote(ours.url), Wants(effort="low", seed=3))[-1]  # /v1 is added
    assert (same.content, same.completion) == (answer.content, answer.completion)
    default = told_by(Remote(ours.url))
    assert default[-1].statistics["effort"] == "medium" and sum(v["count"] for v in default[-1].statistics["votes"]) > 1
    assert max(e.branches for e in default if isinstance(e, Progress)) > 1


def test_wants_reach_the_server(ours: Served):
    def asked(**wants: Any) -> Answer:
        return told_by(Remote(ours.url), Wants(**wants))[-1]

    assert asked(strategy="vote", samples=3).statistics["strategy"] == "vote"
    assert asked(strategy="vote", samples=3).statistics["samples"] == 3
    assert asked(effort="low", think_tokens=5).reasoning == 5
    assert asked(effort="low", think_tokens=4, answer_tokens=2).completion <= 6
    greedy = [asked(effort="low", temperature=0.0, seed=seed).completion for seed in (1, 2, 3)]
    assert len(set(greedy)) == 1
    with pytest.raises(UserError, match="unknown strategy 'votes'"):
        asked(strategy="votes")


@pytest.mark.parametrize("page", [True, False])
@pytest.mark.parametrize("shown", ["shown", "hidden"])
@pytest.mark.parametrize("effort", ["low", "medium"])
def test_thoughts_are_raw_where_the_server_shows_them(page: bool, shown: str, effort: str):
    with serving(nano_service(page=page, thoughts=shown)) as server:
        talker = Remote(server.url)
        *events, answer = told_by(talker, Wants(effort=effort, thoughts=True))
        assert bool(talker.page) == page
        raw, sections = ([e for e in events if isinstance(e, kind)] for kind in (Thought, Section))
        assert bool(raw) == (shown == "shown") and bool(sections) == (shown == "hidden")
        if raw:
            assert "h=" in "".join(e.text for e in raw)
            assert max(i for i, e in enumerate(events) if isinstance(e, Thought)) < min(
                i for i, e in enumerate(events) if isinstance(e, Delta)
            )
        else:
            assert all(e.title and e.text and "**" not in e.title for e in sections)
        assert answer.content == text_of(events) and answer.statistics["effort"] == effort
        *events, answer = told_by(talker, Wants(effort=effort))  # and a summary where nobody wants more
        assert any(isinstance(e, Section) for e in events) and not any(isinstance(e, Thought) for e in events)


def test_our_server_is_asked_to_answer_now_also_where_it_has_no_page(capsys: pytest.CaptureFixture[str]):
    for page in (True, False):
        made = scripted_service(thinking("t\n", "4"), seconds=2.0, page=page)
        with serving(made) as server, talking(Remote(server.url)) as talks:
            talks.interrupt(0.5)
            begun = time.monotonic()
            talks.talk.take("one?")
            assert talks.talk.last is not None and talks.talk.last.statistics["early"] == "asked"
            assert time.monotonic() - begun < 3.9
            talks.interrupt(0.5, 0.9)
            talks.talk.take("two?")
            assert len(talks.talk.messages) == 2
            until(lambda made=made: not made.jobs)  # the server noticed that nobody waits
    assert said(capsys)[1].count("(stopped)") == 2


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "keys").write_text("sesame-sesame\n")
    with serving(nano_service(keys=tmp_path / "keys")) as server:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with pytest.raises(UserError, match=r"refuses access \(401\), it wants an API key: give --key or OPENAI_API_K"):
            told_by(Remote(server.url))
        with pytest.raises(UserError, match="the API key is not accepted"):
            told_by(Remote(server.url, key="other"))
        assert told_by(Remote(server.url, key="sesame-sesame"), Wants("low"))[-1].content
        monkeypatch.setenv("OPENAI_API_KEY", "sesame-sesame")
        assert told_by(Remote(server.url), Wants("low"))[-1].content


# ------------------------------------------------------------------------------------------------ other servers


class Foreign(ThreadingHTTPServer):
    """A server of somebody else's, which says what it is told to; `pieces` may be seconds to wait."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: Any = {"data": [{"id": "their", "owned_by": "them"}]}
        self.status, self.kind, self.headers = 200, "text/event-stream", dict[str, str]()
        self.pieces: list[bytes | float] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.gone = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Foreign

    def log_message(self, *_: Any) -> None:
        pass

    def _say(self, status: int, kind: str, pieces: list[bytes | float], headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in pieces:
            if isinstance(piece, bytes):
                self.wfile.write(piece)
                self.wfile.flush()
            else:
                time.sleep(piece)

    def do_GET(self) -> None:
        body = self.server.models
        ok = isinstance(body, dict) and self.path == "/v1/models"
        self._say(200 if ok else 500, "application/json", [json.dumps(body).encode()], {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(json.loads(body) | {"path": self.path})
        self.server.keys.append(self.headers["authorization"])
        s = self.server
        with contextlib.suppress(OSError):
            self._say(s.status, s.kind, s.pieces, s.headers)
            return
        s.gone.set()


@pytest.fixture
def theirs() -> Iterator[Foreign]:
    with Foreign() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def chunk(finish: str | None = None, usage: Any = None, **delta: Any) -> bytes:
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": usage}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\r\n\r\n"


DONE = b"data: [DONE]\n\n"
COST = {"prompt_tokens": 5, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 7}}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_another_servers_thought_is_summed_up_or_shown(theirs: Foreign, name: str):
    theirs.pieces = [
        *(b": ping\n\n", chunk(role="assistant", content=""), chunk(**{name: "First I look.\n"})[:11]),
        *(chunk(**{name: "First I look.\n"})[11:], chunk(**{name: "Then I check\u2028it."})),
        *(chunk(content="\n\n4"), chunk(content=" and\n5"), chunk("stop")),
        *(b'data: {"choices": [], "usage": ' + json.dumps(COST).encode() + b"}\n\n", DONE),
    ]
    *events, answer = told_by(Remote(theirs.url))
    assert text_of(events) == answer.content == "4 and\n5"
    [section] = [e for e in events if isinstance(e, Section)]
    assert (section.title, section.text) == ("Checking: First I look.", "Then I check it.")
    assert (answer.prompt, answer.reasoning, answer.completion, answer.statistics) == (5, 7, 9, {})
    assert events.index(section) < events.index(Delta("4"))
    [body] = theirs.asked
    assert body["path"] == "/v1/chat/completions" and body["stream"] is True and body["model"] == "their"
    assert set(body) == {"path", "model", "messages", "stream", "stream_options"}  # nothing that nobody asked for
    raw = told_by(Remote(theirs.url), Wants(thoughts=True, effort="high", think_tokens=9, seed=4))
    assert "".join(e.text for e in raw if isinstance(e, Thought)) == "First I look.\nThen I check\u2028it."
    assert (theirs.asked[1]["reasoning_effort"], theirs.asked[1]["thinking_token_budget"]) == ("high", 9)
    assert 0 <= theirs.asked[1]["seed"] < 1 << 31 and "max_completion_tokens" not in theirs.asked[1]
    told_by(Remote(theirs.url), Wants(think_tokens=9, answer_tokens=3))
    assert theirs.asked[2]["max_completion_tokens"] == 12


def test_a_server_that_does_not_stream(theirs: Foreign):
    theirs.kind = "application/json"
    choice = {"message": {"content": "4", "reasoning_content": "so\nit is"}, "finish_reason": "length"}
    theirs.pieces = [json.dumps({"choices": [choice], "usage": None}).encode()]
    *events, answer = told_by(Remote(theirs.url, key="k"))
    assert (answer.content, answer.finish, answer.reasoning) == ("4", "length", None)
    assert [type(e) for e in events] == [Section, Delta] and theirs.keys == ["Bearer k"]


@pytest.mark.parametrize(
    ("status", "kind", "pieces", "sentence"),
    [
        (429, "application/json", [b'{"error": {"message": "slow\\n down"}}'], r"refuses \(429\): slow down; it asks"),
        (400, "application/json", [b'{"detail": "no sesame here"}'], r"refuses \(400\): no \[key\] here"),
        (500, "text/html", [b"<h1>oops</h1>"], r"refuses \(500\): <h1>oops</h1>"),
        (403, "text/plain", [b""], r"refuses access \(403\), the API key is not accepted: no reason given"),
        (200, "text/event-stream", [chunk(content="4")], "ended its stream before the answer was complete"),
        (200, "text/event-stream", [b'data: {"error": {"message": "sesame broke"}}\n\n'], r"/v1: \[key\] broke"),
        (200, "text/html", [b"<h1>hello</h1>"], "does not answer with JSON"),
    ],
)  # fmt: skip
def test_what_a_server_does_wrong_is_one_sentence(theirs: Foreign, status, kind, pieces, sentence):
    theirs.status, theirs.kind, theirs.pieces, theirs.headers = status, kind, pieces, {"Retry-After": "7"}
    with pytest.raises(UserError, match=sentence) as caught:
        told_by(Remote(theirs.url, key="sesame"))
    assert "\n" not in str(caught.value) and "sesame" not in str(caught.value)


def test_which_model_is_meant(theirs: Foreign):
    theirs.pieces = [chunk("stop", content="4"), DONE]
    theirs.models = {"data": [{"id": "a"}, {"id": "b"}]}
    with pytest.raises(UserError, match="lists 2 models: a, b; name one with --name"):
        told_by(Remote(theirs.url))
    assert told_by(Remote(theirs.url, "b"))[-1].content == "4" and theirs.asked[-1]["model"] == "b"
    theirs.models = []  # a server that lists none, with an error
    with pytest.raises(UserError, match="lists 0 models; name one"):
        told_by(Remote(theirs.url))
    assert told_by(Remote(theirs.url, "c"))[-1].content == "4"
    with pytest.raises(UserError, match="is no mull serve: --strategy and --samples are for one"):
        told_by(Remote(theirs.url, "c"), Wants(samples=2))


def test_at_another_server_ctrl_c_stops_and_what_was_said_stays(theirs: Foreign, capsys: pytest.CaptureFixture[str]):
    theirs.pieces = [chunk(reasoning="hm\n"), *[0.2, b": ping\n\n"] * 50]
    with talking(Remote(theirs.url)) as talks:
        talks.interrupt(0.5)
        talks.talk.take("one?")
        assert talks.talk.messages == [] and theirs.gone.wait(10)
        theirs.pieces = [chunk(reasoning="hm\n"), chunk(content="for"), *[0.2, b": ping\n\n"] * 50]
        talks.interrupt(0.7)
        talks.talk.take("two?")
        assert [m["content"] for m in talks.talk.messages] == ["two?", "for"]
        theirs.pieces = [chunk("length", content="")]
        talks.talk.take("three?")
        assert len(talks.talk.messages) == 2
    out, err = said(capsys)
    assert (
        out == ["for"] and err.count("(stopped)") == 2 and err[-1] == "error: the answer is empty: its tokens ran out"
    )


# --------------------------------------------------------------------------------------------- the command line


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    code = main(["chat", *args])
    _, err = capsys.readouterr()
    [line] = err.splitlines()
    assert code == 2 and line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--effort", "hihg"], "unknown effort 'hihg'; did you mean 'high'?"),
        (["--model", "nano", "--endpoint", "http://localhost:9"], "--model and --endpoint exclude each other"),
        (["--name", "a"], "--name is for a server: give its address with --endpoint URL"),
        (["--key", "a"], "--key is for a server"),
        (["--endpoint", "http://localhost:9", "--scorer", "logprob"], "--scorer is for a model in this process"),
        (["--endpoint", "http://localhost:9", "--calibration", "c"], "--calibration is for a model in this process"),
        (["--endpoint", "http://localhost:9", "--device", "cuda"], "--device is for a model in this process"),
        (["--endpoint", "http://localhost:9", "--dtype", "bfloat16"], "--dtype is for a model in this process"),
        (["--device", "gpu"], "mull computes on no device 'gpu'"),
        (["--dtype", "bf16"], "unknown dtype 'bf16'; did you mean 'bfloat16'?"),
        (["--endpoint", "http://localhost:9", "--answer-tokens", "3"], "--answer-tokens needs --think-tokens"),
        (["--endpoint", "localhost:9"], "'localhost:9' is no address of a server"),
        (["--endpoint", "http://127.0.0.1:9/v1"], "nothing answers at http://127.0.0.1:9/v1 ("),
        (["--model", "gone"], "gone is not a folder"),
        (["--strategy", "voting"], "unknown strategy 'voting'; did you mean 'vote'?"),
        (["--strategy", "beam"], "needs a scorer: give --scorer DIR"),
        (["--calibration", "gone.json"], "gone.json"),
        (["--thougths"], "no such option: --thougths; did you mean --thoughts?"),
    ],
)
def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path, args, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert sentence in refused(capsys, *args)


@pytest.mark.parametrize(("given", "dtype"), [([], "float32"), (["--dtype", "bfloat16"], "bfloat16")])
def test_the_command_computes_in_the_numbers_that_were_asked_for(monkeypatch, capsys, given, dtype):
    talkers: list[Any] = []
    monkeypatch.setattr("mull.cli.chat_loop.converse", lambda talker, *_: talkers.append(talker) or 0)
    assert main(["chat", "--model", "nano", "--device", "cpu", *given]) == 0
    model = talkers[0]._tools.sampler.model
    assert str(model.dtype) == f"torch.{dtype}" and model.device.type == "cpu"
    assert text_of(told_by(talkers[0], Wants("low", think_tokens=16, answer_tokens=8)))


def test_the_command_answers_as_the_service_would(monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION + "\n"))
    given = ["--effort", "low", "--think-tokens", "64", "--answer-tokens", "16", "--seed", "5", "--scorer", "logprob"]
    assert main(["chat", "--model", "nano", *given]) == 0
    [content], _ = said(capsys)
    assert (
        content == told_by(local(nano_service()), Wants("low", think_tokens=64, answer_tokens=16, seed=5))[-1].content
    )
