"""Fine-tuning with reflections behind the answers (RefAug, arXiv 2406.12050), against the same without. The loop is
`train()`; `reflect()` runs it once for each arm and compares them.

    reflect        `problems` worked problems, each with another way and a further problem behind its answer
    plain          the same problems, as many steps, without reflections: equal examples
    plain_tokens   without reflections, for as many training tokens as `reflect` takes: by more passes over the same
                   problems (control="passes") or by as many more problems (control="problems", the harder comparison)

All arms are measured on held-out problems: of the levels that were trained on, of harder ones, and on further questions
in a second turn (a conversation of question, right answer, further question), which no arm was trained to hold.

How losses are averaged. The paper sums token losses over a batch. A mean over tokens gives every token of an example
with a reflection a smaller weight, the answer's too; average="sum" divides by the number of *examples* (and, in all
arms alike, by the mean length of a plain answer, so that a learning rate means the same): the answer weighs what it
weighs without a reflection.

Departures: reflections are written by procedural solvers and are always true; the end of the turn takes the place of
the stop string (see learn/reflect.py).
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mull import config as configs
from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.engine.sampler import derive_seed
from mull.errors import UserError
from mull.evals.evaluate import Held, evaluate, held_out
from mull.evals.metrics import paired_difference, pass_at_1
from mull.files import plain, write_whole
from mull.learn import losses, optim
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack, to_device
from mull.learn.reflect import with_reflection
from mull.ledger import Budget, Ledger
from mull.machine import describe
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.models.flops import train_flops
from mull.models.nano import model_folder
from mull.progress import Mode, Progress
from mull.runfolder import RunFolder
from mull.search.sample import sample
from mull.search.turns import converse
from mull.tasks.base import Task
from mull.tasks.load import load_task
from mull.tasks.reflect import reflect as reflection_on
from mull.tasks.reflect import refuse_without_reflections, section
from mull.types import Cost, Sample

Arm = Literal["reflect", "plain", "plain_tokens"]
ARMS: tuple[Arm, ...] = ("reflect", "plain", "plain_tokens")


@dataclass(frozen=True)
class ReflectConfig:
    model: str = "nano"  # a Hugging Face folder, or nano for the one that ships
    out: Path = Path("runs/reflect")
    tasks: tuple[str, ...] = ("chain",)  # of chain, countdown, addition
    levels: tuple[int, ...] = (1, 2)
    hard_levels: tuple[int, ...] = (3,)  # of the evaluation alone
    problems: int = 1500  # worked examples
    passes: int = 2  # over them
    examples: int = 32  # of one optimiser step
    parts: Literal["both", "alternative", "followup"] = "both"  # of the reflection
    weight: float = 1.0  # of a reflection's token, in the loss
    average: Literal["sum", "mean"] = "sum"  # how losses are averaged: see above
    control: Literal["problems", "passes"] = "problems"  # where plain_tokens takes its tokens from
    micro_tokens: int = 8192  # tokens of one forward and backward pass, padding included
    lr: float = 1e-4
    warmup: int = 5
    final_lr: float = 0.0  # reached by a straight line at the last step
    max_grad_norm: float = 1.0
    eval_problems: int = 256  # held out, for each of the three measurements
    eval_samples: int = 2
    think_tokens: int = 256  # of the evaluation
    answer_tokens: int = 32
    checkpoint_every: int = 25
    compile: bool = True
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products in training; weights and sampling are float32
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        if min(self.problems, self.passes, self.examples, self.eval_problems, self.eval_samples) < 1:
            raise UserError("problems, passes, examples, eval_problems and eval_samples must be at least 1")
        if self.weight < 0:
            raise UserError("weight must not be negative: 0 leaves reflections out of the loss")


# ---------------------------------------------------------------------------------------------- documents


def worked(cfg: ReflectConfig, chat: Chat, n: int, reflected: bool, most: int) -> list[Sample]:
    """`n` worked training problems, the same for the same place in the list, whoever asks."""
    cells = [
        (task, level)
        for task in (refuse_without_reflections(load_task(name)) for name in cfg.tasks)
        for level in cfg.levels
        if level in task.levels
    ]
    if not cells:
        raise UserError(f"none of the tasks {', '.join(cfg.tasks)} has a level among {list(cfg.levels)}")
    share = -(-n // len(cells))
    found = [[(task, p) for p in task.up_to(level, "train", cfg.seed, share)] for task, level in cells]
    # One of each cell in turn, so that the first n are a sample of all, however many there are.
    mixed = [of[i] for i in range(share) for of in found if i < len(of)][:n]
    if len(mixed) < n:
        raise UserError(f"there are only {len(mixed)} different training problems, {n} are asked for: lower problems")
    return [_document(cfg, chat, task, problem, reflected, most) for task, problem in mixed]


def _document(cfg: ReflectConfig, chat: Chat, task: Task, problem: Any, reflected: bool, most: int) -> Sample:
    solution, behind = task.solve(problem), ""
    if reflected:
        rng = random.Random(f"{cfg.seed}/{problem.question.id}")
        behind = section(reflection_on(task, problem, rng), cfg.parts != "followup", cfg.parts != "alternative")
    out = with_reflection(chat, problem.question.text, solution.thought, solution.answer, behind, cfg.weight)
    if len(out.tokens) > most:
        raise UserError(
            f"{problem.question.id} with its reflection has {len(out.tokens)} tokens, and at most {most} fit (the "
            "model's context and micro_tokens bound it): choose easier levels"
        )
    return out


@dataclass(frozen=True)
class Lessons:
    """What one arm learns from: its documents in order, `examples` to a step."""

    documents: Sequence[Sample]
    total: int  # documents, repeats included
    seed: int

    def __getitem__(self, i: int) -> Sample:
        """Document i: all once in every pass, in a new order each time."""
        done, place = divmod(i, len(self.documents))
        return self.documents[_order(len(self.documents), derive_seed(self.seed, done))[place]]


@functools.lru_cache(maxsize=2)
def _order(n: int, seed: int) -> list[int]:
    order = list(range(n))
    random.Random(seed).shuffle(order)
    return order


def lessons(cfg: ReflectConfig, chat: Chat, arm: Arm, most: int) -> Lessons:
    """The arm's documents. `plain_tokens` ends with the document that reaches the tokens of `reflect`."""
    ordinary = worked(cfg, chat, cfg.problems, False, most)
    if arm == "plain":
        return Lessons(ordinary, cfg.problems * cfg.passes, cfg.seed)
    reflected = worked(cfg, chat, cfg.problems, True, most)
    if arm == "reflect":
        return Lessons(reflected, cfg.problems * cfg.passes, cfg.seed)
    tokens = cfg.passes * sum(len(s.tokens) for s in reflected)
    if cfg.control == "problems":
        ratio = sum(len(s.tokens) for s in reflected) / sum(len(s.tokens) for s in ordinary)
        ordinary = worked(cfg, chat, round(cfg.problems * ratio), False, most)
    more, total = Lessons(ordinary, 0, cfg.seed), 0
    while tokens > 0:
        tokens -= len(more[total].tokens)
        total += 1
    return Lessons(ordinary, total, cfg.seed)


def averaging(cfg: ReflectConfig, chat: Chat, most: int) -> losses.Aggregate:
    """How the losses of a step's tokens become one: see the module's text."""
    if cfg.average == "mean":
        return losses.token_mean
    ordinary = worked(cfg, chat, cfg.problems, False, most)
    length = sum(sum(w != 0 for w in s.ce or ()) for s in ordinary) / len(ordinary)  # of a plain thought and answer
    return lambda loss_BT, batch: loss_BT.sum() / (length * batch.sequences)


# ---------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Exam:
    """The three sets of held-out problems; `talks` are the conversations of the last, by question id."""

    held: list[Held]
    hard: list[Held]
    further: list[Held]
    talks: dict[str, list[dict[str, str]]]


def exam(cfg: ReflectConfig) -> Exam:
    tasks = [refuse_without_reflections(load_task(name)) for name in cfg.tasks]
    held = held_out(tasks, cfg.levels, cfg.eval_problems, "test", cfg.seed)
    hard = held_out(tasks, cfg.hard_levels, cfg.eval_problems, "test", cfg.seed) if cfg.hard_levels else []
    further, talks = [], {}
    for h in held:
        assert isinstance(h.task, Task)
        rng = random.Random(f"{cfg.seed}/{h.problem.question.id}")
        more = reflection_on(h.task, h.problem, rng, "test").followup
        if more is None or more.problem.question.id in talks:
            continue
        further.append(Held(h.task, more.problem))
        talks[more.problem.question.id] = [
            {"role": "user", "content": h.problem.question.text},
            {"role": "assistant", "content": h.problem.reference.answer},
            {"role": "user", "content": more.asked},
        ]
    return Exam(held, hard, further, talks)


def measured(
    cfg: ReflectConfig, exam: Exam, model: Any, chat: Chat, ledger: Ledger
) -> dict[str, list[list[bool | None]]]:
    """Per measurement and problem, which samples were right."""
    started = time.perf_counter()
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.eval_samples)
    engine = LocalEngine(model, chat)

    async def ask(question: Any, *rest: Any, **options: Any):
        return await converse(question, exam.talks[question.id], *rest, **options)

    marks = {}
    for name, held, strategy in (
        ("in_distribution", exam.held, sample),
        ("harder", exam.hard, sample),
        ("further", exam.further, ask),
    ):
        if held:
            evaluation = asyncio.run(evaluate(held, engine, chat, budget, strategy, seed=cfg.seed))
            ledger.charge("evaluation", evaluation.cost)
            marks[name] = evaluation.marks
    ledger.charge("evaluation", Cost(seconds=time.perf_counter() - started))
    return marks


# ------------------------------------------------------------------------------------------------ the loop


def train(cfg: ReflectConfig, arm: Arm, on: Exam, command: str = "", mode: Mode = "auto") -> dict[str, Any]:
    """One arm, in its own folder below `cfg.out`; goes on where an interrupted one stopped, bitwise identically on
    CPU. Returns its marks and its cost."""
    source = model_folder(cfg.model)
    chat = Chat.load(source)
    model = hf.load(source, device=cfg.device)
    most = min(model.config.max_positions, cfg.micro_tokens)
    todo = lessons(cfg, chat, arm, most)
    steps = -(-todo.total // cfg.examples)
    aggregate = averaging(cfg, chat, most)
    optimizer = optim.adamw(model, cfg.lr)
    ledger, step = Ledger(), 0
    with RunFolder.create(cfg.out / arm, configs.to_toml(cfg), command, cfg.seed, True, may_change=("threads",)) as run:
        if latest := run.latest():
            step, state = latest
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            ledger = Ledger.restore(state["ledger"])
        run.truncate_metrics(step if latest else -1)
        if cfg.compile:
            compile_layers(model)
        with Progress(f"{arm} on {', '.join(cfg.tasks)}", steps, start=step, mode=mode) as progress:
            while step < steps:
                started = time.perf_counter()
                wanted = range(step * cfg.examples, min((step + 1) * cfg.examples, todo.total))
                samples = [todo[i] for i in wanted]
                seen = []
                for batch in pack(samples, cfg.micro_tokens):
                    batch = to_device(batch, cfg.device)
                    with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
                        logprobs_BT, _ = batch_logprobs(model, batch)
                    loss, micro = losses.loss(batch, logprobs_BT, aggregate=aggregate)
                    loss.backward()
                    seen.append(micro)
                lr = optim.linear(step, peak=cfg.lr, total=steps, warmup=cfg.warmup, floor=cfg.final_lr)
                update = optim.step(model, optimizer, lr, cfg.max_grad_norm)
                step += 1
                tokens = sum(len(s.tokens) for s in samples)
                flops = train_flops(model.config, [len(s.tokens) for s in samples])
                seconds = time.perf_counter() - started
                ledger.charge("training", Cost(trained_tokens=tokens, flops=flops, seconds=seconds))
                spent = ledger.phases["training"]
                metrics = {
                    "loss": losses.summarise(seen)["loss_ce"],
                    "lr": lr,
                    "grad_norm": update.grad_norm,
                    "skipped_updates": int(update.skipped),
                    "flops": spent.flops,
                    "trained_tokens": spent.trained_tokens,
                }
                run.log(step, metrics)
                progress.update(step, **metrics, tokens_per_s=tokens / seconds)
                if step % cfg.checkpoint_every == 0 or step == steps:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ledger": ledger.state()}
                    run.save_checkpoint(step, state, lambda folder: hf.save(model, folder / "hf", source))
        hf.save(model, cfg.out / arm / "model", source=source)
        marks = measured(cfg, on, model, chat, ledger)
    return {"marks": marks, "cost": ledger.state(), "steps": steps, "documents": todo.total}


def reflect(cfg: ReflectConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Trains and measures all arms; returns the folder of the model that learnt with reflections.

    OUT/report.json has every arm's accuracies with intervals, the paired differences to `reflect`, and the costs.
    Every arm resumes bitwise identically on CPU; one that was finished and measured is not run again.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    on = exam(cfg)
    source = model_folder(cfg.model)
    chat = Chat.load(source)
    model = hf.load(source, device=cfg.device)
    refuse_impossible(cfg, chat, model.config.max_positions, on)
    with RunFolder.create(cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("threads",)):
        results: dict[str, Any] = {}
        for name in ("base", *ARMS):
            file = cfg.out / f"{name}.json"
            if not file.exists():
                if name == "base":
                    ledger = Ledger()
                    result: dict[str, Any] = {"marks": measured(cfg, on, model, chat, ledger), "cost": ledger.state()}
                else:
                    result = train(cfg, name, on, command, mode)
                write_whole(file, json.dumps(plain(result)).encode())
            results[name] = json.loads(file.read_text())
        shutil.rmtree(cfg.out / "model", ignore_errors=True)
        shutil.copytree(cfg.out / "reflect" / "model", cfg.out / "model")
        summary = {"command": command, **compared(results), **describe()}
        write_whole(cfg.out / "report.json", json.dumps(plain(summary), indent=1).encode())
    return cfg.out / "model"


def refuse_impossible(cfg: ReflectConfig, chat: Chat, context: int, on: Exam) -> None:
    """UserError before anything is written: what does not fit, and no thought tags."""
    assert chat.think_open and chat.think_close  # or UserError
    worked(cfg, chat, cfg.problems, True, min(context, cfg.micro_tokens))
    asked = [h.problem.question.text for h in (*on.held, *on.hard)]
    longest = max(len(chat.prompt(m)) for m in (*asked, *on.talks.values()))
    if longest + cfg.think_tokens + cfg.answer_tokens > context:
        raise UserError(
            f"a held-out question ({longest} tokens), think_tokens={cfg.think_tokens} and answer_tokens="
            f"{cfg.answer_tokens} do not fit into the model's context of {context}: lower them"
        )


def compared(results: dict[str, Any]) -> dict[str, Any]:
    """Accuracies of all arms, and reflect minus each of the others on the same problems."""
    names = list(results["base"]["marks"])
    arms = {
        arm: {
            **{name: pass_at_1(result["marks"][name]).as_dict() for name in names},
            **{key: result[key] for key in ("steps", "documents") if key in result},
            "cost": result["cost"],
        }
        for arm, result in results.items()
    }
    ours = results["reflect"]["marks"]
    gains = {
        arm: {name: paired_difference(result["marks"][name], ours[name]).as_dict() for name in names}
        for arm, result in results.items()
        if arm != "reflect"
    }
    return {"arms": arms, "reflect_minus": gains}
