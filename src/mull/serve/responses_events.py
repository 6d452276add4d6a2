"""From a job's events to a response of the Responses API, and to the events that tell it on the way. No web server.

    created, in_progress
    output_item.added      reasoning   (not where the plan has no thought)
        reasoning_summary_part.added, reasoning_summary_text.delta, .done, reasoning_summary_part.done     each section
        content_part.added, reasoning_text.delta …, .done, content_part.done                   raw thought, where shown
    output_item.done
    output_item.added      message
        content_part.added, output_text.delta …, output_text.done, content_part.done
    output_item.done
    completed | incomplete

A response that is not streamed is made the same way, and its events are dropped: both are always the same.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from mull.serve.errors import ApiError
from mull.serve.job import Delta, Event, Result, Thought
from mull.serve.plan import Plan
from mull.serve.summary import Section

Fields = dict[str, Any]
Detail = Literal["", "titles", "all"]


def new_id(kind: str) -> str:
    """`resp`, `rs` or `msg`, and what nobody can guess."""
    return f"{kind}_{secrets.token_hex(24)}"


class Telling:
    """One response while it is told. `head` are its fields that are known from the beginning; `shown`: raw thoughts may
    be seen; `seal`: makes `encrypted_content` of a thought and its item's id, None where none is wanted."""

    def __init__(
        self,
        head: Fields,
        *,
        shown: bool = False,
        detail: Detail = "",
        seal: Callable[[str, str], str] | None = None,
    ):
        self.response: Fields = {**head, "status": "in_progress", "output": [], "usage": None}
        self.thought = ""
        self._shown, self._detail, self._seal = shown, detail, seal
        self._single = False
        self._number = 0  # of the next event
        self._reasoning = self._message = ""  # ids of the items under way
        self._heard = ""  # of the thought, with the white space around it
        self._summary: list[str] = []
        self._text = ""

    # ---------------------------------------------------------------------------------------------- in order

    def begin(self, plan: Plan) -> Iterator[Fields]:
        self._single = plan.single
        yield self._event("response.created", response=self._snapshot())
        yield self._event("response.in_progress", response=self._snapshot())
        if plan.think_tokens:
            self._reasoning = new_id("rs")
            yield self._event("response.output_item.added", item=self._reasoning_item("in_progress"))

    def tell(self, event: Event) -> Iterator[Fields]:
        if isinstance(event, Section):
            if self._detail and self._reasoning:
                yield from self._section(event)
        elif isinstance(event, Thought):
            self._heard += event.text
            yield from self._think(self._heard.strip())
        elif isinstance(event, Delta):
            # Of many branches, which thought the answer comes from is known with the result, which is next.
            if self._single:
                yield from self._say(event.text)
        elif isinstance(event, Result):
            if not self._text:
                yield from self._think(event.thought)
                yield from self._say(event.content)
            yield from self._end(event)

    def last(self) -> Fields:
        """What all ends with, once `tell` was given the result."""
        return self._event(f"response.{self.response['status']}", response=self._snapshot())

    def failed(self, problem: ApiError) -> Fields:
        return self._event("error", code=problem.code, message=problem.message, param=problem.param)

    # ------------------------------------------------------------------------------------------------- parts

    def _section(self, section: Section) -> Iterator[Fields]:
        text = f"**{section.title}**" + (f"\n\n{section.text}" if self._detail == "all" else "")
        at: Fields = {"item_id": self._reasoning, "output_index": 0, "summary_index": len(self._summary)}
        self._summary.append(text)
        kind = "response.reasoning_summary"
        yield self._event(f"{kind}_part.added", **at, part=_summary(""))
        yield self._event(f"{kind}_text.delta", **at, delta=text)
        yield self._event(f"{kind}_text.done", **at, text=text)
        yield self._event(f"{kind}_part.done", **at, part=_summary(text))

    def _think(self, thought: str) -> Iterator[Fields]:
        """`thought` is all of it so far."""
        if not self._reasoning or not thought.startswith(self.thought) or thought == self.thought:
            return
        at: Fields = {"item_id": self._reasoning, "output_index": 0, "content_index": 0}
        new, begins = thought[len(self.thought) :], not self.thought
        self.thought = thought
        if self._shown:
            if begins:
                yield self._event("response.content_part.added", **at, part=_raw(""))
            yield self._event("response.reasoning_text.delta", **at, delta=new)

    def _thought_is_over(self) -> Iterator[Fields]:
        if self._shown and self.thought:
            at: Fields = {"item_id": self._reasoning, "output_index": 0, "content_index": 0}
            yield self._event("response.reasoning_text.done", **at, text=self.thought)
            yield self._event("response.content_part.done", **at, part=_raw(self.thought))
        item = self._reasoning_item("completed")
        if self._seal:
            item["encrypted_content"] = self._seal(self.thought, self._reasoning)
        yield self._event("response.output_item.done", item=item)
        self.response["output"].append(item)
        self._reasoning = ""

    def _say(self, text: str) -> Iterator[Fields]:
        if not self._message:
            if self._reasoning:
                yield from self._thought_is_over()
            self._message = new_id("msg")
            yield self._event("response.output_item.added", item=self._message_item("in_progress", []))
            yield self._event("response.content_part.added", **self._at(), part=spoken(""))
        self._text += text
        yield self._event("response.output_text.delta", **self._at(), delta=text, logprobs=[])

    def _end(self, result: Result) -> Iterator[Fields]:
        # A stream cannot take back what it said: where the answer became another one, what was said is all there is.
        cut = result.finish == "length" or self._text != result.content
        item = self._message_item("incomplete" if cut else "completed", [spoken(self._text)])
        yield self._event("response.output_text.done", **self._at(), text=self._text, logprobs=[])
        yield self._event("response.content_part.done", **self._at(), part=spoken(self._text))
        yield self._event("response.output_item.done", item=item)
        self.response["output"].append(item)
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": None if cut else int(time.time()),
            "usage": usage(result),
        }

    # ------------------------------------------------------------------------------------------------ pieces

    def _event(self, type: str, **fields: Any) -> Fields:
        if "item" in fields:
            fields = {"output_index": len(self.response["output"]), **fields}
        self._number += 1
        return {"type": type, "sequence_number": self._number - 1, **fields}

    def _snapshot(self) -> Fields:
        return {**self.response, "output": [*self.response["output"]]}

    def _at(self) -> Fields:
        return {"item_id": self._message, "output_index": len(self.response["output"]), "content_index": 0}

    def _reasoning_item(self, status: str) -> Fields:
        item: Fields = {
            "id": self._reasoning,
            "type": "reasoning",
            "status": status,
            "summary": [_summary(text) for text in self._summary],
        }
        return item | ({"content": [_raw(self.thought)]} if self._shown and self.thought else {})

    def _message_item(self, status: str, content: list[Fields]) -> Fields:
        return {"id": self._message, "type": "message", "status": status, "role": "assistant", "content": content}


def spoken(text: str) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def usage(result: Result) -> Fields:
    """All that was sampled is output, in whichever branch; what is no answer is reasoning."""
    return {
        "input_tokens": result.prompt_tokens,
        "input_tokens_details": {"cached_tokens": result.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": result.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": result.reasoning_tokens},
        "total_tokens": result.prompt_tokens + result.completion_tokens,
    }


def _summary(text: str) -> Fields:
    return {"type": "summary_text", "text": text}


def _raw(text: str) -> Fields:
    return {"type": "reasoning_text", "text": text}
