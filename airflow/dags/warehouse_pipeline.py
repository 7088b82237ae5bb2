"""Source to marts, hourly: replicates, builds and checks, then reports freshness and writes the documentation."""

import datetime as dt

from airflow.sdk import Param, dag, task

from etl.orchestration import mapped_tables, steps
from etl.orchestration.choices import read_dbt_runner
from etl.orchestration.connections import read_environment
from etl.orchestration.defaults import (
    AFTER_EITHER_WAY,
    BY_HAND,
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
from etl.orchestration.pools import CONNECTIONS_OF_A_TABLE, SOURCE_POOL

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
    allowed_run_types=[*BY_HAND, "scheduled"],
    tags=["tidemark", "pipeline"],
    params={
        "mapped_tables": Param(
            None,
            type=["null", "boolean"],
            description="Replicate each table in its own task; null: as set by the variable mapped_tables",
        ),
    },
)
def warehouse_pipeline():
    """
    ### Source to marts

    `extract_and_load` replicates all tables at one snapshot of the source. `dbt_run` builds snapshots and models.
    `dbt_test` checks the rules, and a broken rule stops the run. `freshness` and `docs` follow.

    If the variable or param `mapped_tables` is true, `begin_run`, one `replicate` for each table and `end_run` replace
    `extract_and_load`; they need the pool `tidemark_source`.
    If the variable `dbt_runner` is `cosmos`, a group with one task for each model replaces `dbt_run`.

    Connections: `source_db`, `target_db`, and `transformer_db` if dbt uses another role.
    Each task can be cleared and run again at any time: repeating it changes nothing twice.
    The log and the return value of the task that replicates a table say what was done and how long it took.
    """

    @task(outlets=[RAW], execution_timeout=EXTRACT_LIMIT)
    def extract_and_load(params=None):
        mapped_tables.skip_unless(False, params)
        return steps.extract_and_load(read_environment())

    @task(execution_timeout=EXTRACT_LIMIT)
    def begin_run(params=None, dag_run=None, ti=None):
        mapped_tables.skip_unless(True, params)
        run, tables = mapped_tables.begin_run(read_environment(), f"{dag_run.dag_id}, {dag_run.run_id}")
        ti.xcom_push("run", run)
        return tables

    @task(
        execution_timeout=EXTRACT_LIMIT,
        pool=SOURCE_POOL,
        pool_slots=CONNECTIONS_OF_A_TABLE,
        map_index_template="{{ task.op_kwargs['table'] }}",
    )
    def replicate(run, table):
        return mapped_tables.replicate_table(read_environment(), run, table)

    @task(outlets=[RAW], execution_timeout=EXTRACT_LIMIT)
    def end_run(run):
        return mapped_tables.end_run(read_environment(), run)

    @task(execution_timeout=DBT_LIMIT, trigger_rule=AFTER_EITHER_WAY)
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

    begun = begin_run().as_setup()  # clearing a table's task also clears both ends of the run
    replicated = replicate.partial(run=begun["run"]).expand(table=begun)
    ended = end_run(begun["run"]).as_teardown(setups=begun, on_failure_fail_dagrun=True)
    replicated >> ended

    extracted, checked = [extract_and_load(), replicated, ended], dbt_test()
    if read_dbt_runner() == "cosmos":
        from etl.orchestration.models import build_by_model  # noqa: PLC0415 needs Cosmos, which may not be chosen

        build_by_model(after=extracted, before=checked)
    else:
        extracted >> dbt_run() >> checked
    checked >> freshness() >> docs()


warehouse_pipeline()
