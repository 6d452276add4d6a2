"""Summaries that the model writes, as the APIs and the page tell them."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

import pytest

from mull.serve.job import follow
from mull.serve.plan import Wish
from mull.serve.summary import Section, Summary
from mull.serve.written import INSTRUCTION
from tests.serve.test_service import TALK, counted, empty
from tests.serve.tools import ask, events, nano, post, scripted_service
from tests.serve.written_tools import (
    GOOD,
    ONE,
    QUOTES,
    THOUGHT,
    Model,
    said,
)


def served(texts: list[str], **more: Any) -> Any:
    """A service and its model, which answers once it has been asked for all of these."""

    class Late(Model):
        wanted = True

        async def sample(self, prefix_tokens, params, n=1):
            if self.chat.decode(prefix_tokens).endswith("</think>") and INSTRUCTION not in self.chat.decode(
                prefix_tokens
            ):
                end = time.monotonic() + 10
                while len(self.prompts) < len(texts) and time.monotonic() < end and self.wanted:
                    await asyncio.sleep(0.002)
                await asyncio.sleep(0.02)
            return await super().sample(prefix_tokens, params, n)

    model = Late(texts)
    made = {"summaries": "model", "think_tokens": 400, "effort": "low", **more}
    return scripted_service(lambda prefix: None, sampler=model, **made), model


TOLD = "\n\n".join(f"**{s.title}**\n\n{s.text}" for s in [*GOOD[:2], QUOTES[2]])


@pytest.mark.parametrize("stream", [False, True])
def test_chat_tells_it(stream: bool):
    service, model = served([said(s) for s in GOOD[:2]])
    _, _, body = post(service, "/v1/chat/completions", ask(stream=stream))
    if stream:
        chunks = events(body)[:-1]
        text = "".join(c["choices"][0]["delta"].get("reasoning_content", "") for c in chunks)
        mull = chunks[-1]["mull"]
    else:
        text, mull = body["choices"][0]["message"]["reasoning_content"], body["mull"]
        assert body["usage"]["completion_tokens"] == model.sampled
    assert text == TOLD and mull["wasted_tokens"] == 0
    assert mull["summary_tokens"] == sum(len(nano()[1].encode(said(s))) + 1 for s in GOOD[:2])
    assert counted(service, "summary_tokens_total") == mull["summary_tokens"] and empty(service)
    assert counted(service, "summary_sections_total", how="written") == 2
    assert counted(service, "summary_sections_total", how="quoted") == 1
    assert counted(service, "reasoning_tokens_total") + counted(service, "answer_tokens_total") == model.sampled


def test_responses_and_the_page_tell_it():
    service, _ = served([said(s) for s in GOOD[:2]])
    _, _, body = post(service, "/v1/responses", {"input": "which?", "reasoning": {"summary": "auto"}})
    assert "\n\n".join(part["text"] for part in body["output"][0]["summary"]) == TOLD
    assert body["mull"]["summary_tokens"] > 0
    service, _ = served([said(s) for s in GOOD[:2]], thoughts="shown")  # the page shows both
    _, _, text = post(service, "/mull/ask", ask())
    told = [one for one in events(text) if isinstance(one, dict) and one.keys() == {"title", "text"}]
    assert [Section(**one) for one in told] == [*GOOD[:2], QUOTES[2]]


@pytest.mark.parametrize(
    ("path", "body", "settings"),
    [
        ("/v1/chat/completions", ask(include_reasoning=False), {}),
        ("/v1/chat/completions", ask(), {"thoughts": "shown"}),
        ("/v1/responses", {"input": "which?"}, {}),
        ("/v1/chat/completions", ask(), {"summaries": "quotes"}),
    ],
)
def test_the_apis_have_nothing_written_that_they_do_not_tell(path: str, body: Any, settings: Any):
    service, model = served([], **settings)
    status, _, answer = post(service, path, body)
    assert status == 200 and model.prompts == [] and answer["mull"]["summary_tokens"] == 0


def test_choices_add_up():
    service, model = served([said(s) for s in GOOD[:2]] * 4)
    model.wanted = False
    _, _, body = post(service, "/v1/chat/completions", ask(n=2))
    assert body["usage"]["completion_tokens"] == model.sampled
    assert body["mull"]["summary_tokens"] == counted(service, "summary_tokens_total") > 0


def test_a_job_that_was_left_has_its_sections_counted():
    service, _ = served([said(GOOD[0]), "x", "never asked for"])

    async def leave():
        async with service.job(Wish(TALK, effort="low"), "a") as one, aclosing(follow(one, tick=0.001)) as stream:
            async for event in stream:
                if event == GOOD[0]:
                    return one.live.sampled

    thought = asyncio.run(leave())
    spent = counted(service, "summary_tokens_total")
    assert thought and spent >= len(nano()[1].encode(said(GOOD[0]))) and empty(service)
    assert counted(service, "reasoning_tokens_total") == thought + spent
    assert counted(service, "wasted_tokens_total") == thought and counted(
        service, "requests_total", effort="low", outcome="cancelled"
    )


def test_the_parts_are_those_of_the_quotations():
    summary = Summary(ONE)
    assert [*summary.push(THOUGHT), *summary.rest(THOUGHT, ())] == QUOTES
