.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help test lint types docs gallery screens serve unit blocks slow hosts beartype matrix bench coverage example clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Notices of newer versions: pyright would ask the network for one on every run.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export NO_MKDOCS_2_WARNING := 1

# A process for each core; the tests of a file share compiled functions. Files with many
# tests come first.
PARALLEL := --numprocesses auto --dist loadfile

# $(VENV)/.with-X says that the package is installed with its extra X.
DEV := $(VENV)/.with-dev
EXAMPLES := $(VENV)/.with-examples

$(VENV)/.with-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("batchkit needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": say which with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Cheap checks come first, side by side as each uses one core. The tests use all cores and
# are run one after the other, also under make -j.
test: $(DEV) ## Run every check: what a change must pass.
	@$(MAKE) --no-print-directory --jobs 2 lint types docs
	@for check in unit blocks; do \
		$(MAKE) --no-print-directory $$check || exit 1; done

lint: $(DEV) ## Check style and format.
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV) ## Check types, and a user's program also with mypy.
	$(BIN)/pyright
	$(BIN)/mypy

docs: $(DEV) ## Build the documentation into site/, and check it.
	JAX_PLATFORMS=cpu $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python tools/check_site.py site

gallery: $(DEV) ## Run the notebooks of the gallery, and store what they print and draw.
	JAX_PLATFORMS=cpu $(BIN)/python -m tools.gallery docs/gallery/*.ipynb

# It needs Chromium.
screens: docs $(VENV)/.with-screens ## Take pictures of pages of the documentation.
	$(BIN)/python -m tools.screens build/screens

serve: $(DEV) ## Serve the documentation while you write it.
	JAX_PLATFORMS=cpu $(BIN)/mkdocs serve

unit: $(DEV) ## Run the unit tests, but not the slow ones.
	$(BIN)/pytest $(PARALLEL)

blocks: $(DEV) ## Run every code block of the README, docs and docstrings.
	$(BIN)/pytest $(PARALLEL) README.md docs batchkit

slow: $(DEV) ## Run the slow tests.
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/pytest $(PARALLEL) -m slow

# It needs Linux, iproute2 and the rights of root. Most of the time is spent waiting.
hosts: $(DEV) ## Run the tests of hosts that vanish, and write build/hosts.md.
	rm -f build/hosts.md
	$(BIN)/pytest --numprocesses 3 -m slow tests/hosts

# Checking the types of every call takes as long as the tests themselves. It is part of
# `make matrix` and not of `make test`, where pyright checks types.
beartype: $(DEV) ## Run the unit tests with the types of every call checked.
	$(BIN)/pytest $(PARALLEL) --jaxtyping-packages=batchkit,beartype.beartype \
		--ignore tests/coverage --ignore tests/processes

matrix: $(DEV) ## Run the unit tests on every Python, with the oldest dependencies, and with types checked.
	$(BIN)/nox

bench: $(DEV) ## Run the benchmarks.
	@for benchmark in $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)); do \
		echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; done

coverage: $(DEV) ## Run every API of blackjax in every layout, and write docs/coverage.md.
	$(BIN)/python -m tests.coverage.page

example: $(EXAMPLES) ## Run examples/co2.py.
	$(BIN)/python examples/co2.py

clean: ## Remove everything that the targets above have made.
	rm -rf $(VENV) .nox .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
