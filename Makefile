SHELL := /bin/bash
.DEFAULT_GOAL := help
PORT ?= 8000
BIN := .venv/bin
LOCK := requirements.lock

.PHONY: help
help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: run
run: install ## the service, with data, at http://127.0.0.1:8000/ (PORT=8001 for another port)
	@$(BIN)/python -m housing.run --port "$(PORT)"

.PHONY: test
test: install ## the specs, on SQLite and fakeredis
	@$(BIN)/pytest -q -n auto

.PHONY: test-real
test-real: install ## the specs, on PostgreSQL and Redis: DATABASE_URL and REDIS_URL, or containers
	@$(BIN)/pytest -q -n auto --stack=real

.PHONY: lint
lint: install ## ruff and mypy
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && DJANGO_DEBUG=true REDIS_URL=fakeredis:// $(BIN)/mypy

.PHONY: bench
bench: install ## the budgets, measured: naive, optimized, cold, warm
	@$(BIN)/pytest -q --benchmark-only

.PHONY: coverage
coverage: install ## every branch of housing/ and tests/, on both stacks; needs what test-real needs
	@$(BIN)/coverage erase && $(BIN)/coverage run -m pytest -q -n auto && $(BIN)/coverage run -m pytest -q -n auto --stack=real && \
		$(BIN)/coverage combine --quiet && $(BIN)/coverage report

.PHONY: spec
spec: install ## SPEC.md, from the specs themselves
	@$(BIN)/python -m tests.spec

.PHONY: lock
lock: install ## resolve pyproject.toml into requirements.lock, for every Python and platform
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade \
		--group embedded --group test --group lint pyproject.toml --output-file $(LOCK)

.PHONY: clean
clean: ## remove what make and pytest made; the data in db.sqlite3 and .env stay
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage* staticfiles
	@find . -name __pycache__ -prune -exec rm -rf {} +

# Installs quietly, once, and again only when the lock has changed.
.PHONY: install
install:
	@cmp -s $(LOCK) .venv/$(LOCK) || { \
		for python in $${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do \
			$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
		done; \
		[ -n "$$python" ] || { echo 'This needs Python 3.11 or newer with its venv module (Debian: apt install python3-venv). Name it with PYTHON=…' >&2; exit 1; }; \
		echo 'Installing into .venv, once …' && rm -rf .venv && $$python -m venv .venv && \
		$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement $(LOCK) && cp $(LOCK) .venv/$(LOCK); }
