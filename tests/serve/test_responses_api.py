"""The Responses API over scripts: what is told, what the model is given, and what may be spent."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from mull.serve.errors import busy
from mull.serve.responses_shapes import Items
from tests.serve.responses_tools import (
    PATH,
    SECRETIVE,
    WORD,
    ask,
    made,
    prompts,
    refused,
    script,
    streamed,
)
from tests.serve.tools import call, events, idle, nano_service, post, scripted_service

# -------------------------------------------------------------------------------------------------- what is told


def test_a_response_has_a_thought_an_answer_and_what_they_cost():
    service = scripted_service(script("4"))
    body = made(service, reasoning={"effort": "low", "summary": "auto"}, metadata={"a": "b"}, user="me")
    reasoning, message = body["output"]
    assert message["content"][0]["text"] == "4" and message["role"] == "assistant"
    assert [part["text"] for part in reasoning["summary"]] == ["**the word is xyzzy**\n\nso 4 it is"]
    assert "content" not in reasoning and "encrypted_content" not in reasoning
    thought, answer = service.main.tools.sampler.calls
    sampled = sum(len(c.completions[0].tokens) for c in (thought, answer))
    assert body["usage"]["output_tokens"] == sampled == body["usage"]["total_tokens"] - len(thought.prefix)
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == len(thought.completions[0].tokens)
    assert body["metadata"] == {"a": "b"} and body["user"] == "me" and body["model"] == "nano"
    assert body["reasoning"] == {"summary": "auto", "effort": "low"}
    assert body["mull"]["samples"] == 1 and body["mull"]["ignored"] == []


@pytest.mark.parametrize("summary", [None, "auto", "concise", "detailed"])
def test_summary_says_how_much_is_told(summary):
    body = made(scripted_service(script("4")), reasoning={"summary": summary})
    texts = [part["text"] for part in body["output"][0]["summary"]]
    detailed = ["**the word is xyzzy**\n\nso 4 it is"]
    assert texts == {None: [], "concise": ["**the word is xyzzy**"]}.get(summary, detailed)
    old = made(scripted_service(script("4")), reasoning={"generate_summary": summary})
    assert [part["text"] for part in old["output"][0]["summary"]] == texts
    off = made(scripted_service(script("4"), summaries="none"), reasoning={"summary": summary})
    assert off["output"][0]["summary"] == []


def test_nothing_of_a_hidden_thought_is_in_any_answer(tmp_path):
    service = scripted_service(script("4", "5", "6"), store=tmp_path / "s.db")
    sealed = ["reasoning.encrypted_content"]
    first = made(service, include=sealed)
    _, _, raw = streamed(service, include=sealed, previous_response_id=first["id"])
    last = json.loads(raw.rstrip().split("data: ")[-1])["response"]
    seen = [first, raw]
    for id in (first["id"], last["id"]):
        for path in ("", "?include[]=reasoning.encrypted_content", "/input_items"):
            seen.append(call(service, "GET", f"{PATH}/{id}{path}")[2])
    assert len(str(seen)) > 4000 and WORD not in str(seen)
    shown = scripted_service(script("4", "5"), thoughts="shown")
    assert made(shown)["output"][0]["content"] == [
        {"type": "reasoning_text", "text": SECRETIVE.removesuffix("</think>")}
    ]
    assert WORD in streamed(shown)[2]


@pytest.mark.parametrize("shown", ["hidden", "shown"])
@pytest.mark.parametrize("effort", ["none", "low", "medium"])
def test_a_stream_tells_what_a_whole_response_has(effort, shown):
    """With the same seed; and every stream is as documented."""
    service = nano_service(thoughts=shown, max_samples=4)
    more = {"reasoning": {"effort": effort, "summary": "auto"}, "seed": 7, "input": "a=3;b=a+4;b?"}
    whole, (response, told, raw) = made(service, **more), streamed(service, **more)
    for one in (whole, response):
        for item in one["output"]:
            item["id"] = ""
            if "summary" in item:  # how often it is told how many branches are done is a matter of time
                item["summary"] = [s for s in item["summary"] if "lines of thought have an answer" not in s["text"]]
        for gone in ("id", "created_at", "completed_at", "mull"):
            del one[gone]
        one["usage"]["input_tokens_details"] = {}
    assert whole == response
    assert [item["type"] for item in whole["output"]] == (["reasoning"] if effort != "none" else []) + ["message"]
    assert ("content" in whole["output"][0]) == (shown == "shown" or effort == "none")
    blocks = [block for block in raw.split("\n\n") if block and not block.startswith(":")]
    assert [block.split("\n")[0] for block in blocks] == [f"event: {event['type']}" for event in told]
    assert "id:" not in raw.replace('"', "").split("\n")[0] and not any(b.startswith("id") for b in blocks)
    assert idle(service)


def test_all_branches_are_counted():
    service = nano_service(max_samples=4)
    body = made(service, reasoning={"effort": "high"}, input="a=3;b=a+4;b?")
    assert body["mull"]["samples"] == 4 and sum(vote["count"] for vote in body["mull"]["votes"]) > 1
    usage = body["usage"]
    assert usage["output_tokens_details"]["reasoning_tokens"] > body["mull"]["wasted_tokens"] > 0
    assert usage["output_tokens"] > usage["output_tokens_details"]["reasoning_tokens"]


def test_pings_come_before_the_first_word(monkeypatch):
    monkeypatch.setattr("mull.serve.sse.PATIENCE", 0.05)
    service = scripted_service(script("4"), seconds=0.5, ping_seconds=0.1)
    _, _, raw = streamed(service)
    assert raw.count(": ping\n\n") >= 4


def test_a_fault_in_a_stream_is_an_event():
    service = scripted_service(script("4"))
    service.main.tools.sampler.fail[1] = RuntimeError("the engine's own words")
    status, _, raw = post(service, PATH, ask(stream=True))
    told = events(raw)
    assert status == 200 and told[-1]["type"] == "error" and "own words" not in raw
    assert [e["sequence_number"] for e in told] == list(range(len(told)))
    assert raw.rstrip().split("\n")[-2] == "event: error"


def test_a_refusal_that_comes_late_is_an_event(monkeypatch):
    monkeypatch.setattr("mull.serve.sse.PATIENCE", 0.01)
    service = scripted_service(script("4"))

    @asynccontextmanager
    async def full(*_):
        await asyncio.sleep(0.2)
        raise busy("full", 3)
        yield

    monkeypatch.setattr(service, "job", full)
    assert events(post(service, PATH, ask(stream=True))[2]) == [
        {"type": "error", "sequence_number": 0, "code": "rate_limit_exceeded", "message": "full", "param": None}
    ]
    assert post(service, PATH, ask())[0] == 429


# ------------------------------------------------------------------------------------------ what the model is given


def test_input_may_be_text_or_items():
    service = scripted_service(script(*"abcd"))
    parts = [{"type": "input_text", "text": "wh"}, {"type": "input_text", "text": "at?"}]
    for input in (
        "what?",
        [{"role": "user", "content": "what?"}],
        [{"type": "message", "role": "user", "content": parts}],
        [{"type": "message", "role": "user", "content": [{"type": "text", "text": "what?"}], "id": None}],
    ):
        made(service, input=input)
    assert len(set(prompts(service))) == 1 and "what?" in prompts(service)[0]


def test_conversations_with_instructions_and_earlier_answers():
    service = scripted_service(script("4"))
    earlier = [
        {"type": "message", "role": "developer", "content": "be kind"},
        {"role": "user", "content": "one?"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "so so"}], "content": None},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "1", "annotations": []}, {"type": "refusal", "refusal": " no"}]},
        {"role": "user", "content": "two?"},
    ]  # fmt: skip
    made(service, input=earlier, instructions="be short")
    [prompt] = prompts(service)
    asked = [prompt.index(word) for word in ("be short", "be kind", "one?", "1 no", "two?")]
    assert asked == sorted(asked) and "so so" not in prompt
    assert prompt == service.main.tools.sampler.decode(
        service.main.tools.chat.prompt(
            [
                {"role": "system", "content": "be short\n\nbe kind"},
                {"role": "user", "content": "one?"},
                {"role": "assistant", "content": "1 no"},
                {"role": "user", "content": "two?"},
            ]
        )
    )


def test_previous_response_goes_on_without_its_instructions_and_thoughts(tmp_path):
    service = scripted_service(script("first", "second", "third", "other"), store=tmp_path / "s.db")
    first = made(service, input="one?", instructions="be short")
    second = made(service, input="two?", previous_response_id=first["id"], instructions="be long")
    assert second["previous_response_id"] == first["id"] and second["instructions"] == "be long"
    third = made(service, input="three?", previous_response_id=second["id"])
    assert [[w for w in ("be short", "be long", "one?", "first", "two?", "second", "three?", WORD) if w in p]
            for p in prompts(service)] == [
        ["be short", "one?"],
        ["be long", "one?", "first", "two?"],
        ["one?", "first", "two?", "second", "three?"],
    ]  # fmt: skip
    # A conversation can go on from its middle, and when what was before is gone.
    call(service, "DELETE", f"{PATH}/{first['id']}")
    made(service, input="more?", previous_response_id=second["id"])
    assert "one?" in prompts(service)[-1] and "three?" not in prompts(service)[-1]
    items = call(service, "GET", f"{PATH}/{third['id']}/input_items?order=asc")[2]
    Items.model_validate(items)
    assert [item["type"] for item in items["data"]] == ["message", "reasoning", "message"] * 2 + ["message"]


def test_items_of_stored_responses_can_be_referred_to(tmp_path):
    service = scripted_service(script("first", "second"), store=tmp_path / "s.db")
    first = made(service, input="one?")
    references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    made(service, input=[{"role": "user", "content": "one?"}, *references, {"role": "user", "content": "two?"}])
    assert "first" in prompts(service)[-1] and WORD not in prompts(service)[-1]
    problem = refused(service, ask([{"type": "item_reference", "id": "msg_nobody"}]), 404)
    assert problem["param"] == "input[0].id" and "msg_nobody" in problem["message"]


def test_truncation_drops_the_oldest():
    long = [{"role": "system", "content": "be kind"}]
    for n in range(40):
        long += [
            {"role": "user", "content": f"question {n}? " + "x" * 30},
            {"type": "reasoning", "id": f"rs_{n}", "summary": []},
            {"role": "assistant", "content": f"answer {n}."},
        ]
    long.append({"role": "user", "content": "last?"})
    service = scripted_service(script("4", "5"))
    problem = refused(service, ask(long))
    assert problem["param"] == "input" and problem["code"] == "context_length_exceeded"
    body = made(service, input=long, truncation="auto")
    [prompt] = prompts(service)
    assert "be kind" in prompt and "last?" in prompt and "question 39" in prompt and "question 0" not in prompt
    context = service.main.tools.context
    assert context - 300 < len(service.main.tools.sampler.calls[0].prefix) + 64 + 16 <= context
    assert body["truncation"] == "auto"
    kept = [n for n in range(40) if f"question {n}?" in prompt]
    assert kept == list(range(kept[0], 40)) and f"answer {kept[0] - 1}." not in prompt
    # What may be said in the end needs room, too.
    made(service, input=long, truncation="auto", max_output_tokens=400)
    assert len(service.main.tools.sampler.calls[2].prefix) <= context - 400
    assert refused(service, ask("x" * 5000, truncation="auto"))["code"] == "context_length_exceeded"


# --------------------------------------------------------------------------------------------- what may be spent


def test_a_limit_that_cuts_the_answer_makes_it_incomplete():
    service = scripted_service(script("a very long answer " * 20, "4", thought="x</think>"))
    body = made(service, max_output_tokens=12)
    assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["usage"]["output_tokens"] <= 12 and body["output"][-1]["status"] == "incomplete"
    assert body["max_output_tokens"] == 12
    assert made(service, max_output_tokens=12)["status"] == "completed"


@pytest.mark.parametrize(
    ("more", "thinks"),
    [
        ({}, 64),
        ({"reasoning": {"effort": "minimal"}}, 0),
        ({"reasoning": {"max_tokens": 9}}, 9),
        ({"thinking_token_budget": 5, "reasoning": {"max_tokens": 9}}, 5),
        ({"thinking_token_budget": 0}, 0),
        ({"enable_thinking": False}, 0),
        ({"enable_thinking": True}, 64),
        ({"max_output_tokens": 30}, 15),
    ],
)
def test_thinking_budgets(more, thinks):
    service = scripted_service(lambda prefix: "word " * 100)
    body = made(service, **more)
    assert (body["output"][0]["type"] == "reasoning") == bool(thinks)
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] <= thinks
    spent = [c.params.max_tokens for c in service.main.tools.sampler.calls]
    assert len(spent) == 1 if not thinks else spent[0] == thinks


def test_temperature_and_top_p():
    service = scripted_service(script("4", "5"))
    body = made(service, temperature=0.25, top_p=0.5)
    assert body["temperature"] == 0.25 and body["top_p"] == 0.5
    assert {(c.params.temperature, c.params.top_p) for c in service.main.tools.sampler.calls} == {(0.25, 0.5)}
    many = nano_service(max_samples=2)
    status, headers, body = post(many, PATH, ask("a=3;a?", temperature=0.5, reasoning={"effort": "high"}))
    assert status == 200 and body["temperature"] == 1 and headers["x-mull-ignored"] == "temperature"
    assert body["mull"]["ignored"] == ["temperature"]


def test_a_seed_fixes_what_is_sampled():
    service = nano_service()
    texts = [
        str(streamed(service, input="y=1;h=y+14;k=h*5;v=k-8;v?", seed=seed, reasoning={"summary": "auto"})[0]["output"])
        for seed in (1, 1, 2)
    ]
    thoughts = [t.split("'id'")[1].partition("summary")[2] for t in texts]
    assert thoughts[0] == thoughts[1] != thoughts[2]
