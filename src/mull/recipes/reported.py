"""What the run folders of the training commands say of themselves, in the words of the report: a row of `told_of` each.

A report holds a model against the one that it was trained from, and beside both against its controls, if it has any:
the teacher of `mull distill`, the other arms of `mull reflect`, and any run that `mull report --control` names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mull import config as configs
from mull.chat.effort import Effort
from mull.errors import UserError
from mull.evals import report_series
from mull.files import read_jsonl
from mull.ledger import Ledger
from mull.models import hf
from mull.models.nano import model_folder
from mull.models.transformer import Transformer
from mull.recipes.actor_critic import ActorCriticConfig
from mull.recipes.correct import CorrectConfig
from mull.recipes.distill import DistillConfig, fresh
from mull.recipes.dpo import DPOConfig
from mull.recipes.flywheel import FlywheelConfig
from mull.recipes.reflect import ReflectConfig
from mull.recipes.rl import RLConfig
from mull.recipes.sft import SFTConfig
from mull.recipes.star import StarConfig
from mull.search.sample import ON_POLICY, Decoding
from mull.types import Cost

PROBLEMS, SAMPLES = 256, 2  # held out, of runs that do not say how many

Reported = (
    RLConfig
    | ActorCriticConfig
    | StarConfig
    | FlywheelConfig
    | DistillConfig
    | CorrectConfig
    | ReflectConfig
    | DPOConfig
    | SFTConfig
)
CLASSES: dict[str, tuple[type, ...]] = {  # by the command that leaves such a run
    "mull rl": (RLConfig, ActorCriticConfig),
    "mull star": (StarConfig,),
    "mull flywheel": (FlywheelConfig,),
    "mull distill": (DistillConfig,),
    "mull correct": (CorrectConfig,),
    "mull reflect": (ReflectConfig,),
    "mull dpo": (DPOConfig,),
    "mull sft": (SFTConfig,),
}
Phases = dict[str, Cost]


@dataclass(frozen=True)
class Told:
    """What a report has to know of a run besides its folder and what all configs have."""

    command: str
    method: str  # how it was trained, in words
    model: str  # what was trained, as people call it
    chat: Path  # whose tokenizer and template all models of the run share
    start: Callable[[], Transformer]  # the model as it was before
    rows: Sequence[dict[str, Any]]  # its metrics, in the form of `report_series`
    series: report_series.Series
    phases: Phases  # what it has spent
    role: str = "task"  # of its curve
    mean: str = "mean of tasks"  # what the curve over all problems is called
    problems: int = PROBLEMS  # to measure on: those of the run's own evaluations
    samples: int = SAMPLES  # of each
    held_seed: int = 0  # of their choice
    decoding: Decoding = ON_POLICY  # with which it is measured
    effort: Effort | None = None  # that prompts ask for
    instruction: str = ""  # asks for a second attempt, which is then what counts
    tries: dict[str, Any] | None = None  # "pass_at_1", where the run itself has measured and paired it
    controls: Sequence[tuple[str, Path]] = ()  # models to measure on the same problems, by name
    note: str = ""  # what a reader must know of the figures


def told_of(cfg: Reported, run: Path) -> Told:
    """UserError for a run that has not come far enough."""
    rows = metrics_of(run)
    source = (cfg.student or cfg.teacher) if isinstance(cfg, DistillConfig) else cfg.model
    common: dict[str, Any] = {
        "model": named(source),
        "chat": model_folder(source),
        "start": lambda: hf.load(model_folder(source), device=cfg.device),
        "phases": phases_of(run),
        "problems": getattr(cfg, "eval_problems", 0) or PROBLEMS,
        "samples": getattr(cfg, "eval_samples", SAMPLES),
        "held_seed": cfg.seed,
    }
    match cfg:
        case RLConfig():
            common |= {"held_seed": cfg.seed if cfg.eval_seed is None else cfg.eval_seed, "effort": cfg.most_effort}
            method = "reinforcement learning with random rewards" if cfg.random_reward else "reinforcement learning"
            role = "control" if cfg.random_reward else "task"
            asked = f"Prompts ask for the most that training ever asked for: {cfg.most_effort}." * cfg.asks_for_length
            return Told("mull rl", method, rows=rows, series=report_series.RL, role=role, note=asked, **common)
        case ActorCriticConfig():
            names = {"ppo": "PPO", "vineppo": "VinePPO", "prime": "PRIME", "prm": "PPO and a process reward model"}
            method = f"reinforcement learning by {names[cfg.algorithm]}"
            method += ", the outcome not paid," if cfg.process_only else ""
            method += " with random rewards" if cfg.random_reward else ""
            role = "control" if cfg.random_reward else "task"
            return Told("mull rl", method, rows=rows, series=report_series.ACTOR_CRITIC, role=role, **common)
        case StarConfig():
            method = f"STaR {'with' if cfg.rationalize else 'without'} rationalization"
            common |= {"decoding": Decoding(cfg.temperature), "samples": 1}
            rows = report_series.star_rows(rows)
            return Told("mull star", method, rows=rows, series=report_series.STAR, mean="all problems", **common)
        case FlywheelConfig():
            turns = max((row["turn"] for row in rows), default=0)
            method = f"a flywheel of {turns} turn{'s' if turns != 1 else ''} ({cfg.method})"
            split = "test" if cfg.test_problems else "valid"
            return Told(
                "mull flywheel", method, rows=report_series.flywheel_rows(rows), series=report_series.FLYWHEEL,
                mean=f"{split} problems", tries=flywheel_tries(run, split), **common,
            )  # fmt: skip
        case DistillConfig():
            if not cfg.student:
                common |= {
                    "model": "a fresh student",
                    "start": lambda: fresh(cfg, hf.load(model_folder(cfg.teacher), device=cfg.device)),
                }
            how = {"off": "imitation of the chains of", "on": "on-policy distillation from"}[cfg.method]
            size = f"The student has {rows[0]['share']:.0%} of the teacher's parameters." if rows else ""
            return Told(
                "mull distill", f"{how} {named(cfg.teacher)}", rows=report_series.taught_rows(rows),
                series=report_series.DISTILL, note=size,
                controls=[(f"The teacher, {named(cfg.teacher)}", model_folder(cfg.teacher))], **common,
            )  # fmt: skip
        case CorrectConfig():
            names = {"score": "SCoRe", "first": "RL on single attempts", "pair_sft": "Pair-SFT", "star": "STaR"}
            return Told(
                "mull correct", f"{names[cfg.method]} over two attempts", rows=report_series.correct_rows(rows),
                series=report_series.CORRECT, mean="second attempts", instruction=cfg.instruction,
                note="Accuracies are of second attempts; thoughts, lengths and behaviours are of first ones.", **common,
            )  # fmt: skip
        case ReflectConfig():
            return Told(
                "mull reflect", "fine-tuning on solutions with reflections (RefAug)", rows=rows,
                series=report_series.REFLECT, tries=reflect_tries(run), **common,
            )  # fmt: skip
        case DPOConfig():
            names = {"sft": "imitation", "dpo": "preferences", "both": "imitation and preferences"}
            method = f"{names.get(cfg.method, cfg.method)} learnt from {cfg.strategy}"
            rows = report_series.taught_rows(rows)
            return Told("mull dpo", method, rows=rows, series=report_series.DPO, **common)
        case SFTConfig():
            if not cfg.tasks:
                raise UserError(f"{run} was trained on {cfg.data} and names no task: there is nothing to measure it on")
            method = f"fine-tuning on {cfg.data.name if cfg.data else 'worked solutions'}"
            rows = report_series.taught_rows(rows)
            return Told("mull sft", method, rows=rows, series=report_series.SFT, **common)


def named(model: str) -> str:
    """
    >>> named("nano"), named("runs/rl/model"), named("Qwen3-0.6B")
    ('nano-base', 'rl', 'Qwen3-0.6B')
    """
    path = Path(model)
    return "nano-base" if model == "nano" else path.parent.name if path.name == "model" else path.name


# ------------------------------------------------------------------------------------- what some runs measured


def flywheel_tries(run: Path, split: str) -> dict[str, Any] | None:
    """pass@1 of the base and of the model that a finished flywheel has chosen; None of an unfinished one."""
    if not (run / "report.json").is_file():
        return None
    found = json.loads((run / "report.json").read_text(encoding="utf-8"))
    base, final = found["turns"][0][split], found["final"]
    return {"base": base, "trained": final[split], "gain": final[f"{split}_gain_over_base"], "controls": []}


def reflect_tries(run: Path) -> dict[str, Any]:
    """Every arm on the problems of the levels that were trained on, and reflections minus each."""
    if not (run / "report.json").is_file():
        raise UserError(f"{run} has not measured all arms yet: go on with it by mull reflect --out {run} --resume")
    found, where = json.loads((run / "report.json").read_text(encoding="utf-8")), "in_distribution"
    names = {"plain": "Without reflections, as many examples", "plain_tokens": "Without reflections, as many tokens"}
    controls = [
        {"name": name, "accuracy": found["arms"][arm][where], "gain": found["reflect_minus"][arm][where]}
        for arm, name in names.items()
    ]
    arms, gain = found["arms"], found["reflect_minus"]["base"][where]
    return {"base": arms["base"][where], "trained": arms["reflect"][where], "gain": gain, "controls": controls}


# ------------------------------------------------------------------------------------------- what a folder is


def config_of(run: Path) -> Reported:
    """The config of a run that a report can be made of; else a UserError that says what the folder is."""
    if not (run / "config.toml").is_file():
        raise UserError(f"{run} holds no run{_instead(run)}")
    classes = CLASSES.get(command := _command(run)) or tuple(c for classes in CLASSES.values() for c in classes)
    problems: list[UserError] = []
    for cls in classes:
        try:
            return configs.load(cls, run / "config.toml")
        except UserError as problem:  # a config of another recipe has keys that this one has not
            problems.append(problem)
    if command in CLASSES:
        told = " or ".join(map(str, problems))
        raise UserError(f"{run} is the folder of a run of {command} that this version of mull cannot read: {told}")
    pages = [*sorted(run.glob("*.html")), *(run / name for name in ("report.md", "report.json", "metrics.jsonl"))]
    own = next((f"; what it has to say is in {page}" for page in pages if page.is_file()), "")
    what = f"a run of {command}" if command else "a run of another recipe"
    raise UserError(f"{run} is the folder of {what}, and reports are made of {', '.join(CLASSES)} and mull demo{own}")


def _instead(run: Path) -> str:
    """What a folder without a config is, as the tail of a sentence."""
    inside = sorted(path.parent.name for path in run.glob("*/config.toml"))
    if inside:
        return f" of its own: name one of those inside it ({', '.join(inside[:6])}{', …' if len(inside) > 6 else ''})"
    for name, what in (
        ("scorer.json", "a scorer"),
        ("config.json", "a model"),
        ("catalogue.sqlite", "a store of golden data"),
        ("traces.jsonl", "traces to learn from"),
    ):
        if (run / name).is_file():
            return f", it holds {what}: name the folder that was given to {', '.join(CLASSES)} or mull demo by --out"
    return f": name the folder that was given to {', '.join(CLASSES)} or mull demo by --out"


def _command(run: Path) -> str:
    """ "mull rl" of the command line that began the run; "" where nobody knows."""
    try:
        words = json.loads((run / "run.json").read_text(encoding="utf-8"))["command"].split()
    except (OSError, ValueError, KeyError, AttributeError):
        return ""
    options = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return " ".join(words[: min(options, 3)])


def trained_model(run: Path, command: str) -> Path:
    """The finished model, or that of the newest checkpoint."""
    if (run / "model" / "config.json").is_file():
        return run / "model"
    found = sorted(run.glob("checkpoints/step_*/model/hf/config.json"))
    if not found:
        raise UserError(f"{run} has no checkpoint yet: go on with it by {command} --out {run} --resume")
    return found[-1].parent


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Its own, or those of the arm that is called reflect."""
    of_arm = run / "reflect" / "metrics.jsonl"
    return list(read_jsonl(of_arm if of_arm.is_file() else run / "metrics.jsonl"))


def phases_of(run: Path) -> Phases:
    """What the newest checkpoints say was spent, by phase; the turns of a flywheel together, and every arm of a run of
    several by its name."""
    arms = [""] if (run / "checkpoints").is_dir() else sorted(p.parent.name for p in run.glob("*/checkpoints"))
    phases: Phases = {}
    for arm in arms:
        newest = sorted((run / arm).glob("checkpoints/step_*/state.pt"))
        found = Ledger.restore(torch.load(newest[-1], weights_only=True)["ledger"]) if newest else Ledger()
        for name, cost in found.phases.items():
            name = re.sub(r"^turn \d+ ", "", name)
            name = f"{arm}: {name}" if arm else name
            phases[name] = phases.get(name, Cost()) + cost
    return phases
