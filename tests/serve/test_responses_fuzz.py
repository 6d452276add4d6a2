"""Whatever is sent to the Responses API: an answer in its shape, or an error in OpenAI's. Never a 5xx, never a stream
out of order, and nothing left at work."""

import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mull.serve.responses_shapes import Items, Responded
from mull.serve.shapes import ErrorBody
from tests.serve.responses_tools import checked
from tests.serve.tools import call, events, idle, nano_service

PATH = "/v1/responses"
LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 3, 10**12, -(10**30), 0.5, -0.0, 1e300]),
    st.text(st.characters(exclude_categories=()), max_size=8),
    st.sampled_from(["", "low", "none", "message", "reasoning", "nano", "a" * 3000, "\0", "<think>", "</think>"]),
)
VALUE = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def some(sensible, rarely=VALUE):
    """Mostly what makes sense."""
    return st.integers(0, 7).flatmap(lambda n: rarely if n == 0 else sensible)


TEXT = st.sampled_from(["2?", "", "a=3;b=a+4;b?", "<|end|>\n<think>", "ü" * 40])
PART = st.fixed_dictionaries(
    {"type": some(st.sampled_from(["input_text", "output_text", "text", "input_image"]))},
    optional={"text": some(TEXT), "refusal": TEXT, "annotations": VALUE},
) | st.fixed_dictionaries({"type": st.just("refusal"), "refusal": some(TEXT)})
ID = st.sampled_from([None, "", "msg_1", "rs_1", "x" * 64, "x" * 65])
ITEM = st.one_of(
    st.fixed_dictionaries(
        {
            "role": some(st.sampled_from(["user", "assistant", "system", "developer"])),
            "content": some(TEXT | st.lists(PART, max_size=3)),
        },
        optional={"type": st.sampled_from(["message", None]), "id": some(ID), "status": VALUE},
    ),
    st.fixed_dictionaries(
        {"type": st.just("reasoning")},
        optional={
            "id": some(ID),
            "summary": some(
                st.lists(st.fixed_dictionaries({"type": st.just("summary_text"), "text": TEXT}), max_size=2)
            ),
            "content": VALUE,
            "encrypted_content": some(st.none()),
        },
    ),
    st.fixed_dictionaries({"type": st.just("item_reference"), "id": some(ID)}),
    VALUE,
)
OPTIONS = {
    "model": st.sampled_from(["nano", None]),
    "instructions": TEXT,
    "previous_response_id": st.sampled_from([None, "resp_1"]),
    "store": st.booleans(),
    "include": st.just(["reasoning.encrypted_content"]),
    "reasoning": st.fixed_dictionaries(
        {},
        optional={
            "effort": some(st.sampled_from(["none", "low", "medium", "high"])),
            "summary": some(st.sampled_from(["auto", "concise", "detailed"])),
            "max_tokens": some(st.integers(0, 30)),
        },
    ),
    "thinking_token_budget": st.integers(0, 30),
    "enable_thinking": st.booleans(),
    "max_output_tokens": st.integers(1, 60),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "seed": st.integers(-9, 9),
    "mull": st.just({"strategy": "vote", "samples": 2}),
    "truncation": st.sampled_from(["auto", "disabled"]),
    "metadata": st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    "text": st.just({"format": {"type": "text"}}),
    "user": TEXT,
    "tools": st.just([]),
    "tool_choice": st.sampled_from(["auto", "none"]),
}
BODY = st.fixed_dictionaries(
    {"input": some(TEXT | st.lists(ITEM, min_size=1, max_size=4))},
    optional={
        **{name: some(values) for name, values in OPTIONS.items()},
        **dict.fromkeys(("background", "conversation", "prompt", "new", "stream_options"), some(st.none())),
        "stream": some(st.booleans()),
    },
) | st.dictionaries(st.sampled_from([*OPTIONS, "input", "stream"]), VALUE, max_size=4)


@pytest.fixture(scope="module")
def small():
    return nano_service(think_tokens=24, answer_tokens=8, max_samples=3, thoughts="shown")


@settings(max_examples=120, suppress_health_check=list(HealthCheck), deadline=None)
@given(body=BODY)
@example({"input": [{"role": "user", "content": "x" * 900}, {"role": "user", "content": "y"}], "truncation": "auto"})
@example({"input": [{"type": "reasoning"}], "truncation": "auto", "instructions": "x" * 3000})
@example({"input": [{"role": "user", "content": []}], "stream": True})
@example({"input": "\ud800"})
def test_no_request_breaks_the_server(small, body):
    sent = {"content": json.dumps(body).encode(), "headers": {"content-type": "application/json"}}
    status, headers, answer = call(small, "POST", PATH, **sent)
    assert status in (200, 400, 404), answer
    if status != 200:
        assert ErrorBody.model_validate(answer).error.message
    elif headers["content-type"].startswith("text/event-stream"):
        assert body["stream"] is True
        answer = checked(events(answer))
    if status == 200:
        Responded.model_validate(answer)
        assert answer["output"][-1]["content"][0]["text"].strip()
    assert idle(small)


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    id=st.text(min_size=1, max_size=70),
    path=st.sampled_from(["", "/input_items", "/cancel"]),
    method=st.sampled_from(["GET", "DELETE", "POST"]),
    query=st.dictionaries(st.sampled_from(["order", "limit", "after", "include", "include[]", "stream"]), st.text()),
)
def test_no_address_breaks_the_server(small, id, path, method, query):
    try:
        address = f"{PATH}/{quote(id, safe='')}{path}"
    except UnicodeEncodeError:
        return
    status, _, answer = call(small, method, address, params=query)
    assert status in (400, 404, 405), answer
    ErrorBody.model_validate(answer)


def test_any_query_of_a_stored_response_gets_an_answer(small, tmp_path):
    service = nano_service(think_tokens=8, answer_tokens=4, store=tmp_path / "s.db")
    _, _, made = call(service, "POST", PATH, json={"input": "2?"})

    @settings(max_examples=40, deadline=None)
    @given(
        st.fixed_dictionaries(
            {},
            optional={
                "order": some(st.sampled_from(["asc", "desc"]), st.text()),
                "limit": some(st.integers(1, 100).map(str), st.text()),
                "after": st.text(),
                "include[]": st.text(),
            },
        )
    )
    def run(query):
        status, _, answer = call(service, "GET", f"{PATH}/{made['id']}/input_items", params=query)
        assert status in (200, 400, 404)
        (Items if status == 200 else ErrorBody).model_validate(answer)

    run()
