# What a person types. Each target sets up what it needs; the first one takes a minute or more for the packages.

.DEFAULT_GOAL := repro

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED := .venv/installed

.PHONY: help repro test test-slow lint lock clean

help: ## shows what make can do
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile

repro: $(INSTALLED) ## runs the pipeline on what changed, and shows the results
	@python -m stages.lib.params # a typo in params.yaml ends it here
	dvc repro
	@echo
	@dvc metrics diff --all
	@echo "Pictures: reports/figures. Interactive: . .venv/bin/activate && dvc plots show"

test: $(INSTALLED) ## runs the tests, offline
	pytest

test-slow: $(INSTALLED) ## interrupts every stage in every way; takes minutes
	pytest -m slow

lint: $(INSTALLED) ## checks style and types
	ruff check
	ruff format --check
	mypy

lock: $(INSTALLED) ## compiles requirements.lock anew from pyproject.toml
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --quiet --upgrade --output-file requirements.lock

clean: ## removes the environment and the tools' caches; not the data
	rm -rf .venv dvc_plots .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): requirements.lock
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit( \
		"expected Python 3.11 to 3.13, found " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check --require-hashes --requirement requirements.lock
	@touch $@
