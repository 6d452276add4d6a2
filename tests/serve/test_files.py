"""The files beside a model's: what is wrong with them is said before anything is loaded."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from mull.errors import UserError
from mull.search.allocate import Calibration, Point
from mull.search.allocate import Plan as Allotted
from mull.serve.files import opened
from mull.serve.settings import Settings


def test_a_calibration_with_a_scorer_is_not_served_without_one(tmp_path: Path):
    path = tmp_path / "calibration.json"
    points = (Point((Allotted("vote", 4),), 6.0, 0.1),)
    Calibration("nano", "logprob", "last", 4, "spread", (), 4.0, points, {"low": 0}).save(path)
    with pytest.raises(UserError, match="was calibrated with the scorer logprob: give it by --scorer"):
        opened(Settings(calibration=str(path)))
    with contextlib.closing(opened(Settings(calibration=str(path), scorer="logprob")).store):
        pass
