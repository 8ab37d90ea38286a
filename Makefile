# dvisor: `make` lists the targets. Each does the set-up it needs, once, and says so.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo check test test-all bench docs clean lint venv native

help: ## this list
	@echo "dvisor: security services beneath an unmodified guest. Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: venv ## boot a real Debian guest and show, from beneath, what runs in it
	@house/setup images demo
	@$(BIN)/dvisor demo

check: lint ## format, lint, types, import contracts, unit tests: no root, no guest, under a minute
	@$(PYTEST) -m "not vm"

test: lint native ## check, and tests on real guests
	@house/setup peers
	@house/setup images test
	@DVISOR_REQUIRE_VM=1 $(PYTEST)

test-all: lint native ## test, and the long ones: every kernel, minutes of churn
	@house/setup peers
	@house/setup images full
	@DVISOR_REQUIRE_VM=1 $(PYTEST) --full

bench: native ## tables of times: dvisor against drgn and volatility3 on one guest
	@house/setup peers
	@house/setup images demo
	@$(BIN)/python -m bench
	@$(BIN)/python -m bench.traps

docs: ## the documentation site, in site/
	@house/setup venv docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "dvisor: the documentation is in site/index.html"

clean: ## remove what was made in this folder (images stay: see `dvisor image rm`)
	rm -rf .venv build dist site bench/out *.egg-info dvisor/machine/*.so \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +

venv:
	@house/setup venv dev

native: venv ## the library that QEMU loads, anew where its sources have changed
	@house/setup native

lint: venv
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.[ch]')
