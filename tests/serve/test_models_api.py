"""The small routes."""

from __future__ import annotations

import openai
import pytest

from mull.serve.errors import ApiError
from mull.serve.models_api import answer
from mull.serve.shapes import Health, Model, Models
from tests.serve.tools import call, nano_service, scripted_service, serving


def test_the_one_model_is_listed_and_found_by_its_name():
    made = nano_service()
    status, _, body = call(made, "GET", "/v1/models")
    assert status == 200 and Models.model_validate(body).data[0].id == "nano"
    assert body["data"][0]["max_model_len"] == made.main.tools.context and body["data"][0]["created"] == made.created
    status, _, one = call(made, "GET", "/v1/models/nano")
    assert status == 200 and Model.model_validate(one) and one == body["data"][0]
    named = nano_service(name="some/model v1.5")
    assert call(named, "GET", "/v1/models/some/model%20v1.5")[0] == 200
    for other in ("gpt-4o", "nano/", "NANO", "%00", "%ff", "a" * 5000, "..", "%2e%2e%2f"):
        status, _, body = call(made, "GET", f"/v1/models/{other}")
        assert status == 404 and body["error"]["code"] in ("model_not_found", "unknown_url"), other


@pytest.mark.parametrize(
    "folder, name",
    [
        ("runs/demo/model", "demo"),
        ("models/Qwen3-0.6B/", "Qwen3-0.6B"),
        ("", "nano"),
        ("/model", "model"),
        ("/", "model"),
    ],
)
def test_the_model_is_called_after_its_folder(folder: str, name: str):
    assert scripted_service({}, name="", model=folder).main.name == name


def test_a_model_is_found_by_its_name_alone():
    made = nano_service()
    assert made.model("nano", required=True) is made.model(None) is made.model("") is made.main

    def refused(name: str | None, required: bool = False):
        with pytest.raises(ApiError) as problem:
            made.model(name, required)
        return problem.value.status, problem.value.param, problem.value.code

    assert refused(None, True) == refused("", True) == (400, "model", "missing_required_parameter")
    for other in ("nano2", "NANO", "x" * 10_000, "\n"):
        assert refused(other) == (404, "model", "model_not_found")


def test_openais_client_lists_and_finds():
    with serving(nano_service()) as server:
        assert [m.id for m in server.openai().models.list()] == ["nano"]
        assert server.openai().models.retrieve("nano").owned_by == "mull"
        with pytest.raises(openai.NotFoundError):
            server.openai().models.retrieve("other")


def test_health_follows_the_drain():
    made = nano_service()
    status, _, body = call(made, "GET", "/health")
    assert status == 200 and Health.model_validate(body).status == "ok"
    made.draining = True
    assert call(made, "GET", "/health")[::2] == (503, {"status": "draining"})


def test_answer_now_reaches_every_choice_and_no_other_request():
    class Job:
        asked = False

        def answer_now(self):
            self.asked = True

    made = nano_service()
    made.jobs = {key: Job() for key in ("req_aa", "req_aa/1", "req_ab", "resp_ac")}

    def reached():
        found = {key for key, job in made.jobs.items() if job.asked}
        for job in made.jobs.values():
            job.asked = False
        return found

    for name in ("req_aa", "chatcmpl-aa", "aa"):
        assert answer(made, name) and reached() == {"req_aa", "req_aa/1"}
    assert answer(made, "resp_ac") and reached() == {"resp_ac"}
    for name in ("", "req_", "req_a", "a", "req_aa/1", "req_ab/", "-", "_"):
        assert not answer(made, name) and reached() == set(), name
