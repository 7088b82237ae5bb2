"""The pipeline's file with `dbt_runner` set to cosmos: a task for each model, from the manifest of these models."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import CHECKOUT, DAGS, read
from .test_dag_files import MAX_CPU_SECONDS

PIPELINE = DAGS / "warehouse_pipeline.py"


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """The manifest as `make manifest` writes it; no database is there."""
    folder = tmp_path_factory.mktemp("manifest")
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_DATABASE_URL")}
    made = subprocess.run(
        [sys.executable, "-m", "deploy.local", "manifest"],
        cwd=CHECKOUT,
        env={**kept, "DBT_TARGET_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder / "airflow" / "manifest.json"


def read_by_cosmos(manifest, tmp_path, **variables):
    target = str(manifest.parents[1])
    return read(PIPELINE, tmp_path, AIRFLOW_VAR_DBT_RUNNER="cosmos", DBT_TARGET_PATH=target, **variables)


@pytest.fixture(scope="session")
def found(manifest, tmp_path_factory):
    return read_by_cosmos(manifest, tmp_path_factory.mktemp("airflow"))


@pytest.fixture(scope="session")
def tasks(found):
    assert found["errors"] == {}
    (pipeline,) = found["dags"]
    return pipeline["tasks"]


@pytest.fixture
def copied(manifest, tmp_path):
    """A manifest that may be changed."""
    (tmp_path / "airflow").mkdir()
    return Path(shutil.copy(manifest, tmp_path / "airflow" / "manifest.json"))


def test_dag_loads_in_under_two_seconds_of_cpu_time_without_dbt(found):
    assert 0 < found["cpu_seconds"] < MAX_CPU_SECONDS
    assert "cosmos" in found["packages"]
    assert "dbt" not in found["packages"]


def test_model_and_snapshot_tasks_follow_those_they_read(tasks, manifest):
    nodes = json.loads(manifest.read_text())["nodes"].values()
    names = {f"models.{node['name']}_run" for node in nodes if node["resource_type"] == "model"}
    names |= {f"models.{node['name']}_snapshot" for node in nodes if node["resource_type"] == "snapshot"}

    assert len(names) > 30
    assert {name for name in tasks if name.startswith("models.")} == names
    assert tasks["models.int_customers_history_run"]["after"] == ["models.snap_customers_snapshot"]
    assert tasks["models.stg_orders_run"]["after"] == ["begin_build"]
    assert {"models.fct_orders_run", "models.fct_sales_run"} <= set(tasks["models.daily_revenue_run"]["after"])


def test_rules_are_checked_after_all_models_and_the_build_end(tasks):
    assert tasks["begin_build"]["after"] == ["end_run", "extract_and_load", "replicate"]
    assert "dbt_run" not in tasks
    read = {parent for task in tasks.values() for parent in task["after"]}
    last = {name for name in tasks if name.startswith("models.")} - {
        parent for name, task in tasks.items() if name.startswith("models.") for parent in task["after"]
    }
    assert "models.daily_revenue_run" in last <= read
    assert set(tasks["dbt_test"]["after"]) == last | {"end_build"}
    assert set(tasks["end_build"]["after"]) == last | {"begin_build"}
    assert tasks["dbt_test"]["produces"] == ["marts"]


def test_every_task_has_owner_timeout_retries_and_failure_alert(tasks):
    for name, task in tasks.items():
        assert task["owner"] == "data_platform", name
        assert (task["retries"], task["first_delay_seconds"], task["backoff"]) == (3, 60, 2), name
        assert task["timeout_seconds"], name
        assert task["has_callback"], name


def test_airflow_stores_no_connection(manifest, tmp_path):
    secret = "postgresql://loader:verysecret@warehouse.example/warehouse"
    found = read_by_cosmos(manifest, tmp_path, AIRFLOW_CONN_TARGET_DB=secret, TARGET_DATABASE_URL=secret)

    assert found["dags"]
    assert "verysecret" not in str(found)


def test_missing_manifest_is_an_error_with_the_next_step(tmp_path):
    found = read_by_cosmos(tmp_path / "airflow" / "manifest.json", tmp_path)

    (error,) = found["errors"].values()
    assert "manifest.json is missing, and Cosmos reads the models from it: write it with `make manifest`" in error
    assert found["dags"] == []


def test_manifest_of_other_models_is_rejected(copied, tmp_path):
    content = json.loads(copied.read_text())
    content["metadata"]["env"]["PROJECT_FINGERPRINT"] = "0" * 64
    copied.write_text(json.dumps(content))
    found = read_by_cosmos(copied, tmp_path)

    (error,) = found["errors"].values()
    assert "manifest.json is stale: files in dbt/ have changed since; write it again with `make manifest`" in error


@pytest.mark.parametrize("content", ["", "{}", '{"metadata": {"env": null}}', "[]"])
def test_invalid_manifest_is_rejected(copied, content, tmp_path):
    copied.write_text(content)
    found = read_by_cosmos(copied, tmp_path)

    (error,) = found["errors"].values()
    assert "is not a dbt manifest: write it again with `make manifest`" in error


def test_unknown_runner_is_rejected_with_the_known_ones(tmp_path):
    found = read(PIPELINE, tmp_path, AIRFLOW_VAR_DBT_RUNNER="Cosmos")

    (error,) = found["errors"].values()
    assert "the variable dbt_runner is 'Cosmos': expected plain or cosmos" in error
