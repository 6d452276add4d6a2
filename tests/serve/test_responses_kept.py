"""The Responses API over scripts: what is stored, and encrypted content."""

import sqlite3

from mull.serve import responses_store
from mull.serve.responses_shapes import Deleted, Items, Responded
from mull.serve.shapes import ErrorBody
from tests.serve.responses_tools import PATH, SECRETIVE, WORD, ask, made, prompts, refused, script, streamed
from tests.serve.tools import call, post, scripted_service

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
