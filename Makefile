# `make demo` and `make test` do everything in a fresh checkout, on Debian or Ubuntu with Python, make and a C++ compiler.
# Variables: PYTHON (the interpreter the environment is made with), VENV (where), PYTEST_ARGS, PROMPT.

PYTHON ?= python3
VENV ?= .venv
PROMPT ?= The three laws of thermodynamics are
PYTEST_ARGS ?=

# Where every test is required, llama.cpp is built too (minutes): the live comparisons need it.
ORACLE := $(if $(filter 1,$(HETRUN_REQUIRE_ALL)),$(shell sed -n 's/^oracle = \["\(.*\)"\]$$/\1/p' pyproject.toml))
TOOLS := $(VENV)/.tools-dev$(if $(ORACLE),-oracle)
# On processors with AMX its first prompt crashes where GCC took the stores of its tile shapes for dead (llama.cpp #20824), as
# in a wheel that pip may have kept.
ORACLE_FLAGS := $(if $(shell grep -sw amx_tile /proc/cpuinfo | head -n 1),--no-cache-dir --no-binary llama-cpp-python)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Folders too: theirs is the time that changes when a file is removed.
SOURCES := pyproject.toml CMakeLists.txt $(shell find hetrun plugins kernels configs -name __pycache__ -prune -o -print)
SHELL := /bin/bash

.PHONY: demo test lint typecheck dev wheels clean help
.DELETE_ON_ERROR:

help:
	@echo "make demo       build, install in $(VENV), fetch the small model and generate text with it"
	@echo "make test       lint, type check and every test (HETRUN_REQUIRE_ALL=1: a test that lacks a tool fails)"
	@echo "make lint       ruff check and ruff format --check"
	@echo "make typecheck  mypy --strict"
	@echo "make dev        an editable install: edits of Python files are seen at once"
	@echo "make wheels     wheels for x86_64, aarch64 and armv7l in dist/ (docs/arm.md says what they need)"
	@echo "make clean      remove $(VENV), build/ and caches (pulled models stay)"

demo: $(VENV)/.installed
	$(BIN)/hetrun pull smollm2-135m
	$(BIN)/hetrun generate --model smollm2-135m --prompt "$(PROMPT)" --max-tokens 64

test: lint typecheck $(VENV)/.installed
	$(BIN)/pytest -ra $(PYTEST_ARGS)

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(TOOLS)
	$(BIN)/mypy

dev: $(TOOLS)
	$(PIP) install --quiet --no-deps --editable .
	@rm -f $(VENV)/.installed

wheels: $(VENV)/.python
	$(PIP) wheel --quiet --no-deps --wheel-dir dist .
	HETRUN_TARGET=aarch64 $(PIP) wheel --quiet --no-deps --wheel-dir dist .
	HETRUN_TARGET=armv7l $(PIP) wheel --quiet --no-deps --wheel-dir dist .

# Not editable, so that the demo and the tests run what users get. A stamp is older than what it was made from exactly
# when it has to be made again.
$(VENV)/.installed: $(VENV)/.python $(SOURCES)
	@echo 'building hetrun and installing it in $(VENV) (minutes the first time, on two cores)'
	$(PIP) install --quiet .
	@touch $@

# The tools that lint, type check and tests need, with hetrun's own dependencies (mypy reads their types).
$(TOOLS): $(VENV)/.python pyproject.toml
	@echo 'building hetrun and installing it and its tools in $(VENV) (minutes the first time, on two cores)'
	$(if $(ORACLE),CXXFLAGS='-fno-dse -fno-tree-dse' $(PIP) install --quiet $(ORACLE_FLAGS) '$(ORACLE)')
	$(PIP) install --quiet '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.python:
	@rm -rf $(VENV)
	@command -v g++ >/dev/null || command -v c++ >/dev/null || command -v clang++ >/dev/null || \
	  { echo 'error: no C++ compiler; install one: sudo apt-get install -y g++' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'error: $(PYTHON) is missing or older than Python 3.10; name another: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
	   $(PYTHON) -m virtualenv --quiet $(VENV) 2>/dev/null; } || { rm -rf $(VENV); \
	   virtualenv --quiet --python $(PYTHON) $(VENV) 2>/dev/null; } || { rm -rf $(VENV); \
	  echo 'error: $(PYTHON) cannot make a virtual environment; install its module: sudo apt-get install -y python3-venv' >&2; exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
