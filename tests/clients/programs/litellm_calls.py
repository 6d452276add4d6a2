"""LiteLLM against mull, by the two providers that its users take for such a server. Runs where it is, without mull.

MULL_URL, MULL_KEY: a server as it comes.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import checks
import litellm

HOW: dict[str, Any] = {
    "api_base": os.environ["MULL_URL"] + "/v1",
    "api_key": os.environ["MULL_KEY"],
    "timeout": 600,
    "max_retries": 0,
}
ASK = [{"role": "user", "content": "y=1;h=y+14;k=h*5;v=k-8;v?"}]
PROVIDERS = ("openai", "hosted_vllm")


def _counted(usage: Any) -> None:
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def _whole(provider: str, **more: Any) -> Any:
    ask = {"model": f"{provider}/nano", "messages": ASK, "seed": 1, "reasoning_effort": "low", **more}
    return litellm.completion(**ask, **HOW, allowed_openai_params=["reasoning_effort"])


def check_completion() -> None:
    for provider in PROVIDERS:
        made = _whole(provider)
        (choice,) = made.choices
        assert choice.message.content and choice.finish_reason in ("stop", "length"), provider
        assert choice.message.reasoning_content, provider
        _counted(made.usage)


def check_stream() -> None:
    for provider in PROVIDERS:
        whole = _whole(provider)
        chunks = list(_whole(provider, stream=True, stream_options={"include_usage": True}))
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
        assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content, provider
        thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        assert thought == whole.choices[0].message.reasoning_content, provider
        (usage,) = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
        _counted(usage)
        assert usage.completion_tokens == whole.usage.completion_tokens, provider
        built: Any = litellm.stream_chunk_builder(chunks)
        assert built.choices[0].message.content == whole.choices[0].message.content, provider
        assert built.choices[0].message.reasoning_content == thought, provider


def check_async_stream() -> None:
    async def read() -> str:
        stream: Any = await litellm.acompletion(model="openai/nano", messages=ASK, stream=True, **HOW)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    assert asyncio.run(read())


def check_responses() -> None:
    made: Any = litellm.responses(model="openai/nano", input="a=3;b=a+4;b?", reasoning={"summary": "auto"}, **HOW)
    assert [item.type for item in made.output] == ["reasoning", "message"]
    assert made.output[1].content[0].text and made.output[0].summary[0]
    assert made.usage.output_tokens_details.reasoning_tokens > 0


def check_text_completion() -> None:
    made: Any = litellm.text_completion(model="text-completion-openai/nano", prompt="a=3;b=", max_tokens=4, **HOW)
    assert made.choices[0].text and made.usage.completion_tokens <= 4


def check_errors() -> None:
    """Each status is the exception that LiteLLM's routers and fallbacks look for."""
    cases: list[tuple[type[Exception], dict[str, Any]]] = [
        (litellm.NotFoundError, {"model": "openai/gpt-9"}),
        (litellm.AuthenticationError, {"api_key": "wrong"}),
        (litellm.BadRequestError, {"messages": []}),
        (litellm.ContextWindowExceededError, {"messages": [{"role": "user", "content": "a" * 50_000}]}),
    ]
    for kind, more in cases:
        try:
            litellm.completion(**{"model": "openai/nano", "messages": ASK, **HOW, **more})
        except Exception as problem:
            assert type(problem) is kind, (kind, type(problem), problem)
        else:
            raise AssertionError(f"no {kind.__name__}")


checks.run(globals())
