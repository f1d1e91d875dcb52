# Nightcart. `make nightly` runs a whole night of the demo shop; `make test` runs the tests. Needs Python 3.11+, pip, make.
PYTHON ?= python3
NIGHTCART_HOME ?= var
SHOP ?= complete_journey
AS_OF ?=
K ?=

# Bytecode is compiled once, at install: without it every Airflow process compiles everything again.
unexport PYTHONDONTWRITEBYTECODE
export NIGHTCART_HOME := $(abspath $(NIGHTCART_HOME))
export AIRFLOW_HOME := $(NIGHTCART_HOME)/airflow
export AIRFLOW__CORE__DAGS_FOLDER := $(CURDIR)/dags
export AIRFLOW__CORE__PLUGINS_FOLDER := $(CURDIR)/plugins
export AIRFLOW__CORE__LOAD_EXAMPLES := False
export PYTHONPATH := $(CURDIR)
export TF_CPP_MIN_LOG_LEVEL ?= 3
export PYTHONWARNINGS ?= ignore

BIN := .venv/bin

.PHONY: nightly test lint format ui bench clean help

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

nightly: .venv/installed  ## run a whole night through Airflow; SHOP=name|path AS_OF=2017-12-04T00:00:00Z K=50
	$(BIN)/python include/nightly.py --shop '$(SHOP)' --as-of '$(AS_OF)' --k $(K)
	@$(BIN)/nightcart --quiet report

test: .venv/installed-dev  ## run all tests
	$(BIN)/python -m pytest

lint: .venv/installed-dev  ## check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: .venv/installed-dev  ## bring the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

ui: .venv/installed  ## Airflow with its pages at http://127.0.0.1:8080, until Ctrl-C
	@$(BIN)/python include/ui.py

bench: .venv/installed-bench  ## run every benchmark (hours)
	@for script in benchmarks/*.py; do $(BIN)/python $$script --check || exit 1; done

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[dev]'
	touch $@

.venv/installed-bench: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[bench]'
	touch $@

clean:  ## remove what nights have made (the lake, Airflow's and MLflow's databases)
	rm -rf '$(NIGHTCART_HOME)'
