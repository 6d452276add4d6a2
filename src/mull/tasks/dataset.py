"""A JSONL file of problems as a task: GSM8K, MATH, AIME and whatever has their shape.

Each line is an object with a question (`problem`, `question` or `prompt`) and an answer (`answer`, `final_answer`,
`expected_answer`, `target`, `ground_truth` or `solution`). Where the answer is a worked solution, its final answer is
the last `\\boxed{...}` (MATH) or what follows the last `####` (GSM8K, whose `<<2+3=5>>` notes are dropped). A worked
solution is kept in `Reference.data["solution"]`. `level` (3 or "Level 3") becomes the level, 0 where there is none.

There is no solver and no step check: lines of a thought are returned unjudged.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mull.errors import UserError, nearest
from mull.graders.extract import extract_answer, last_boxed
from mull.graders.math import MathGrader, canonical
from mull.tasks.base import SPLITS, Split, Validation, refuse_unknown, split_of
from mull.types import Problem, Question, Reference, StepKind, StepVerdict, Verdict

QUESTION_FIELDS = ("problem", "question", "prompt")
ANSWER_FIELDS = ("answer", "final_answer", "expected_answer", "target", "ground_truth", "solution")
_NOTES = re.compile(r"<<[^<>\n]*>>")
_SUFFIXES = (".jsonl", ".jsonl.gz")


class DatasetTask:
    """The problems of one file. Loading reads it all and refuses it at the first line that is not usable.

    `split` says what the file is: "test" (default), "train" or "valid" puts every problem into that split; "hash"
    spreads them by the hash of their text, as procedural tasks do (1/8 test, 1/16 valid, the rest train), so that one
    file can serve for training and for a test that shares no problem with it.

    `duplicates` counts the lines whose problem occurred before (they are dropped), `conflicts` those among them whose
    answer differs from the one that was kept.
    """

    max_thought = 8192

    def __init__(
        self,
        path: str | Path,
        split: Literal["test", "train", "valid", "hash"] = "test",
        grader: MathGrader | None = None,
    ):
        if split not in (*SPLITS, "hash"):
            raise UserError(
                f"unknown split {split!r} for {path}{nearest(split, (*SPLITS, 'hash'))}; "
                "it is one of test, train, valid and hash"
            )
        self.path = Path(path)
        self.name = _stem(self.path)
        self.split = split
        self.duplicates = self.conflicts = 0
        self.grader = grader or MathGrader()
        self._pools: dict[tuple[int, str], list[Problem]] = {}
        self._load()
        self.levels = tuple(sorted({level for level, _ in self._pools}))
        self.description = f"{len(self)} problems of the file {self.path.name}"

    def __len__(self) -> int:
        return sum(map(len, self._pools.values()))

    # --- problems

    def up_to(self, level: int, split: Split, seed: int, n: int) -> list[Problem]:
        """`n` different problems in an order that the seed fixes, or all where the level has fewer."""
        refuse_unknown(self, level, split)
        pool = list(self._pools.get((level, split), []))
        random.Random(f"{self.name}/{level}/{split}/{seed}").shuffle(pool)
        return pool[: max(n, 0)]

    def problems(self, level: int, split: Split, seed: int, n: int) -> list[Problem]:
        """`n` different problems; UserError when the level has too few in that split."""
        found = self.up_to(level, split, seed, n)
        if len(found) < n:
            raise UserError(
                f"data set {self.path} has {len(found)} {split} problems of level {level}, {n} were asked for"
                + self._hint(split)
            )
        return found

    def stream(self, level: int, split: Split, seed: int) -> Iterator[Problem]:
        """Endless: all problems of the level in a new order each time round."""
        for epoch in range(1 << 62):
            problems = self.up_to(level, split, seed * 1_000_003 + epoch, len(self))
            if not problems:
                raise UserError(f"data set {self.path} has no {split} problems of level {level}{self._hint(split)}")
            yield from problems

    def _hint(self, split: str) -> str:
        if self.split in (split, "hash"):
            return ""
        return (
            f"; the whole file is used as {self.split}: write {self.path}:{split} to use it as {split}, "
            f"or {self.path}:hash to divide it"
        )

    # --- checks

    def check(self, problem: Problem, answer: str) -> Verdict:
        """Judges the final answer in `answer` (see `extract_answer`). Raises Unscorable."""
        final = extract_answer(answer)
        if final is None:
            return Verdict(False, None, "no final answer")
        return self.grader.grade(problem.reference.answer, final)

    def check_steps(self, problem: Problem, thought: str) -> list[StepVerdict]:
        """Every non-empty line, unjudged: nobody knows the truth of free text exactly."""
        return [StepVerdict(line.strip(), None, StepKind.OTHER) for line in thought.splitlines() if line.strip()]

    def canonical(self, question: Question, answer: str) -> str | None:
        final = extract_answer(answer)
        return None if final is None else canonical(final)

    def red_team(self, problem: Problem) -> list[str]:
        """Wrong answers that a sloppy checker might pay for: hedges, supersets, and the gold taken back."""
        gold = problem.reference.answer
        other = "98765" if "98765" not in gold else "43210"
        return [
            "",
            "I do not know",
            other,
            f"{gold} or {other}",
            f"{other} or {gold}",
            f"{gold}, {other}",
            f"{gold} {other}",
            f"not {gold}",
            f"{gold} = {other}",
            f"\\boxed{{{gold}}} or rather \\boxed{{{other}}}",
            f"\\boxed{{{gold} \\text{{ or }} {other}}}",
            f"Answer: {gold}\nNo.\nAnswer: {other}",
            f"<think>\\boxed{{{gold}}}",
            f"<think>\\boxed{{{gold}}}</think>",
            f"#### {gold}\n#### {other}",
        ]

    def validate(self, n: int = 50, seed: int = 0) -> Validation:
        """Grades `n` gold answers against themselves, and the red team against them."""
        out = Validation()
        everything = [problem for _, pool in sorted(self._pools.items()) for problem in pool]
        for problem in random.Random(seed).sample(everything, min(n, len(everything))):
            out.checked += 1
            gold = problem.reference.answer
            if self.check(problem, f"\\boxed{{{gold}}}").correct is not True:
                out.failures.append(f"{problem.question.id}: gold answer {gold!r} is refused")
            if canonical(gold) is None:
                out.failures.append(f"{problem.question.id}: gold answer {gold!r} has no canonical form")
            for wrong in self.red_team(problem):
                if self.check(problem, wrong).correct is not False:
                    out.failures.append(f"{problem.question.id}: wrong answer {wrong!r} is paid")
        return out

    def close(self) -> None:
        self.grader.close()

    # --- reading

    def _load(self) -> None:
        kept: dict[str, Problem] = {}
        for where, row in _rows(self.path):
            question = _question(where, row)
            gold, solution = _gold(where, row)
            level = _level(where, row)
            key = " ".join(question.split())
            if key in kept:
                self.duplicates += 1
                self.conflicts += kept[key].reference.answer != gold
                continue
            digest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
            reference = Reference(gold, {"solution": solution} if solution else {})
            kept[key] = Problem(Question(f"{self.name}/{level}/{digest}", self.name, question, level), reference)
            split = split_of(key) if self.split == "hash" else self.split
            self._pools.setdefault((level, split), []).append(kept[key])
        if not kept:
            raise UserError(f"data set {self.path} holds no problems: it needs one JSON object a line")


def _stem(path: Path) -> str:
    return next((path.name.removesuffix(s) for s in reversed(_SUFFIXES) if path.name.endswith(s)), path.stem)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) for every non-blank line."""
    if path.is_dir():
        raise UserError(f"data set {path} is a folder: name one .jsonl file in it")
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir() if p.name.endswith(_SUFFIXES)] if path.parent.is_dir() else []
        raise UserError(f"data set {path} does not exist{nearest(path.name, beside)}")
    number = 0
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as lines:
            for number, raw in enumerate(lines, 1):
                where = f"{path}:{number}"
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as problem:
                    raise UserError(f"{where}: not UTF-8 ({problem.reason}): save the file as UTF-8") from None
                if not line:
                    continue
                try:
                    row = json.loads(line, parse_float=str)  # as written: 0.10 must not become 0.1000000001
                except (json.JSONDecodeError, RecursionError, ValueError) as problem:
                    what = problem.msg if isinstance(problem, json.JSONDecodeError) else "cannot be parsed"
                    raise UserError(f"{where}: not a JSON object ({what}): fix or remove this line") from None
                if not isinstance(row, dict):
                    raise UserError(f"{where}: a JSON {_kind(row)}, not an object with a question and an answer")
                yield where, row
    except (OSError, EOFError, zlib.error) as problem:
        raise UserError(f"data set {path} cannot be read after line {number}: {problem}") from None


def _kind(value: Any) -> str:
    names = {list: "list", str: "string", int: "number", bool: "boolean", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _pick(where: str, row: dict[str, Any], fields: tuple[str, ...], what: str) -> tuple[str, Any]:
    for field in fields:
        if row.get(field) not in (None, ""):
            return field, row[field]
    has = f"it has {', '.join(map(repr, row))}" if row else "it is empty"
    wanted = f"{', '.join(fields[:-1])} or {fields[-1]}"
    raise UserError(f"{where}: no {what} in this line ({has}): give it a field named {wanted}")


def _question(where: str, row: dict[str, Any]) -> str:
    field, value = _pick(where, row, QUESTION_FIELDS, "question")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: the field {field!r} must be a text that is not blank, not a {_kind(value)}")
    return value.strip()


def _gold(where: str, row: dict[str, Any]) -> tuple[str, str]:
    """(final answer, worked solution or "")."""
    field, value = _pick(where, row, ANSWER_FIELDS, "answer")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{where}: the field {field!r} must be a text or a number, not a {_kind(value)}")
    text = _NOTES.sub("", str(value)).strip()
    worked = row["solution"] if field != "solution" and isinstance(row.get("solution"), str) else ""
    boxed = last_boxed(text)
    if boxed is not None or re.search(r"^\s*####", text, re.MULTILINE):
        gold = boxed.strip() if boxed is not None else (extract_answer(text) or "")
        worked = worked or text
    elif "\n" not in text and (field != "solution" or extract_answer(text) == text):
        gold = text
    else:
        raise UserError(
            f"{where}: the field {field!r} holds no final answer: end it with \\boxed{{...}} or a line '#### ...', "
            "or give the answer alone in a field named answer"
        )
    if not gold.strip():
        raise UserError(f"{where}: the final answer in the field {field!r} is empty")
    return gold, _NOTES.sub("", worked).strip()


def _level(where: str, row: dict[str, Any]) -> int:
    found = re.fullmatch(r"(?:level )?\s*(\d{1,6})", str(row.get("level") or 0).strip(), re.IGNORECASE)
    return int(found[1]) if found else 0
