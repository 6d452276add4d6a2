"""Who may ask: API keys, kept as SHA-256 and compared in constant time, on every route but the public ones.

Without keys, only those who came to this machine by a name of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from pathlib import Path

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from mull.errors import UserError
from mull.serve.errors import ApiError
from mull.serve.limits import problem_response

PUBLIC = {"/health", "/"}  # the page asks for a key itself
PUBLIC_UNDER = "/mull/assets/"


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Digests of a file's keys, one on a line; empty lines and those that begin with # are none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"the keys file {path} cannot be read ({problem}): write one API key on a line of it") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"the keys file {path} has no key, which would lock everybody out: write one on a line of it")
    if bad := [i for i, line in enumerate(lines, 1) if line in keys and not (line.isascii() and line.isprintable())]:
        raise UserError(f"the key in line {bad[0]} of {path} has characters that no header can carry: make it ASCII")
    return tuple(dict.fromkeys(hashlib.sha256(key.encode()).digest() for key in keys))


def admin_key(path: Path) -> bytes:
    """The digest of the one line of the file; UserError where there is none."""
    try:
        key = path.read_bytes().strip()
    except OSError as problem:
        raise UserError(f"the admin key file {path} cannot be read ({problem.strerror})") from None
    if len(key) < 16 or b"\n" in key or not key.isascii():
        raise UserError(f"the admin key file {path} must hold one key of 16 ASCII characters or more, on one line")
    return hashlib.sha256(key).digest()


def owner(request: Request) -> str:
    """Whose request it is: the hash of its API key, "" where none is asked for."""
    return request.scope.get("state", {}).get("owner", "")


class Keys:
    """ASGI middleware: 401 without one of the keys."""

    def __init__(self, app: ASGIApp, keys: tuple[bytes, ...]):
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC or scope["path"].startswith(PUBLIC_UNDER):
            return await self.app(scope, receive, send)
        header = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
        scheme, _, key = header.partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        found = False
        for known in self.keys:  # all of them, however soon one fits
            found |= hmac.compare_digest(known, given)
        if found and scheme.lower() == b"bearer":
            scope.setdefault("state", {})["owner"] = given.hex()
            return await self.app(scope, receive, send)
        if header:
            problem = ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        else:
            message = "You did not provide an API key: send it in the header Authorization, as Bearer YOUR_KEY."
            problem = ApiError(401, message)
        problem.headers["WWW-Authenticate"] = "Bearer"
        await problem_response(problem)(scope, receive, send)


class Near:
    """ASGI middleware for a loopback address without keys: 403 where the header Host names another machine.

    A web page whose name its owner points to 127.0.0.1 (DNS rebinding) has its visitor's browser ask here, and may read
    the answers, as they are of its own origin. Its name is all that gives it away.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            named = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"host"), "localhost")
            if not is_loopback(re.sub(r":\d*$", "", named).strip("[]").lower()):
                message = (
                    f"This server asks for no API key and answers on its own machine only, not as {named[:100]!r}."
                )
                problem = ApiError(403, message, code="host_not_allowed")
                return await problem_response(problem)(scope, receive, send)
        await self.app(scope, receive, send)


def is_loopback(host: str) -> bool:
    """
    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "127.0.0.1.example.com")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
