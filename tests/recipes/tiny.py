"""A model of a few thousand parameters, saved as a user would have it, and a task that any model can get right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from mull.errors import UserError
from mull.models import hf
from mull.models.nano import CONTROL_IDS, nano_config, write_tokenizer


def save_tiny(folder: Path, seed: int = 0, max_positions: int = 256) -> Path:
    """Random weights: two layers of width 32, nano's tokenizer."""
    config = replace(
        nano_config(),
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        max_positions=max_positions,
        tied=False,  # a tied head makes random models repeat themselves
    )
    model = hf.init(config, seed)
    with torch.no_grad():  # logits apart by more than noise, and those that end a thought or a turn likely enough
        model.embedding.weight.mul_(20)
        model.head_weight_VE.mul_(6)
        for token in ("</think>", "<|end|>"):
            model.head_weight_VE[CONTROL_IDS[token]] *= 5
    write_tokenizer(folder.with_name(folder.name + "-tokenizer"))
    hf.save(model, folder, source=folder.with_name(folder.name + "-tokenizer"))
    return folder


def weights(folder: Path) -> torch.Tensor:
    """All parameters of a saved model, one behind the other."""
    return torch.cat([p.detach().flatten() for p in hf.load(folder).parameters()])


T = TypeVar("T")


def fitting(config: type[T], base: dict[str, Any], changes: dict[str, Any]) -> T:
    """A config of the small values `base` with `changes`. Of the base, what the chosen method does not read is left
    out, as a user would have to; of the changes, nothing."""
    base = {key: value for key, value in base.items() if key not in changes}
    while True:
        try:
            return config(**base, **changes)
        except UserError as e:
            key, _, why = str(e).partition(" ")
            if not why.startswith("does nothing with") or key not in base:
                raise
            del base[key]


ENDS = '''
"""Tasks for random models: half of all texts are right, and so is the empty answer of a chain that was cut off."""
from zlib import crc32

from mull.errors import Unscorable
from mull.tasks.base import Solution, Task
from mull.types import Reference, StepVerdict, Verdict


class Any(Task):
    name, levels, description = "any", (1,), "say anything"

    def draw(self, level, rng):
        text = str(rng.randrange(10**6))
        return text, text, Reference("x")

    def check(self, problem, answer):
        return Verdict(crc32(answer.encode()) % 2 == 0, answer)

    def check_steps(self, problem, thought):
        return [StepVerdict(line, None) for line in thought.splitlines() if line.strip()]

    def canonical(self, question, answer):
        return answer or None

    def solve(self, problem):
        return Solution(problem.question.text, "x" + problem.question.text[-1])

    def imperfect(self, problem, rng):
        return self.solve(problem)

    def red_team(self, problem):
        return []


class Picky(Any):
    name = "picky"

    def check(self, problem, answer):
        if crc32(answer.encode()) % 3 == 1:
            raise Unscorable("a third of the answers cannot be judged")
        if crc32(answer.encode()) % 3 == 2:
            raise RecursionError("and a third crashes the grader")
        return super().check(problem, answer)


class Same(Any):
    name = "same"

    def check(self, problem, answer):
        return Verdict(False, answer)
'''
