# Everything here needs only make and Python 3.11 or newer: make PYTHON=python3.12 picks another one.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED := .venv/.installed
# A second version of Criteo's SDK, for one test: it has the name of the first, so it gets a folder of its own.
ORACLE := .venv/oracle-2027.1
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock"
.DEFAULT_GOAL := help
.PHONY: help venv run add-person backfill test fast mutations check bench lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED) $(ORACLE) ## make .venv with everything pinned, by hash (the other targets do it when needed)

$(INSTALLED): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" * (sys.version_info < (3, 11)) or 0)'
	@echo "Making .venv (about a minute the first time) ..."
	@$(PYTHON) -m venv .venv
	@awk '/^[^ ]/ { keep = /^uv==/ } keep' requirements-dev.txt > .venv/uv.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.txt
	@uv pip install --quiet --python .venv/bin/python --require-hashes --requirement requirements-dev.txt
	@uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

$(ORACLE): requirements-oracle.txt $(INSTALLED)
	@rm -rf $@
	@uv pip install --quiet --target $@ --no-deps --require-hashes --requirement requirements-oracle.txt
	@touch $@

run: $(INSTALLED) ## Airflow, the sandbox and 100,000 example people; ONCE=1 ends when everyone is settled
	@.venv/bin/python scripts/run.py $(if $(ONCE),--once)

add-person: $(INSTALLED) ## while `make run` is up: add somebody and see how soon Criteo has them
	@.venv/bin/python scripts/run.py --add-person

backfill: $(INSTALLED) ## while `make run` is up: add a million people to the example shop
	@.venv/bin/python include/example_data.py add 1000000

test: $(INSTALLED) $(ORACLE) ## every test, on SQLite and PostgreSQL; T="-k word" picks some
	@pytest -n 4 --dist loadscope --schedules 10000 $(T)

fast: $(INSTALLED) ## the tests that need neither Airflow nor PostgreSQL
	@pytest tests/core tests/flow tests/store tests/simulator -m "not slow" -k "not postgres" $(T)

mutations: $(INSTALLED) ## one-line mistakes in the ledger's logic, each of which the simulator must notice; T="word" picks some
	@PYTHONPATH=plugins:. .venv/bin/python -m tests.simulator.mutations $(T)

check: $(INSTALLED) ## style, types, floors, spelling, Dockerfile
	ruff check && ruff format --check && mypy && lint-imports && codespell && hadolint Dockerfile

bench: $(INSTALLED) ## how fast, beside what one would write instead; B=--quick takes under a minute, B='--parts paced' repeats a part
	@.venv/bin/python -m bench $(B)

lock: $(INSTALLED) ## pin the dependencies named in pyproject.toml (U=--upgrade takes the newest)
	$(COMPILE) pyproject.toml --extra dev --output-file requirements-dev.txt $(U)
	$(COMPILE) pyproject.toml --extra build --constraint requirements-dev.txt --output-file requirements.txt $(U)
	$(COMPILE) requirements-oracle.in --no-deps --output-file requirements-oracle.txt $(U)

clean: ## remove what was made here, .venv included
	rm -rf .venv var build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find plugins dags scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
