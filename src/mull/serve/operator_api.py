"""What the operator asks: `/metrics`, `/mull/efforts`, and `/mull/reload` for new weights.

Reloading takes the admin key, from the file that the setting `admin` names, in a header of its own that no web page can
send without being asked first. API keys are for clients, and even on a loopback address others may come through a
proxy, so that neither opens this door: without an admin key it is shut, and SIGHUP or `watch_model` do the work.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mull.serve.errors import ApiError, invalid
from mull.serve.limits import read_json
from mull.serve.plan import Level
from mull.serve.service import Service
from mull.serve.shapes import ErrorBody, Shape, errors
from mull.serve.weights import reload

HEADER = "x-mull-admin"
BODY = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "pattern": r"^[^\u0000]*$", "description": "A folder; left out, the one it has."},
        "name": {"type": "string", "description": "Of the served model, as /v1/models names it; left out, the first."},
    },
    "additionalProperties": False,
}


class Expected(Shape):
    chains: float
    accuracy: float


class Effort(Shape):
    strategy: str
    chains: int
    most_tokens: int
    requests: int
    median_tokens: float | None
    median_seconds: float | None
    expected: Expected | None


class Efforts(Shape):
    model: str
    default: Level
    efforts: dict[Level, Effort]


class Reloaded(Shape):
    model: str
    policy_version: int
    seconds: float


def router(service: Service, admin: bytes | None) -> APIRouter:
    """`admin`: the digest of the admin key."""
    api = APIRouter()

    @api.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}, **errors(401, 405)},
    )
    async def metrics() -> Response:
        """What the service counts, in Prometheus' text format."""
        # The header is set whole: Starlette would add a second charset to a media type.
        return Response(generate_latest(service.meter.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @api.get("/mull/efforts", response_model=Efforts, responses=errors(401, 404, 405))
    async def efforts(model: str = "") -> Response:
        """Of each effort: the strategy, chains and tokens that it may take, and the medians of what it took of late
        (null before any request). `model` as in /v1/models; without it, the first of those."""
        return JSONResponse(service.meter.efforts(service.model(model)))

    @api.post(
        "/mull/reload",
        response_model=Reloaded,
        responses={
            **errors(400, 401, 404, 405, 408, 413, 500),
            403: {"model": ErrorBody, "description": "The server was started without an admin key."},
        },
        openapi_extra={
            "parameters": [{"name": HEADER, "in": "header", "required": True, "schema": {"type": "string"}}],
            "requestBody": {
                "required": False,
                "content": {"application/json": {"schema": BODY}},
            },
        },
    )
    async def reload_route(request: Request) -> Response:
        """Loads a model's folder again, or another folder (`model`), beside the old weights. Requests under way end on
        theirs. `name` says which of several models. For the operator alone."""
        if admin is None:
            message = "Reloading over HTTP is off: start the server with admin=FILE, or send it the signal SIGHUP."
            raise ApiError(403, message, type="permission_error", code="reload_off")
        given = sha256(request.headers.get(HEADER, "").encode("utf-8", "surrogateescape")).digest()
        if not hmac.compare_digest(given, admin):
            raise ApiError(401, f"Give the admin key in the header {HEADER}.", code="invalid_admin_key")
        body: dict[str, Any] = await read_json(request) if await request.body() else {}
        if unknown := [key for key in body if key not in BODY["properties"]]:
            raise invalid(f"Unknown parameter: '{unknown[0][:60]}'.", unknown[0][:60], "unknown_parameter")
        folder, name = body.get("model", ""), body.get("name", "")
        if not isinstance(folder, str) or "\0" in folder:
            raise invalid("Invalid 'model': give the name of a folder.", "model", "invalid_type")
        if not isinstance(name, str):
            raise invalid("Invalid 'name': give the name of a model that is served.", "name", "invalid_type")
        try:
            model = service.model(name)
        except ApiError as problem:
            problem.param = "name"
            raise
        told = await reload(model, folder)
        if "error" in told:
            raise invalid(told["error"], "model", "model_not_loaded")
        return JSONResponse({"model": model.name, **told})

    return api
