"""Two models in one server: each answers as it would alone, and nothing of one reaches the other's requests."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mull.engine.scripted import ScriptedSampler
from mull.errors import UserError
from mull.search.allocate import Calibration, Point
from mull.search.allocate import Plan as Allotted
from mull.search.sources import Opened, loaded
from mull.serve import logs, main
from mull.serve.app import make_app
from mull.serve.errors import ApiError
from mull.serve.gate import Room
from mull.serve.job import answered
from mull.serve.plan import VOTE, Wish
from mull.serve.service import Service
from mull.serve.settings import Settings, parted
from mull.serve.shapes import Models
from mull.serve.weights import reload_all, sources_of
from tests.serve.beside import alone, changed, foreign, read, two_service
from tests.serve.test_page_api import told
from tests.serve.test_service import counted, empty
from tests.serve.tools import QUESTION, ask, call, calls, idle, nano, nano_service, post

TALK = ({"role": "user", "content": QUESTION},)
LOW = Wish(TALK, effort="low", seed=1)
CONTEXT = 256  # of the other model
ADMIN = "a key of the operator"
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/mull/ask")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign(tmp_path_factory.mktemp("models") / "foreign", 0.03, CONTEXT)


def body_of(path: str, model: str | None, text: str = QUESTION) -> dict[str, Any]:
    body: dict[str, Any] = {"seed": 3} if model is None else {"seed": 3, "model": model}
    if path == "/v1/completions":
        return {**body, "prompt": f"<|user|>{text}<|end|><|assistant|><think></think>", "max_tokens": 12, "logprobs": 1}
    if path == "/v1/responses":
        return {**body, "input": text, "reasoning": {"effort": "low"}}
    return {**body, "messages": [{"role": "user", "content": text}], "reasoning_effort": "low"}


def said(path: str, body: Any) -> tuple[Any, ...]:
    """What an answer says, without its ids and times, and the model that is named in it."""
    if path == "/mull/ask":
        (_, begun), *_, (_, result) = told(body)
        used = result["usage"]["completion_tokens"]
        return begun["model"], result["content"], result["mull"]["votes"], begun["prompt_tokens"], used
    if path == "/v1/responses":
        text, used = body["output"][-1]["content"][0]["text"], body["usage"]
        return body["model"], text, body["mull"]["votes"], used["input_tokens"], used["output_tokens"]
    choice = body["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    spread = choice["logprobs"] and [round(value, 3) for value in choice["logprobs"]["token_logprobs"]]
    return body["model"], text, body.get("mull", {}).get("votes"), spread, body["usage"]["completion_tokens"]


# ------------------------------------------------------------------------------------------------------ answers


def test_each_model_answers_as_it_would_alone(other: Path):
    """At the same time, over every API, and once more with what is in the caches."""
    both = two_service(other)
    requests = [(path, model) for path in PATHS for model in ("nano", "other", None)] * 2
    mixed = calls(both, [("POST", path, {"json": body_of(path, model)}) for path, model in requests])
    single = {"nano": nano_service(), "other": alone(other)}
    known = {
        (path, name): said(path, post(service, path, body_of(path, name))[2])
        for name, service in single.items()
        for path in PATHS
    }
    for path in PATHS:
        assert known[path, "nano"][1:] != known[path, "other"][1:], path  # or nothing could be mixed up
    for (path, model), (status, _, body) in zip(requests, mixed, strict=True):
        assert status == 200 and said(path, body) == known[path, model or "nano"], (path, model)
    assert idle(both) and empty(both)


def test_both_are_listed_and_a_name_that_is_neither_is_refused(other: Path):
    both = two_service(other)
    status, _, body = call(both, "GET", "/v1/models")
    assert status == 200 and [m.id for m in Models.model_validate(body).data] == ["nano", "other"]
    assert [m["max_model_len"] for m in body["data"]] == [1024, CONTEXT]
    assert call(both, "GET", "/v1/models/other")[2] == body["data"][1]
    for path in PATHS:
        for name in ("third", str(other), "foreign", "nano,other"):
            status, _, problem = post(both, path, body_of(path, name))
            assert (status, problem["error"]["param"], problem["error"]["code"]) == (404, "model", "model_not_found")
            told_of = problem["error"]["message"].replace(name, "")
            assert "nano" not in told_of and "other" not in told_of and str(other) not in told_of
    assert call(both, "GET", "/v1/models/third")[0] == 404
    config = call(both, "GET", "/mull/config")[2]
    assert config["model"] == "nano" and [m["name"] for m in config["models"]] == ["nano", "other"]


def test_the_context_and_the_vocabulary_are_those_of_the_model_that_is_asked(other: Path):
    both = two_service(other)
    long = "a" * 600
    for path in PATHS[:3]:
        asked = {**body_of(path, "nano", long), "max_tokens": 4} if path == PATHS[1] else body_of(path, "nano", long)
        assert post(both, path, asked)[0] == 200
        status, _, body = post(both, path, {**asked, "model": "other"})
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
        assert f"{CONTEXT} tokens" in body["error"]["message"]
    ids = read(other)[1].encode("k=2;")
    assert ids != nano()[1].encode("k=2;")
    echo = {"prompt": ids, "max_tokens": 0, "echo": True}
    texts = [post(both, PATHS[1], {**echo, "model": m})[2]["choices"][0]["text"] for m in ("nano", "other")]
    assert texts[1] == "k=2;" != texts[0]
    turns = [{"role": "user", "content": "b" * 150}, {"role": "assistant", "content": "c"}, *TALK]
    cut = {"input": turns, "truncation": "auto", "reasoning": {"effort": "none"}}
    used = [post(both, PATHS[2], {**cut, "model": m})[2]["usage"]["input_tokens"] for m in ("nano", "other")]
    assert used[1] < CONTEXT < used[0] + 80 and used[0] > 150 > used[1]


def test_what_is_private_of_the_second_is_not_told(other: Path):
    """nano's template refuses what tools say, and names the tokenizer's folder."""
    both = two_service(other)
    talk = [*TALK, {"role": "tool", "content": "x"}]
    for model in ("nano", "other"):
        status, _, body = post(both, PATHS[0], {"model": model, "messages": talk})
        assert status == 400 and body["error"]["param"] == "messages"
        assert str(other) not in str(body) and str(other.parent) not in str(body)
    with pytest.raises(UserError, match=str(other)):
        read(other)[1].prompt(talk)


# ---------------------------------------------------------------------------------------------------- admission


def test_who_waits_for_one_model_does_not_wait_for_the_other(other: Path):
    both = two_service(other, max_sequences=1, queue=1, queue_seconds=60)
    to_other = replace(LOW, model="other")

    async def work(wish: Wish, name: str):
        async with both.job(wish, name) as job:
            return await answered(job)

    async def run():
        async with both.job(to_other, "held") as held:
            waiting = asyncio.ensure_future(work(to_other, "waits"))
            await asyncio.sleep(0)
            assert both.inside == 1 and both.models["other"].gate.inside == 1 and not both.main.gate.inside
            assert [counted(both, "queue_depth"), counted(both, "running")] == [1, 1]
            assert [counted(both, "model_queue_depth", model=m) for m in both.models] == [0, 1]
            assert [counted(both, "model_running", model=m) for m in both.models] == [0, 1]
            with pytest.raises(ApiError, match="waiting already"):
                await work(to_other, "refused")
            async with both.place(10, "nano") as tools:
                assert tools is both.main.tools and both.main.gate.reserved == Room(2, 1) and both.inside == 2
            assert (await work(LOW, "free")).content and not waiting.done()
            assert held.tools is both.models["other"].tools is not both.main.tools
            await answered(held)
        await waiting

    asyncio.run(run())
    assert empty(both) and idle(both)
    ended = {m: counted(both, "model_requests_total", model=m, outcome="answered") for m in both.models}
    assert ended == {"nano": 2, "other": 2}  # the raw completion is the second of nano's
    assert counted(both, "model_requests_total", model="other", outcome="refused") == 1
    tokens = [counted(both, "model_tokens_total", model=m) for m in both.models]
    assert min(tokens) > 0
    assert sum(tokens) == counted(both, "reasoning_tokens_total") + counted(both, "answer_tokens_total")
    pools = [model.tools.sampler.pool.num_pages for model in both.models.values()]  # type: ignore[attr-defined]
    assert counted(both, "memory_pages_total") == sum(pools) and counted(both, "versions") == 2


def test_the_drain_waits_for_both_and_lets_nobody_in(other: Path):
    both = two_service(other, max_sequences=1, drain_seconds=60.0)

    async def work(wish: Wish, name: str):
        async with both.job(wish, name) as job:
            return await answered(job)

    async def run():
        async with both.job(replace(LOW, model="other"), "held") as held:
            waiting = asyncio.ensure_future(work(replace(LOW, model="other"), "waits"))
            await asyncio.sleep(0)
            draining = asyncio.ensure_future(main.drain(both, tick=0.001))
            await asyncio.sleep(0.01)
            for late in (LOW, replace(LOW, model="other")):
                with pytest.raises(ApiError, match="shutting down"):
                    await work(late, "late")
            with pytest.raises(ApiError, match="shutting down"):
                await waiting
            assert not draining.done()
            await answered(held)
        await draining

    asyncio.run(run())
    assert empty(both) and idle(both)


# ------------------------------------------------------------------------------------------------- new weights


def served(other: Path, **settings: Any) -> Service:
    """Loaded as `mull serve` does it."""
    more = {"max_sequences": 16, "memory_bytes": 16 << 20, "think_tokens": 48, "answer_tokens": 16, **settings}
    made = Settings(**{"model": "nano", "beside": (f"other={other}",), **more})
    return Service(made, *map(loaded, sources_of(made).values()))


def test_each_model_gets_new_weights_from_its_own_folder(other: Path, tmp_path: Path):
    (tmp_path / "admin").write_text(ADMIN + "\n")
    both, third = served(other, admin=tmp_path / "admin"), changed(tmp_path / "third", 0.02)
    before = {name: model.tools for name, model in both.models.items()}

    def versions() -> list[float]:
        return [counted(both, "model_policy_version", model=m) for m in both.models]

    async def run():
        async with both.job(replace(LOW, model="other"), "old") as job:
            await reload_all(both)
            assert versions() == [1, 1] and counted(both, "reloads") == 2
            assert counted(both, "versions") == 3  # the job's own is kept
            assert job.tools is before["other"] is not both.models["other"].tools
            async with both.job(replace(LOW, model="other"), "new") as new:
                first, second = await asyncio.gather(answered(job), answered(new))
        assert (first.policy_version, second.policy_version) == (0, 1) and first.content == second.content
        assert counted(both, "versions") == 2

    asyncio.run(run())

    def post_reload(body: dict[str, Any]):
        return call(both, "POST", "/mull/reload", json=body, headers={"x-mull-admin": ADMIN})

    kept = both.main.tools
    status, _, body = post_reload({"name": "other", "model": str(third)})
    assert (status, body["model"], body["policy_version"]) == (200, "other", 2)
    assert both.main.tools is kept and both.models["other"].weights.source.model == str(third)
    status, _, body = post_reload({})
    assert (status, body["model"]) == (200, "nano") and versions() == [2, 2]
    assert both.main.weights.source.model == "nano"
    for wrong, status in (({"name": "third"}, 404), ({"name": str(third)}, 404), ({"name": 3}, 400)):
        got, _, body = post_reload(wrong)
        assert (got, body["error"]["param"]) == (status, "name"), wrong
    got, _, body = post_reload({"name": "other", "model": str(tmp_path / "none")})
    assert got == 400 and body["error"]["code"] == "model_not_loaded" and versions() == [2, 2]
    assert both.models["other"].weights.failures == 1 == counted(both, "reload_failures")


@pytest.mark.parametrize("fault", ["missing", "truncated", "not finite"])
def test_a_second_model_that_cannot_be_loaded_is_a_mistake_at_the_start(fault: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("mull.serve.logs.setup", lambda *_: None)
    folder = tmp_path / "broken"
    if fault != "missing":
        changed(folder, float("nan") if fault == "not finite" else 0.0)
    if fault == "truncated":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[: 1 << 16])
    with pytest.raises(UserError, match=str(folder)):
        main.serve(Settings(model="nano", port=0, beside=(str(folder),), memory_bytes=1 << 20))


# ---------------------------------------------------------------------------------------------------- responses


def scripts(**settings: Any) -> tuple[Service, dict[str, ScriptedSampler]]:
    """Two models of nano's tokens that say what they are told to."""
    chat = nano()[1]
    lines = {name: [(f"{name} thinks</think>", f"{name} says {i}") for i in range(20)] for name in ("nano", "other")}
    samplers = {name: ScriptedSampler([text for two in said for text in two], chat) for name, said in lines.items()}
    made = Settings(name="nano", beside=("other=nano",), think_tokens=64, answer_tokens=16, effort="low", **settings)
    return Service(made, *[Opened(s, chat, None, None, None, None, 1024) for s in samplers.values()]), samplers


def respond(service: Service, input: Any, **more: Any):
    status, _, body = post(service, "/v1/responses", {"input": input, **more})
    return body if status == 200 else (status, body["error"]["param"], body["error"]["code"])


def test_a_conversation_may_go_on_with_the_other_model_and_a_thought_may_not():
    both, samplers = scripts()
    sealed = ["reasoning.encrypted_content"]
    first = respond(both, "one?", model="nano", include=sealed)
    second = respond(both, "two?", model="other", previous_response_id=first["id"], include=sealed)
    third = respond(both, "three?", previous_response_id=second["id"])
    assert [r["model"] for r in (first, second, third)] == ["nano", "other", "nano"]
    assert second["output"][-1]["content"][0]["text"] == "other says 0"
    prompt = nano()[1].decode(samplers["other"].calls[0].prefix)
    assert "one?" in prompt and "nano says 0" in prompt and "two?" in prompt and "thinks" not in prompt
    prompt = nano()[1].decode(samplers["nano"].calls[2].prefix)
    assert "other says 0" in prompt and "thinks" not in prompt
    for response, mine, others in ((first, "nano", "other"), (second, "other", "nano")):
        stored = call(both, "GET", f"/v1/responses/{response['id']}?include[]={sealed[0]}")[2]
        for [thought, message] in (response["output"], stored["output"]):
            turns = [{"role": "user", "content": "?"}, thought, message, {"role": "user", "content": "and?"}]
            assert respond(both, turns, model=mine)["model"] == mine
            refused = (400, "input[1].encrypted_content", "invalid_encrypted_content")
            assert respond(both, turns, model=others) == refused
            open_ = [turns[0], {k: v for k, v in thought.items() if k != "encrypted_content"}, *turns[2:]]
            assert respond(both, open_, model=others)["model"] == others


# --------------------------------------------------------------------------- what belongs to the main model alone


def test_calibration_and_trained_scorers_are_the_main_models(other: Path, tmp_path: Path):
    points = tuple(Point((Allotted("vote", n),), float(6 * n), 0.1 * n) for n in (4, 8))
    known = Calibration("nano", "", "last", 4, "spread", (), 4.0, points, {"low": 0, "medium": 1, "high": 1})
    known.save(tmp_path / "calibration.json")
    both = two_service(other, calibration=str(tmp_path / "calibration.json"), scorer="a/folder", critic="another")
    tools = both.models["other"].weights.current
    tools.tools = replace(tools.tools, scorer=None)
    efforts = {m: call(both, "GET", f"/mull/efforts?model={m}")[2] for m in ("nano", "other", "")}
    assert {m: e["model"] for m, e in efforts.items()} == {"nano": "nano", "other": "other", "": "nano"}
    level = {m: e["efforts"]["high"] for m, e in efforts.items()}
    assert level["nano"]["strategy"] == "auto:effort=high" and level["nano"]["expected"]
    assert (level["other"]["strategy"], level["other"]["chains"], level["other"]["expected"]) == (VOTE, 32, None)
    assert call(both, "GET", "/mull/efforts?model=third")[0] == 404
    shown = call(both, "GET", "/mull/config")[2]["models"]
    assert [m["calibrated"] for m in shown] == [True, False]
    offered = [{s["name"] for s in m["strategies"]} for m in shown]
    assert {"auto", "beam", "best-of-n"} <= offered[0] and not offered[1] & {"auto", "beam", "best-of-n"}
    for strategy in ("beam", "auto", "best-of-n"):
        status, _, body = post(both, PATHS[0], ask(model="other", mull={"strategy": strategy, "samples": 2}))
        problem = body["error"]
        assert status == 400 and problem["param"] == "mull.strategy" and "the model 'nano' alone" in problem["message"]
        assert "a/folder" not in problem["message"]
    status, _, body = post(both, PATHS[0], {**body_of(PATHS[0], "other"), "reasoning_effort": "high", "seed": 2})
    assert status == 200 and body["mull"]["strategy"] == VOTE
    _, _, body = post(both, PATHS[0], {**body_of(PATHS[0], "other"), "mull": {"strategy": "bogus"}})
    assert "unknown strategy" in body["error"]["message"]
    costs = {m: call(both, "GET", f"/mull/efforts?model={m}")[2]["efforts"]["high"]["requests"] for m in both.models}
    assert costs == {"nano": 0, "other": 1}


def test_a_scorer_that_reads_the_model_works_for_both(other: Path):
    """Each is read by its own."""
    both = served(other, scorer="logprob", max_samples=4)
    own = served(other, model=str(other), name="other", beside=(), scorer="logprob", max_samples=4)
    body = ask(model="other", seed=4, mull={"strategy": "best-of-n", "samples": 4})
    first, second = post(both, PATHS[0], body)[2], post(own, PATHS[0], body)[2]
    assert said(PATHS[0], first) == said(PATHS[0], second) and first["mull"]["flops"] == second["mull"]["flops"]
    trained = sources_of(Settings(model="nano", beside=("other=x",), scorer="a/folder", critic="b", dtype="bfloat16"))
    assert [(s.scorer, s.critic, s.dtype) for s in trained.values()] == [
        ("a/folder", "b", "bfloat16"),
        ("", "", "bfloat16"),
    ]


# ---------------------------------------------------------------------------------------------- names, and the log


@pytest.mark.parametrize(
    ("text", "name", "folder"),
    [
        ("nano", "nano", "nano"),
        ("runs/demo/model", "demo", "runs/demo/model"),
        ("old=runs/demo/model", "old", "runs/demo/model"),
        ("runs/lr=3/model", "lr=3", "runs/lr=3/model"),
        ("a=b=c", "a", "b=c"),
        (" x = y ", "x", "y"),
    ],
)
def test_a_model_beside_is_called_as_the_main_one_would_be(text: str, name: str, folder: str):
    assert parted(text) == (name, folder)
    made = Settings(model="first/model", beside=(text,))
    assert made.names() == {"first": "first/model", name: folder}
    assert [source.model for source in sources_of(made).values()] == ["first/model", folder]


def test_names_that_cannot_be_told_apart_are_a_mistake(monkeypatch):
    monkeypatch.setattr("mull.serve.logs.setup", lambda *_: None)
    for main_one, beside, name in (
        ({"model": "a/demo/model"}, ("b/demo/model",), "demo"),
        ({"model": "a", "name": "nano"}, ("nano",), "nano"),
        ({}, ("nano",), "nano"),
        ({"model": "a"}, ("x=b", "x=c"), "x"),
    ):
        with pytest.raises(UserError, match=f"would be called '{name}'.*--beside NAME={beside[-1].partition('=')[2]}"):
            main.serve(Settings(**main_one, beside=beside, port=0))
    for text in ("", "=", "x=", "=x"):
        with pytest.raises(UserError, match="must be a model's folder"):
            Settings(beside=(text,))
    with pytest.raises(UserError, match="with --endpoint leave it out"):
        Settings(beside=("nano",), endpoint="http://localhost:9/v1", tokenizer="x")


@pytest.fixture
def stderr() -> Iterator[io.StringIO]:
    logger, stream = logging.getLogger("mull.serve"), io.StringIO()
    before, propagate = logger.handlers, logger.propagate
    logs.setup(stream=stream)
    yield stream
    logger.handlers, logger.propagate = before, propagate


def test_the_log_says_which_model_was_asked(other: Path, stderr: io.StringIO):
    both = two_service(other)
    both._app = logs.Logged(make_app(both))  # type: ignore[attr-defined]
    for path, model in zip(PATHS, ("other", "nano", None, "other"), strict=True):
        assert post(both, path, body_of(path, model))[0] == 200
    assert [json.loads(line)["model"] for line in stderr.getvalue().splitlines()] == ["other", "nano", "nano", "other"]
