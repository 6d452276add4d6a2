"""What a search found becomes what the model does at once: imitation of its paths, preferences between its branches.

The loop is `dpo()`: search questions of the train split with any strategy (or read a folder of such traces), make
lessons of the graded trees, learn, and measure single samples on held-out problems, before and after, with the same
limits on tokens. The trees stay in a folder of their own, so that several methods and seeds learn from the same ones.

    sft    cross-entropy on each question's best right paths, by the strategy's own choice
    dpo    preferences: sibling steps by what came of them (Agent Q, Step-DPO), right chains over wrong ones, or each
           question's shortest right chain over longer ones (long-to-short)
    both   lessons of both kinds in one list: a step's loss is the mean over its pairs plus `sft_weight` times the mean
           over its imitated tokens

`mull.learn.pairs` says why none of these needs the probability with which the search proposed a path, and why a policy
gradient on the same traces would.

Searching again with the trained model, and so on, is `--model OUT/model` with another `out`.
"""

from __future__ import annotations

import asyncio
import random
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
from mull.evals.evaluate import Evaluation, Held, evaluate, held_out
from mull.learn import losses, optim
from mull.learn.dpo import Form, dpo_loss, pack_pairs, pair_logprobs, pair_size, reference_logprobs
from mull.learn.dpo import summarise as summarise_pairs
from mull.learn.dpo import to_device as pairs_to_device
from mull.learn.forward import batch_logprobs
from mull.learn.length import short_pairs
from mull.learn.pack import pack, to_device
from mull.learn.pairs import Pair, outcome_pairs, sft_samples_from_search, step_pairs
from mull.ledger import Budget, Ledger
from mull.models import hf
from mull.models.compiled import compile_layers
from mull.models.flops import train_flops
from mull.models.nano import model_folder
from mull.models.transformer import Transformer
from mull.progress import Mode, Progress
from mull.recipes.epochs import in_epochs
from mull.recipes.rollouts import refuse_impossible
from mull.recipes.search_data import searched, tools_of
from mull.recipes.sft import spent
from mull.runfolder import RunFolder
from mull.search.named import named
from mull.search.sample import Decoding, leaf_cost
from mull.search.sources import Opened, Source
from mull.tasks.load import load_task
from mull.types import Cost, Sample, Trace

Lesson = Pair | Sample


@dataclass(frozen=True)
class DPOConfig:
    model: str = "nano"  # the policy that searches and learns: a Hugging Face folder, or nano
    out: Path = Path("runs/dpo")
    tasks: tuple[str, ...] = ("chain",)
    levels: tuple[int, ...] = (1, 2)
    method: Literal["sft", "dpo", "both"] = "dpo"
    strategy: str = "mcts:value=rollout"  # see search/named.py; "sample" gives chains that nothing selected
    scorer: str = ""  # what judges steps while searching, for strategies that need it
    critic: str = ""
    traces: Path | None = None  # a folder of traces to learn from, filled if it is empty; none: OUT/search
    trace_seed: int = 0  # of the questions and of the search
    problems: int = 512  # questions to search
    samples: int = 16  # the strategy's N
    tokens: int = 0  # that one question may sample in all; 0: no limit
    think_tokens: int = 256
    answer_tokens: int = 32
    temperature: float = 1.0  # of the search
    pairs: Literal["steps", "chains", "both", "short"] = "both"
    theta: float = 0.2  # steps are a pair where their values differ by more
    outcomes: float = 1.0  # share of what came of a step in its value; the rest is its score
    least: int = 1  # judged chains below a step, for its value to count
    most: int = 4  # pairs of the same parent, and of the chains of the same question
    longer: float = 1.5  # right chains count as longer from so many times the shortest (short)
    paths: int = 1  # imitated of each question (sft, both)
    weight: Literal["one", "visits"] = "one"  # of imitated steps
    sft_weight: float = 1.0  # of imitation beside preferences (both)
    reference: Literal["stored", "model"] = "stored"  # the sampler's own log-probabilities, or the starting model's
    beta: float = 0.5
    form: Form = "dpo"
    normalised: bool = False  # log-ratios per token
    nll: float = 0.0  # of the chosen side, beside the preference (Iterative RPO takes 1)
    epochs: int = 2
    step_tokens: int = 8192  # tokens of one optimiser step; what the sides of a pair share counts once
    micro_tokens: int = 4096  # tokens of one forward and backward pass, padding included
    lr: float = 5e-5  # for preferences; imitation, alone or beside them, bears 2e-4 (docs/methods)
    warmup: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    eval_every: int = 0  # steps between evaluations besides the first and the last; 0: none
    eval_problems: int = 256  # held out; 0: no evaluation at all
    eval_samples: int = 2
    checkpoint_every: int = 50
    compile: bool = False
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products; the weights stay float32
    seed: int = 0  # of the order of learning, which chains are paired, and the evaluation
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        if self.problems < 1 or self.samples < 1 or self.epochs < 1 or self.most < 1 or self.paths < 1:
            raise UserError("problems, samples, epochs, most and paths must be 1 or more")
        if not 0 <= self.outcomes <= 1 or self.theta < 0 or self.beta <= 0:
            raise UserError("outcomes must be between 0 and 1, theta 0 or more, and beta above 0")
        paired = ("pairs", "theta", "outcomes", "least", "most", "longer")
        preference = ("reference", "beta", "form", "normalised", "nll")
        readers = {
            **dict.fromkeys((*paired, *preference), ("dpo", "both")),
            **dict.fromkeys(("paths", "weight"), ("sft", "both")),
            "sft_weight": ("both",),
        }
        configs.refuse_unread(self, "method", readers)
        steps = dict.fromkeys(("theta", "outcomes", "least"), ("steps", "both"))
        configs.refuse_unread(self, "pairs", {**steps, "longer": ("short",)})
        if self.method != "sft" and self.reference == "stored" and self.temperature != 1:
            raise UserError(
                f"log-probabilities sampled at temperature={self.temperature} are not the policy's own: search at 1, "
                "or use reference=model"
            )


# ------------------------------------------------------------------------------------------------ the loop


def dpo(cfg: DPOConfig, command: str = "", resume: bool = False, mode: Mode = "auto") -> Path:
    """Searches and learns; returns the folder of the trained model. Resuming continues bitwise identically on CPU."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    tasks = [load_task(name) for name in cfg.tasks]
    held = held_out(tasks, cfg.levels, cfg.eval_problems, "test", cfg.seed) if cfg.eval_problems else []
    source = model_folder(cfg.model)
    chat = Chat.load(source)
    model = hf.load(source, device=cfg.device)
    refuse_impossible(cfg, tasks, chat, model.config.max_positions)
    tools = tools_of(Source(cfg.model, scorer=cfg.scorer, critic=cfg.critic, device=cfg.device))
    tools.bind(named(cfg.strategy), tasks[0].canonical)  # or UserError, before anything is written
    reference = None
    if cfg.reference == "model" and cfg.method != "sft":
        reference = hf.load(source, device=cfg.device).requires_grad_(False)
    optimizer = optim.adamw(model, cfg.lr, cfg.weight_decay)
    ledger = Ledger()
    step = 0

    with RunFolder.create(
        cfg.out, configs.to_toml(cfg), command, cfg.seed, resume, may_change=("threads", "checkpoint_every")
    ) as run:
        todo, found = prepared(cfg, tasks, tools, ledger, mode)
        plan = in_epochs([size_of(lesson) for lesson in todo], cfg.epochs, cfg.step_tokens, cfg.seed)
        if latest := run.latest():
            step, state = latest
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            ledger = Ledger.restore(state["ledger"])
        run.truncate_metrics(step if latest else -1)
        told = compile_layers(model) if cfg.compile else "training runs eagerly (compile = false)"
        with Progress(f"{cfg.method} on {', '.join(cfg.tasks)}", len(plan), start=step, mode=mode) as progress:
            progress.say(told)
            if step == 0:
                first: dict[str, Any] = {"lessons": found, "search_flops": ledger.phases["search"].flops}
                if held:
                    first["eval"] = measured(cfg, held, model, chat, ledger)
                run.log(0, {**first, **spent(ledger)})
            while step < len(plan):
                began = time.perf_counter()
                chosen = [todo[i] for i in plan[step]]
                learnt = learn(cfg, model, reference, chosen)
                lr = optim.cosine(step, peak=cfg.lr, total=len(plan), warmup=cfg.warmup)
                update = optim.step(model, optimizer, lr, cfg.max_grad_norm)
                step += 1
                seconds = time.perf_counter() - began
                sizes = [size_of(lesson) for lesson in chosen]
                flops = train_flops(model.config, sizes)
                if reference is not None:
                    flops += train_flops(model.config, [size_of(x) for x in chosen if isinstance(x, Pair)]) / 3
                ledger.charge("training", Cost(trained_tokens=sum(sizes), flops=flops, seconds=seconds))
                metrics: dict[str, Any] = {
                    **learnt,
                    "lr": lr,
                    "grad_norm": update.grad_norm,
                    "skipped_updates": int(update.skipped),
                    "tokens_per_second": sum(sizes) / seconds,
                    **spent(ledger),
                }
                if held and (step == len(plan) or (cfg.eval_every and step % cfg.eval_every == 0)):
                    metrics["eval"] = measured(cfg, held, model, chat, ledger)
                run.log(step, metrics)
                progress.update(step, **{k: v for k, v in metrics.items() if not isinstance(v, dict)})
                if step % cfg.checkpoint_every == 0 or step == len(plan):
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "ledger": ledger.state(),
                    }
                    run.save_checkpoint(step, state, lambda folder: hf.save(model, folder / "hf", source))
        hf.save(model, cfg.out / "model", source=source)
    return cfg.out / "model"


def prepared(
    cfg: DPOConfig, tasks: list, tools: Opened, ledger: Ledger, mode: Mode
) -> tuple[list[Lesson], dict[str, Any]]:
    """What is to be learnt, and what the search was worth; what it cost is charged to the ledger."""
    questions = held_out(tasks, cfg.levels, cfg.problems, "train", cfg.trace_seed)
    keys = ("model", "tasks", "levels", "strategy", "scorer", "critic", "problems", "samples", "tokens")
    settings = {key: getattr(cfg, key) for key in (*keys, "think_tokens", "answer_tokens", "temperature", "trace_seed")}
    budget = Budget(cfg.tokens or None, cfg.think_tokens, cfg.answer_tokens, cfg.samples)
    decoding = Decoding(cfg.temperature)
    with Progress(f"{cfg.strategy} on each question", len(questions), mode=mode) as progress:
        search = searched(
            cfg.traces or cfg.out / "search", settings, questions, tools, named(cfg.strategy), budget, decoding,
            cfg.trace_seed, progress.update,
        )  # fmt: skip
    ledger.charge("search", search.cost)
    made, counts = lessons(cfg, search.traces)
    todo = [lesson for lesson in made if fits(lesson, cfg.micro_tokens)]
    found = {
        **counts,
        "too_long": len(made) - len(todo),  # left out whole
        "questions": len(questions),
        "search_accuracy": search.chosen.as_dict(),  # of the strategy's own choice, on the train split
        "leaf_accuracy": search.accuracy.as_dict(),
        "search_tokens": search.cost.sampled_tokens,
        "exhausted": search.exhausted,
        "lost": dict(search.lost.most_common(8)),
    }
    if not todo:
        raise UserError(
            f"the traces of {len(questions)} questions hold nothing to learn from by method={cfg.method} ({counts}, "
            f"{len(made)} too long): search questions that are sometimes right and sometimes wrong, or lower theta"
        )
    return todo, found


def lessons(cfg: DPOConfig, traces: Sequence[Trace]) -> tuple[list[Lesson], dict[str, int]]:
    """Pairs and demonstrations, as the config asks, each once; and how many of what."""
    counts = {"steps": 0, "chains": 0, "paths": 0}
    todo: list[Lesson] = []
    if cfg.method != "sft":
        unique: dict[tuple, Pair] = {}
        if cfg.pairs in ("steps", "both"):
            options: dict[str, Any] = {"outcomes": cfg.outcomes, "least": cfg.least, "most": cfg.most}
            for pair in (pair for trace in traces for pair in step_pairs(trace, cfg.theta, **options)):
                unique.setdefault((pair.prompt, pair.chosen.tokens, pair.rejected.tokens), pair)
        counts["steps"] = len(unique)
        chains = []
        if cfg.pairs in ("chains", "both"):
            chains = outcome_pairs(traces, random.Random(derive_seed(cfg.seed, 1)), cfg.most)
        if cfg.pairs == "short":
            chains = short_pairs(traces, cfg.longer, cfg.most)
        for pair in chains:
            unique.setdefault((pair.prompt, pair.chosen.tokens, pair.rejected.tokens), pair)
        counts["chains"] = len(unique) - counts["steps"]
        todo += unique.values()
    if cfg.method != "dpo":
        paths = sft_samples_from_search(traces, cfg.paths, cfg.weight)
        counts["paths"] = len(paths)
        todo += paths
    return todo, counts


def size_of(lesson: Lesson) -> int:
    return pair_size(lesson) if isinstance(lesson, Pair) else len(lesson.tokens)


def fits(lesson: Lesson, micro_tokens: int) -> bool:
    """Whether it fits into a micro-batch, whose rows are padded to 8 (a sample's last token is no input)."""
    return -(-(size_of(lesson) - isinstance(lesson, Sample)) // 8) * 8 <= micro_tokens


def learn(
    cfg: DPOConfig, model: Transformer, reference: Transformer | None, chosen: Sequence[Lesson]
) -> dict[str, float]:
    """Forward and backward over the lessons of one step, in micro-batches; returns losses and diagnostics."""
    pairs = [lesson for lesson in chosen if isinstance(lesson, Pair)]
    samples = [lesson for lesson in chosen if isinstance(lesson, Sample)]
    compared, imitated = [], []
    for batch in pack_pairs(pairs, cfg.micro_tokens):
        batch = pairs_to_device(batch, cfg.device)
        with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
            reference_N = reference_logprobs(batch, reference)
            policy_N = pair_logprobs(model, batch)
        loss, micro = dpo_loss(
            batch.by_side(policy_N),
            batch.by_side(reference_N),
            batch.lengths_P2,
            batch.denominator,
            beta=cfg.beta,
            form=cfg.form,
            normalised=cfg.normalised,
            nll=cfg.nll,
        )
        loss.backward()
        compared.append(micro)
    for batch in pack(samples, cfg.micro_tokens):
        batch = to_device(batch, cfg.device)
        with torch.autocast(cfg.device, torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
            logprobs_BT, _ = batch_logprobs(model, batch)
        loss, micro = losses.loss(batch, logprobs_BT)
        (loss * (cfg.sft_weight if cfg.method == "both" else 1.0)).backward()
        imitated.append(micro)
    seen = summarise_pairs(compared)
    if imitated:
        seen["loss_ce"] = losses.summarise(imitated)["loss_ce"]
    return seen


def measured(cfg: Any, held: list[Held], model: Transformer, chat: Chat, ledger: Ledger) -> dict[str, Any]:
    """pass@1 of single samples on the held-out problems, over all and by task, with intervals and mean tokens."""
    began = time.perf_counter()
    budget = Budget(think_tokens=cfg.think_tokens, answer_tokens=cfg.answer_tokens, samples=cfg.eval_samples)
    evaluation = asyncio.run(evaluate(held, LocalEngine(model, chat), chat, budget, seed=cfg.seed))
    ledger.charge("evaluation", evaluation.cost + Cost(seconds=time.perf_counter() - began))

    def figures(e: Evaluation) -> dict[str, Any]:
        tokens = [leaf_cost(trace, leaf).sampled_tokens for trace in e.traces for leaf in trace.leaves]
        return {**e.accuracy.as_dict(), "tokens": sum(tokens) / max(len(tokens), 1)}

    names = dict.fromkeys(h.task.name for h in held)
    return {"all": figures(evaluation), "tasks": {name: figures(evaluation.of(name)) for name in names}}
