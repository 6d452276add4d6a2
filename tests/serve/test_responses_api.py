"""The Responses API over scripts: what the model is given, what is told, stored and refused."""

import asyncio
import json
import sqlite3
from contextlib import asynccontextmanager

import pytest

from mull.errors import UserError
from mull.serve import responses_store
from mull.serve.app import make_app
from mull.serve.errors import busy
from mull.serve.responses_shapes import Deleted, Items, Responded
from mull.serve.shapes import ErrorBody
from tests.serve.responses_tools import checked
from tests.serve.tools import call, events, idle, nano_service, post, scripted_service

PATH = "/v1/responses"
SECRETIVE = "the word is xyzzy\nso 4 it is</think>"
WORD = "xyzzy"


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


# ------------------------------------------------------------------------------------------------ what is stored


def test_stored_responses_can_be_had_again(tmp_path):
    service = scripted_service(script("4"), store=tmp_path / "s.db")
    body = made(service, include=["reasoning.encrypted_content"], reasoning={"summary": "auto"})
    sealed = body["output"][0].pop("encrypted_content")
    status, _, again = call(service, "GET", f"{PATH}/{body['id']}")
    assert status == 200 and again == body
    items = call(service, "GET", f"{PATH}/{body['id']}/input_items")[2]
    Items.model_validate(items)
    [item] = items["data"]
    assert item["content"] == [{"type": "input_text", "text": "what?"}] and items["first_id"] == item["id"]
    status, _, gone = call(service, "DELETE", f"{PATH}/{body['id']}")
    Deleted.model_validate(gone)
    assert status == 200 and gone["id"] == body["id"]
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        status, _, problem = call(service, method, f"{PATH}/{body['id']}{path}")
        assert status == 404 and ErrorBody.model_validate(problem).error.code == "response_not_found"
    assert refused(service, ask(previous_response_id=body["id"]))["code"] == "previous_response_not_found"
    assert sealed


def test_what_is_not_to_be_stored_is_not(tmp_path):
    service = scripted_service(script("4", "5"), store=tmp_path / "s.db")
    for store in (False, None):
        body = made(service, store=store)
        assert body["store"] is (store is None)
        assert (call(service, "GET", f"{PATH}/{body['id']}")[0] == 200) is (store is None)


def test_a_response_that_cannot_be_stored_is_given_all_the_same(tmp_path, monkeypatch, caplog):
    async def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(responses_store.Store, "put", full)
    service = scripted_service(script("4", "5"))
    assert made(service)["store"] is False and "disk is full" in caplog.text
    assert streamed(service)[0]["store"] is False


def test_input_items_come_in_pages(tmp_path):
    service = scripted_service(script("4"), store=tmp_path / "s.db")
    turns = [{"role": ("user", "assistant")[n % 2], "content": str(n), "id": f"msg_{n}"} for n in range(45)]
    path = f"{PATH}/{made(service, input=turns)['id']}/input_items"
    seen, query = [], "?limit=20"
    while True:
        page = call(service, "GET", path + query)[2]
        Items.model_validate(page)
        seen += [item["content"][0]["text"] for item in page["data"]]
        if not page["has_more"]:
            break
        assert page["last_id"] == page["data"][-1]["id"] and len(page["data"]) == 20
        query = f"?limit=20&after={page['last_id']}"
    assert seen == [str(n) for n in reversed(range(45))]
    asc = call(service, "GET", path + "?order=asc&limit=2&after=msg_3")[2]["data"]
    assert [item["id"] for item in asc] == ["msg_4", "msg_5"]
    assert call(service, "GET", path + "?after=msg_0")[2]["data"] == []
    for bad, param in (("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order")):
        status, _, problem = call(service, "GET", f"{path}?{bad}")
        assert status == 400 and problem["error"]["param"] == param
    assert call(service, "GET", path + "?after=nobody")[0] == 404


def test_nothing_runs_in_the_background(tmp_path):
    service = scripted_service(script("4"), store=tmp_path / "s.db")
    body = made(service)
    status, _, problem = call(service, "POST", f"{PATH}/{body['id']}/cancel")
    assert status == 400 and "Cannot cancel" in problem["error"]["message"]
    assert call(service, "GET", f"{PATH}/{body['id']}?stream=true")[0] == 400
    assert call(service, "GET", f"{PATH}/{body['id']}?stream=false")[0] == 200


# ------------------------------------------------------------------------------------------- encrypted content


def test_encrypted_content_comes_back_or_not_at_all(tmp_path):
    secret = tmp_path / "secret"
    service = scripted_service(script(*"1234567"), secret=secret)
    first = made(service, include=["reasoning.encrypted_content"], store=False, input="one?")
    output = first["output"]
    assert len(output[0]["encrypted_content"]) > 60

    def turn(change=lambda item: item, **options):
        items = [{"role": "user", "content": "one?"}, change(dict(output[0])), output[1]]
        return {**ask([*items, {"role": "user", "content": "two?"}], store=False), **options}

    status, _, body = post(service, PATH, turn())  # another process with the same secret
    assert status == 200, body
    assert WORD not in prompts(service)[-1] and "1" in prompts(service)[-1]
    assert post(service, PATH, turn(lambda item: item | {"id": None}))[0] == 200  # clients drop the id
    for change in (
        lambda item: item | {"encrypted_content": item["encrypted_content"][:-4]},
        lambda item: item | {"encrypted_content": "AAAA"},
        lambda item: item | {"encrypted_content": ""},
        lambda item: item | {"id": "rs_other"},
        lambda item: item | {"encrypted_content": item["encrypted_content"].swapcase()},
        lambda item: item | {"encrypted_content": SECRETIVE},
    ):
        problem = refused(service, turn(change))
        assert problem["code"] == "invalid_encrypted_content" and problem["param"] == "input[1].encrypted_content"
    assert post(service, PATH, turn())[0] == 200
    for other in (
        scripted_service(script("1"), secret=secret, name="other"),
        scripted_service(script("1"), secret=tmp_path / "secret2"),
        scripted_service(script("1")),
    ):
        assert refused(other, turn(model=other.main.name))["code"] == "invalid_encrypted_content"


def test_a_stored_thought_can_be_sealed_later(tmp_path):
    service = scripted_service(script("4", "5"), store=tmp_path / "s.db", secret=tmp_path / "secret")
    body = made(service)
    for query in ("include[]=reasoning.encrypted_content", "include=reasoning.encrypted_content"):
        found = call(service, "GET", f"{PATH}/{body['id']}?{query}")[2]
        Responded.model_validate(found)
        assert found["output"][0]["encrypted_content"]
    made(service, input=[*found["output"], {"role": "user", "content": "more?"}])


def test_keys_do_not_see_each_other(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    service = scripted_service(script("4", "5"), store=tmp_path / "s.db", secret=tmp_path / "secret", keys=keys)
    mine, yours = ({"headers": {"Authorization": f"Bearer {key}"}} for key in ("one", "two"))
    assert post(service, PATH, ask())[0] == 401
    sealed = ["reasoning.encrypted_content"]
    status, _, body = post(service, PATH, ask(include=sealed), **mine)
    assert status == 200
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        assert call(service, method, f"{PATH}/{body['id']}{path}", **yours)[0] == 404
        assert call(service, method, f"{PATH}/{body['id']}{path}")[0] == 401
    for stolen, code in (
        (ask(previous_response_id=body["id"]), "previous_response_not_found"),
        (ask([{"type": "item_reference", "id": body["output"][1]["id"]}]), "item_not_found"),
        (ask([*body["output"], {"role": "user", "content": "more?"}]), "invalid_encrypted_content"),
    ):
        assert post(service, PATH, stolen, **yours)[2]["error"]["code"] == code
    assert call(service, "GET", f"{PATH}/{body['id']}", **mine)[0] == 200


# ------------------------------------------------------------------------------------------------ what is refused

USER = {"role": "user", "content": "hi"}
BAD = [
    ({"model": "nano"}, 400, "input"),
    ({"input": "hi", "model": "gpt-9"}, 404, "model"),
    (ask(None), 400, "input"),
    (ask([]), 400, "input"),
    (ask(5), 400, "input"),
    (ask({"role": "user"}), 400, "input"),
    (ask([5]), 400, "input[0]"),
    (ask([USER] * 1000), 400, "input"),
    (ask([USER, {"role": "robot", "content": "hi"}]), 400, "input[1].role"),
    (ask([{"content": "hi"}]), 400, "input[0].role"),
    (ask([{"role": "user"}]), 400, "input[0].content"),
    (ask([{"role": "user", "content": 5}]), 400, "input[0].content"),
    (ask([{"role": "user", "content": [5]}]), 400, "input[0].content[0]"),
    (ask([{"role": "user", "content": [{"type": "input_text"}]}]), 400, "input[0].content[0].text"),
    (ask([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]), 400, "input[0].content[0].type"),
    (ask([{"role": "user", "content": [{"type": "input_file"}]}]), 400, "input[0].content[0].type"),
    (ask([{"type": "function_call", "name": "f"}]), 400, "input[0].type"),
    (ask([{"type": ["message"], "role": "user"}]), 400, "input[0].type"),
    (ask([{"type": "message", "role": "user", "content": "x", "id": "x" * 65}]), 400, "input[0].id"),
    (ask([{"type": "message", "role": "user", "content": "x", "id": 5}]), 400, "input[0].id"),
    (ask([{"type": "item_reference"}]), 400, "input[0].id"),
    (ask([{"type": "reasoning", "summary": [], "id": "rs_1"}]), 400, "input"),
    (ask([USER, {"type": "reasoning", "summary": "x"}]), 400, "input[1].summary"),
    (ask([USER, {"type": "reasoning", "summary": [{"type": "x"}]}]), 400, "input[1].summary[0].type"),
    (ask([USER, {"type": "reasoning", "encrypted_content": 5}]), 400, "input[1].encrypted_content"),
    (ask([USER, {"type": "reasoning", "encrypted_content": "x"}]), 400, "input[1].encrypted_content"),
    (ask([USER, {"role": "system", "content": "late"}]), 400, "input"),  # nano's template has it first alone
    (ask(instructions=5), 400, "instructions"),
    (ask(previous_response_id="resp_nobody"), 400, "previous_response_id"),
    (ask(previous_response_id=5), 400, "previous_response_id"),
    (ask(store="yes"), 400, "store"),
    (ask(include=["everything"]), 400, "include[0]"),
    (ask(include="reasoning.encrypted_content"), 400, "include"),
    (ask(reasoning={"effort": "huge"}), 400, "reasoning.effort"),
    (ask(reasoning={"summary": "long"}), 400, "reasoning.summary"),
    (ask(reasoning="high"), 400, "reasoning"),
    (ask(reasoning={"max_tokens": -1}), 400, "reasoning.max_tokens"),
    (ask(thinking_token_budget=-1), 400, "thinking_token_budget"),
    (ask(max_output_tokens=0), 400, "max_output_tokens"),
    (ask(max_output_tokens="9"), 400, "max_output_tokens"),
    (ask(temperature=3), 400, "temperature"),
    (ask(top_p=-1), 400, "top_p"),
    (ask(stream="yes"), 400, "stream"),
    (ask(background=True), 400, "background"),
    (ask(tools=[{"type": "web_search"}]), 400, "tools"),
    (ask(tool_choice="required"), 400, "tool_choice"),
    (ask(tool_choice={"type": "function", "name": "f"}), 400, "tool_choice"),
    (ask(conversation="conv_1"), 400, "conversation"),
    (ask(prompt={"id": "p"}), 400, "prompt"),
    (ask(text={"format": {"type": "json_schema", "name": "x", "schema": {}}}), 400, "text.format.type"),
    (ask(text={"format": {"type": "json_object"}}), 400, "text.format.type"),
    (ask(truncation="some"), 400, "truncation"),
    (ask(metadata={"a": 5}), 400, "metadata.a"),
    (ask(metadata={str(n): "" for n in range(17)}), 400, "metadata"),
    (ask(metadata={"a": "x" * 513}), 400, "metadata.a"),
    (ask(mull={"strategy": "magic"}), 400, "mull.strategy"),
    (ask("x" * 3000), 400, "input"),
]  # fmt: skip


@pytest.fixture(scope="module")
def refusing():
    return scripted_service([])  # a model that says nothing: whatever reaches it fails


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "param"), BAD, ids=[f"{n}-{bad[2]}" for n, bad in enumerate(BAD)])
def test_bad_requests_are_refused_with_the_parameter(refusing, body, status, param, stream):
    if stream and body.get("stream") is None:
        body = {**body, "stream": True}
    problem = refused(refusing, body, status)
    assert problem["type"] == "invalid_request_error" and len(problem["message"]) > 20
    named = problem["param"] or ""
    assert named == param or (param.startswith("metadata") and named.startswith("metadata")), problem
    assert not refusing.jobs and not refusing.main.tools.sampler.calls


def test_a_template_that_refuses_is_no_fault_of_ours():
    problem = refused(
        scripted_service([]), ask([{"role": "assistant", "content": "a"}, {"role": "system", "content": "b"}])
    )
    assert problem["param"] == "input"


def test_other_fields_are_passed_over_and_reported():
    service = scripted_service(script("4", "5", "6"))
    neutral = {
        "parallel_tool_calls": True, "max_tool_calls": 3, "service_tier": "auto", "top_logprobs": 0, "tools": [],
        "tool_choice": "auto", "stream_options": {"include_obfuscation": False}, "text": {"format": {"type": "text"}},
        "background": False, "conversation": None, "prompt": None,
    }  # fmt: skip
    status, headers, _ = post(service, PATH, ask(**neutral))
    assert status == 200 and "x-mull-ignored" not in headers
    heard = {"prompt_cache_key": "x", "top_logprobs": 5, "include": ["message.output_text.logprobs"], "frobnicate": 1}
    status, headers, body = post(service, PATH, ask(**heard))
    assert status == 200 and body["mull"]["ignored"] == ["include", "prompt_cache_key", "top_logprobs", "frobnicate"]
    assert headers["x-mull-ignored"] == "include, prompt_cache_key, top_logprobs, frobnicate"
    inside = {"reasoning": {"effort": "low", "context": "all", "mode": None}, "text": {"verbosity": "low"}}
    _, headers, body = post(service, PATH, ask(**inside))
    assert body["mull"]["ignored"] == ["reasoning.context", "text.verbosity"]
    assert headers["x-mull-ignored"] == "reasoning.context, text.verbosity"


def test_strict_mode_refuses_what_o1_refuses():
    service = scripted_service(script(*"abcdef"), params="strict_o1")
    for bad, param, code in (
        ({"temperature": 0.5}, "temperature", "unsupported_parameter"),
        ({"top_p": 0.5}, "top_p", "unsupported_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"reasoning": {"effort": "max"}}, "reasoning.effort", "unsupported_value"),
        ({"reasoning": {"effort": "none"}}, "reasoning.effort", "unsupported_value"),
        ({"seed": 5}, "seed", "unknown_parameter"),
        ({"enable_thinking": True}, "enable_thinking", "unknown_parameter"),
        ({"frobnicate": 1}, "frobnicate", "unknown_parameter"),
        ({"reasoning": {"max_tokens": 5}}, "reasoning.max_tokens", "unknown_parameter"),
        ({"reasoning": {"effort": "low", "exclude": None}}, "reasoning.exclude", "unknown_parameter"),
    ):
        problem = refused(service, ask(**bad))
        assert (problem["param"], problem["code"]) == (param, code)
    assert refused(service, {"input": "hi"})["param"] == "model"
    for good in (
        {"temperature": 1},
        {"reasoning": {"effort": "low", "summary": "auto"}},
        {"reasoning": {"effort": "low", "context": "auto", "mode": "standard"}},
        {"safety_identifier": "x"},
    ):
        made(service, **good)


def test_long_conversations_of_stored_responses_are_bounded(tmp_path):
    service = scripted_service(script(*"1234"), store=tmp_path / "s.db", max_messages=5)
    first = made(service)
    second = made(service, previous_response_id=first["id"])
    problem = refused(service, ask(previous_response_id=second["id"]))
    assert problem["param"] == "previous_response_id" and "truncation" in problem["message"]
    made(service, previous_response_id=second["id"], truncation="auto")


def test_the_store_is_closed_with_the_server(tmp_path):
    app = make_app(scripted_service(script("4"), store=tmp_path / "s.db"))

    async def scene():
        async with app.router.lifespan_context(app):
            assert (tmp_path / "s.db-wal").exists()
        assert not (tmp_path / "s.db-wal").exists()  # SQLite's last connection cleans up

    asyncio.run(scene())


@pytest.mark.parametrize("key", ["store", "secret"])
def test_files_that_cannot_be_used_are_said_at_the_start(tmp_path, key):
    with pytest.raises(UserError, match="no/such"):
        make_app(scripted_service([], **{key: tmp_path / "no" / "such" / "folder"}))
