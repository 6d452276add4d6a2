"""How long a job waits for its writer."""

from __future__ import annotations

import pytest

from mull.serve import written


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy."""
    monkeypatch.setattr(written, "LEAST_WAIT", 3.0)
