"""STaR (Zelikman et al. 2022, 2203.14465): a model learns from its own chains that reached the right answer.

    for n = 1, 2, …:
        ask fresh problems, greedily                                   model of iteration n - 1
        ask those that it failed again, with the answer as a hint      (rationalization)
        keep what ended in the right answer, the hint never in it
        train the BASE model on it, with an optimiser afresh           model of iteration n

The model of the last iteration is the result. Every iteration's model is measured on held-out problems of the test
split, and its checkpoint is scored on those of the valid split, so that the best one is kept beside the latest.

Where this departs from the paper: problems are drawn afresh in each iteration, not from a fixed pool of 50,000; there
are no few-shot prompts, so the model must know the answer's format, and what a hint is, before it starts (a model that
was tuned on instructions does; see docs/methods/star.md for a small one from scratch); AdamW instead of Adam.

What an iteration asked lies in RUN/iterations/NN.jsonl, a line for each problem, before anything is trained on it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mull import config as configs
from mull.chat import Chat
from mull.engine import native
from mull.engine.local import LocalEngine
from mull.engine.sampler import derive_seed
from mull.errors import UserError
from mull.evals.evaluate import Held, evaluate, held_out
from mull.files import plain, read_jsonl, write_whole
from mull.learn import losses, optim
from mull.learn.forward import batch_logprobs
from mull.learn.pack import pack, to_device
from mull.learn.samples import supervised
from mull.learn.star import HINT, Asked, Kept, Mixture, keep, refuse_bad_hint, steps_of
from mull.ledger import Budget, Ledger
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.models.flops import train_flops
from mull.models.nano import model_folder
from mull.models.transformer import Transformer
from mull.progress import Mode, Progress
from mull.recipes.rollouts import levels_of, totals
from mull.recipes.star_data import ROUND, ask_all, asked_of, drawn, measured, summary
from mull.runfolder import RunFolder
from mull.search.sample import Decoding
from mull.tasks.base import Checked, Task
from mull.tasks.load import load_task
from mull.types import Cost, Sample


@dataclass(frozen=True)
class StarConfig:
    model: str = "nano"  # the base: a Hugging Face folder, or nano for the one that ships
    out: Path = Path("runs/star")
    tasks: tuple[str, ...] = ("addition",)
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    iterations: int = 16
    problems: int = 2000  # asked in each iteration, spread evenly over tasks and levels; the paper: 10,000
    rationalize: bool = True  # ask again with the answer as a hint where the model failed
    hint: str = HINT  # how a question with its hint reads
    restart: bool = True  # train the base in every iteration; false: go on from the model of the one before
    temperature: float = 0.0  # 0: greedy, as in the paper, which found sampling at 0.5 and 0.7 worse
    first_steps: int | None = None  # of iteration 1; none: the paper's, 300 with rationalization, 40 without
    times: float | None = None  # as many steps in the next iteration; none: the paper's, 1 and 1.2
    plus: int | None = None  # more steps in the next iteration; none: the paper's, 20 and 0
    rationalized_share: float = 1.0  # of the rationalizations that are right, learnt
    clean_lines: bool = False  # learn only chains without a false line; the paper looks at the answer alone
    balance: bool = False  # learn from tasks and levels in equal parts, however many chains each has
    history: int = 1  # learn from the chains of the last so many iterations
    replay: str = ""  # a task whose imperfect solutions are mixed in, so that something is not forgotten
    replay_share: float = 0.1  # of the documents, where there is something to replay
    step_tokens: int = 2048  # tokens of one optimiser step; the paper: 8 rows of 1,024
    micro_tokens: int = 2048  # tokens of one forward and backward pass, padding included
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    warmup: int = 100  # steps, in each iteration; then the rate stays
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    eval_problems: int = 500  # held out, measured before the first and after every iteration; 0: none
    think_tokens: int = 256
    answer_tokens: int = 32
    checkpoint_every: int = 100  # steps, besides the end of each iteration
    max_sequences: int = 512  # that the engine decodes at once
    compile: bool = True
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products in training; weights and sampling are float32
    seed: int = 0
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        refuse_bad_hint(self.hint)
        if self.iterations < 1 or self.problems < 1 or self.history < 1:
            raise UserError("iterations, problems and history must be at least 1")
        configs.refuse_unread(self, "rationalize", {"hint": (True,), "rationalized_share": (True,)})
        if self.replay_share != StarConfig.replay_share and not self.replay:
            raise UserError("replay_share does nothing without replay: leave it out, or name a task by replay")
        if not 0 <= self.rationalized_share <= 1 or not 0 <= self.replay_share < 1:
            raise UserError("rationalized_share must lie between 0 and 1, and replay_share below 1")
        first, times, plus = self.schedule
        if first < 1 or times <= 0 or plus < 0:
            raise UserError("first_steps must be at least 1, times above 0 and plus at least 0")

    @property
    def schedule(self) -> tuple[int, float, int]:
        """(first, times, plus) of `steps_of`."""
        paper = (300, 1.0, 20) if self.rationalize else (40, 1.2, 0)
        own = (self.first_steps, self.times, self.plus)
        first, times, more = (p if value is None else value for value, p in zip(own, paper, strict=True))
        return int(first), float(times), int(more)

    @property
    def ends(self) -> list[int]:
        """Steps done at the end of each iteration, iteration 0 first."""
        out = [0]
        for n in range(1, self.iterations + 1):
            out.append(out[-1] + steps_of(n, *self.schedule))
        return out


def iteration_file(out: Path, iteration: int) -> Path:
    return out / "iterations" / f"{iteration:02d}.jsonl"


def ask(
    cfg: StarConfig, tasks: Sequence[Checked], engine: LocalEngine, chat: Chat, iteration: int, progress: Progress
) -> list[dict[str, Any]]:
    """The rows of one iteration: from its file as far as they are there, and from the model as it is now.

    Problems are asked and written in rounds. A round is submitted whole to an engine with an empty cache, so a resumed
    run samples what the interrupted one would have, bit for bit.
    """
    path = iteration_file(cfg.out, iteration)
    path.parent.mkdir(exist_ok=True)
    rows = list(read_jsonl(path))
    rows = rows[: min(cfg.problems, len(rows) if len(rows) >= cfg.problems else len(rows) // ROUND * ROUND)]
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens)
    decoding, hint = Decoding(cfg.temperature), cfg.hint if cfg.rationalize else None
    while len(rows) < cfg.problems:
        here = range(len(rows), min(cfg.problems, len(rows) + ROUND))
        problems = [drawn(tasks, cfg.levels, cfg.seed, iteration, i) for i in here]
        seeds = [derive_seed(cfg.seed, iteration, i, 1) for i in here]
        engine.restore_version(iteration)
        started = time.perf_counter()
        found = asyncio.run(ask_all(problems, seeds, engine, chat, budget, decoding, hint))
        each = (time.perf_counter() - started) / len(found)
        for row in found:
            row["cost"]["seconds"] = each
        rows += [plain(row) for row in found]
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="replace"))
        progress.say(f"iteration {iteration}: {len(rows)} of {cfg.problems} problems asked")
    return rows


def kept(cfg: StarConfig, iteration: int, asked: Sequence[Asked]) -> list[Kept]:
    """What one iteration's rows teach."""
    return keep(asked, derive_seed(cfg.seed, iteration), cfg.rationalized_share, cfg.clean_lines)


def refuse_impossible(cfg: StarConfig, tasks: Sequence[Checked], chat: Chat, context: int) -> None:
    """UserError, before anything is written, for what cannot be learnt from, as `rollouts.refuse_impossible` has it.
    A question must fit with its hint."""
    assert chat.think_open and chat.think_close
    most = min(context, cfg.micro_tokens)
    for task in tasks:
        for level in levels_of(task, cfg.levels):
            problem = next(task.stream(level, "train", cfg.seed))
            hint = len(chat.encode(cfg.hint + problem.reference.answer)) if cfg.rationalize else 0
            prompt = len(chat.prompt(problem.question.text)) + hint
            if prompt + cfg.think_tokens + cfg.answer_tokens > most:
                hinted = " with its hint" if hint else ""
                raise UserError(
                    f"a prompt of {task.name} level {level} ({prompt} tokens{hinted}), think_tokens={cfg.think_tokens}"
                    f" and answer_tokens={cfg.answer_tokens} do not fit into {most} tokens (the model's context"
                    " and micro_tokens bound it): lower them"
                )


# ------------------------------------------------------------------------------------------------ the loop


def star(cfg: StarConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Runs the recipe; returns the folder of the last iteration's model.

    Resuming continues bitwise identically on CPU with the same number of threads.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    tasks = [load_task(name) for name in cfg.tasks]
    test = held_out(tasks, cfg.levels, cfg.eval_problems, "test", cfg.seed) if cfg.eval_problems else []
    valid = held_out(tasks, cfg.levels, -(-cfg.eval_problems // 2), "valid", cfg.seed) if cfg.eval_problems else []
    source = model_folder(cfg.model)
    chat = Chat.load(source)
    model = hf.load(source, device=cfg.device)
    refuse_impossible(cfg, tasks, chat, model.config.max_positions)
    replayed = load_task(cfg.replay) if cfg.replay else None
    if replayed is not None and not isinstance(replayed, Task):
        raise UserError(f"the task {cfg.replay} writes no worked solutions: replay one that does")
    optimizers = fresh_optimizers(cfg, model)
    ledger, ends = Ledger(), cfg.ends
    step, taken = 0, 0  # taken: documents of this iteration so far, its data cursor

    with RunFolder.create(
        cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("iterations", "threads")
    ) as run:
        if latest := run.latest():
            step, state = latest
            model.load_state_dict(state["model"])
            for one, saved in zip(optimizers, state["optimizers"], strict=True):
                one.load_state_dict(saved)
            ledger = Ledger.restore(state["ledger"])
            taken = state["taken"]
        run.truncate_metrics(step if latest else -1)  # what a run logged after its last checkpoint comes again
        engine = LocalEngine(model, chat, cfg.max_sequences)
        compiled = compile_layers(model) if cfg.compile else "training runs eagerly (compile = false)"

        title = f"STaR {'with' if cfg.rationalize else 'without'} rationalization on {', '.join(cfg.tasks)}"
        with Progress(title, ends[-1], start=step, mode=mode) as progress:
            progress.say(f"{native.status()}; {compiled}")
            if test and step == 0:
                found, _ = look(cfg, test, valid, engine, chat, ledger)
                run.log(0, {"iteration": 0, "eval": found, **totals(ledger)})
            while step < ends[-1]:
                iteration = next(n for n, end in enumerate(ends) if end > step)
                fresh = step == ends[iteration - 1]
                metrics: dict[str, Any] = {"iteration": iteration}
                rows = ask(cfg, tasks, engine, chat, iteration, progress) if fresh else None
                documents, asked = data(cfg, iteration, rows)
                if fresh:  # before the first step, so that a checkpoint in the midst has paid for its data
                    for row in rows or []:
                        ledger.charge("sampling", Cost(**row["cost"]))
                    metrics["asked"] = summary(asked, kept(cfg, iteration, asked))
                    complain(metrics["asked"], iteration, progress)
                    if cfg.restart:
                        model.load_state_dict(hf.load(source, device=cfg.device).state_dict())
                    optimizers, taken = fresh_optimizers(cfg, model), 0
                while step < ends[iteration]:
                    started = time.perf_counter()
                    samples, tokens = [], 0
                    while tokens < cfg.step_tokens:
                        samples.append(document(cfg, iteration, taken, documents, replayed, chat))
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
                    lr = optim.constant(step - ends[iteration - 1], peak=cfg.lr, warmup=cfg.warmup)
                    update = optim.step(model, optimizers, lr, cfg.max_grad_norm)
                    step += 1
                    seconds = time.perf_counter() - started
                    flops = train_flops(model.config, [len(s.tokens) for s in samples])
                    ledger.charge("training", Cost(trained_tokens=tokens, flops=flops, seconds=seconds))
                    metrics |= {
                        "loss": losses.summarise(seen)["loss_ce"],
                        "lr": lr,
                        "grad_norm": update.grad_norm,
                        "skipped_updates": int(update.skipped),
                        "documents": taken,
                        "tokens_per_second": tokens / seconds,
                        **totals(ledger),
                    }
                    score = None
                    if step == ends[iteration] and test:
                        metrics["eval"], score = look(cfg, test, valid, engine, chat, ledger)
                    run.log(step, metrics)
                    flat = {k: v for k, v in metrics.items() if k in ("iteration", "loss", "lr", "tokens_per_second")}
                    progress.update(step, **flat, accuracy=metrics["eval"]["mean"] if "eval" in metrics else None)
                    if step == ends[iteration] or step % cfg.checkpoint_every == 0:
                        state = {
                            "model": model.state_dict(),
                            "optimizers": [one.state_dict() for one in optimizers],
                            "ledger": ledger.state(),
                            "taken": taken,
                        }
                        run.save_checkpoint(step, state, lambda f: hf.save(model, f / "hf", source), score)
                    metrics = {"iteration": iteration}
        hf.save(model, cfg.out / "model", source=source)
    return cfg.out / "model"


def fresh_optimizers(cfg: StarConfig, model: Transformer) -> list[torch.optim.Optimizer]:
    made = (optim.muon if cfg.optimizer == "muon" else optim.adamw)(model, lr=cfg.lr, weight_decay=cfg.weight_decay)
    return made if isinstance(made, list) else [made]


def document(cfg: StarConfig, iteration: int, i: int, documents: Mixture, replayed: Task | None, chat: Chat) -> Sample:
    """Document i of an iteration: of every ten, with a replay_share of 0.1, one is the replayed task's."""
    if replayed is None:
        return documents(i).sample()
    before = int(i * cfg.replay_share)
    if int((i + 1) * cfg.replay_share) == before:
        return documents(i - before).sample()
    rng = random.Random(derive_seed(cfg.seed, iteration, i, 3))
    level = rng.choice([level for level in replayed.levels if level in cfg.levels] or list(replayed.levels))
    problem = next(replayed.stream(level, "train", rng.getrandbits(62)))
    worked = replayed.imperfect(problem, rng)
    return supervised(chat.prompt(problem.question.text), chat.reply(worked.thought, worked.answer))


def data(cfg: StarConfig, iteration: int, rows: list[dict[str, Any]] | None) -> tuple[Mixture, list[Asked]]:
    """(the documents that an iteration trains on, what it asked). UserError when there is nothing to learn from."""
    asked = [asked_of(row) for row in (rows if rows is not None else read_jsonl(iteration_file(cfg.out, iteration)))]
    chains = kept(cfg, iteration, asked)
    for before in range(max(1, iteration - cfg.history + 1), iteration):
        chains += kept(cfg, before, [asked_of(row) for row in read_jsonl(iteration_file(cfg.out, before))])
    if not chains:
        hints = ", nor with its answer as a hint" if cfg.rationalize else ""
        raise UserError(
            f"iteration {iteration}: none of {len(asked)} problems was solved{hints}, so there is nothing to learn "
            "from: start with easier levels, or with a model that gets some of them right"
        )
    return Mixture(chains, derive_seed(cfg.seed, iteration, 2), cfg.balance), asked


def complain(found: dict[str, Any], iteration: int, progress: Progress) -> None:
    """What went wrong without being an error, said once for an iteration."""
    if found["with_hint"] and not found["rationalized"]:
        progress.say(
            f"iteration {iteration}: none of {found['with_hint']} problems was solved with its answer as a hint: this "
            "model may not know what the hint is (see docs/methods/star.md)",
            important=True,
        )
    if found["unscorable"]:
        progress.say(f"iteration {iteration}: {found['unscorable']} answers could not be judged", important=True)


def look(
    cfg: StarConfig, test: list[Held], valid: list[Held], engine: LocalEngine, chat: Chat, ledger: Ledger
) -> tuple[dict[str, Any], float]:
    """(accuracy on the test problems by task and level, the score by which the best checkpoint is kept)."""
    started = time.perf_counter()
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens)
    found = [
        asyncio.run(evaluate(held, engine, chat, budget, decoding=Decoding(cfg.temperature), seed=cfg.seed))
        for held in (test, valid)
    ]
    cost = found[0].cost + found[1].cost
    ledger.charge("evaluation", cost + Cost(seconds=time.perf_counter() - started))
    return measured(found[0], chat), measured(found[1], chat)["mean"]
