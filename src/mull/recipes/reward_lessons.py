"""From sampled chains to what each kind of scorer learns, and a count of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mull.chat import Chat
from mull.chat.template import CLOSE
from mull.engine.sampler import derive_seed
from mull.errors import UserError
from mull.learn import labels as lab
from mull.learn.critique import OK, critique_sample, critique_text, plant
from mull.learn.labels import Chain, Label
from mull.learn.values import Group, ValueSample, tree_work
from mull.models.flops import causal_context
from mull.recipes.reward_data import Labelled, Sampled, different
from mull.tasks.base import Checked
from mull.types import Sample

if TYPE_CHECKING:
    from mull.recipes.reward import RewardConfig

Lesson = Group | Sample  # for a value model, for a critic
PLANTINGS = 4  # rounds over all chains, at most


def work_of(lesson: Lesson) -> tuple[int, int]:
    """(tokens that go through the model for it, keys that they attend to)."""
    if isinstance(lesson, tuple):
        return tree_work(lesson)
    return len(lesson.tokens), causal_context(0, len(lesson.tokens))


def together(samples: Sequence[ValueSample], most: int, step: int = 1) -> list[Lesson]:
    """Samples of one question as few groups, each of at most `most` tokens (what they share counted again and again);
    `step` of them, the two of a pair, are never parted."""
    groups: list[Lesson] = []
    group: list[ValueSample] = []
    size = 0
    for start in range(0, len(samples), step):
        unit = samples[start : start + step]
        more = sum(len(one.tokens) for one in unit)
        if group and size + more > most:
            groups.append(tuple(group))
            group, size = [], 0
        group += unit
        size += more
    return [*groups, tuple(group)] if group else groups


def lessons(
    cfg: RewardConfig,
    tasks: Sequence[Checked],
    chat: Chat,
    sampled: Sequence[Sampled],
    labelled: Sequence[Labelled] | None = None,
) -> tuple[list[Lesson], dict[str, Any]]:
    """(what is to be learnt, what it is made of: see `scorer.json`).

    UserError when the tasks cannot judge steps and the kind needs that.
    """
    by_question = [s.chains(chat) for s in sampled]
    everything = [chain for chains in by_question for chain in chains]
    made: dict[str, Any] = {
        "questions": len(sampled),
        "chains": len(everything),
        "right": sum(chain.correct is True for chain in everything),
        "unscorable": sum(chain.correct is None for chain in everything),
    }
    if cfg.kind in ("prm", "critic"):
        made["unaligned"] = sum(chain.steps is None for chain in everything)
        if not any(line.ok is not None for s in sampled for lines in s.lines for line in lines):
            raise UserError(
                f"no line of the traces of {', '.join(cfg.tasks)} could be judged, and a {cfg.kind} scorer learns from"
                " judged lines: choose a task that checks steps, or kind=orm, prm-rollouts or omega"
            )
    todo: list[Lesson] = []
    match cfg.kind:
        case "orm":
            lm = cfg.lm_weight > 0
            for chains in by_question:
                labels = [(chain, lab.outcome_labels(chain)) for chain in chains]
                made_of = [ValueSample(c.tokens, found, c.prompt if lm else None) for c, found in labels if found]
                todo += together(made_of, cfg.micro_tokens)
            made["by"] = "the verdict on the answer, at every token"
        case "prm":
            for chains in by_question:
                todo += together(_steps([(chain, lab.exact_labels(chain)) for chain in chains], cfg), cfg.micro_tokens)
            made["by"] = "the task's step checks, up to the first false step"
        case "prm-rollouts" | "omega":
            assert labelled is not None
            pairs: list[tuple[Chain, list[Label]]] = []
            for chains, found in zip(by_question, labelled, strict=True):
                mine = list(
                    zip(different(chains), found.labels, strict=False)
                )  # the first few of the chains have labels
                if cfg.hard and cfg.kind == "prm-rollouts":
                    mine = [(chain, lab.hard(labels)) for chain, labels in mine]
                todo += together(_steps(mine, cfg), cfg.micro_tokens)
                pairs += mine
            made |= {"by": f"{cfg.rollouts} rollouts a prefix", "rollouts": sum(one.rollouts for one in labelled)}
            made |= noise([(chain, found) for chain, found in pairs if found])
        case "pairwise":
            rng = random.Random(derive_seed(cfg.seed, 1))
            for chains in by_question:
                preferred = lab.outcome_pairs(chains, rng) + lab.sibling_pairs(chains, rng)
                ends = [end for pair in preferred for end in (_end(pair.better, 1.0), _end(pair.worse, 0.0))]
                todo += together(ends, cfg.micro_tokens, step=2)
            made["by"] = "right chains and right next steps over wrong ones of the same question"
        case "critic":
            rng = random.Random(derive_seed(cfg.seed, 1))
            by_name = {task.name: task for task in tasks}
            work = [
                (s, i, chain)
                for s, chains in zip(sampled, by_question, strict=True)
                for i, chain in enumerate(chains)
                if chain.steps is not None and chain.ends
            ]
            own = [_critique(s, i, chain, chat, rng) for s, i, chain in work]
            todo += [lesson for lesson, _ in own]
            errors = sum(wrong for _, wrong in own)
            planted = 0
            for _ in range(PLANTINGS):  # until half of the errors are planted ones
                for s, i, _ in work:
                    if planted < errors and (two := _planted(s, i, by_name[s.problem.question.task], chat, rng)):
                        todo += two
                        planted += 1
            made["errors"] = errors + planted
            made |= {"by": "the task's step checks", "planted": planted}
    counted = [label for lesson in todo if isinstance(lesson, tuple) for one in lesson for label in one.labels]
    made |= {"lessons": len(todo), "labels": len(counted), "positive": sum(label.value > 0.5 for label in counted)}
    return todo, made


def _steps(pairs: Sequence[tuple[Chain, Sequence[Label]]], cfg: RewardConfig) -> list[ValueSample]:
    """A sequence is cut behind its last label: nothing behind it is learnt."""
    todo: list[ValueSample] = []
    for chain, found in pairs:
        if found:
            tokens, lm = chain.tokens[: found[-1].end], chain.prompt if cfg.lm_weight > 0 else None
            todo.append(ValueSample(tokens, lab.spread(chain, found) if cfg.every_token else found, lm))
    return todo


def _end(tokens: Sequence[int], value: float) -> ValueSample:
    return ValueSample(tokens, [Label(len(tokens), value)])


def noise(pairs: Sequence[tuple[Chain, Sequence[Label]]]) -> dict[str, Any]:
    """Sampled labels against exact ones where the task gives those: how often a false step was called right (share
    above 1/2), and a right one wrong."""
    false_called_right = false = right_called_wrong = right = 0
    for chain, found in pairs:
        exact = dict(lab.exact_labels(chain))
        for end, value in found:
            if exact.get(end) == 0:
                false += 1
                false_called_right += value > 0.5
            elif exact.get(end) == 1:
                right += 1
                right_called_wrong += value <= 0.5
    return {
        "false_called_right": false_called_right / false if false else None,
        "right_called_wrong": right_called_wrong / right if right else None,
    }


def _critique(s: Sampled, i: int, chain: Chain, chat: Chat, rng: random.Random) -> tuple[Sample, bool]:
    """(a lesson from chain `i` as it was sampled, whether it holds an error): whole, or cut behind one of its steps. An
    answer that nobody could judge is cut off."""
    ends = chain.ends[:-1] if chain.answered and chain.correct is None else chain.ends
    end = ends[-1] if rng.random() < 0.5 else rng.choice(ends)
    if chain.answered and end == len(chain.tokens):
        text = critique_text(s.lines[i], chain.correct)
    else:
        thought = chat.decode(chain.tokens[chain.prompt : end]).partition(CLOSE)[0]
        text = critique_text(s.lines[i][: sum(bool(line.strip()) for line in thought.split("\n"))], None)
    return critique_sample(chat, chain.tokens[:end], text), text != OK


def _planted(s: Sampled, i: int, task: Checked, chat: Chat, rng: random.Random) -> tuple[Sample, Sample] | None:
    """Two lessons from chain `i`, cut behind one of its right lines: with an error planted in that line, and as it was.
    None where no error takes."""
    thought = chat.split(s.completions[i])[0]
    spoilt = plant(s.problem, task, thought, rng)
    if spoilt is None:
        return None
    text, number = spoilt
    line = [at for at, line in enumerate(text.split("\n")) if line.strip()][number - 1]
    behind = chat.encode("\n") if line < text.count("\n") else list(chat.think_close)

    def lesson(thought: str) -> Sample:
        kept = "\n".join(thought.split("\n")[: line + 1])
        said = critique_text(task.check_steps(s.problem, kept), None)
        return critique_sample(chat, [*s.prompt, *chat.encode(kept), *behind], said)

    return lesson(text), lesson(thought)
