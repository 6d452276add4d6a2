"""Is this final answer the same mathematics as the reference? Exact, strict, and safe to call from anywhere.

Three stages, each stricter than what it guards:

1. Form, here: a list is not a tuple, `[0,1)` is not `(0,1)`, `\\pm` is two values, `5 or 7` is a list of two.
2. Rational references, here, with `Fraction`: the answer must be a *numeral* (integer, decimal, fraction, mixed
   number, power of integers, scientific notation). `0.333333` is not 1/3, and an expression left to be worked out
   (`2+3`, `\\gcd(24,36)`, `\\sqrt{4}`) is refused: otherwise the question could be handed back as its answer.
   Unreduced fractions are equal to reduced ones.
3. Everything else in math-verify, in worker processes under a deadline and a memory limit, and confirmed there to 30
   digits (`math_worker.py`).

Units and the like, decided once:
- a unit (`cm`, `$`, `\\text{apples}`, `°`) may be left out on either side, since the question names it, but two
  different units never agree, and none is converted: `50 cm` is not `0.5 m`, `90°` is `90` and is not `\\pi/2`;
- `10%` is `10` where the question asks for a percentage (reference `10%`, or a bare reference of at least 1) and is
  `0.1` by value; a bare reference below 1 is never read as a percentage;
- `x=5` and `5` agree, `x=5` and `y=5` do not; any other equation where a value is asked is refused (`2+5=7` for 7);
- `52_8` may be answered by `52` (the question names the base), never by 42; and 52 never by `52_8`;
- text compares without case: `\\text{(C)}` is `C`.

Not caught: an answer that is symbolically equal but not in the form that was asked for (an unfactored polynomial where
the question said "factor"). Two equal sums that math-verify cannot prove equal count as different.

A deadline, a crash, or a reference that cannot be read raises `Unscorable`. An answer that exceeds the caps of
`math_form.too_large` is refused as wrong: it is not a worked-out answer, and calling it unscorable would let a
policy escape a wrong answer's price with a tower of powers.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

from mull.errors import MissingExtra, Unscorable
from mull.graders.math_form import (
    UNEVALUATED,
    Form,
    for_sympy,
    is_relation,
    read_form,
    split_name,
    too_large,
    words_of,
)
from mull.graders.numerals import Numeral, normalise, parse_numeral, split_unit
from mull.graders.workers import Workers
from mull.types import Verdict

MAX_ANSWER = 2000  # characters of an answer that is looked at at all
MAX_ELEMENTS = 12  # of a list whose elements need sympy: matching them is quadratic
_WORKER = [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))]  # -P: this folder has a math.py


class _Refused(Exception):
    """Why an answer is wrong."""


class MathGrader:
    """Judges final answers. Workers start when the first pair needs one; close it, or use it as a context manager.

    >>> with MathGrader() as grader:
    ...     grader.grade("1/2", "0.50").correct, grader.grade("7", "5 or 7").correct
    (True, False)
    """

    def __init__(self, workers: int = 1, deadline_s: float = 5.0):
        """`workers` processes at most; `deadline_s`: wall-clock for one call of `grade`, start-up not counted."""
        self.deadline_s = deadline_s
        self._workers = Workers(_WORKER, workers, deadline_s)
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def grade(self, gold: str, answer: str) -> Verdict:
        """Compares a final answer (not a whole solution: see `extract_answer`) with the reference.

        Raises Unscorable when it cannot be judged, MissingExtra when math-verify is needed and absent.
        """
        if len(answer) > MAX_ANSWER:
            return Verdict(False, None, f"answer longer than {MAX_ANSWER} characters")
        spent = 0.0

        def ask(gold_latex: str, answer_latex: str) -> dict:
            nonlocal spent  # one deadline for all elements of one answer; waiting for a free worker is not counted
            if importlib.util.find_spec("math_verify") is None:
                raise MissingExtra("math-verify", "tasks", "comparing symbolic answers")
            left = self.deadline_s - spent
            if left <= 0:
                raise Unscorable(f"grader took over {self.deadline_s:g} s")
            reply = self._workers.ask({"gold": gold_latex, "answer": answer_latex}, left)
            spent += reply["seconds"]
            return reply

        try:
            _compare(gold, answer, ask)
        except _Refused as refused:
            return Verdict(False, canonical(answer), str(refused))
        return Verdict(True, canonical(answer))

    async def grade_async(self, gold: str, answer: str) -> Verdict:
        """`grade` without blocking the event loop."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._workers.size, thread_name_prefix="mull-math")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.grade, gold, answer)

    @property
    def restarts(self) -> int:
        """Worker processes lost to a deadline or a crash so far."""
        return self._workers.restarts

    def close(self) -> None:
        self._workers.close()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> MathGrader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def canonical(answer: str) -> str | None:
    """What votes are counted by: exact for numerals, one spelling for the rest; None for an empty or endless answer.

    Sees no reference. Symbolically equal forms (`2\\sqrt{3}`, `\\sqrt{12}`) stay apart: merging them needs a worker.
    """
    if len(answer) > MAX_ANSWER or not answer.strip():
        return None
    form = read_form(answer)
    if form.kind == "words":
        return form.parts[0]
    parts = [_spelling(part) for part in form.parts]
    if form.kind == "value":
        return parts[0] or None
    return f"{form.kind}{form.rows or ''}:" + ",".join(sorted(parts) if form.kind in ("list", "union") else parts)


def _spelling(text: str) -> str:
    value = split_name(text)[1]
    number = parse_numeral(value)
    if number is None:
        return "".join(split_unit(value)[0].split())
    return str(number.value) + (f"_{number.base}" if number.base != 10 else "")


# ------------------------------------------------------------------------------------------- comparison

Ask = Callable[[str, str], dict]


def _compare(gold: str, answer: str, ask: Ask) -> None:
    """Returns when the two are equal, raises _Refused when they are not and Unscorable when nobody knows."""
    if not gold.strip():
        raise Unscorable("the reference answer is empty")
    if not answer.strip():
        raise _Refused("empty answer")
    gold_form = read_form(gold)
    answer_form = read_form(answer, merge_thousands=gold_form.kind != "list")
    if gold_form.kind == "value" and is_relation(gold_form.parts[0]) and not split_name(gold_form.parts[0])[0]:
        return _relation(gold_form.parts[0], normalise(answer), ask)
    kinds = {gold_form.kind, answer_form.kind}
    if len(kinds) > 1 and not (
        all(kind.endswith("matrix") for kind in kinds) and not any("v" in k.lower() for k in kinds)
    ):
        raise _Refused(f"{_name(answer_form)}, where {_name(gold_form)} was asked")
    if (len(gold_form.parts), gold_form.rows) != (len(answer_form.parts), answer_form.rows):
        raise _Refused(f"{len(answer_form.parts)} elements, where {len(gold_form.parts)} were asked")
    if gold_form.kind == "words":
        if gold_form.parts != answer_form.parts:
            raise _Refused("other words")
    elif gold_form.kind in ("list", "union"):
        _unordered(gold_form, answer_form, ask)
    else:
        for g, a in zip(gold_form.parts, answer_form.parts, strict=True):
            _value(g, a, ask)


def _unordered(gold: Form, answer: Form, ask: Ask) -> None:
    """Matches each answer with a gold of its own; equality is transitive, so the first match will do."""
    same = _compare if gold.kind == "union" else _value
    left = sorted(gold.parts, key=lambda part: parse_numeral(part) is None)
    if len(left) > MAX_ELEMENTS and any(parse_numeral(part) is None for part in left):
        if sorted(gold.parts) == sorted(answer.parts):
            return
        raise Unscorable(f"more than {MAX_ELEMENTS} symbolic elements to match")
    for a in answer.parts:
        for g in left:
            try:
                same(g, a, ask)
            except _Refused:
                continue
            left.remove(g)
            break
        else:
            raise _Refused(f"element {a[:40]!r} is not in the reference")


def _value(gold: str, answer: str, ask: Ask) -> None:
    """One value against one value."""
    gold, answer = normalise(gold), normalise(answer)
    if _squeeze(gold) == _squeeze(answer):
        return
    gold_name, gold = split_name(gold)
    answer_name, answer = split_name(answer)
    if gold_name and answer_name and gold_name != answer_name:
        raise _Refused(f"a value of {answer_name}, where {gold_name} was asked")
    number = parse_numeral(gold)
    if number is not None:
        other = parse_numeral(answer)
        if other is None:
            raise _Refused("not a number worked out, where one was asked")
        return _numbers(number, other)
    if (words := words_of(gold)) is not None or words_of(answer) is not None:
        if words != words_of(answer):
            raise _Refused("other words")
        return
    if is_relation(answer):
        raise _Refused("a relation, where a value was asked")
    gold_unit, answer_unit = split_unit(gold)[1], split_unit(answer)[1]
    if gold_unit and answer_unit and gold_unit != answer_unit:
        raise _Refused(f"in {answer_unit}, where {gold_unit} was asked")
    _symbolic(gold, answer, ask)


def _numbers(gold: Numeral, answer: Numeral) -> None:
    if answer.base != 10 and answer.base != gold.base:
        raise _Refused(f"written in base {answer.base}")
    if "%" in (gold.unit, answer.unit):
        percent = Fraction(1, 100)
        exact = gold.value * (percent if gold.unit == "%" else 1) == answer.value * (
            percent if answer.unit == "%" else 1
        )
        by_face = gold.value == answer.value and (gold.unit == "%" or abs(gold.value) >= 1)
        if not (exact or by_face) or {gold.unit, answer.unit} - {"%", ""}:
            raise _Refused("another number")
        return
    if gold.unit and answer.unit and gold.unit != answer.unit:
        raise _Refused(f"in {answer.unit}, where {gold.unit} was asked")
    if gold.value != answer.value:
        raise _Refused("another number")


def _relation(gold: str, answer: str, ask: Ask) -> None:
    """An equation or inequality, as a whole. An interval may answer an inequality."""
    if _squeeze(gold) == _squeeze(answer):
        return
    if not is_relation(answer) and read_form(answer).kind not in ("()", "[]", "(]", "[)", "union"):
        raise _Refused("no relation, where one was asked")
    if is_relation(answer) and ("=" in gold.replace("\\leq", "").replace("\\geq", "")) != ("=" in answer):
        raise _Refused("an equation and an inequality")
    _symbolic(gold, answer, ask)


def _symbolic(gold: str, answer: str, ask: Ask) -> None:
    if _squeeze(split_unit(gold)[0]) == _squeeze(split_unit(answer)[0]):
        return
    left_open = {match.group(0) for match in UNEVALUATED.finditer(answer)}
    if left_open - {match.group(0) for match in UNEVALUATED.finditer(gold)}:
        raise _Refused(f"left to be worked out: {min(left_open)}")
    if re.search(r"\d \d", answer):  # math-verify multiplies them: `y = 0 98765` would be `y = 0`
        raise _Refused("two numbers side by side")
    if reason := too_large(answer):
        raise _Refused(reason)
    if reason := too_large(gold):
        raise Unscorable(f"the reference answer {reason}")
    reply = ask(for_sympy(gold), for_sympy(answer))
    if "unscorable" in reply:
        raise Unscorable(reply["unscorable"])
    if not reply["equal"]:
        raise _Refused(reply.get("why", "another value"))


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _name(form: Form) -> str:
    names = {"value": "a value", "words": "words", "list": "a list", "union": "a union"}
    return names.get(form.kind, f"{form.kind}" if "matrix" in form.kind else f"a tuple or interval {form.kind}")
