# Everything from a bare Python >= 3.11. `make simulate` and `make test` build .venv on their own.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Twice the cores of a small machine: tests often wait for processes.
WORKERS ?= 4

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0
# Tests start many processes, each of which would compile all of this again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help simulate test quick-tests test-all lint bench lock lock-torch sbom clean

help:
	@echo "make simulate   four hospitals learn on real data, in half a minute after installation"
	@echo "make test       lint, types and tests"
	@echo "make test-all   the slow proofs too"
	@echo "make bench      benchmarks, as tables"
	@echo "make lock       pin all that is installed, by version and hash, in locks/"
	@echo "make sbom       what is installed, as CycloneDX; ENVIRONMENT=/opt/fedglm for another environment"

# Nothing is installed but what locks/ names by hash. torch first, its CPU build: a bare `torch` would bring gigabytes of
# CUDA. It comes from PyTorch's own index, unless one that pip is configured for has it.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
$(STAMP): pyproject.toml locks/dev.txt locks/torch-cpu.txt
	@test -n "$(PYTHON)" || { echo "fedglm needs Python 3.11 or newer: set PYTHON=/path/to/python"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --no-deps -r locks/torch-cpu.txt 2>/dev/null || $(PIP) --no-deps --index-url $(TORCH_INDEX) -r locks/torch-cpu.txt
	$(PIP) -r locks/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

simulate: $(STAMP)
	$(BIN)/fedglm simulate hospital

# What reads the sources and what runs them side by side.
test: $(STAMP)
	@$(MAKE) --no-print-directory --jobs=2 lint quick-tests

# One process of tests has a core at most: threads of torch that wait for each other would take the others'.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# Collected once before, so that not each process compiles all files with their assertions. Tests that share a file share
# its runs, so that files are dealt to the processes whole; those of whole runs first, so that none of them is left alone
# at the end.
quick-tests: $(STAMP)
	@collected=$$($(PYTEST) -qq --collect-only tests 2>&1) || { echo "$$collected"; exit 1; }
	$(PYTEST) -q -m "not slow" --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder \
		tests/simulations tests/product tests/client tests/cli tests/server tests/attacks tests

test-all: lint
	HYPOTHESIS_PROFILE=thorough $(PYTEST) -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/codecs.py

# Pins stay as they are unless the code asks for more; UPGRADE="--upgrade" or "--upgrade-package NAME" renews them.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--only-binary :all: --emit-build-options --annotation-style line --custom-compile-command "make $@" $(UPGRADE)
lock: $(STAMP)
	$(LOCK) --no-emit-package torch --extra dev --group sbom pyproject.toml -o locks/dev.txt
	$(LOCK) --no-emit-package torch --extra node -c locks/dev.txt pyproject.toml -o locks/node.txt
	$(LOCK) --no-emit-package torch --extra server -c locks/dev.txt pyproject.toml -o locks/server.txt
	$(LOCK) --no-emit-package torch --extra light -c locks/dev.txt pyproject.toml -o locks/light.txt
	$(LOCK) --extra edge --group edge -c locks/dev.txt pyproject.toml -o locks/edge.txt
	$(LOCK) --no-deps --group examples -o locks/examples.txt
	echo torch | $(LOCK) --excludes /dev/stdin --group audit -c locks/dev.txt pyproject.toml -o locks/audit.txt

# Of the version that pyproject.toml names, from the index that has it.
lock-torch: $(STAMP)
	echo torch | $(LOCK) --no-deps --default-index $(TORCH_INDEX) - -o locks/torch-cpu.txt

# From outside: the environment that is described needs no tool for it.
ENVIRONMENT ?= $(VENV)
sbom: $(STAMP)
	@$(BIN)/cyclonedx-py environment --spec-version 1.6 --output-reproducible --pyproject pyproject.toml $(ENVIRONMENT)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
