"""What the page's routes send: a strict policy, listed files alone, and no hidden thought in any event."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from mull.serve import page_api
from mull.serve.job import Progress, Result, Thought, follow
from mull.serve.page_api import ASSETS, Telling, examples
from mull.serve.plan import Wish
from mull.tasks.load import PUZZLES
from tests.serve.tools import (
    QUESTION,
    ask,
    call,
    calls,
    idle,
    nano,
    nano_service,
    post,
    scripted_service,
    serving,
    thinking,
    until,
)

PAGE = Path(page_api.__file__).parent / "page"
TREES = ("alder", "birch", "cedar", "elder", "fir", "gorse", "hazel")
LINES = [f"line {i} says {tree}" for i, tree in enumerate(TREES)]
STRATEGIES = ["", "vote", "beam:expand=2", "mcts", "wait:waits=1"]


def told(text: str) -> list[tuple[str, dict]]:
    """[(name, data)] of a stream."""
    blocks = [b for b in text.split("\n\n") if b and not b.startswith(":")]
    pairs = [block.split("\n") for block in blocks]
    assert all(len(p) == 2 and p[0].startswith("event: ") and p[1].startswith("data: ") for p in pairs)
    return [(name[7:], json.loads(data[6:])) for name, data in pairs]


def asked(service, **more):
    status, headers, text = post(service, "/mull/ask", ask(**more))
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    found = told(text)
    assert found[0][0] == "begun" and found[-1][0] == "result" and len([n for n, _ in found if n == "result"]) == 1
    assert headers["x-request-id"] == found[0][1]["request"]
    return found


def nodes_of(found) -> dict[int, dict]:
    nodes = {}
    for name, data in found:
        if name == "nodes":
            nodes.update({node["id"]: node for node in data})
    return nodes


# ------------------------------------------------------------------------------------------------- the files


def test_the_policy_allows_the_server_s_own_files_and_nothing_else():
    _, headers, _ = call(nano_service(), "GET", "/")
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["connect-src"] == "'self'" and "unsafe" not in headers["content-security-policy"]
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'" and policy["trusted-types"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert headers["content-type"] == "text/html; charset=utf-8"


class Parts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.inside: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags[-1:] and self.tags[-1][0] in ("script", "style") and data.strip():
            self.inside.append(data)


def test_the_page_has_nothing_inline_and_names_listed_files_alone():
    parts = Parts()
    parts.feed((PAGE / "index.html").read_text())
    assert parts.inside == []
    assert not [a for _, attrs in parts.tags for a in attrs if a == "style" or a.startswith("on")]
    named = {attrs[k].removeprefix("mull/assets/") for _, attrs in parts.tags for k in ("src", "href") if k in attrs}
    assert named and named <= set(ASSETS)
    for name in ASSETS:
        if name.endswith(".js") and name not in ("d3.js", "htm-preact.js"):
            source = (PAGE / name).read_text()
            imported = re.findall(r'from "([^"]+)"', source)
            assert all(i.startswith("./") and i[2:] in ASSETS for i in imported), name
            for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
                assert sink not in source, f"{name} has {sink}"
            assert "style=" not in source and not re.search(r"https?://", source), name
    assert {f.name for f in PAGE.iterdir() if f.is_file()} - {"index.html"} == {
        n for n, (package, _) in ASSETS.items() if package == "mull.serve" and n != "htm-preact.js"
    }


def test_every_file_is_served_with_its_type_and_kept_until_it_changes():
    service = nano_service()
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    first = calls(service, [("GET", f"/mull/assets/{name}", {}) for name in ASSETS])
    for name, (status, headers, _) in zip(ASSETS, first, strict=True):
        assert status == 200 and headers["content-type"].startswith(types[name.rpartition(".")[2]])
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-cache"
    again = [
        ("GET", f"/mull/assets/{name}", {"headers": {"if-none-match": headers["etag"]}})
        for name, (_, headers, _) in zip(ASSETS, first, strict=True)
    ]
    assert {status for status, _, _ in calls(service, again)} == {304}
    assert len({headers["etag"] for _, headers, _ in first}) == len(ASSETS)


@pytest.mark.parametrize(
    "name",
    [
        *("index.html", "settings.py", "../page_api.py", "..%2fpage_api.py", "%2e%2e/page_api.py", "vendor/README.md"),
        *("vendor/htm-preact.js", "d3.min.js", "", "page.css/", "page.css%00", "report.html", "/etc/passwd"),
    ],
)
def test_no_other_file_can_be_had(name):
    status, _, body = call(nano_service(), "GET", f"/mull/assets/{name}")
    assert status == 404 and body["error"]["type"] == "invalid_request_error"


def test_what_is_vendored_is_what_its_table_says():
    folder = PAGE / "vendor"
    table = (folder / "README.md").read_text()
    assert hashlib.sha256((folder / "htm-preact.js").read_bytes()).hexdigest() in table
    assert {f.name for f in folder.iterdir()} == {"README.md", "htm-preact.js", "htm.LICENSE", "preact.LICENSE"}
    assert "Apache License" in (folder / "htm.LICENSE").read_text()
    assert "MIT License" in (folder / "preact.LICENSE").read_text()
    assert not (folder / "d3.js").exists() and files("mull.evals").joinpath("assets/d3.min.js").is_file()


def test_an_operator_may_want_no_page():
    service = nano_service(page=False)
    for method, path in (
        ("GET", "/"),
        ("GET", "/mull/assets/page.css"),
        ("GET", "/mull/config"),
        ("POST", "/mull/ask"),
    ):
        assert call(service, method, path, **({"json": ask()} if method == "POST" else {}))[0] == 404


def test_with_keys_the_page_loads_and_nothing_else_answers(tmp_path):
    (tmp_path / "keys").write_text("sesame\n")
    service = nano_service(keys=tmp_path / "keys", think_tokens=8)
    public = [call(service, "GET", path)[0] for path in ("/", "/mull/assets/page.css", "/mull/assets/d3.js")]
    assert public == [200] * 3
    asking = {"json": ask(reasoning_effort="none")}
    checking = {"json": {"id": next(iter(examples())), "answer": "1"}}
    locked = [("GET", "/mull/config", {}), ("GET", "/mull/examples", {}), ("POST", "/mull/ask", asking)]
    locked += [("POST", "/mull/check", checking), ("GET", "/mull/assets/../config", {})]
    for method, path, options in locked[:4]:
        status, _, body = call(service, method, path, **options)
        assert status == 401 and "API key" in body["error"]["message"]
        key = {"headers": {"authorization": "Bearer sesame"}}
        assert call(service, method, path, **options, **key)[0] == 200
    assert call(service, "GET", locked[4][1])[0] in (401, 404)


# -------------------------------------------------------------------------------------- what there is to choose


def test_the_strategies_offered_are_those_that_run():
    with_scorer = call(nano_service(), "GET", "/mull/config")[2]
    without = call(scripted_service(thinking("a", "b")), "GET", "/mull/config")[2]
    assert (with_scorer["model"], with_scorer["thoughts"], with_scorer["think_tokens"]) == ("nano", False, 64)
    names = {s["name"] for s in without["models"][0]["strategies"]}
    assert {"vote", "wait", "adaptive"} <= names and not names & {"beam", "mcts", "auto", "roles"}
    offered = {s["name"] for s in with_scorer["models"][0]["strategies"]}
    assert {"beam", "mcts", "best-of-n"} <= offered and not offered & {"auto", "roles"}
    assert call(nano_service(thoughts="shown"), "GET", "/mull/config")[2]["thoughts"] is True


def test_examples_have_every_task_and_level_and_no_answer():
    status, _, body = call(nano_service(), "GET", "/mull/examples")
    assert status == 200 and [t["task"] for t in body["tasks"]] == list(PUZZLES)
    for told_task in body["tasks"]:
        task = examples()[told_task["problems"][0]["id"]][0]
        assert {p["level"] for p in told_task["problems"]} == set(task.levels)
        for p in told_task["problems"]:
            assert set(p) == {"id", "level", "text"} and p["text"] == examples()[p["id"]][1].question.text


def test_an_answer_to_an_example_is_judged_here():
    service = nano_service()
    task, problem = examples()[next(id for id in examples() if id.startswith("chain/"))]
    right, wrong = problem.reference.answer, task.red_team(problem)[0]  # type: ignore[attr-defined]
    for answer, correct in ((right, True), (wrong, False), ("", False)):
        status, _, body = post(service, "/mull/check", {"id": problem.question.id, "answer": answer})
        assert (status, body) == (200, {"correct": correct})
    status, _, body = post(service, "/mull/check", {"id": "chain/1/none", "answer": "1"})
    assert status == 400 and body["error"]["param"] == "id" and right not in json.dumps(body)
    assert post(service, "/mull/check", {"id": problem.question.id, "answer": 7})[2]["error"]["param"] == "answer"


# ------------------------------------------------------------------------------------------------------- asking


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_stream_tells_the_answer_that_the_api_gives_and_its_tree(strategy):
    service = nano_service(thoughts="shown")
    more = {"seed": 5, "mull": {"strategy": strategy, "samples": 4} if strategy else None}
    found = asked(service, **more)
    result = found[-1][1]
    body = post(nano_service(), "/v1/chat/completions", ask(**more))[2]  # a fresh one, with nothing in its cache
    message = body["choices"][0]["message"]
    assert result["content"] == message["content"] and result["usage"] == body["usage"]
    assert result["finish"] == body["choices"][0]["finish_reason"]
    assert {k: v for k, v in result["mull"].items() if "second" not in k and k != "first_token"} == {
        k: v for k, v in body["mull"].items() if "second" not in k and k != "first_token"
    }
    assert result["content"] == "".join(d["text"] for n, d in found if n == "delta")
    nodes = nodes_of(found)
    assert all(n["parent"] in nodes or n["parent"] == -1 for n in nodes.values())
    assert nodes[result["winner"]]["answer"] and nodes[result["winner"]]["text"].strip() == result["content"]
    assert sum(n["tokens"] for n in nodes.values()) <= body["usage"]["completion_tokens"]
    assert found[0][1]["prompt_tokens"] == body["usage"]["prompt_tokens"]
    assert [d["tokens"] for n, d in found if n == "progress"] == sorted(
        d["tokens"] for n, d in found if n == "progress"
    )
    assert idle(service)


def test_the_tree_has_what_the_search_thought_of_its_steps():
    found = asked(nano_service(), seed=5, mull={"strategy": "beam:expand=4", "samples": 16})
    result, nodes = found[-1][1], nodes_of(found)
    way, at = set(), result["winner"]
    while at >= 0:
        way.add(at)
        at = nodes[at]["parent"]
    assert result["pruned"] and not way & set(result["pruned"]) and set(result["pruned"]) < set(nodes)
    for at in result["pruned"]:  # what is below a pruned step is pruned
        assert all(n["id"] in result["pruned"] for n in nodes.values() if n["parent"] == at)
    scores = dict(result["scores"])
    assert way <= set(scores) and all(0 <= s <= 1 for s in scores.values()) and len(set(scores.values())) > 3


def script(prefix: tuple[int, ...]) -> str | None:
    """Every thought is all lines, also one that is made to go on; every answer is 42."""
    text = nano()[1].decode(prefix)
    return "42" if text.endswith("</think>") else None if text.endswith("42") else "\n".join(LINES) + "</think>"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hidden_thoughts_never_leave(strategy):
    """No line of a thought is in the stream, where the operator does not show thoughts and wants no summaries."""
    more = {"mull": {"strategy": strategy, "samples": 4}} if strategy else {"reasoning_effort": "low"}

    def sent(thoughts):
        options = {"think_tokens": 200, "answer_tokens": 8, "summaries": "none", "thoughts": thoughts}
        scored = strategy.startswith(("beam", "mcts"))  # by the model, which no script has
        return asked(nano_service(**options) if scored else scripted_service(script, **options), seed=1, **more)

    shown, hidden = sent("shown"), sent("hidden")
    lines = {n["text"].strip() for n in nodes_of(shown).values() if not n["answer"]}
    assert {line for line in lines if len(line) > 5} and shown[-1][1]["thought"]
    text = json.dumps(hidden)
    assert not [line for line in lines if len(line) > 5 and line in text]
    assert not any("text" in node for node in nodes_of(hidden).values())
    assert {n for n, _ in hidden} <= {"begun", "progress", "nodes", "delta", "result"}
    assert "thought" not in hidden[-1][1] and hidden[-1][1]["content"] == shown[-1][1]["content"]
    assert [n["tokens"] for n in nodes_of(hidden).values()] == [n["tokens"] for n in nodes_of(shown).values()]
    votes = {v["answer"] for v in hidden[-1][1]["mull"]["votes"]}
    assert hidden[-1][1]["answers"] and {text for _, text in hidden[-1][1]["answers"]} <= votes


def test_hidden_thoughts_are_told_by_their_summary_alone():
    service = scripted_service(thinking("\n".join(LINES), "42"), think_tokens=200)
    text = post(service, "/mull/ask", ask(reasoning_effort="low"))[2]
    sections = [d for n, d in told(text) if n == "section"]
    summary = post(service, "/v1/chat/completions", ask(reasoning_effort="low"))[2]["choices"][0]["message"]
    assert "\n\n".join(f"**{s['title']}**\n\n{s['text']}" for s in sections) == summary["reasoning_content"]
    rest = "".join(f"{n}{json.dumps(d)}" for n, d in told(text) if n != "section")
    assert sections and not any(line in rest for line in LINES) and "thought" not in [n for n, _ in told(text)]


def test_shown_thoughts_come_as_they_are_thought():
    service = scripted_service(thinking("\n".join(LINES), "42"), think_tokens=200, thoughts="shown")
    found = asked(service, reasoning_effort="low")
    assert "".join(d["text"] for n, d in found if n == "thought").strip() == "\n".join(LINES)
    assert found[-1][1]["thought"] == "\n".join(LINES)
    assert [n["text"].strip() for n in nodes_of(found).values()] == [*LINES, "42"]  # without the closing tag


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"n": 2}, 400, "n"),
        ({"model": "other"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"reasoning_effort": "much"}, 400, "reasoning_effort"),
        ({"mull": {"strategy": "bogus"}}, 400, "mull.strategy"),
        ({"messages": [{"role": "user", "content": "a" * 5000}]}, 400, "messages"),
        ({"thinking_token_budget": -1}, 400, "thinking_token_budget"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_openai_s_shape(body, status, param):
    got, headers, said = post(nano_service(), "/mull/ask", {**ask(), **body})
    assert got == status and said["error"]["param"] == param and headers["content-type"] == "application/json"


def test_a_reader_that_leaves_takes_the_work_along():
    service = scripted_service(thinking("a", "b"), seconds=30)
    with serving(service) as server, server.http() as http:
        with http.stream("POST", "/mull/ask", json=ask()) as response:
            pieces = response.iter_text()
            assert next(pieces).startswith("event: begun")
            assert len(service.jobs) == 1
        until(lambda: not service.jobs, 20)


def test_branches_under_way_are_told_by_their_size():
    service = nano_service()

    async def run():
        async with service.job(Wish(({"role": "user", "content": QUESTION},), strategy="vote", samples=4), "r") as job:
            telling, seen = Telling(job, shown=False, summaries=False), []
            async for event in follow(job, tick=0):
                assert telling.tell(event) is None or not isinstance(event, Thought)
                if isinstance(event, Progress):
                    seen.append(telling.tell(event)[1]["running"])  # type: ignore[index]
            assert isinstance(event, Result)
            return seen

    seen = asyncio.run(run())
    most = max(seen, key=len)
    assert 1 < len(most) <= 4 and all(parent >= -1 and tokens >= 0 for parent, tokens in most)
    assert any(tokens > 0 for running in seen for _, tokens in running)
