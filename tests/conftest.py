"""One thread per test process (two processes share two cores), and property tests that do not fail for being slow."""

import gc
import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before anything imports torch or numpy
    os.environ.setdefault(name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# In CI the same examples each time: a gate must say the same thing about the same commit.
settings.register_profile("mull", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mull")

# What is written is read by processes of the same machine, which never loses its power here, and a killed process takes
# nothing of it along. Runs write often, and each write would wait for the disk; commands that a test starts do wait.
os.fsync = lambda fd: None


@pytest.fixture(scope="module")
def browser():
    """One Chromium for the tests of a file; those are marked `chromium.needed`."""
    from tests.evals import chromium

    browser = chromium.Browser(chromium.find())
    yield browser
    browser.close()


def pytest_collection_finish() -> None:
    """What is imported by now stays to the end: nobody need look through it for garbage again. A report collects after
    each model, and there a whole process of tests would be gone through."""
    gc.collect()
    gc.freeze()
