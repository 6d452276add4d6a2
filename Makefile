# make demo    install mull into .venv and run the demonstration: base model, RL, both curves, report
# make test    run the tests            make test-fast  the same without the slow ones
# make test-clients  real clients against the server: openai, inspect-ai, lm-eval, LiteLLM, schemathesis
# make lint    ruff and pyright         make bench      compare speed with transformers and TRL
# make docs    rewrite the generated tables of README.md and docs/       make clean
# make serve-env  an environment with `transformers serve`, for the endpoint's slow test and benchmark
#
# PYTHON=python3.12  the interpreter that the environment is built with
# VENV=DIR           where the environment lives
# PIP_ARGS=...       more arguments for pip install, such as the index of PyTorch's CPU builds
# DEMO_ARGS=...      more arguments for `mull demo`
# BENCH_ARGS=...     more arguments for `mull bench`, such as -o profile=true
# TEST_ARGS=...      more arguments for pytest, such as tests/test_config.py
# MULL_CASES=500     requests that schemathesis sends, instead of 10,000

PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
SERVE_VENV ?= .venv-serve
PIP_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
TEST_ARGS ?=

# Threads that spin while they wait ruin each other's speed as soon as the machine has something else to do.
export OMP_WAIT_POLICY = passive

BIN := $(VENV)/bin
PYTAG := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])' 2>/dev/null)
PINS := $(wildcard constraints/cpu-$(PYTAG).txt)
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) $(if $(PINS),--constraint $(PINS))
INPUTS := pyproject.toml $(wildcard constraints/*.txt)

.PHONY: demo test test-fast test-clients lint bench docs clean serve-env
.DEFAULT_GOAL := help
.PHONY: help
help:
	@sed -n '1,/^$$/{s/^# \{0,1\}//p}' Makefile

demo: $(VENV)/.mull-core
	$(BIN)/mull demo --out runs/demo --resume $(DEMO_ARGS)

# One process more than two cores can run, of one thread each: a quarter of the time a test waits for a page, a process
# or a clock. More threads per process would only fight over the same cores.
test: $(VENV)/.mull-dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 3 $(TEST_ARGS)

test-fast: $(VENV)/.mull-dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 3 -m "not slow" $(TEST_ARGS)

# Each client has an environment of its own below ~/.cache/mull/clients, which the first run makes in minutes. A client
# whose packages cannot be had is skipped, and -rs says so.
test-clients: $(VENV)/.mull-dev
	MULL_CLIENTS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	  $(BIN)/python -m pytest -rs tests/clients $(TEST_ARGS)

lint: $(VENV)/.mull-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(BENCH_VENV)/.mull-bench
	$(BENCH_VENV)/bin/mull bench rollout $(BENCH_ARGS)
	$(BENCH_VENV)/bin/mull bench rl-step $(BENCH_ARGS)

serve-env: $(SERVE_VENV)/.mull-serve

docs: $(VENV)/.mull-core
	$(BIN)/python -m mull.evals.tables README.md docs

clean:
	rm -rf $(VENV) $(BENCH_VENV) $(SERVE_VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says that its set of packages went in after the last change of pyproject.toml and the constraints.
$(VENV)/.mull-core: $(INPUTS)
	$(call environment,$(VENV))
	@echo "mull: installing mull$(if $(PINS), with the versions of $(PINS)) into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) --editable . || { echo "mull: the installation failed; see pip's message above" >&2; exit 1; }
	@touch $@

$(VENV)/.mull-dev: $(INPUTS)
	$(call environment,$(VENV))
	@echo "mull: installing mull and what its tests need$(if $(PINS), with the versions of $(PINS)) into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) --editable '.[dev]' || { echo "mull: the installation failed; see pip's message above" >&2; exit 1; }
	@touch $@ $(VENV)/.mull-core

# torch first and alone, so that the peers cannot pull in another build of it.
$(BENCH_VENV)/.mull-bench: $(INPUTS) benchmarks/requirements.txt
	$(call environment,$(BENCH_VENV))
	@echo "mull: installing mull and the peers that it is compared with into $(BENCH_VENV)"
	@$(BENCH_VENV)/bin/python $(PIP_INSTALL) 'torch>=2.11,<=2.13.0' && \
	  $(BENCH_VENV)/bin/python $(PIP_INSTALL) --requirement benchmarks/requirements.txt --editable . || { echo "mull: the installation failed; see pip's message above" >&2; exit 1; }
	@touch $@

# A server of somebody else's, so nothing of mull is in it.
$(SERVE_VENV)/.mull-serve: $(INPUTS)
	$(call environment,$(SERVE_VENV))
	@echo "mull: installing transformers serve into $(SERVE_VENV)"
	@$(SERVE_VENV)/bin/python $(PIP_INSTALL) 'torch>=2.11,<=2.13.0' && \
	  $(SERVE_VENV)/bin/python $(PIP_INSTALL) 'torch>=2.11,<=2.13.0' 'transformers[serving]>=5.17' || { echo "mull: the installation failed; see pip's message above" >&2; exit 1; }
	@touch $@

# Makes the environment $(1) when it is absent, or when its interpreter has gone or has no pip.
define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "mull: needs Python 3.11 or newer, and '$(PYTHON)' is not: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
  echo "mull: making a virtual environment in $(1) with $$($(PYTHON) --version)"; \
  $(PYTHON) -m venv --clear $(1) || { \
    echo "mull: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; }
endef
