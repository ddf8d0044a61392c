# Every command a person or CI needs. Each works in a fresh clone with only python3 (3.11 or newer) and make.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PYTHON ?= python3
# Which build of torch: constraints.txt pins the version, this may name a variant of it (see the README).
TORCH_SPEC ?= torch==2.13.0
PYTEST_ARGS ?=
DEMO_ARGS ?=
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -qq
KSERVE := build/clients/kserve
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev

# The fast ones first, so that a broken part is seen within seconds.
TEST_ORDER := edge_agent conformance docs clients conformance fleet_server trainer packaging integration power_cut gpu e2e
TEST_FOLDERS = $(wildcard $(addprefix tests/,$(TEST_ORDER)))
# The updates' take minutes, and have a target of their own.
BENCHMARKS = $(filter-out benchmarks/update%.py benchmarks/director.py,$(sort $(wildcard benchmarks/*.py)))
TYPED = edge_agent fleet_server trainer tests $(sort $(dir $(wildcard models/*/*.py benchmarks/*.py)))

.PHONY: help setup demo test check format bench power-cut protobuf soak real-parts gpu-parts clients clean

help:  ## show this list
	@echo "Shoal: machine-learning models on fleets of edge devices, kept right."
	@echo
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  settings     VENV=.venv PYTHON=python3 TORCH_SPEC=torch==2.13.0 DEMO_ARGS=--keep PYTEST_ARGS='-k outbox'"

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Shoal's server and trainer need Python 3.11 or newer; '$(PYTHON)' is" \
	    "$$("$(PYTHON)" -V 2>&1 || echo missing)." \
	    "Name a newer one, for example: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" || { rm -rf "$(VENV)"; \
	  echo "Python could not make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2; \
	  exit 1; }

# torch goes first and alone, so that no later step swaps the chosen build for another.
$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing $(TORCH_SPEC) into $(VENV) (the largest part; minutes on a slow line)"
	@$(PIP) -c constraints.txt "$(TORCH_SPEC)"
	@echo "installing the server and the trainer"
	@$(PIP) -c constraints.txt -e '.[server,trainer]'
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	@echo "installing the tools for tests and checks"
	@$(PIP) -c constraints.txt -e '.[grpc,server,trainer,ray,loggers,dev]'
	@touch $@

setup: $(DEV_STAMP)  ## make .venv with everything, as constraints.txt pins it
	@echo "ready: . $(VENV)/bin/activate"

demo: $(RUN_STAMP)  ## the whole loop on real data, in minutes (DEMO_ARGS=--keep leaves it running)
	@$(BIN)/shoal demo $(DEMO_ARGS)

test: $(DEV_STAMP) real-parts clients gpu-parts  ## every test but the slow ones, fast ones first
	@$(BIN)/python -m pytest $(TEST_FOLDERS) $(PYTEST_ARGS)

check: $(DEV_STAMP)  ## lint, format, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(TYPED)
	@$(BIN)/mypy --python-version 3.10 edge_agent
	@PYTHONPATH=. $(BIN)/lint-imports --no-cache

format: $(DEV_STAMP)  ## mend what ruff can mend by itself
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(DEV_STAMP)  ## run every benchmark and print its table
	@test -n "$(BENCHMARKS)" || echo "there is no benchmark in benchmarks/ yet"
	@for benchmark in $(BENCHMARKS); do echo "== $$benchmark"; $(BIN)/python "$$benchmark"; echo; done
	@echo "== serving, in short, without other servers"; $(BIN)/python -m benchmarks.serving --quick --only shoal

bench-training: $(DEV_STAMP)  ## training beside a hand-written loop, from disk, in two processes, and one killed
	@$(BIN)/python benchmarks/training.py $(ARGS)

bench-serving: $(DEV_STAMP)  ## serving beside other servers (ARGS='--quick --only shoal,triton --no-install')
	@$(BIN)/python -m benchmarks.serving $(ARGS)

bench-batch: $(DEV_STAMP)  ## batch inference beside a bare loop (ARGS='--rows 1000000 --flat 10000000 --ray')
	@$(BIN)/python -m benchmarks.batch $(ARGS)

power-cut: $(DEV_STAMP)  ## cut the power at every operation of an update (ARGS='--share 0.1'); needs a C compiler
	@$(BIN)/python -m tests.power_cut.campaign $(ARGS)

bench-updates: $(DEV_STAMP)  ## what an update costs on the wire, beside other tools (ARGS='--networks digits --no-install')
	@$(BIN)/python -m benchmarks.updates $(ARGS)

# By the oldest compiler whose messages the extra `grpc` allows; needs the network, and is not a part of `make setup`.
protobuf:  ## write the gRPC messages again, after a change of their description
	@$(BIN)/python -m venv build/protoc && build/protoc/bin/pip install -qq grpcio-tools==1.81.1 protobuf==6.33.5
	@build/protoc/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. edge_agent/serving/grpc/oip.proto

# pytest's exit status 5 means that no test carries the mark.
soak: $(DEV_STAMP)  ## the slow tests: minutes to hours
	@$(BIN)/python -m pytest -m slow --timeout 0 $(PYTEST_ARGS) \
	  || { status=$$?; test $$status -eq 5 || exit $$status; echo "there is no slow test yet"; }

real-parts:
	@.ci/install-real-parts

gpu-parts: $(DEV_STAMP)  ## install what the tests of the GPU's code need; no GPU
	@.ci/install-gpu-parts "$(VENV)"

# Its dependencies exclude ours, so it gets an environment of its own. Without it its tests are skipped, and say so.
clients: $(DEV_STAMP)  ## install the foreign clients that some tests use
	@test -e $(KSERVE)/.installed || { echo "installing KServe's clients for the tests, once"; \
	  $(BIN)/python -m venv $(KSERVE) \
	  && $(KSERVE)/bin/python -m pip install --disable-pip-version-check -qq kserve==0.21.0 \
	  && touch $(KSERVE)/.installed || { rm -rf $(KSERVE); \
	  printf '\n****  KServe could not be installed. Its tests are SKIPPED.\n\n' >&2; }; }

clean:  ## remove what commands have made, .venv too
	@rm -rf "$(VENV)" build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
