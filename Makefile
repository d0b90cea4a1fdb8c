# Needs python3 (3.11 or newer) with venv and pip; everything else is installed into .venv.
# Another interpreter: make PYTHON=python3.13 test. More test processes: make WORKERS=8 test.
PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --disable-pip-version-check --no-input --constraint constraints.txt
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev
BROWSER := $(VENV)/.installed-browser
SITE := docs/_build/html

.DEFAULT_GOAL := help
.PHONY: help demo test slow docs browser-test lint types format install wheel clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO) ## answer questions with fewer and fewer visual tokens, on the model that ships with the package
	@$(PY) -m tokenops demo

test: $(DEV) ## the test suite, with coverage
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q --tb=short -n $(WORKERS) --dist worksteal -m "not slow and not browser" --cov --cov-report=term --durations=10 $(PYTEST_ARGS)

slow: $(DEV) ## the tests that take minutes: torch.compile of every family, two processes
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q --tb=short -n $(WORKERS) -m slow --durations=10 $(PYTEST_ARGS)

docs: $(DEV) ## the documentation, into docs/_build/html: pages are run, warnings are errors, links are checked
	@$(PY) -m sphinx --builder html --nitpicky --fail-on-warning --keep-going --quiet \
		--doctree-dir docs/_build/doctrees docs $(SITE)
	@$(PY) docs/_ext/site_check.py $(SITE)

browser-test: $(BROWSER) docs ## every page of it in a headless chromium, wide and on a phone
	@$(PY) -m pytest -q --tb=short -m browser tests/browser $(PYTEST_ARGS)

lint: $(DEV) ## ruff: rules and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: $(DEV) ## pyright on the package
	@$(PY) -m pyright

format: $(DEV) ## rewrite the code the way lint wants it
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

install: $(DEV) ## everything for development into .venv

wheel: $(DEV) ## the wheel, into dist/
	@rm -rf dist
	@$(PY) -m build --wheel --no-isolation

clean: ## remove environments, caches and build products
	rm -rf .venv .venv-* build dist docs/_build htmlcov .coverage .coverage.* .pytest_cache .ruff_cache .hypothesis

# the stamps are renewed when the list of dependencies changes; pip then adds only what is missing
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "tokenops needs Python 3.11 or newer: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv $(VENV)

$(DEMO): pyproject.toml constraints.txt | $(PY)
	@if [ $(DEV) -nt pyproject.toml ] && [ $(DEV) -nt constraints.txt ]; then :; else \
		echo "Installing PyTorch and the demo's packages into $(VENV): one to five minutes, once."; \
		$(INSTALL) --editable '.[demo]'; \
	fi
	@touch $@

$(BROWSER): $(DEV)
	$(INSTALL) --editable '.[browser]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(PY)
	@echo "Installing PyTorch and the development tools into $(VENV): one to five minutes, once."
	$(INSTALL) --editable '.[dev]'
	@touch $@
