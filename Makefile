# make repro   set up .venv and run the default study
# make test    set up .venv and run the checks and the fast tests
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements/fvq.lock

# The build of torch that replaces the lock's: the one named now, else that of the last setup (what `auto` chose
# there, since this machine may be another), else none.
SET_UP_FOR := $(shell cat .venv/torch-backend 2>/dev/null)
TORCH_BACKEND ?= $(SET_UP_FOR)
TORCH_PACKAGES := $(shell sed -n -E 's/^(torch|torchvision)==([^ ;]+).*/\1==\2/p' requirements/fvq.lock)
INSTALL_TORCH := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --torch-backend=$(TORCH_BACKEND) $(TORCH_PACKAGES)
# Two builds' libraries are packages of different names with files of the same name, so one goes before the other comes.
REMOVE_TORCH := $(BIN)/uv pip freeze --quiet --python $(BIN)/python | \
  grep -E '^(torch|torchvision|(pytorch-)?triton.*|cuda-.*|nvidia-.*)==' | grep -v '^nvidia-ml-py=' | \
  xargs -r $(BIN)/uv pip uninstall --quiet --python $(BIN)/python
ifneq ($(TORCH_BACKEND),$(SET_UP_FOR))
.PHONY: .venv/installed
endif

.PHONY: help setup repro test test-slow test-slurm bench lint lock

help:
	@sed -n 's/^# make/make/p' Makefile

# make setup   only set up .venv from the lock files
# make setup TORCH_BACKEND=auto   the same, with the build of torch for this machine's driver; or cpu, cu126, rocm6.4, ...
setup: .venv/installed

.venv/installed: requirements/installer.lock requirements/fvq.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'fvq: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { echo 'fvq: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/installer.lock
	@rm -f $@
	$(if $(TORCH_BACKEND),,$(if $(SET_UP_FOR),$(REMOVE_TORCH)))
	$(INSTALL) || { echo 'once more with the certificates of this system'; $(INSTALL) --system-certs; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --offline -e .
	$(if $(TORCH_BACKEND),$(REMOVE_TORCH))
	$(if $(TORCH_BACKEND),$(INSTALL_TORCH) || { echo 'once more with the certificates of this system'; $(INSTALL_TORCH) --system-certs; })
	@$(if $(filter auto,$(TORCH_BACKEND)),$(BIN)/python -c 'import torch; print(torch.__version__.partition("+")[2])',echo '$(TORCH_BACKEND)') >.venv/torch-backend
	@touch $@

repro: setup
	dvc repro
	@python -m pipeline.summary

test: setup lint
	OMP_NUM_THREADS=1 pytest -m "not slow" -n 2 --dist loadfile --durations=10

# make test-slow   the tests that take minutes
test-slow: setup
	pytest -m slow

# make test-slurm  the tests on a Slurm of two nodes that they start; as root
test-slurm: setup
	OMP_NUM_THREADS=1 pytest -m slurm tests/slurm

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
