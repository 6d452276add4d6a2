"""A folder to type commands in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.tiny import ENDS, save_tiny


@pytest.fixture
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to work in, with a tiny model and a task."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny")
    (tmp_path / "any.py").write_text(ENDS)
    (tmp_path / "set.jsonl").write_text('{"question": "1+1", "answer": "2"}\n{"question": "2+2", "answer": "4"}\n')
    return tmp_path
