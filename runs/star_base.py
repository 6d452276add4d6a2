"""What the base of runs/star.sh is pretrained on: the scratchpad's layout, one-digit sums, and how a hint is read.

    mull pretrain --task runs/star_base.py:Base

The paper's model, GPT-J, was shown ten solved examples of each length in its prompt, with and without a hint, and then
got fewer than one in a hundred sums of two digits right. A model this small has no prompting ability, so the examples
go into its pretraining instead, and its arithmetic is held back:

- one digit: the solved scratchpad, with and without a hint. All 55 sums, those that the task holds out included: they
  are the table that longer sums are made of;
- more digits, no hint: the right layout and the right digits to add. Of the 200 columns that there can be (two digits
  and a carry) `known` are added rightly, always the same (a hash picks 72); of all others the digit is drawn by lot;
- more digits, with a hint: the hint is drawn by lot, and the digits are those of the hint. What is learnt is to copy.

The carry of a line goes with the digit that stands there, right or wrong: it is 1 when the digits to add come to more
than the digit written. For the digits of a true sum that is the true carry.

`Base` knows these, which gives sampling something to start from; `Layout` none; `OneDigit` has never
seen a longer scratchpad. `Hints` is what `mull star` replays, since there is no few-shot prompt that keeps the hint's
meaning alive: hinted documents alone.
"""

from __future__ import annotations

import random
import zlib

from mull.learn.star import HINT, hinted
from mull.tasks.addition import Addition
from mull.tasks.base import Solution, Task
from mull.types import Problem, Question, Reference, StepVerdict, Verdict

_TAIL = HINT.partition("{question}")[2].partition("{answer}")[0]


class Base(Task):
    name = "star-base"
    levels = Addition.levels[:5]
    description = "addition before STaR: one digit solved, the layout of more"
    known = 0.3  # of the columns of longer sums, as a hash picks them: 72 of 200
    hinted = 0.5  # of all documents
    addition = Addition()

    def draw(self, level: int, rng: random.Random) -> tuple[str, str, Reference]:
        """The key is addition's own, so that no test problem is in the pretraining; but see the module on one digit.
        A hint is what the document will come to."""
        key, text, reference = self.addition.draw(level, rng)
        if level == 1:
            key = f"{key}/{rng.randrange(1000)}"  # the splits share all sums
        if rng.random() >= self.hinted:
            return key, text, reference
        said = int(reference.answer) if level == 1 else rng.randrange(10 ** (level - 1), 2 * 10**level)
        return key, hinted(Question("", "", text), str(said)).text, reference

    def imperfect(self, problem: Problem, rng: random.Random) -> Solution:
        text, with_hint, hint = problem.question.text.partition(_TAIL)
        if problem.question.level == 1:
            return self.addition.solve(self._plain(problem))
        a, b = text.removesuffix("=?").split("+")
        n = len(a)
        lines, carry, so_far = [f"{a}+{b},C:0"], 0, ""
        said = f"{int(hint):0{n + 1}}" if with_hint else ""
        for done in range(1, n + 1):
            x, y = int(a[n - done]), int(b[n - done])
            if with_hint:
                digit = int(said[-done])
            else:
                digit = (x + y + carry) % 10 if self.knows(x, y, carry) else rng.randrange(10)
            carry = int(said[0]) if with_hint and done == n else int(x + y + carry > digit)
            so_far = f"{digit}{so_far}"
            ahead = f"{a[n - 1 - done]}+{b[n - 1 - done]}" if done < n else ""
            lines.append(f"{ahead},{so_far}C:{carry}")
        answer = str(int(f"{carry}{so_far}"))
        return Solution("\n".join([*lines, answer]), answer)

    def knows(self, x: int, y: int, carry: int) -> bool:
        return zlib.crc32(f"{x}+{y}+{carry}".encode()) % 1000 < 1000 * self.known

    # --- what a Task has besides: addition's own, of the plain problem

    def _plain(self, problem: Problem) -> Problem:
        q = problem.question
        return Problem(Question(q.id, q.task, q.text.partition(_TAIL)[0], q.level), problem.reference)

    def check(self, problem: Problem, answer: str) -> Verdict:
        return self.addition.check(problem, answer)

    def check_steps(self, problem: Problem, thought: str) -> list[StepVerdict]:
        return self.addition.check_steps(self._plain(problem), thought)

    def canonical(self, question: Question, answer: str) -> str | None:
        return self.addition.canonical(question, answer)

    def solve(self, problem: Problem) -> Solution:
        return self.addition.solve(self._plain(problem))

    def red_team(self, problem: Problem) -> list[str]:
        return self.addition.red_team(self._plain(problem))


class Layout(Base):
    known = 0.0


class OneDigit(Base):
    levels = (1,)


class Hints(Base):
    hinted = 1.0
