"""The page at `/`, its assets, and what it asks for: an SSE stream that tells more than OpenAI's APIs can.

`POST /mull/ask` takes the body of `/v1/chat/completions`, so that the page's "copy as curl" is the same request. It
tells the events of one job, and the tree of the search as it grows. Where thoughts are hidden, a step of the tree is
its size, its score and whether it won, without its text. Of the answers that were voted on the text is told with the
result, as the APIs tell it.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, replace
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from mull import __version__
from mull.chat.template import CLOSE
from mull.errors import UserError
from mull.search.choose import same_text
from mull.search.named import STRATEGIES, named
from mull.serve.chat_asked import ChatRequest, asked
from mull.serve.errors import ApiError, invalid
from mull.serve.job import Delta, Event, Job, Progress, Result, Thought, follow
from mull.serve.limits import read_json, request_id
from mull.serve.plan import Wish
from mull.serve.schemas import Form, checked
from mull.serve.served import Served
from mull.serve.service import Service
from mull.serve.shapes import usage
from mull.serve.sse import frame, streamed
from mull.serve.summary import Section
from mull.serve.vendor import vendor
from mull.tasks.base import Checked
from mull.tasks.load import PUZZLES, load_task
from mull.types import Problem, SpanKind

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
OWN = (
    *("page.css", "answer.css", "icon.svg", "theme.js", "main.js", "api.js", "session.js", "words.js", "composer.js"),
    *("examples.js", "answer.js", "tabs.js", "numbers.js", "tree.js", "tree_view.js", "parts.js"),
)
# All that can be asked for, by its name in an address; d3 is the one that the reports have inside.
ASSETS = {
    **{name: ("mull.serve", f"page/{name}") for name in OWN},
    "htm-preact.js": ("mull.serve", "page/vendor/htm-preact.js"),
    "d3.js": ("mull.evals", "assets/d3.min.js"),
}
POLICY = (  # scripts and styles of this server's files alone, no eval, no network but the server, no HTML from strings
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept by the browser, but asked for again: the answer is mostly 304
}
EACH = 3  # examples of a task's level
RUNNING = 512  # branches under way that are told, at most
TICK = 0.25  # seconds between two words on progress


class Answered(Form):
    """What somebody says about an example."""

    id: str
    answer: str


def router(service: Service) -> APIRouter:
    """No routes where the operator wants no page."""
    api = APIRouter(include_in_schema=False)
    if not service.settings.page:
        return api

    @api.get("/")
    async def page(request: Request) -> Response:
        return _file(request, "mull.serve", "page/index.html", {"Content-Security-Policy": POLICY})

    @api.get("/mull/assets/{name}")
    async def asset(request: Request, name: str) -> Response:
        if name not in ASSETS:
            raise ApiError(404, f"Unknown address: the page has no file {name[:80]!r}.", code="unknown_url")
        return _file(request, *ASSETS[name])

    @api.get("/mull/config")
    async def config() -> Response:
        return JSONResponse(_config(service))

    @api.get("/mull/examples")
    def known() -> Response:  # in a thread: the first call makes the problems
        return JSONResponse({"tasks": _told_examples()})

    @api.post("/mull/check")
    async def check(request: Request) -> Response:
        """Whether an answer to an example is right; null where it cannot be judged. The reference stays here."""
        said = checked(Answered, await read_json(request))
        if said.id not in examples():
            raise invalid(f"There is no example {said.id[:80]!r}.", "id", "invalid_value")
        task, problem = examples()[said.id]
        return JSONResponse({"correct": task.check(problem, said.answer[:4096]).correct})

    @api.post("/mull/ask")
    async def ask(request: Request) -> Response:
        form = checked(ChatRequest, await read_json(request))
        model = service.model(form.model)
        if (form.n or 1) != 1:
            raise invalid("Invalid 'n': the page asks for one answer at a time.", "n", "invalid_value")
        wish = replace(asked(form, service.settings), summary=True)
        return await streamed(
            request, _frames(service, model, wish, request_id(request)), _failed, service.settings.ping_seconds
        )

    return api


# ------------------------------------------------------------------------------------------------------- files


@functools.cache
def _read(package: str, path: str) -> tuple[bytes, str]:
    """(content, its entity tag)"""
    content = files(package).joinpath(path).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _file(request: Request, package: str, path: str, more: dict[str, str] | None = None) -> Response:
    content, tag = _read(package, path)
    headers = {**HEADERS, **(more or {}), "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=TYPES[path.rpartition(".")[2]], headers=headers)


# ------------------------------------------------------------------------------------------ what there is to choose


def _config(service: Service) -> dict[str, Any]:
    s = service.settings
    return {
        "model": service.main.name,
        "models": [_described(model) for model in service.models.values()],
        "version": __version__,
        "thoughts": s.thoughts == "shown",
        "summaries": s.summaries != "none",
        "strict": s.params == "strict_o1",
        "max_samples": s.max_samples,
        "think_tokens": s.think_tokens,
        "answer_tokens": s.answer_tokens,
    }


def _described(model: Served) -> dict[str, Any]:
    return {"name": model.name, "calibrated": model.calibrated is not None, "strategies": _strategies(model)}


def _strategies(model: Served) -> list[dict[str, str]]:
    """Those that can run with it: some need a scorer, a critic, a generator or a calibration file."""
    found = []
    for name, (_, _, what) in STRATEGIES.items():
        try:
            model.tools.bind(named(name), same_text, model.calibration)
        except UserError:
            continue
        found.append({"name": name, "samples": what})
    return found


@functools.cache
def examples() -> dict[str, tuple[Checked, Problem]]:
    """Problems that nothing was trained on, of every task and level, by their ids."""
    tasks = [load_task(name) for name in PUZZLES]
    drawn = ((t, p) for t in tasks for level in t.levels for p in t.up_to(level, "test", 0, EACH))
    return {problem.question.id: (task, problem) for task, problem in drawn}


def _told_examples() -> list[dict[str, Any]]:
    told: dict[str, dict[str, Any]] = {}
    for task, problem in examples().values():
        one = told.setdefault(task.name, {"task": task.name, "description": task.description, "problems": []})
        q = problem.question
        one["problems"].append({"id": q.id, "level": q.level, "text": q.text})
    return list(told.values())


# ------------------------------------------------------------------------------------------------------ asking


def _failed(problem: ApiError) -> bytes:
    """In a stream that has begun."""
    return frame(
        {**problem.body(), "status": problem.status, "retry_after": problem.headers.get("Retry-After")}, "error"
    )


async def _frames(service: Service, model: Served, wish: Wish, request: str) -> AsyncGenerator[bytes]:
    """begun; then progress, section, thought, nodes, delta as they come; result."""
    try:
        async with service.job(wish, request) as job:
            telling = Telling(job, service.settings.thoughts == "shown", service.settings.summaries != "none")
            yield frame({"model": model.name, **telling.begun(request)}, "begun")
            async with aclosing(follow(job, tick=TICK)) as events:
                async for event in events:
                    if nodes := telling.nodes():
                        yield frame(nodes, "nodes")
                    if told := telling.tell(event):
                        yield frame(told[1], told[0])
    except UserError as problem:
        raise invalid(model.public(problem), "messages") from None


class Telling:
    """What the page is told of one job. Raw thoughts only where they are `shown`."""

    def __init__(self, job: Job, shown: bool, summaries: bool):
        self.job, self.shown, self.summaries = job, shown, summaries
        self._seen = 0  # of live.touched

    def begun(self, request: str) -> dict[str, Any]:
        plan = self.job.plan
        return {
            "request": request,
            "effort": plan.level,
            "strategy": plan.strategy,
            "samples": plan.samples,
            "wanted": plan.wanted,
            "think_tokens": plan.think_tokens,
            "most_tokens": plan.most_tokens,
            "single": plan.single,
            "prompt_tokens": len(self.job.live.prompt),
            "policy_version": self.job.tools.sampler.policy_version,
        }

    def nodes(self) -> list[dict[str, Any]]:
        """Steps of the tree that are new or have changed since the last call."""
        live = self.job.live
        touched = dict.fromkeys(live.touched[self._seen :])
        self._seen = len(live.touched)
        told = []
        for step in (live.steps[i] for i in touched):
            node = {k: getattr(step, k) for k in ("id", "parent", "tokens", "answer", "score")}
            if step.score is not None and not math.isfinite(step.score):
                node["score"] = None
            told.append({**node, "text": step.text.partition(CLOSE)[0]} if self.shown else node)
        return told

    def tell(self, event: Event) -> tuple[str, dict[str, Any]] | None:
        """(name, data), or None for what is not told."""
        match event:
            case Progress():
                running = list(self.job.live.running)[:RUNNING]
                return "progress", {**asdict(event), "running": [[b.parent, len(b.tokens)] for b in running]}
            case Thought():
                return ("thought", {"text": event.text}) if self.shown else None
            case Section():
                return ("section", asdict(event)) if self.summaries else None
            case Delta():
                return "delta", {"text": event.text}
            case Result():
                return "result", self._result(event)

    def _result(self, result: Result) -> dict[str, Any]:
        voted = {answer for answer, _ in result.votes}
        told = {
            "content": result.content,
            "finish": result.finish,
            "usage": usage(
                result.prompt_tokens, result.cached_tokens, result.completion_tokens, result.reasoning_tokens
            ),
            "path_tokens": result.path_tokens,
            "policy_version": result.policy_version,
            "mull": vendor(result),
            "winner": result.winner,
            **self._judged(result),
            "answers": [[s.id, s.text] for s in result.steps if s.answer and s.text in voted],
        }
        return {**told, "thought": result.thought} if self.shown else told

    def _judged(self, result: Result) -> dict[str, Any]:
        """What the search thought of its steps in the end: those that it turned away from, and scores, of which some
        are the strategy's own and come by no scorer that could be watched."""
        if (trace := result.trace) is None:
            return {"pruned": [], "scores": []}
        places, pruned = self.job.live.places(trace), []
        scores, kept = dict[int, float](), {-1}
        for at, span in zip(places, trace.spans, strict=True):
            pruned.append(span.pruned or (span.parent >= 0 and pruned[span.parent]))
            if not pruned[-1]:
                kept.add(at)  # by one branch at least
            if span.kind is SpanKind.SAMPLED and span.score is not None and math.isfinite(span.score):
                scores[at] = span.score
        return {"pruned": sorted({*places} - kept), "scores": [[at, score] for at, score in scores.items() if at >= 0]}
