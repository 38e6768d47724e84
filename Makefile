# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Processes for the tests: one a processor, each with servers of its own.
WORKERS ?= auto
# Compiled objects are kept between checkouts where somebody has installed what keeps them.
export CMAKE_CXX_COMPILER_LAUNCHER ?= $(shell command -v ccache 2>/dev/null)
# The core's own tests are no part of the package.
NATIVE := $(shell find native -path native/tests -prune -o -type f -print)
CPP := $(shell find native -name '*.cpp' -o -name '*.hpp')

.PHONY: run test check native-test format setup bench clean

run: .venv/.ready  ## set up, fetch the default model, serve on http://127.0.0.1:8000
	$(BIN)/headrace serve

test: .venv/.ready-dev check native-test  ## everything CI runs
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal
	PYTHON=$(PYTHON) BIN=$(BIN) sh .ci/wheel.sh

check: .venv/.ready-dev  ## formatting, lint, types
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

native-test: .venv/.ready  ## the core without Python: sanitizers, emulated processors
	sh .ci/native.sh

format: .venv/.ready-dev
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

setup: .venv/.ready-dev

bench: .venv/.ready  ## our own figures; `headrace bench peers` compares
	$(BIN)/headrace bench engine

clean:
	rm -rf .venv build dist

.venv/bin/python:
	@sh .ci/preflight.sh $(PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=25.1" "scikit-build-core>=1.1,<2" "nanobind>=3.1,<4" "cmake>=3.24" ninja

.venv/.ready: .venv/bin/python pyproject.toml CMakeLists.txt $(NATIVE)
	$(BIN)/pip install --quiet --no-build-isolation --editable .
	@touch $@

.venv/.ready-dev: .venv/.ready
	$(BIN)/pip install --quiet --group dev --group reference
	@touch $@
