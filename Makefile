# What a person types. Each target sets up what it needs; the first one takes a minute or more for the packages.

.DEFAULT_GOAL := repro

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED := .venv/installed

.PHONY: help repro experiments compare verify about test test-slow lint bench audit lock clean

help: ## shows what make can do
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile

repro: $(INSTALLED) ## runs the pipeline on what changed, and shows the results
	@python -m stages.lib.params # a typo in params.yaml ends it here
	dvc repro
	@echo
	@dvc metrics diff --all
	@echo "Pictures: reports/figures. Interactive: . .venv/bin/activate && dvc plots show"

experiments: $(INSTALLED) ## runs the standard grid: both datasets, five settings, 3 or 5 seeds (EXPERIMENTS=--serial)
	@python -m tools.experiments $(EXPERIMENTS)

compare: $(INSTALLED) ## says which of the experiments on this commit is better (COMPARE='REV REV' or --all)
	@python -m tools.compare $(COMPARE)

verify: $(INSTALLED) ## hashes the cache and every out anew, and says how to mend what is wrong
	@python -m tools.verify

about: $(INSTALLED) ## says what this machine is: CPU, system, versions
	@python -m tools.about

test: $(INSTALLED) ## runs the tests, offline
	pytest --numprocesses auto --dist loadfile --no-loadscope-reorder \
		tests/test_end_to_end.py tests/test_verify.py tests # what takes longest first

test-slow: $(INSTALLED) ## runs the tests that take minutes: on real data, and every stage interrupted in every way
	pytest -m slow --numprocesses auto --dist loadfile

lint: $(INSTALLED) ## checks style and types
	ruff check
	ruff format --check
	mypy

bench: $(INSTALLED) benchmarks/.venv/installed ## measures speed and memory beside PyTorch, JAX and the tutorial's script
	.venv/bin/python -m benchmarks.run $(BENCH)

audit: $(INSTALLED) ## asks for known vulnerabilities of the locked packages
	@python -m tools.audit

lock: $(INSTALLED) ## compiles the lock files anew from pyproject.toml
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --quiet --upgrade --output-file requirements.lock
	uv pip compile --group bench --constraint requirements.lock --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --quiet --upgrade --output-file requirements-bench.lock

clean: ## removes the environments and the tools' caches; not the data
	rm -rf .venv benchmarks/.venv benchmarks/.data dvc_plots .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): requirements.lock
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit( \
		"expected Python 3.11 to 3.13, found " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo "Installing the locked packages: one to a few minutes"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@touch $@

benchmarks/.venv/installed: requirements-bench.lock
	$(PYTHON) -m venv benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--requirement requirements-bench.lock
	@touch $@
