"""Real clients take minutes and packages of their own: they run when they are asked for, with `make test-clients`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.server import Served, served

collect_ignore_glob = [] if os.environ.get("MULL_CLIENTS") else ["test_*.py"]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Tells a figure of a run, whether or not it passes."""

    def said(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", flush=True)

    return said


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all clients that need no other."""
    with served(tmp_path_factory.mktemp("server"), "-o", "think_tokens=128", "-o", "answer_tokens=16") as running:
        yield running


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest) -> Path:
    """The interpreter of the environment that a module's CLIENT names; a skip, with the reason, where there is none."""
    try:
        return environments.python(request.module.CLIENT)
    except environments.Unavailable as problem:
        pytest.skip(str(problem))
