# Everything from a bare Python >= 3.11. `make simulate` and `make test` build .venv on their own.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help simulate test test-all lint bench clean

help:
	@echo "make simulate   four hospitals learn on real data, in half a minute after installation"
	@echo "make test       lint, types and tests"
	@echo "make test-all   the slow proofs too"
	@echo "make bench      benchmarks, as tables"

# The CPU build of torch first: a bare `torch` would bring gigabytes of CUDA to a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "fedglm needs Python 3.11 or newer: set PYTHON=/path/to/python"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

simulate: $(STAMP)
	$(BIN)/fedglm simulate hospital

# Tests that share a file share its runs, so that files are dealt to the processes whole.
test: lint
	$(BIN)/python -m pytest -q -m "not slow" --numprocesses $(WORKERS) --dist loadfile

test-all: lint
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/codecs.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
