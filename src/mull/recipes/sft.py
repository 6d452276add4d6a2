"""Supervised fine-tuning on worked solutions: a task's own, or those of a file. The loop is `sft()`.

The solutions of a task come from its reference solver, in which every step is right, or from its imperfect writer.
Those of a file are rows of JSON: `{"question" | "prompt": text or "messages": [...], "thought": text, "answer": text}`.
A row without a thought teaches to answer at once; `messages` may end with the answer instead of a field for it.

Only thought, answer and end token are learnt; the question is context. Document i is a function of (seed, i) and a
checkpoint holds how many were taken, so a resumed run reads on where the interrupted one stopped.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
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
from mull.learn import losses, optim
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack, to_device
from mull.learn.samples import supervised
from mull.ledger import Budget, Ledger
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.models.flops import train_flops
from mull.models.nano import model_folder
from mull.progress import Mode, Progress
from mull.runfolder import RunFolder
from mull.tasks.base import Checked, Task
from mull.tasks.load import load_task
from mull.types import Cost, Sample

QUESTION_FIELDS = ("question", "prompt", "messages")


@dataclass(frozen=True)
class SFTConfig:
    model: str = "nano"  # a Hugging Face folder, or nano for the one that ships
    out: Path = Path("runs/sft")
    tasks: tuple[str, ...] = ("chain", "countdown")  # to learn from, unless there is data, and to evaluate on
    levels: tuple[int, ...] = (1, 2)
    source: Literal["solver", "imperfect"] = "solver"  # whose solutions of the tasks are learnt
    data: Path | None = None  # a JSONL file of worked solutions, learnt instead of the tasks' own
    steps: int = 200
    step_tokens: int = 8192  # tokens of one optimiser step
    micro_tokens: int = 8192  # tokens of one forward and backward pass, padding included
    lr: float = 1e-4
    warmup: int = 10
    final_lr: float = 0.0  # reached by a cosine at the last step
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    eval_every: int = 0  # steps between evaluations besides the first and the last; 0: none
    eval_problems: int = 256  # held out; 0: no evaluation at all
    eval_samples: int = 2
    think_tokens: int = 256  # of the evaluation
    answer_tokens: int = 32
    checkpoint_every: int = 50
    compile: bool = True
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products; the weights stay float32
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice


# --------------------------------------------------------------------------------------------- documents


Documents = Callable[[int], Sample]  # document i, the same for the same i


def solutions(cfg: SFTConfig, tasks: list[Checked], chat: Chat, most: int) -> Documents:
    """Worked problems of the train split. UserError for a task that writes no such solutions, and for a solution of
    more than `most` tokens."""
    for task in tasks:
        if not isinstance(task, Task):
            raise UserError(f"the task {task.name} has no worked solutions to learn from: give a file of them by data=")
    levels_of = {task.name: [level for level in cfg.levels if level in task.levels] for task in tasks}
    if missing := [name for name, levels in levels_of.items() if not levels]:
        raise UserError(f"the task {missing[0]} has no level among {list(cfg.levels)}: choose other levels")

    def document(i: int) -> Sample:
        rng = random.Random(derive_seed(cfg.seed, i))
        task = rng.choice(tasks)
        assert isinstance(task, Task)
        problem = next(task.stream(rng.choice(levels_of[task.name]), "train", rng.getrandbits(62)))
        worked = task.solve(problem) if cfg.source == "solver" else task.imperfect(problem, rng)
        sample = supervised(chat.prompt(problem.question.text), chat.reply(worked.thought, worked.answer))
        if len(sample.tokens) > most:
            raise UserError(
                f"the solution of {problem.question.id} has {len(sample.tokens)} tokens, and at most {most} fit (the "
                "model's context and micro_tokens bound it): choose easier levels"
            )
        return sample

    return document


def rows(path: Path, chat: Chat, most: int, seed: int) -> Documents:
    """The rows of a file, all once in every epoch and in a new order each time.

    Everything is read and encoded before the first step. UserError, with file and line, for a line that does not
    parse, lacks a field, or has more than `most` tokens.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as problem:
        raise UserError(f"the data file {path} cannot be read: {problem.strerror}") from None
    documents: list[Sample] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            what = problem.msg if isinstance(problem, json.JSONDecodeError) else type(problem).__name__
            raise UserError(f"{where}: not valid JSON in UTF-8 ({what}): fix or remove this line") from None
        try:
            sample = document_of(row, chat)
        except UserError as problem:
            raise UserError(f"{where}: {problem}") from None
        if len(sample.tokens) > most:
            raise UserError(f"{where}: {len(sample.tokens)} tokens, and at most {most} fit: shorten or remove it")
        documents.append(sample)
    if not documents:
        raise UserError(f"the data file {path} holds no rows: give one JSON object a line")

    def document(i: int) -> Sample:
        epoch, place = divmod(i, len(documents))
        if epoch not in orders:
            orders.clear()
            orders[epoch] = list(range(len(documents)))
            random.Random(derive_seed(seed, epoch)).shuffle(orders[epoch])
        return documents[orders[epoch][place]]

    orders: dict[int, list[int]] = {}
    return document


def document_of(row: Any, chat: Chat) -> Sample:
    """One row as a sample. UserError says what it lacks."""
    if not isinstance(row, dict):
        raise UserError("not a JSON object with a question and an answer")
    field = next((name for name in QUESTION_FIELDS if row.get(name)), None)
    if field is None:
        raise UserError(f"no question: give it a field named {', '.join(QUESTION_FIELDS[:-1])} or messages")
    question, thought, answer = row[field], row.get("thought"), row.get("answer")
    if isinstance(question, list) and question and answer is None:
        last = question[-1]
        if isinstance(last, dict) and last.get("role") == "assistant":
            question, answer = question[:-1], last.get("content")
            thought = last.get("reasoning_content") if thought is None else thought
    if isinstance(answer, int) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer:
        raise UserError("no answer: give it a field named answer that is a text or a whole number")
    if not isinstance(question, str | list) or not isinstance(thought, str | None):
        raise UserError("the question must be a text or a list of messages, and the thought a text")
    if thought is None and "</think>" in answer:
        thought, _, answer = answer.partition("</think>")
        thought, answer = thought.rpartition("<think>")[2].strip(), answer.strip()  # often the prompt has opened it
    if thought is None:
        return supervised(chat.prompt(question, think=False), [*chat.encode(answer), chat.turn_end])
    return supervised(chat.prompt(question), chat.reply(thought, answer))


# ------------------------------------------------------------------------------------------------ the loop


def sft(cfg: SFTConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Trains; returns the folder of the trained model. Resuming continues bitwise identically on CPU."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    tasks = [load_task(name) for name in cfg.tasks]
    held = held_out(tasks, cfg.levels, cfg.eval_problems, "test", cfg.seed) if cfg.eval_problems and tasks else []
    source = model_folder(cfg.model)
    chat = Chat.load(source)
    model = hf.load(source, device=cfg.device)
    most = min(model.config.max_positions, cfg.micro_tokens)  # tokens of a document
    if cfg.data is not None:
        document = rows(cfg.data, chat, most, cfg.seed)
    elif tasks:
        document = solutions(cfg, tasks, chat, most)
    else:
        raise UserError("there is nothing to learn from: name tasks, or a file of worked solutions by data=")
    document(0)  # what a tokenizer or a template lacks is said before anything is written
    if held:
        assert chat.think_close and chat.prompt(held[0].problem.question.text)
    optimizer = optim.adamw(model, cfg.lr, cfg.weight_decay)
    ledger = Ledger()
    step, taken = 0, 0  # taken: documents so far, the data cursor

    with RunFolder.create(
        cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("steps", "threads", "checkpoint_every")
    ) as run:
        if latest := run.latest():
            step, state = latest
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            ledger = Ledger.restore(state["ledger"])
            taken = state["taken"]
        run.truncate_metrics(step if latest else -1)
        compiled = compile_layers(model) if cfg.compile else "training runs eagerly (compile = false)"

        what = cfg.data.name if cfg.data is not None else f"solutions of {', '.join(cfg.tasks)}"
        with Progress(f"fine-tuning on {what}", cfg.steps, start=step, mode=mode) as progress:
            progress.say(compiled)
            if held and step == 0:
                run.log(0, {"eval": measured(cfg, held, model, chat, ledger), **spent(ledger)})
            while step < cfg.steps:
                started = time.perf_counter()
                samples, tokens = [], 0
                while tokens < cfg.step_tokens:
                    samples.append(document(taken))
                    tokens += len(samples[-1].tokens)
                    taken += 1
                seen = []
                for batch in pack(samples, cfg.micro_tokens):
                    batch = to_device(batch, cfg.device)
                    with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
                        logprobs_BT, _ = batch_logprobs(model, batch)
                    loss, micro = losses.loss(batch, logprobs_BT)
                    loss.backward()
                    seen.append(micro)
                lr = optim.cosine(step, peak=cfg.lr, total=cfg.steps, warmup=cfg.warmup, floor=cfg.final_lr)
                update = optim.step(model, optimizer, lr, cfg.max_grad_norm)
                step += 1
                seconds = time.perf_counter() - started
                flops = train_flops(model.config, [len(s.tokens) for s in samples])
                ledger.charge("training", Cost(trained_tokens=tokens, flops=flops, seconds=seconds))
                metrics: dict[str, Any] = {
                    "loss": losses.summarise(seen)["loss_ce"],
                    "lr": lr,
                    "grad_norm": update.grad_norm,
                    "skipped_updates": int(update.skipped),
                    "documents": taken,
                    "tokens_per_second": tokens / seconds,
                    **spent(ledger),
                }
                if held and (step == cfg.steps or (cfg.eval_every and step % cfg.eval_every == 0)):
                    metrics["eval"] = measured(cfg, held, model, chat, ledger)
                run.log(step, metrics)
                progress.update(step, **{k: v for k, v in metrics.items() if not isinstance(v, dict)})
                if step % cfg.checkpoint_every == 0 or step == cfg.steps:
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "ledger": ledger.state(),
                        "taken": taken,
                    }
                    run.save_checkpoint(step, state, lambda folder: hf.save(model, folder / "hf", source))
        hf.save(model, cfg.out / "model", source=source)
    return cfg.out / "model"


def measured(cfg: SFTConfig, held: list[Held], model: Any, chat: Chat, ledger: Ledger) -> dict[str, Any]:
    """pass@1 on the held-out problems, over all and by task, with intervals."""
    started = time.perf_counter()
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.eval_samples)
    evaluation = asyncio.run(evaluate(held, LocalEngine(model, chat), chat, budget, seed=cfg.seed))
    ledger.charge("evaluation", evaluation.cost + Cost(seconds=time.perf_counter() - started))
    names = dict.fromkeys(h.task.name for h in held)
    return {
        "all": evaluation.accuracy.as_dict(),
        "tasks": {name: evaluation.of(name).accuracy.as_dict() for name in names},
    }


def spent(ledger: Ledger) -> dict[str, float]:
    """What training has cost so far, evaluations not counted."""
    cost = ledger.phases.get("training", Cost())
    return {"flops": cost.flops, "trained_tokens": cost.trained_tokens}
