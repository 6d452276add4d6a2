"""`encrypted_content`: a hidden thought that a client carries from request to request, and can neither read nor change.

AES-256-GCM under a key that HKDF-SHA256 derives from the server's secret. What it is bound to is authenticated beside
it: the format, the model's name and the hash of the API key that it was made for. The id of its reasoning item is
sealed with the thought: it must match where a client gives one back, and clients may leave it out. Opening gives the
thought or an error; there is no other way, and nothing is ever passed on in the open. Needs `cryptography`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import tempfile
from pathlib import Path

from mull.errors import MissingExtra, UserError
from mull.serve.errors import ApiError, invalid

FORMAT = b"mull-thought-1"
PREFIX = "m1."  # so that another format can follow
NONCE, LEAST = 12, 32  # bytes: of a nonce, and of a secret at least


class Seal:
    """Makes and opens `encrypted_content` of one model under one secret."""

    def __init__(self, secret: bytes, model: str):
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        except ImportError:
            raise MissingExtra("cryptography", "serve", "encrypted_content") from None
        self._aead = AESGCM(HKDF(SHA256(), 32, salt=None, info=FORMAT).derive(secret))
        self._refused, self._model = InvalidTag, model

    def close(self, thought: str, item: str, owner: str) -> str:
        """`item`: the reasoning item's id; `owner`: the hash of the API key, "" where no keys are asked for."""
        nonce, data = os.urandom(NONCE), f"{item}\n{thought}".encode("utf-8", "replace")
        sealed = self._aead.encrypt(nonce, data, self._bound(owner))
        return PREFIX + base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, content: str, item: str | None, owner: str, param: str) -> str:
        """The thought; ApiError 400 `invalid_encrypted_content`, naming `param`, for anything but what `close` made
        with the same secret, for the same model, owner and (unless None) item. It does not say which is wrong."""
        try:
            data = base64.b64decode(content.removeprefix(PREFIX).encode("ascii"), altchars=b"-_", validate=True)
            # Base64 has several spellings of the same bytes, of which one is ours.
            if content == PREFIX + base64.urlsafe_b64encode(data).decode():
                whose, _, thought = (
                    self._aead.decrypt(data[:NONCE], data[NONCE:], self._bound(owner)).decode().partition("\n")
                )
                if item in (None, whose):
                    return thought
        except (ValueError, self._refused):
            pass
        raise _unverified(item, param)

    def _bound(self, owner: str) -> bytes:
        parts = [FORMAT, *(part.encode("utf-8", "replace") for part in (self._model, owner))]
        return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _unverified(item: str | None, param: str) -> ApiError:
    whose = f" for item {item}" if item else ""
    message = (
        f"The encrypted content{whose} could not be verified: give back what this server made for the same model, API "
        "key and item, unchanged, or leave the item out."
    )
    return invalid(message, param, "invalid_encrypted_content")


def secret(path: Path | None) -> bytes:
    """The server's secret: the file's content without white space around it; without a file a random one, which dies
    with the process. A file that is absent is made, for its owner's eyes only; UserError for one that cannot be used.
    """
    if path is None:
        return os.urandom(LEAST)
    try:
        if not path.exists():
            _make(path)
        found = path.read_bytes().strip()
        mode = path.stat().st_mode
    except OSError as e:
        raise UserError(f"the secret file {path} cannot be used ({e.strerror}): name one that can be read") from None
    if len(found) < LEAST:
        raise UserError(
            f"the secret file {path} holds {len(found)} bytes: put {LEAST} random ones or more in it, or delete it and "
            "a new one is made"
        )
    if mode & 0o077:
        raise UserError(f"the secret file {path} can be read by others: chmod 600 {path}")
    return found


def _make(path: Path) -> None:
    """Never half-written, and of processes that start at once one wins."""
    fd, part = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 600
    try:
        with open(fd, "wb") as f:
            f.write(base64.b64encode(os.urandom(LEAST)) + b"\n")
            f.flush()
            os.fsync(f.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    finally:
        os.unlink(part)
