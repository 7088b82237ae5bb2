# Targets are a line or two; what they do is in Python: etl/local, etl, source_db.
PYTHON ?= python3
export SOURCE_PORT TARGET_PORT AIRFLOW_PORT ROLE
ARGS ?=
LOCAL = .venv/bin/python -m etl.local
CONTAINERS = $(PYTHON) -m etl.local.containers
PYTEST = .venv/bin/python -m pytest
AIRFLOW_TESTS = tests/unit/airflow tests/integration/airflow tests/end_to_end/test_airflow.py tests/end_to_end/test_celery.py
# Each process has servers of its own; tests/distribution.py says which tests stay together.
IN_PARALLEL = --numprocesses auto --dist load

.DEFAULT_GOAL := help
.PHONY: help setup environment up down airflow airflow-down seed simulate extract dbt-run dbt-test pipeline freshness \
	image secrets compose-pipeline compose-up compose-down compose-clean backup restore docs manifest status verify \
	reset discover psql test test-fast test-long test-unit test-integration test-airflow test-end-to-end lint \
	audit-dependencies bench bench-marts bench-report clean wheel lock

help:  ## print this
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 20

setup:  ## make .venv with everything for development
	@$(PYTHON) etl/local/environment.py dev

environment:
	@$(PYTHON) etl/local/environment.py core

pipeline: environment  ## source -> raw -> marts, with a summary; starts and seeds embedded servers if needed
	@$(LOCAL) pipeline

up: environment  ## start the embedded servers (SOURCE_PORT=5433 TARGET_PORT=5434)
	@$(LOCAL) up

down: environment  ## stop the embedded servers
	@$(LOCAL) down

airflow:  ## start Airflow on the databases, without containers (AIRFLOW_PORT=8080)
	@$(PYTHON) etl/local/environment.py airflow
	@$(LOCAL) airflow

airflow-down: environment  ## stop Airflow and all of its processes
	@$(LOCAL) airflow-down

seed: environment  ## fill the source with an invented shop (ARGS="--scale 10")
	@$(LOCAL) seed $(ARGS)

simulate: environment  ## play activity on the embedded source (ARGS="--seconds 20 --rate 50")
	@$(LOCAL) simulate $(ARGS)

extract: environment  ## replicate what changed (ARGS=orders for one table)
	@$(LOCAL) extract $(ARGS)

dbt-run: environment  ## build snapshots and models (ARGS=--full-refresh)
	@$(LOCAL) dbt-run $(ARGS)

dbt-test: environment  ## check the rules of the models
	@$(LOCAL) dbt-test $(ARGS)

freshness: environment  ## tell how old raw is, and fail when that is too old
	@$(LOCAL) freshness

docs: environment  ## write the models' documentation, one HTML file, to dist/docs
	@$(LOCAL) docs $(ARGS)

manifest: environment  ## write what Airflow draws a task for each model from, with dbt_runner=cosmos
	@$(LOCAL) manifest

status: environment  ## where every table stands, and what holds it back
	@$(LOCAL) status $(ARGS)

verify: environment  ## compare source and raw by content
	@$(LOCAL) verify $(ARGS)

reset: environment  ## load tables anew (ARGS="orders customers")
	@$(LOCAL) reset $(ARGS)

discover: environment  ## propose a tables.yml for the source, with reasons
	@$(LOCAL) discover $(ARGS)

psql: environment  ## query the warehouse as analyst (ARGS='-c "select ..."'; ROLE=transformer sees schema audit)
	@$(LOCAL) psql $(ARGS)

image:  ## build the image for containers (IMAGE=tidemark:local)
	@$(CONTAINERS) image

secrets:  ## make the passwords of the containers, in .secrets
	@$(CONTAINERS) secrets

compose-pipeline:  ## source -> raw -> marts in containers, with Docker and nothing else
	@$(CONTAINERS) pipeline

compose-up:  ## the same, and Airflow in containers (AIRFLOW_PORT=8080)
	@$(CONTAINERS) up $(ARGS)

compose-down:  ## stop the containers; the data stay
	@$(CONTAINERS) down

compose-clean:  ## remove the containers and their data
	@$(CONTAINERS) clean

backup:  ## write the warehouse of the containers to backups/ (ARGS=file for another place)
	@$(CONTAINERS) backup $(ARGS)

restore:  ## bring it back (FILE=backups/warehouse-....dump)
	@$(CONTAINERS) restore $(FILE)

test: setup  ## run all tests (about 7 minutes on two cores; ARGS=--servers=embedded without containers: docs/testing.md)
	@$(PYTEST) $(IN_PARALLEL) $(ARGS)

test-fast: setup  ## run the unit tests and the quick tests on servers (a minute on two cores)
	@$(PYTEST) $(IN_PARALLEL) --fast $(ARGS)

test-long: setup  ## run the long form of the tests that have one (about 20 minutes; of Airflow's, if it is installed)
	@$(PYTEST) -m has_long_form --long $(ARGS)

test-unit: setup  ## run the tests that need no database
	@$(PYTEST) tests/unit $(ARGS)

test-integration: setup  ## run the tests on real servers
	@$(PYTEST) $(IN_PARALLEL) tests/integration $(ARGS)

test-airflow: setup  ## run the tests of the DAGs, with Airflow installed (about 15 minutes on two cores)
	@$(PYTHON) etl/local/environment.py airflow
	@$(PYTEST) $(IN_PARALLEL) $(AIRFLOW_TESTS) $(ARGS)

test-end-to-end: setup  ## run make itself in a copy of the checkout
	@$(PYTEST) tests/end_to_end $(ARGS)

lint: setup  ## ruff, mypy, bandit, sqlfluff; schemas and pitfalls of workflows
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy -p etl -p source_db -p bench
	@.venv/bin/bandit -q -c pyproject.toml -r etl source_db bench airflow
	@.venv/bin/sqlfluff lint dbt/models dbt/tests/*.sql source_db/sql
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@.venv/bin/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	@.venv/bin/zizmor --offline --quiet .github

audit-dependencies: setup  ## look up every locked package in a service of known weaknesses (needs the internet)
	@for group in core dev airflow; do .venv/bin/pip-audit --strict --disable-pip -r lock/$$group.txt $(ARGS) || exit 1; done

bench: setup  ## time this project beside COPY pipes and a tutorial's loader (ARGS="--rows 2000000 --repeat 5 --json f.json")
	@.venv/bin/python -m bench $(ARGS)

bench-marts: setup  ## time incremental builds of the facts beside full refreshes (ARGS="--scale 20 --repeat 5")
	@.venv/bin/python -m bench.marts $(ARGS)

bench-report: setup  ## write tables of figures as Markdown, or draw them (ARGS="f.json --into docs/performance.md")
	@.venv/bin/python -m bench.report $(ARGS)

clean: environment  ## stop the embedded servers and remove their data
	@$(LOCAL) clean

wheel: setup  ## build the package, into dist
	@.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

lock: setup  ## resolve the dependencies after a change of pyproject.toml (ARGS=--upgrade raises all)
	@PATH="$(CURDIR)/.venv/bin:$$PATH" lock/regenerate $(ARGS)
