"""Which questions must not be learnt from, because something is measured on them.

Three ways of knowing:

- A procedural problem's split is a hash of its canonical key, so whether a question is held out can be computed of the
  question alone (`Membership`). It is certain: the question's id is a hash of the same key.
- In any other text the problems of a generator whose questions have a form of their own (`Task.form`) are found by
  that form, and their split is computed alike.
- For the rest it is compared with held-out questions as texts: equal words, or 13 words in a row in common (`HeldOut`).

The comparison is that of GPT-3 (2005.14165, appendix C), with three differences. Signs count as words (see
`text.words`). A held-out question of fewer than 13 words is found when all its words stand in a row in another one;
the paper takes N from 8 to 13 by data set. And 13 words that more than 10 *held-out* questions have in common are
boilerplate, too; the paper leaves out those that more than 10 training documents have, which is done here as well.
Equality is always found, boilerplate or not. What a paraphrase or a translation hides is not found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from mull.store.text import words
from mull.tasks.base import SPLITS, Checked, Split, Task, split_of
from mull.tasks.dataset import DatasetTask
from mull.tasks.gym import GymTask
from mull.types import Question

GRAM = 13  # words
SHORTEST = 5  # words: of a shorter held-out question only an equal one is a copy
COMMON = 10  # questions that share a run of words before it is boilerplate
HELD: tuple[Split, ...] = ("test", "valid")


class Membership:
    """Which split a question of one of `tasks` belongs to."""

    def __init__(self, tasks: Iterable[Checked]):
        self._tasks = {task.name: task for task in tasks}
        self._listed: dict[str, dict[str, Split]] = {}  # of data sets

    def split(self, question: Question) -> Split | None:
        """The split, None where it cannot be proved: a task that is not known, or an id that is not of its making."""
        task = self._tasks.get(question.task)
        if isinstance(task, DatasetTask):
            return self._members(task).get(question.id)
        if isinstance(task, Task):
            try:
                key = task.key(question)
            except Exception:  # a text that is no question of this task
                return None
        elif isinstance(task, GymTask):
            key = question.text
        else:
            return None
        made = blake2b(key.encode("utf-8", "replace"), digest_size=6).hexdigest()
        return split_of(key) if question.id.rpartition("/")[2] == made else None

    def procedural(self, question: Question) -> bool:
        """Whether its task draws problems by a generator. Lines of a data set may be copies of each other."""
        return isinstance(self._tasks.get(question.task), (Task, GymTask))

    def _members(self, task: DatasetTask) -> dict[str, Split]:
        if task.name not in self._listed:
            self._listed[task.name] = {
                problem.question.id: split
                for split in SPLITS
                for level in task.levels
                for problem in task.up_to(level, split, 0, len(task))
            }
        return self._listed[task.name]


@dataclass
class HeldOut:
    """Held-out questions as texts, and what draws them. `add` them, or take them from tasks with `add_task`."""

    gram: int = GRAM
    sources: list[str] = field(default_factory=list)  # of each question: where it is from
    generators: list[Task] = field(default_factory=list)  # all of whose held-out problems count, drawn here or not
    _equal: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    _grams: dict[int, dict[int, list[int]]] = field(default_factory=dict)  # length: {hash of the run: questions}

    def add(self, text: str, source: str) -> None:
        w = words(text)
        if w in self._equal:  # the same question from another source is one more place that it may not come from
            if source not in {self.sources[i] for i in self._equal[w]}:
                self._equal[w].append(self._number(source))
            return
        self._equal[w] = [number := self._number(source)]
        n = min(self.gram, len(w))
        if n >= SHORTEST:
            for run in set(_runs(w, n)):
                self._grams.setdefault(n, {}).setdefault(run, []).append(number)

    def add_task(self, task: Checked, splits: Sequence[Split] = HELD, most: int = 200, seed: int = 0) -> None:
        """All held-out questions of a data set. A procedural task is one of the generators from now on; up to `most` of
        its questions of each level and split are texts, too: of a task without a form, that is all."""
        if isinstance(task, Task):
            self.generators.append(task)
        n = len(task) if isinstance(task, DatasetTask) else most
        for split in splits:
            for level in task.levels:
                for problem in task.up_to(level, split, seed, n):
                    self.add(problem.question.text, task.name)

    def _number(self, source: str) -> int:
        self.sources.append(source)
        return len(self.sources) - 1

    def contaminated(
        self, texts: Mapping[str, str], own: Mapping[str, str] | None = None, common: int = COMMON
    ) -> dict[str, str]:
        """Of {name: text} those that must go, with the reason. `own[name]`: a source that this one is known not to be
        a held-out question of, so that a likeness to those is not held against it."""
        own = own or {}
        worded = {name: words(text) for name, text in texts.items()}
        hits = {w: list(self._hits(w)) for w in set(worded.values())}
        seen = Counter(run for runs in hits.values() for run in {run for run, _, _ in runs})
        out: dict[str, str] = {}
        for name, w in worded.items():
            if source := self._other(self._equal.get(w, []), own.get(name)):
                out[name] = f"equal to a held-out question of {source}"
                continue
            if source := self._drawn(texts[name], own.get(name)):
                out[name] = f"a held-out question of {source} is in it"
                continue
            for run, n, numbers in hits[w]:
                boilerplate = len(numbers) > common or seen[run] > common
                if not boilerplate and (source := self._other(numbers, own.get(name))):
                    out[name] = f"{n} words in a row as in a held-out question of {source}"
                    break
        return out

    def _drawn(self, text: str, own: str | None) -> str | None:
        """The generator one of whose held-out problems is in the text."""
        for task in self.generators:
            if task.name != own and any(split in HELD for split in splits_in(task, text)):
                return task.name
        return None

    def _hits(self, w: tuple[str, ...]) -> Iterator[tuple[int, int, list[int]]]:
        for n in sorted(self._grams, reverse=True):
            index = self._grams[n]
            yield from ((run, n, index[run]) for run in _runs(w, n) if run in index)

    def _other(self, numbers: Iterable[int], own: str | None) -> str | None:
        return next((self.sources[i] for i in numbers if self.sources[i] != own), None)


def splits_in(task: Task, text: str) -> Iterator[Split]:
    """The splits of the task's problems in a text, as far as they can be told by their form."""
    for found in re.finditer(task.form, text) if task.form else ():
        try:
            key = task.key(Question("", task.name, found.group()))
        except Exception:  # it looks like a problem, and is none
            continue
        yield split_of(key)


def _runs(w: tuple[str, ...], n: int) -> Iterator[int]:
    """Every `n` words in a row, as a 64-bit hash: of two unequal ones the same once in 2^64."""
    return (hash(w[i : i + n]) for i in range(len(w) - n + 1))


def contaminated(
    questions: Iterable[Question], tasks: Iterable[Checked], held: HeldOut | None = None, splits: Sequence[Split] = HELD
) -> dict[str, str]:
    """{question id: reason} of the questions that `splits` of the tasks hold, by membership or by likeness to `held`.

    A procedural question that is proved not to be held out of its own task is compared with other sources only:
    questions of one generator are alike by nature.
    """
    membership, held = Membership(tasks), held or HeldOut()
    out: dict[str, str] = {}
    texts: dict[str, str] = {}
    own: dict[str, str] = {}
    for question in questions:
        split = membership.split(question)
        if split in splits:
            out[question.id] = f"a {split} question of {question.task}"
            continue
        texts[question.id] = question.text
        if split is not None and membership.procedural(question):
            own[question.id] = question.task
    return out | held.contaminated(texts, own)
