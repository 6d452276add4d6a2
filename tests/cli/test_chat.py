"""The command line of `mull chat`: mistakes in it, and that what it is given reaches the model."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from mull.cli.chat_models import Wants
from mull.cli.main import main
from tests.cli.chat_tools import local, said, text_of, told_by
from tests.cli.tools import refused
from tests.serve.tools import QUESTION, nano_service


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--effort", "hihg"], "unknown effort 'hihg'; did you mean 'high'?"),
        (["--model", "nano", "--endpoint", "http://localhost:9"], "--model and --endpoint exclude each other"),
        (["--name", "a"], "--name is for a server: give its address with --endpoint URL"),
        (["--key", "a"], "--key is for a server"),
        (["--endpoint", "http://localhost:9", "--scorer", "logprob"], "--scorer is for a model in this process"),
        (["--endpoint", "http://localhost:9", "--calibration", "c"], "--calibration is for a model in this process"),
        (["--endpoint", "http://localhost:9", "--device", "cuda"], "--device is for a model in this process"),
        (["--endpoint", "http://localhost:9", "--dtype", "bfloat16"], "--dtype is for a model in this process"),
        (["--device", "gpu"], "mull computes on no device 'gpu'"),
        (["--dtype", "bf16"], "unknown dtype 'bf16'; did you mean 'bfloat16'?"),
        (["--endpoint", "http://localhost:9", "--answer-tokens", "3"], "--answer-tokens needs --think-tokens"),
        (["--endpoint", "localhost:9"], "'localhost:9' is no address of a server"),
        (["--endpoint", "http://127.0.0.1:9/v1"], "nothing answers at http://127.0.0.1:9/v1 ("),
        (["--model", "gone"], "gone is not a folder"),
        (["--strategy", "voting"], "unknown strategy 'voting'; did you mean 'vote'?"),
        (["--strategy", "beam"], "needs a scorer: give --scorer DIR"),
        (["--calibration", "gone.json"], "gone.json"),
        (["--thougths"], "no such option: --thougths; did you mean --thoughts?"),
    ],
)
def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path, args, sentence):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert sentence in refused(capsys, "chat", *args)


@pytest.mark.parametrize(("given", "dtype"), [([], "float32"), (["--dtype", "bfloat16"], "bfloat16")])
def test_the_command_computes_in_the_numbers_that_were_asked_for(monkeypatch, capsys, given, dtype):
    talkers: list[Any] = []
    monkeypatch.setattr("mull.cli.chat_loop.converse", lambda talker, *_: talkers.append(talker) or 0)
    assert main(["chat", "--model", "nano", "--device", "cpu", *given]) == 0
    model = talkers[0]._tools.sampler.model
    assert str(model.dtype) == f"torch.{dtype}" and model.device.type == "cpu"
    assert text_of(told_by(talkers[0], Wants("low", think_tokens=16, answer_tokens=8)))


def test_the_command_answers_as_the_service_would(monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION + "\n"))
    given = ["--effort", "low", "--think-tokens", "64", "--answer-tokens", "16", "--seed", "5", "--scorer", "logprob"]
    assert main(["chat", "--model", "nano", *given]) == 0
    [content], _ = said(capsys)
    assert (
        content == told_by(local(nano_service()), Wants("low", think_tokens=64, answer_tokens=16, seed=5))[-1].content
    )
