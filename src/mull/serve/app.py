"""The service as one ASGI application: routes, and around them request ids, CORS, keys and limits, in this order.

app = make_app(service)         # uvicorn.run(app) serves it
"""

from __future__ import annotations

import logging
import secrets
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mull import __version__
from mull.serve import chat_api, completions_api, models_api, operator_api, page_api, responses_api
from mull.serve.auth import Keys, Near, is_loopback
from mull.serve.errors import ApiError, broken, invalid
from mull.serve.files import Files, opened
from mull.serve.limits import Bodies, problem_response
from mull.serve.schemas import path
from mull.serve.service import Service
from mull.serve.sse import Gone

EXPOSED = ["x-request-id", "x-mull-ignored", "retry-after", "retry-after-ms"]
_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
log = logging.getLogger("mull.serve")


def make_app(service: Service, files: Files | None = None) -> FastAPI:
    """`files`: those of the service's settings, where they are open already; UserError for one that cannot be used. The
    application closes them at its end."""
    s = service.settings
    files = files or opened(s)
    app = FastAPI(title="mull", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    for api in (
        chat_api.router(service),
        responses_api.router(service, files.secret, files.store),
        completions_api.router(service),
        models_api.router(service),
        operator_api.router(service, files.admin),
        page_api.router(service),
    ):
        app.include_router(api)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(RequestValidationError, _misspelt)
    app.add_exception_handler(Gone, _nobody)
    app.add_middleware(Bodies, most_bytes=s.max_body, seconds=s.body_seconds)
    near = not files.keys and is_loopback(s.host)
    if files.keys:
        app.add_middleware(Keys, keys=files.keys)
    elif near:
        app.add_middleware(Near)
    if s.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=s.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    app.add_middleware(Numbered)
    app.openapi = lambda: _document(app, bool(files.keys), near)
    return app


class Numbered:
    """ASGI middleware: gives every request an id, and one that broke an answer that tells nothing."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id, begun = f"req_{secrets.token_hex(16)}", False
        scope.setdefault("state", {})["request_id"] = request_id

        async def numbered(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, numbered)
        except Exception:
            log.exception("request %s failed", request_id)
            if not begun:
                await problem_response(broken())(scope, receive, numbered)


# --------------------------------------------------------------------------------------------- in OpenAI's shape


async def _refused(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, ApiError)
    return problem_response(problem)


async def _unrouted(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    where = f"{request.method[:16]} {request.url.path[:200]}"
    if problem.status_code == 404:
        found = ApiError(404, f"Unknown address: {where}.", code="unknown_url")
    elif problem.status_code == 405:
        found = ApiError(405, f"This address takes another method: {where}.", code="method_not_allowed")
    else:
        found = ApiError(problem.status_code, str(problem.detail))
    found.headers.update(problem.headers or {})
    if problem.status_code == 405:  # Starlette names the methods of one route, and an address may have several
        found.headers["Allow"] = ", ".join(_methods(request))
    return problem_response(found)


def _methods(request: Request) -> list[str]:
    routes, known = request.app.routes, ("GET", "POST", "DELETE", "PUT", "PATCH")
    tried = {method: {**request.scope, "method": method} for method in known}
    return [m for m, scope in tried.items() if any(route.matches(scope)[0] is Match.FULL for route in routes)]


async def _misspelt(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, RequestValidationError)
    first = problem.errors()[0]
    where = path(first["loc"][1:])
    return problem_response(invalid(f"Invalid '{where}': {first['msg']}.", where or None, "invalid_value"))


async def _nobody(request: Request, problem: Exception) -> Response:
    return Response(status_code=499)  # as nginx calls it; the client has gone and does not see it


# ------------------------------------------------------------------------------------------------- the document


def _document(app: FastAPI, with_keys: bool, near: bool) -> dict[str, Any]:
    """The OpenAPI document: bodies' definitions in their place, no 422, which is never answered, and what comes from
    around the routes: keys, and `near`, the refusal of other hosts' names."""
    if app.openapi_schema:
        return app.openapi_schema
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    known = made.setdefault("components", {}).setdefault("schemas", {})
    for operation in (one for item in made["paths"].values() for one in item.values()):
        operation["responses"].pop("422", None)
        if near:
            refused = operation["responses"].setdefault("403", {"description": "", "content": _ERROR})
            refused["description"] = f"The header `Host` names another machine. {refused['description']}".strip()
        for content in operation.get("requestBody", {}).get("content", {}).values():
            known.update(content["schema"].pop("$defs", {}))
    for unused in ("HTTPValidationError", "ValidationError"):
        known.pop(unused, None)
    if with_keys:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for address, item in made["paths"].items():
            for operation in item.values():
                operation["security"] = [] if address == "/health" else [{"key": []}]
    app.openapi_schema = made
    return made
