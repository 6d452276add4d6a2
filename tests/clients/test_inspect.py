"""inspect-ai, unchanged, runs a task to a score, and reads the thoughts and their tokens on the way."""

import json
import shutil

import pytest

from tests.clients.problems import N, graded, written
from tests.clients.running import PROGRAMS, run

CLIENT = "inspect-ai"
MODEL = "openai-api/mull/nano"
pytestmark = pytest.mark.timeout(4000)


@pytest.mark.parametrize("way", ["whole", "stream=true", "responses_api=true"])
def test_a_task_is_run_to_a_score(client, server, tmp_path, say, way):
    written(tmp_path / "problems.jsonl")
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(PROGRAMS / "inspect_problems.py", work)  # it looks for tasks below the folder that it runs in
    command = [str(client), "-m", "inspect_ai", "eval", "inspect_problems.py", "--model", MODEL]
    command += ["-T", f"file={tmp_path / 'problems.jsonl'}", "--reasoning-effort", "high", "--seed", "2"]
    command += ["--reasoning-summary", "auto", "--max-retries", "0", "--max-connections", "4"]
    command += ["--log-dir", str(tmp_path / "logs"), "--log-format", "json", "--display", "plain"]
    out = run(
        [*command, *([] if way == "whole" else ["-M", way])],
        work,
        {"MULL_BASE_URL": f"{server.url}/v1", "MULL_API_KEY": server.key},
    )
    (path,) = (tmp_path / "logs").glob("*.json")
    log = json.loads(path.read_text())
    assert log["status"] == "success", out[-4000:]
    (metrics,) = [score["metrics"] for score in log["results"]["scores"] if score["name"] == "match"]
    answers, thoughts = {}, {}
    for sample in log["samples"]:
        (choice,) = sample["output"]["choices"]
        parts = {part["type"]: part for part in choice["message"]["content"]}
        answers[sample["id"]], thoughts[sample["id"]] = parts["text"]["text"], parts["reasoning"]
        assert choice["stop_reason"] == "stop"
        usage = sample["output"]["usage"]
        assert 0 < usage["reasoning_tokens"] < usage["output_tokens"]
    say(f"inspect-ai, {way}: accuracy {metrics['accuracy']['value']:g} of {N} problems")
    assert metrics["accuracy"]["value"] == graded(answers) > 0
    assert all((thought.get("summary") or thought["reasoning"]).strip() for thought in thoughts.values())
    spent = log["stats"]["model_usage"][MODEL]
    assert spent["reasoning_tokens"] == sum(s["output"]["usage"]["reasoning_tokens"] for s in log["samples"])
    assert spent["reasoning_tokens"] > 20 * N
