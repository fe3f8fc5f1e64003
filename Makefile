# The two commands of a newcomer: `make demo` and `make test`. Both work on a fresh machine with Python >= 3.11.

PYTHON ?= python3
BIN := .venv/bin
DEMO := results/demo

.PHONY: demo test lint clean

demo: .venv/.installed
	$(BIN)/longctx-bench run --model rope-smollm2-135m,yarn-smollm2-135m --tasks niah \
	  --scale 0.25x,1x,1.5x --limit 4 --out $(DEMO)
	$(BIN)/longctx-bench figures $(DEMO)

test: .venv/.installed-dev lint
	$(BIN)/pytest -q -n 2 --dist worksteal

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
