"""The Responses API by OpenAI's own client, unchanged, against a real server; and clients that leave."""

import asyncio
import json
import threading

import openai
import pytest
from openai.types.responses import ResponseErrorEvent

from tests.serve.responses_tools import checked
from tests.serve.tools import QUESTION, idle, nano_service, scripted_service, serving, thinking, until

SEALED = ["reasoning.encrypted_content"]


@pytest.fixture(scope="module")
def server():
    with serving(nano_service()) as served:
        yield served


@pytest.fixture(scope="module")
def client(server):
    return server.openai(max_retries=0)


def create(client, **more):
    return client.responses.create(**{"model": "nano", "input": QUESTION, **more})


def plain(events):
    return [event.model_dump(mode="json", exclude_unset=True) for event in events]


def test_create_retrieve_list_and_delete(client):
    made = create(client, reasoning={"effort": "low", "summary": "auto"}, metadata={"k": "v"}, instructions="be quick")
    assert made.output_text and made.status == "completed" and made.error is None
    reasoning, message = made.output
    assert reasoning.type == "reasoning" and reasoning.summary[0].text.startswith("**")
    assert message.role == "assistant" and message.content[0].text == made.output_text
    assert 0 < made.usage.output_tokens_details.reasoning_tokens < made.usage.output_tokens
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert made._request_id.rpartition("_")[2] == made.id.rpartition("_")[2]
    assert client.responses.retrieve(made.id) == made
    items = client.responses.input_items.list(made.id)
    assert [item.content[0].text for item in items] == [QUESTION] and items.has_more is False
    assert client.responses.delete(made.id) is None
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.retrieve(made.id)
    assert caught.value.code == "response_not_found" and caught.value.param == "response_id"


@pytest.mark.parametrize("effort", ["none", "low", "high"])
def test_stream(client, effort):
    reasoning = {"effort": effort, "summary": "detailed"}
    with create(client, stream=True, include=SEALED, reasoning=reasoning) as stream:
        response = checked(plain(stream))
    kept = client.responses.retrieve(response["id"]).model_dump(mode="json", exclude_unset=True)
    for item in response["output"]:
        assert (item["type"] == "reasoning") == bool(item.pop("encrypted_content", None))
    assert kept == response


def test_the_clients_own_accumulator_agrees(client):
    with client.responses.stream(model="nano", input=QUESTION, reasoning={"summary": "auto"}) as stream:
        told = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_text == told and final.output[0].summary and final.status == "completed"


def test_input_items_page_by_themselves(client):
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(25)]
    made = create(client, input=turns)
    listed = [item.content[0].text for item in client.responses.input_items.list(made.id, limit=10, order="asc")]
    assert listed == [f"turn {n}" for n in range(25)]


def test_a_conversation_by_previous_response_id(client):
    first = create(client, input="remember 17")
    second = create(client, input="what?", previous_response_id=first.id)
    assert second.usage.input_tokens > first.usage.input_tokens and second.previous_response_id == first.id
    order = [item.type for item in client.responses.input_items.list(second.id, order="asc")]
    assert order == ["message", "reasoning", "message", "message"]
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, previous_response_id="resp_gone")
    assert caught.value.code == "previous_response_not_found" and caught.value.param == "previous_response_id"


def test_a_conversation_without_a_store(client):
    first = create(client, store=False, include=SEALED)
    assert first.output[0].encrypted_content
    asked = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "again?"}]
    assert create(client, input=asked, store=False).output_text
    first.output[0].encrypted_content = first.output[0].encrypted_content[:-8] + "AAAAAAA="
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, input=asked, store=False)
    assert caught.value.code == "invalid_encrypted_content" and caught.value.param == "input[1].encrypted_content"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.NotFoundError) as caught:
        create(client, model="gpt-9")
    assert caught.value.code == "model_not_found"
    for bad, param in (
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format.type"),
        ({"input": "word " * 1000}, "input"),
    ):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                create(client, stream=stream, **bad)
            assert caught.value.param == param
    with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
        client.responses.cancel(create(client).id)


def test_a_fault_in_the_stream_is_the_clients_error_event():
    service = scripted_service(["thought</think>", "4"])
    service.main.tools.sampler.fail[1] = RuntimeError("inside")
    with serving(service) as server:
        *told, last = create(server.openai(max_retries=0), stream=True)
    assert isinstance(last, ResponseErrorEvent) and last.sequence_number == len(told) == 3
    assert "server had an error" in last.message and "inside" not in last.message
    until(lambda: not service.jobs)


def test_many_at_once(server):
    service = server.service

    async def scene():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60) as client:

            async def one(n: int):
                if n % 2:
                    return (await create(client, extra_body={"seed": n % 4})).output_text
                stream = await create(client, extra_body={"seed": n % 4}, stream=True)
                return "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])

            return await asyncio.gather(*[one(n) for n in range(24)])

    texts = asyncio.run(scene())
    assert all(texts) and all(len({*texts[n::4]}) == 1 for n in range(4))  # the seed decides, whoever else is there
    until(lambda: idle(service))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_work_along_and_nothing_is_stored(stream, tmp_path):
    service = nano_service(think_tokens=900, effort="high", store=tmp_path / "s.db")
    with serving(service) as server:
        body = json.dumps({"input": QUESTION, "stream": stream, "mull": {"strategy": "vote", "samples": 16}}).encode()
        with server.connect() as line:
            line.sendall(
                b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            until(lambda: service.jobs and next(iter(service.jobs.values())).live.sampled > 20)
            [request] = service.jobs
        until(lambda: idle(service), 3)
        assert service.main.tools.sampler.spent.sampled_tokens < 10000
        with pytest.raises(openai.NotFoundError):
            server.openai().responses.retrieve(f"resp_{request.rpartition('_')[2]}")


def test_answer_now_by_the_responses_id():
    service = nano_service(think_tokens=900)
    with serving(service) as server, server.http() as http:
        client, found = server.openai(), {}

        def ask_it():
            found["made"] = create(client, extra_body={"mull": {"strategy": "vote", "samples": 32}}, stream=True)
            found["events"] = plain(found["made"])

        asking = threading.Thread(target=ask_it)
        asking.start()
        until(lambda: service.jobs and next(iter(service.jobs.values())).live.sampled > 50)
        [request] = service.jobs
        assert http.post(f"/mull/requests/resp_{request.rpartition('_')[2]}/answer").status_code == 204
        asking.join(30)
    response = checked(found["events"])
    assert response["mull"]["early"] == "asked" and response["output"][-1]["content"][0]["text"]


def test_pings_reach_the_wire_and_the_client_reads_past_them():
    service = scripted_service(thinking("t", "4"), seconds=0.5, ping_seconds=0.1)
    with serving(service) as server:
        with server.http() as http:
            raw = http.post("/v1/responses", json={"input": "what?", "stream": True}).text
        assert raw.count(": ping\n\n") >= 4 and "\nid:" not in raw and "event: ping" not in raw
        assert checked(plain(create(server.openai(), stream=True)))["output"][-1]["content"][0]["text"] == "4"


def test_stored_responses_and_sealed_thoughts_outlive_the_server(tmp_path):
    files = {"store": tmp_path / "s.db", "secret": tmp_path / "secret"}
    with serving(nano_service(**files)) as server:
        first = create(server.openai(), include=SEALED)
    with serving(nano_service(**files)) as server:
        client = server.openai()
        assert client.responses.retrieve(first.id).output_text == first.output_text
        assert create(client, previous_response_id=first.id).output_text
        assert create(client, input=[*first.output, {"role": "user", "content": "more?"}]).output_text
