"""The `openai` package, unchanged: what it reads of answers, streams and refusals."""

import pytest

from tests.clients.running import names, told
from tests.clients.server import served

CLIENT = "openai"
pytestmark = pytest.mark.timeout(4000)


@pytest.fixture(scope="module")
def calls(client, server, tmp_path_factory):
    return told(client, "openai_calls.py", tmp_path_factory.mktemp("calls"), MULL_URL=server.url, MULL_KEY=server.key)


@pytest.fixture(scope="module")
def refused(client, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    narrow = ("--params", "strict_o1", "-o", "max_sequences=1", "-o", "queue=0", "-o", "queue_seconds=1")
    with served(folder, *narrow, "-o", "think_tokens=64") as server:
        return told(client, "openai_refused.py", folder, MULL_URL=server.url, MULL_KEY=server.key)


@pytest.mark.parametrize("check", names("openai_calls.py"))
def test_answers(calls, check):
    assert not calls[check], calls[check]


@pytest.mark.parametrize("check", names("openai_refused.py"))
def test_refusals(refused, check):
    assert not refused[check], refused[check]
