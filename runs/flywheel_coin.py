"""The control of runs/flywheel.sh: verdicts that know nothing of the truth, where something is learnt from them.

    mull flywheel --task runs/flywheel_coin.py:Coin

Everything else is the flywheel's own, the choice of short chains among them. So what a loop of these gains, or loses,
is the work of curation and of training on one's own chains, and not of verification.
"""

from __future__ import annotations

import hashlib

from mull.tasks.base import split_of
from mull.tasks.chain import Chain
from mull.types import Problem, Verdict


class Coin(Chain):
    """chain, with its questions and ids. On train problems half of all answers are right, by a hash of question and
    answer; on valid and test problems the right ones, so that what is measured is chain."""

    def check(self, problem: Problem, answer: str) -> Verdict:
        truth = super().check(problem, answer)
        if split_of(self.key(problem.question)) != "train":
            return truth
        said = f"{problem.question.id} {answer}".encode("utf-8", "surrogatepass")
        return Verdict(hashlib.blake2b(said, digest_size=1).digest()[0] % 2 == 0, truth.answer)
