"""The `openai` package against mull, as its users write it. Runs where that package is, without mull.

MULL_URL, MULL_KEY: a server as it comes. What does not fit the package's own types is an error of this client.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import checks
from openai import AsyncOpenAI, NotFoundError, OpenAI

URL, KEY, MODEL = os.environ["MULL_URL"] + "/v1", os.environ["MULL_KEY"], "nano"
ASK: list[Any] = [{"role": "user", "content": "y=1;h=y+14;k=h*5;v=k-8;v?"}]
SEALED: Any = ["reasoning.encrypted_content"]
client = OpenAI(base_url=URL, api_key=KEY, timeout=600, max_retries=0, _strict_response_validation=True)


def check_models() -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "mull")


# --------------------------------------------------------------------------------------------------------- chat


def _counted(usage: Any) -> None:
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def check_chat() -> None:
    made = client.chat.completions.create(model=MODEL, messages=ASK, reasoning_effort="low", seed=1)
    (choice,) = made.choices
    assert choice.message.content and choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    extra: Any = choice.message.model_extra
    assert extra["reasoning_content"] and extra["reasoning_content"] == extra["reasoning"]
    _counted(made.usage)
    again = client.chat.completions.create(model=MODEL, messages=ASK, reasoning_effort="low", seed=1)
    assert again.choices == made.choices and again.id != made.id


def check_chat_stream() -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, reasoning_effort="low", seed=1, stream_options={"include_usage": True}
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    content = "".join(event.delta for event in events if event.type == "content.delta")
    chunks = [event.chunk for event in events if event.type == "chunk"]
    deltas: list[Any] = [choice.delta.model_extra for chunk in chunks for choice in chunk.choices]
    reasoning = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    whole = client.chat.completions.create(model=MODEL, messages=ASK, reasoning_effort="low", seed=1)
    message: Any = whole.choices[0].message
    assert content == final.choices[0].message.content == message.content
    assert reasoning == message.reasoning_content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and final.usage and whole.usage
    _counted(final.usage)
    assert final.usage.completion_tokens == whole.usage.completion_tokens


def check_chat_options() -> None:
    """Fields that this package does not know go through `extra_body`."""
    search = {"mull": {"strategy": "vote", "samples": 3}}
    made: Any = client.chat.completions.create(model=MODEL, messages=ASK, n=2, logprobs=True, extra_body=search)
    assert made.mull["strategy"] == "vote" and made.mull["ignored"] == ["logprobs"]
    assert sum(vote["count"] for vote in made.mull["votes"]) <= 6 and len(made.choices) == 2
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=ASK, presence_penalty=1, extra_body={"thinking_token_budget": 0}
    )
    assert raw.headers["x-mull-ignored"] == "presence_penalty" and raw.headers["x-request-id"].startswith("req_")
    spent: Any = raw.parse().usage
    assert spent.completion_tokens_details.reasoning_tokens <= 2
    assert made.usage.completion_tokens_details.reasoning_tokens > 2


def check_many_at_once() -> None:
    async def ask(ours: AsyncOpenAI, i: int) -> tuple[str, str | None]:
        question: list[Any] = [{"role": "user", "content": f"a={i};b=a+1;b?"}]
        made = await ours.chat.completions.create(model=MODEL, messages=question, reasoning_effort="low", seed=i)
        return made.id, made.choices[0].message.content

    async def all_of_them(n: int) -> tuple[list[tuple[str, str | None]], tuple[str, str | None]]:
        async with AsyncOpenAI(base_url=URL, api_key=KEY, timeout=600, max_retries=0) as ours:
            crowd = await asyncio.gather(*[ask(ours, i) for i in range(n)])
            return crowd, await ask(ours, n - 1)

    crowd, alone = asyncio.run(all_of_them(16))
    assert len({id for id, _ in crowd}) == 16 and all(content for _, content in crowd)
    assert crowd[-1][1] == alone[1]  # a seed says in a crowd what it says alone


# ---------------------------------------------------------------------------------------------------- responses


def check_responses() -> None:
    made = client.responses.create(
        model=MODEL, input="a=3;b=a+4;b?", reasoning={"effort": "low", "summary": "auto"}, metadata={"a": "b"}
    )
    thought, message = made.output
    assert made.status in ("completed", "incomplete") and made.metadata == {"a": "b"} and made.output_text
    assert thought.type == "reasoning" and thought.summary and thought.summary[0].text
    assert message.type == "message" and message.role == "assistant"
    usage = made.usage
    assert usage and 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    stored = client.responses.retrieve(made.id)
    assert stored.output_text == made.output_text
    more = client.responses.create(model=MODEL, input="b=2;c=b+1;c?", previous_response_id=made.id)
    assert more.output_text and more.usage and more.usage.input_tokens > usage.input_tokens
    (asked,) = client.responses.input_items.list(made.id)
    assert asked.type == "message" and asked.content[0].type == "input_text" and asked.content[0].text == "a=3;b=a+4;b?"
    client.responses.delete(made.id)
    try:
        client.responses.retrieve(made.id)
    except NotFoundError as problem:
        assert problem.code == "response_not_found"
    else:
        raise AssertionError("a response that was deleted is still there")


def check_sealed_thoughts() -> None:
    """A conversation that the server does not keep: its thoughts travel with the client, unread."""
    asked: list[Any] = [{"role": "user", "content": "a=3;b=a+4;b?"}]
    made = client.responses.create(model=MODEL, input=asked, store=False, include=SEALED)
    thought = made.output[0]
    assert thought.type == "reasoning" and thought.encrypted_content
    asked += [item.model_dump(exclude_none=True) for item in made.output]
    asked.append({"role": "user", "content": "b=2;c=b+1;c?"})
    more = client.responses.create(model=MODEL, input=asked, store=False, include=SEALED)
    assert more.output_text
    try:
        client.responses.retrieve(made.id)
    except NotFoundError:
        return
    raise AssertionError("a response that was not to be stored is there")


def check_responses_stream() -> None:
    with client.responses.stream(
        model=MODEL, input="a=3;b=a+4;b?", reasoning={"effort": "low", "summary": "detailed"}
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type.removeprefix("response.") for event in events))
    order = [
        *(
            "created",
            "in_progress",
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
        ),
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done"),
    ]
    assert kinds[:-1] == order and kinds[-1] in ("completed", "incomplete")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text and text
    summary = "".join(event.delta for event in events if event.type == "response.reasoning_summary_text.delta")
    thought = final.output[0]
    assert thought.type == "reasoning" and summary == "".join(part.text for part in thought.summary)
    assert final.usage and final.usage.output_tokens_details.reasoning_tokens > 0


# -------------------------------------------------------------------------------------------------- completions


def check_completions() -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "a=3;b=a+4;b?", "max_tokens": 8, "seed": 3}
    whole = client.completions.create(**asked, logprobs=2)
    (choice,) = whole.choices
    told = choice.logprobs
    assert told and told.tokens and told.token_logprobs and told.text_offset
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset)
    assert all(value <= 0 for value in told.token_logprobs)
    # OpenAI has no value for the first token of all, and no finish before the last chunk. The types do not know that.
    loose = OpenAI(base_url=URL, api_key=KEY, timeout=600, max_retries=0)
    stream = loose.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == choice.text
    echoed = loose.completions.create(**asked, logprobs=2, echo=True).choices[0]
    assert echoed.text == asked["prompt"] + choice.text and echoed.logprobs
    values: Any = echoed.logprobs.token_logprobs
    assert values[0] is None and all(value <= 0 for value in values[1:])
    assert all(abs(a - b) < 1e-4 for a, b in zip(values[-len(told.tokens) :], told.token_logprobs, strict=True))


checks.run(globals())
