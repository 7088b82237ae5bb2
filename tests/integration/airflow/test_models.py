"""`warehouse_pipeline` with a task for each model, by Cosmos."""

import shutil
from pathlib import Path

import psycopg2
import pytest

from tests.integration.dbt.built_shop import WITHOUT_UNIT_TESTS, is_waited_for, locked, open_database

# The last breaks rules: orders that are shipped are paid in full.
CHANGES = """
    update products set cost = cost * 3 where product_id % 2 = 0;
    update customers set tier = 'platinum' where customer_id % 3 = 0;
    update orders set discount = 1, total = subtotal - 1 + tax + shipping where order_id % 7 = 0;
"""
ONE_TASK, A_TASK_EACH = {"extract_and_load"}, {"begin_run", "replicate", "end_run"}  # two ways to replicate
OPEN_BUILDS = "select count(*) from intermediate.dbt_open_build"


@pytest.fixture
def cosmos(airflow, manifest):
    return by_cosmos(airflow, manifest)


def by_cosmos(airflow, manifest):
    """Have an Airflow build each model by a task of its own."""
    target = Path(airflow.environment["DBT_TARGET_PATH"]) / "airflow"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(manifest, target)
    airflow.environment |= {"AIRFLOW_VAR_DBT_RUNNER": "cosmos", "AIRFLOW__COSMOS__ENABLE_TELEMETRY": "False"}
    return airflow


def states(outcome):
    return {name: task["state"] for name, task in outcome["tasks"].items()}


def skipped(outcome):
    """Return the tasks that were skipped, those of the tables as one."""
    return {name.partition("[")[0] for name, state in states(outcome).items() if state == "skipped"}


@pytest.mark.has_long_form
def test_task_per_model_gives_the_same_marts_and_checks_rules(cosmos, make_airflow, target_server, is_long):
    """The first run replicates all tables by one task, the second, of the long form, each by its own."""
    with open_database(target_server) as plain_url:
        plain = make_airflow(cosmos.source_url, plain_url)
        first = cosmos.succeed("warehouse_pipeline", WITHOUT_UNIT_TESTS)
        plain.succeed("warehouse_pipeline")
        filled = cosmos.marts()
        assert filled["fct_orders"][0] > 100
        assert filled == plain.marts()
        check_success(cosmos, first)
        if not is_long:
            return
        cosmos.on_source(CHANGES)
        broken = cosmos.run("warehouse_pipeline", WITHOUT_UNIT_TESTS, params={"mapped_tables": True})
        assert plain.run("warehouse_pipeline", WITHOUT_UNIT_TESTS)["tasks"]["dbt_test"]["state"] == "failed"
        assert cosmos.marts() == plain.marts() != filled

    check_broken_rule(broken)
    assert cosmos.query(OPEN_BUILDS) == [(0,)]


def check_success(airflow, outcome):
    assert len(states(outcome)) > 40
    assert set(states(outcome).values()) == {"success", "skipped"}
    assert skipped(outcome) == A_TASK_EACH
    assert outcome["returned"]["dbt_test"]["passed"] > 100
    stored = airflow.stored_text()
    assert "insert into" in stored  # what dbt has run is kept beside each task
    for url in (airflow.source_url, airflow.target_url):
        assert psycopg2.extensions.parse_dsn(url)["password"] not in stored + outcome["log"]


def check_broken_rule(outcome):
    found = states(outcome)
    assert outcome["state"] == "failed"
    assert skipped(outcome) == ONE_TASK
    assert {state for name, state in found.items() if name.startswith("models.")} == {"success"}
    assert outcome["tasks"]["dbt_test"] == {"state": "failed", "tries": 1}  # the same rows would break it again
    assert (found["end_build"], found["freshness"], found["docs"]) == ("success", "upstream_failed", "upstream_failed")
    assert "rule fct_orders_paid_when_shipped: " in outcome["log"]


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long")  # in short: test_pipeline, a failed task stops those after it
def test_failed_model_is_retried_alone_and_stops_its_dependents(cosmos):
    cosmos.query("create schema staging; create type staging.stg_events as (is_in_the_way boolean)")
    outcome = cosmos.run("warehouse_pipeline", retries=1)
    found = states(outcome)

    assert outcome["state"] == "failed"
    assert outcome["tasks"]["models.stg_events_run"] == {"state": "failed", "tries": 2}
    assert found["models.fct_events_run"] == found["dbt_test"] == "upstream_failed"
    assert outcome["tasks"]["models.fct_sales_run"] == {"state": "success", "tries": 1}
    assert found["end_build"] == "success"
    assert cosmos.query(OPEN_BUILDS) == [(0,)]


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long")  # in short: test_lock, builds of many
def test_concurrent_runs_never_mix_their_models(cosmos, make_airflow, manifest):
    """The second comes while a model of the first waits; it is by another Airflow, which knows nothing of the first."""
    other = by_cosmos(make_airflow(cosmos.source_url, cosmos.target_url), manifest)
    first = cosmos.start("warehouse_pipeline")
    cosmos.wait_for("to_regclass('intermediate.dbt_open_build') is not null")
    with locked(cosmos.target_url, "intermediate.dbt_builds", "share"):  # each dbt command writes to it as it starts
        cosmos.wait_for(is_waited_for("intermediate.dbt_builds"))
        second = other.run("warehouse_pipeline", {"ETL_LOCK_WAIT_SECONDS": "1"}, retries=0)
    log, _ = first.communicate(timeout=600)

    assert states(second)["begin_build"] == "failed"
    assert {state for name, state in states(second).items() if name.startswith("models.")} == {"upstream_failed"}
    assert "another dbt command is running on this warehouse" in second["log"]
    assert set(states(cosmos.read_outcome(log)).values()) == {"success", "skipped"}
    assert skipped(cosmos.read_outcome(log)) == A_TASK_EACH
