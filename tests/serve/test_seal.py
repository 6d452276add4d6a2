"""Every way to break `encrypted_content`, and that none of them gets anything but an error."""

import base64
import subprocess
import sys

import pytest

from mull.errors import UserError
from mull.serve.errors import ApiError
from mull.serve.seal import LEAST, NONCE, PREFIX, Seal, secret

THOUGHT = "a=3, so b=7. Wait: a is 4. ü\n" * 3
SECRET = bytes(range(LEAST))
SEAL = Seal(SECRET, "nano")


def closed() -> str:
    return SEAL.close(THOUGHT, "rs_1", "key")


def refused(content: str, seal: Seal = SEAL, item: str | None = "rs_1", owner: str = "key") -> ApiError:
    with pytest.raises(ApiError) as caught:
        seal.open(content, item, owner, "input[2].encrypted_content")
    problem = caught.value
    assert problem.status == 400 and problem.code == "invalid_encrypted_content"
    assert problem.param == "input[2].encrypted_content" and problem.type == "invalid_request_error"
    assert (item or "").replace("\n", "\ufffd") in problem.message and "b=7" not in problem.message
    return problem


@pytest.mark.parametrize("thought", [THOUGHT, "", "x", "\0", "\U0001f600" * 5000])
def test_what_was_closed_opens(thought):
    content = SEAL.close(thought, "rs_1", "key")
    assert SEAL.open(content, "rs_1", "key", "input") == thought
    assert SEAL.open(content, None, "key", "input") == thought  # clients may leave the id out
    assert Seal(SECRET, "nano").open(content, "rs_1", "key", "input") == thought  # another process, the same secret


def test_nothing_can_be_read_and_no_two_are_alike():
    made = [closed() for _ in range(50)]
    raw = [base64.urlsafe_b64decode(content.removeprefix(PREFIX)) for content in made]
    assert len({r[:NONCE] for r in raw}) == len({r[NONCE:] for r in raw}) == 50
    for content, r in zip(made, raw, strict=True):
        assert "b=7" not in content and b"b=7" not in r and base64.b64encode(b"b=7, so") not in content.encode()
        assert len(r) == NONCE + len(f"rs_1\n{THOUGHT}".encode()) + 16


def test_every_changed_byte_is_found():
    content = closed()
    data = base64.urlsafe_b64decode(content.removeprefix(PREFIX))
    for at in range(len(data)):
        for bit in (1, 128):
            broken = bytearray(data)
            broken[at] ^= bit
            refused(PREFIX + base64.urlsafe_b64encode(broken).decode())


def test_every_changed_character_is_found():
    content = closed()
    for at in range(len(content)):
        refused(content[:at] + ("A" if content[at] != "A" else "B") + content[at + 1 :])


def test_every_truncation_and_every_extension_is_found():
    content = closed()
    for end in range(len(content)):
        refused(content[:end])
        refused(content[end + 1 :])
    for more in ("A", "=", "\n", " ", "AAAA", content):
        refused(content + more)
        refused(more + content)


@pytest.mark.parametrize("content", ["", PREFIX, "x", "not base64!", "äöü", "\ud800", "=" * 40, "A" * 1000, THOUGHT])
def test_what_is_no_sealed_content_is_refused(content):
    refused(content)
    refused(PREFIX + content)


def test_another_spelling_of_the_same_bytes_is_refused():
    """Base64 that does not end at a whole byte has unused bits: decoders ignore them."""
    content = next(c for n in range(4) if (c := SEAL.close("x" * n, "rs_1", "key")).endswith("="))
    body = content.rstrip("=")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = body[:-1] + alphabet[alphabet.index(body[-1]) ^ 1] + content[len(body) :]
    same = [base64.urlsafe_b64decode(c.removeprefix(PREFIX)) for c in (content, other)]
    assert same[0] == same[1] and content != other
    refused(other)
    refused(body)


def test_it_is_bound_to_secret_model_owner_and_item():
    content = closed()
    refused(content, Seal(b"\1" * LEAST, "nano"))
    refused(content, Seal(secret(None), "nano"))
    refused(content, Seal(SECRET, "nano2"))
    refused(content, owner="")
    refused(content, owner="key2")
    refused(content, item="rs_2")
    refused(content, item="")
    refused(content, item="rs_1\na=3")
    refused(content, item=None, owner="key2")
    # The parts cannot be shifted against each other.
    shifted = Seal(SECRET, "nan").close(THOUGHT, "rs_1", "okey")
    refused(shifted)
    assert SEAL.open(content, "rs_1", "key", "input") == THOUGHT


def test_another_format_under_the_same_secret_is_refused(monkeypatch):
    monkeypatch.setattr("mull.serve.seal.FORMAT", b"mull-thought-2")
    other = Seal(SECRET, "nano").close(THOUGHT, "rs_1", "key")
    monkeypatch.undo()
    refused(other)


def test_a_secret_file_is_made_once_and_kept(tmp_path):
    path = tmp_path / "secret"
    made = secret(path)
    assert len(made) >= LEAST and secret(path) == made and path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    content = Seal(made, "nano").close(THOUGHT, "rs_1", "")
    assert Seal(secret(path), "nano").open(content, "rs_1", "", "input") == THOUGHT
    path.unlink()
    assert secret(path) != made and secret(None) != secret(None)


def test_processes_that_start_at_once_agree_on_the_secret(tmp_path):
    code = f"from mull.serve.seal import secret; from pathlib import Path; print(secret(Path({str(tmp_path / 's')!r})))"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({run.communicate(timeout=120)[0] for run in runs}) == 1
    assert all(run.returncode == 0 for run in runs)


def test_a_secret_file_that_cannot_be_used_is_said(tmp_path):
    path = tmp_path / "secret"
    path.write_text("short")
    path.chmod(0o600)
    with pytest.raises(UserError, match="holds 5 bytes"):
        secret(path)
    path.write_bytes(b"x" * LEAST + b" \n")
    assert secret(path) == b"x" * LEAST
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        secret(path)
    with pytest.raises(UserError, match="cannot be used"):
        secret(tmp_path)
    with pytest.raises(UserError, match="cannot be used"):
        secret(tmp_path / "no" / "such" / "folder")


def test_a_thought_that_is_no_utf8_does_not_fail():
    content = SEAL.close("a\ud800b", "rs_1", "key")
    assert SEAL.open(content, "rs_1", "key", "input") == "a?b"
