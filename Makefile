# Every target sets up what it needs in .venv with plain pip, and does nothing twice.
PYTHON ?= python3
PRESET ?= bundled
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

CORE_TESTS := cli/test_main geometry/test_dimension geometry/test_per_cloud lens/test_lens models/test_models \
	results/test_dataset results/test_report results/test_stores results/test_summary run/test_batch run/edits/test_edits \
	run/test_engine test_scan text/test_classes text/readers/test_files text/test_prompts text/readers/test_readers text/test_sequences \
	text/test_spans text/test_tokenise text/test_words

.PHONY: demo test test-fast test-core mutants real-data lint bench experiments results figures bundled-model notebooks \
	docs docs-quick docs-links dist clean

demo: .venv/.base  ## The main job on the bundled model: report and figures in runs/demo
	$(BIN)/tokinterp demo --out runs/demo

test: .venv/.dev  ## The whole suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: .venv/.dev  ## Without notebooks, experiments, kills, doctests and other slow tests: for the inner loop
	$(BIN)/python -m pytest -n 2 --dist loadfile tests -m "not slow"

test-core: .venv/.dev  ## The wheel with its core dependencies in an empty environment: demo and core tests
	rm -rf dist .venv-core && $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv .venv-core
	.venv-core/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl pytest hypothesis
	cd dist && ../.venv-core/bin/tokinterp demo --out demo
	TOKINTERP_CORE_ONLY=1 .venv-core/bin/pytest -q -o pythonpath=tests -p no:cacheprovider $(CORE_TESTS:%=tests/%.py)

mutants: .venv/.dev  ## Apply small wrong changes one by one: a named test must notice each (half an hour and more)
	$(BIN)/python tests/mutants.py

real-data: .venv/.dev  ## Compare with what is known of real models, tokenizers and annotations in $$TOKINTERP_DATA
	$(BIN)/python -m experiments.real_data

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/.dev  ## Speed and memory beside the peers; JSON in runs/bench
	$(BIN)/python -m experiments.bench --out runs/bench

experiments: .venv/.dev  ## Run every experiment at PRESET (bundled: an hour of a CPU; tiny: two minutes), and its record
	$(BIN)/python -m experiments --preset $(PRESET)

results: .venv/.dev  ## Write experiments/RESULTS.md from the records
	$(BIN)/python -m experiments.runner.page

figures: .venv/.dev  ## Draw the records of PRESET whose stores `make experiments` has left in runs/
	$(BIN)/python -m figures --preset $(PRESET) --out runs/figures

bundled-model: .venv/.dev  ## Make the model in the package anew from the texts in $$TOKINTERP_DATA (hours)
	for step in prepare train export evaluate; do $(BIN)/python -m experiments.bundled.train $$step --preset cpu || exit 1; done
	$(BIN)/python -m experiments.bundled.checks
	$(BIN)/python -m experiments.bundled.card --preset cpu

notebooks: .venv/.dev  ## Run every notebook; executed copies in runs/notebooks
	$(BIN)/python -m notebooks --out runs/notebooks

docs: .venv/.docs  ## The site in runs/docs/html: everything in it is executed once; warnings and broken links are errors
	$(BIN)/python -m docs --out runs/docs

docs-quick: .venv/.docs  ## The same without executing anything: warnings and broken links of all pages
	$(BIN)/python -m docs --out runs/docs-quick --no-execute

docs-links: .venv/.docs  ## Look up the links to other sites, which needs the network
	$(BIN)/python -m docs --out runs/docs --no-execute --external

dist: .venv/.dev  ## Wheel and source archive in dist/, checked: metadata, contents, size, the wheel imported alone
	$(PIP) build twine
	rm -rf dist && $(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/check_dist.py dist

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.base: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e .
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[test,lint]"
	touch .venv/.base $@

.venv/.docs: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[docs]"
	touch .venv/.base $@

clean:
	rm -rf .venv .venv-core runs dist
