# `make sweep` and `make test` do all set-up themselves, in a virtual environment of their own.
PYTHON ?= python3
BIN := .venv/bin
# Math-Verify's parser needs another ANTLR than Hydra; see toa_exp/metrics/math.py.
ANTLR := .venv/share/toa-exp/antlr4

.PHONY: install sweep test test-slow check clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch editables hatchling
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/pip install -q --no-deps --upgrade --target $(ANTLR) antlr4-python3-runtime==4.13.2
	touch $@

# The paper's six methods on the lab's models, the figures of their curves, and TOA against the others.
task ?= lab_math
sweep: install
	$(BIN)/toa-exp run experiment=lab task=$(task)
	$(BIN)/toa-exp figures results/lab x=flops
	$(BIN)/toa-exp compare results/lab curve=toa x=flops

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache
