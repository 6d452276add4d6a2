"""`mull chat` with a model in this process: what its turns say, and what every option changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mull.cli.chat_models import Answer, Wants
from mull.errors import UserError
from mull.search.allocate import Calibration, Point
from mull.search.allocate import Plan as Spend
from mull.serve.job import Delta, Progress, Thought
from mull.serve.summary import Section
from tests.cli.chat_tools import local, text_of, told_by
from tests.serve.tools import nano_service


def test_a_local_model_says_what_its_job_does():
    *events, answer = told_by(local(nano_service()), Wants(effort="low"))
    assert answer.content == text_of(events) and answer.finish in ("stop", "length")
    assert answer.reasoning > 10 and answer.completion > answer.reasoning and answer.prompt > 10
    assert answer.statistics["effort"] == "low" and answer.statistics["samples"] == 1
    assert any(isinstance(e, Section) for e in events) and not any(isinstance(e, Thought) for e in events)
    assert any(isinstance(e, Progress) for e in events)


def test_raw_thoughts_come_before_the_answer_also_of_many_branches():
    for effort in ("low", "medium"):
        *events, answer = told_by(local(nano_service()), Wants(effort=effort, thoughts=True))
        thought = "".join(e.text for e in events if isinstance(e, Thought))
        assert "h=" in thought and not any(isinstance(e, Section) for e in events)
        kinds = [type(e) for e in events if isinstance(e, (Thought, Delta))]
        assert kinds.index(Delta) == len([k for k in kinds if k is Thought]), "a thought came behind the answer"
        assert text_of(events) == answer.content


def test_every_option_changes_what_is_done(tmp_path: Path):
    service = nano_service()

    def asked(calibration: str = "", **wants: Any) -> Answer:
        return told_by(local(service, calibration), Wants(**wants))[-1]

    low = asked(effort="low")
    assert asked().statistics["effort"] == "medium"
    assert asked(effort="none").reasoning == 0 and asked(effort="minimal").reasoning == 0
    assert asked(effort="low", think_tokens=5).reasoning == 5 < low.reasoning
    assert asked(effort="none", answer_tokens=1).completion == 1
    assert asked(effort="low", samples=3).statistics["samples"] == 3
    assert asked(strategy="vote", samples=100).statistics["samples"] == 100
    beam = asked(strategy="beam:expand=2", samples=4)
    assert beam.statistics["strategy"] == "beam:expand=2" and beam.statistics["scorer_tokens"] == 0
    greedy = [asked(effort="low", temperature=0.0, seed=seed).completion for seed in (1, 2, 3)]
    assert len(set(greedy)) == 1
    warm = [asked(effort="low", seed=seed).completion for seed in range(6)]
    assert len(set(warm)) > 1 and asked(effort="low", seed=0).completion == low.completion == warm[0]
    assert asked(effort="medium", temperature=0.5).statistics["ignored"] == ["temperature"]
    points = (Point((Spend("vote", 4),), 4.0, 0.5), Point((Spend("vote", 6),), 6.0, 0.6))
    Calibration("nano", "", "last", 2, "agreement", (), 1.0, points, {"low": 0, "medium": 1, "high": 1}).save(
        tmp_path / "known.json"
    )
    calibrated = asked(str(tmp_path / "known.json"), effort="medium").statistics
    assert (calibrated["strategy"], calibrated["samples"]) == ("auto:effort=medium", 6)


def test_another_turn_draws_other_thoughts_and_a_full_context_is_one_sentence():
    talker = local(nano_service())
    one, two, again = (told_by(talker, Wants("low"), turn=turn)[-1].completion for turn in (1, 2, 1))
    assert one == again != two
    with pytest.raises(UserError, match=r"the conversation has \d+ tokens and the model's context is 1024: /new"):
        told_by(talker, messages=[{"role": "user", "content": "why? " * 300}])
