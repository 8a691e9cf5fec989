# Commands of the project. The first target that needs the environment installs it, in a minute or more.

PYTHON ?= python3
LOCK ?= --upgrade
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED := .venv/installed

.PHONY: help repro verify about experiments search compare bench serve report test test-slow lint audit lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^### / { print "\n" substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-13s%s\n", $$1, $$2 }' Makefile

### Run the pipeline
repro: $(INSTALLED) ## run the stages that changed, and show the results
	@python -m stages.lib.params # rejects typos in params.yaml before DVC starts
	dvc repro
	@echo
	@dvc metrics diff --all
	@echo "Figures: reports/figures. Interactive plots: . .venv/bin/activate && dvc plots show"

verify: $(INSTALLED) ## verify checksums of the DVC cache and outputs, and print repair commands
	@python -m tools.verify

about: $(INSTALLED) ## show CPU, system and versions
	@python -m tools.about

### Compare experiments
experiments: $(INSTALLED) ## run the grid of experiments (DATASETS="NAME NAME", EXPERIMENTS="--workers 2")
	@python -m tools.experiments $(EXPERIMENTS) $(if $(DATASETS),--datasets $(DATASETS))

search: $(INSTALLED) ## search hyperparameters on the validation split (SEARCH="--trials 20")
	@python -m tools.search $(SEARCH)

compare: $(INSTALLED) ## compare the experiments on this commit (COMPARE="REV REV" or COMPARE=--all)
	@python -m tools.compare $(COMPARE)

bench: $(INSTALLED) benchmarks/.venv/installed ## measure speed and memory against baselines; takes hours (BENCH="--only fit")
	.venv/bin/python -m benchmarks.run $(BENCH)

### Use the model
serve: $(INSTALLED) ## draw images and classify files at http://127.0.0.1:8000 (SERVE="--port 8001")
	@python -m tools.serve $(SERVE)

report: $(INSTALLED) ## write reports/report.html, a single file (REPORT="REV REV"; default: workspace)
	@python -m tools.report $(REPORT)

### Develop
test: $(INSTALLED) ## run the tests, offline
	pytest --numprocesses auto --dist loadfile --no-loadscope-reorder \
		tests/test_end_to_end.py tests/test_verify.py tests # the longest first

test-slow: $(INSTALLED) ## run the tests that take minutes: real data, interrupted stages
	pytest -m slow --numprocesses auto --dist loadfile

lint: $(INSTALLED) ## check style and types
	ruff check
	ruff format --check
	mypy

audit: $(INSTALLED) ## check the locked packages for known vulnerabilities, online
	@uv tool run pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock \
		--progress-spinner off || { echo "audit failed: a package has a known vulnerability" \
		"or could not be looked up; see above" >&2; exit 1; }

lock: $(INSTALLED) ## update the lock files from pyproject.toml (LOCK= keeps the locked versions)
	uv pip compile --quiet pyproject.toml --extra dev $(LOCK) --output-file requirements.lock
	uv pip compile --quiet --group bench --constraint requirements.lock $(LOCK) \
		--output-file requirements-bench.lock

clean: ## remove environments, tool caches and benchmark data, but not data/
	rm -rf .venv benchmarks/.venv benchmarks/.data dvc_plots .mypy_cache .pytest_cache .ruff_cache \
		.hypothesis

$(INSTALLED): requirements.lock
	@git rev-parse --git-dir > /dev/null || { echo "DVC needs a Git repository. Create one with:"; \
		echo "    git init && git add --all && git commit --message 'Start'"; exit 1; } >&2
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit( \
		"expected Python 3.11 to 3.13, found " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo "Installing the locked packages: one to a few minutes"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 --require-hashes \
		--requirement requirements.lock
	@.venv/bin/python -m tools.plots_page && \
		.venv/bin/dvc config --local plots.html_template offline.html
	@touch $@

benchmarks/.venv/installed: requirements-bench.lock
	$(PYTHON) -m venv benchmarks/.venv
	benchmarks/.venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 --require-hashes \
		--requirement requirements-bench.lock
	@touch $@
