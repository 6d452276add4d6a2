"""Audits reasoning-gym's sets for `mull.tasks.gym.AUDITED`; run it by hand after an update of reasoning-gym:

python tests/tasks/audit_gym.py            # prints the list, and why each other set is not on it
python tests/tasks/audit_gym.py chain_sum  # one set
"""

from __future__ import annotations

import inspect
import json
import re
import signal
import sys
import time
from typing import Any

import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset

from mull.errors import Unscorable
from mull.tasks import gym

PROBLEMS = 25
MS_PER_PROBLEM = 50.0
_RUNS_TEXT = re.compile(r"\b(eval|exec|parse_expr|sympify)\(")


def wrong_answers(gold: str, others: list[str]) -> list[str]:
    return [
        "",
        "None",
        "True",
        "0",
        "I do not know",
        f"{gold} and 98765",
        f"98765 {gold}",
        f"not {gold}",
        f"The answer is {gold} or 98765",
        f"{gold}\n{gold}",
        f"{gold} {gold}",
        f"{gold}, 98765",
        f"{gold}0",
        f"-{gold}",
        f"{gold.upper()} and 98765",  # supersets that do not hold the gold letter by letter
        f"{gold.lower()} and 98765",
        f"{gold.rstrip('.')} and 98765",
        "".join(gold.split()) + " and 98765",
        " ".join(gold) + " 7",
        gold[:-1],
        gold[1:],
        *others,
    ]


def audit(name: str) -> list[str]:
    """Why the set may not be used; empty when it may. Stops at the first failure of each kind."""
    start = time.process_time()
    dataset = reasoning_gym.create_dataset(name, seed=7, size=1 << 30)
    entries: list[dict[str, Any]] = []
    for i in range(PROBLEMS):
        entries.append(dataset[i])
        if time.process_time() - start > 1.0 + PROBLEMS * MS_PER_PROBLEM / 1000:
            return [f"slow: {1000 * (time.process_time() - start) / (i + 1):.0f} ms a problem"]
    if type(dataset).score_answer is not ProceduralDataset.score_answer:
        found = _RUNS_TEXT.search(inspect.getsource(sys.modules[type(dataset).__module__]))
        if found:
            return [f"its module calls {found[1]}, and has a scorer of its own"]
    again = reasoning_gym.create_dataset(name, seed=7, size=1 << 30)
    if [again[i]["question"] for i in range(3)] != [entry["question"] for entry in entries[:3]]:
        return ["not the same for the same seed"]
    if len({entry["question"] for entry in entries}) < 0.9 * PROBLEMS:
        return ["repeats its questions"]
    golds = [entry["answer"] for entry in entries]
    if not all(isinstance(gold, str) and gold.strip() for gold in golds):
        return ["a gold answer is missing"]
    try:
        if not all(json.loads(json.dumps(entry))["answer"] == entry["answer"] for entry in entries):
            return ["does not survive JSON"]
    except TypeError as problem:
        return [f"does not survive JSON: {problem}"]

    task = gym.GymTask.__new__(gym.GymTask)  # its constructor asks for the list that we are making
    task.set_name, task.name, task._scorer = name, f"gym:{name}", dataset
    for i, entry in enumerate(entries):
        problem, gold = task.problem_of(entry), entry["answer"]
        others = [other for other in golds[i - 3 : i] + golds[i + 1 : i + 4] if other.strip() != gold.strip()]
        for right in (gold, f"  {gold}\n", f"<answer>{gold}</answer>", f"Answer: {gold}"):
            if judged(task, problem, right) is not True:
                return [f"its gold {right!r} is refused"]
        for wrong in wrong_answers(gold, others):
            if wrong.split() != gold.split() and judged(task, problem, wrong) is not False:
                return [f"pays {wrong!r} for {gold!r}"]
            try:
                dataset.score_answer(wrong, entry)
            except Exception as problem_:
                return [f"its scorer raises on {wrong!r}: {type(problem_).__name__}"]
    return []


def judged(task: gym.GymTask, problem: Any, answer: str) -> bool | None:
    try:
        return task.check(problem, answer).correct
    except Unscorable:
        return None


if __name__ == "__main__":
    from reasoning_gym.factory import DATASETS

    def overrun(signum: int, frame: Any) -> None:
        raise TimeoutError("over 20 s for one set")

    signal.signal(signal.SIGALRM, overrun)
    passed = []
    for name in sys.argv[1:] or sorted(set(DATASETS) - {"composite"}):
        signal.alarm(20)
        try:
            failures = audit(name)
        except Exception as problem:
            failures = [f"fails: {type(problem).__name__}: {problem}"]
        signal.alarm(0)
        if failures:
            print(f"{name}: {failures[0][:150]!r}", flush=True)
        else:
            passed.append(name)
    print(f"\nAUDITED: tuple[str, ...] = {tuple(passed)!r}  # {len(passed)}")
