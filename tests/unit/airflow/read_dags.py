"""Reads one DAG file as Airflow's DAG processor does, and prints what is in it as JSON."""

import json
import sys

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
        "has_deadline": bool(dag.deadline),
        "params": sorted(dag.params),
        "tasks": {task.task_id: describe_task(task) for task in dag.tasks},
        "serialized": json.dumps(DagSerialization.serialize_dag(dag), default=str),
    }


def describe_task(task):
    return {
        "after": sorted(task.upstream_task_ids),
        "owner": task.owner,
        "retries": task.retries,
        "has_backoff": bool(task.retry_exponential_backoff),
        "timeout_seconds": task.execution_timeout and task.execution_timeout.total_seconds(),
        "has_callback": bool(task.on_failure_callback),
        "produces": sorted(asset.name for asset in task.outlets),
    }


bag = DagBag(sys.argv[1])
seconds = sum(file.duration.total_seconds() for file in bag.dagbag_stats)
print(
    json.dumps({"errors": bag.import_errors, "seconds": seconds, "dags": [describe(dag) for dag in bag.dags.values()]})
)
