"""Where mull's time goes, by kind of work: torch's profiler over all threads, plus named ranges for what it cannot see.

Profiling slows small operations down, so these are shares, not seconds to compare.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from mull.engine import local
from mull.engine.local import LocalEngine
from mull.recipes import rl
from mull.recipes.bench_worker import Round

MARK = "mull::"
MATRIX = ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "_mkl_linear", "_linear_pointwise", "mkldnn_linear")


def profile(engine: LocalEngine, run: Round, work: dict[str, Any]) -> dict[str, dict[str, float]]:
    """{phase: {kind of work: share of the whole round}} of one round after the warm-ups."""
    for number in range(work["warmups"]):
        run(number)
    everything = _ExperimentalConfig(profile_all_threads=True)  # the engine's steps run in a thread of their own
    profiler = torch_profile(activities=[ProfilerActivity.CPU], experimental_config=everything)
    with marked(engine), profiler as prof, record_function(f"{MARK}whole"):
        run(work["warmups"])
    return shares(list(prof.events() or []))


@contextmanager
def marked(engine: LocalEngine):
    """Named ranges around the engine's step, its attention kernel and its sampling, and around learning's phases."""

    def ranged(name: str, f: Callable) -> Callable:
        @functools.wraps(f)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with record_function(MARK + name):
                return f(*args, **kwargs)

        return inside

    attend = engine.memory.attend
    with ExitStack() as stack:

        def replace(target: Any, name: str, new: Any) -> None:
            stack.enter_context(patch.object(target, name, new))

        replace(engine.memory, "attend", lambda rows: ranged("attention", attend(rows)))
        replace(engine, "_step", ranged("sampling tokens", engine._step))
        replace(local, "draw", ranged("draw", local.draw))
        for name in ("pack", "batch_logprobs"):
            replace(rl, name, ranged({"pack": "packing", "batch_logprobs": "forward"}[name], getattr(rl, name)))
        replace(rl.losses, "loss", ranged("loss", rl.losses.loss))
        replace(rl.optim, "step", ranged("optimizer", rl.optim.step))
        replace(torch.Tensor, "backward", ranged("backward", torch.Tensor.backward))
        replace(rl, "to_samples", ranged("samples and packing", rl.to_samples))
        yield


PHASES = ("sampling tokens", "forward", "loss", "backward", "optimizer", "packing", "samples and packing")


def shares(events: list[FunctionEvent]) -> dict[str, dict[str, float]]:
    """Self time of every event, filed under its phase (the range around it) and its kind of work."""
    [whole] = [e for e in events if e.name == f"{MARK}whole"]
    steps = [e for e in events if e.name in {MARK + phase for phase in PHASES}]
    found: dict[str, dict[str, float]] = {}
    for event in events:
        if event is whole:
            continue
        phase, kind = place(event, steps)
        if phase:
            parts = found.setdefault(phase, {})
            parts[kind] = parts.get(kind, 0.0) + event.self_cpu_time_total
    total = whole.time_range.elapsed_us()
    left = total - sum(sum(parts.values()) for parts in found.values())
    found["the rest"] = {"prompts, grading, event loop": max(left, 0.0)}
    return {
        phase: {kind: t / total for kind, t in sorted(parts.items(), key=lambda p: -p[1])}
        for phase, parts in found.items()
    }


def place(event: FunctionEvent, steps: list[FunctionEvent]) -> tuple[str, str]:
    """(phase, kind). Autograd runs in threads of its own, so there the phase is the range that covers the moment."""
    kind, at = "", event
    while at is not None:
        if at.name == f"{MARK}attention":
            kind = "attention"
        elif at.name == f"{MARK}draw":
            kind = "drawing tokens"
        elif at.name.startswith(MARK) and at.name != f"{MARK}whole":
            return at.name.removeprefix(MARK), kind or kind_of(event)
        at = at.cpu_parent
    covering = [s for s in steps if s.time_range.start <= event.time_range.start <= s.time_range.end]
    return (covering[0].name.removeprefix(MARK) if covering else ""), kind or kind_of(event)


def kind_of(event: FunctionEvent) -> str:
    if event.name.startswith(MARK):
        return "bookkeeping in Python"
    name = event.name.split("::")[-1]
    if "scaled_dot_product" in name or "flash_attention" in name:
        return "attention"
    if name in MATRIX:
        return "matrix products"
    if "ompiled" in event.name or "inductor" in event.name:
        return "compiled element-wise"
    return "element-wise, copies and dispatch"
