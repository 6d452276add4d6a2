"""reasoning-gym's generators as tasks, with a strict check.

reasoning-gym's scores are not rewards: its base scorer pays for any text that contains the answer, some scorers pay
1.0 for any text at all (game_of_life_halting), some run `eval` on what the model wrote (spiral_matrix, n_queens). So:

- only sets in `AUDITED` are offered;
- an answer is right when the set's own scorer gives it at least 1.0 *and* it is not a superset of the gold answer;
- a scorer that raises on an answer but accepts the gold judges the answer wrong; one that cannot score the gold either
  raises Unscorable.

`AUDITED` is the output of `tests/tasks/audit_gym.py` for reasoning-gym 0.1.25 in its default configuration. The
criteria, over 25 problems of each set:
- generation takes at most 50 ms of processor time a problem, is lazy (a set of 2**30 problems can be made), and is
  the same for the same seed; at least 9 of 10 questions are different;
- every gold is a non-empty text that scores 1.0, and the problem survives JSON unchanged;
- the scorer is the base one, or lies in a module that never calls eval, exec, parse_expr or sympify;
- the strict check refuses, and the scorer survives, the empty answer, "None", "True", "0", a non-answer, the golds of
  other problems, and the gold with words or numbers before it, after it or beside it, negated, or cut short.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from mull.errors import MissingExtra, Unscorable, UserError, nearest
from mull.graders.extract import extract_answer, last_boxed
from mull.tasks.base import Split, different, members, refuse_unknown
from mull.types import Problem, Question, Reference, StepKind, StepVerdict, Verdict

AUDITED: tuple[str, ...] = (
    "aiw",
    "arc_1d",
    "base_conversion",
    "basic_arithmetic",
    "bf",
    "binary_alternation",
    "caesar_cipher",
    "calendar_arithmetic",
    "chain_sum",
    "circuit_logic",
    "color_cube_rotation",
    "count_bits",
    "count_primes",
    "course_schedule",
    "cryptarithm",
    "dice",
    "emoji_mystery",
    "family_relationships",
    "figlet_font",
    "game_of_life",
    "gcd",
    "group_anagrams",
    "isomorphic_strings",
    "jugs",
    "kakurasu",
    "largest_island",
    "lcm",
    "leg_counting",
    "letter_counting",
    "letter_jumble",
    "mahjong_puzzle",
    "manipulate_matrix",
    "maze",
    "mini_sudoku",
    "modulo_grid",
    "needle_haystack",
    "number_filtering",
    "number_sequence",
    "palindrome_generation",
    "palindrome_partitioning",
    "path_star",
    "products",
    "ransom_note",
    "rectangle_count",
    "rotate_matrix",
    "rotten_oranges",
    "self_reference",
    "sentence_reordering",
    "shortest_path",
    "simple_equations",
    "simple_geometry",
    "spell_backward",
    "string_manipulation",
    "string_splitting",
    "string_synthesis",
    "sudoku",
    "survo",
    "syllogism",
    "tsumego",
    "word_sequence_reversal",
    "word_sorting",
)

MAX_ANSWER = 10_000  # characters; the longest gold of the audited sets has some hundreds

_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_LABEL = re.compile(r"\b(?:final[ \t]+)?answer[*_]*[ \t]*:[*_]*", re.IGNORECASE)


class GymTask:
    """One reasoning-gym set, by the name that reasoning-gym gives it. One level, 0: its default configuration.

    Problems come in the order of reasoning-gym's generator under a seed; a problem's split is a hash of its question,
    so that splits cannot share one whatever the seeds.
    """

    levels = (0,)
    max_thought = 4096

    def __init__(self, name: str):
        if name not in AUDITED:
            raise UserError(
                f"reasoning-gym set {name!r} is not among the {len(AUDITED)} whose scorers passed the audit"
                f"{nearest(name, AUDITED)}; mull.tasks.gym.AUDITED lists them"
            )
        self.set_name = name
        self.name = f"gym:{name}"
        self.description = f"reasoning-gym's {name}, judged strictly"
        self._scorer = self._generator(seed=0)

    def _generator(self, seed: int) -> Any:
        try:
            import reasoning_gym
        except ImportError:
            raise MissingExtra("reasoning-gym", "tasks", f"the task {self.name}") from None
        return reasoning_gym.create_dataset(self.set_name, seed=seed, size=1 << 30)

    # --- problems

    def stream(self, level: int, split: Split, seed: int) -> Iterator[Problem]:
        """Endless problems of one split, the same for the same seed; repeats are possible."""
        refuse_unknown(self, level, split)
        digest = hashlib.blake2b(f"{self.name}/{seed}".encode(), digest_size=4).digest()
        generator = self._generator(int.from_bytes(digest, "big") >> 1)
        drawn = (self.problem_of(generator[index]) for index in itertools.count())
        yield from members(self, split, ((problem.question.text, problem) for problem in drawn))

    def problem_of(self, entry: dict[str, Any]) -> Problem:
        text = entry["question"].strip()
        digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        question = Question(f"{self.name}/0/{digest}", self.name, text, 0)
        return Problem(question, Reference(entry["answer"], {"entry": json.loads(json.dumps(entry))}))

    def up_to(self, level: int, split: Split, seed: int, n: int) -> list[Problem]:
        """`n` different problems, or as many as a long look finds."""
        return different(self.stream(level, split, seed), n)

    def problems(self, level: int, split: Split, seed: int, n: int) -> list[Problem]:
        """`n` different problems; UserError when the set has too few."""
        found = self.up_to(level, split, seed, n)
        if len(found) < n:
            raise UserError(
                f"task {self.name} has only about {len(found)} different {split} problems, {n} were asked for"
            )
        return found

    # --- checks

    def check(self, problem: Problem, answer: str) -> Verdict:
        """The whole text is the answer, or else what it marks as its answer (see `final_answer`)."""
        if len(answer) > MAX_ANSWER:
            return Verdict(False, None, f"answer longer than {MAX_ANSWER} characters")
        whole, final = answer.strip(), final_answer(answer)
        shown = self.canonical(problem.question, answer)
        if self._right(problem, whole) or (final is not None and final != whole and self._right(problem, final)):
            return Verdict(True, shown)
        return Verdict(False, shown, "" if shown else "no final answer")

    def _right(self, problem: Problem, answer: str) -> bool:
        gold = problem.reference.answer
        if not answer or is_superset(answer, gold):
            return False
        entry = problem.reference.data["entry"]
        try:
            return float(self._scorer.score_answer(answer, entry)) >= 1.0
        except Exception as failure:  # whatever a third-party scorer raises on text that a model wrote
            try:
                if float(self._scorer.score_answer(gold, entry)) >= 1.0:
                    return False  # the scorer works; it was the answer that it could not read
            except Exception:
                pass
            raise Unscorable(f"reasoning-gym's {self.set_name} cannot score: {type(failure).__name__}") from failure

    def check_steps(self, problem: Problem, thought: str) -> list[StepVerdict]:
        """Every non-empty line, unjudged: reasoning-gym has no step checks."""
        return [StepVerdict(line.strip(), None, StepKind.OTHER) for line in thought.splitlines() if line.strip()]

    def canonical(self, question: Question, answer: str) -> str | None:
        final = final_answer(answer)
        return " ".join((final if final is not None else answer).split()) or None


def is_superset(answer: str, gold: str) -> bool:
    """Whether the answer holds the gold and something else (white space, case and a last full stop do not count)."""
    answer, gold = (" ".join(text.lower().split()).removesuffix(".") for text in (answer, gold))
    return answer != gold and gold in answer


def final_answer(text: str) -> str | None:
    """What a text marks as its answer: `<answer>...</answer>` (the last), else the conventions of `extract_answer`,
    else, since answers here may be grids of several lines, all that follows the last `Answer:`."""
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        return None
    tagged = _TAGGED.findall(text)
    if tagged:
        return tagged[-1].strip() or None
    labels = list(_LABEL.finditer(text))
    if labels and last_boxed(text) is None:
        return text[labels[-1].end() :].strip() or None
    return extract_answer(text)
