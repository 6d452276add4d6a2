"""One thread per test process (two processes share two cores), and property tests that do not fail for being slow."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before anything imports torch or numpy
    os.environ.setdefault(name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings  # noqa: E402

# In CI the same examples each time: a gate must say the same thing about the same commit.
settings.register_profile("mull", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mull")
