"""`/v1/responses`: OpenAI's Responses API over the events of one job, and the responses that were stored.

POST   /v1/responses                     a response, whole or streamed
GET    /v1/responses/{id}                a stored one
DELETE /v1/responses/{id}
GET    /v1/responses/{id}/input_items    what it was made from
POST   /v1/responses/{id}/cancel         refused: nothing runs in the background
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from mull.errors import UserError
from mull.serve.auth import owner
from mull.serve.chat_asked import header
from mull.serve.errors import ApiError, invalid
from mull.serve.job import Result, follow
from mull.serve.limits import read_json, request_id
from mull.serve.plan import Plan, Wish
from mull.serve.responses_events import Fields, Telling
from mull.serve.responses_items import fitting, messages, taken
from mull.serve.responses_schemas import INCLUDED, ResponseRequest, detail, refuse, unheard, wish
from mull.serve.responses_shapes import Deleted, Items, Responded
from mull.serve.responses_store import Store, Stored
from mull.serve.schemas import checked, document
from mull.serve.seal import Seal
from mull.serve.served import Served
from mull.serve.service import Service
from mull.serve.shapes import POSTED, errors, streams
from mull.serve.sse import frame, streamed, while_there
from mull.serve.vendor import vendor

FOUND = errors(400, 401, 404, 405)
# What can be done with a response that was made: who reads the document, and what tests by it, finds its way.
LINKS = {
    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
    for name in ("retrieve_response", "delete_response", "list_input_items", "cancel_response")
}
log = logging.getLogger("mull.serve")


def router(service: Service, secret: bytes, store: Store) -> APIRouter:
    """The store is closed with the application."""
    s = service.settings

    @functools.lru_cache(maxsize=64)
    def seal(model: str) -> Seal:
        return Seal(secret, model)

    @asynccontextmanager
    async def closing(_: Any) -> AsyncIterator[None]:
        yield
        store.close()

    api = APIRouter(lifespan=closing)

    @api.post(
        "/v1/responses",
        response_model=Responded,
        responses={200: {**streams("With `stream`: the response's events."), "links": LINKS}, **errors(*POSTED)},
        openapi_extra=document(ResponseRequest),
    )
    async def create(request: Request) -> Response:
        form = checked(ResponseRequest, await read_json(request))
        model = service.model(form.model, required=s.params == "strict_o1")
        refuse(form, s)
        call = await called(service, model, store, seal(model.name), form, owner(request), request_id(request))
        if not form.stream:
            return JSONResponse(await while_there(request, call.whole()), headers=call.headers)
        return await streamed(request, call.frames(), call.failed, s.ping_seconds, call.headers)

    @api.get("/v1/responses/{id}", response_model=Responded, responses=FOUND, operation_id="retrieve_response")
    async def retrieve(id: str, request: Request, stream: bool = False) -> Response:
        """With `include[]=reasoning.encrypted_content`, that too."""
        found = await stored(id, request)
        if stream:
            message = "Unsupported value: 'stream' supports false alone: nothing runs in the background."
            raise invalid(message, "stream", "unsupported_value")
        if INCLUDED in [*request.query_params.getlist("include"), *request.query_params.getlist("include[]")]:
            its = seal(found.response["model"])  # whichever are served now: a thought is that model's
            for item in found.response["output"]:
                if item["type"] == "reasoning":
                    item["encrypted_content"] = its.close(found.thought, item["id"], owner(request))
        return JSONResponse(found.response)

    @api.delete("/v1/responses/{id}", response_model=Deleted, responses=FOUND, operation_id="delete_response")
    async def delete(id: str, request: Request) -> Response:
        if not await store.delete(id, owner(request)):
            raise unknown(id)
        return JSONResponse({"id": id, "object": "response", "deleted": True})

    @api.get("/v1/responses/{id}/input_items", response_model=Items, responses=FOUND, operation_id="list_input_items")
    async def input_items(
        id: str,
        request: Request,
        order: Literal["asc", "desc"] = "desc",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: str | None = None,
    ) -> Response:
        items = (await stored(id, request)).input
        if order == "desc":
            items.reverse()
        if after is not None:
            at = next((i for i, item in enumerate(items) if item["id"] == after), None)
            if at is None:
                raise ApiError(404, f"Item with id '{after[:80]}' not found.", param="after", code="item_not_found")
            items = items[at + 1 :]
        page = items[:limit]
        first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
        more = len(items) > limit
        return JSONResponse({"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": more})

    @api.post("/v1/responses/{id}/cancel", responses=FOUND, operation_id="cancel_response")
    async def cancel(id: str, request: Request) -> Response:
        await stored(id, request)
        message = "Cannot cancel a response that does not run in the background: close its connection instead."
        raise invalid(message, "response_id", "unsupported_value")

    async def stored(id: str, request: Request) -> Stored:
        found = await store.get(id, owner(request))
        if found is None:
            raise unknown(id)
        return found

    return api


def unknown(id: str) -> ApiError:
    return ApiError(404, f"Response with id '{id[:80]}' not found.", param="response_id", code="response_not_found")


async def called(
    service: Service, model: Served, store: Store, seal: Seal, form: ResponseRequest, owner: str, request: str
) -> Call:
    """What a request asks for, with the conversation that it goes on from: what was said, whichever model said it."""
    s = service.settings
    new = await taken(form.input, s.max_messages, store, seal, owner)
    items, before = new, form.previous_response_id
    if before is not None:
        found = await store.get(before, owner)
        if found is None:
            message = f"Previous response with id '{before[:80]}' not found."
            raise invalid(message, "previous_response_id", "previous_response_not_found")
        items = [*found.input, *found.response["output"], *new]
    tools = model.tools
    if form.truncation == "auto" and tools.context:
        # What an answer may need stays free, but never more than half of what there is.
        room = min(form.max_output_tokens or s.think_tokens + s.answer_tokens, tools.context // 2)
        items = await asyncio.to_thread(fitting, items, form.instructions, tools.chat, tools.context - room)
    elif len(items) > s.max_messages:
        message = f"The conversation has {len(items)} items, and {s.max_messages} may be: set 'truncation' to 'auto'."
        raise invalid(message, "previous_response_id", "invalid_value")
    asked = wish(form, messages(items, form.instructions))
    telling = Telling(
        _head(form, f"resp_{request.rpartition('_')[2]}", model.name),
        shown=s.thoughts == "shown",
        detail=detail(form, s),
        seal=(lambda thought, item: seal.close(thought, item, owner)) if INCLUDED in (form.include or ()) else None,
    )
    kept = store if form.store is not False else None
    return Call(service, model, kept, owner, asked, request, items, telling, unheard(form))


@dataclass
class Call:
    """One request: told as events, of which a response that is not streamed is the last."""

    service: Service
    model: Served
    store: Store | None
    owner: str
    wish: Wish
    request: str
    items: list[Fields]
    telling: Telling
    unheard: list[str]
    headers: dict[str, str] = field(default_factory=dict)  # known once there is a plan

    async def whole(self) -> Fields:
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        return self.telling.response

    async def frames(self) -> AsyncGenerator[bytes]:
        async with aclosing(self.events()) as events:
            async for event in events:
                yield frame(event, event["type"])

    def failed(self, problem: ApiError) -> bytes:
        return frame(self.telling.failed(problem), "error")

    async def events(self) -> AsyncGenerator[Fields]:
        try:
            async with self.service.job(self.wish, self.request) as job:
                self._planned(job.plan)
                for told in self.telling.begin(job.plan):
                    yield told
                async with aclosing(follow(job)) as events:
                    async for event in events:
                        for told in self.telling.tell(event):
                            yield told
                        if isinstance(event, Result):
                            made = vendor(event)
                            self.telling.response["mull"] = {**made, "ignored": [*self.unheard, *made["ignored"]]}
        except UserError as problem:
            raise invalid(self.model.public(problem), "input") from None
        except ApiError as problem:
            problem.param = "input" if problem.param == "messages" else problem.param
            raise
        if self.store:
            await self._keep(self.store)
        yield self.telling.last()

    def _planned(self, plan: Plan) -> None:
        self.headers.update(header([*self.unheard, *plan.ignored]))
        response = self.telling.response
        response["temperature"], response["top_p"] = plan.temperature, plan.top_p
        response["reasoning"] = {**response["reasoning"], "effort": plan.level}

    async def _keep(self, store: Store) -> None:
        """A response that cannot be stored is given all the same, and says so."""
        response = self.telling.response
        output = [{k: v for k, v in item.items() if k != "encrypted_content"} for item in response["output"]]
        try:
            await store.put(Stored({**response, "output": output}, self.items, self.telling.thought), self.owner)
        except sqlite3.Error:
            log.exception("the response %s could not be stored", response["id"])
            response["store"] = False


def _head(form: ResponseRequest, id: str, model: str) -> Fields:
    """The fields that are known from the beginning: mostly what was asked for."""
    reasoning = form.reasoning
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": form.instructions,
        "max_output_tokens": form.max_output_tokens,
        "metadata": form.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": form.previous_response_id,
        "reasoning": {"summary": (reasoning.summary or reasoning.generate_summary) if reasoning else None},
        "store": form.store is not False,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "truncation": form.truncation or "disabled",
        "usage": None,
        "user": form.user,
    }
