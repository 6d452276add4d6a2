"""An environment that cannot be made is no failure of the server: it is told, and nothing half made stays."""

import pytest

from tests.clients import environments


def test_an_environment_that_cannot_be_made(tmp_path, monkeypatch):
    absent = tmp_path / "nothing-1.0-py3-none-any.whl"
    (tmp_path / "odd.txt").write_text(f"nothing @ file://{absent}\n")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(environments.Unavailable, match=r"no environment for odd: .*nothing-1\.0"):
        environments.python("odd")
    assert [path.name for path in (tmp_path / "cache" / "mull" / "clients").iterdir()] == ["odd.lock"]
    (tmp_path / "odd.txt").write_text("# this needs nothing\n")
    made = environments.python("odd")
    assert made.exists() and environments.python("odd") == made


def test_a_client_is_lent_no_keys_and_no_network(tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "MULL_CASES", "http_proxy", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, "mine")
    lent = environments.lent(tmp_path, MULL_URL="here")
    assert "mine" not in lent.values() and lent["MULL_URL"] == "here" and lent["HOME"] == str(tmp_path)
    assert lent["https_proxy"] == lent["HTTPS_PROXY"] == environments.NOWHERE
