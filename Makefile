# The verbs of the project; CI and people use the same ones.
PYTHON ?= python3
TEACHER := .venv/teacher
TRAINER := .venv/trainer
.DEFAULT_GOAL := help
.PHONY: help install lock demo test check docs format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## both environments under .venv (the other verbs do this by themselves); LOCKED=1: exact versions
	@$(PYTHON) scripts/install.py trainer $(TRAINER) $(if $(LOCKED),--locked)
	@$(PYTHON) scripts/install.py teacher $(TEACHER) $(if $(LOCKED),--locked)

lock: install ## write the exact versions of both environments to requirements/
	@$(PYTHON) scripts/install.py trainer $(TRAINER) --write-lock
	@$(PYTHON) scripts/install.py teacher $(TEACHER) --write-lock

demo: install ## the whole line on this machine: teacher, cask, student, report
	@$(TRAINER)/bin/python -m demo

test: install check ## checks and all tests, each side in its own environment
	$(TRAINER)/bin/python -m pytest tests/repository tests/schemas tests/golden tests/consumer tests/conformance/test_cask*.py
	$(TEACHER)/bin/python -m pytest tests/services tests/conformance/test_engine*.py tests/e2e

check: install ## ruff, mypy --strict, import layers, the documentation's links and references
	$(TRAINER)/bin/ruff check .
	$(TRAINER)/bin/ruff format --check .
	$(TRAINER)/bin/mypy schemas consumer demo scripts examples
	$(TEACHER)/bin/mypy schemas/logitcask_schemas services
	$(TEACHER)/bin/lint-imports
	@$(MAKE) --no-print-directory docs

docs: install ## the documentation site, built strictly into site/
	NO_MKDOCS_2_WARNING=1 $(TRAINER)/bin/mkdocs build --strict --quiet

format: install ## rewrite to the house style
	$(TRAINER)/bin/ruff check --fix .
	$(TRAINER)/bin/ruff format .

bench: install ## all benchmarks; CSV and plots under bench/results
	$(PYTHON) bench/run.py --teacher $(TEACHER)/bin/python --trainer $(TRAINER)/bin/python

clean: ## remove environments, caches and the demo's output
	rm -rf .venv site demo-output .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
