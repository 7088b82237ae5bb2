"""`warehouse_maintenance` and `warehouse_reload` on a filled warehouse."""

TOMBSTONES = "select count(*) from raw.payments where _etl_deleted_at is not null"


def states(outcome):
    return {name: task["state"] for name, task in outcome["tasks"].items()}


def test_maintenance_fails_on_differences_but_still_vacuums(airflow):
    airflow.make("extract")
    airflow.query("update raw.customers set email = 'wrong' where customer_id = 1")
    airflow.on_source("delete from payments where payment_id = 1")
    outcome = airflow.run("warehouse_maintenance")

    assert outcome["state"] == "failed"
    assert states(outcome) == {
        "reconcile": "success",
        "verify": "failed",
        "dbt_full_refresh": "skipped",
        "vacuum": "success",
    }
    assert outcome["tasks"]["verify"]["tries"] == 1
    assert "customers: different: 1 changed" in outcome["log"]
    assert airflow.query(TOMBSTONES) == [(1,)]


def test_maintenance_repairs_on_request_and_keeps_new_tombstones(airflow):
    airflow.make("extract")
    airflow.query("update raw.customers set email = 'wrong' where customer_id = 1")
    airflow.on_source("delete from payments where payment_id = 1")
    outcome = airflow.succeed("warehouse_maintenance", params={"repair": True, "tombstone_days": 0})

    assert "equal, after 1 rows were repaired" in outcome["returned"]["verify"]["tables"]["customers"]
    assert "raw.orders" in outcome["returned"]["vacuum"]["tables"]
    assert airflow.query(TOMBSTONES) == [(1,)]


def test_maintenance_purges_tombstones_that_models_have_read(airflow):
    airflow.make("extract")
    airflow.on_source("delete from payments where payment_id = 1")
    airflow.make("extract", "--reconcile")
    airflow.make("dbt-run")
    assert airflow.query(TOMBSTONES) == [(1,)]
    airflow.succeed("warehouse_maintenance", params={"tombstone_days": 0})

    assert airflow.query(TOMBSTONES) == [(0,)]


def test_maintenance_rebuilds_selected_models(airflow):
    airflow.fill()
    filled = airflow.marts()
    airflow.query("update marts.fct_events set event_type = 'page_view'")
    outcome = airflow.succeed("warehouse_maintenance", params={"models": ["fct_events"]})

    assert states(outcome)["dbt_full_refresh"] == "success"
    assert airflow.marts() == filled
    assert "marts.fct_events" in outcome["returned"]["vacuum"]["tables"]


def test_unknown_model_is_named_and_nothing_is_built(airflow):
    airflow.make("extract")
    outcome = airflow.run("warehouse_maintenance", params={"models": ["stg_orders", "fct_typo"]}, retries=0)

    assert states(outcome)["dbt_full_refresh"] == "failed"
    assert "fct_typo" in outcome["log"]
    assert airflow.query("select to_regclass('staging.stg_orders')") == [(None,)]


def test_reload_reloads_selected_tables_and_then_the_marts(airflow):
    airflow.fill()
    filled = airflow.marts()
    airflow.query("update raw.payments set amount = amount + 1 where payment_id <= 20")
    outcome = airflow.succeed("warehouse_reload", params={"tables": ["payments"]})

    assert [table["table"] for table in outcome["returned"]["reload"]["tables"]] == ["payments"]
    assert airflow.marts() == filled
