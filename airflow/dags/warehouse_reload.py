"""Reloads chosen tables, then builds the models; started by hand."""

import datetime as dt

from airflow.sdk import Param, dag, task

from etl.orchestration import steps
from etl.orchestration.choices import list_tables
from etl.orchestration.connections import read_environment
from etl.orchestration.defaults import BY_HAND, DBT_LIMIT, DEFAULT_ARGUMENTS, EXTRACT_LIMIT, MARTS, RAW, START, deadline

DAG_ID = "warehouse_reload"


@dag(
    dag_id=DAG_ID,
    schedule=None,
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGUMENTS,
    deadline=deadline(DAG_ID, dt.timedelta(hours=12)),
    allowed_run_types=BY_HAND,
    tags=["tidemark", "maintenance"],
    params={
        "tables": Param(
            type="array",
            items={"type": "string", "minLength": 1},
            minItems=1,
            examples=list_tables(),
            description="Tables to reload",
        ),
        "allow_deletes": Param(
            False, type="boolean", description="Allow more rows to be deleted than max_delete_fraction"
        ),
    },
)
def warehouse_reload():
    """
    ### Reloading tables

    `reload` reloads the chosen tables, as `etl reset` does: readers see the old rows until the new ones are complete,
    and rows deleted from the source become tombstones. `dbt_run` and `dbt_test` follow.
    """

    @task(outlets=[RAW], execution_timeout=EXTRACT_LIMIT)
    def reload(params=None):
        return steps.reload(read_environment(), params["tables"], allow_deletes=params["allow_deletes"])

    @task(execution_timeout=DBT_LIMIT)
    def dbt_run():
        return steps.build_models(read_environment())

    @task(outlets=[MARTS], execution_timeout=DBT_LIMIT)
    def dbt_test():
        return steps.check_rules(read_environment())

    reload() >> dbt_run() >> dbt_test()


warehouse_reload()
