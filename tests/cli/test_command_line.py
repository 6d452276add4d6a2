"""What a person sees: one sentence and exit code 2 for every mistake, nothing half-written, help without torch."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mull import __version__, cli
from mull.cli import main
from tests.cli.tools import QUICK, RL, refused

# --------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["trian"], "no such command: trian; did you mean"),
        (["evla"], "did you mean 'eval'?"),
        (["rl", "--stepz", "3"], "no such option: --stepz; did you mean --steps?; see mull rl --help"),
        (["rl", "--group_size", "3"], "did you mean -o group_size=…?"),
        (["rl", "--algorithm", "vinepo"], "unknown algorithm 'vinepo'; did you mean 'vineppo'?"),
        (["rl", "--algoritm", "grpo"], "did you mean --algorithm?"),
        (["think", "--sampels", "3", "hi"], "did you mean --samples?"),
        (["rl", "--steps", "many"], "--steps"),
        (["rl", "--steps", "0"], "--steps"),
        (["rl", "extra"], "extra"),
        (["eval"], "missing option '--task'"),
        (["report"], "missing argument"),
        (["think"], "give one question in quotes, or --task"),
        (["think", "hi", "--task", "chain"], "give one question in quotes, or --task"),
        (["think", "hi", "--level", "2"], "give --task NAME"),
        (["think", "hi", "--model", "tiny", "--strategy", "voting"], "unknown strategy 'voting'; did you mean 'vote'?"),
        (["think", "hi", "--model", "tiny", "--strategy", "beam"], "needs a scorer: give --scorer DIR"),
        (["think", "hi", "--model", "tiny", "--strategy", "beam:width=3"], "'width=3' is no option of beam"),
        (["think", "hi", "--model", "tiny", "--strategy", "beam", "--scorer", "tiny"], "tiny"),
        (["think", "hi", "--model", "tiny", "--strategy", "auto"], "mull calibrate makes one"),
        (["think", "hi", "--endpoint", "http://localhost:9/v1"], "--endpoint needs --tokenizer DIR"),
        (["think", "hi", "--endpoint", "http://localhost:9/v1", "--tokenizer", "tiny"], "localhost:9"),
        (["think", "hi", "--model", "tiny", "--device", "gpu"], "mull computes on no device 'gpu': give cpu, cuda, or"),
        (["think", "hi", "--model", "tiny", "--dtype", "bf16"], "unknown dtype 'bf16'; did you mean 'bfloat16'?"),
        (["eval", "--task", "chain", "--model", "tiny", "--device", "cuda:99"], "cuda:99"),
        (["eval", "--task", "chain", "--model", "tiny", "--dtype", "float16"], "there are float32, bfloat16"),
        (
            ["eval", "--task", "chain", "--endpoint", "http://a/v1", "--tokenizer", "tiny", "--device", "cuda"],
            "device cuda and dtype float32 are for what is loaded here",
        ),
        (["rl", "--model", "tiny", "--out", "run", "-o", "device=mps"], "mull computes on no device 'mps'"),
        (["pretrain", "--out", "run", "-o", "device=gpu"], "mull computes on no device 'gpu'"),
        (["compare", "--model", "tiny", "--out", "run", "-o", "device=cuda:99"], "cuda:99"),
        (["compare", "--model", "tiny", "-o", "dtype=float16"], "must be one of float32, bfloat16"),
        (["compare", "--strategy", "beam"], "must include vote"),
        (["compare", "--strateggy", "beam"], "did you mean --strategy?"),
        (["calibrate", "-o", "probe=1"], "probe must be from 2"),
        (["reward", "--kind", "prn"], "did you mean 'prm'?"),
        (["rl", "-o", "stpes=3"], "unknown key 'stpes'; did you mean 'steps'?"),
        (["rl", "-o", "steps"], "is not of the form key=value"),
        (["rl", "-o", "steps=many"], "'steps' must be a whole number, not the text 'many'"),
        (["rl", "-o", "algorithm=drgrpo"], "did you mean 'dr_grpo'?"),
        (["rl", "--steps", "3", "-o", "steps=4"], "'steps' is given twice"),
        (["rl", "-o", "group_size=1"], "group_size must be at least 2"),
        (["pretrain", "-o", "width=33"], "a multiple of 32"),
        (["rl", "--config", "gone.toml"], "config file gone.toml does not exist"),
        (["rl", "--config", "bad.toml"], "bad.toml, line 2"),
        (["rl", "--config", "unknown.toml"], "unknown.toml: unknown key 'learning_rate'"),
        (["rl", "--model", "gone", "--out", "run"], "gone is not a folder"),
        (["rl", "--model", "tiny", "--out", "run", "--task", "chian"], "unknown task 'chian'; did you mean 'chain'?"),
        (["rl", "--model", "tiny", "--out", "run", "-o", "think_tokens=900"], "the model's context of 256"),
        (["rl", "--model", "tiny", "--out", "run", "-o", "levels=50"], "has no level among [50]"),
        (["rl", "--model", "tiny", "--out", "run", "--task", "torn.jsonl"], "torn.jsonl:2"),
        (["sft", "--model", "tiny", "--out", "run", "--data", "torn.jsonl"], "torn.jsonl, line 2"),
        (["pretrain", "--out", "run", "--task", "set.jsonl"], "writes no worked solutions"),
        (["think", "--model", "gone", "hi"], "gone is not a folder"),
        (["think", "--model", "tiny", "why? " * 80], "context is 256"),
        (["think", "--model", "tiny", "hi", "--strategy", "forced", "--budget", "250"], "at most 185 thinking tokens"),
        (["think", "--model", "tiny", "--task", "chain", "--level", "99"], "task chain has no level 99"),
        (["eval", "--model", "tiny", "--task", "chian"], "did you mean 'chain'?"),
        (["eval", "--model", "tiny", "--task", "chain", "--level", "99"], "task chain has no level 99"),
        (["eval", "--model", "tiny", "--task", "chain", "--split", "tests"], "did you mean 'test'?"),
        (["eval", "--model", "tiny", "--task", "set.jsonl", "--split", "train"], "no train problems"),
        (["eval", "--model", "tiny", "--task", "torn.jsonl"], "torn.jsonl:2"),
        (["eval", "--model", "tiny", "--task", "long.jsonl"], "does not fit into the model's context of 256"),
        (["eval", "--model", "tiny", "--task", "chain", "--json", "gone/x.json"], "folder gone does not exist"),
        (["report", "gone"], "there is no run folder gone"),
        (["report", "tiny"], "tiny holds no run"),
    ],
    ids=lambda x: " ".join(x)[:60] if isinstance(x, list) else "",
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], args: list[str], sentence: str
):
    (home / "bad.toml").write_text("steps = 3\nlr = = 1\n")
    (home / "unknown.toml").write_text("learning_rate = 1\n")
    (home / "torn.jsonl").write_text('{"question": "1+1", "answer": "2"}\n{"question": "1+\n')
    (home / "long.jsonl").write_text(json.dumps({"question": "?" * 300, "answer": "2"}) + "\n")
    before = sorted(home.rglob("*"))
    assert sentence in refused(capsys, *args)
    after = [p for p in sorted(home.rglob("*")) if "__pycache__" not in p.parts]
    assert after == before, "something was left behind"


def broken(home: Path, name: str) -> None:
    tiny = home / "tiny"
    if name == "no weights":
        (tiny / "model.safetensors").unlink()
    if name == "torn weights":
        whole = (tiny / "model.safetensors").read_bytes()
        (tiny / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    if name == "no config":
        (tiny / "config.json").unlink()
    if name == "torn config":
        (tiny / "config.json").write_text('{"model_type": ')
    if name == "other architecture":
        config = json.loads((tiny / "config.json").read_text())
        (tiny / "config.json").write_text(
            json.dumps({**config, "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
        )
    if name == "no tokenizer":
        (tiny / "tokenizer.json").unlink()
    if name == "no thought tokens":
        text = (tiny / "tokenizer.json").read_text()
        (tiny / "tokenizer.json").write_text(text.replace('"<think>"', '"<a>"').replace('"</think>"', '"<b>"'))
    if name == "no template":
        (tiny / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no weights", "safetensors"),
        ("torn weights", "model.safetensors is truncated"),
        ("no config", "has no config.json"),
        ("torn config", "config.json is not valid JSON"),
        ("other architecture", "GPT2LMHeadModel, which is not supported"),
        ("no tokenizer", "has no tokenizer.json"),
        ("no thought tokens", "<think>"),
        ("no template", "has no chat template"),
    ],
)
@pytest.mark.parametrize("command", ["think", "eval", "rl", "sft"])
def test_a_broken_model_folder_is_one_sentence(
    home: Path, capsys: pytest.CaptureFixture[str], name: str, words: str, command: str
):
    broken(home, name)
    args = {
        "think": ["think", "--model", "tiny", "hi", "--budget", "4"],
        "eval": ["eval", "--model", "tiny", "--task", "chain", "--n", "2", "--quiet"],
        "rl": [*RL, "--model", "tiny", "--out", "run"],
        "sft": ["sft", "--model", "tiny", "--out", "run", "--quiet", "--task", "chain", *QUICK],
    }
    assert words in refused(capsys, *args[command])
    assert not (home / "run").exists()


def test_a_bug_keeps_its_traceback(home: Path, monkeypatch: pytest.MonkeyPatch):
    import mull.recipes.think as think

    monkeypatch.setattr(think, "think", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["think", "--model", "tiny", "hi"])


def test_a_full_disk_is_one_sentence(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    import mull.recipes.rl as recipe

    def full(*_: Any, **__: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recipe, "rl", full)
    assert refused(capsys, *RL).startswith("the disk is full: free some space")


# -------------------------------------------------------------------------------------- help and versions


def test_help_and_version_answer_without_torch():
    """As a user starts it; the limit is on the process's own time, so that a busy machine does not matter."""
    program = (
        "import sys, resource; from mull.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = {'torch', 'numpy', 'rich', 'transformers', 'jinja2'} & set(sys.modules)\n"
        "print(code, sorted(heavy), used.ru_utime + used.ru_stime)"
    )
    for args in (["--help"], ["--version"], ["think", "--help"], ["eval", "--help"], ["bench", "--help"]):
        done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=60)
        code, heavy, seconds = done.stdout.splitlines()[-1].split(" ", 1)[0], *done.stdout.split("\n")[-2].split()[1:]
        assert (code, heavy) == ("0", "[]"), (args, done.stdout, done.stderr)
        assert float(seconds) < 1.0


def test_version_and_no_command(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mull {__version__}\n"
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_recipe_lists_every_key_with_default_and_meaning(command: str, capsys: pytest.CaptureFixture[str]):
    from mull.config import describe

    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    keys = out.partition("Config keys")[2]
    for option in describe(cli.COMMANDS[command].where.load()[0]):
        assert re.search(rf"^  {option.key}\s", keys, re.MULTILINE), option.key
    if command == "rl":
        assert "weight of the KL to the starting model; a number; default 0.0" in " ".join(keys.split())
