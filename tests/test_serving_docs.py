"""docs/serving.md holds: its code and its commands run against a server, and whatever it names is there.

python tests/test_serving_docs.py

writes its tables of settings and metrics anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mull.config import describe
from mull.engine.scripted import ScriptedSampler
from mull.serve import main as serve_main
from mull.serve import sse, written
from mull.serve.plan import CHAINS, WORDS
from mull.serve.schemas import STOPS
from mull.serve.settings import Settings
from mull.serve.shapes import Statistics
from tests.serve.beside import changed, two_service
from tests.serve.tools import Served, ask, calls, nano, nano_service, scripted_service, serving, thinking, until
from tests.server_process import Started, environment, settings_of, started
from tests.test_docs import blocks, inline_code

PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
DEPLOY = PAGE.parent.parent / "deploy"
ADDRESS = "http://localhost:8000"
CLIENTS = pytest.mark.skipif(not os.environ.get("MULL_CLIENTS"), reason="MULL_CLIENTS=1 runs it, with a real client")


def of_kind(*infos: str, having: str = "") -> list[str]:
    return [block.text for block in blocks(PAGE.read_text()) if block.info in infos and having in block.text]


def table(header: str) -> list[list[str]]:
    """The cells of the table whose first line contains this."""
    lines = PAGE.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("|") and header in line) + 2
    rows = []
    while at < len(lines) and lines[at].startswith("|"):
        rows.append([cell.strip() for cell in lines[at].strip("|").split(" | ")])
        at += 1
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# ------------------------------------------------------------------------------------------------- made tables


def settings_table() -> str:
    rows = []
    for option in describe(Settings):
        assert option.help, f"the setting {option.key} has no comment, which --help and this page would show"
        kind = f"; {option.type}" if option.type.startswith("one of") else ""
        rows.append((f"`{option.key}`", f"`{option.default}`", option.help + kind))
    return _drawn(("key", "default", "what it says"), rows)


def metrics_table() -> str:
    registry, rows = nano_service().meter.registry, []
    for family in registry.collect():
        labels = registry._names_to_collectors[family.name]._labelnames  # type: ignore[attr-defined]
        by = f", by {' and '.join(f'`{label}`' for label in labels)}" if labels else ""
        rows.append((f"`{family.name}`", family.type, family.documentation + by))
    return _drawn(("metric", "kind", "what it says"), rows)


def _drawn(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|---|---|", *[f"| {' | '.join(row)} |" for row in rows]]
    return "\n".join(lines) + "\n"


MADE = {"settings": settings_table, "metrics": metrics_table}


def between(name: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?<=<!-- {name}: python tests/test_serving_docs\.py -->\n)(.*?)(?=<!-- /{name} -->)", re.DOTALL
    )


@pytest.mark.parametrize("name", MADE)
def test_its_tables_are_what_the_code_says(name: str):
    [found] = between(name).findall(PAGE.read_text())
    assert found.strip() == MADE[name]().strip(), "run python tests/test_serving_docs.py"


# ---------------------------------------------------------------------------------------------------- what runs


@pytest.fixture(scope="module")
def here() -> Iterator[Served]:
    """A server as `mull serve` is without settings, but for its short thoughts."""
    with serving(nano_service(name="demo", effort="medium")) as server:
        yield server


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Started, str, str]]:
    """(the server that "Keys" starts, as a process; its API key; its admin key)"""
    folder = tmp_path_factory.mktemp("operated")
    [block] = of_kind("sh", having="openssl")
    *making, serve = block.strip().splitlines()
    bash("\n".join(making), folder)
    words = shlex.split(serve.replace("--host 0.0.0.0", "--model nano --port 0"))
    more = ["-o", "name=demo", "-o", "think_tokens=64", "-o", "answer_tokens=16"]
    with started([*words[1:], *more], folder) as server:
        yield server, (folder / "keys").read_text().strip(), (folder / "admin").read_text().strip()


def bash(text: str, folder: Path, **variables: str) -> str:
    """What commands print; AssertionError where one fails, curl's also by its status."""
    if "curl" in text and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    text = text.replace("curl ", "curl --fail-with-body ")
    command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(
        command, cwd=folder, env=environment(**variables), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_its_python_runs(here: Served):
    printed, namespace = [], dict[str, Any]()
    for code in of_kind("python"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code.replace(ADDRESS, here.url), str(PAGE), "exec"), namespace)
        printed.append(out.getvalue())
    chat, stream, responses, search = printed
    assert re.fullmatch(r".+\n\d+ of \d+ tokens\n", chat)
    assert "lines of thought have an answer" in stream and re.search(r"\n \d+ tokens\n$", stream)
    summary, length = re.findall(r"^\['(.*)'\] (\d+)$", responses, re.MULTILINE)[0]
    assert summary and int(length) > 100 and not responses.endswith("\n")
    assert re.fullmatch(r"vote 16 \[\{.*\}\] \d+\n", search)


def test_its_questions_by_curl_are_answered(here: Served, tmp_path: Path):
    said = {}
    for block in of_kind("sh", having="curl"):
        for command in re.split(r"^(?=curl )", block.replace(ADDRESS, here.url), flags=re.MULTILINE):
            if command and "$" not in block:
                said[command] = bash(command, tmp_path)
    chat, response, efforts, likelihood = said.values()
    assert json.loads(chat)["choices"][0]["message"]["reasoning_content"]
    assert "event: response.reasoning_summary_text.done" in response and "event: response.completed" in response
    assert {**json.loads(efforts)["efforts"]}.keys() == CHAINS.keys()
    [choice] = json.loads(likelihood)["choices"]
    values = choice["logprobs"]["token_logprobs"]
    assert choice["text"] == "a=3;b=a+4;b?" and values[0] is None and all(value < 0 for value in values[1:])


def test_two_checkpoints_are_asked_by_their_names(tmp_path: Path):
    [code], [command] = of_kind("python beside"), of_kind("sh beside")
    with serving(two_service(changed(tmp_path / "model", 0.03), "demo")) as server:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code.replace(ADDRESS, server.url), str(PAGE), "exec"), {})
        answers = [line.split() for line in out.getvalue().splitlines()]
        assert [name for name, *_ in answers] == ["nano", "demo"] and answers[0][1:] != answers[1][1:]
        told = json.loads(bash(command.replace(ADDRESS, server.url), tmp_path))
        assert told["model"] == "nano" and told["efforts"]["medium"]["requests"] == 1


def test_answer_now(tmp_path: Path):
    class Stuck(ScriptedSampler):
        asked = 0

        async def sample(self, *given: Any, **more: Any):
            self.asked += 1
            if self.asked == 1:
                await asyncio.sleep(100)
            return await super().sample(*given, **more)

    [command] = of_kind("sh", having="/answer")
    stuck = Stuck(thinking("a thought", "7"), nano()[1])
    with serving(scripted_service(thinking("", ""), sampler=stuck)) as server, server.http() as client:
        body = ask(stream=True, reasoning_effort="low")
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            id = stream.headers["x-request-id"]
            bash(command.replace(ADDRESS, server.url), tmp_path, ID=id)
            told = "".join(stream.iter_text())
        assert '"early":"asked"' in told and '"content":"7"' in told
        with pytest.raises(AssertionError, match="request_not_found"):
            bash(command.replace(ADDRESS, server.url), tmp_path, ID=id)


@pytest.mark.slow
def test_the_terminal_talks_to_it(here: Served, tmp_path: Path):
    [command] = [line for block in of_kind("sh", having="mull chat") for line in block.splitlines() if "echo" in line]
    assert bash(command.replace(ADDRESS, here.url), tmp_path).strip()


@pytest.mark.slow
def test_new_weights_are_loaded_as_it_says(operated: tuple[Started, str, str]):
    server, key, admin = operated
    [block] = of_kind("sh", having="x-mull-admin")
    post, signal_, watching = block.strip().splitlines()
    told = bash(post.replace(ADDRESS, server.url), server.folder, MULL_KEY=key, MULL_ADMIN=admin)
    assert json.loads(told)["policy_version"] == 1
    bash(signal_, server.folder, PID=str(server.process.pid))
    until(lambda: "mull_policy_version 2.0" in server.http(key).get("/metrics").text, 60)
    assert "watch_model" in watching


@pytest.mark.slow
def test_what_is_and_is_not_hidden(operated: tuple[Started, str, str]):
    server, key, _ = operated
    mark = "a=3;b=a+4;b?"
    with server.http(key) as client:
        asked = {"input": mark, "reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"]}
        kept = client.post("/v1/responses", json=asked).raise_for_status().json()
        unkept = client.post("/v1/responses", json={**asked, "store": False}).raise_for_status().json()
        assert client.get(f"/v1/responses/{unkept['id']}").status_code == 404
        inside = {"prompt": f"<|user|>{mark}<|end|><|assistant|><think>"}
        assert client.post("/v1/completions", json=inside).json()["error"]["code"] == "thoughts_hidden"
        again = {**asked, "input": [kept["output"][0], {"role": "user", "content": mark}]}
        assert client.post("/v1/responses", json=again).status_code == 200
        again["input"][0]["encrypted_content"] = kept["output"][0]["encrypted_content"][:-8] + "AAAAAAA="
        assert client.post("/v1/responses", json=again).json()["error"]["code"] == "invalid_encrypted_content"
        store = server.folder / "responses.sqlite"
        assert store.stat().st_mode & 0o777 == 0o600
        rows = sqlite3.connect(store).execute("SELECT id, input, thought FROM responses").fetchall()
        thought = {id: thought for id, text, thought in rows if mark in text}[kept["id"]]
        assert thought and unkept["id"] not in [row[0] for row in rows]
        assert "reasoning_text" not in json.dumps(kept) and thought not in json.dumps(kept)
    log = (server.folder / "err").read_text()
    assert mark not in log and thought not in log and key not in log


@pytest.mark.slow
def test_its_log_has_the_fields_that_it_says(operated: tuple[Started, str, str]):
    server, key, _ = operated
    with server.http(key) as client:
        client.post("/v1/chat/completions", json=ask(model="demo")).raise_for_status()
    logged = {key for line in server.log() if line["event"] == "request" for key in line}
    assert logged == {name for row in table("| field | what") for name in names(row[0])}
    assert {"ready"} <= {line["event"] for line in server.log()}


# -------------------------------------------------------------------------------------------------- what it names


def test_every_route_is_in_its_table(here: Served):
    document = here.http().get("/openapi.json").json()
    known = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    told = {name for row in table("| route |") for name in names(row[0])}
    assert told == known | {"GET /openapi.json"}


def test_every_field_of_answers_is_in_its_table():
    assert {name for row in table("in `mull`") for name in names(row[0])} == set(Statistics.model_fields)


def test_the_efforts_are_those_of_the_code():
    rows = table("without a calibration file")
    told = {word: said for words, said in rows for word in names(words)}
    assert told.keys() == WORDS.keys()
    for word, said in told.items():
        chains = CHAINS[WORDS[word]]
        assert said == "the answer at once" if word in ("none", "minimal") else str(chains) in said.replace("one", "1")


def properties(schema: Any) -> set[str]:
    """Names of fields, anywhere in a JSON document of schemas, and the values that they may have."""
    found = set[str]()
    if isinstance(schema, dict):
        found |= set(schema.get("properties", ()))
        found |= {one for one in schema.get("enum", ()) if isinstance(one, str)}
        schema = list(schema.values())
    for one in schema if isinstance(schema, list) else ():
        found |= properties(one)
    return found


def test_every_name_is_known(here: Served):
    """Every name_of_this_kind in the page's prose: a field, a setting, a metric, an error's code, or in deploy/."""
    document = here.http().get("/openapi.json").json()
    sources = "".join(path.read_text() for path in Path(serve_main.__file__).parent.glob("*.py"))
    known = properties(document) | {option.key for option in describe(Settings)} | set(re.findall(r'"(\w+)"', sources))
    known |= {word for path in DEPLOY.iterdir() for word in re.findall(r"\w+", path.read_text())}
    metrics = set(re.findall(r"\w+", here.http().get("/metrics").text))
    known |= metrics | {name.removesuffix("_total") for name in metrics}
    known |= {word for path in document["paths"] for word in re.findall(r"\w+", path)}
    code = " ".join(inline_code(PAGE.read_text()))
    named = set(re.findall(r"\b[a-z][a-z0-9]*(?:_[a-z0-9]+)+\b", code))
    assert len(named) > 100 and {name for name in named - known if not name.startswith("test_")} == set()
    headers = {"x-request-id", "x-mull-ignored", "x-mull-admin", "retry-after", "retry-after-ms", "x-accel-buffering"}
    for name in re.findall(r"`((?:x|X|R|r)[\w]*-[\w-]+)`", PAGE.read_text()):
        assert name.lower() in headers and name.lower() in sources.lower()


def test_its_seconds_are_those_of_the_code():
    text = " ".join(PAGE.read_text().split())
    said = {
        f"within {sse.PATIENCE:g} s": sse.PATIENCE,
        f"reads nothing of its stream for {sse.STUCK:g} s": sse.STUCK,
        f"after {serve_main.HEAD:g} s for its head": serve_main.HEAD,
        f"then {serve_main.ANSWER:g} s to answer": serve_main.ANSWER,
        f"may take {serve_main.FLUSH:g} s more": serve_main.FLUSH,
        f"waits a quarter of the time that it took, from {written.LEAST_WAIT:g} s to {written.MOST_WAIT:g} s": written,
        f"`stop`: up to {STOPS} strings": STOPS,
    }
    assert [words for words in said if words not in text] == []
    assert "timeout_keep_alive=75" in Path(serve_main.__file__).read_text() and "connections for 75 s" in text


REFUSALS: list[tuple[str, int, str, dict[str, Any]]] = [
    ("/v1/chat/completions", 404, "model_not_found", {"json": ask(model="gpt-9")}),
    ("/v1/nothing", 404, "unknown_url", {"json": {}}),
    ("/mull/requests/req_0/answer", 404, "request_not_found", {}),
    ("/mull/reload", 403, "reload_off", {}),
    ("/v1/chat/completions", 403, "host_not_allowed", {"json": ask(), "headers": {"Host": "mull.example.org"}}),
    ("/v1/completions", 413, "request_too_large", {"content": b" " * (Settings.max_body + 1)}),
    ("/v1/chat/completions", 400, "context_length_exceeded", {"json": ask("a" * 5000, model="demo")}),
    ("/v1/responses", 400, "unsupported_value", {"json": {"input": "a", "background": True}}),
    ("/v1/chat/completions", 400, "invalid_value", {"json": ask(model="demo", stop=["a"] * (STOPS + 1))}),
]


@pytest.mark.parametrize(("path", "status", "code", "options"), REFUSALS, ids=[one[2] for one in REFUSALS])
def test_its_refusals(here: Served, path: str, status: int, code: str, options: dict[str, Any]):
    answer = here.http().post(path, **options)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert f"`{code}`" in PAGE.read_text() or code == "invalid_value"


def test_what_is_ignored_is_said(here: Served):
    asked = ask(model="demo", logprobs=True, tools=[{"type": "function"}], top_k=5, temperature=0.5)
    answer = here.http().post("/v1/chat/completions", json=asked)
    assert set(answer.headers["x-mull-ignored"].split(", ")) == {"logprobs", "tools", "top_k", "temperature"}
    assert set(answer.json()["mull"]["ignored"]) == {"logprobs", "tools", "top_k", "temperature"}


STRICT: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "presence_penalty": 1,
    "logprobs": True,
    "logit_bias": {"1": 1},
    "n": 2,
}
STRICT |= {"tools": [{"type": "function"}], "parallel_tool_calls": True, "max_tokens": 9, "reasoning_effort": "none"}
STRICT |= {"stop": [*"abcde"], "thinking_token_budget": 9, "made_up": 1, "model": None}


def test_a_strict_server_refuses_what_it_says():
    service = nano_service(name="demo", params="strict_o1")
    taken = [ask(model="demo", mull={"samples": 2}), ask(model="demo", max_completion_tokens=50)]
    refused = [{**ask(model="demo"), key: value} for key, value in STRICT.items()]
    answers = calls(service, [("POST", "/v1/chat/completions", {"json": body}) for body in [*taken, *refused]])
    assert [status for status, _, _ in answers] == [200] * len(taken) + [400] * len(refused)
    assert {body["error"]["param"] for _, _, body in answers[len(taken) :]} == STRICT.keys()


def serve_lines() -> list[str]:
    text = "\n".join(of_kind("sh")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("mull serve")]


@pytest.mark.parametrize("line", serve_lines())
def test_its_command_lines_are_taken(line: str, monkeypatch: pytest.MonkeyPatch):
    words = shlex.split(line, comments=True)
    settings = settings_of(words[1:], monkeypatch)
    for key, value in re.findall(r"-o (\w+)=(\S+)", line):
        assert str(getattr(settings, key)) in (value, f"{value}.0")


# ---------------------------------------------------------------------------------------------------- real clients


def client(name: str, home: Path) -> tuple[str, dict[str, str]]:
    """(the interpreter of a client's own environment, variables)"""
    from tests.clients import environments

    try:
        interpreter = environments.python(name)
    except environments.Unavailable as problem:
        pytest.skip(str(problem))
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "MULL_KEY": "unused", "OPENAI_API_KEY": "unused"}
    return str(interpreter), environments.lent(home, **local)


def run(interpreter: str, variables: dict[str, str], folder: Path, *words: str) -> str:
    command = [interpreter, *words]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


ROUTED = """
answer = litellm.Router(model_list=yaml.safe_load(open("litellm.yaml"))["model_list"]).completion(
    model="mull", messages=[{"role": "user", "content": "a=3;b=a+4;b?"}], reasoning_effort="high"
)
print(answer.choices[0].message.reasoning_content, answer.choices[0].message.content, sep="\\n")
"""


@CLIENTS
@pytest.mark.parametrize("which", ["package", "router"])
def test_litellm(here: Served, tmp_path: Path, which: str):
    interpreter, variables = client("litellm", tmp_path)
    [code], [config] = of_kind("python litellm"), of_kind("yaml", having="model_list")
    (tmp_path / "litellm.yaml").write_text(config.replace(ADDRESS, here.url))
    program = code.replace(ADDRESS, here.url) if which == "package" else f"import litellm, yaml\n{ROUTED}"
    told = run(interpreter, variables, tmp_path, "-c", program)
    assert "32 lines of thought" in told and told.strip().splitlines()[-1]


@CLIENTS
@pytest.mark.parametrize("kind", ["local-chat-completions", "local-completions"])
def test_lm_eval(here: Served, tmp_path: Path, kind: str):
    from mull.models.nano import shipped_folder

    interpreter, variables = client("lm-eval", tmp_path)
    [block] = of_kind("sh", having="lm_eval")
    [line] = [one for one in block.replace("\\\n", " ").splitlines() if f"--model {kind} " in one]
    line = line.replace(ADDRESS, here.url).replace("runs/demo/model", str(shipped_folder()))
    words = shlex.split(re.sub(r"--tasks \w+", f"--tasks mine --include_path {tmp_path}", line))
    (tmp_path / "data.jsonl").write_text('{"text": "a=3;b=a+4;b?", "answer": "7", "choices": ["7", "8"]}\n')
    task = {"task": "mine", "test_split": "test", "dataset_path": "json", "doc_to_text": "{{text}}"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}}, "doc_to_target": "{{answer}}"}
    metric = "exact_match" if "chat" in kind else "acc"
    task |= {"metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]}
    if metric == "acc":
        task |= {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": 0}
    else:
        task |= {"output_type": "generate_until", "generation_kwargs": {"until": [], "max_gen_toks": 512}}
    (tmp_path / "mine.yaml").write_text(json.dumps(task))
    assert metric in run(interpreter, variables, tmp_path, "-m", *words)


if __name__ == "__main__":
    text = PAGE.read_text()
    for name, make in MADE.items():
        made = make()
        text = between(name).sub(lambda _: made, text)  # noqa: B023  # called at once
    PAGE.write_text(text)
