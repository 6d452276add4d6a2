"""`mull chat` with a server: `mull serve`, with its page and without, and servers of everybody else's."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mull.cli.chat_models import Answer, Wants
from mull.cli.chat_remote import Remote
from mull.errors import UserError
from mull.serve.job import Delta, Progress, Thought
from mull.serve.summary import Section
from tests.cli.chat_tools import said, talking, text_of, told_by
from tests.serve.tools import Served, nano_service, scripted_service, serving, thinking, until

# --------------------------------------------------------------------------------------------------- mull serve


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
