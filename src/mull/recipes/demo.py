"""The demonstration: from the base model to both o1 curves, a report and a model to talk to, in about ten minutes.

    base model ── measure ──▶ reinforcement learning ── measure ──▶ majority votes and thinking budgets ──▶ report
                         └──▶ the same with coin flips for rewards (the control)

Every stage leaves its result in the run folder, so an interrupted demonstration goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import json
import platform
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mull import __version__
from mull import config as configs
from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.evals import behaviour, curves, metrics, report_data
from mull.evals.evaluate import Evaluation, Held, evaluate, held_out, thought_tokens
from mull.evals.report import write_report
from mull.evals.report_series import metric_series, train_curves
from mull.files import read_jsonl, write_whole
from mull.ledger import Budget, Ledger
from mull.machine import commit, machine
from mull.models import hf
from mull.models.nano import model_folder
from mull.progress import Mode, Progress
from mull.recipes.rl import RLConfig, rl
from mull.runfolder import RunFolder
from mull.search.sample import sample, sample_forced
from mull.tasks.load import load_task
from mull.types import Cost


@dataclass(frozen=True)
class DemoConfig:
    out: Path = Path("runs/demo")
    model: str = "nano"  # a Hugging Face folder, or nano for the one that ships
    tasks: tuple[str, ...] = ("chain", "countdown")
    levels: tuple[int, ...] = (1, 2)
    steps: int = 64  # of reinforcement learning
    control_steps: int = 32  # of the same with random rewards
    lr: float = 3e-4
    groups: int = 24
    group_size: int = 16
    think_tokens: int = 320
    answer_tokens: int = 32
    problems: int = 400  # held out, for pass@1 before and after
    samples: int = 4  # of each, averaged
    vote_problems: int = 128  # held out, for the test-time curves
    votes: int = 64  # samples of each
    budgets: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)  # thinking tokens
    eval_every: int = 16  # training steps between points of the train curve (and after 1, 2, 4, 8 …)
    compile: bool = True
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice


def demo(cfg: DemoConfig, command: str = "mull demo", resume: bool = False, mode: Mode = "auto") -> Path:
    """Runs all of it; returns the path of the report."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    tasks = [load_task(name) for name in cfg.tasks]
    source = model_folder(cfg.model)
    chat = Chat.load(source)
    held = held_out(tasks, cfg.levels, cfg.problems, "test", cfg.seed)
    voters = held_out(tasks, cfg.levels, cfg.vote_problems, "test", cfg.seed + 1)
    out = cfg.out
    with RunFolder.create(out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("threads",)):
        stages = Stages(out / "stages")

        def measure(name: str, folder: Path, what: Callable[[LocalEngine], dict[str, Any]]) -> dict[str, Any]:
            def run() -> dict[str, Any]:
                started = time.perf_counter()
                result = what(LocalEngine(hf.load(folder), chat))
                return {**result, "seconds": time.perf_counter() - started}

            return stages.result(name, run)

        training = RLConfig(
            model=cfg.model,
            out=out / "rl",
            tasks=cfg.tasks,
            levels=cfg.levels,
            steps=cfg.steps,
            groups=cfg.groups,
            group_size=cfg.group_size,
            think_tokens=cfg.think_tokens,
            answer_tokens=cfg.answer_tokens,
            lr=cfg.lr,
            eval_every=cfg.eval_every,
            eval_problems=cfg.problems // 2,
            compile=cfg.compile,
            seed=cfg.seed,
            threads=cfg.threads,
        )
        control = replace(
            training, out=out / "control", random_reward=True, steps=cfg.control_steps, eval_every=cfg.control_steps
        )
        pass_at_1 = lambda engine: first_tries(cfg, held, engine, chat)  # noqa: E731
        test_time = lambda engine: with_more_compute(cfg, voters, engine, chat, mode)  # noqa: E731

        base = measure("base", source, pass_at_1)
        trained_model = rl(training, command, resume=True, mode=mode)
        control_model = rl(control, command, resume=True, mode=mode)
        trained = measure("trained", trained_model, pass_at_1)
        controlled = measure("control", control_model, pass_at_1)
        base_curves = measure("base_test_time", source, test_time)
        trained_curves = measure("trained_test_time", trained_model, test_time)
        hf.save(hf.load(trained_model), out / "model", source=trained_model)

        seconds = stages.seconds + sum(_training_seconds(c.out) for c in (training, control))
        evaluations = {"base": base, "trained": trained, "control": controlled}
        evaluations |= {"base_test_time": base_curves, "trained_test_time": trained_curves}
        data = page(cfg, command, seconds, evaluations, training, control)
        write_whole(out / "report_data.json", json.dumps(data).encode())
        write_whole(out / "summary.json", (json.dumps(summary(data, cfg), indent=1) + "\n").encode())
        return write_report(cast(report_data.ReportData, data), out / "report.html")


def show(report: Path) -> None:
    """What to do with the result, on the terminal."""
    print(f"talk to the model: mull think --model {shlex.quote(str(report.parent / 'model'))} QUESTION")


class Stages:
    """Results of finished stages, one JSON file each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds = 0.0

    def result(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(run()).encode())
        result = json.loads(path.read_text())
        self.seconds += result["seconds"]
        return result


# ------------------------------------------------------------------------------------------ measurements


def first_tries(cfg: DemoConfig, held: list[Held], engine: LocalEngine, chat: Chat) -> dict[str, Any]:
    """pass@1 on the held-out problems (as many of each task), thoughts to look at, and what the thoughts do."""
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.samples)
    evaluation = asyncio.run(evaluate(held, engine, chat, budget, sample, seed=cfg.seed))
    thoughts = evaluation.thoughts(chat, cfg.samples)
    found = behaviour.describe(thoughts)
    return {
        "marks": evaluation.marks,
        "accuracy": evaluation.accuracy.as_dict(),
        "tasks": {name: evaluation.of(name).accuracy.as_dict() for name in cfg.tasks},
        "behaviour": {name: getattr(found, name).as_dict() for name, _, _ in behaviour.ROWS},
        "lengths": [t.tokens for t in thoughts],
        "thoughts": [shown_thought(h, t, chat) for h, t in zip(held, evaluation.traces, strict=True)],
        "cost": cost_of(evaluation.cost),
    }


def with_more_compute(
    cfg: DemoConfig, voters: list[Held], engine: LocalEngine, chat: Chat, mode: Mode
) -> dict[str, Any]:
    """The test-time curves: votes over 1, 2, 4 … samples from one pool, and pass@1 under thinking budgets."""
    with Progress("more compute at answer time", len(voters) * (1 + len(cfg.budgets)), mode=mode) as progress:
        budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.votes)
        pool = asyncio.run(
            evaluate(voters, engine, chat, budget, sample, seed=cfg.seed + 1, on_done=lambda n: progress.update(n))
        )
        forced: dict[int, Evaluation] = {}
        for i, think in enumerate(cfg.budgets):
            start = (i + 1) * len(voters)
            forced[think] = asyncio.run(
                evaluate(
                    voters,
                    engine,
                    chat,
                    Budget(think_tokens=think, answer_tokens=cfg.answer_tokens, samples=cfg.samples),
                    sample_forced,
                    seed=cfg.seed + 2,
                    on_done=lambda n, start=start: progress.update(start + n),
                )
            )
    out: dict[str, Any] = {"cost": cost_of(sum((e.cost for e in forced.values()), pool.cost)), "vote": {}, "budget": {}}
    per_task = {name: pool.of(name) for name in cfg.tasks}
    votes = {name: curves.votes_curve(part.pools) for name, part in per_task.items()}
    budgets = {
        name: curves.budget_curve({think: e.of(name).pools for think, e in forced.items()}) for name in cfg.tasks
    }
    for method, by_task in (("vote", votes), ("budget", budgets)):
        out[method] = {name: report_data.points(curve) for name, curve in by_task.items()}
        out[method]["mean"] = report_data.points(curves.mean_curve(list(by_task.values())))
    ns = curves.powers_of_two(cfg.votes)
    table, _, _ = curves.vote_table(pool.pools, ns)
    flops = [p["flops"] for p in out["vote"]["mean"]]
    out["fit"] = report_data.fit(curves.fit_log(flops, np.asarray(table)))
    return out


def shown_thought(held: Held, trace: Any, chat: Chat) -> dict[str, Any]:
    """The first sample of one problem, its lines judged, for the report."""
    tokens = thought_tokens(trace, trace.leaves[0])
    thought, _, _ = chat.split(tokens)
    steps = held.task.check_steps(held.problem, thought)
    return {
        "right": trace.verdicts[0].correct,
        "answer": trace.answers[0],
        "tokens": len(tokens),
        "lines": [{"text": s.text, "ok": s.ok, "kind": str(s.kind), "why": s.why} for s in steps],
        "task": held.task.name,
        "level": held.problem.question.level,
        "question": held.problem.question.text,
        "expected": held.problem.reference.answer,
    }


def cost_of(cost: Cost) -> dict[str, float]:
    return {name: getattr(cost, name) for name in cost.__slots__}


# ---------------------------------------------------------------------------------------------- the page


def page(
    cfg: DemoConfig, command: str, seconds: float, evaluations: dict[str, Any], training: RLConfig, control: RLConfig
) -> dict[str, Any]:
    """Everything that the report shows, from the stages' results and the metrics of the two runs."""
    base, trained, controlled = (evaluations[name] for name in ("base", "trained", "control"))
    gain = metrics.paired_difference(base["marks"], trained["marks"])
    rows = _metrics(training.out)
    pairs = [
        {
            **{key: before[key] for key in ("task", "level", "question", "expected")},
            "before": {key: before[key] for key in ("right", "answer", "tokens", "lines")},
            "after": {key: after[key] for key in ("right", "answer", "tokens", "lines")},
        }
        for before, after in zip(base["thoughts"], trained["thoughts"], strict=True)
    ]
    return {
        "title": "mull demo",
        "model": "nano-base" if cfg.model == "nano" else Path(cfg.model).name,
        "method": "reinforcement learning",
        "tasks": list(cfg.tasks),
        "date": time.strftime("%Y-%m-%d"),
        "pass_at_1": {
            "base": base["accuracy"],
            "trained": trained["accuracy"],
            "gain": gain.as_dict(),
            "controls": [
                {
                    "name": "Random rewards",
                    "accuracy": controlled["accuracy"],
                    "gain": metrics.paired_difference(controlled["marks"], trained["marks"]).as_dict(),
                }
            ],
        },
        "train": train_curves(rows, "task") + train_curves(_metrics(control.out), "control"),
        "test": test_curves(cfg, evaluations),
        "thoughts": pick(pairs),
        "lengths": {"before": base["lengths"], "after": trained["lengths"]},
        "behaviours": [
            {"name": label, "unit": unit, "before": base["behaviour"][key], "after": trained["behaviour"][key]}
            for key, label, unit in behaviour.ROWS
        ],
        "metrics": metric_series(rows),
        "ledger": ledger_rows(evaluations, training, control),
        "seconds": seconds,
        "command": command,
        "seed": cfg.seed,
        "versions": {"mull": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": machine(),
        "commit": commit(),
    }


def test_curves(cfg: DemoConfig, evaluations: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for model in ("base", "trained"):
        found = evaluations[f"{model}_test_time"]
        for method in ("vote", "budget"):
            for task in ("mean", *cfg.tasks):
                curve: dict[str, Any] = {
                    "task": task,
                    "model": model,
                    "method": method,
                    "points": found[method][task],
                }
                if task == "mean" and method == "vote":
                    curve["fit"] = found["fit"]
                out.append(curve)
    return out


def pick(pairs: list[dict[str, Any]], each: int = 6) -> list[dict[str, Any]]:
    """A few questions of every kind (task, level, right or wrong before and after), in the order of the test set."""
    seen: dict[tuple, int] = {}
    out = []
    for pair in pairs:
        kind = (pair["task"], pair["level"], pair["before"]["right"], pair["after"]["right"])
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= each:
            out.append(pair)
    return out


def ledger_rows(evaluations: dict[str, Any], training: RLConfig, control: RLConfig) -> list[dict[str, Any]]:
    ledger = Ledger()
    for name, out in (("training", training.out), ("control", control.out)):
        found = _ledger(out)
        for phase, cost in found.phases.items():
            ledger.charge(f"{name}: {phase}", cost)
    for name, result in evaluations.items():
        ledger.charge(f"measuring {name.replace('_', ' ')}", replace(Cost(**result["cost"]), seconds=result["seconds"]))
    keys = ("sampled_tokens", "prefill_tokens", "cached_tokens", "trained_tokens", "flops", "seconds")
    return [{"phase": phase, **{key: getattr(cost, key) for key in keys}} for phase, cost in ledger.phases.items()]


def summary(data: dict[str, Any], cfg: DemoConfig) -> dict[str, Any]:
    """The figures of the run, for programs."""
    keep = ("flops", "tokens", "accuracy", "low", "high", "label")
    mean = next(c for c in data["train"] if c["role"] == "mean")
    vote = next(c for c in data["test"] if (c["task"], c["model"], c["method"]) == ("mean", "trained", "vote"))
    budget = next(c for c in data["test"] if (c["task"], c["model"], c["method"]) == ("mean", "trained", "budget"))

    def only(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: q[key] for key in keep} for q in points]

    p = data["pass_at_1"]
    return {
        "pass_at_1": {"base": p["base"], "trained": p["trained"], "gain": p["gain"]},
        "control": {"random_reward": p["controls"][0]["accuracy"]},
        "train_curve": only(mean["points"]),
        # From little compute to much: thoughts cut at a budget, then whole thoughts, then votes over many.
        "test_curve": only([q for q in budget["points"] if q["flops"] < vote["points"][0]["flops"]] + vote["points"]),
        "vote_curve": only(vote["points"]),
        "budget_curve": only(budget["points"]),
        "tasks": list(cfg.tasks),
        "levels": list(cfg.levels),
        "seconds": data["seconds"],
        "seed": data["seed"],
        "command": data["command"],
        "commit": data["commit"],
        "machine": data["machine"],
    }


def _metrics(out: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(out / "metrics.jsonl"))


def _ledger(out: Path) -> Ledger:
    """The ledger in a run's last checkpoint."""
    last = max((out / "checkpoints").glob("step_*"))
    return Ledger.restore(torch.load(last / "state.pt", weights_only=True)["ledger"])


def _training_seconds(out: Path) -> float:
    return _ledger(out).total.seconds
