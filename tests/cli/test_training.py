"""Commands that train: what they record, how they go on, and Ctrl-C in the midst of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mull.cli import main
from mull.errors import UserError
from tests.cli.tools import RL, refused


def test_rl_records_what_was_typed_and_resumes_with_its_own_settings(home: Path, capsys: pytest.CaptureFixture[str]):
    args = [*RL, "--model", "tiny", "--out", "a run", "--seed", "7"]
    assert main(args) == 0
    assert capsys.readouterr().out == "model: a run/model\nreport: a run/report.html\n"
    about = json.loads((home / "a run" / "run.json").read_text())
    assert about["command"] == (
        "mull rl --quiet --task any.py:Any --steps 2 -o groups=2 -o group_size=4 -o eval_problems=4 -o compile=false "
        "-o threads=1 -o levels=1 -o think_tokens=12 -o answer_tokens=6 --model tiny --out 'a run' --seed 7"
    )
    config = (home / "a run" / "config.toml").read_text()
    assert "seed = 7" in config and "group_size = 4" in config and 'tasks = ["any.py:Any"]' in config
    assert "already holds a run: go on with it by --resume" in refused(capsys, *args)
    assert main(["rl", "--out", "a run", "--resume", "--quiet", "--steps", "3"]) == 0
    rows = [json.loads(line) for line in (home / "a run" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert "differs in lr" in refused(capsys, "rl", "--out", "a run", "--resume", "-o", "lr=1.0")


def test_a_model_without_a_report(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    args = [*RL, "--model", "tiny", "--out", "run", "--no-report"]
    assert main(args) == 0
    assert capsys.readouterr().out == "model: run/model\n" and not (home / "run" / "report.html").exists()

    def refuse(*_: Any, **__: Any) -> Path:
        raise UserError("nothing can be measured")

    monkeypatch.setattr("mull.recipes.report.report", refuse)
    assert main(["rl", "--out", "run", "--resume", "--quiet"]) == 0
    assert capsys.readouterr() == ("model: run/model\n", "no report: nothing can be measured\n")


def test_a_file_an_override_and_a_flag_make_one_config(home: Path, monkeypatch: pytest.MonkeyPatch):
    import mull.recipes.rl as recipe

    (home / "my.toml").write_text('lr = 1e-5\nseed = 3\ngroups = 5\ntasks = ["maze"]\n')
    seen: list[Any] = []
    monkeypatch.setattr(recipe, "rl", lambda cfg, **more: seen.append((cfg, more)) or Path("x"))
    command = ["rl", "--config", "my.toml", "-o", "groups=6", "--task", "chain", "--task", "a b.jsonl", "--model", "3"]
    assert main(command) == 0
    cfg, more = seen[0]
    assert (cfg.lr, cfg.seed, cfg.groups, cfg.tasks, cfg.model) == (1e-5, 3, 6, ("chain", "a b.jsonl"), "3")
    assert more["mode"] == "auto" and more["resume"] is False and more["command"].startswith("mull rl --config my.toml")


def test_ctrl_c_says_how_to_go_on(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    import mull.recipes.rl as recipe
    import mull.recipes.think as think

    def stop(*_: Any, **__: Any) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "rl", stop)
    monkeypatch.setattr(think, "think", stop)
    assert main(["rl", "--out", "my run"]) == 130
    assert capsys.readouterr().err == "interrupted; go on with: mull rl --out 'my run' --resume\n"
    assert main(["rl", "--out", "x", "--resume"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; go on with: mull rl --out x --resume"
    assert main(["think", "--model", "tiny", "hi"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_a_ctrl_c_tears_down_may_fail_in_its_own_way(home: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    import mull.recipes.rl as recipe

    def stop(*_: Any, **__: Any) -> Path:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected position in the file")

    monkeypatch.setattr(recipe, "rl", stop)
    assert main(["rl", "--out", "x"]) == 130
    assert capsys.readouterr().err == "interrupted; go on with: mull rl --out x --resume\n"


def test_a_real_ctrl_c_in_the_midst_of_training(home: Path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "mull", *RL, "--model", "tiny", "--out", "run", "-o", "checkpoint_every=1"]
    command[command.index("--steps") + 1] = "10000"
    # A shell's background job hands down an ignored SIGINT, which Python would keep.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heed)
    metrics = home / "run" / "metrics.jsonl"
    while running.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert err.splitlines()[-1].startswith("interrupted; go on with: mull rl --quiet") and "Traceback" not in err
    done = metrics.read_bytes().count(b"\n")
    assert main(["rl", "--out", "run", "--resume", "--quiet", "--steps", str(done + 1)]) == 0
    steps = [json.loads(line)["step"] for line in metrics.open()]
    assert steps == list(range(1, done + 2))


def test_an_algorithm_with_a_critic_is_another_recipe_of_the_same_command(home: Path):
    args = ["rl", *RL[1:], "--algorithm", "ppo", "--model", "tiny", "--out", "run", "-o", "gae_lambda=0.9"]
    assert main(args) == 0
    held = (home / "run" / "config.toml").read_text()
    assert 'algorithm = "ppo"' in held and "gae_lambda = 0.9" in held
    assert main(["rl", "--out", "run", "--resume", "--quiet"]) == 0, "a resumed run knows which it was"


def test_a_closed_pipe_is_silent():
    program = "import sys; from mull.cli import main; sys.exit(main(['--help']))"
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait(60) == 141
