"""LiteLLM, unchanged: whether it finds thoughts and their tokens where it looks for them."""

import pytest

from tests.clients.running import names, told

CLIENT = "litellm"
pytestmark = pytest.mark.timeout(4000)


@pytest.fixture(scope="module")
def calls(client, server, tmp_path_factory):
    # Otherwise it fetches a table of prices when it is imported.
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    where = {"MULL_URL": server.url, "MULL_KEY": server.key}
    return told(client, "litellm_calls.py", tmp_path_factory.mktemp("calls"), **where, **local)


@pytest.mark.parametrize("check", names("litellm_calls.py"))
def test_litellm(calls, check):
    assert not calls[check], calls[check]
