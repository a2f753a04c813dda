# `make demo` and `make test` need Python 3.10+ and make, nothing else.
PYTHON ?= python3
VENV   ?= .venv
PEERS  ?= .peers
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
SEEDS  ?= 1000
MINUTES ?= 10

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types sim chaos bench bench-peers clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/'

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## Run the flight-delays example, killing a TaskManager on the way
	$(BIN)/python examples/flight_delays.py --kill-taskmanager

test: $(STAMP)  ## Lint, type-check and run every test (about half an hour on 2 cores)
	$(BIN)/ruff check .
	$(BIN)/mypy
	@# What runs in one process does so on every core; what starts a Ray has the machine for itself.
	$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal tests/unit tests/sim
	$(BIN)/python -m pytest -q tests/integration

check: lint types  ## Lint and type-check only

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy

sim: $(STAMP)  ## Run SEEDS=N simulated clusters under faults (default 1000), KIND=mixed for that job
	$(BIN)/python -m tests.sim --seeds $(SEEDS) $(if $(KIND),--kind $(KIND))

chaos: $(STAMP)  ## Keep killing actors of a real job for MINUTES=N (default 10)
	$(BIN)/python -m tests.chaos --minutes $(MINUTES)

bench: $(STAMP)  ## Measure throughput, latency and recovery on this machine
	$(BIN)/python -m benchmarks

bench-peers: $(STAMP)  ## The same work on Bytewax, PyFlink, Flink SQL and Spark, in turns with ours
	$(BIN)/python -m benchmarks keyed_reduce window_count map_filter --peers --cache $(PEERS)

clean:  ## Remove the virtual environments and caches
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
