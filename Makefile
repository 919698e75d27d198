# make repro   set up .venv and run the default study
# make test    set up .venv and run the checks and the fast tests
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements/fvq.lock

.PHONY: help setup repro test test-slow bench lint lock

help:
	@sed -n 's/^# make/make/p' Makefile

# make setup   only set up .venv from the lock files
setup: .venv/installed

.venv/installed: requirements/installer.lock requirements/fvq.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'fvq: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { echo 'fvq: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/installer.lock
	$(INSTALL) || { echo 'once more with the certificates of this system'; $(INSTALL) --system-certs; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --offline -e .
	@touch $@

repro: setup
	dvc repro
	@python -m pipeline.summary

test: setup lint
	OMP_NUM_THREADS=1 pytest -m "not slow" -n 2 --dist loadfile --durations=10

# make test-slow   the tests that take minutes
test-slow: setup
	pytest -m slow

# make bench   the benchmarks, on an idle machine; their ratios as one table
bench: setup
	@mkdir -p .benchmarks
	pytest benchmarks --benchmark-enable --benchmark-quiet --benchmark-json=.benchmarks/results.json
	@python benchmarks/table.py .benchmarks/results.json

# make lint    formatting, types, and whether the committed parameters and dvc.lock belong to this code
lint: setup
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile
	mypy
	python -m pipeline.compose --check
	python -m pipeline.lock

# make lock    resolve the newest versions anew
lock: setup
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url --generate-hashes --no-header \
	  --extra dev pyproject.toml -o requirements/fvq.lock
	echo uv | uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url --generate-hashes \
	  --no-header - -o requirements/installer.lock
