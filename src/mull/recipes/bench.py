"""`mull bench rollout` and `mull bench rl-step`: the same work by mull and by its peers, in one run.

Every system has a process of its own, loads the same Hugging Face folder, gets the same prompts and as many threads,
warms up, and then they take turns round by round, never two at once. A peer that can be set in several ways is tried
with each in its warm-up, and the fastest competes. Figures are medians over the rounds. Round k has the same prompts
for every system, and no prompt comes twice, so that no cache is warmer than it would be in training.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mull import config as configs
from mull.chat import Chat
from mull.engine.sampler import derive_seed
from mull.errors import UserError, nearest
from mull.evals import evidence
from mull.files import write_whole
from mull.models.nano import shipped_folder
from mull.recipes import bench_table
from mull.recipes.bench_table import Result
from mull.tasks.load import load_task

SCRIPTS = Path(__file__).parents[3] / "benchmarks"
BENCH_PYTHON = Path(".venv-bench/bin/python")
NAMES = {
    "rollout": "sampled tokens/s against transformers' generate and its continuous batching",
    "rl-step": "seconds for a step of reinforcement learning against TRL's GRPOTrainer",
}


@dataclass(frozen=True)
class BenchConfig:
    model: str = "nano"  # a Hugging Face folder, or nano for the one that ships
    tasks: tuple[str, ...] = ("chain", "countdown")
    levels: tuple[int, ...] = (1, 2)
    groups: int = 24  # questions in a round
    group_size: int = 16  # chains for each question
    think_tokens: int = 256
    answer_tokens: int = 32
    temperature: float = 1.0
    lr: float = 1e-6  # so small that the lengths stay those of the model's start
    rounds: int = 6  # from 6 on, smallest and largest round bound the median with 97% confidence
    warmups: int = 2
    threads: int = 0  # of every system; 0: as many as this process may use cores
    seed: int = 0
    python: str = ""  # the interpreter that has the peers; default: .venv-bench's, else this one
    evidence: str = ""  # folder of the evidence file; default: docs/evidence, for the standard work only
    profile: bool = False  # also say what mull's time goes into

    def __post_init__(self) -> None:
        if min(self.groups, self.rounds, self.warmups) < 1 or self.group_size < 2:
            raise UserError("groups, rounds and warmups must be at least 1, and group_size at least 2")

    @property
    def standard(self) -> bool:
        """Whether this is the work that documents quote: only what does not change a figure's meaning was set."""
        free = {"rounds": 6, "seed": 0, "python": "", "evidence": "", "profile": False, "threads": 0}
        return self.rounds >= 6 and replace(self, **free) == BenchConfig()


@dataclass(frozen=True)
class System:
    """One competitor: its name, the worker's command, and the settings to try."""

    name: str
    command: tuple[str, ...]
    settings: tuple[dict[str, Any], ...]


def bench(name: str, out_json: Path | None = None, options: dict[str, str] | None = None) -> int:
    """Runs one comparison, prints its table, writes `out_json` and the evidence. Returns the exit code.

    Exit code 2, by UserError, when not one peer can run. `options` are fields of `BenchConfig`.
    """
    options = options or {}
    if name == "list":
        print("\n".join(f"{key:8}  {what}" for key, what in NAMES.items()))
        return 0
    if name not in NAMES:
        raise UserError(f"unknown benchmark {name!r}{nearest(name, NAMES)}; it is one of {', '.join(NAMES)}, or list")
    cfg = configs.load(BenchConfig, None, [f"{key}={value}" for key, value in options.items()])
    if out_json is not None and not out_json.absolute().parent.is_dir():
        raise UserError(f"--json {out_json}: the folder {out_json.parent} does not exist")
    python = peers_python(cfg)
    peers, absent = available_peers(name, cfg, python)
    if not peers:
        raise UserError("; ".join(absent))
    command = shlex.join(["mull", "bench", name, *(a for k, v in options.items() for a in ("-o", f"{k}={v}"))])
    with tempfile.TemporaryDirectory(prefix="mull-bench-") as folder:
        work = make_work(name, cfg)
        file = Path(folder) / "work.json"
        file.write_text(json.dumps(work))
        results = compete([mull_system(name), *peers], file, work)
        shares = profile(name, file, results[0].setting, work) if cfg.profile else None
    bench_table.show(name, work, results, absent, shares)
    if out_json is not None:
        write_whole(out_json, (json.dumps(rows(name, results), indent=1) + "\n").encode())
    if cfg.evidence or (cfg.standard and Path("docs").is_dir()):
        write_evidence(name, cfg, results, command)
    else:
        print("no evidence was written: this is not the standard work (at least 6 rounds of the default sizes)")
    return 0


# -------------------------------------------------------------------------------------------------- the work


def make_work(name: str, cfg: BenchConfig) -> dict[str, Any]:
    """What the workers read: settings, and for each round a set of prompts, as tokens and as (task, level, seed)."""
    model = shipped_folder() if cfg.model == "nano" else Path(cfg.model)
    chat = Chat.load(model)
    tasks = [load_task(task) for task in cfg.tasks]
    pairs = [(t, level) for t in tasks for level in cfg.levels if level in t.levels]
    if not pairs:
        raise UserError(f"none of the tasks {', '.join(cfg.tasks)} has one of the levels {cfg.levels}")
    sets = []
    for number in range(cfg.warmups + cfg.rounds):
        prompts = []
        for i in range(cfg.groups):
            task, level = pairs[i % len(pairs)]  # the same mixture in every round
            seed = derive_seed(cfg.seed, number, i)
            question = next(task.stream(level, "train", seed)).question
            row = {"task": spec_of(cfg, task.name), "level": level, "seed": seed}
            prompts.append({**row, "tokens": chat.prompt(question.text)})
        sets.append(prompts)
    threads = cfg.threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
    shared = {k: v for k, v in asdict(cfg).items() if k not in ("model", "threads", "python", "evidence", "profile")}
    return {
        **shared,
        "name": name,
        "model": str(model.absolute()),
        "threads": threads,
        "max_tokens": cfg.think_tokens + cfg.answer_tokens,
        "end_ids": sorted(chat.end_ids),
        "sets": sets,
    }


def spec_of(cfg: BenchConfig, name: str) -> str:
    """The task as the user named it: what `load_task` takes in the workers."""
    return next(spec for spec in cfg.tasks if load_task(spec).name == name)


# ----------------------------------------------------------------------------------------------- the systems


def mull_system(name: str) -> System:
    settings: tuple[dict[str, Any], ...] = ({},)
    if name == "rl-step":
        settings = ({"dtype": "float32"}, {"dtype": "bfloat16"})
    return System("mull", (sys.executable, "-m", "mull.recipes.bench_mull"), settings)


def available_peers(name: str, cfg: BenchConfig, python: str) -> tuple[list[System], list[str]]:
    """The peers that `python` can run, and a sentence for each that it cannot."""
    chains = cfg.groups * cfg.group_size
    wanted: list[tuple[str, System]] = []
    if name == "rollout":
        script = (python, str(SCRIPTS / "hf_rollout.py"))
        batches = sorted({chains, min(chains, max(cfg.group_size, chains // 4))}, reverse=True)
        generate = [{"system": "generate", "dtype": d, "batch": b} for d in ("float32", "bfloat16") for b in batches]
        together = sorted({min(chains, 64), min(chains, 128)})
        paged = [{"system": "continuous", "dtype": "float32", "batch": b} for b in together]
        wanted += [("transformers", System("transformers {version} generate", script, tuple(generate)))]
        wanted += [("transformers", System("transformers {version} continuous batching", script, tuple(paged)))]
    else:
        micro = max(m for m in range(1, min(64, chains) + 1) if chains % m == 0)
        precisions = ("float32", "bfloat16-autocast", "bfloat16")
        settings = tuple({"precision": p, "micro": micro} for p in precisions)
        wanted += [("trl", System("TRL {version} GRPOTrainer", (python, str(SCRIPTS / "trl_step.py")), settings))]
    if not SCRIPTS.is_dir():
        raise UserError("mull bench needs a checkout of mull: the peers' scripts in benchmarks/ are not installed")
    installed = probe(python)
    peers, absent = [], []
    for package, system in wanted:
        missing = [p for p in (package, "mull") if p not in installed]
        if missing:
            peer = " ".join(system.name.replace("{version}", "").split())
            absent.append(f"{peer} cannot run, because {python} has no {' and no '.join(missing)}: make bench")
        else:
            peers.append(replace(system, name=system.name.format(version=installed[package])))
    return peers, absent


def peers_python(cfg: BenchConfig) -> str:
    if cfg.python and not Path(cfg.python).is_file():
        raise UserError(f"python={cfg.python}: there is no such interpreter")
    return cfg.python or (str(BENCH_PYTHON.absolute()) if BENCH_PYTHON.is_file() else sys.executable)


def probe(python: str) -> dict[str, str]:
    """Versions of the packages of interest that an interpreter has."""
    code = """
import importlib.metadata as m, json
found = {}
for name in ("mull", "torch", "transformers", "trl"):
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))"""
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        raise UserError(f"the interpreter {python} does not run: make bench builds one") from None
    return json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------- competing


class Worker:
    """A system in its own process, loaded and warmed up."""

    def __init__(self, system: System, setting: dict[str, Any], file: Path, threads: int):
        self.name, self.setting = system.name, setting
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "passive",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        self.process = subprocess.Popen(
            [*system.command, str(file), json.dumps(setting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            tail = "".join(self.log.readlines()[-15:])
            raise RuntimeError(f"{self.name} with {self.setting} ended, code {self.process.returncode}:\n{tail}")
        return json.loads(line)

    def round(self, number: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(number, file=self.process.stdin, flush=True)
        return self.receive()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def compete(systems: Sequence[System], file: Path, work: dict[str, Any]) -> list[Result]:
    """Every system's fastest setting, and its rounds, taken in turns."""
    running: list[tuple[Worker, Result]] = []
    try:
        for system in systems:
            running.append(fastest(system, file, work["threads"]))
        for number in range(work["warmups"], work["warmups"] + work["rounds"]):
            for worker, result in running:
                result.rounds.append(worker.round(number))
                bench_table.progress(f"round {number - work['warmups'] + 1}/{work['rounds']}", result)
    finally:
        for worker, _ in running:
            worker.close()
    return [result for _, result in running]


def fastest(system: System, file: Path, threads: int) -> tuple[Worker, Result]:
    """The worker with the setting whose warm-up sampled most tokens in a second; the others are ended."""
    best: tuple[float, Worker, dict[str, Any]] | None = None
    tried: list[tuple[dict[str, Any], float]] = []
    for setting in system.settings:
        worker = Worker(system, setting, file, threads)
        try:
            ready = worker.receive()
        except BaseException:
            worker.close()
            if best:
                best[1].close()
            raise
        speed = ready["trial"]["tokens"] / ready["trial"]["seconds"]
        tried.append((setting, speed))
        if best is None or speed > best[0]:
            if best:
                best[1].close()
            best = (speed, worker, ready)
        else:
            worker.close()
    assert best is not None
    _, worker, ready = best
    result = Result(system.name, worker.setting, tried, ready["versions"])
    bench_table.progress("warmed up", result)
    return worker, result


def profile(name: str, file: Path, setting: dict[str, Any], work: dict[str, Any]) -> dict[str, Any]:
    """The shares of mull's time, measured by a worker that is slowed down by measuring."""
    worker = Worker(mull_system(name), {**setting, "profile": True}, file, work["threads"])
    try:
        return worker.receive()
    finally:
        worker.close()


# ---------------------------------------------------------------------------------------------- what is kept


def units(name: str) -> tuple[str, ...]:
    return ("tokens/s",) if name == "rollout" else ("s/step", "tokens/s")


def times_faster(unit: str, mull: float, peer: float) -> float:
    return peer / mull if unit == "s/step" else mull / peer


def rows(name: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """`{work, peer, unit, mull, peer_figure, ratio}`; the ratio says how many times faster mull is."""
    mull, *peers = results
    out = []
    for peer in peers:
        for unit in units(name):
            a, b = mull.figure(unit), peer.figure(unit)
            row = {"work": name, "peer": peer.name, "unit": unit, "mull": a, "peer_figure": b}
            out.append({**row, "ratio": times_faster(unit, a, b)})
    return out


def write_evidence(name: str, cfg: BenchConfig, results: Sequence[Result], command: str) -> Path:
    """Replaces this benchmark's rows in bench.json and keeps the other's.

    The interval is the smallest and the largest round. Of n rounds they enclose the true median with probability
    1 - 2^(1-n): 97% from 6 rounds on. With fewer there is no interval.
    """
    root = Path(cfg.evidence) if cfg.evidence else evidence.ROOT
    chains = cfg.groups * cfg.group_size
    what = f"{chains} chains of {shown_model(cfg)} on {', '.join(cfg.tasks)}"

    def row(claim: str, unit: str, value: float, by_round: Sequence[float]) -> dict[str, Any]:
        enough = len(by_round) >= 6
        low, high = (min(by_round), max(by_round)) if enough else (None, None)
        figures = {"value": value, "low": low, "high": high, "n": len(by_round), "seeds": [cfg.seed], "unit": unit}
        return {"claim": f"{name}: {claim}", **figures, "command": command}

    mull, *peers = results
    new: list[dict[str, Any]] = []
    for unit in units(name):
        per_round = {r.name: r.per_round(unit) for r in results}
        new += [row(f"{r.name}, {what}", unit, r.figure(unit), per_round[r.name]) for r in results]
        for peer in peers if unit == units(name)[0] else ():
            paired = [times_faster(unit, a, b) for a, b in zip(per_round["mull"], per_round[peer.name], strict=True)]
            value = times_faster(unit, mull.figure(unit), peer.figure(unit))
            new.append(row(f"times as fast as {peer.name}", "x", value, paired))
    path = evidence.path_of("bench", root)
    kept = [r for r in evidence.read("bench", root) if not r["claim"].startswith(f"{name}: ")] if path.exists() else []
    kept += [dict(r) for r in new]  # type: ignore[misc]
    return evidence.write("bench", sorted(kept, key=lambda r: r["claim"].split(":")[0] != "rollout"), root)


def shown_model(cfg: BenchConfig) -> str:
    return cfg.model if cfg.model == "nano" else Path(cfg.model).name
