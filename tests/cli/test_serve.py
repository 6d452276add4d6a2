"""`mull serve` on the command line: settings from a file, from -o and from flags, and mistakes in one sentence."""

from pathlib import Path

import pytest

from mull.cli.main import main
from mull.serve.settings import Settings


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Settings]:
    """The settings of the servers that would have been started, in an empty folder."""
    found: list[Settings] = []
    monkeypatch.setattr("mull.serve.main.serve", found.append)
    monkeypatch.chdir(tmp_path)
    return found


def test_help_lists_every_setting(capsys: pytest.CaptureFixture):
    assert main(["serve", "--help"]) == 0
    told = capsys.readouterr().out
    for flag in ("--model", "--endpoint", "--tokenizer", "--scorer", "--calibration", "--host", "--port", "--keys"):
        assert flag in told
    for key in ("overcommit", "queue_seconds", "drain_seconds", "watch_model", "admin", "log_prompts", "store_bytes"):
        assert f"\n  {key} " in told, key


def test_settings_come_from_the_file_then_from_overrides_and_flags(started: list[Settings], tmp_path: Path):
    file = tmp_path / "serve.toml"
    file.write_text('queue = 7\nport = 1234\nthoughts = "shown"\nmodel = "nano"\norigins = ["https://a.example"]\n')
    given = ["--port", "0", "--keys", "k y", "-o", "drain_seconds=2.5", "--params", "strict_o1", "--host", "::1"]
    assert main(["serve", "--config", str(file), *given]) == 0
    [made] = started
    assert (made.queue, made.port, made.thoughts, made.drain_seconds) == (7, 0, "shown", 2.5)
    assert (made.params, made.host, made.keys, made.origins) == (
        "strict_o1",
        "::1",
        Path("k y"),
        ("https://a.example",),
    )
    assert (made.overcommit, made.model) == (Settings().overcommit, "nano")


def test_models_beside_the_main_one_are_named_or_called_after_their_folders(started: list[Settings], tmp_path: Path):
    assert main(["serve", "--model", "nano", "--beside", "runs/a,b/model", "--beside", "old=runs/lr=3/model"]) == 0
    assert main(["serve", "--model", "nano", "-o", "beside=[x,y=z]"]) == 0
    (tmp_path / "serve.toml").write_text('model = "nano"\nbeside = ["x"]\n')
    assert main(["serve", "--config", "serve.toml"]) == 0
    first, second, third = started
    assert first.names() == {"nano": "nano", "a,b": "runs/a,b/model", "old": "runs/lr=3/model"}
    assert second.names() == {"nano": "nano", "x": "x", "y": "z"} and third.names() == {"nano": "nano", "x": "x"}


def test_the_demos_model_is_served_where_there_is_one(started: list[Settings], tmp_path: Path):
    assert main(["serve"]) == 0
    (tmp_path / "runs/demo/model").mkdir(parents=True)
    (tmp_path / "runs/demo/model/config.json").write_text("{}")
    assert main(["serve"]) == 0
    assert main(["serve", "--model", "else/where"]) == 0
    assert main(["serve", "--endpoint", "http://127.0.0.1:9/v1", "--tokenizer", "dir", "--calibration", "c.json"]) == 0
    assert [made.model for made in started] == ["nano", "runs/demo/model", "else/where", ""]
    assert (started[3].endpoint, started[3].tokenizer) == ("http://127.0.0.1:9/v1", "dir")
    assert started[3].calibration == "c.json"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--port", "70000"], "port=70000 is not a port"),
        (["-o", "quue=3"], "did you mean 'queue'?"),
        (["-o", "port=1", "--port", "2"], "the key 'port' is given twice"),
        (["--params", "strict"], "must be one of compat, strict_o1"),
        (["--queue", "3"], "did you mean -o queue=…?"),
        (["--model", "nano", "--endpoint", "http://x/v1"], "exclude each other"),
        (["--endpoint", "http://x/v1", "--tokenizer", "t", "--beside", "nano"], "with --endpoint leave it out"),
        (["--beside", "x="], "--beside 'x=' must be a model's folder, or NAME=FOLDER"),
        (["--beside", "nano", "-o", "beside=x"], "the key 'beside' is given twice"),
        (["-o", "dtype=bf16"], "must be one of float32, bfloat16"),
        (["--device", "cuda"], "did you mean -o device=…?"),
        (["-o", "overcommit=0"], "overcommit=0.0 must be above 0"),
        (["--config", "none.toml"], "config file none.toml does not exist"),
    ],
)
def test_mistakes_are_told_in_one_sentence(given, said, started: list[Settings], capsys: pytest.CaptureFixture):
    assert main(["serve", *given]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not started


def test_a_device_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture):
    assert main(["serve", "--model", "nano", "--port", "0", "-o", "device=cuda:99"]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ") and "cuda:99" in told


def test_a_model_that_is_not_there_is_told_before_anything_listens(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["serve", "--model", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_two_models_of_one_name_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["serve", "--model", "nano", "--beside", str(tmp_path / "nano/model"), "--port", "0"]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert "would be called 'nano'" in told and f"--beside NAME={tmp_path / 'nano/model'}" in told
