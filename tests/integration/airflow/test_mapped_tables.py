"""`warehouse_pipeline` with a task for each table: the same marts, one run, through failures and kills."""

import os
import signal

import pytest

from tests.integration.dbt.built_shop import is_waited_for, locked, open_database

from .conftest import wait_until

MAPPED = {"mapped_tables": True}
TABLES = 8
RUNS = "select run_id, status, shared_by is not null from etl.runs order by run_id"


def states(outcome):
    """Return how each task ended, and a set for the tasks of the tables."""
    found = {name: task["state"] for name, task in outcome["tasks"].items() if not name.startswith("replicate")}
    tables = {task["state"] for name, task in outcome["tasks"].items() if name.startswith("replicate")}
    return found | {"replicate": tables}


def state_of(outcome, table):
    (name,) = [name for name, label in outcome["labels"].items() if label == table]
    return outcome["tasks"][name]


def returned(outcome):
    """Return what the task of each table has returned, by table."""
    return {outcome["labels"][name]: value for name, value in outcome["returned"].items() if name in outcome["labels"]}


def assert_same_marts_in_one_task(airflow, make_airflow, target_server):
    with open_database(target_server) as url:
        undisturbed = make_airflow(airflow.source_url, url)
        undisturbed.succeed("warehouse_pipeline")
        assert airflow.marts() == undisturbed.marts()


def test_mapped_tables_give_the_same_marts_as_a_single_task(airflow, make_airflow, target_server):
    outcome = airflow.succeed("warehouse_pipeline", {"AIRFLOW_VAR_MAPPED_TABLES": "true"})

    tasks = ("begin_run", "end_run", "dbt_run", "dbt_test", "freshness", "docs")
    assert states(outcome) == {
        "extract_and_load": "skipped",
        "replicate": {"success"},
        **dict.fromkeys(tasks, "success"),
    }
    tables = returned(outcome)
    assert len(tables) == TABLES
    assert {table["table"] for table in tables.values()} == set(tables)
    assert {table["run_id"] for table in tables.values()} == {1}
    assert tables["orders"]["rows_inserted"] > 100
    assert tables["orders"]["held_back_by"] == []
    places = {label: int(name.partition("[")[2][:-1]) for name, label in outcome["labels"].items()}
    assert places["order_items"] < places["orders"] < places["customers"]
    caught_up = outcome["returned"]["end_run"]["caught_up"]
    assert {table["table"] for table in caught_up} == set(tables) - {"events"}  # which stands alone
    assert {table["rows_inserted"] + table["rows_updated"] for table in caught_up} == {0}
    assert airflow.query(RUNS) == [(1, "succeeded", True), (2, "succeeded", False)]
    assert_same_marts_in_one_task(airflow, make_airflow, target_server)


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long")  # in short: the two ways, each by itself, above and in test_pipeline
def test_param_overrides_the_variable_and_both_modes_agree(airflow):
    first = airflow.succeed(
        "warehouse_pipeline", {"AIRFLOW_VAR_MAPPED_TABLES": "true"}, params={"mapped_tables": False}
    )
    filled = airflow.marts()
    second = airflow.succeed("warehouse_pipeline", params=MAPPED)

    assert (states(first)["extract_and_load"], states(first)["replicate"]) == ("success", {"skipped"})
    assert (states(second)["extract_and_load"], states(second)["replicate"]) == ("skipped", {"success"})
    assert all(table["rows_inserted"] == 0 for table in returned(second).values())
    assert airflow.marts() == filled


def test_invalid_variable_is_rejected_by_name(airflow):
    outcome = airflow.run("warehouse_pipeline", {"AIRFLOW_VAR_MAPPED_TABLES": "some"})

    assert (states(outcome)["extract_and_load"], states(outcome)["begin_run"]) == ("failed", "failed")
    assert outcome["tasks"]["begin_run"]["tries"] == 1
    assert "the Airflow variable mapped_tables is 'some': expected true or false" in outcome["log"]


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long")  # in short: test_shared_runs, failed tables
def test_failed_table_stops_the_models_but_not_other_tables(airflow, make_airflow, target_server):
    airflow.make("extract")
    airflow.query("alter table raw.payments drop column _etl_synced_at")
    outcome = airflow.run("warehouse_pipeline", params=MAPPED, retries=0)

    assert outcome["state"] == "failed"
    assert state_of(outcome, "payments")["state"] == "failed"
    assert state_of(outcome, "orders")["state"] == "success"
    assert (states(outcome)["end_run"], states(outcome)["dbt_run"]) == ("failed", "upstream_failed")
    assert "raw.payments does not fit public.payments" in outcome["log"]
    assert "these tables failed: payments" in outcome["log"]
    assert airflow.query("select status, error from etl.runs where run_id = 2") == [("failed", "failed: payments")]
    airflow.make("reset", "payments")
    airflow.succeed("warehouse_pipeline", params=MAPPED)
    assert_same_marts_in_one_task(airflow, make_airflow, target_server)


def test_retried_table_continues_in_the_same_run(airflow):
    failed = "exists (select from etl.table_runs where table_name = 'orders' and status = 'failed')"
    with locked(airflow.source_url, "orders"):
        process = airflow.start(
            "warehouse_pipeline", {"ETL_LOCK_TIMEOUT_SECONDS": "1", "ETL_MAX_ATTEMPTS": "1"}, params=MAPPED
        )
        airflow.wait_for("to_regclass('etl.table_runs') is not null")
        airflow.wait_for(failed)
    log, _ = process.communicate(timeout=600)
    outcome = airflow.read_outcome(log)

    assert outcome["state"] == "success", log
    assert state_of(outcome, "orders")["tries"] > 1
    assert returned(outcome)["orders"]["run_id"] == 1
    assert airflow.query("select table_name from etl.table_runs where run_id = 1 and status <> 'succeeded'") == []
    assert airflow.query("select count(*) from etl.table_runs where run_id = 1") == [(TABLES,)]


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long")  # in short: test_shared_runs, abandoned runs
def test_run_killed_among_its_tables_is_marked_by_the_next(airflow, make_airflow, target_server):
    with locked(airflow.source_url, "orders"):
        process = airflow.start("warehouse_pipeline", params=MAPPED)
        airflow.wait_for(is_waited_for("orders"), airflow.source_url)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert airflow.query(RUNS) == [(1, "running", True)]
    airflow.succeed("warehouse_pipeline", params=MAPPED)

    assert airflow.query(RUNS) == [(1, "died", True), (2, "succeeded", True), (3, "succeeded", False)]
    assert_same_marts_in_one_task(airflow, make_airflow, target_server)


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long")  # in short: test_concurrent_runs_never_mix, test_shared_runs
def test_concurrent_runs_of_mapped_tables_never_mix(airflow, make_airflow):
    other = make_airflow(airflow.source_url, airflow.target_url)
    with locked(airflow.source_url, "orders"):
        first = airflow.start("warehouse_pipeline", params=MAPPED)
        airflow.wait_for(is_waited_for("orders"), airflow.source_url)
        second = other.run("warehouse_pipeline", {"ETL_LOCK_WAIT_SECONDS": "1"}, params=MAPPED, retries=0)
    log, _ = first.communicate(timeout=600)

    assert states(second)["begin_run"] == "failed"
    assert states(second)["replicate"] == {"upstream_failed"}
    assert "another run is in progress on this target" in second["log"]
    assert airflow.read_outcome(log)["state"] == "success"
    assert airflow.query(RUNS) == [(1, "succeeded", True), (2, "succeeded", False)]


@pytest.mark.has_long_form
@pytest.mark.usefixtures("only_long")  # in short: test_shared_runs, runs by hand
def test_manual_run_between_mapped_tables_changes_no_result(airflow, make_airflow, target_server):
    """It waits for the table at work, and goes before those that are left."""
    with locked(airflow.source_url, "orders"):
        process = airflow.start("warehouse_pipeline", params=MAPPED)
        airflow.wait_for(is_waited_for("orders"), airflow.source_url)
        by_hand = airflow.start_making("extract")
        airflow.wait_for("exists (select from pg_locks where locktype = 'advisory' and not granted)")
    told, _ = by_hand.communicate(timeout=120)
    log, _ = process.communicate(timeout=600)
    outcome = airflow.read_outcome(log)

    assert by_hand.returncode == 0, told
    assert outcome["state"] == "success", log
    wait_until(lambda: airflow.query("select count(*) from etl.runs where status = 'running'") == [(0,)], "all to end")
    assert (1, "died", True) in airflow.query(RUNS)
    assert "run 1 is over: " in log
    assert_same_marts_in_one_task(airflow, make_airflow, target_server)
