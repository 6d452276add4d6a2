"""The commands that run a recipe: one row each, and what all of them share.

Every one has --config, -o key=value, --out, --resume and --quiet; a row names the others. A flag is a key of the
config that is used often enough to deserve one. Recipes are imported when their command runs.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mull.errors import UserError, nearest

if TYPE_CHECKING:
    from mull.progress import Mode


@dataclass(frozen=True)
class Where:
    """A config class and its function `(cfg, command, resume, mode) -> Path`, in a module of mull.recipes."""

    module: str
    config: str
    function: str

    def load(self) -> tuple[type, Any]:
        found = importlib.import_module(f"mull.recipes.{self.module}")
        return getattr(found, self.config), getattr(found, self.function)


@dataclass(frozen=True)
class Command:
    help: str
    where: Where
    flags: tuple[str, ...]  # keys of FLAGS
    result: str = "model"  # what the path is that it prints at its end
    show: str = ""  # a function of the recipe's module that prints what is in the result
    also: Mapping[str, Where] = field(default_factory=dict)  # other recipes, by the value of --algorithm
    report: bool = False  # whether it ends with the report of its run folder


ACTOR_CRITIC = Where("actor_critic", "ActorCriticConfig", "actor_critic")

COMMANDS: dict[str, Command] = {
    "demo": Command(
        "From the base model to both curves in ten minutes.",
        Where("demo", "DemoConfig", "demo"),
        ("model", "task", "steps", "seed"),
        result="report",
        show="show",
    ),
    "pretrain": Command(
        "Train a small model from scratch.",
        Where("pretrain", "PretrainConfig", "pretrain"),
        ("task", "steps", "seed"),
    ),
    "sft": Command(
        "Fine-tune on worked solutions.",
        Where("sft", "SFTConfig", "sft"),
        ("model", "task", "data", "steps", "seed"),
        report=True,
    ),
    "rl": Command(
        "Reinforcement learning on chains of thought.",
        Where("rl", "RLConfig", "rl"),
        ("algorithm", "model", "task", "steps", "seed"),
        also={name: ACTOR_CRITIC for name in ("ppo", "prm", "vineppo", "prime")},
        report=True,
    ),
    "dpo": Command(
        "Learn what a search found: by imitation, by preferences, or both.",
        Where("dpo", "DPOConfig", "dpo"),
        ("method", "model", "task", "strategy_of", "scorer", "traces", "seed"),
        report=True,
    ),
    "star": Command(
        "STaR: learn the rationales that led to right answers, with the answer as a hint where they did not.",
        Where("star", "StarConfig", "star"),
        ("model", "task", "seed"),
        report=True,
    ),
    "flywheel": Command(
        "Sample, verify, curate, train, evaluate, again, until another turn stops paying.",
        Where("flywheel", "FlywheelConfig", "flywheel"),
        ("method", "model", "task", "strategy_of", "scorer", "seed"),
        show="show",
        report=True,
    ),
    "reflect": Command(
        "RefAug: fine-tune on solutions with a reflection behind them, beside two controls.",
        Where("reflect", "ReflectConfig", "reflect"),
        ("model", "task", "seed"),
        report=True,
    ),
    "correct": Command(
        "SCoRe: learn to correct a first attempt in a second one.",
        Where("correct", "CorrectConfig", "correct"),
        ("method", "model", "task", "steps", "seed"),
        report=True,
    ),
    "aha": Command(
        "Count second thoughts, and measure what they are worth: by banning them, and by going back to them.",
        Where("aha", "AhaConfig", "aha"),
        ("models", "task", "word", "seed"),
        result="report",
    ),
    "scale train": Command(
        "Fit the law of RL compute to the first half of it, publish the prediction, then train on.",
        Where("scale", "ScaleConfig", "scale_train"),
        ("rl_model", "rl_task", "steps", "seed"),
        result="page",
        show="show",
    ),
    "distill": Command(
        "Teach a small model what a large one does.",
        Where("distill", "DistillConfig", "distill"),
        ("method", "teacher", "student", "task", "keep", "traces", "steps", "seed"),
        report=True,
    ),
    "reward": Command(
        "Train a scorer from a model's own traces.",
        Where("reward", "RewardConfig", "reward"),
        ("kind", "model", "task", "traces", "seed"),
        result="scorer",
    ),
    "compare": Command(
        "Run strategies at several budgets and draw them on one page.",
        Where("compare", "CompareConfig", "compare"),
        ("model", "task", "strategy", "scorer", "calibration", "seed"),
        result="page",
        show="show",
    ),
    "calibrate": Command(
        "Learn what to spend on a question of which difficulty, for the strategy auto.",
        Where("calibrate", "CalibrateConfig", "calibrate"),
        ("model", "task", "scorer", "seed"),
        result="calibration",
        show="show",
    ),
}

GROUPS = {"scale": "Laws of compute, with predictions published before their test."}

# What all of them have.
Config = Annotated[Path | None, typer.Option("--config", metavar="FILE.toml", help="Read settings from a TOML file.")]
Override = Annotated[
    list[str] | None, typer.Option("-o", "--override", metavar="key=value", help="Set one key; may be repeated.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the run folder, with its own settings.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print problems and the result only.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="End without measuring; mull report does it later.")]
SHARED: dict[str, Any] = {"config": Config, "override": Override, "out": Out, "resume": Resume, "quiet": Quiet}

# The others: (key of the config, type and option).
TEXT, FOLDER = str | None, Path | None
FLAGS: dict[str, tuple[str, Any]] = {
    "algorithm": (
        "algorithm",
        Annotated[TEXT, typer.Option("--algorithm", metavar="NAME", help="mull, grpo, ppo, …: see the config key.")],
    ),
    "kind": (
        "kind",
        Annotated[
            TEXT,
            typer.Option(
                "--kind", metavar="orm|prm|prm-rollouts|omega|pairwise|critic", help="What the scorer learns."
            ),
        ],
    ),
    "method": ("method", Annotated[TEXT, typer.Option("--method", metavar="NAME", help="See the config key.")]),
    "keep": (
        "keep",
        Annotated[TEXT, typer.Option("--keep", metavar="shortest|right|all", help="Which of the teacher's chains.")],
    ),
    "teacher": (
        "teacher",
        Annotated[TEXT, typer.Option("--teacher", metavar="DIR", help="A Hugging Face folder, or nano.")],
    ),
    "student": (
        "student",
        Annotated[TEXT, typer.Option("--student", metavar="DIR", help="A folder to start from; default: a fresh one.")],
    ),
    "strategy_of": (
        "strategy",
        Annotated[
            TEXT, typer.Option("--strategy", metavar="NAME[:key=value,…]", help="What searches: mull strategies.")
        ],
    ),
    "word": (
        "words",
        Annotated[list[str] | None, typer.Option("--word", metavar="TEXT", help="A second thought; may be repeated.")],
    ),
    "models": (
        "models",
        Annotated[list[str] | None, typer.Option("--model", metavar="[NAME=]DIR", help="May be repeated.")],
    ),
    "rl_model": (
        "rl.model",
        Annotated[TEXT, typer.Option("--model", metavar="DIR", help="A Hugging Face folder, or nano.")],
    ),
    "rl_task": (
        "rl.tasks",
        Annotated[list[str] | None, typer.Option("--task", metavar="NAME", help="What to train on; repeatable.")],
    ),
    "model": ("model", Annotated[TEXT, typer.Option("--model", metavar="DIR", help="A Hugging Face folder, or nano.")]),
    "task": (
        "tasks",
        Annotated[
            list[str] | None,
            typer.Option("--task", metavar="NAME", help="A puzzle, gym:NAME, file.jsonl or file.py:Class; repeatable."),
        ],
    ),
    "data": ("data", Annotated[FOLDER, typer.Option("--data", metavar="FILE.jsonl", help="Worked solutions.")]),
    "traces": (
        "traces",
        Annotated[FOLDER, typer.Option("--traces", metavar="DIR", help="Learn from the traces there.")],
    ),
    "strategy": (
        "strategies",
        Annotated[
            list[str] | None,
            typer.Option("--strategy", metavar="NAME", help="May be repeated; vote must be among them."),
        ],
    ),
    "scorer": ("scorer", Annotated[TEXT, typer.Option("--scorer", metavar="DIR|logprob|certainty")]),
    "calibration": (
        "calibration",
        Annotated[TEXT, typer.Option("--calibration", metavar="FILE", help="For the strategy auto.")],
    ),
    "steps": ("steps", Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")]),
    "seed": ("seed", Annotated[int | None, typer.Option("--seed", help="The seed of everything random.")]),
}


class RecipeCommand(TyperCommand):
    """A command whose help ends with the keys of its config."""

    row: Command  # of a subclass for each

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        command = self.row
        shown: set[tuple[str, str]] = set()
        for where in dict.fromkeys([command.where, *command.also.values()]):
            names = [name for name, other in command.also.items() if other == where]
            title = "Config keys, for FILE.toml and -o key=value"
            if names:
                title = f"Other keys and defaults with --algorithm {'|'.join(names)}"
            rows = [row for row in config_rows(where) if row not in shown]
            shown.update(rows)
            with formatter.section(title):
                formatter.write_dl(rows)


def row_of(arguments: Sequence[str]) -> Command | None:
    """The row that a command line begins with."""
    return COMMANDS.get(" ".join(arguments[:2])) or COMMANDS.get(" ".join(arguments[:1]))


def config_rows(where: Where) -> list[tuple[str, str]]:
    """(key, what it is) of every key of a config."""
    from mull.config import describe

    rows = []
    for option in describe(where.load()[0]):
        default = f"default {option.default}" if option.default else "must be given"
        help = f"{option.help}; " if option.help else ""
        rows.append((option.key, f"{help}{option.type}; {default}"))
    return rows


def add_to(app: typer.Typer) -> None:
    """Makes a command of every row; one of two words is a command of a group."""
    groups: dict[str, typer.Typer] = {}
    for words, command in COMMANDS.items():
        *group, name = words.split()
        home = app
        for title in group:
            if title not in groups:
                groups[title] = typer.Typer(no_args_is_help=True, help=GROUPS[title], rich_markup_mode=None)
                app.add_typer(groups[title], name=title)
            home = groups[title]
        cls = type("RecipeCommand", (RecipeCommand,), {"row": command})
        home.command(name, cls=cls, help=command.help)(_function(words, command))


def _function(name: str, command: Command) -> Any:
    def run(ctx: typer.Context, **given: Any) -> None:
        flags = {"out": given["out"]} | {FLAGS[flag][0]: given[flag] for flag in command.flags}
        shared = (given["config"], given["override"], flags, given["resume"], given["quiet"])
        where, path = train(command, ctx.obj, *shared)
        if command.show:
            getattr(importlib.import_module(f"mull.recipes.{where.module}"), command.show)(path)
        print(f"{command.result}: {path}", flush=True)
        if command.report and not given["no_report"]:
            report(path.parent, given["quiet"])

    kinds = {"ctx": typer.Context} | SHARED | {flag: FLAGS[flag][1] for flag in command.flags}
    if command.report:
        kinds["no_report"] = NoReport
    defaults = {"ctx": inspect.Parameter.empty, "resume": False, "quiet": False, "no_report": False}
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(key), annotation=kind)
            for key, kind in kinds.items()
        ]
    )
    run.__annotations__ = kinds
    run.__name__ = f"{name.replace(' ', '_')}_command"
    return run


def report(run: Path, quiet: bool) -> None:
    """The model is there, whatever becomes of its report."""
    from mull.recipes import report as recipe

    try:
        print(f"report: {recipe.report(run, mode='quiet' if quiet else 'auto')}")
    except UserError as problem:
        print(f"no report: {problem}", file=sys.stderr)


def train(
    command: Command,
    typed: str,
    config: Path | None,
    override: Sequence[str] | None,
    flags: Mapping[str, Any],
    resume: bool,
    quiet: bool,
) -> tuple[Where, Path]:
    """Resolves the config (file, then overrides and flags; a resumed run starts from its own) and runs the recipe."""
    from mull.config import load

    overrides = list(override or ())
    given = {text.partition("=")[0].strip() for text in overrides}
    for key, value in flags.items():
        if value is None:
            continue
        if key in given:
            raise UserError(f"the key {key!r} is given twice, by -o and by its own flag: leave one of them out")
        plain = value if isinstance(value, int | list) else str(value)
        overrides.append(f"{key}={json.dumps(plain, ensure_ascii=False)}")
    where = meant(command, config, overrides)
    cls, run = where.load()
    cfg: Any = load(cls, config, overrides)
    held = cfg.out / "config.toml"
    if resume and held.is_file() and config is None:
        where = meant(command, held, overrides)
        cls, run = where.load()
        cfg = load(cls, held, overrides)
    elif resume and not held.is_file():
        print(f"there is no run in {cfg.out} to resume: starting one", file=sys.stderr)
    mode: Mode = "quiet" if quiet else "auto"
    return where, run(cfg, command=typed, resume=resume, mode=mode)


def meant(command: Command, config: Path | None, overrides: Sequence[str]) -> Where:
    """Which recipe: that of the algorithm that the overrides name, else the file."""
    if not command.also:
        return command.where
    named = ""
    if config is not None and config.is_file():
        try:
            named = tomllib.loads(config.read_text()).get("algorithm", "")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError):
            named = ""  # whoever loads it says what is wrong
    for text in overrides:
        key, _, value = text.partition("=")
        if key.strip() == "algorithm":
            named = value.strip().strip("\"'")
    first = typing.get_args(typing.get_type_hints(command.where.load()[0])["algorithm"])
    if named and named not in (known := [*first, *command.also]):
        raise UserError(f"unknown algorithm {named!r}{nearest(named, known)}; there are {', '.join(known)}")
    return command.also.get(named, command.where)
