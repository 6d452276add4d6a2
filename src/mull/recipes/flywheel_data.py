"""The data of a flywheel: which questions a turn asks, the chains that come back, and what is learnt of them.

What a turn decides is written before anything follows from it, so that a resumed run learns what the interrupted one
would have, also where others have added to the same store in between:

    RUN/turns/03/questions.json   ids: new ones, and those asked again
    RUN/turns/03/asked.jsonl      a line for each question: the hash of its trace in the store, verdicts, cost
    RUN/turns/03/lessons.json     which chains were kept (and paired), and for how many others why not

Questions are asked in rounds. A round is submitted whole to empty caches, committed to the store, and only then noted
in the file. A kill in between makes the round be sampled again, into traces that the store already has.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.engine.sampler import derive_seed
from mull.errors import StopReason
from mull.evals.evaluate import Held, Strategy, evaluate
from mull.files import plain, read_jsonl, write_whole
from mull.learn.pairs import Pair, Side, paths_of, sft_sample
from mull.learn.pairs import Path as Chain
from mull.ledger import Budget
from mull.recipes.dpo import Lesson
from mull.search.sample import Decoding
from mull.search.sources import Opened
from mull.store import ChainRow, Count, Made, Record, Store, record_of
from mull.store.curate import curate
from mull.store.curriculum import Curriculum, choose
from mull.store.decontaminate import HeldOut, contaminated
from mull.store.export import outcome_pairs
from mull.tasks.base import Checked, Task
from mull.tasks.dataset import DatasetTask
from mull.tasks.load import PUZZLES, load_task
from mull.types import Cost, Question, SpanKind, Trace

if TYPE_CHECKING:
    from mull.recipes.flywheel import FlywheelConfig

ROUND = 64  # questions
RATES = ("0%", "0 to 25%", "25 to 50%", "50 to 75%", "75 to 100%", "100%")


def turn_file(out: Path, turn: int, name: str) -> Path:
    return out / "turns" / f"{turn:02d}" / name


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(plain(value), indent=1) + "\n").encode())


# -------------------------------------------------------------------------------------------------- questions


class Pool:
    """The problems of the train split in a fixed order, in turn from every task and level; `known` has those that were
    taken. The store keeps no references, so this is what a question can be asked again from."""

    def __init__(self, tasks: Sequence[Checked], levels: Sequence[int], seed: int):
        self.known: dict[str, Held] = {}
        self._cells = [self._problems(task, level, seed) for task in tasks for level in levels if level in task.levels]

    def _problems(self, task: Checked, level: int, seed: int) -> Iterator[Held]:
        found: set[str] = set()
        nothing_new = 0  # draws in a row
        for problem in task.stream(level, "train", seed):
            if problem.question.id not in found:
                found.add(problem.question.id)
                nothing_new = 0
                yield Held(task, problem)
            elif (nothing_new := nothing_new + 1) > 50 * len(found) + 1000:
                return

    def take(self, n: int) -> list[str]:
        """The ids of the next `n` problems, or of as many as there are."""
        taken: list[str] = []
        while len(taken) < n and self._cells:
            cell = self._cells.pop(0)
            if (held := next(cell, None)) is not None:
                self._cells.append(cell)
                self.known[held.problem.question.id] = held
                taken.append(held.problem.question.id)
        return taken


def counted(rows: Iterable[ChainRow], known: Iterable[str]) -> dict[str, Count]:
    """How the questions that a pool knows fared; `Count(0, 0)` where nothing was judged."""
    right, judged = Counter[str](), Counter[str]()
    for row in rows:
        if row.correct is not None and not row.again:
            judged[row.question] += 1
            right[row.question] += row.correct
    return {question: Count(right[question], judged[question]) for question in known}


def questions(cfg: FlywheelConfig, turn: int, pool: Pool, rows: Callable[[], list[ChainRow]]) -> dict[str, list[str]]:
    """What a turn asks. The pool must have taken what earlier turns did; `rows` are the chains that pass rates are
    read off."""
    path = turn_file(cfg.out, turn, "questions.json")
    if path.exists():
        asked = read(path)
        pool.take(len(asked["new"]))
        return asked
    again: list[str] = []
    counts: dict[str, Count] = {}
    rng = random.Random(derive_seed(cfg.seed, turn))
    if turn > 1:
        counts = counted(rows(), pool.known)
        again = choose(counts, round(cfg.problems * cfg.again), rng, cfg.curriculum)
    new = pool.take(cfg.problems - len(again))
    if (missing := cfg.problems - len(again) - len(new)) > 0:  # there are no more: ask more of the others again
        rest = {question: count for question, count in counts.items() if question not in set(again)}
        again += choose(rest, missing, rng, cfg.curriculum)
    asked = {"new": new, "again": again}
    write(path, asked)
    return asked


def histogram(counts: Mapping[str, Count], plan: Curriculum) -> dict[str, dict[str, int]]:
    """Questions by pass rate, and by what the curriculum takes them for."""
    rates: dict[str, int] = dict.fromkeys(RATES, 0)
    standing = {"open": 0, "solved": 0, "never": 0}
    for count in counts.values():
        standing[plan.standing(count)] += 1
        if count.judged:
            rate = count.right / count.judged
            rates[RATES[0] if rate == 0 else RATES[5] if rate == 1 else RATES[1 + int(rate * 4)]] += 1
    return {"rates": rates, "standing": standing}


# --------------------------------------------------------------------------------------------------- sampling


def ask(
    cfg: FlywheelConfig, turn: int, held: Sequence[Held], tools: Opened, strategies: Mapping[str, Strategy],
    store: Store, made: Made, told: Callable[[int], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """One row for each question, from the turn's file as far as they are there, and from the model as it is now."""
    path = turn_file(cfg.out, turn, "asked.jsonl")
    rows = list(read_jsonl(path))
    rows = rows if len(rows) >= len(held) else rows[: len(rows) // ROUND * ROUND]
    engine = tools.sampler
    assert isinstance(engine, LocalEngine)
    budget = Budget(cfg.tokens or None, cfg.think_tokens, cfg.answer_tokens, cfg.samples)

    async def one(question: Question, *parts: Any, **options: Any) -> Trace:
        return await strategies[question.task](question, *parts, **options)

    while len(rows) < len(held):
        part = held[len(rows) : len(rows) + ROUND]
        tools.forget()
        engine.restore_version(made.version)
        began, own = time.perf_counter(), derive_seed(cfg.seed, turn, len(rows))
        done = asyncio.run(evaluate(part, engine, tools.chat, budget, one, Decoding(cfg.temperature), own))
        each = (time.perf_counter() - began) / len(part)
        records = [
            record_of(trace, tools.chat, made, h.task, h.problem) for h, trace in zip(part, done.traces, strict=True)
        ]
        store.add(records)
        rows += [asked_row(record, each) for record in records]
        write_whole(path, "".join(json.dumps(plain(row)) + "\n" for row in rows).encode())
        told(len(rows))
    return rows


def asked_row(record: Record, seconds: float) -> dict[str, Any]:
    trace = record.trace
    return {
        "question": trace.question.id,
        "trace": record.hash,
        "correct": [verdict.correct for verdict in trace.verdicts],
        "exhausted": trace.exhausted,
        "lost": trace.lost,
        "cost": asdict(replace(trace.cost, seconds=seconds)),
    }


def summary(asked: Mapping[str, Sequence[str]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    marks = [mark for row in rows for mark in row["correct"]]
    return {
        "new": len(asked["new"]),
        "again": len(asked["again"]),
        "chains": len(marks),
        "right": marks.count(True),
        "unscorable": marks.count(None),
        "exhausted": sum(row["exhausted"] for row in rows),
        "lost": dict(Counter(what for row in rows for what in set(row["lost"])).most_common(8)),
    }


# --------------------------------------------------------------------------------------------------- curation


def held_against(tasks: Sequence[Checked], against: Sequence[Checked], measured: Iterable[Held]) -> HeldOut:
    """Every question that nothing may be learnt from: of data sets, of `against`, of what is measured, and of every
    puzzle. A procedural task's own are found by membership (see `mull.store.decontaminate`)."""
    held = HeldOut(generators=[task for task in map(load_task, PUZZLES) if isinstance(task, Task)])
    for task in [*(task for task in tasks if isinstance(task, DatasetTask)), *against]:
        held.add_task(task)
    for h in measured:
        held.add(h.problem.question.text, h.task.name)
    return held


def candidates(cfg: FlywheelConfig, store: Store, tasks: Sequence[Checked], turns: int) -> list[ChainRow]:
    """The chains of these tasks that the run sampled in its first `turns` turns, or, with `share`, whoever did."""
    names = [task.name for task in tasks]
    rows = store.chains(f"task IN ({', '.join('?' * len(names))})", names)
    own = own_traces(cfg, turns)
    return rows if cfg.share else [row for row in rows if row.trace in own]


def own_traces(cfg: FlywheelConfig, turns: int) -> set[str]:
    """Hashes. The catalogue's `run` would not do: a trace that another run sampled first is there under its name."""
    files = (turn_file(cfg.out, turn, "asked.jsonl") for turn in range(1, turns + 1))
    return {row["trace"] for file in files for row in read_jsonl(file)}


def curated(
    cfg: FlywheelConfig, turn: int, store: Store, tasks: Sequence[Checked], held: HeldOut, pool: Pool
) -> dict[str, Any]:
    """What a turn learns from, as `lessons.json` has it; a chain's name is (hash of its trace, number of its leaf)."""
    path = turn_file(cfg.out, turn, "lessons.json")
    if path.exists():
        return read(path)
    rows, own = candidates(cfg, store, tasks, turn), own_traces(cfg, turn)
    cut = {row for row in rows if row.correct and row.stop != StopReason.STOP}  # right, but no example of how to end
    whole = [row for row in rows if row not in cut]
    every, asked = store.questions(), sorted({row.question for row in rows})
    dirty = contaminated((every[question] for question in asked), tasks, held)
    found = curate(store, whole, cfg.each, cfg.order, cfg.near, cfg.no_false_step, dirty, seed=cfg.seed)
    wrong = [row for row in whole if row.correct is False and not row.again]
    pairs = outcome_pairs(found.kept, wrong, cfg.pairs, cfg.seed)
    lessons = {
        "kept": [[row.trace, row.leaf] for row in found.kept],
        "pairs": [[a.trace, a.leaf, b.trace, b.leaf] for a, b in pairs],
        "borrowed": sum(row.trace not in own for row in found.kept),  # kept ones that other runs sampled
        "counts": found.counts | ({"cut off": len(cut)} if cut else {}),
        "contaminated": found.contaminated,
        "pass_rates": histogram(counted(rows, pool.known), cfg.curriculum),
    }
    write(path, lessons)
    return lessons


def data_of(cfg: FlywheelConfig, lessons: Mapping[str, Any]) -> list[list[Any]]:
    """The chains or pairs that the method learns from."""
    return lessons["kept" if cfg.method == "sft" else "pairs"]


# -------------------------------------------------------------------------------------------------- learning


def lessons_of(
    cfg: FlywheelConfig, store: Store, chat: Chat, lessons: Mapping[str, Any]
) -> tuple[list[Lesson], dict[str, int]]:
    """Samples or pairs in a fixed order, and how many chains had to be spelled anew."""

    @lru_cache(maxsize=256)
    def told(trace: str) -> tuple[Record, list[Chain]]:
        record = store.record(trace)
        return record, paths_of(record.trace)

    made: list[Lesson] = []
    respelled, learnt = 0, dict[str, set[int]]()
    for entry in data_of(cfg, lessons):
        sides = [chain_of(*told(trace), leaf, chat) for trace, leaf in zip(entry[::2], entry[1::2], strict=True)]
        respelled += sum(anew for _, anew in sides)
        if cfg.method == "sft":
            [(chain, anew)], [trace, leaf] = sides, entry
            known = 0 if anew else shared(told(trace)[0].trace, leaf, learnt.setdefault(trace, set()))
            sample = sft_sample(chain.prompt, chain, known)
            made += [sample] if sample is not None else []
        else:
            (a, _), (b, spelled) = sides
            if spelled and b.cut:
                continue  # spelled anew it would end, which it did not
            if a.prompt == b.prompt and a.side.trained and b.side.trained and a.side.tokens != b.side.tokens:
                made.append(Pair(a.prompt, a.side, b.side))
    return made, {"respelled": respelled}


def chain_of(record: Record, paths: Sequence[Chain], leaf: int, chat: Chat) -> tuple[Chain, bool]:
    """One chain as `chat`'s tokens, and whether they were spelled anew from its text.

    They are the sampled tokens wherever they read as the text that the store has; a policy with another tokenizer or
    another template wrote other ones, and then its text is what can be learnt.
    """
    path, question = paths[leaf], record.trace.question
    prompt = tuple(chat.prompt(question.text))
    thought, answer = record.thoughts[leaf], record.trace.answers[leaf]
    said = chat.split(path.side.tokens)
    if path.prompt == prompt and said[0] == thought and (said[1] == answer or path.cut):
        return path, False
    tokens = tuple(chat.reply(thought, answer))
    return replace(path, prompt=prompt, side=Side(tokens, (True,) * len(tokens)), weights=(1.0,) * len(tokens)), True


def shared(trace: Trace, leaf: int, learnt: set[int]) -> int:
    """Tokens at the beginning of a chain that another chain of the same tree, learnt before, has too: they were sampled
    once. `learnt` has the spans of those, and gets this chain's."""
    at, path = trace.leaves[leaf], []
    while at >= 0:
        path.append(at)
        at = trace.spans[at].parent
    behind = [i for i in reversed(path) if trace.spans[i].kind is not SpanKind.PROMPT]
    known = sum(len(trace.spans[i].tokens) for i in behind if i in learnt)
    learnt.update(behind)
    return known


def cost_of(rows: Iterable[Mapping[str, Any]]) -> Cost:
    return sum((Cost(**row["cost"]) for row in rows), Cost())
