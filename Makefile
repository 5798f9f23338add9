# Every target sets up what it needs in .venv with plain pip, and does nothing twice.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint bench figures notebooks clean

demo: .venv/.base  ## The main job on the bundled model: report and figures in runs/demo
	$(BIN)/tokinterp demo --out runs/demo

test: .venv/.dev  ## The whole suite
	$(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/.dev  ## Speed and memory beside the peers; JSON in runs/bench
	$(BIN)/python -m experiments.bench --out runs/bench

figures: .venv/.dev  ## Redraw every figure into runs/figures
	$(BIN)/python -m figures --out runs/figures

notebooks: .venv/.dev  ## Run every notebook; executed copies in runs/notebooks
	$(BIN)/python -m notebooks --out runs/notebooks

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.base: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[plots]"
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[test,lint]"
	touch .venv/.base $@

clean:
	rm -rf .venv runs dist
