"""Keys: read from a file, kept as hashes, asked for everywhere but at /health."""

from __future__ import annotations

import doctest
import hashlib
import time
from pathlib import Path

import openai
import pytest
from fastapi import Request

from mull.errors import UserError
from mull.serve import auth
from mull.serve.app import make_app
from mull.serve.auth import read_keys
from tests.serve.tools import app_of, ask, call, nano_service, serving

KEYS = "# of the team\nsk-first-key\n\n  sk-second-key  \nsk-first-key\n"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(KEYS)
    return path


def test_a_file_of_keys_becomes_hashes(keys):
    assert read_keys(keys) == tuple(hashlib.sha256(k).digest() for k in (b"sk-first-key", b"sk-second-key"))


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "sk-ä\n", "a\tb\n"])
def test_a_file_without_usable_keys_is_refused(tmp_path, text):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match="key"):
        read_keys(tmp_path / "keys")
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(tmp_path / "absent")


def test_no_key_is_kept_as_it_is(keys):
    app = make_app(nano_service(keys=keys))
    assert "keys" in repr(app.user_middleware) and "sk-" not in repr(app.user_middleware)


GOOD = {"authorization": "Bearer sk-second-key"}


def test_every_route_but_health_asks_for_a_key(keys):
    made = nano_service(keys=keys)
    paths = {(m.upper(), p) for p, item in make_app(made).openapi()["paths"].items() for m in item}
    assert len(paths) >= 6
    for method, path in [*sorted(paths), ("GET", "/openapi.json"), ("GET", "/nowhere"), ("POST", "/health/")]:
        status, headers, body = call(made, method, path.replace("{model}", "nano"), json={})
        if path == "/health":
            assert status == 200
            continue
        assert status == 401 and headers["www-authenticate"] == "Bearer" and "x-request-id" in headers, path
        assert body["error"]["type"] == "invalid_request_error"
        assert call(made, method, path.replace("{model}", "nano"), json={}, headers=GOOD)[0] != 401


@pytest.mark.parametrize(
    "header",
    [
        "Bearer sk-second-ke",
        "Bearer sk-second-keyy",
        "Bearer SK-SECOND-KEY",
        "Bearer ",
        "Bearer",
        "Basic sk-second-key",
        "sk-second-key",
        "Bearer sk-first-key sk-second-key",
        "Bearer # of the team",
        b"Bearer \xff\xfe",
    ],
)
def test_anything_but_a_key_is_refused(keys, header):
    status, _, body = call(nano_service(keys=keys), "GET", "/v1/models", headers={"authorization": header})
    assert status == 401 and body["error"]["code"] == "invalid_api_key" and "sk-" not in body["error"]["message"]


def test_the_scheme_is_case_insensitive_and_a_key_may_have_spaces_around_it(keys):
    for header in ("bearer sk-first-key", "BEARER  sk-first-key "):
        assert call(nano_service(keys=keys), "GET", "/v1/models", headers={"authorization": header})[0] == 200


def test_all_keys_are_compared_whichever_fits(keys, monkeypatch):
    compared = []
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: compared.append(a) or a == b)
    for key in ("sk-first-key", "sk-second-key", "wrong"):
        compared.clear()
        call(nano_service(keys=keys), "GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
        assert compared == list(read_keys(keys))


def test_a_request_belongs_to_its_key(keys):
    owners = []
    made = nano_service(keys=keys)

    @app_of(made).get("/mine")
    async def mine(request: Request):
        owners.append(auth.owner(request))

    for key in ("sk-first-key", "sk-second-key"):
        assert call(made, "GET", "/mine", headers={"authorization": f"Bearer {key}"})[0] == 200
    assert len(set(owners)) == 2 and all(len(o) == 64 and "sk" not in o for o in owners)


def test_openais_client_with_and_without_a_key(keys):
    with serving(nano_service(keys=keys)) as server:
        asked = ask()
        assert server.openai(api_key="sk-first-key").chat.completions.create(**asked).choices[0].message.content
        with pytest.raises(openai.AuthenticationError):
            server.openai(api_key="wrong").chat.completions.create(**asked)
        with pytest.raises(openai.AuthenticationError):
            server.openai(api_key="wrong").chat.completions.create(**asked, stream=True)


def test_a_large_body_without_a_key_is_not_even_read(keys):
    made = nano_service(keys=keys, body_seconds=5)
    with serving(made) as server, server.connect() as line:
        start = time.monotonic()
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 401") and time.monotonic() - start < 4


@pytest.mark.parametrize(
    "host, status",
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("a.localhost", 200),
        ("evil.example", 403), ("127.0.0.1.evil.example:8000", 403), ("localhost.evil.example", 403), ("10.0.0.1", 403),
        ("", 403), ("[::1", 403), ("\xff", 403),
    ],
)  # fmt: skip
def test_without_keys_this_machine_answers_to_its_own_names_alone(host: str, status: int):
    headers = {"host": host.encode("latin-1")}
    got, _, body = call(nano_service(), "GET", "/v1/models", headers=headers)
    assert got == status
    if status == 403:
        assert body["error"]["code"] == "host_not_allowed"


def test_with_keys_or_another_address_any_name_will_do(keys):
    headers = {"host": "mull.example"}
    assert call(nano_service(keys=keys), "GET", "/v1/models", headers={**headers, **GOOD})[0] == 200
    assert call(nano_service(host="0.0.0.0"), "GET", "/v1/models", headers=headers)[0] == 200


def test_doctests():
    assert doctest.testmod(auth).failed == 0
