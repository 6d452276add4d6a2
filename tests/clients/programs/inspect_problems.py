"""A task of inspect-ai: a file of problems, of which each has one right answer."""

import json
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate


@task
def problems(file: str) -> Task:
    lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
    samples = [Sample(id=line["id"], input=line["question"], target=line["answer"]) for line in lines]
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=match(location="exact"))
