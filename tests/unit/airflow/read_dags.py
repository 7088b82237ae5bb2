"""Reads one DAG file as Airflow's DAG processor does, and prints what is in it as JSON.

What it costs is told in seconds of this process's own computing: those of a clock grow when others are at work.
"""

import json
import sys
import time

from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization


def describe(dag):
    return {
        "dag_id": dag.dag_id,
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "has_documentation": bool(dag.doc_md),
        "tags": sorted(dag.tags),
        "schedule": str(getattr(dag, "schedule", None)),
        "deadline_seconds": dag.deadline and [alert.interval.total_seconds() for alert in as_list(dag.deadline)],
        "params": sorted(dag.params),
        "choices": {name: dag.params.get_param(name).schema.get("examples", []) for name in dag.params},
        "run_types": sorted(kind.value for kind in dag.allowed_run_types or ()),
        "tasks": {task.task_id: describe_task(task) for task in dag.tasks},
        "serialized": json.dumps(DagSerialization.serialize_dag(dag), default=str),
    }


def describe_task(task):
    return {
        "after": sorted(task.upstream_task_ids),
        "owner": task.owner,
        "retries": task.retries,
        "backoff": task.retry_exponential_backoff,
        "first_delay_seconds": task.retry_delay.total_seconds(),
        "timeout_seconds": task.execution_timeout and task.execution_timeout.total_seconds(),
        "pool": task.pool,
        "pool_slots": task.pool_slots,
        "has_callback": bool(task.on_failure_callback),
        "produces": sorted(asset.name for asset in task.outlets),
    }


def as_list(one_or_more):
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]


bag = DagBag(sys.argv[1], collect_dags=False)
loaded_before = set(sys.modules)
started = time.process_time()
bag.process_file(sys.argv[1])
seconds = time.process_time() - started
print(
    json.dumps(
        {
            "errors": bag.import_errors,
            "cpu_seconds": seconds,
            "packages": sorted({name.partition(".")[0] for name in set(sys.modules) - loaded_before}),
            "dags": [describe(dag) for dag in bag.dags.values()],
        }
    )
)
