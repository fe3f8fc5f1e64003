# The two commands of a newcomer: `make demo` and `make test`. Both work on a fresh machine with Python >= 3.11.

PYTHON ?= python3
BIN := .venv/bin
DEMO := results/demo

.PHONY: demo test lint benchmarks clean

demo: .venv/.installed
	$(BIN)/longctx-bench run --model rope-tiny,ntk-tiny,yarn-tiny,drope-tiny --tasks niah \
	  --scale 1x,2x,4x,8x --limit 22 --out $(DEMO)
	$(BIN)/longctx-bench figures $(DEMO)

test: .venv/.installed-dev lint
	$(BIN)/pytest -q -n 2 --dist worksteal

# Timings, as ratios measured in one run; see README.
benchmarks: .venv/.installed-dev
	$(BIN)/python -m longctx_bench.harness.speed

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv results/demo
