"""The flywheel: a model's own verified chains, kept in the golden-data store, make the next model, until that stops
paying.

    for turn = 1, 2, …:
        ask       new questions, and old ones by pass rate          any strategy, the model of the turn before
        verify    grade every chain, and every step where the task can; add all of it to the store
        curate    equal and near duplicates, held-out questions and all but a few chains of each question left out
        train     the BASE model on what all turns so far left (SFT), or on preferences between right and wrong (DPO)
        evaluate  on valid problems, for the decision; on test problems, for the report

`flywheel_rule.py` is the rule by which it stops, a function of valid results and compute. Test results lie in files
that are opened for the report alone, when everything is decided. `flywheel_data.py` makes the data of a turn, and
`flywheel_report.py` what the run leaves.

With SFT this is expert iteration from a fixed base, as in ReST-EM (Singh et al. 2312.06585); with DPO and without
`restart` it is Iterative RPO (Pang et al. 2404.19733), whose reference is the model that a turn starts from. Where this
departs from both: questions are chosen by what is known of them, the chains of all turns are learnt and not the last
turn's alone, and a rule decides the number of turns.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from mull import config as configs
from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.errors import MissingExtra, UserError
from mull.evals.evaluate import Held, evaluate, held_out
from mull.evals.metrics import Marks, pass_at_1
from mull.learn import optim
from mull.learn.pairs import Pair
from mull.ledger import Budget, Ledger
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.models.flops import train_flops
from mull.models.nano import model_folder
from mull.models.transformer import Transformer
from mull.progress import Mode, Progress
from mull.recipes import flywheel_rule as rule
from mull.recipes.dpo import DPOConfig, Lesson, fits, learn, size_of
from mull.recipes.epochs import in_epochs
from mull.recipes.flywheel_data import (
    Pool,
    ask,
    candidates,
    cost_of,
    curated,
    data_of,
    held_against,
    lessons_of,
    questions,
    read,
    summary,
    turn_file,
    write,
)
from mull.recipes.flywheel_report import exported, reported, spent, totals, write_report
from mull.recipes.flywheel_rule import Turn
from mull.recipes.rollouts import refuse_impossible
from mull.recipes.search_data import tools_of
from mull.runfolder import RunFolder
from mull.scorers.confidence import Confidence
from mull.search.named import named
from mull.search.sources import UNTRAINED, Opened, Source
from mull.store import Made, Store, weights_hash
from mull.store.curate import Order
from mull.store.curriculum import Curriculum
from mull.tasks.load import load_task
from mull.types import Cost


@dataclass(frozen=True)
class FlywheelConfig:
    model: str = "nano"  # the base: a Hugging Face folder, or nano for the one that ships
    out: Path = Path("runs/flywheel")
    tasks: tuple[str, ...] = ("chain",)
    levels: tuple[int, ...] = (1, 2)
    turns: int = 6  # at most
    problems: int = 512  # asked in each turn, spread evenly over tasks and levels
    again: float = 0.25  # share of them, from the second turn on, that were asked before and are chosen by pass rate
    curriculum: Curriculum = field(default_factory=Curriculum)  # how those are chosen
    strategy: str = "sample"  # see search/named.py; "sample" gives plain chains
    scorer: str = ""  # what judges steps while searching, for strategies that need it
    critic: str = ""
    samples: int = 8  # the strategy's N
    tokens: int = 0  # that one question may sample in all; 0: no limit
    think_tokens: int = 256
    answer_tokens: int = 32
    temperature: float = 1.0
    store: Path | None = None  # may be shared with other runs; none: OUT/store
    share: bool = False  # learn also from chains of these tasks that others put into the store, at no cost to this run
    against: tuple[str, ...] = ()  # tasks whose held-out questions must not be learnt, besides those that are measured
    each: int = 4  # chains of a question, at most
    order: Order = "shortest"  # which of them
    near: float | None = 0.8  # Jaccard similarity from which a chain is a near duplicate; none: drop equal ones alone
    no_false_step: bool = False  # leave out right answers by wrong reasoning, where steps can be judged
    method: Literal["sft", "dpo"] = "sft"
    pairs: int = 2  # of each question, at most: a kept chain over a wrong one (dpo, and the export)
    beta: float = 0.1  # (dpo)
    nll: float = 0.0  # of the chosen side, beside the preference (dpo; Iterative RPO takes 1)
    restart: bool = True  # train the base in every turn; false: go on from the model of the turn before
    epochs: int = 2
    step_tokens: int = 8192  # tokens of one optimiser step
    micro_tokens: int = 4096  # tokens of one forward and backward pass, padding included
    lr: float = 1e-4
    warmup: int = 5  # steps, in each turn
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    threshold: float = 0.01  # accuracy on valid problems that a doubling of compute must bring
    evidence: rule.Evidence = "mean"  # what must reach it: the gain, or an end of its 95% interval
    patience: int = 3  # turns in a row that do not pay, until it stops
    valid_problems: int = 256  # held out, for the decision
    test_problems: int = 256  # held out, for the report; 0: none
    eval_samples: int = 2
    export: tuple[Literal["jsonl", "parquet"], ...] = ("jsonl",)  # forms of OUT/export; none of them: no export
    checkpoint_every: int = 100  # steps, besides the end of each turn
    max_sequences: int = 512  # that the engine decodes at once
    compile: bool = False
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products in training; weights and sampling are float32
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        counts = "turns problems samples each pairs epochs patience valid_problems eval_samples checkpoint_every"
        if wrong := [name for name in counts.split() if getattr(self, name) < 1]:
            raise UserError(f"{wrong[0]}={getattr(self, wrong[0])} must be at least 1")
        configs.refuse_unread(self, "method", {"beta": ("dpo",), "nll": ("dpo",)})
        if not 0 <= self.again <= 1 or self.beta <= 0 or self.temperature < 0:
            raise UserError("again must be a share between 0 and 1, beta above 0, and temperature not negative")
        if self.near is not None and not 0 < self.near <= 1:
            raise UserError(f"near={self.near} must be a similarity above 0 up to 1, or none")

    @property
    def lesson(self) -> DPOConfig:
        """What `dpo.learn` reads."""
        common: dict[str, Any] = {"micro_tokens": self.micro_tokens, "device": self.device, "dtype": self.dtype}
        if self.method == "sft":
            return DPOConfig(method="sft", **common)
        return DPOConfig(method="dpo", reference="model", beta=self.beta, nll=self.nll, **common)


# ------------------------------------------------------------------------------------------------ the loop


def flywheel(cfg: FlywheelConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Runs the recipe; returns the folder of the best model by valid problems (the base, where no turn was better).
    OUT/report.json and OUT/report.md say why it stopped and what each turn did. Models are measured by single samples
    at temperature 1.

    Resuming continues bitwise identically on CPU with the same number of threads; it may ask for more turns.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    tasks, against = [load_task(name) for name in cfg.tasks], [load_task(name) for name in cfg.against]
    valid = held_out(tasks, cfg.levels, cfg.valid_problems, "valid", cfg.seed)
    test = held_out(tasks, cfg.levels, cfg.test_problems, "test", cfg.seed) if cfg.test_problems else []
    source = model_folder(cfg.model)
    chat = Chat.load(source)
    model = hf.load(source, device=cfg.device)
    refuse_impossible(cfg, tasks, chat, model.config.max_positions)
    tools = tools_on(cfg, source, model, chat)
    strategies = {task.name: tools.bind(named(cfg.strategy), task.canonical) for task in tasks}
    if "parquet" in cfg.export and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtra("pyarrow", "parquet", "writing Parquet")
    pool, held = Pool(tasks, cfg.levels, cfg.seed), held_against(tasks, against, [*valid, *test])
    optimizer = optim.adamw(model, cfg.lr, cfg.weight_decay)
    reference = copy.deepcopy(model).requires_grad_(False) if cfg.method == "dpo" else None
    ledger, history = Ledger(), list[Turn]()
    step, done, place = 0, -1, 0  # optimiser steps of all turns; turns finished; steps of the turn under way

    may_change = ("turns", "threshold", "evidence", "patience", "export", "threads", "checkpoint_every")
    with (
        RunFolder.create(cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=may_change) as run,
        Store.open(cfg.store or cfg.out / "store") as store,
        Progress(f"flywheel ({cfg.method}) on {', '.join(cfg.tasks)}", cfg.turns, mode=mode) as progress,
    ):
        if latest := run.latest():
            step, state = latest
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            ledger = Ledger.restore(state["ledger"])
            done, place = state["done"], state["place"]
            if reference is not None and state["reference"] is not None:
                reference.load_state_dict(state["reference"])
            history = [Turn(n, read(turn_file(cfg.out, n, "valid.json")), spent(ledger, n)) for n in range(done + 1)]
        run.truncate_metrics(step if latest else -1)
        if cfg.compile:
            progress.say(compile_layers(model))

        def state_of(done: int, place: int) -> dict[str, Any]:
            moved = reference is not None and place and not cfg.restart  # else it can be had again
            return {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "reference": reference.state_dict() if reference is not None and moved else None,
                "ledger": ledger.state(),
                "done": done,
                "place": place,
            }

        def finish(turn: int, metrics: dict[str, Any]) -> None:
            """Measures the turn's model, and makes its end a checkpoint."""
            marks, seen = measure(cfg, turn, valid, test, tools, ledger)
            history.append(Turn(turn, marks, spent(ledger, turn)))
            score = pass_at_1(marks).mean
            run.log(step, {**metrics, "eval": seen, **totals(ledger, turn)})
            progress.update(turn, accuracy=score)
            writer = lambda folder: hf.save(model, folder / "hf", source)  # noqa: E731
            run.save_checkpoint(step, state_of(turn, 0), writer, score)

        if done < 0:
            finish(0, {"turn": 0})
            done = 0
        for n in range(1, done + 1):
            questions(cfg, n, pool, list)  # read again, so that the pool knows them
        while (reason := rule.stopped(history, cfg.threshold, cfg.evidence, cfg.patience, cfg.turns)) is None:
            turn = done + 1
            asked = questions(cfg, turn, pool, partial(candidates, cfg, store, tasks, done))
            made = Made(
                f"{cfg.out.name}, turn {done}" if done else cfg.model,
                weights_hash(run.checkpoint(step) / "model" / "hf" if done else source) if not place else "",
                done, str(cfg.out), {"temperature": cfg.temperature}, "train",
            )  # fmt: skip
            todo = [pool.known[question] for question in (*asked["new"], *asked["again"])]
            rows = ask(
                cfg, turn, todo, tools, strategies, store, made,
                partial(tell, progress, turn, len(todo)),
            )  # fmt: skip
            lessons = curated(cfg, turn, store, tasks, held, pool)
            fitting, learnt = prepared(cfg, model, store, chat, lessons)
            write(turn_file(cfg.out, turn, "learnt.json"), learnt)
            first = {"turn": turn, "asked": summary(asked, rows), "curated": lessons["counts"], "learnt": learnt}
            first["pass_rates"] = lessons["pass_rates"]
            if place == 0:
                ledger.charge(f"turn {turn} sampling", cost_of(rows))
            before = done > 0 and data_of(cfg, lessons) == data_of(cfg, read(turn_file(cfg.out, done, "lessons.json")))
            if not fitting or before:
                counts = lessons["counts"] | {"too long": learnt["too_long"]}
                reason = rule.nothing_to_learn(turn, learnt["lessons"], counts)
                break
            if place == 0:
                progress.say(f"turn {turn}: {learnt['lessons']} lessons ({lessons['counts']})")
                if cfg.restart:
                    model.load_state_dict(hf.load(source, device=cfg.device).state_dict())
                optimizer = optim.adamw(model, cfg.lr, cfg.weight_decay)
                if reference is not None:
                    reference.load_state_dict(model.state_dict())
            plan = in_epochs([size_of(lesson) for lesson in fitting], cfg.epochs, cfg.step_tokens, cfg.seed + turn)
            while place < len(plan):
                began = time.perf_counter()
                chosen = [fitting[i] for i in plan[place]]
                seen = learn(cfg.lesson, model, reference, chosen)
                lr = optim.cosine(place, peak=cfg.lr, total=len(plan), warmup=cfg.warmup)
                update = optim.step(model, optimizer, lr, cfg.max_grad_norm)
                step, place = step + 1, place + 1
                cost = training_cost(model, chosen, time.perf_counter() - began)
                ledger.charge(f"turn {turn} training", cost)
                metrics: dict[str, Any] = {
                    **(first if place == 1 else {"turn": turn}),
                    **seen,
                    "lr": lr,
                    "grad_norm": update.grad_norm,
                    "skipped_updates": int(update.skipped),
                    "tokens_per_second": cost.trained_tokens / cost.seconds,
                }
                if place == len(plan):
                    finish(turn, metrics)
                    break
                run.log(step, metrics | totals(ledger, turn))
                progress.update(done, **{k: v for k, v in metrics.items() if not isinstance(v, dict)})
                if place % cfg.checkpoint_every == 0:
                    run.save_checkpoint(step, state_of(done, place))
            done, place = turn, 0

        chosen = history[rule.best_of(history)].number
        best = run.best()
        if best is not None:
            state = torch.load(run.checkpoint(best[0]) / "state.pt", map_location="cpu", weights_only=True)
            assert state["done"] == chosen and state["place"] == 0
            model.load_state_dict(state["model"])
        else:  # nothing could be judged, so nothing is better than the base
            model.load_state_dict(hf.load(source, device=cfg.device).state_dict())
        hf.save(model, cfg.out / "model", source=source)
        exported(cfg, store, len(history))
        write_report(cfg.out, reported(cfg, history, ledger, reason))
        progress.say(f"stopped: {reason[1]}; the model is that of turn {chosen}")
    return cfg.out / "model"


def show(folder: Path) -> None:
    """Prints the report of the run that left this model."""
    print((folder.parent / "report.md").read_text(encoding="utf-8"))


def tell(progress: Progress, turn: int, of: int, asked: int) -> None:
    progress.say(f"turn {turn}: {asked} of {of} questions asked")


def tools_on(cfg: FlywheelConfig, source: Path, model: Transformer, chat: Chat) -> Opened:
    """What the strategy runs on, over the model that learns."""
    engine = LocalEngine(model, chat, cfg.max_sequences)
    if cfg.scorer in UNTRAINED and not cfg.critic:
        scorer: Any = Confidence(model, engine, chat, UNTRAINED[cfg.scorer])
        return Opened(engine, chat, scorer, None, None, None, model.config.max_positions)
    if not cfg.scorer and not cfg.critic:
        return Opened(engine, chat, None, None, None, None, model.config.max_positions)
    trained = "" if cfg.scorer in UNTRAINED else cfg.scorer
    judges = Source(str(source), scorer=trained, critic=cfg.critic, device=cfg.device)
    tools = replace(tools_of(judges), sampler=engine)
    if cfg.scorer in UNTRAINED:
        tools.scorer = Confidence(model, engine, chat, UNTRAINED[cfg.scorer])
    return tools


def prepared(
    cfg: FlywheelConfig, model: Transformer, store: Store, chat: Chat, lessons: dict[str, Any]
) -> tuple[list[Lesson], dict[str, int]]:
    """The lessons that fit into a micro-batch and into the model's context, and how many of what."""
    made, spelled = lessons_of(cfg, store, chat, lessons)
    most = min(cfg.micro_tokens, model.config.max_positions)
    fitting = [lesson for lesson in made if fits(lesson, most)]
    counts = {"lessons": len(fitting), "too_long": len(made) - len(fitting), "borrowed": lessons["borrowed"], **spelled}
    return fitting, counts


def training_cost(model: Transformer, chosen: Sequence[Lesson], seconds: float) -> Cost:
    """Of one step; pairs are read by the reference, too, forwards."""
    sizes = [size_of(lesson) for lesson in chosen]
    flops = train_flops(model.config, sizes)
    flops += train_flops(model.config, [size_of(lesson) for lesson in chosen if isinstance(lesson, Pair)]) / 3
    return Cost(trained_tokens=sum(sizes), flops=flops, seconds=seconds)


# ----------------------------------------------------------------------------------------------- measuring


def measure(
    cfg: FlywheelConfig, turn: int, valid: list[Held], test: list[Held], tools: Opened, ledger: Ledger
) -> tuple[Marks, dict[str, Any]]:
    """(marks on the valid problems, accuracies for the log); marks on the test problems go to their file alone."""
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.eval_samples)
    marks: dict[str, Marks] = {}
    engine = tools.sampler
    assert isinstance(engine, LocalEngine)
    for name, held in (("valid", valid), ("test", test)):
        engine.restore_version(turn)
        began = time.perf_counter()
        found = asyncio.run(evaluate(held, engine, tools.chat, budget, seed=cfg.seed))
        ledger.charge(f"turn {turn} evaluation", found.cost + Cost(seconds=time.perf_counter() - began))
        marks[name] = found.marks
        write(turn_file(cfg.out, turn, f"{name}.json"), found.marks)
    return marks["valid"], {name: pass_at_1(m).as_dict() for name, m in marks.items() if m}
