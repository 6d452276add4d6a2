"""Models that answer otherwise than the shipped one, and services that have one of them beside it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mull.chat import Chat
from mull.models import hf
from mull.models.nano import shipped_folder
from mull.serve.service import Service
from mull.serve.settings import Settings
from tests.serve.tools import nano, opened_of

MOVED = 7  # by which the numbers of bytes are turned


def changed(folder: Path, by: float) -> Path:
    """nano with noise on its weights."""
    model = hf.load(shipped_folder())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += by * torch.randn(p.shape, generator=generator)
    hf.save(model, folder, source=shipped_folder())
    return folder


def foreign(folder: Path, by: float, context: int) -> Path:
    """The same with another vocabulary (every byte has another number) and another context."""
    changed(folder, by)
    model, tokens, config = hf.load(folder), folder / "tokenizer.json", folder / "config.json"
    order = [(at - MOVED) % 256 for at in range(256)]
    with torch.no_grad():
        rows = model.embedding.weight
        rows[:256] = rows[order].clone()
    hf.save(model, folder, source=folder)
    read = json.loads(tokens.read_text())
    vocabulary = {token: (at + MOVED) % 256 for token, at in read["model"]["vocab"].items()}
    read["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda one: one[1]))
    tokens.write_text(json.dumps(read))
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": context}))
    return folder


@cache
def read(folder: Path) -> tuple[Any, Chat]:
    return hf.load(folder), Chat.load(folder)


def two_service(folder: Path, called: str = "other", **settings: Any) -> Service:
    """nano, and the folder's model beside it."""
    made = {"name": "nano", "think_tokens": 64, "answer_tokens": 16, "effort": "low", **settings}
    made["beside"] = (f"{called}={folder}",)
    return Service(Settings(**made), opened_of(*nano()), opened_of(*read(folder)))


def alone(folder: Path, **settings: Any) -> Service:
    """The folder's model and no other, under the name that it has beside nano."""
    made = {"name": "other", "think_tokens": 64, "answer_tokens": 16, "effort": "low", "model": str(folder), **settings}
    return Service(Settings(**made), opened_of(*read(folder)))
