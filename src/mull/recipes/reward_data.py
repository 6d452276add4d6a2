"""Traces to train scorers from, and labels that take sampling: written as they are made, and made once.

A folder of traces serves every kind of scorer and every training seed:

    settings.json          what was sampled: traces of other settings are refused
    chains.jsonl           a line for each question: its reference, its chains as tokens, verdicts, lines judged
    rollouts-8-4.jsonl     per question the labels of `prm-rollouts`: 8 completions, 4 chains; omega-8-4.jsonl likewise

Questions are sampled and written in rounds. A round is submitted whole to an engine with an empty cache, so a resumed
run samples what the interrupted one would have, bit for bit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mull.chat import Chat
from mull.engine.local import LocalEngine
from mull.engine.sampler import derive_seed
from mull.errors import StopReason, UserError
from mull.evals.evaluate import Held, evaluate, thought_tokens
from mull.evals.grade import judge
from mull.files import plain, read_jsonl, write_whole
from mull.learn.labels import Chain, Label, Rollouts, make_chain, omega_labels, rollout_labels
from mull.ledger import Budget
from mull.tasks.base import Checked
from mull.types import Cost, Problem, Question, Reference, SamplingParams, StepKind, StepVerdict, Trace, Verdict

ROUND = 64  # questions
Told = Callable[[int], None]


@dataclass(frozen=True)
class Sampled:
    """One question's chains, judged."""

    problem: Problem
    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    cut: tuple[bool, ...]
    verdicts: tuple[Verdict, ...]
    lines: tuple[tuple[StepVerdict, ...], ...]  # of each chain, as the task judges them
    cost: Cost

    def chains(self, chat: Chat) -> list[Chain]:
        parts = zip(self.completions, self.verdicts, self.lines, self.cut, strict=True)
        name = self.problem.question.id
        return [make_chain(chat, self.prompt, c, v.correct, lines, name, cut) for c, v, lines, cut in parts]


def of_trace(task: Checked, problem: Problem, trace: Trace, chat: Chat) -> Sampled:
    """From a graded trace of whole chains."""
    completions = [tuple(thought_tokens(trace, leaf)) for leaf in trace.leaves]
    lines = [tuple(_judged_lines(task, problem, chat.split(c)[0])) for c in completions]
    cut = [trace.spans[leaf].stop is not StopReason.STOP for leaf in trace.leaves]
    cost = replace(trace.cost, seconds=0.0)  # what no two runs share
    prompt = trace.spans[0].tokens
    return Sampled(problem, prompt, tuple(completions), tuple(cut), tuple(trace.verdicts), tuple(lines), cost)


def _judged_lines(task: Checked, problem: Problem, thought: str) -> list[StepVerdict]:
    try:
        return list(task.check_steps(problem, thought))
    except UserError:
        raise
    except Exception:  # one sample's trouble: lines without verdicts cannot be labelled, and are counted
        return []


# ------------------------------------------------------------------------------------------------- traces


def traces(
    folder: Path, settings: dict[str, Any], held: Sequence[Held], engine: LocalEngine, chat: Chat, budget: Budget,
    seed: int, told: Told,
) -> list[Sampled]:  # fmt: skip
    """The chains of `held`, from the folder as far as they are there. UserError when it holds those of other settings.

    `budget.samples` chains for each question; `told` hears how many questions are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder / "settings.json", settings)

    async def one_round(start: int, part: Sequence[Held]) -> list[dict[str, Any]]:
        done = await evaluate(part, engine, chat, budget, seed=derive_seed(seed, start))
        sampled = (of_trace(h.task, h.problem, trace, chat) for h, trace in zip(part, done.traces, strict=True))
        return [_row(s) for s in sampled]

    rows = in_rounds(folder / "chains.jsonl", held, engine, one_round, told)
    return [_sampled(row) for row in rows]


def in_rounds(path: Path, items: Sequence[Any], engine: LocalEngine, work: Callable[..., Any], told: Told) -> list:
    """`work(start, items of a round)` for each round that is not in the file yet; its rows are appended to it."""
    rows = list(read_jsonl(path))
    if len(rows) < len(items):
        rows = rows[: len(rows) // ROUND * ROUND]
        write_whole(path, _lines(rows))  # without the part of a round that a kill may have left
    while len(rows) < len(items):
        told(len(rows))
        engine.restore_version(0)
        new = [plain(row) for row in asyncio.run(work(len(rows), items[len(rows) : len(rows) + ROUND]))]
        with open(path, "ab") as file:
            file.write(_lines(new))
        rows += new
    told(len(items))
    return rows


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="replace")


def claim(path: Path, settings: dict[str, Any]) -> None:
    """Writes what a folder of traces was made with; UserError when it was made with something else."""
    settings = json.loads(json.dumps(plain(settings)))
    if path.exists():
        held = json.loads(path.read_text())
        if different := [key for key in settings if held.get(key) != settings[key]]:
            key = different[0]
            raise UserError(
                f"{path.parent} holds traces with {key}={held.get(key)!r}, not {settings[key]!r}: ask for the same, or"
                " choose another folder"
            )
    else:
        write_whole(path, (json.dumps(settings, indent=1) + "\n").encode())


def _row(s: Sampled) -> dict[str, Any]:
    return {
        "question": asdict(s.problem.question),
        "reference": {"answer": s.problem.reference.answer, "data": dict(s.problem.reference.data)},
        "prompt": s.prompt,
        "chains": [
            {
                "tokens": tokens,
                "cut": cut,
                "correct": verdict.correct,
                "answer": verdict.answer,
                "error": verdict.error,
                "lines": [[line.text, line.ok, line.kind.value, line.why] for line in lines],
            }
            for tokens, cut, verdict, lines in zip(s.completions, s.cut, s.verdicts, s.lines, strict=True)
        ],
        "cost": asdict(s.cost),
    }


def _sampled(row: dict[str, Any]) -> Sampled:
    chains = row["chains"]
    return Sampled(
        Problem(Question(**row["question"]), Reference(**row["reference"])),
        tuple(row["prompt"]),
        tuple(tuple(c["tokens"]) for c in chains),
        tuple(c["cut"] for c in chains),
        tuple(Verdict(c["correct"], c["answer"], c["error"]) for c in chains),
        tuple(tuple(StepVerdict(t, ok, StepKind(kind), why) for t, ok, kind, why in c["lines"]) for c in chains),
        Cost(**row["cost"]),
    )


# -------------------------------------------------------------------------------- labels that are sampled for


@dataclass(frozen=True)
class Labelled:
    """One question's labels, chain by chain, and what they took."""

    labels: list[list[Label]]
    cost: Cost
    rollouts: int


def sampled_labels(
    folder: Path, kind: str, k: int, each: int, sampled: Sequence[Sampled], tasks: dict[str, Checked],
    engine: LocalEngine, chat: Chat, budget: Budget, seed: int, told: Told,
) -> list[Labelled]:  # fmt: skip
    """Labels of the first `each` different chains of every question, by `k` rollouts from each step ("prm-rollouts") or
    by bisection ("omega"). Equal prefixes of one question are completed once."""

    async def one(s: Sampled, seed: int) -> dict[str, Any]:
        memory: dict[tuple[int, ...], asyncio.Future[Rollouts]] = {}
        task = tasks[s.problem.question.task]

        async def complete(prefix: Sequence[int], n: int) -> Rollouts:
            key = tuple(prefix)
            if key in memory:
                verdicts, _ = await memory[key]
                return verdicts, Cost()
            memory[key] = asyncio.ensure_future(_complete(task, s, key, n, engine, chat, budget, seed))
            return await memory[key]

        chains = different(s.chains(chat))[:each]
        ask = rollout_labels if kind == "prm-rollouts" else omega_labels
        made = await asyncio.gather(*(ask(chain, complete, k) for chain in chains))
        return {
            "labels": [[list(label) for label in m.labels] for m in made],
            "cost": asdict(sum((m.cost for m in made), Cost())),
            "rollouts": len(memory) * k,
        }

    async def one_round(start: int, part: Sequence[Sampled]) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(one(s, derive_seed(seed, start + i)) for i, s in enumerate(part))))

    rows = in_rounds(folder / f"{kind.removeprefix('prm-')}-{k}-{each}.jsonl", sampled, engine, one_round, told)
    return [
        Labelled([[Label(*label) for label in c] for c in row["labels"]], Cost(**row["cost"]), row["rollouts"])
        for row in rows
    ]


def different(chains: Sequence[Chain]) -> list[Chain]:
    """Each once, in order."""
    return list({chain.tokens: chain for chain in chains}.values())


async def _complete(
    task: Checked,
    s: Sampled,
    prefix: tuple[int, ...],
    n: int,
    engine: LocalEngine,
    chat: Chat,
    budget: Budget,
    seed: int,
) -> Rollouts:
    """Verdicts of `n` completions of a prefix of one of the chains; what does not end within the budget is wrong."""
    done = len(prefix) - len(s.prompt)
    most = max(1, budget.think_tokens + budget.answer_tokens - done)
    params = SamplingParams(most, seed=derive_seed(seed, *prefix[len(s.prompt) :]))
    completions = await engine.sample(prefix, params, n)
    verdicts: list[bool | None] = []
    for c in completions:
        answer = chat.split([*prefix[len(s.prompt) :], *c.tokens])[1] if c.stop is StopReason.STOP else ""
        verdicts.append(judge(task.check, s.problem, answer).correct)
    return verdicts, replace(sum((c.cost for c in completions), Cost()), seconds=0.0)
