"""Runs one DAG to its end in this process, as `airflow dags test` does, and prints how each task ended, as JSON.

Apart from the tests, which must not import Airflow: it reads its settings when it is imported.
"""

import datetime as dt
import json
import sys

from airflow.dag_processing.dagbag import DagBag
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select

RETRY_SECONDS = 1


def main(folder, dag_id, given):
    bag = DagBag(folder)
    assert not bag.import_errors, bag.import_errors
    dag = bag.dags[dag_id]
    options = json.loads(given)
    dag.deadline = None  # Airflow 3.3.2: a DAG with a deadline ends `dag.test()` with an error after its last task
    for task in dag.tasks:
        task.retry_delay = dt.timedelta(seconds=RETRY_SECONDS)
        task.retry_exponential_backoff = 0
        task.retries = min(task.retries, options.get("retries", task.retries))
    run = dag.test(
        logical_date=dt.datetime.fromisoformat(options["logical_date"]),
        run_conf=options.get("params"),
        use_executor=False,
    )
    with create_session() as session:
        tasks = session.scalars(select(TaskInstance).where(TaskInstance.run_id == run.run_id)).all()
        values = session.scalars(select(XComModel).where(XComModel.run_id == run.run_id)).all()
        outcome = {
            "state": str(run.state),
            "tasks": {name(task): {"state": str(task.state), "tries": task.try_number} for task in tasks},
            "labels": {name(task): task.rendered_map_index for task in tasks if task.map_index >= 0},
            "returned": {name(one): one.value for one in values if one.key == "return_value" and one.value},
        }
    print("OUTCOME " + json.dumps(outcome))


def name(one):
    return one.task_id if one.map_index < 0 else f"{one.task_id}[{one.map_index}]"


main(*sys.argv[1:])
