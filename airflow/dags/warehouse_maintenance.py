"""Compares, purges and vacuums the tables and rebuilds chosen models, weekly and by hand."""

import datetime as dt

from airflow.sdk import Param, dag, task

from etl.orchestration import steps
from etl.orchestration.choices import list_tables
from etl.orchestration.connections import read_environment
from etl.orchestration.defaults import BY_HAND, DBT_LIMIT, DEFAULT_ARGUMENTS, EXTRACT_LIMIT, RAW, START, deadline

DAG_ID = "warehouse_maintenance"
NAMES = {"type": "array", "items": {"type": "string", "pattern": "^[^-]"}}  # a name, not an option of the command


@dag(
    dag_id=DAG_ID,
    schedule="30 3 * * 0",
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGUMENTS,
    deadline=deadline(DAG_ID, dt.timedelta(hours=12)),
    allowed_run_types=[*BY_HAND, "scheduled"],
    tags=["tidemark", "maintenance"],
    params={
        "tables": Param([], **NAMES, examples=list_tables(), description="Tables to reconcile and verify; empty: all"),
        "repair": Param(False, type="boolean", description="Reload rows that differ"),
        "tombstone_days": Param(
            None,
            type=["null", "number"],
            minimum=0,
            description="Purge tombstones older than this; null: as in tables.yml",
        ),
        "models": Param([], **NAMES, description="Models to rebuild from all rows, in dbt's selection syntax"),
    },
)
def warehouse_maintenance():
    """
    ### Maintaining the warehouse

    - `reconcile` compares the keys of every table, even where the source has counted no deletes, and purges old
      tombstones.
    - `verify` compares source and raw by content, and fails if they differ.
    - `dbt_full_refresh` rebuilds chosen models.
    - `vacuum` vacuums and analyzes raw and the marts.
    """

    @task(outlets=[RAW], execution_timeout=EXTRACT_LIMIT)
    def reconcile(params=None):
        return steps.reconcile(read_environment(), params["tables"], params["tombstone_days"])

    @task(execution_timeout=EXTRACT_LIMIT)
    def verify(params=None):
        return steps.compare(read_environment(), params["tables"], is_repair=params["repair"])

    @task(execution_timeout=DBT_LIMIT)
    def dbt_full_refresh(params=None):
        return steps.refresh_models(read_environment(), params["models"])

    @task(execution_timeout=EXTRACT_LIMIT, trigger_rule="none_failed")
    def vacuum():
        return steps.vacuum(read_environment())

    reconciled = reconcile()
    reconciled >> verify()
    reconciled >> dbt_full_refresh() >> vacuum()


warehouse_maintenance()
