# `make` alone lists what can be made.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run test lint format bench fuzz faults audit aws clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/run ## Run everything on this machine: database, Stripe sandbox, service on :3100
	@exec $(BIN)/python -m cli.run_local

test: $(VENV)/dev ## Run the whole test suite on a real PostgreSQL (one subset: make test ARGS="-k usage")
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/dev ## Check style, types, secrets and known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --disable-plugin KeywordDetector
	@$(MAKE) --no-print-directory audit

audit: $(VENV)/dev ## Look for known vulnerabilities in what production installs, where the database is in reach
	@$(BIN)/pip-audit -r requirements.txt --disable-pip --no-deps --progress-spinner off >$(VENV)/audit.log 2>&1 \
		|| { grep -q 'known vulnerabilit' $(VENV)/audit.log && cat $(VENV)/audit.log && exit 1; } \
		|| { ! grep -q 'known vulnerabilit' $(VENV)/audit.log && echo 'pip-audit: the advisories are out of reach'; }

format: $(VENV)/dev ## Put the code into its form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/dev ## Measure the service, beside another checkout: make bench AGAINST=DIR (see docs/performance.md)
	@$(BIN)/python -m tests.bench $(if $(AGAINST),--against "$(AGAINST)") $(ARGS)

fuzz: $(VENV)/dev ## Throw odd requests at every route for some minutes
	@FUZZ_EXAMPLES=300 $(BIN)/python -m pytest -n 0 --timeout 3600 tests/api/test_fuzz.py $(ARGS)

faults: $(VENV)/dev ## Kill, starve and fill what the service stands on, for some minutes
	@FAULTS=long $(BIN)/python -m pytest -n 0 --timeout 600 tests/faults $(ARGS)

aws: $(VENV)/aws/done ## Install the AWS client and a stand-in for AWS: `make test` then fetches a key from there too

clean: ## Remove the virtual environment and caches (data, keys and .env stay)
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/run: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make run PYTHON=python3.12")'
	@echo 'Making the virtual environment $(VENV)/ …'
	@umask 022; $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo 'Installing what requirements.txt names, which may take a minute …'
	@umask 022; $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/dev: $(VENV)/run requirements-dev.txt
	@umask 022; $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/aws/done: $(VENV)/run requirements-aws.txt
	@umask 022; $(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(VENV)/aws -r requirements-aws.txt
	@touch $@
