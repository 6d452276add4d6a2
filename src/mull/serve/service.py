"""Requests between the APIs and the engines: which model is asked, whether there is room, and who is at work.

    async with service.job(wish, request) as job:
        async for event in follow(job): …

Every API goes through `job` (or `place`, where nothing thinks), so limits, admission, counting, the choice of a model
and of its weights, and cancelling are in one place.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mull.engine.pages import PAGE
from mull.engine.sampler import derive_seed
from mull.search.sources import Opened
from mull.serve import logs
from mull.serve.errors import going_down, invalid, unknown_model
from mull.serve.gate import Room
from mull.serve.job import GATHER, Job
from mull.serve.meter import Meter, Record
from mull.serve.plan import Wish
from mull.serve.served import Served
from mull.serve.settings import Settings
from mull.serve.weights import sources_of

EACH, MOST_GATHER = 0.002, 0.25  # seconds between two pieces of a stream: for each job at work, and at most


class Service:
    """`models` by the names that clients call them, `main` first. `jobs` are those at work, by request id: what "answer
    now" and the page look up."""

    def __init__(self, settings: Settings, tools: Opened, *beside: Opened):
        """`beside`: of the models that the settings name beside the main one, in their order."""
        self.settings = settings
        (name, source), *others = sources_of(settings).items()
        if settings.endpoint and not settings.name:  # as it is called there
            name = getattr(tools.sampler, "model", None) or name
        self.main = Served(settings, name, source, tools)
        self.models = {name: self.main}
        for (other, source), tools in zip(others, beside, strict=True):
            self.models[other] = Served(settings, other, source, tools, main=name)
        self.meter = Meter(self)
        self.created = int(time.time())
        self.jobs: dict[str, Job] = {}
        self.draining = False
        self.number = 0  # of requests so far, for seeds

    def model(self, name: str | None, required: bool = False) -> Served:
        """Who names none means the main model, unless a name is `required`. ApiError for a name that is not known."""
        if not name:
            if required:
                raise invalid("Missing required parameter: 'model'.", "model", "missing_required_parameter")
            return self.main
        if name not in self.models:
            raise unknown_model(name[:100])
        return self.models[name]

    @property
    def inside(self) -> int:
        """Jobs and raw completions that were let in, of all models."""
        return sum(model.gate.inside for model in self.models.values())

    @asynccontextmanager
    async def job(self, wish: Wish, request: str, choice: int = 0) -> AsyncIterator[Job]:
        """A job for a wish, once there is room for it; ApiError where it cannot be served. Leaving withdraws it.

        `request`: the id under which it is found; `choice`: which of a request's n answers, for its seed.
        """
        model = self.model(wish.model)
        record = Record(request, model.name)
        seed = wish.seed if wish.seed is not None else derive_seed(self.settings.seed, self.number)
        self.number += 1
        key = request if request not in self.jobs else f"{request}/{choice}"
        try:
            if self.draining:
                raise going_down()
            async with model.admitted(wish, record) as (question, made, tools):
                record.job = job = Job(
                    question,
                    made,
                    tools,
                    seed=derive_seed(seed, choice),
                    stop=wish.stop,
                    calibration=model.calibration,
                    most_seconds=self.settings.max_seconds,
                    gather=self._gather,
                )
                self.jobs[key] = job
                try:
                    yield job
                finally:
                    if self.jobs.get(key) is job:
                        del self.jobs[key]
        except BaseException as error:
            record.error = error
            raise
        finally:
            self.meter.record(record)
            logs.note(record)

    def _gather(self) -> float:
        """Seconds between two pieces of a stream. A piece costs the same work whatever is in it, and the work of all
        streams is done between the engines' steps: the more there are, the larger their pieces."""
        return min(max(GATHER, EACH * len(self.jobs)), MOST_GATHER)

    @asynccontextmanager
    async def place(self, tokens: int, model: str = "") -> AsyncIterator[Opened]:
        """Room for `tokens` tokens, at most, sampled or read without a strategy (/v1/completions); what to do it with.
        ApiError where there is none. Leaving gives the room back."""
        served = self.model(model)
        record = Record("", served.name)
        need = Room(-(-tokens // PAGE) + 1, 1)
        try:
            if self.draining:
                raise going_down()
            async with served.gate.enter(lambda n: need, 1) as place:
                record.admitted, record.waited = True, place.waited
                with served.weights.in_use() as tools:
                    yield tools
        except BaseException as error:
            record.error = error
            raise
        finally:
            self.meter.record_raw(record)
            logs.note(record)

    def drain(self) -> None:
        """Nobody is let in from now on; who waits is told so."""
        self.draining = True
        for model in self.models.values():
            model.gate.close()
