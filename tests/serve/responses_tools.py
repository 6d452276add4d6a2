"""What every stream of the Responses API must be (OpenAI's types, in the documented order, with nothing left out), and
how a test asks for one."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from mull.serve.responses_shapes import Responded
from mull.serve.shapes import ErrorBody
from tests.serve.tools import events, post

PATH = "/v1/responses"
SECRETIVE = "the word is xyzzy\nso 4 it is</think>"
WORD = "xyzzy"
ORDER = re.compile(
    r"created in_progress "
    r"(R\.added "
    r"((reasoning_summary_part\.added reasoning_summary_text\.delta "
    r"reasoning_summary_text\.done reasoning_summary_part\.done )|R\.content_part\.added |reasoning_text\.delta )*"
    r"(reasoning_text\.done R\.content_part\.done )?R\.done )?"
    r"M\.added M\.content_part\.added (output_text\.delta )+output_text\.done M\.content_part\.done M\.done "
    r"(completed|incomplete) "
)


@cache
def adapter() -> TypeAdapter:
    return TypeAdapter(ResponseStreamEvent)


def checked(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response that a stream ends with, after all of the stream was held against it."""
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    for event in events:
        assert adapter().validate_python(event).type == event["type"]
    assert ORDER.fullmatch("".join(_short(e) + " " for e in events)), [_short(e) for e in events]
    response = events[-1]["response"]
    Response.model_validate(response)
    assert response["status"] == events[-1]["type"].removeprefix("response.")
    for event in events[:2]:
        assert event["response"]["status"] == "in_progress" and event["response"]["output"] == []
        assert event["response"]["id"] == response["id"] and event["response"]["usage"] is None
    done = [e for e in events if e["type"] == "response.output_item.done"]
    assert [e["item"] for e in done] == response["output"]
    assert [e["output_index"] for e in done] == list(range(len(done)))
    for index, item in enumerate(response["output"]):
        _parts(item, [e for e in events if e.get("output_index") == index])
    return response


def _short(event: dict[str, Any]) -> str:
    """The type without what all have in common; items and parts with whose they are: R reasoning, M message."""
    name = event["type"].removeprefix("response.")
    if "item" in event:
        return {"reasoning": "R", "message": "M"}[event["item"]["type"]] + name.removeprefix("output_item")
    if name.startswith("content_part"):
        return {"reasoning_text": "R", "output_text": "M"}[event["part"]["type"]] + "." + name
    return name


def _parts(item: dict[str, Any], events: list[dict[str, Any]]) -> None:
    """Deltas, done texts and done parts of an item all say what the item says."""
    added, last = events[0], events[-1]
    assert added["type"] == "response.output_item.added" and added["item"]["status"] == "in_progress"
    assert last["type"] == "response.output_item.done"
    assert {e.get("item_id") or e["item"]["id"] for e in events} == {item["id"]}
    for kind, key, parts in (
        ("response.reasoning_summary_text", "summary_index", item.get("summary")),
        ("response.reasoning_text", "content_index", item.get("content") if item["type"] == "reasoning" else None),
        ("response.output_text", "content_index", item.get("content") if item["type"] == "message" else None),
    ):
        for i, part in enumerate(parts or []):
            mine = [e for e in events if e["type"].startswith(kind + ".") and e[key] == i]
            assert "".join(e["delta"] for e in mine if e["type"].endswith("delta")) == part["text"]
            assert [e["text"] for e in mine if e["type"].endswith("done")] == [part["text"]]
        assert {e[key] for e in events if e["type"].startswith(kind + ".")} == set(range(len(parts or [])))
    closed = [e["part"] for e in events if e["type"].endswith("part.done")]
    assert closed == [*(item.get("summary") or []), *(item.get("content") or [])]


def script(*answers: str, thought: str = SECRETIVE) -> list[str]:
    return [piece for answer in answers for piece in (thought, answer)]


def ask(input: object = "what?", **more) -> dict:
    return {"model": "nano", "input": input, **more}


def made(service, **more) -> dict:
    """The response to a request that must succeed."""
    status, _, body = post(service, PATH, ask(**more))
    assert status == 200, body
    Responded.model_validate(body)
    assert text(body).strip()
    return body


def text(response: dict) -> str:
    return response["output"][-1]["content"][0]["text"]


def streamed(service, **more) -> tuple[dict, list[dict], str]:
    status, headers, raw = post(service, PATH, ask(stream=True, **more))
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    told = events(raw)
    return checked(told), told, raw


def refused(service, body: object, status: int = 400) -> dict:
    got, _, answer = post(service, PATH, body)
    assert got == status, answer
    return ErrorBody.model_validate(answer).error.model_dump()


def prompts(service) -> list[str]:
    """What the model was given, up to where it thinks."""
    sampler = service.main.tools.sampler
    return [text for c in sampler.calls if (text := sampler.decode(c.prefix)).endswith("<think>")]
