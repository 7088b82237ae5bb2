# Targets are one or two lines; the code is in Python: deploy/local, deploy/containers, etl, source_db, bench.
PYTHON ?= python3
export SOURCE_PORT TARGET_PORT AIRFLOW_PORT ROLE
ARGS ?=
LOCAL = .venv/bin/python -m deploy.local
CONTAINERS = $(PYTHON) -m deploy.containers
PYTEST = .venv/bin/python -m pytest
AIRFLOW_TESTS = tests/unit/airflow tests/integration/airflow tests/end_to_end/test_airflow.py tests/end_to_end/test_celery.py
# Each process has its own servers; tests/distribution.py says which tests stay together.
IN_PARALLEL = --numprocesses auto --dist load

.DEFAULT_GOAL := help
.PHONY: help setup environment up down airflow airflow-down seed simulate extract dbt-run dbt-test pipeline freshness \
	image secrets compose-pipeline compose-up compose-down compose-clean backup restore docs manifest status verify \
	reset discover psql test test-fast test-long test-unit test-integration test-airflow test-end-to-end lint \
	audit-dependencies bench bench-marts bench-report clean wheel lock

help:  ## show this help
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 20

setup:  ## create .venv with the packages for development
	@$(PYTHON) deploy/local/environment.py dev

environment:
	@$(PYTHON) deploy/local/environment.py core

pipeline: environment  ## run source -> raw -> marts and print a summary; starts and seeds embedded servers if needed
	@$(LOCAL) pipeline

up: environment  ## start the embedded servers (SOURCE_PORT=5433 TARGET_PORT=5434)
	@$(LOCAL) up

down: environment  ## stop the embedded servers
	@$(LOCAL) down

airflow:  ## start Airflow on the databases, without containers (AIRFLOW_PORT=8080)
	@$(PYTHON) deploy/local/environment.py airflow
	@$(LOCAL) airflow

airflow-down: environment  ## stop all processes of Airflow
	@$(LOCAL) airflow-down

seed: environment  ## fill the source with the example shop (ARGS="--scale 10")
	@$(LOCAL) seed $(ARGS)

simulate: environment  ## simulate activity on the embedded source (ARGS="--seconds 20 --rate 50")
	@$(LOCAL) simulate $(ARGS)

extract: environment  ## replicate what changed to raw (ARGS=orders for one table)
	@$(LOCAL) extract $(ARGS)

dbt-run: environment  ## build snapshots and models (ARGS=--full-refresh rebuilds all rows)
	@$(LOCAL) dbt-run $(ARGS)

dbt-test: environment  ## check the rules of the models
	@$(LOCAL) dbt-test $(ARGS)

freshness: environment  ## show how old raw is; fails if it is too old
	@$(LOCAL) freshness

docs: environment  ## write the models' documentation to dist/docs, as one HTML file
	@$(LOCAL) docs $(ARGS)

manifest: environment  ## write the manifest that Airflow needs to create a task for each model (dbt_runner=cosmos)
	@$(LOCAL) manifest

status: environment  ## show the state of each table, and what holds it back
	@$(LOCAL) status $(ARGS)

verify: environment  ## compare source and raw by content
	@$(LOCAL) verify $(ARGS)

reset: environment  ## reload tables (ARGS="orders customers")
	@$(LOCAL) reset $(ARGS)

discover: environment  ## propose a tables.yml for the source, with the reasons
	@$(LOCAL) discover $(ARGS)

psql: environment  ## query the warehouse as analyst (ARGS='-c "select ..."'; ROLE=transformer also reads schema audit)
	@$(LOCAL) psql $(ARGS)

image:  ## build the container image (IMAGE=tidemark:local)
	@$(CONTAINERS) image

secrets:  ## generate the containers' passwords in .secrets
	@$(CONTAINERS) secrets

compose-pipeline:  ## run source -> raw -> marts in containers; needs only Docker
	@$(CONTAINERS) pipeline

compose-up:  ## run compose-pipeline, then Airflow in containers (AIRFLOW_PORT=8080)
	@$(CONTAINERS) up $(ARGS)

compose-down:  ## stop and remove the containers, keep their data
	@$(CONTAINERS) down

compose-clean:  ## remove the containers and their data
	@$(CONTAINERS) clean

backup:  ## dump the containers' warehouse to backups/ (ARGS=FILE for another place)
	@$(CONTAINERS) backup $(ARGS)

restore:  ## restore the containers' warehouse (FILE=backups/warehouse-....dump)
	@$(CONTAINERS) restore $(FILE)

test: setup  ## run all tests (about 20 minutes on two cores; ARGS=--servers=embedded for no containers; see docs/testing.md)
	@$(PYTEST) $(IN_PARALLEL) $(ARGS)

test-fast: setup  ## run the unit tests and the quick tests on servers (a minute on two cores)
	@$(PYTEST) $(IN_PARALLEL) --fast $(ARGS)

test-long: setup  ## run the long form of the tests that have one (about 20 minutes; includes Airflow's if it is installed)
	@$(PYTEST) -m has_long_form --long $(ARGS)

test-unit: setup  ## run the tests that need no database
	@$(PYTEST) tests/unit $(ARGS)

test-integration: setup  ## run the tests on real servers
	@$(PYTEST) $(IN_PARALLEL) tests/integration $(ARGS)

test-airflow: setup  ## install Airflow and run the tests of the DAGs (about 15 minutes on two cores)
	@$(PYTHON) deploy/local/environment.py airflow
	@$(PYTEST) $(IN_PARALLEL) $(AIRFLOW_TESTS) $(ARGS)

test-end-to-end: setup  ## run the tests of make itself, in a copy of the checkout
	@$(PYTEST) tests/end_to_end $(ARGS)

lint: setup  ## run ruff, mypy, bandit and sqlfluff, and check the workflows
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy -p etl -p deploy -p source_db -p bench
	@.venv/bin/bandit -q -c pyproject.toml -r etl deploy source_db bench airflow
	@.venv/bin/sqlfluff lint dbt/models dbt/tests/*.sql source_db/sql
	@.venv/bin/sqlfluff lint --templater placeholder etl
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	@.venv/bin/zizmor --offline --quiet .github

audit-dependencies: setup  ## check every locked package for known vulnerabilities (needs the internet)
	@for group in core dev airflow; do .venv/bin/pip-audit --strict --disable-pip -r lock/$$group.txt $(ARGS) || exit 1; done

bench: setup  ## time this project against COPY pipes and a tutorial's loader (ARGS="--rows 2000000 --repeat 5 --json f.json")
	@.venv/bin/python -m bench $(ARGS)

bench-marts: setup  ## time incremental builds of the facts against full refreshes (ARGS="--scale 20 --repeat 5")
	@.venv/bin/python -m bench.marts $(ARGS)

bench-report: setup  ## write the figures of bench as Markdown tables, or draw them (ARGS="f.json --into docs/performance.md")
	@.venv/bin/python -m bench.report $(ARGS)

clean: environment  ## stop the embedded servers and remove their data
	@$(LOCAL) clean

wheel: setup  ## build the package in dist
	@.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

lock: setup  ## update the lock files after a change of pyproject.toml (ARGS=--upgrade upgrades all packages)
	@PATH="$(CURDIR)/.venv/bin:$$PATH" lock/regenerate $(ARGS)
