"""`kill -9` at any moment, then --resume: the run ends bitwise where an undisturbed one does.

Runs are processes of a fork server that has torch loaded already, so that a start costs milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.recipes.pretrain import PretrainConfig, pretrain
from mull.recipes.rl import RLConfig, rl
from mull.recipes.sft import SFTConfig, sft
from mull.runfolder import RunFolder
from tests.recipes.tiny import save_tiny

TIMINGS = ("seconds", "per_second")  # in the names of the metrics that no two runs share

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    ["mull.recipes.rl", "mull.recipes.pretrain", "mull.recipes.sft", "torch._dynamo"]  # which every optimiser imports
)


def start(recipe: Callable[..., Any], cfg: Any) -> Any:
    """The run as a process of its own, resuming what its folder holds."""
    process = server.Process(target=recipe, args=(cfg, "mull", True, "quiet"))
    process.start()
    return process


def finish(recipe: Callable[..., Any], cfg: Any) -> float:
    """Runs it to its end; returns the seconds."""
    began = time.monotonic()
    process = start(recipe, cfg)
    process.join(120)
    assert process.exitcode == 0
    return time.monotonic() - began


def lines(out: Path) -> int:
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def kill_after(recipe: Callable[..., Any], cfg: Any, more: int, seconds: float) -> bool:
    """Kills the run some time after it has logged `more` more lines; False when it was done before that."""
    process = start(recipe, cfg)
    while process.is_alive() and not (cfg.out / "config.toml").exists():
        time.sleep(0.001)
    had = lines(cfg.out)  # what a resumed run takes back may make it less
    while process.is_alive() and lines(cfg.out) < had + more:
        had = min(had, lines(cfg.out))
        time.sleep(0.0005)
    process.join(seconds)
    killed = process.is_alive()
    process.kill()
    process.join()
    return killed


def equal(a: Any, b: Any, at: str = "state") -> None:
    """Asserts that two states are the same to the bit, the clock's readings apart."""
    if isinstance(a, dict):
        assert list(a) == list(b), at
        for key in a:
            if not (isinstance(key, str) and any(word in key for word in TIMINGS)):
                equal(a[key], b[key], f"{at}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            equal(x, y, f"{at}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), at
    else:
        assert a == b, f"{at}: {a!r} is not {b!r}"


def same_run(whole: Path, broken: Path) -> None:
    rows = [[json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (whole, broken)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    equal(rows[0], rows[1], "metrics")
    names = [sorted(p.name for p in (out / "checkpoints").iterdir()) for out in (whole, broken)]
    assert names[0] == names[1] and len(names[0]) > 1
    for name in names[0]:
        states = [torch.load(out / "checkpoints" / name / "state.pt", weights_only=True) for out in (whole, broken)]
        equal(*states, name)
    for file in sorted((whole / "model").iterdir()):
        assert file.read_bytes() == (broken / "model" / file.name).read_bytes(), file.name
    traces = [{p.name: p.read_bytes() for p in (out / "traces").glob("*")} for out in (whole, broken)]
    assert traces[0] == traces[1]


def broken_run(recipe: Callable[..., Any], cfg: Any, kills: int, rng: random.Random, step_seconds: float) -> None:
    """Kills the run `kills` times, at the start, between steps and in the midst of writing, then lets it finish."""
    killed = kill_after(recipe, cfg, 0, rng.random() * 0.05)  # before anything was saved
    for _ in range(kills - 1):
        killed += kill_after(recipe, cfg, rng.randrange(1, 4), rng.random() * step_seconds)
    assert killed >= 2, "the run was over before it could be killed"
    finish(recipe, cfg)


def rl_config(model: Path, out: Path) -> RLConfig:
    return RLConfig(
        model=str(model),
        out=out,
        tasks=("chain", f"{model.parent / 'any.py'}:Any"),
        levels=(1,),
        steps=6,
        groups=3,
        group_size=4,
        think_tokens=16,
        answer_tokens=8,
        minibatches=2,
        kl=0.05,
        top_p=0.95,
        eval_every=2,
        eval_problems=4,
        eval_samples=1,
        checkpoint_every=2,
        compile=False,
        threads=1,
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_rl_killed_and_resumed_is_bitwise_the_same(tmp_path: Path, seed: int):
    from tests.recipes.tiny import ENDS

    (tmp_path / "any.py").write_text(ENDS)
    model = save_tiny(tmp_path / "base", seed)
    whole, broken = rl_config(model, tmp_path / "whole"), rl_config(model, tmp_path / "broken")
    seconds = finish(rl, whole)
    moved = [row["grad_norm"] for row in map(json.loads, (whole.out / "metrics.jsonl").open()) if row["step"]]
    assert len(moved) == 6 and min(moved) > 0, "a step without a gradient proves nothing"
    broken_run(rl, broken, 5, random.Random(seed), seconds / 8)
    same_run(whole.out, broken.out)


def test_pretraining_killed_and_resumed_is_bitwise_the_same(tmp_path: Path):
    def cfg(name: str) -> PretrainConfig:
        return PretrainConfig(
            out=tmp_path / name,
            tasks=("chain", "addition"),
            levels=1,
            layers=2,
            width=32,
            steps=9,
            step_tokens=2000,
            checkpoint_every=3,
            compile=False,
            threads=1,
        )

    seconds = finish(pretrain, cfg("whole"))
    broken_run(pretrain, cfg("broken"), 3, random.Random(2), seconds / 10)
    same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("from_file", [False, True])
def test_fine_tuning_killed_and_resumed_is_bitwise_the_same(tmp_path: Path, from_file: bool):
    model = save_tiny(tmp_path / "base")
    data = tmp_path / "rows.jsonl"
    rows = [{"question": f"{i}+1", "thought": f"{i}+1={i + 1}", "answer": str(i + 1)} for i in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def cfg(name: str) -> SFTConfig:
        return SFTConfig(
            model=str(model),
            out=tmp_path / name,
            tasks=("chain",),
            levels=(1,),
            source="imperfect",
            data=data if from_file else None,
            steps=9,
            step_tokens=1000,
            eval_problems=4,
            eval_samples=1,
            think_tokens=16,
            answer_tokens=8,
            checkpoint_every=3,
            compile=False,
            threads=1,
        )

    seconds = finish(sft, cfg("whole"))
    broken_run(sft, cfg("broken"), 3, random.Random(3), seconds / 10)
    same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_killed_before_its_first_checkpoint_logs_no_step_twice(tmp_path: Path):
    model = save_tiny(tmp_path / "base")
    cfg = SFTConfig(
        model=str(model),
        out=tmp_path / "run",
        tasks=("chain",),
        levels=(1,),
        steps=3,
        step_tokens=500,
        eval_problems=2,
        eval_samples=1,
        think_tokens=8,
        answer_tokens=8,
        compile=False,
        threads=1,
    )
    from mull import config as configs

    with RunFolder.create(cfg.out, configs.to_toml(cfg), "mull", cfg.seed) as run:
        run.log(0, {"loss": 9.0})
        run.log(1, {"loss": 9.0})
    finish(sft, cfg)
    rows = [json.loads(line) for line in (cfg.out / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row.get("loss") != 9.0 for row in rows)
