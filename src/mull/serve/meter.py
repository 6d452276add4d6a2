"""What the service counts: Prometheus metrics, and what each effort has cost of late (`operator_api.py` tells them).

Every job and every raw completion is recorded at one place, the end of `service.job` and `service.place`, so that no
API can forget one.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mull.errors import UserError
from mull.serve.errors import ApiError
from mull.serve.plan import LEVELS, Level, Wish

if TYPE_CHECKING:
    from mull.serve.job import Job
    from mull.serve.served import Served
    from mull.serve.service import Service

Outcome = Literal["answered", "refused", "cancelled", "failed"]
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
RATE = 60.0  # seconds that tokens/s looks back on
KNOWN = 256  # requests of each effort that its medians are of


@dataclass(eq=False)
class Record:
    """One job or raw completion, from its asking to its end."""

    request: str
    model: str = ""
    started: float = field(default_factory=time.monotonic)
    waited: float = 0.0  # for room
    job: Job | None = None  # None: it was not admitted, or is a raw completion
    admitted: bool = False
    plain: bool = False  # whether its effort alone decided what it may spend
    error: BaseException | None = None
    seconds: float = 0.0

    @property
    def outcome(self) -> Outcome:
        if self.job is not None and self.job.result is not None:
            return "answered"
        if isinstance(self.error, ApiError | UserError):
            return "refused"
        gone = isinstance(self.error, (asyncio.CancelledError, GeneratorExit)) or type(self.error).__name__ == "Gone"
        if gone or (self.error is None and self.job is not None):
            return "cancelled"
        return "answered" if self.error is None else "failed"

    @property
    def first_token(self) -> float | None:
        """Seconds from the asking to the first sampled token."""
        if self.job is None or self.job.live.first_token is None:
            return None
        return self.job.live.started - self.started + self.job.live.first_token

    @property
    def sampled(self) -> int:
        return self.job.sampled if self.job else 0


class Meter:
    """Metrics of one service, in a registry of its own."""

    def __init__(self, service: Service):
        self.service, self.registry = service, CollectorRegistry()
        self.costs: dict[tuple[str, Level], deque[tuple[int, float]]] = {
            (model, level): deque(maxlen=KNOWN) for model in service.models for level in LEVELS
        }
        self._recent: deque[tuple[float, int]] = deque()  # (when, tokens) of what ended of late
        self._began = time.monotonic()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"mull_{name}", about, labels, registry=self.registry)

        def histogram(name: str, about: str, *labels: str) -> Histogram:
            return Histogram(f"mull_{name}", about, labels, buckets=SECONDS, registry=self.registry)

        self.requests = counter("requests", "Jobs that ended, a request's n choices one each", "effort", "outcome")
        self.raw = counter("raw_requests", "Raw completions that ended", "outcome")
        self.refused = counter("refused", "Jobs and raw completions that were not served", "status")
        self.reduced = counter("reduced", "Jobs that got fewer chains than they asked for")
        self.cancelled = counter("cancelled", "Jobs whose client went away")
        self.exhausted = counter("exhausted", "Answers whose strategy ran out of its budget")
        self.early = counter("early_answers", "Answers whose thinking was ended before it was done", "cause")
        self.looped = counter("looped_branches", "Branches that went round in circles and were closed")
        self.lost = counter("lost", "Troubles with samplers and scorers inside answers")
        self.reasoning = counter("reasoning_tokens", "Sampled tokens that are no part of an answer returned")
        self.answer = counter("answer_tokens", "Sampled tokens of the answers returned")
        self.wasted = counter("wasted_tokens", "Reasoning tokens in branches that no answer came from")
        self.written = counter("summary_tokens", "Reasoning tokens of summaries that the model wrote, used or not")
        self.sections = counter("summary_sections", "Sections of summaries that the model was to write", "how")
        self.prompt = counter("prompt_tokens", "Prompt tokens of jobs")
        self.cached = counter("cached_tokens", "Prompt tokens that did not have to be computed again")
        self.scorer = counter("scorer_tokens", "Tokens that scorers and critics read")
        self.by_model = counter("model_requests", "Jobs and raw completions that ended", "model", "outcome")
        self.sampled = counter("model_tokens", "Tokens that jobs sampled", "model")
        self.wait = histogram("queue_seconds", "Wait for room")
        self.first = histogram("first_token_seconds", "From a job's arrival to its first sampled token", "effort")
        self.whole = histogram("answer_seconds", "From a job's arrival to its whole answer", "effort")
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "running": ("Jobs and raw completions inside", lambda: service.inside),
            "tokens_per_second": ("Sampled, of what ended in the last minute", self.rate),
            "draining": ("1 while no new requests are taken", lambda: float(service.draining)),
            "policy_version": ("Of the main model's weights that new requests get", lambda: _version(service.main)),
        }
        for name, (about, read) in gauges.items():
            Gauge(f"mull_{name}", about, registry=self.registry).set_function(read)
        # Sums over all models, under names without labels; and by model what tells which of them is busy.
        sums: dict[str, tuple[str, Callable[[Served], float]]] = {
            "queue_depth": ("Requests that wait for room", lambda model: len(model.gate.line)),
            "memory_pages_used": ("Pages that sequences hold, of 16 tokens", lambda model: _pages("held", model)),
            "memory_pages_total": ("Pages of the engine's memory", lambda model: _pages("num_pages", model)),
            "memory_pages_reserved": ("Pages that admitted requests may come to need", _reserved),
            "branches_reserved": ("Branches that may run side by side", lambda model: model.gate.reserved.branches),
            "sequences": ("Sequences in the engine, running or waiting", _sequences),
            "versions": ("Versions of the weights in memory", lambda model: len(_samplers(model))),
            "reloads": ("Reloads of the weights that succeeded", lambda model: model.weights.reloads),
            "reload_failures": ("Reloads of the weights that failed", lambda model: model.weights.failures),
        }
        for name, (about, of) in sums.items():
            total = functools.partial(_sum, of, service)
            Gauge(f"mull_{name}", about, registry=self.registry).set_function(total)
        for name, (about, of) in {
            "model_queue_depth": sums["queue_depth"],
            "model_running": ("Jobs and raw completions inside", lambda model: model.gate.inside),
            "model_memory_pages_used": sums["memory_pages_used"],
            "model_policy_version": ("Of the weights that new requests get", _version),
        }.items():
            gauge = Gauge(f"mull_{name}", about, ("model",), registry=self.registry)
            for model in service.models.values():
                gauge.labels(model.name).set_function(functools.partial(of, model))

    def record(self, one: Record) -> None:
        """Counts what has ended."""
        now = time.monotonic()
        one.seconds, outcome, job = now - one.started, one.outcome, one.job
        if outcome == "refused":
            self.refused.labels(getattr(one.error, "status", 400)).inc()
        self.by_model.labels(one.model, outcome).inc()
        if one.admitted:
            self.wait.observe(one.waited)
        if job is None:
            return
        live, result, level = job.live, job.result, job.plan.level
        self.requests.labels(level, outcome).inc()
        self.prompt.inc(len(live.prompt))
        self.cached.inc(live.cached)
        self.looped.inc(live.looped)
        self.scorer.inc(live.cost.scorer_tokens)
        self.reduced.inc(job.plan.wanted > 0)
        self.cancelled.inc(outcome == "cancelled")
        self.written.inc(job.summary_tokens)
        if job.written is not None:
            self.sections.labels("written").inc(job.written.written)
            self.sections.labels("quoted").inc(job.written.quoted)
        self.sampled.labels(one.model).inc(job.sampled)
        self._recent.append((now, job.sampled))
        self.rate()
        if one.first_token is not None:
            self.first.labels(level).observe(one.first_token)
        if result is None:
            self.reasoning.inc(job.sampled)
            self.wasted.inc(live.sampled)
            return
        # A client may read its stream for longer than the answer took.
        self.whole.labels(level).observe(live.started - one.started + result.seconds)
        self.reasoning.inc(job.sampled - result.answer_tokens)  # a client may have left while a summary was written
        self.answer.inc(result.answer_tokens)
        self.wasted.inc(max(0, result.wasted_tokens))
        self.exhausted.inc(result.exhausted)
        self.lost.inc(len(result.lost))
        if result.early:
            self.early.labels(result.early).inc()
        elif one.plain and not job.plan.wanted:
            self.costs[one.model, level].append((result.completion_tokens, result.seconds))

    def record_raw(self, one: Record) -> None:
        self.raw.labels(one.outcome).inc()
        self.record(one)

    def rate(self) -> float:
        """Tokens a second of the last minute."""
        now = time.monotonic()
        while self._recent and now - self._recent[0][0] > RATE:
            self._recent.popleft()
        return sum(n for _, n in self._recent) / max(1.0, min(RATE, now - self._began))

    def efforts(self, model: Served) -> dict[str, Any]:
        """What each effort would spend with a model, and what it has spent: by level, JSON-able."""
        out = {}
        for level in LEVELS:
            plan, known = model.plan(Wish((), effort=level), prompt=0), self.costs[model.name, level]
            out[level] = {
                "strategy": plan.strategy,
                "chains": plan.samples,
                "most_tokens": plan.most_tokens,
                "requests": len(known),
                "median_tokens": median(tokens for tokens, _ in known) if known else None,
                "median_seconds": round(median(seconds for _, seconds in known), 4) if known else None,
                "expected": _expected(model, level),
            }
        return {"model": model.name, "default": self.service.settings.effort, "efforts": out}


def _expected(model: Served, level: Level) -> dict[str, float] | None:
    """What calibration measured for the effort, per question: mean compute in chains, and accuracy."""
    if (known := model.calibrated) is None or level == "none":
        return None
    point = known.points[known.efforts[level]]
    return {"chains": round(point.flops / known.chain_flops, 2), "accuracy": round(point.accuracy, 4)}


def _sum(of: Callable[[Served], float], service: Service) -> float:
    return sum(map(of, service.models.values()))


def _version(model: Served) -> float:
    return model.tools.sampler.policy_version


def _samplers(model: Served) -> list[Any]:
    """Of all versions that are in memory."""
    return [version.tools.sampler for version in (model.weights.current, *model.weights.before)]


def _pages(what: str, model: Served) -> float:
    return sum(getattr(sampler.pool, what) for sampler in _samplers(model) if hasattr(sampler, "pool"))


def _reserved(model: Served) -> float:
    return model.gate.reserved.pages if hasattr(model.tools.sampler, "pool") else 0


def _sequences(model: Served) -> float:
    return sum(len(s.schedule.order) + len(s.schedule.waiting) for s in _samplers(model) if hasattr(s, "schedule"))
