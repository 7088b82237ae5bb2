"""Every DAG file is read without connections, fast, and says what an operator relies on."""

import pytest

from etl.orchestration.pools import SOURCE_POOL
from source_db.schema import TABLES

from .conftest import DAGS, read

MAX_CPU_SECONDS = 2  # seen: 0.2
HEAVY_PACKAGES = {"cosmos", "dbt", "faker", "pandas", "sqlalchemy"}  # of those that tasks use, or might


def test_every_file_is_read_without_connections(dag_files):
    assert [found["errors"] for found in dag_files.values() if found["errors"]] == []
    assert all(found["dags"] for found in dag_files.values())


def test_every_file_loads_in_under_two_seconds_of_cpu_time(dag_files):
    seconds = {name: found["cpu_seconds"] for name, found in dag_files.items()}

    assert all(0 < taken < MAX_CPU_SECONDS for taken in seconds.values()), seconds


def test_no_file_imports_what_only_its_tasks_need(dag_files):
    for name, found in dag_files.items():
        assert "etl" in found["packages"], name
        assert not HEAVY_PACKAGES & set(found["packages"]), name


def test_every_dag_has_a_description_and_never_overlaps_itself(dags):
    for dag in dags.values():
        assert dag["has_documentation"], dag["dag_id"]
        assert "tidemark" in dag["tags"], dag["dag_id"]
        assert (dag["catchup"], dag["max_active_runs"]) == (False, 1), dag["dag_id"]


def test_every_task_has_owner_timeout_retries_and_failure_alert(dags):
    tasks = {f"{dag['dag_id']}.{name}": task for dag in dags.values() for name, task in dag["tasks"].items()}

    assert len(tasks) > 4
    for name, task in tasks.items():
        assert task["owner"] == "data_platform", name
        assert task["retries"] >= 1, name
        assert (task["first_delay_seconds"], task["backoff"]) == (60, 2), name
        assert task["timeout_seconds"], name
        assert task["has_callback"], name


def test_the_pipeline_goes_from_source_to_documentation(dags):
    pipeline = dags["warehouse_pipeline"]

    assert {name: task["after"] for name, task in pipeline["tasks"].items()} == {
        "extract_and_load": [],
        "begin_run": [],
        "replicate": ["begin_run"],
        "end_run": ["begin_run", "replicate"],
        "dbt_run": ["end_run", "extract_and_load", "replicate"],
        "dbt_test": ["dbt_run"],
        "freshness": ["dbt_test"],
        "docs": ["freshness"],
    }
    assert pipeline["tasks"]["extract_and_load"]["produces"] == ["raw"]
    assert pipeline["tasks"]["end_run"]["produces"] == ["raw"]
    assert pipeline["tasks"]["dbt_test"]["produces"] == ["marts"]
    assert pipeline["deadline_seconds"] == [2 * 3600]
    assert pipeline["schedule"] == "@hourly"


def test_mapped_table_takes_as_many_pool_slots_as_connections(dags):
    pools = {name: (task["pool"], task["pool_slots"]) for name, task in dags["warehouse_pipeline"]["tasks"].items()}

    assert pools.pop("replicate") == (SOURCE_POOL, 2)  # that `make airflow` makes
    assert set(pools.values()) == {("default_pool", 1)}


def test_weekly_maintenance_never_vacuums_during_a_model_build(dags):
    maintenance = dags["warehouse_maintenance"]

    assert {name: task["after"] for name, task in maintenance["tasks"].items()} == {
        "reconcile": [],
        "verify": ["reconcile"],
        "dbt_full_refresh": ["reconcile"],
        "vacuum": ["dbt_full_refresh"],
    }
    assert maintenance["schedule"] == "30 3 * * 0"
    assert maintenance["params"] == ["models", "repair", "tables", "tombstone_days"]


def test_reload_is_only_started_manually(dags):
    reload = dags["warehouse_reload"]

    assert {name: task["after"] for name, task in reload["tasks"].items()} == {
        "reload": [],
        "dbt_run": ["reload"],
        "dbt_test": ["dbt_run"],
    }
    assert reload["schedule"] == "None"
    assert reload["params"] == ["allow_deletes", "tables"]
    assert set(reload["choices"]["tables"]) == set(TABLES)


def test_no_dag_is_offered_for_past_dates(dags):
    assert {name: dag["run_types"] for name, dag in dags.items()} == {
        "warehouse_pipeline": ["manual", "scheduled"],
        "warehouse_maintenance": ["manual", "scheduled"],
        "warehouse_reload": ["manual"],
    }


def test_the_schedule_is_chosen_by_the_environment(tmp_path):
    found = read(DAGS / "warehouse_pipeline.py", tmp_path, PIPELINE_SCHEDULE="*/15 * * * *")

    assert found["dags"][0]["schedule"] == "*/15 * * * *"


def test_environment_sets_the_deadline_and_retry_delay(tmp_path):
    variables = {"PIPELINE_DEADLINE_MINUTES": "30", "PIPELINE_RETRY_SECONDS": "5"}
    (pipeline,) = read(DAGS / "warehouse_pipeline.py", tmp_path, **variables)["dags"]

    assert pipeline["deadline_seconds"] == [1800]
    assert {task["first_delay_seconds"] for task in pipeline["tasks"].values()} == {5}


@pytest.mark.parametrize("given", ["soon", "-1", "0", "nan", "inf"])
def test_non_numeric_setting_is_rejected_by_name(given, tmp_path):
    found = read(DAGS / "warehouse_pipeline.py", tmp_path, PIPELINE_DEADLINE_MINUTES=given)

    (error,) = found["errors"].values()
    assert f"PIPELINE_DEADLINE_MINUTES is '{given}': expected a number above 0" in error


def test_airflow_stores_no_connection(tmp_path):
    secret = "postgresql://loader:verysecret@warehouse.example/warehouse"
    variables = {"AIRFLOW_CONN_TARGET_DB": secret, "TARGET_DATABASE_URL": secret}
    for path in DAGS.glob("*.py"):
        assert "verysecret" not in str(read(path, tmp_path, **variables))
