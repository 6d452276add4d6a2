"""schemathesis, unchanged, sends whatever the server's OpenAPI document allows and forbids: 10,000 requests in all.

MULL_CASES=500 makes fewer, for a quick look; what its coverage of every keyword of the schemas needs is sent anyway.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.running import PROGRAMS, run
from tests.clients.server import served

CLIENT = "schemathesis"
CASES = int(os.environ.get("MULL_CASES", "10000"))
ADMIN = "admin-0123456789abcdef"
PHASES = "coverage,fuzzing"
# (operations, phases, of 100 requests those that fuzzing makes for each operation, or the stories that are told).
PARTS = {
    "chat": ("^/v1/chat/completions$", PHASES, 30),
    "responses": ("^/v1/responses$", PHASES, 30),
    "completions": ("^/v1/completions$", PHASES, 30),
    # Responses that were made are read, deleted, read again, as the document's links say.
    "stories": ("^/v1/responses", "stateful", 1),
    # To invent a text that is no text for a path is slow, so that these are few.
    "others": ("^/(v1/responses/.*|health|metrics|v1/models.*|mull/efforts|mull/requests.*)$", PHASES, 0.5),
    "reload": ("^/mull/reload$", "fuzzing", 0.1),  # loads the weights anew
}
# A request costs little, so that the requests are what takes the time.
CHEAP = ("think_tokens=16", "answer_tokens=8", "max_samples=4", "max_choices=2", "queue_seconds=300")
pytestmark = pytest.mark.timeout(6 * 3600)


def sent(client, server, folder, part):
    """schemathesis' own report on its requests to one part of the server."""
    paths, phases, share = PARTS[part]
    report = folder / part / "report.json"
    command = [str(client), "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {server.key}", "--header", f"x-mull-admin: {ADMIN}"]
    command += ["--include-path-regex", paths, "--phases", phases]
    command += ["--max-examples", str(max(1, round(CASES * share / 100))), "--seed", "1", "--no-shrink"]
    command += ["--continue-on-failure", "--exclude-checks", "positive_data_acceptance", "--request-timeout", "3000"]
    command += ["--generation-database", "none", "--warnings", "off", "--no-color", "--report", "json"]
    command += ["--report-json-path", str(report)]
    # How fast it invents requests is no matter of ours.
    command += ["--suppress-health-check", "all"]
    hooks = {"SCHEMATHESIS_HOOKS": str(PROGRAMS / "schemathesis_checks.py")}
    out = run(command, folder / part, hooks, (0, 1))
    assert report.exists(), out[-4000:]
    return json.loads(report.read_text()), out


def test_whatever_the_document_allows_and_forbids(client, tmp_path, say):
    (tmp_path / "admin").write_text(ADMIN)
    options = [word for option in (*CHEAP, f"admin={json.dumps(str(tmp_path / 'admin'))}") for word in ("-o", option)]
    begun = time.monotonic()
    with served(tmp_path / "server", *options) as server:
        with ThreadPoolExecutor(3) as pool:
            told = dict(zip(PARTS, pool.map(lambda part: sent(client, server, tmp_path, part), PARTS), strict=True))
        asked, spent, seconds = server.metrics(), server.cpu_seconds(), time.monotonic() - begun
        counts = {part: report["test_cases"]["generated"] for part, (report, _) in told.items()}
        took = f"in {seconds:.0f} s, {spent:.0f} s of the server's processor"
        say(f"schemathesis: {sum(counts.values())} requests {took}: {counts}")
        wrong = [
            f"{part}:\n{out[-20000:]}"
            for part, (report, out) in told.items()
            if report["failures"] or report["errors"] or not report["complete"]
        ]
        assert not wrong, "\n".join(wrong)
    assert sum(counts.values()) >= CASES
    assert asked["versions"] == 1 and asked["reloads"] > 0  # old weights are gone
    # What is refused does not show much: most requests that are valid are answered.
    for part, name in (("chat", "chat/completions"), ("responses", "responses"), ("completions", "completions")):
        rates = told[part][0]["valid_rates"][f"POST /v1/{name}"]
        accepted, rejected = (sum(phase[kind] for phase in rates.values()) for kind in ("accepted", "rejected"))
        assert accepted > rejected, (part, rates)
