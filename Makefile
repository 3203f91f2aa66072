SHELL := /bin/bash
.DEFAULT_GOAL := help
PORT ?= 8000
BASE ?= main
BIN := .venv/bin
LOCK := requirements.lock
RUN_LOCK := requirements-run.lock

.PHONY: help
help: ## list these targets
	@echo 'Use it:'; $(call targets,##)
	@echo 'Work on it:'; $(call targets,#=)

targets = grep -hE '^[a-z-]+:.* $(1) ' $(MAKEFILE_LIST) | sed -E 's/^(.*):.* $(1) /  \1\t/' | expand -t 18

.PHONY: run
run: install-run ## serve with data at http://127.0.0.1:8000/ (PORT=8001 for another port)
	@$(BIN)/python -m housing.run --port "$(PORT)"

# `make coverage` runs test-real with another one.
PYTEST = $(BIN)/pytest -q -n auto

.PHONY: test
test: install ## run the specs on SQLite and fakeredis
	@env -u PYTHONDONTWRITEBYTECODE $(PYTEST)

.PHONY: test-real
test-real: install ## run the specs on PostgreSQL and Redis: from DATABASE_URL and REDIS_URL, or in containers
	@$(PYTEST) --stack=real

.PHONY: test-browser
test-browser: install #= run the browser specs in Chromium (Debian: apt install chromium); screenshots in screenshots/
	@rm -rf screenshots && $(BIN)/pytest -q --browser -m browser

.PHONY: races
races: install #= run every interleaving of readers, writers and watchmen, with kills: 14,770 schedules, some minutes
	@$(BIN)/pytest -v -n auto --races -m races

.PHONY: portal
portal: install #= how many unchanged pages of 10,000 stay warm after each of 1,000 writes, on PostgreSQL and Redis; half an hour
	@$(BIN)/pytest -v -s --stack=real --portal -m portal

.PHONY: fuzz
fuzz: install #= send every combination of hostile requests, and thousands that the schema allows or forbids; some minutes
	@$(BIN)/pytest -v -n auto --fuzz tests/test_requests.py tests/test_fuzz.py

.PHONY: lint
lint: install #= ruff, mypy, and linters of the hosted workflow
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && DJANGO_DEBUG=true REDIS_URL=fakeredis:// $(BIN)/mypy
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/zizmor --quiet --offline --persona pedantic .github

.PHONY: bench
bench: install ## measure the budgets: naive, optimized, cold, warm; results and a plot in reports/
	@$(BIN)/pytest -q --benchmark-only; ended=$$?; $(BIN)/python -m tests.measurements.report && exit $$ended

.PHONY: report
report: install reports/bench.json reports/counts.json ## write all measurements and budgets as one page: reports/report.html
	@$(BIN)/python -m tests.measurements.report

# A run with a time above its budget fails, but its results are shown.
reports/bench.json: | install
	@$(BIN)/pytest -q --benchmark-only || [ -f $@ ]

# The counts are renewed when the code has changed. One above its budget is shown, too.
reports/counts.json: conftest.py $(wildcard housing/*.py housing/*/*.py housing/*/*.lua tests/*.py tests/*/*.py) | install
	@began=$$(mktemp) && trap 'rm -f "$$began"' EXIT && { $(BIN)/pytest -q -n auto --metrics || [ $@ -nt "$$began" ]; }

.PHONY: bench-real
bench-real: install #= measure the budgets on PostgreSQL and Redis
	@$(BIN)/pytest -q --benchmark-only --stack=real

.PHONY: bench-compare
bench-compare: install #= is this tree slower than BASE, a commit, branch or tag? (BASE=main)
	@$(BIN)/python -m tests.measurements.compare "$(BASE)"

.PHONY: bench-proof
bench-proof: install #= measure the false-alarm and miss rates of bench-compare (N=100, half an hour)
	@$(BIN)/python -m tests.measurements.compare --proof $(or $(N),100)

.PHONY: scale
scale: install #= query plans with a million properties; seeds them in minutes, on DATABASE_URL or in a container
	@$(BIN)/python -m tests.measurements.scale

.PHONY: load
load: install ## load test with dozens of readers and one writer; fails on a stale read; results in reports/; with wrk, the targets of a hit (BASE=a commit to compare with, as deployed)
	@$(BIN)/python -m tests.measurements.load
	@command -v wrk >/dev/null || { echo 'The targets of a hit were not measured: wrk is missing (Debian: apt install wrk).' && exit; }; $(BIN)/python -m tests.measurements.servers --targets $(if $(filter file,$(origin BASE)),,--base "$(BASE)")

.PHONY: servers
servers: install #= compare gunicorn, granian and uvicorn: responses per second, memory, slow clients, reload, stop; needs wrk, some minutes
	@$(BIN)/python -m tests.measurements.servers

.PHONY: faults
faults: install #= inflict faults on the running service, in containers, some minutes; fails on a stale read; writes docs/faults.md
	@$(BIN)/python -m tests.measurements.faults

.PHONY: stress
stress: install #= run the specs N times (N=10) on a busy machine: colour forced, an odd folder, no .git, another time zone, LC_ALL=C
	@$(BIN)/python -m tests.measurements.stress $(or $(N),10)

.PHONY: coverage
coverage: install #= branch coverage of housing/ and tests/ on both stacks, hits before Django included; needs what test-real needs
	@$(BIN)/coverage erase && $(BIN)/coverage run -m pytest -q -n auto --fast-path
	@$(MAKE) --no-print-directory test-real PYTEST='$(BIN)/coverage run -m pytest -q -n auto --operations 20000'
	@$(BIN)/coverage run --concurrency=thread,gevent -m pytest -q --stack=real tests/test_load.py -k "leaves_no_record or without_responses"
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report

# docker-compose 1.29 or Compose v2. Environment variables take precedence over images.env.
export SITE TLS_BIND TLS_PORT
COMPOSE = $(if $(shell command -v docker-compose),docker-compose,docker compose) --env-file images.env
up: export PORT := $(PORT)

.PHONY: up
up: engine .env.service ## start PostgreSQL, Redis and the service in containers at http://127.0.0.1:8000/ (PORT=8001)
	@echo 'Building and starting …' && log=$$(mktemp) && trap 'rm -f "$$log"*' EXIT && \
	{ $(COMPOSE) build && $(COMPOSE) up --detach; } >"$$log" 2>&1 || { \
		sed -E -i.all $$'s/\e\\[[0-9;]*m//g; /failed to build|Encountered errors/d' "$$log"; \
		why=$$(grep -E 'ERROR|Error' "$$log" | tail -n 1); why=$${why:-$$(tail -n 1 "$$log")}; \
		container=$$(sed -nE 's/.*[Cc]ontainer "?([[:alnum:]_.-]+)"? (exited|is unhealthy).*/\1/p' <<<"$$why"); \
		[ -z "$$container" ] || why="$$why Its last log line: $$(docker logs --tail 1 "$$container" 2>&1)"; \
		$(COMPOSE) down >/dev/null 2>&1; echo "Not started: $$why" >&2; exit 1; }
	@printf '%s\n' '' '  Housing  $(URL)/' '' \
		'  Admin    $(URL)/admin/, as admin; set a password first:' \
		'           $(COMPOSE) exec service python manage.py changepassword admin' \
		'  Log      $(COMPOSE) logs --follow service' \
		'  Stop     make down' ''

URL = http://127.0.0.1:$(PORT)

# HSTS would concern everything at localhost, so only a name of its own has it.
.PHONY: up-tls
up-tls: ## the same behind a proxy with TLS at https://localhost:8443/ (SITE=homes.example.com TLS_BIND=0.0.0.0 TLS_PORT=443)
	@COMPOSE_PROFILES=tls DJANGO_SECURE_SSL_REDIRECT=true DJANGO_SECURE_HSTS_SECONDS="$${DJANGO_SECURE_HSTS_SECONDS:-$(if $(SITE),3600,0)}" \
		DJANGO_ALLOWED_HOSTS="$${DJANGO_ALLOWED_HOSTS:-$(or $(SITE),localhost)}" \
		$(MAKE) --no-print-directory up URL='https://$(or $(SITE),localhost):$(or $(TLS_PORT),8443)'

.PHONY: down
down: engine .env.service ## remove the containers, networks and data of `make up`; the image and the secrets stay
	@COMPOSE_PROFILES=tls $(COMPOSE) down --volumes --remove-orphans

.PHONY: audit
audit: install #= look up the locked versions in the advisories of osv.dev
	@curl --silent --output /dev/null --max-time 10 https://api.osv.dev/ || { echo 'Nothing was looked up: api.osv.dev is unreachable.' >&2; exit 1; }
	@$(BIN)/pip-audit --progress-spinner off --strict --disable-pip --require-hashes --vulnerability-service osv --requirement $(LOCK)

.PHONY: engine
engine:
	@why=$$(docker info 2>&1 >/dev/null) || { echo "The Docker engine is unreachable: $$(tail -n 1 <<<"$$why")" >&2; exit 1; }
	@$(COMPOSE) version >/dev/null 2>&1 || { echo 'Compose is not installed. Install it (Debian: apt install docker-compose).' >&2; exit 1; }

# Secrets of this folder, created once. The database keeps the password that it was created with.
.env.service:
	@umask 077 && secret() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; } && password=$$(secret) && \
	echo "POSTGRES_PASSWORD=$$password" >.env.database && \
	printf 'DJANGO_SECRET_KEY=%s\nDATABASE_URL=postgres://housing:%s@database:5432/housing\n' "$$(secret)" "$$password" >$@

.PHONY: sabotages
sabotages: install #= change one line of housing/ at a time; its spec must fail (STACK=real: on PostgreSQL; PART=1/4: every fourth)
	@$(BIN)/python -m tests.sabotages --stack $(or $(STACK),embedded) --part $(or $(PART),1/1)

.PHONY: mutants
mutants: install #= mutation testing of housing/; resumes after an interruption (SAMPLE=200: only 200 mutants, drawn; STACK=real: PostgreSQL's code, too)
	@$(BIN)/python -m tests.sabotages
	@$(if $(SAMPLE),,env -u PYTHONDONTWRITEBYTECODE $(BIN)/mutmut run &&) $(BIN)/python -m tests.sabotages.equivalent_mutants --sample $(or $(SAMPLE),0) --stack $(or $(STACK),embedded)

.PHONY: spec
spec: install #= write SPEC.md from the specs
	@$(BIN)/python -m tests.spec

.PHONY: steps
steps: install #= record the steps of the races again, and write SPEC.md
	@rm -f tests/fixtures/steps.json && $(BIN)/pytest -q --renew-steps $(addprefix tests/test_,commit.py journal.py races.py schedules.py waiting.py verification.py deploys.py)
	@$(BIN)/python -m tests.spec

RESOLVE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml

.PHONY: lock
lock: install #= resolve pyproject.toml into requirements.lock, and its parts for `make run` and the image
	@$(RESOLVE) --upgrade --group embedded --group test --group bench --group browser --group load --group lint --group mutants --output-file $(LOCK)
	@$(RESOLVE) --group embedded --constraints $(LOCK) --output-file $(RUN_LOCK)
	@$(RESOLVE) --group debug --group server --constraints $(LOCK) --output-file requirements-image.lock
	@$(MAKE) --no-print-directory calls

.PHONY: calls
calls: install #= renew the counts of Python calls in tests/measurements/calls.json
	@$(BIN)/pytest -q --renew-calls tests/test_latency.py -k python_calls

.PHONY: clean
clean: ## remove what make and pytest created; db.sqlite3 and .env stay
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage* staticfiles mutants screenshots reports
	@find . -name __pycache__ -prune -exec rm -rf {} +

# .venv has a copy of each lock that it was filled from, so a lock is installed again only when it has changed.
# The packages of `make run` are among those of `make test`, which adds the others.
.PHONY: install
install:
	@$(call filled,$(LOCK)) || { $(call fill,$(LOCK),$(call filled,$(RUN_LOCK)) && [ ! -e .venv/$(LOCK) ]) && cp $(LOCK) $(RUN_LOCK) .venv/; }

.PHONY: install-run
install-run:
	@$(call filled,$(LOCK)) || $(call filled,$(RUN_LOCK)) || { $(call fill,$(RUN_LOCK),false) && cp $(RUN_LOCK) .venv/; }

filled = cmp -s $(1) .venv/$(1)

# Installs a lock into .venv, which is created again unless the second argument says that it can be kept.
define fill
	packages=$$(grep -c '^[a-z0-9]' $(1)); echo "Installing the $$packages packages of $(1) into .venv …"; \
	{ $(2); } || { $(new_venv); }; \
	log=$$(mktemp); { while [ -t 1 ] && kill -0 $$$$; do $(progress); sleep 0.5; done 2>/dev/null & } ; trap "kill $$! 2>/dev/null; rm -f '$$log'" EXIT; \
	$(BIN)/pip install --disable-pip-version-check --require-hashes --requirement $(1) >"$$log" 2>&1 || \
		{ [ ! -t 1 ] || echo; grep '^ERROR' "$$log" || tail -n 1 "$$log"; echo 'Not installed. Remove the cause, and run make again.'; exit 1; } >&2; \
	kill $$! 2>/dev/null; wait $$! 2>/dev/null; [ ! -t 1 ] || { $(progress); echo; }; echo "Installed in $$SECONDS s: .venv has $$(du -sm .venv/ | cut -f 1) MB."
endef

progress = printf '\r  %s of %s, %s MB' "$$(grep -cE '^(Collecting|Processing|Ignoring|Requirement already)' "$$log")" "$$packages" "$$(du -sm .venv/ | cut -f 1)"

define new_venv
	for python in $${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do \
		$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
	done; \
	[ -n "$$python" ] || { echo 'This needs Python 3.11 or newer with its venv module (Debian: apt install python3-venv). Choose it with PYTHON=…' >&2; exit 1; }; \
	rm -rf .venv && $$python -m venv .venv || exit 1
endef
