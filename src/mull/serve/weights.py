"""Which weights of a model answer: new ones are loaded beside the old, and each request ends on those it began with.

What may set this off: `POST /mull/reload` (see `operator_api.py`), SIGHUP, or new files in the model's folder
(`watch_model` seconds between looks). A folder that cannot be loaded changes nothing.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mull.errors import UserError
from mull.models.nano import model_folder
from mull.search.sources import UNTRAINED, Opened, Source, loaded

if TYPE_CHECKING:
    from mull.serve.served import Served
    from mull.serve.service import Service
    from mull.serve.settings import Settings

log = logging.getLogger("mull.serve")


def sources_of(settings: Settings) -> dict[str, Source]:
    """What the settings say to load, by the models' names, the main one first. UserError where two have one name."""
    (name, _), *others = settings.names().items()
    return {name: source_of(settings), **{other: _beside(settings, folder) for other, folder in others}}


def _beside(settings: Settings, folder: str) -> Source:
    """A trained scorer and a critic read the main model's chains alone; what reads the model itself works for any."""
    scorer = settings.scorer if settings.scorer in UNTRAINED else ""
    return replace(source_of(settings), model=folder, scorer=scorer, critic="")


def source_of(settings: Settings) -> Source:
    """The main model's."""
    return Source(
        settings.model or "nano",
        settings.endpoint,
        settings.tokenizer,
        settings.endpoint_model,
        settings.scorer,
        settings.critic,
        max_sequences=settings.max_sequences,
        memory_bytes=settings.memory_bytes,
        device=settings.device,
        dtype=settings.dtype,
    )


@dataclass(eq=False)
class Version:
    tools: Opened
    users: int = 0  # jobs, and raw completions, that work with it


class Weights:
    """The current version and those before it that are still at work."""

    def __init__(self, source: Source, tools: Opened):
        self.source = source
        self.current = Version(tools)
        self.before: list[Version] = []
        self.reloads = self.failures = 0
        self._loading = asyncio.Lock()

    @contextmanager
    def in_use(self) -> Iterator[Opened]:
        """The tools that are current now, kept until the end."""
        version = self.current
        version.users += 1
        try:
            yield version.tools
        finally:
            version.users -= 1
            self._free()

    async def reload(self, model: str = "") -> Opened:
        """Loads the model's folder again, or another one, in a thread; what comes in from then on is answered by it.

        UserError where it cannot be loaded: the old version goes on. One at a time.
        """
        if self.source.endpoint:
            raise UserError("the weights lie at an endpoint: load new ones there")
        async with self._loading:
            source, keep = replace(self.source, model=model or self.source.model), self.current.tools
            try:
                tools = await asyncio.to_thread(checked, source, keep.sampler.policy_version + 1, keep)
            except UserError:
                self.failures += 1
                raise
            self.source = source
            self.before.append(self.current)
            self.current = Version(tools)
            self.reloads += 1
            self._free()
            return tools

    def _free(self) -> None:
        """Lets go of old versions that nobody works with any more."""
        kept = [version for version in self.before if version.users]
        if len(kept) < len(self.before):
            self.before = kept
            asyncio.get_running_loop().call_later(0.5, gc.collect)  # what the last job leaves in cycles goes as well

    async def watch(self, seconds: float, model: Served) -> None:
        """Reloads when the folder's files have changed and stay as they are from one look to the next."""
        seen = signature(self.source.model)
        while True:
            await asyncio.sleep(seconds)
            now = signature(self.source.model)
            if now == seen or not now:
                continue
            await asyncio.sleep(min(seconds, 1.0))
            if signature(self.source.model) != now:
                continue  # somebody is still writing
            seen = now
            try:
                await reload(model)
            except Exception:
                log.exception("reload failed")


def checked(source: Source, policy_version: int = 0, keep: Opened | None = None) -> Opened:
    """What `loaded` gives, where it works; UserError that names the folder otherwise."""
    try:
        tools = loaded(source, policy_version, keep)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError) as problem:
        text = f"{source.model} could not be loaded ({type(problem).__name__}: {problem})"
        raise UserError(f"{text}: the folder must hold a whole model") from problem
    model: Any = getattr(tools.sampler, "model", None)
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise UserError(f"{source.model} has weights that are not finite numbers: its training has gone wrong")
    return tools


def signature(model: str) -> tuple[tuple[str, int, int], ...]:
    """What changes when a folder's model is written anew; () where there is none."""
    try:
        files = [p for p in Path(model_folder(model)).iterdir() if p.suffix in (".safetensors", ".json", ".jinja")]
        return tuple(sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files))
    except (OSError, UserError):
        return ()


async def reload(model: Served, folder: str = "") -> dict[str, Any]:
    """Reloads and reports, in the log as well: {"policy_version": …, "seconds": …}, or {"error": one sentence}."""
    started, weights = time.monotonic(), model.weights
    what = {"model": model.name, "folder": folder or weights.source.model}
    try:
        tools = await weights.reload(folder)
    except UserError as problem:
        log.error("reload failed", extra={"fields": {**what, "problem": str(problem)}})
        return {"error": str(problem)}
    model.resized()
    told = {"policy_version": tools.sampler.policy_version, "seconds": round(time.monotonic() - started, 3)}
    log.info("reload", extra={"fields": {**what, **told}})
    return told


async def reload_all(service: Service) -> None:
    """Every model from its own folder, one after the other: only one of them is in memory twice."""
    for model in service.models.values():
        await reload(model)
