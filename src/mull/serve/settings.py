"""What the operator of `mull serve` decides. A frozen dataclass: keys of FILE.toml and of -o key=value."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mull.errors import UserError
from mull.serve.plan import Level


@dataclass(frozen=True)
class Settings:
    model: str = ""  # a Hugging Face folder, or nano; empty: the demo's trained model where there is one, else nano
    name: str = ""  # what clients call it; empty: the folder's name
    beside: tuple[str, ...] = ()  # more models, each a folder or NAME=folder, to be asked by name
    endpoint: str = ""  # the address of a server that the model runs at, instead, with tokenizer
    tokenizer: str = ""  # the folder of the served model's tokenizer
    endpoint_model: str = ""  # its name there; empty: the only one
    scorer: str = ""  # a folder that mull reward made, or logprob, certainty
    critic: str = ""  # a folder that mull reward made with kind critic
    calibration: str = ""  # a file that mull calibrate made: what each effort spends
    device: str = "cpu"  # cpu, cuda or cuda:N: of the model, and of a trained scorer or critic
    dtype: Literal["float32", "bfloat16"] = "float32"  # of their weights
    host: str = "127.0.0.1"  # address that it listens at; 127.0.0.1: for this machine alone
    port: int = 8000  # 0: any that is free
    params: Literal["compat", "strict_o1"] = "compat"  # take what other clients send, or reject what o1 rejects
    thoughts: Literal["hidden", "shown"] = "hidden"  # raw chains of thought
    summaries: Literal["quotes", "model", "none"] = "quotes"  # of thoughts: their own lines, or the model's words
    effort: Level = "medium"  # where a request names none
    think_tokens: int = 256  # of one chain, at most
    answer_tokens: int = 64  # kept for the answer
    max_samples: int = 64  # chains of one request, at most
    max_choices: int = 8  # n of one request, at most
    max_seconds: float = 120.0  # of thinking, of one request; then it answers with what it has
    max_body: int = 1 << 20  # bytes of a request
    body_seconds: float = 20.0  # in which a request's body must arrive
    max_messages: int = 256  # of a conversation, at most
    max_sequences: int = 256  # that the engine decodes at once
    memory_bytes: int = 0  # of keys and values; 0: the engine's default
    overcommit: float = 1.0  # times the memory that admitted requests may reserve for their worst case
    queue: int = 64  # requests that may wait for room; more are sent away with 429
    queue_seconds: float = 30.0  # that one may wait
    drain_seconds: float = 30.0  # after SIGTERM, for requests under way
    ping_seconds: float = 10.0  # between comments on an idle stream
    keys: Path | None = None  # a file with one API key on a line; none: no key is asked for
    admin: Path | None = None  # a file with the one key that may reload the weights over HTTP; none: nobody may
    origins: tuple[str, ...] = ()  # web origins that may call from a browser; none: CORS is off
    store: Path | None = None  # SQLite file of stored responses; none: in memory, gone with the process
    store_days: float = 30.0  # that a response is kept
    store_bytes: int = 1 << 28  # of all stored responses; the oldest make room
    secret: Path | None = None  # what encrypted_content is sealed with, made if absent; none: it dies with the process
    watch_model: float = 0.0  # seconds between looks for new weights in the model's folder; 0: never
    log_prompts: bool = False  # prompts and answers in the log
    page: bool = True  # the web page at /
    seed: int = 0  # of requests that bring none
    threads: int = 0  # of torch; 0: its own choice

    def __post_init__(self) -> None:
        for key in (
            "answer_tokens",
            "max_samples",
            "max_choices",
            "max_body",
            "max_messages",
            "max_sequences",
            "store_bytes",
        ):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be 1 or more")
        for key in ("think_tokens", "queue", "memory_bytes", "threads", "watch_model"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}={getattr(self, key)} must not be negative")
        for key in (
            "max_seconds",
            "body_seconds",
            "queue_seconds",
            "drain_seconds",
            "ping_seconds",
            "overcommit",
            "store_days",
        ):
            if not getattr(self, key) > 0:
                raise UserError(f"{key}={getattr(self, key)} must be above 0")
        if not 0 <= self.port < 65536:
            raise UserError(f"port={self.port} is not a port: take one from 1 to 65535, or 0 for any that is free")
        if self.beside and self.endpoint:
            raise UserError(
                "--beside is for models that run in this process: with --endpoint leave it out, and start a server of"
                " its own for the other model"
            )
        for text in self.beside:
            if not all(parted(text)):
                raise UserError(f"--beside {text!r} must be a model's folder, or NAME=FOLDER")

    def names(self) -> dict[str, str]:
        """What clients call each model, the main one first, and its folder. `runs/demo/model` is called demo. UserError
        where two have one name."""
        main = self.model or "nano"
        found = {self.name or self.endpoint_model or called(main): main}
        for name, folder in map(parted, self.beside):
            if name in found:
                raise UserError(
                    f"two models would be called {name!r}, {found[name]} and {folder}: give the second a name of its"
                    f" own with --beside NAME={folder}"
                )
            found[name] = folder
        return found


def parted(beside: str) -> tuple[str, str]:
    """(name, folder) of `FOLDER` or `NAME=FOLDER`. A folder's path may have a = in it, a name no slash before one.

    >>> parted("old=runs/lr=3/model"), parted("runs/lr=3/model")
    (('old', 'runs/lr=3/model'), ('lr=3', 'runs/lr=3/model'))
    """
    name, equals, folder = beside.partition("=")
    if not equals or os.sep in name or "/" in name:
        return (called(beside), beside) if beside else ("", "")
    return name.strip(), os.path.expanduser(folder.strip())  # not every shell reads ~ behind a =


def called(folder: str) -> str:
    """The name of a model that was given none."""
    path = Path(folder).resolve()
    return (path.parent.name if path.name == "model" else "") or path.name or "model"  # "/" has no name
