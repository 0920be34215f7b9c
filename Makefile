# Needs make, and Python 3.11 or newer with its venv module. `make PYTHON=python3.12 test` picks one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUICKSTART := runs/quickstart
# Tests of pages in a browser need Chromium and `make EXTRAS=data,dev,web,browser test-long`.
EXTRAS ?= data,dev,web

.PHONY: help quickstart test test-long lint format audit clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile

quickstart: $(STAMP) ## Corpus, pretraining, SFT, reward model, PPO, DPO and report, in runs/quickstart
	$(BIN)/python -m experiments.pipeline --workdir=$(QUICKSTART)

test: lint ## Lint, format check and the quick tests, most of them
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not long and not slow"

test-long: $(STAMP) ## Tests that train, compile large programs, or start processes; CI runs them too
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "long and not slow"

lint: $(STAMP) ## Lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Format, and fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: $(STAMP) ## Known vulnerabilities of packages; with EXTRAS=data,dev,web,audit pip-audit looks too
	$(BIN)/python -m tools.audit

clean: ## Remove the environment and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "error: no $(PYTHON); name a Python 3.11 or newer: make PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  "error: Python 3.11 or newer is needed, $(PYTHON) is %d.%d; use make PYTHON=python3.11" % v[:2])'
	@echo "Making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)
	@echo "Installing the packages of constraints.txt into $(VENV): 1 to 3 minutes, about 1 GB"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@
	@echo "Installed"
