"""Do second thoughts help? Measured for one model or several: base, fine-tuned, trained by reinforcement learning.

For each model and task: how often chains check and backtrack; whether chains that do are right more often at the same
question; how much accuracy drops when the words that begin such steps cannot be written; and what going on from the
point where a chain began one is worth. `evals/aha.py` says what each of these is, and what a ban forbids besides.

The first model is the one to compare with: report its rates before those of any other (a base model does all of this
already). A word that a task's chains never write is its own control: banning it must change nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mull import config as configs
from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import UserError
from mull.evals import behaviour
from mull.evals.aha import Banning, approaches, around, bans, has, within, words_written
from mull.evals.evaluate import Evaluation, Held, evaluate, held_out
from mull.evals.metrics import bootstrap_mean, paired_difference
from mull.files import plain, write_whole
from mull.ledger import Budget, Ledger
from mull.machine import describe as machine
from mull.models import hf
from mull.models.nano import model_folder
from mull.progress import Mode, Progress
from mull.runfolder import RunFolder
from mull.search.sample import sample
from mull.tasks.load import load_task
from mull.types import Cost, StepKind

BEHAVIOURS = {
    "check": has(StepKind.CHECK),
    "backtrack": has(StepKind.BACKTRACK),
    "either": has(StepKind.CHECK, StepKind.BACKTRACK),
}


@dataclass(frozen=True)
class AhaConfig:
    models: tuple[str, ...] = ("base=nano",)  # folders, each with a name before it if wanted: rl=runs/rl/model
    out: Path = Path("runs/aha")
    tasks: tuple[str, ...] = ("chain", "countdown")
    levels: tuple[int, ...] = (1, 2)
    words: tuple[str, ...] = ("check", "back", "no")  # that begin, or are, second thoughts; each is banned alone
    problems: int = 256  # held out, of each task
    samples: int = 4  # chains of each
    each: int = 2  # of a problem's chains with a word, the number that is gone back to
    resamples: int = 4  # continuations from there, with the word and without
    think_tokens: int = 256
    answer_tokens: int = 32
    max_sequences: int = 512  # that the engine decodes at once
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        if not self.models or not self.words or not self.tasks:
            raise UserError("models, words and tasks must each name at least one")
        if min(self.problems, self.samples, self.each, self.resamples) < 1:
            raise UserError("problems, samples, each and resamples must be at least 1")
        if bad := [word for word in self.words if not word or any(c.isspace() for c in word)]:
            raise UserError(f"{bad[0]!r} is not a word: give words without spaces")
        if len(self.folders) < len(self.models):
            raise UserError("two models have the same name: name them apart, as in rl=runs/rl/model")

    @property
    def folders(self) -> dict[str, Path]:
        """By the models' names."""
        parts = [m.partition("=") for m in self.models]
        return {name: model_folder(folder if equals else name) for name, equals, folder in parts}


def aha(cfg: AhaConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Measures all models; returns the path of OUT/report.json. OUT/report.md has the same as tables.

    A model that was measured before an interruption is not measured again.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    held = {name: held_out([load_task(name)], cfg.levels, cfg.problems, "test", cfg.seed) for name in cfg.tasks}
    for folder in cfg.folders.values():
        refuse_impossible(cfg, folder, held)
    with RunFolder.create(cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("threads",)):
        results: dict[str, Any] = {}
        with Progress("second thoughts", len(cfg.folders) * len(held), mode=mode) as progress:
            for i, (name, folder) in enumerate(cfg.folders.items()):
                file = cfg.out / f"model_{i}.json"
                if not file.exists():
                    result = measured(cfg, folder, held, lambda done, i=i: progress.update(i * len(held) + done))
                    write_whole(file, json.dumps(plain(result)).encode())
                results[name] = json.loads(file.read_text())
        report = {"command": command, "models": results, **machine()}
        write_whole(cfg.out / "report.json", json.dumps(plain(report), indent=1).encode())
        write_whole(cfg.out / "report.md", tables(results).encode())
    return cfg.out / "report.json"


def refuse_impossible(cfg: AhaConfig, folder: Path, held: dict[str, list[Held]]) -> None:
    """UserError before anything is written."""
    chat = Chat.load(folder)
    assert chat.think_open and chat.think_close  # or UserError
    context = hf.load(folder).config.max_positions
    for name, of in held.items():
        longest = max(len(chat.prompt(h.problem.question.text)) for h in of)
        if longest + cfg.think_tokens + cfg.answer_tokens > context:
            raise UserError(
                f"a prompt of {name} ({longest} tokens), think_tokens={cfg.think_tokens} and answer_tokens="
                f"{cfg.answer_tokens} do not fit into the context of {folder}, {context}: lower them"
            )


def measured(cfg: AhaConfig, folder: Path, held: dict[str, list[Held]], on_done: Any) -> dict[str, Any]:
    """One model: by task, everything; and what it cost."""
    chat = Chat.load(folder)
    engine = LocalEngine(hf.load(folder), chat, cfg.max_sequences)
    ledger = Ledger()
    tasks = {}
    for done, (name, of) in enumerate(held.items(), 1):
        tasks[name] = of_task(cfg, of, engine, chat, ledger)
        on_done(done)
    return {"tasks": tasks, "cost": ledger.state()}


def of_task(cfg: AhaConfig, held: list[Held], engine: LocalEngine, chat: Chat, ledger: Ledger) -> dict[str, Any]:
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.samples)

    def run(words: tuple[str, ...]) -> Evaluation:
        async def strategy(question: Any, sampler: Any, *rest: Any, **options: Any):
            banning = Banning(sampler, bans(chat, words, question.text)) if words else sampler
            return await sample(question, banning, *rest, **options)

        started = time.perf_counter()
        found = asyncio.run(evaluate(held, engine, chat, budget, strategy, seed=cfg.seed))
        phase = f"without {', '.join(words)}" if words else "free"
        ledger.charge(phase, found.cost + Cost(seconds=time.perf_counter() - started))
        return found

    free = run(())
    thoughts = free.thoughts(chat, cfg.samples)
    seen = behaviour.describe(thoughts)
    by_problem: dict[str, list[float]] = {}
    for thought in thoughts:
        by_problem.setdefault(thought.problem, []).append(approaches(thought))
    out: dict[str, Any] = {
        "accuracy": free.accuracy.as_dict(),
        "behaviour": {name: getattr(seen, name).as_dict() for name, _, _ in behaviour.ROWS},
        "approaches": bootstrap_mean(list(by_problem.values())).as_dict(),  # given up, and gone on from, per thought
        "within": {name: within(thoughts, what).as_dict() for name, what in BEHAVIOURS.items()},
        "written": words_written(free, chat, cfg.words),
        "banned": {},
        "around": {},
    }
    for words in dict.fromkeys([*((word,) for word in cfg.words), cfg.words]):
        banned = run(words)
        out["banned"][" ".join(words)] = {
            "accuracy": banned.accuracy.as_dict(),
            "drop": paired_difference(banned.marks, free.marks, cfg.seed).as_dict(),  # what the words are worth
            "written": words_written(banned, chat, words),
            "with_check": behaviour.describe(banned.thoughts(chat, cfg.samples)).with_check.as_dict(),
        }
    again = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.resamples)
    for word in cfg.words:
        started = time.perf_counter()
        found = asyncio.run(around(free, engine, chat, again, word, cfg.each, cfg.seed))
        ledger.charge(f"around {word}", found.cost + Cost(seconds=time.perf_counter() - started))
        out["around"][word] = found.as_dict()
    return out


# ------------------------------------------------------------------------------------------------- tables


def tables(results: dict[str, Any]) -> str:
    """The report as Markdown: a table for each task, a column for each model."""
    out = ["# Second thoughts, and what they are worth", ""]
    for task in next(iter(results.values()))["tasks"]:
        models = {name: result["tasks"][task] for name, result in results.items()}
        out += [f"## {task}", "", f"| | {' | '.join(models)} |", "|---|" + "--:|" * len(models)]

        def line(label: str, of: Any) -> str:
            return f"| {label} | {' | '.join(_shown(of(m)) for m in models.values())} |"  # noqa: B023

        one = next(iter(models.values()))
        out.append(line("accuracy", lambda m: m["accuracy"]))
        for name, label, _ in behaviour.ROWS:
            out.append(line(label, lambda m, name=name: m["behaviour"][name]))
        out.append(line("Given up and gone on, per thought", lambda m: m["approaches"]))
        for name in one["within"]:
            label = f"right with {name} minus without, same problem"
            out.append(line(label, lambda m, name=name: m["within"][name]))
        for words in one["banned"]:
            out.append(line(f"accuracy without `{words}`", lambda m, w=words: m["banned"][w]["accuracy"]))
            out.append(line(f"lost by banning `{words}`", lambda m, w=words: m["banned"][w]["drop"]))
        for word in one["around"]:
            for key, label in (("stopped", "stopping there"), ("checking", "going on"), ("without", "without it")):
                out.append(line(f"at `{word}`: {label}", lambda m, w=word, k=key: m["around"][w][k]))
            out.append(line(f"at `{word}`: counterfactual benefit", lambda m, w=word: m["around"][w]["gain"]))
            for key, label in (("mended", "wrong to right"), ("spoiled", "right to wrong")):
                out.append(line(f"after `{word}`: {label}", lambda m, w=word, k=key: m["around"][w]["going_on"][k]))
        out.append("")
    return "\n".join(out)


def _shown(estimate: dict[str, Any]) -> str:
    if estimate["mean"] is None:
        return "-"
    return f"{estimate['mean']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f}, n {estimate['n']})"
