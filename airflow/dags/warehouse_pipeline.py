"""Source to marts, hourly: replicate, build, check; then tell how fresh it is, and document it."""

import datetime as dt

from airflow.sdk import dag, task

from etl.orchestration import steps
from etl.orchestration.connections import read_environment
from etl.orchestration.defaults import (
    DBT_LIMIT,
    DEFAULT_ARGUMENTS,
    EXTRACT_LIMIT,
    MARTS,
    PIPELINE_LIMIT,
    RAW,
    SCHEDULE,
    START,
    deadline,
)

DAG_ID = "warehouse_pipeline"


@dag(
    dag_id=DAG_ID,
    schedule=SCHEDULE,
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGUMENTS,
    dagrun_timeout=dt.timedelta(hours=12),
    deadline=deadline(DAG_ID, PIPELINE_LIMIT),
    tags=["tidemark", "pipeline"],
)
def warehouse_pipeline():
    """
    ### Source to marts

    `extract_and_load` replicates all tables at one snapshot of the source; `dbt_run` builds snapshots and models;
    `dbt_test` checks the rules, and a broken one stops the run; then come freshness and documentation.

    Connections: `source_db`, `target_db`, and `transformer_db` where dbt works as a role of its own.
    Each task may be cleared and run again at any time: a repetition changes nothing twice.
    What each table took is in the log of `extract_and_load` and in its return value.
    """

    @task(outlets=[RAW], execution_timeout=EXTRACT_LIMIT)
    def extract_and_load():
        return steps.extract_and_load(read_environment())

    @task(execution_timeout=DBT_LIMIT)
    def dbt_run():
        return steps.build_models(read_environment())

    @task(outlets=[MARTS], execution_timeout=DBT_LIMIT)
    def dbt_test():
        return steps.check_rules(read_environment())

    @task(execution_timeout=DBT_LIMIT)
    def freshness():
        return steps.check_freshness(read_environment())

    @task(execution_timeout=DBT_LIMIT)
    def docs():
        return steps.write_docs(read_environment())

    extract_and_load() >> dbt_run() >> dbt_test() >> freshness() >> docs()


warehouse_pipeline()
