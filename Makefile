# KALA's tasks. `make run` and `make test` each do the whole set-up on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One more than the two cores of continuous integration: tests of processes wait for a third of their time.
TEST_WORKERS ?= 3

.PHONY: help run test unit e2e check check-all fmt lint types proto proto-check extras bench lm_studio.smoke smoke-lm-studio classifier lock clean

help: ## Show the tasks
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.suite: locks/suite.txt scripts/setup.sh pyproject.toml
	PYTHON=$(PYTHON) scripts/setup.sh suite

$(VENV)/.dev: locks/dev.txt scripts/setup.sh pyproject.toml
	PYTHON=$(PYTHON) scripts/setup.sh dev

run: $(VENV)/.suite ## Set up, start the suite and print its URL and key
	@$(BIN)/kala up $(ARGS)

test: unit e2e ## Set up and run every test of the default set

unit: $(VENV)/.dev
	$(BIN)/pytest tests/unit tests/service tests/test_*.py -n $(TEST_WORKERS) --dist worksteal -m "not slow and not e2e" -q --durations 25

e2e: $(VENV)/.dev ## Set up and run the tests that start real processes
	$(BIN)/pytest tests/e2e -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow" -q --durations 25

check: test lint types proto-check extras ## Everything that continuous integration runs

check-all: $(VENV)/.dev check ## The default set and the heavy checks
	$(BIN)/pytest tests -m slow -q --timeout 3600 || [ $$? -eq 5 ] # 5: no test is marked slow

fmt: $(VENV)/.dev ## Format
	$(BIN)/ruff format . && $(BIN)/ruff check --fix-only -q .

lint: $(VENV)/.dev ## Style, layers, dependencies, dead code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/deptry kala services gateway
	$(BIN)/vulture

types: $(VENV)/.dev ## mypy strict and pyright
	$(BIN)/mypy
	$(BIN)/pyright

proto: $(VENV)/.dev ## Generate code from the contracts
	$(BIN)/python scripts/genproto.py
	$(BIN)/python scripts/gencomments.py

proto-check: $(VENV)/.dev ## Lint the contracts; prove that generated code is theirs and that nothing released breaks
	scripts/check_contracts.sh

extras: ## Install each image's extra alone and import its process
	PYTHON=$(PYTHON) scripts/check_extras.sh

bench: $(VENV)/.dev ## Measure the numbers of docs/performance.md
	bench/setup.sh
	$(BIN)/python -m bench $(ARGS)

lm_studio.smoke: smoke-lm-studio

smoke-lm-studio: ## Ask the LM Studio behind the running suite whether it works, and one question
	$(BIN)/kala health lm
	$(BIN)/kala chat "Say hello in one short sentence." --model lmstudio/auto -v $(ARGS)

classifier: ## Train the embedded classifier again; DATA=DIR names the public rows, OUT=DIR where to write
	PYTHON=$(PYTHON) scripts/classifier/setup.sh
	.venv-classifier/bin/python -m scripts.classifier $(if $(DATA),--data $(DATA)) --out $(or $(OUT),build/classifier) $(ARGS)

lock: ## Resolve every extra again
	$(PYTHON) scripts/lock.py

clean: ## Remove what these tasks made
	rm -rf $(VENV) build dist
