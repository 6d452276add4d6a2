"""What a person sees: one sentence and exit code 2 for every mistake, nothing half-written, the figures asked for."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mull import __version__, cli
from mull.cli import main
from tests.recipes.tiny import ENDS, save_tiny

QUICK = ["-o", "compile=false", "-o", "threads=1", "-o", "levels=1", "-o", "think_tokens=12", "-o", "answer_tokens=6"]
RL = ["rl", "--quiet", "--task", "any.py:Any", "--steps", "2", "-o", "groups=2", "-o", "group_size=4", *QUICK]


@pytest.fixture
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to work in, with a tiny model and a task."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny")
    (tmp_path / "any.py").write_text(ENDS)
    (tmp_path / "set.jsonl").write_text('{"question": "1+1", "answer": "2"}\n{"question": "2+2", "answer": "4"}\n')
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The sentence with which a command is refused."""
    code = main(args)
    out, err = capsys.readouterr()
    assert code == 2, (code, out, err)
    [line] = [line for line in err.splitlines() if line.strip()]
    assert line.startswith("error: ") and "Traceback" not in err
    return line.removeprefix("error: ")


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


# ----------------------------------------------------------------------------------------------- training


def test_rl_records_what_was_typed_and_resumes_with_its_own_settings(home: Path, capsys: pytest.CaptureFixture[str]):
    args = [*RL, "--model", "tiny", "--out", "a run", "--seed", "7"]
    assert main(args) == 0
    assert capsys.readouterr().out == "model: a run/model\n"
    about = json.loads((home / "a run" / "run.json").read_text())
    assert about["command"] == (
        "mull rl --quiet --task any.py:Any --steps 2 -o groups=2 -o group_size=4 -o compile=false -o threads=1 "
        "-o levels=1 -o think_tokens=12 -o answer_tokens=6 --model tiny --out 'a run' --seed 7"
    )
    config = (home / "a run" / "config.toml").read_text()
    assert "seed = 7" in config and "group_size = 4" in config and 'tasks = ["any.py:Any"]' in config
    assert "already holds a run: go on with it by --resume" in refused(capsys, *args)
    assert main(["rl", "--out", "a run", "--resume", "--quiet", "--steps", "3"]) == 0
    rows = [json.loads(line) for line in (home / "a run" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert "differs in lr" in refused(capsys, "rl", "--out", "a run", "--resume", "-o", "lr=1.0")


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


# ---------------------------------------------------------------------------------------- using a model


def test_think_shows_the_answer_and_an_honest_bill(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["think", "--model", "tiny", "1+1?", "--budget", "8", "-n", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("model: tiny\n") and "chain 3 of 3" in out
    bill = re.search(
        r"3 chains: (\d+) thinking tokens, (\d+) answer tokens, (\d+) prompt tokens, [\d.]+ s, [\d.e+]+ FLOPs$",
        out.strip(),
    )
    assert bill
    from mull.recipes.think import Ask, think

    again = think(Ask("1+1?", samples=3, budget=8, strategy="vote"), "tiny")
    assert int(bill[1]) + int(bill[2]) == again.trace.cost.sampled_tokens
    assert int(bill[3]) == again.prompt_tokens == len("1+1?") + 4  # user, end, assistant, think


@pytest.mark.parametrize("strategy", ["sample", "forced"])
def test_the_bill_counts_what_was_sampled_and_not_what_was_forced(home: Path, strategy: str):
    from mull.recipes.think import Ask, think

    for budget in (0, 5):
        if strategy == "sample" and not budget:
            continue
        got = think(Ask("hm", samples=4, budget=budget, strategy=strategy, answer_tokens=4), "tiny")
        assert sum(c.think_tokens + c.answer_tokens for c in got.chains) == got.trace.cost.sampled_tokens
        assert all(c.think_tokens <= budget + (4 if strategy == "sample" else 0) for c in got.chains)
        if strategy == "forced":
            assert any(c.forced for c in got.chains)
            assert all(c.answer_tokens <= 4 for c in got.chains)


def test_think_draws_a_held_out_problem_and_judges_it(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["think", "--model", "tiny", "--task", "chain", "--level", "2", "--budget", "8", "--seed", "4"]) == 0
    out = capsys.readouterr().out
    from mull.tasks.load import load_task

    problem = next(load_task("chain").stream(2, "test", 4))
    assert "chain, level 2, held out" in out and problem.question.text in out
    assert f"wrong; a right answer is {problem.reference.answer}" in out


def test_raw_is_the_model_s_own_text_and_nothing_else(home: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["think", "--model", "tiny", "hi", "--budget", "8", "--raw", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    from mull.recipes.think import Ask, think

    assert out == think(Ask("hi", budget=8, seed=1), "tiny").chains[0].raw + "\n"
    assert "FLOPs" in err


def test_without_a_model_the_demo_s_is_asked_if_there_is_one(home: Path, capsys: pytest.CaptureFixture[str]):
    (home / "runs" / "demo").mkdir(parents=True)
    (home / "tiny").rename(home / "runs" / "demo" / "model")
    assert main(["think", "hi", "--budget", "4"]) == 0
    assert "model: runs/demo/model (trained by mull demo)" in capsys.readouterr().out


def test_eval_writes_the_figures_it_shows(home: Path, capsys: pytest.CaptureFixture[str]):
    args = ["eval", "--model", "tiny", "--task", "any.py:Any", "--task", "set.jsonl", "--n", "6", "--samples", "3"]
    assert main([*args, "--budget", "12", "--json", "out.json", "--quiet"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((home / "out.json").read_text())
    assert found["command"].startswith("mull eval --model tiny") and found["seed"] == 0
    any_row, set_row = found["rows"]
    assert (any_row["task"], any_row["problems"], any_row["samples"]) == ("any.py:Any", 6, 18)
    assert (set_row["task"], set_row["problems"]) == ("set.jsonl", 2)
    assert set_row["pass_at_1"]["mean"] == 0 and 0 < any_row["pass_at_1"]["mean"] < 1
    for row in found["rows"]:
        assert row["pass_at_1"]["low"] <= row["pass_at_1"]["mean"] <= row["pass_at_1"]["high"]
        assert row["votes"] == 3 and row["vote"]["n"] == row["problems"]
        assert 1 <= row["tokens"] <= 12 + 64 and row["flops_per_problem"] > 1e5 and 0 <= row["truncated"] <= 1
        assert f"{100 * row['pass_at_1']['mean']:.1f}%" in shown
    assert max(map(len, shown.splitlines())) <= 110


def test_the_numbers_of_the_weights_are_asked_for(home: Path, capsys: pytest.CaptureFixture[str]):
    from mull.recipes.think import Ask, think
    from mull.search.sources import Source

    rounded = think(Ask("hi", samples=8, strategy="vote", budget=24), Source("tiny", dtype="bfloat16"))
    args = ["think", "--model", "tiny", "hi", "-n", "8", "--budget", "24", "--raw"]
    assert main([*args, "--dtype", "bfloat16"]) == 0
    out, _ = capsys.readouterr()
    assert out == "".join(chain.raw + "\n" for chain in rounded.chains)
    assert main([*args, "--device", "cpu"]) == 0
    assert capsys.readouterr().out != out
    args = [
        "eval",
        "--model",
        "tiny",
        "--task",
        "any.py:Any",
        "--n",
        "8",
        "--budget",
        "12",
        "--quiet",
        "--json",
        "x.json",
    ]
    found = []
    for more in ([], ["--dtype", "bfloat16"]):
        assert main([*args, "--samples", "8", *more]) == 0
        found.append(json.loads((home / "x.json").read_text()))
    assert [(one["device"], one["dtype"]) for one in found] == [("cpu", "float32"), ("cpu", "bfloat16")]
    assert found[0]["rows"] != found[1]["rows"]
    capsys.readouterr()


def test_an_effort_is_asked_for(home: Path, capsys: pytest.CaptureFixture[str]):
    from mull.recipes.think import Ask, think

    got = think(Ask("hm", effort="low", budget=8), "tiny")
    assert got.trace.question.text == "hm\neffort: low"
    ask = ["--model", "tiny", "--budget", "12", "--effort"]
    args = ["eval", "--task", "countdown", "--level", "1", "--n", "2", "--quiet", "--json", "out.json"]
    assert main([*args, "--strategy", "vote", *ask, "16"]) == 0
    assert json.loads((home / "out.json").read_text())["effort"] == "16"
    assert main(["think", "--task", "countdown", "-n", "2", *ask, "high"]) == 0
    capsys.readouterr()
    assert "the effort 'hgih' is not low, medium, high, or a number of tokens" in refused(
        capsys, "think", "hm", "--model", "tiny", "--effort", "hgih"
    )


def test_eval_counts_what_could_not_be_judged_and_levels_apart(home: Path, capsys: pytest.CaptureFixture[str]):
    base = ["eval", "--model", "tiny", "--budget", "12", "--json", "out.json", "--quiet", "--n", "8"]
    assert main([*base, "--task", "any.py:Picky", "--samples", "8"]) == 0
    [row] = json.loads((home / "out.json").read_text())["rows"]
    assert 0 < row["unscorable"] < 64
    for strategy in ("vote", "forced"):
        args = ["--task", "chain", "--level", "1", "--level", "2", "--samples", "2", "--strategy", strategy]
        assert main([*base, *args]) == 0
        rows = json.loads((home / "out.json").read_text())["rows"]
        assert [(r["task"], r["level"], r["problems"]) for r in rows] == [
            ("chain", None, 8),
            ("chain", 1, 4),
            ("chain", 2, 4),
        ]
    capsys.readouterr()


@pytest.mark.parametrize("strategy", ["beam:expand=2", "rebase", "mcts", "particles", "adaptive", "wait"])
def test_a_search_is_shown_with_its_bill_and_what_it_could_not_do(home: Path, capsys, strategy: str):
    plain = ["--model", "tiny", "--strategy", strategy, "--scorer", "logprob"]
    assert main(["think", *plain, "1+1?", "--budget", "8", "-n", "4", "--tokens", "30"]) == 0
    out = capsys.readouterr().out
    bill = re.search(r"(\d+) steps, (\d+) answers, (\d+) sampled tokens", out)
    assert bill and int(bill[3]) <= 30
    args = ["eval", *plain, "--task", "any.py:Any", "--n", "6", "--samples", "4", "--budget", "12", "--tokens", "40"]
    assert main([*args, "--json", "out.json", "--quiet"]) == 0
    shown = capsys.readouterr().out
    [row] = json.loads((home / "out.json").read_text())["rows"]
    assert row["answer"]["n"] == 6 and row["tokens_per_problem"] <= 40 and row["flops_per_problem"] > 0
    assert f"{100 * row['answer']['mean']:.1f}%" in shown
    assert ("exhausted: the budget ran out on" in shown) == (row["exhausted"] > 0)
    for what in list(row["lost"])[:8]:
        assert what in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 110 or row["lost"]


def test_strategies_are_listed_with_their_options(capsys: pytest.CaptureFixture[str]):
    assert main(["strategies"]) == 0
    out = capsys.readouterr().out
    assert "beam\n    N: paths" in out and "expand=4" in out and "auto" in out


def test_report_of_an_rl_run_and_of_a_demo(home: Path, capsys: pytest.CaptureFixture[str]):
    more = ["--model", "tiny", "--out", "run", "-o", "eval_every=1", "-o", "eval_problems=4", "-o", "eval_samples=1"]
    assert main([*RL, *more]) == 0
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out.endswith("report: run/report.html\n")
    page = (home / "run" / "report.html").read_text()
    assert "any" in page and "mull rl --quiet" in page
    summary = json.loads((home / "run" / "summary.json").read_text())
    assert len(summary["train_curve"]) == 3 and summary["train_curve"][0]["flops"] == 0
    assert summary["pass_at_1"]["base"]["n"] == 4 and summary["command"].startswith("mull rl")

    (home / "demo").mkdir()
    assert "holds no run" in refused(capsys, "report", "demo")
    (home / "demo" / "report_data.json").write_text("{")
    assert "report_data.json is not valid JSON" in refused(capsys, "report", "demo")
    (home / "demo" / "report_data.json").write_text("{}")
    assert "lack" in refused(capsys, "report", "demo")
    from tests.evals.report_fixture import report

    (home / "demo" / "report_data.json").write_text(json.dumps(report()))
    assert main(["report", "demo"]) == 0
    assert (home / "demo" / "report.html").stat().st_size > 100_000


def test_bench_gets_its_name_options_and_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    seen: list[Any] = []
    fake = types.ModuleType("mull.recipes.bench")
    fake.bench = lambda *given: seen.append(given) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mull.recipes.bench", fake)
    assert main(["bench", "rollout", "--json", "x.json", "-o", "n=4"]) == 3
    assert seen == [("rollout", Path("x.json"), {"n": "4"})]
    assert "is not of the form key=value" in refused(capsys, "bench", "rollout", "-o", "n")
