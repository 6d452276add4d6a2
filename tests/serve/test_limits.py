"""Bodies that are too large, too slow or no JSON get a 4xx in OpenAI's shape, before any work is done for them."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.serve.errors import ApiError
from mull.serve.limits import DEPTH, loads
from tests.serve.tools import ask, call, idle, nano_service, post, serving

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def refused(content, **headers):
    status, _, body = call(nano_service(), "POST", CHAT, content=content, headers={**JSON, **headers})
    assert set(body["error"]) == {"message", "type", "param", "code"} and body["error"]["message"]
    return status, body["error"]["code"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nope",
        b"[1]",
        b'"text"',
        b"null",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\x01"}',  # a control character must be escaped
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',  # half of a pair, as some would write it in UTF-8
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": ["\\ud800 and \\udfff apart"]}',
        b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"a": ' + b'{"b":' * 100 + b"1" + b"}" * 100 + b"}",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"\xef\xbb\xbf{}",
        json.dumps(ask()).encode("utf-16"),
        b'{"messages": []}{}',
    ],
)
def test_what_is_no_json_object_is_refused(body):
    with pytest.raises(ApiError) as found:
        loads(body)
    assert (found.value.status, found.value.code) == (400, "invalid_json") and len(found.value.message) < 300


def test_what_is_json_is_read():
    assert loads(b'{"a": "\\u0000 \\ud83d\\ude00", "b": [1, -2.5, 1e3, true, null, {}]}') == {
        "a": "\0 \U0001f600",
        "b": [1, -2.5, 1000.0, True, None, {}],
    }
    deep = b'{"a":' * (DEPTH - 1) + b"1" + b"}" * (DEPTH - 1)
    assert loads(deep)
    with pytest.raises(ApiError):
        loads(b'{"a":' * DEPTH + b"1" + b"}" * DEPTH)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_refused(body):
    try:
        assert isinstance(loads(body), dict)
    except ApiError as problem:
        assert problem.status == 400


def test_bodies_that_are_no_json_never_reach_a_route():
    assert refused(b"nope") == (400, "invalid_json")
    assert refused(b'{"a": "\xff"}') == (400, "invalid_json")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data; boundary=x"):
        assert refused(json.dumps(ask()).encode(), **{"content-type": kind}) == (400, "unsupported_content_type")
    status, _, _ = call(
        nano_service(),
        "POST",
        CHAT,
        content=json.dumps(ask()),
        headers={"content-type": "Application/JSON; charset=utf-8"},
    )
    assert status == 200


def test_too_large_a_body_is_refused():
    made = nano_service(max_body=2000)
    status, _, body = post(made, CHAT, ask("x" * 3000))
    assert status == 413 and body["error"]["code"] == "request_too_large"
    assert post(made, CHAT, ask("x" * 500))[0] == 200


# ------------------------------------------------------------------------------------------------- on the wire


def answer(line):
    """(status, body) of what comes until the server closes the connection."""
    data = b""
    while piece := line.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_declared_length_is_refused_before_the_body_comes():
    with serving(nano_service(max_body=2000)) as server, server.connect() as line:
        line.sendall(HEAD + b"Content-Length: 99999999\r\n\r\n")
        status, body = answer(line)
        assert status == 413 and "2000" in body["error"]["message"]


def test_a_body_without_a_length_is_cut_off():
    with serving(nano_service(max_body=200_000)) as server, server.connect() as line:
        line.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(OSError):  # the server closes the connection
            for _ in range(100_000):
                line.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def test_openais_client_reads_the_refusal_of_a_large_body():
    import openai

    with serving(nano_service(max_body=100_000)) as server, pytest.raises(openai.APIStatusError) as found:
        message = {"role": "user", "content": "x" * 600_000}
        server.openai(max_retries=0).chat.completions.create(model="nano", messages=[message])
    assert found.value.status_code == 413 and found.value.code == "request_too_large"


def test_a_body_that_trickles_is_given_up():
    made = nano_service(body_seconds=0.5)
    with serving(made) as server, server.connect() as line:
        line.sendall(HEAD + b"Content-Length: 5000\r\n\r\n{")
        start = time.monotonic()
        for _ in range(4):
            time.sleep(0.1)
            line.sendall(b" ")
        status, body = answer(line)
        assert status == 408 and body["error"]["code"] == "request_timeout" and time.monotonic() - start < 10


def test_who_leaves_within_the_body_leaves_nothing():
    made = nano_service()
    with serving(made) as server:
        with server.connect() as line:
            line.sendall(HEAD + b"Content-Length: 5000\r\n\r\n{")
        with server.http() as http:
            assert http.get("/health").status_code == 200
        assert idle(made)
