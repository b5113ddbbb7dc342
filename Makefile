# Everything one can do here. Each target sets up .venv first when it must.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
TESTS := -m "not slow"

.PHONY: help setup demo serve docs test test-all hostile chaos
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(STAMP)  ## install everything into .venv (needs Python 3.11 or newer)

demo: $(STAMP)  ## complete the example scan: out/chair.glb and out/chair.png
	$(BIN)/python examples/demo.py

serve: $(STAMP)  ## run the service at http://127.0.0.1:8000
	$(BIN)/python -m app

docs: $(STAMP)  ## the documentation as a site, with the API reference: out/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

test: $(STAMP)  ## lint, types, import rules and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(TESTS)

test-all: TESTS =
test-all: test  ## the same with the slow tests: the guide to training, the notebook, benchmarks of held-out scans

hostile: $(STAMP)  ## 3,000 generated bad inputs against the API and its worker: minutes
	HOSTILE=3000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/app/test_mutations.py -s --timeout 1800

chaos: $(STAMP)  ## hurt a running service in every way and count what is lost; QUICK=1 for the main ways
	$(BIN)/python -m benchmarks.chaos

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv \
		|| { echo "No venv module; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --editable '.[train,dev]'
	@touch $@
