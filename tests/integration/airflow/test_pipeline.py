"""`warehouse_pipeline` on real databases: to its end, again, and through failures."""

import os
import signal

import psycopg2

from tests.integration.dbt.built_shop import WITHOUT_UNIT_TESTS, is_waited_for, locked, open_database

from .conftest import wait_until

TASKS = ("extract_and_load", "dbt_run", "dbt_test", "freshness", "docs")
BREAK_A_RULE = "update events set occurred_at = now() + interval '1 day' where event_id = 2"
DBT_SESSIONS = "(select count(*) from pg_stat_activity where application_name = 'dbt' and datname = current_database())"


def states(outcome):
    return [outcome["tasks"][name]["state"] for name in TASKS]


def test_dag_fills_the_marts_and_a_second_run_changes_nothing(airflow):
    first = airflow.succeed("warehouse_pipeline", {"DBT_EXCLUDE_RESOURCE_TYPES": ""})
    filled = airflow.marts()
    again = airflow.succeed("warehouse_pipeline")

    assert filled["fct_orders"][0] > 100
    assert airflow.marts() == filled
    assert states(first) == ["success"] * 5
    loaded = {table["table"]: table for table in first["returned"]["extract_and_load"]["tables"]}
    assert loaded["orders"]["rows_inserted"] > 100
    assert loaded["orders"]["held_back_by"] == []
    assert all(table["rows_inserted"] == 0 for table in again["returned"]["extract_and_load"]["tables"])
    assert f"orders: watermark {loaded['orders']['watermark']}, held back by nothing" in first["log"]
    assert "marts.fct_orders: " in first["log"]
    assert first["returned"]["dbt_test"]["passed"] > 400
    stored = airflow.stored_text()
    assert "rows_inserted" in stored
    for url in (airflow.source_url, airflow.target_url):
        assert psycopg2.extensions.parse_dsn(url)["password"] not in stored + first["log"]


def test_unreachable_source_is_retried_and_then_reported(airflow, webhook, free_port):
    url, messages = webhook
    away = f"postgresql://replicator:verysecret@127.0.0.1:{free_port()}/shop"
    outcome = airflow.run("warehouse_pipeline", {"AIRFLOW_CONN_SOURCE_DB": away, "ALERT_WEBHOOK_URL": url}, retries=1)

    assert outcome["state"] == "failed"
    assert states(outcome) == ["failed", *["upstream_failed"] * 4]
    assert outcome["tasks"]["extract_and_load"]["tries"] == 2
    (message,) = messages
    assert "warehouse_pipeline.extract_and_load" in message
    assert "cannot connect to the source at 127.0.0.1:" in message
    assert "verysecret" not in message + outcome["log"]
    assert airflow.query("select count(*) from pg_tables where schemaname = 'marts'") == [(0,)]


def test_broken_rule_stops_the_dag_and_its_rows_are_reported(airflow, webhook):
    url, messages = webhook
    airflow.on_source(BREAK_A_RULE)
    outcome = airflow.run("warehouse_pipeline", {"ALERT_WEBHOOK_URL": url, **WITHOUT_UNIT_TESTS})

    assert outcome["state"] == "failed"
    assert states(outcome) == ["success", "success", "failed", "upstream_failed", "upstream_failed"]
    assert outcome["tasks"]["dbt_test"]["tries"] == 1  # the same rows would break it again
    (message,) = messages
    assert "warehouse_pipeline.dbt_test" in message
    assert "rule stg_events_lies_in_the_past: 1 row breaks it" in message
    assert "rule stg_events_lies_in_the_past: 1 row breaks it" in outcome["log"]
    assert "stg_events_lies_in_the_past: fail" in outcome["log"]


def test_missing_connection_is_named_and_not_retried(airflow):
    del airflow.environment["AIRFLOW_CONN_TARGET_DB"]
    outcome = airflow.run("warehouse_pipeline")

    assert outcome["tasks"]["extract_and_load"] == {"state": "failed", "tries": 1}
    assert "set AIRFLOW_CONN_TARGET_DB to" in outcome["log"]


def test_killed_tasks_produce_the_same_marts_when_rerun(airflow, make_airflow, target_server):
    with locked(airflow.source_url, "orders"):
        extracting = airflow.start("warehouse_pipeline")
        airflow.wait_for(is_waited_for("orders"), airflow.source_url)
        kill(extracting)
    building = airflow.start("warehouse_pipeline")
    airflow.wait_for("to_regclass('etl.runs') is not null")
    wait_until(
        lambda: airflow.query("select count(*) from etl.runs where status = 'succeeded'") == [(1,)], "a run to succeed"
    )
    with locked(airflow.target_url, "raw.orders"):
        airflow.wait_for(is_waited_for("raw.orders"))
        kill(building)
        airflow.wait_for(f"{DBT_SESSIONS} = 0")  # though the statement still waits for its lock
    airflow.succeed("warehouse_pipeline")

    with open_database(target_server) as undisturbed_url:
        undisturbed = make_airflow(airflow.source_url, undisturbed_url)
        undisturbed.fill()
        assert airflow.marts() == undisturbed.marts()
    assert airflow.query("select status from etl.runs order by run_id") == [("died",), ("succeeded",), ("succeeded",)]


def test_concurrent_runs_never_mix(airflow, make_airflow):
    other = make_airflow(airflow.source_url, airflow.target_url)
    with locked(airflow.source_url, "orders"):
        first = airflow.start("warehouse_pipeline")
        airflow.wait_for(is_waited_for("orders"), airflow.source_url)
        second = other.run("warehouse_pipeline", {"ETL_LOCK_WAIT_SECONDS": "1"}, retries=0)
    log, _ = first.communicate(timeout=600)

    assert states(second) == ["failed", *["upstream_failed"] * 4]
    assert "another run is in progress on this target" in second["log"]
    assert states(airflow.read_outcome(log)) == ["success"] * 5
    assert airflow.query("select status from etl.runs") == [("succeeded",)]


def kill(process):
    """End the process that runs the task as a machine does that has no memory left; its children are not told."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
