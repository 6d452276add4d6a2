"""The whole application: errors in one shape whatever is sent, headers, CORS, and an OpenAPI document that is true."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mull.serve import shapes
from mull.serve.app import make_app
from tests.serve.tools import ask, call, calls, idle, nano_service, post, scripted_service, thinking

CHAT, RAW = "/v1/chat/completions", "/v1/completions"


def test_unknown_addresses_and_methods_have_the_shape_of_errors():
    made = nano_service()
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("POST", "/v1", 404),
        ("GET", "/v1/models/", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/docs", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("PUT", RAW, 405),
        ("HEAD", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
        ("POST", "/health", 405),
        ("BREW", "/health", 405),
    ):
        found, headers, body = call(made, method, path)
        assert found == status, path
        assert headers["x-request-id"].startswith("req_") and (status != 405 or headers["allow"])
        if method != "HEAD":
            assert shapes.ErrorBody.model_validate(body)


def test_a_405_names_all_methods_of_the_address():
    made = nano_service()
    assert call(made, "PATCH", "/v1/responses/resp_x")[1]["allow"] == "GET, DELETE"
    assert call(made, "PUT", CHAT)[1]["allow"] == "POST"


def test_a_refusal_says_nothing_that_a_terminal_would_obey():
    status, _, told = post(nano_service(), CHAT, ask(model="a\x1b[2J\nb"))
    assert status == 404 and "model 'a\ufffd[2J\ufffdb' does" in told["error"]["message"]


def test_what_breaks_is_logged_and_told_nobody(caplog):
    class Broken:
        policy_version = 0

        async def sample(self, prefix_tokens, params, n=1):
            raise RuntimeError("secret detail")

    made = scripted_service({}, sampler=Broken())
    for path, asked in ((CHAT, ask()), (RAW, {"model": "nano", "prompt": "a"})):
        status, headers, body = post(made, path, asked)
        assert status == 500 and body["error"]["type"] == "server_error" and "secret" not in json.dumps(body)
        assert headers["x-request-id"] in caplog.text
        _, _, text = post(made, path, {**asked, "stream": True})
        assert "server_error" in json.dumps(text) and "secret" not in json.dumps(text)
    assert "secret detail" in caplog.text and not made.jobs


def test_request_ids_differ():
    made = nano_service()
    seen = [headers["x-request-id"] for _, headers, _ in calls(made, [("GET", "/health", {})] * 20)]
    assert len(set(seen)) == 20


# --------------------------------------------------------------------------------------------------------- CORS


def asks_first(made, origin):
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    status, headers, _ = call(made, "OPTIONS", CHAT, headers=asked)
    return status, headers.get("access-control-allow-origin")


def test_browsers_of_other_origins_are_let_in_by_name_alone(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("k\n")
    assert asks_first(nano_service(), "https://a.example") == (405, None)
    _, headers, _ = call(nano_service(), "GET", "/health", headers={"origin": "https://a.example"})
    assert "access-control-allow-origin" not in headers
    made = nano_service(origins=("https://a.example",), keys=keys)
    assert asks_first(made, "https://a.example") == (200, "https://a.example")  # without a key: browsers send none
    assert asks_first(made, "https://b.example")[1] is None
    status, headers, _ = call(made, "GET", "/v1/models", headers={"origin": "https://a.example"})
    assert status == 401 and headers["access-control-allow-origin"] == "https://a.example"  # so that it can be read
    assert "x-request-id" in headers["access-control-expose-headers"]


# ------------------------------------------------------------------------------------------- the OpenAPI document


def document(**options):
    return make_app(nano_service(**options)).openapi()


def test_every_reference_leads_somewhere_and_nothing_is_left_over():
    made = document()
    text = json.dumps(made)
    known = made["components"]["schemas"]
    used = {piece.split('"')[0] for piece in text.split('"#/components/schemas/')[1:]}
    assert used <= set(known) and "$defs" not in text and "422" not in text and "HTTPValidationError" not in text
    assert not [name for name in known if name not in used]


def test_every_operation_says_how_it_fails():
    for path, item in document()["paths"].items():
        for method, operation in item.items():
            statuses = set(operation["responses"])
            if path.startswith("/v1/"):
                assert {"401", "405"} <= statuses, path
            if method == "post" and path in (CHAT, RAW):
                assert {"200", "400", "404", "408", "413", "429", "500", "503"} <= statuses, path
                assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}


def test_the_refusal_of_other_hosts_is_in_the_document_where_it_can_come(tmp_path):
    (tmp_path / "keys").write_text("k\n")
    for options, said in (({}, True), ({"keys": tmp_path / "keys"}, False), ({"host": "0.0.0.0"}, False)):
        for path, item in document(**options)["paths"].items():
            for operation in item.values():
                refused = operation["responses"].get("403", {"description": ""})
                assert ("`Host`" in refused["description"]) == said, path
                if path == "/mull/reload":
                    assert refused["description"].endswith("The server was started without an admin key.")
                if said:
                    [content] = refused["content"].values()
                    assert content["schema"] == {"$ref": "#/components/schemas/ErrorBody"}


def test_what_can_be_done_with_a_response_is_linked():
    paths = document()["paths"]
    known = {operation["operationId"]: path for path, item in paths.items() for operation in item.values()}
    links = paths["/v1/responses"]["post"]["responses"]["200"]["links"].values()
    assert len(known) == sum(map(len, paths.values()))
    assert [known[link["operationId"]].removeprefix("/v1/responses/") for link in links] == [
        "{id}",
        "{id}",
        "{id}/input_items",
        "{id}/cancel",
    ]


def test_bounds_of_numbers_are_in_the_document():
    fields = document()["components"]["schemas"]
    bodies = [
        item["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        for path, item in document()["paths"].items()
        if path in (CHAT, RAW)
    ]
    for body in bodies:
        assert body["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 128}
        assert body["seed"]["anyOf"][0] == {"type": "integer"} and body["temperature"]["anyOf"][0]["maximum"] == 2
    assert fields["Vendor"]["properties"]["samples"]["anyOf"][0]["minimum"] == 1
    assert '"ge"' not in json.dumps(document())


def test_keys_are_in_the_document_where_they_are_asked_for(tmp_path):
    (tmp_path / "keys").write_text("k\n")
    made = document(keys=tmp_path / "keys")
    assert made["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert made["paths"]["/health"]["get"]["security"] == [] and made["paths"][CHAT]["post"]["security"] == [
        {"key": []}
    ]
    assert "securitySchemes" not in document()["components"]


# ------------------------------------------------------------------------------------------------ whatever is sent

LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 3, 10**12, -(10**30), 0.5, -0.0, 1e300, 5e-324]),
    st.text(st.characters(exclude_categories=()), max_size=8),
    st.sampled_from(["low", "none", "vote", "beam:expand=2", "auto", "nano", "a" * 3000, "\0", "<think>", "</think>"]),
)
VALUE = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "developer", "assistant", "tool", "x"])},
    optional={"content": st.sampled_from(["2?", "", "<|end|>\n<think>"]) | VALUE, "tool_calls": VALUE, "name": VALUE},
)
SENSIBLE = {
    "stop": st.sampled_from([[], "a", ["7", "\n"], "\n"]),
    "n": st.integers(1, 4),
    "max_completion_tokens": st.integers(1, 60),
    "reasoning_effort": st.sampled_from(["none", "low", "medium", "high"]),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "seed": st.integers(-9, 9),
    "mull": st.fixed_dictionaries(
        {
            "strategy": st.sampled_from(
                [
                    *("vote", "best-of-n", "beam:expand=2", "dvts", "mcts:expand=3", "particles", "revise", "roles"),
                    *("rebase", "tot-bfs", "tot-dfs:limit=5", "adaptive:batch=2", "lookahead", "wait:waits=2"),
                ]
            ),
            "samples": st.integers(1, 8),
        }
    ),
}
FIELDS = [
    *("model", "messages", "stop", "n", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "user"),
    *("reasoning", "reasoning_effort", "thinking", "thinking_token_budget", "enable_thinking", "mull", "tools"),
    *("chat_template_kwargs", "metadata", "stream_options", "logit_bias", "response_format", "tool_choice", "new"),
    *("logprobs", "echo", "suffix", "stop_token_ids", "top_k", "modalities", "include_reasoning"),
]
BODY = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, min_size=1, max_size=3) | st.just(ask()["messages"])},
    optional={**SENSIBLE, **{name: VALUE for name in FIELDS if name not in SENSIBLE and name != "messages"}},
) | st.dictionaries(st.sampled_from(FIELDS), VALUE, max_size=4)


def never_breaks(made, path, body, shape):
    status, headers, answer = post(made, path, body)
    assert status in (200, 400, 404), answer
    if status != 200:
        assert shapes.ErrorBody.model_validate(answer)
    elif body.get("stream") is not True:
        shape.model_validate(answer)
        for choice in answer["choices"]:
            assert "message" not in choice or choice["message"]["content"].strip()
    assert headers["x-request-id"] and idle(made)


@pytest.fixture(scope="module")
def small():
    return nano_service(think_tokens=24, answer_tokens=8, max_samples=8)


def encodable(body) -> bool:
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(body=BODY)
def test_no_chat_request_breaks_the_server(small, body):
    status, _, answer = call(
        small, "POST", CHAT, content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    if not encodable(body):
        assert status == 400 and answer["error"]["code"] == "invalid_json"
        return
    never_breaks(small, CHAT, body, shapes.ChatCompletion)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    body=st.fixed_dictionaries(
        {"prompt": st.sampled_from(["a=1;", ["a", "b"], [1, 2], [[1], [2, 3]], "<think>"]) | VALUE},
        optional={
            "max_tokens": st.integers(0, 20),
            "logprobs": st.integers(0, 5),
            "echo": st.booleans(),
            **{k: SENSIBLE[k] for k in ("stop", "n", "temperature", "top_p", "seed")},
            **{name: VALUE for name in ("suffix", "best_of", "top_k", "stop_token_ids", "user", "new", "model")},
        },
    )
)
def test_no_completion_breaks_the_server(small, body):
    if encodable(body):
        never_breaks(small, RAW, body, shapes.TextCompletion)


@pytest.mark.slow
def test_strategies_with_any_numbers_end_in_an_answer_or_a_refusal():
    from mull.search.named import STRATEGIES, options_of

    made = nano_service(think_tokens=24, answer_tokens=8)
    for name in STRATEGIES:
        for key, option in options_of(name).items():
            for value in {int: (0, 100), float: (-1, 1)}.get(option.annotation, ()):
                asked = ask(mull={"strategy": f"{name}:{key}={value}", "samples": 4}, max_completion_tokens=60)
                status, _, body = post(made, CHAT, asked)
                assert idle(made) and (status == 200 or body["error"]["param"] == "mull.strategy"), (asked, body)


def test_a_thought_that_never_ends_still_has_an_answer():
    _, _, body = post(scripted_service(thinking("x" * 5000, "4")), CHAT, ask(reasoning_effort="medium"))
    assert body["choices"][0]["message"]["content"] == "4"
