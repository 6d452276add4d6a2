"""The small routes: which models are served, whether the server is well, and "answer now"."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from mull.serve.errors import ApiError, unknown_model
from mull.serve.served import Served
from mull.serve.service import Service
from mull.serve.shapes import Health, Model, Models, errors


def router(service: Service) -> APIRouter:
    api = APIRouter()

    def described(model: Served) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": service.created,
            "owned_by": "mull",
            "max_model_len": model.tools.context,  # as vLLM names it: our own endpoint client reads it
        }

    @api.get("/v1/models", response_model=Models, responses=errors(401, 405))
    async def models() -> Response:
        """The main one first: it answers requests that name none."""
        return JSONResponse({"object": "list", "data": [described(one) for one in service.models.values()]})

    @api.get("/v1/models/{model:path}", response_model=Model, responses=errors(401, 404, 405))
    async def model(model: str) -> Response:
        if model not in service.models:
            raise unknown_model(model)
        return JSONResponse(described(service.models[model]))

    @api.get("/health", response_model=Health, responses={503: {"model": Health}, **errors(405)})
    async def health() -> Response:
        """200 while requests are taken. Needs no key."""
        if service.draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ok"})

    @api.post("/mull/requests/{request_id}/answer", status_code=204, responses=errors(401, 404, 405))
    async def answer_now(request_id: str) -> Response:
        """Ends the thinking of a running request, which then answers with what it has. The id is that of the header
        x-request-id, or of the completion."""
        if not answer(service, request_id):
            message = f"No request {request_id[:80]!r} is running here."
            raise ApiError(404, message, param="request_id", code="request_not_found")
        return Response(status_code=204)

    return api


def answer(service: Service, request_id: str) -> bool:
    """Whether there was such a request; all of its choices answer."""
    tail = request_id.rpartition("_")[2].rpartition("-")[2]
    found = [job for key, job in service.jobs.items() if key.rpartition("_")[2].partition("/")[0] == tail]
    for job in found:
        job.answer_now()
    return bool(found)
