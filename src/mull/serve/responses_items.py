"""The conversation of a response: items of the request and of earlier responses, as messages for the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mull.chat import Chat
from mull.serve.errors import ApiError, invalid
from mull.serve.responses_events import Fields, new_id, spoken
from mull.serve.responses_schemas import ID, ROLES, TEXTS
from mull.serve.responses_store import Store
from mull.serve.schemas import said, text_of
from mull.serve.seal import Seal
from mull.serve.served import overhead

KINDS = ("message", "reasoning", "item_reference")


async def taken(asked: Any, most: int, store: Store, seal: Seal, owner: str) -> list[Fields]:
    """A request's `input` as it is stored; ApiError for what is no item or none of ours.

    Thoughts are checked and then go no further: o1, too, drops them where the next question begins, and within one
    there is nothing here that would come between a thought and its answer.
    """
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    if not isinstance(asked, list):
        raise invalid("Invalid type for 'input': expected text or a list of items.", "input", "invalid_type")
    if not 0 < len(asked) <= most:
        message = f"Invalid 'input': it must have from 1 to {most} items, and has {len(asked)}."
        raise invalid(message, "input", "invalid_value")
    items = [_item(item, f"input[{at}]", seal, owner) for at, item in enumerate(asked)]
    found = await store.items({item["id"] for item in items if item["type"] == "item_reference"}, owner)
    for at, item in enumerate(items):
        if item["type"] == "item_reference":
            if item["id"] not in found:
                message = f"Item with id '{item['id']}' not found: it is not stored here."
                raise ApiError(404, message, param=f"input[{at}].id", code="item_not_found")
            items[at] = found[item["id"]]
    return items


def _item(item: Any, where: str, seal: Seal, owner: str) -> Fields:
    if not isinstance(item, dict):
        raise invalid(f"Invalid type for '{where}': expected an object.", where, "invalid_type")
    kind = item.get("type")
    kind = "message" if kind is None else kind
    if kind not in KINDS:
        raise _unsupported(f"{where}.type", KINDS)
    id = item.get("id")
    if not isinstance(id, str | None) or len(id or "") > ID or (kind == "item_reference" and not id):
        raise invalid(f"Invalid '{where}.id': expected up to {ID} characters.", f"{where}.id", "invalid_value")
    if kind == "item_reference":
        return {"id": id, "type": kind}
    if kind == "reasoning":
        content = item.get("encrypted_content")
        if content is not None:
            at = f"{where}.encrypted_content"
            if not isinstance(content, str):
                raise invalid(f"Invalid type for '{at}': expected a string.", at, "invalid_type")
            seal.open(content, id, owner, at)
        return {"id": id or new_id("rs"), "type": kind, "summary": _summary(item.get("summary"), f"{where}.summary")}
    role = item.get("role")
    if role not in ROLES:
        raise _unsupported(f"{where}.role", ROLES)
    if item.get("content") is None:
        message = f"Missing required parameter: '{where}.content'."
        raise invalid(message, f"{where}.content", "missing_required_parameter")
    text = _text(item["content"], f"{where}.content")
    content = spoken(text) if role == "assistant" else {"type": "input_text", "text": text}
    return {"id": id or new_id("msg"), "type": kind, "status": "completed", "role": role, "content": [content]}


def _text(content: Any, where: str) -> str:
    """Refusals count as what was said."""
    if isinstance(content, list):
        content = [
            {"type": "text", "text": part.get("refusal")}
            if isinstance(part, dict) and part.get("type") == "refusal"
            else part
            for part in content
        ]
    return text_of(content, where, TEXTS)


def _summary(parts: Any, where: str) -> list[Fields]:
    if parts is None:
        return []
    if not isinstance(parts, list):
        raise invalid(f"Invalid type for '{where}': expected a list of parts.", where, "invalid_type")
    return [{"type": "summary_text", "text": text_of([part], where, ("summary_text",))} for part in parts]


def _unsupported(where: str, known: Sequence[str]) -> ApiError:
    values = ", ".join(f"'{value}'" for value in known)
    return invalid(f"Invalid value for '{where}'. Supported values are: {values}.", where, "invalid_value")


def messages(items: Sequence[Mapping[str, Any]], instructions: str | None) -> tuple[dict[str, Any], ...]:
    """What the model is given."""
    turns = [{"role": "developer", "content": instructions}] if instructions else []
    turns += [
        {"role": item["role"], "content": item["content"][0]["text"]} for item in items if item["type"] == "message"
    ]
    if not turns:
        raise invalid("Invalid 'input': it has no message to answer.", "input", "invalid_value")
    return said(turns, len(turns))


def fitting(items: list[Fields], instructions: str | None, chat: Chat, most: int) -> list[Fields]:
    """The end of the conversation that a prompt of at most `most` tokens has room for. It begins with a user's message,
    and what system and developer said stays. Where not even the last question fits, that is what is left.

    Read from its end, so that what is dropped need not be tokenised, and with a few tokens to spare for each message.
    """
    around, each = overhead(chat)

    def cost(item: Fields) -> int:
        return len(chat.encode(item["content"][0]["text"])) + each if item["type"] == "message" else 0

    stays = [item.get("role") in ("system", "developer") for item in items]
    spent = around + len(chat.encode(instructions or "")) + each
    spent += sum(cost(item) for item, stay in zip(items, stays, strict=True) if stay)
    first = len(items)
    for start in sorted({0, *(at for at, item in enumerate(items) if item.get("role") == "user")}, reverse=True):
        spent += sum(cost(items[at]) for at in range(start, first) if not stays[at])
        if spent > most and first < len(items):
            break
        first = start
    return [item for at, item in enumerate(items) if at >= first or stays[at]]
