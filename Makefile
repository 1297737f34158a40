# The verbs of the project; CI and people use the same ones.
PYTHON ?= python3
TEACHER := .venv/teacher
TRAINER := .venv/trainer
# Tests in some processes, a file in one of them; files in the order given, long ones first. See tests/conftest.py.
PYTEST := -m pytest --dist loadfile --no-loadscope-reorder
# Tests and benchmarks whose imports only the teacher's environment has.
TEACHERS := tests/services tests/support/services tests/e2e tests/conformance/engines bench/capture*.py \
	bench/fleet_*.py bench/service*.py bench/upload_*.py bench/dropping_pooler.py bench/generation*.py \
	bench/http_script.py bench/switch_clock.py bench/reasoning_tasks.py
NOT_TRAINERS := ^(tests/(support/)?services|tests/e2e|tests/conformance/engines|bench/(capture|fleet_|service|upload_|dropping|generation|http_script|switch_clock|reasoning_tasks))
.DEFAULT_GOAL := help
.PHONY: help install lock demo test browser tests-trainer tests-teacher check types-trainer types-teacher docs format bench gpu clean

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

test: install check browser ## checks and all tests, each side in its own environment
	@$(MAKE) --no-print-directory --jobs=2 --keep-going tests-trainer tests-teacher

browser:
	@$(PYTHON) scripts/browser.py

# The two sides beside each other: the engines of the teacher's tests wait a lot, and the trainer's tests fill those gaps.
# The teacher's go on alone at the end, and a process of theirs waits for a real engine's start: hence three.
tests-trainer tests-teacher: export OMP_NUM_THREADS := 1
tests-trainer:
	$(TRAINER)/bin/python $(PYTEST) -n 2 tests/consumer tests/schemas tests/conformance/test_cask*.py tests/golden tests/repository

tests-teacher:
	$(TEACHER)/bin/python $(PYTEST) -n 3 tests/conformance/engines tests/e2e tests/services

check: install ## ruff, mypy --strict, import layers, the documentation's links and references
	$(TRAINER)/bin/ruff check .
	$(TRAINER)/bin/ruff format --check .
	@$(MAKE) --no-print-directory --jobs=2 types-trainer types-teacher
	$(TEACHER)/bin/lint-imports
	@$(MAKE) --no-print-directory docs

# Beside each other, so with a cache each.
types-trainer:
	$(TRAINER)/bin/mypy schemas consumer demo scripts examples tests bench --exclude '$(NOT_TRAINERS)'

types-teacher:
	$(TEACHER)/bin/mypy --cache-dir .mypy_cache/teacher schemas/logitcask_schemas services $(TEACHERS)

docs: install ## the documentation site, built strictly into site/
	NO_MKDOCS_2_WARNING=1 $(TRAINER)/bin/mkdocs build --strict --quiet

format: install ## rewrite to the house style
	$(TRAINER)/bin/ruff check --fix .
	$(TRAINER)/bin/ruff format .

bench: install ## all benchmarks; CSV and plots under bench/results
	$(PYTHON) bench/run.py --teacher $(TEACHER)/bin/python --trainer $(TRAINER)/bin/python

# Both parts run whatever becomes of the other; vLLM's only where the teacher's environment has it.
gpu: install ## what the project claims of GPUs, tried on this one; CSV and Markdown under bench/results
	@failed=0; $(TRAINER)/bin/python bench/gpu_kit.py || failed=1; \
	if $(TEACHER)/bin/python -c "import vllm" 2>/dev/null; then \
		$(TEACHER)/bin/python bench/gpu_kit.py --only "vLLM engine" --out bench/results/gpu_kit_vllm || failed=1; \
	fi; exit $$failed

clean: ## remove environments, caches and the demo's output
	rm -rf .venv site demo-output .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
