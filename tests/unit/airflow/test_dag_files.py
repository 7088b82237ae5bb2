"""Every DAG file is read without connections, fast, and says what an operator relies on."""

from .conftest import DAGS, read

MAX_SECONDS = 10  # seen: 0.3; generous, as machines at work on other things take longer


def test_every_file_is_read_without_connections(dag_files):
    assert [found["errors"] for found in dag_files.values() if found["errors"]] == []
    assert all(found["dags"] for found in dag_files.values())


def test_every_file_is_read_fast(dag_files):
    slow = {name: found["seconds"] for name, found in dag_files.items() if found["seconds"] > MAX_SECONDS}

    assert slow == {}


def test_every_dag_tells_what_it_is_for_and_never_overlaps_itself(dags):
    for dag in dags.values():
        assert dag["has_documentation"], dag["dag_id"]
        assert "tidemark" in dag["tags"], dag["dag_id"]
        assert (dag["catchup"], dag["max_active_runs"]) == (False, 1), dag["dag_id"]


def test_every_task_is_owned_bounded_and_tried_again_and_its_failure_is_told(dags):
    tasks = {f"{dag['dag_id']}.{name}": task for dag in dags.values() for name, task in dag["tasks"].items()}

    assert len(tasks) > 4
    for name, task in tasks.items():
        assert task["owner"] == "data_platform", name
        assert task["retries"] >= 1, name
        assert task["has_backoff"], name
        assert task["timeout_seconds"], name
        assert task["has_callback"], name


def test_the_pipeline_goes_from_source_to_documentation(dags):
    pipeline = dags["warehouse_pipeline"]

    assert {name: task["after"] for name, task in pipeline["tasks"].items()} == {
        "extract_and_load": [],
        "dbt_run": ["extract_and_load"],
        "dbt_test": ["dbt_run"],
        "freshness": ["dbt_test"],
        "docs": ["freshness"],
    }
    assert pipeline["tasks"]["extract_and_load"]["produces"] == ["raw"]
    assert pipeline["tasks"]["dbt_test"]["produces"] == ["marts"]
    assert pipeline["has_deadline"]
    assert pipeline["schedule"] == "@hourly"


def test_the_schedule_is_chosen_by_the_environment(tmp_path):
    found = read(DAGS / "warehouse_pipeline.py", tmp_path, PIPELINE_SCHEDULE="*/15 * * * *")

    assert found["dags"][0]["schedule"] == "*/15 * * * *"


def test_no_connection_gets_into_what_airflow_stores(tmp_path):
    secret = "postgresql://loader:verysecret@warehouse.example/warehouse"
    variables = {"AIRFLOW_CONN_TARGET_DB": secret, "TARGET_DATABASE_URL": secret}
    for path in DAGS.glob("*.py"):
        assert "verysecret" not in str(read(path, tmp_path, **variables))
