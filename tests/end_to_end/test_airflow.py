"""Airflow as `make airflow` starts it: a run by its scheduler, and the end of all its processes."""

import json
import re
import time
import urllib.request
from pathlib import Path

import psycopg2
import pytest

from tests.conftest import has_airflow

pytestmark = pytest.mark.skipif(not has_airflow(), reason="Airflow is not installed: make test-airflow")
WAIT_SECONDS = 420


class Api:
    """Airflow's public interface, logged in as `make airflow` tells."""

    def __init__(self, told):
        self.address, user, password = re.search(r"Airflow: (\S+)  login (\S+)  password (\S+)", told).groups()
        answer = self._send("POST", "/auth/token", {"username": user, "password": password})
        self.token = answer["access_token"]

    def trigger(self, dag_id):
        """Switch a DAG on and start a run; return its id."""
        self._send("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})
        return self._send("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None})["dag_run_id"]

    def run(self, dag_id, run_id):
        return self._send("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")

    def tasks(self, dag_id, run_id):
        found = self._send("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances")
        return {task["task_id"]: task for task in found["task_instances"]}

    def _send(self, method, path, content=None):
        headers = {"Content-Type": "application/json"}
        if hasattr(self, "token"):
            headers["Authorization"] = f"Bearer {self.token}"
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


def wait_until(is_true, what, seconds=WAIT_SECONDS):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.5)


def processes_of(folder):
    """Return the ids of processes whose environment names the copy's Airflow, or that run its code."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PYTHONPATH={folder}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_airflow_runs_the_pipeline_and_leaves_no_process_behind(machine):
    api = Api(machine.succeed("airflow"))
    run_id = api.trigger("warehouse_pipeline")
    ended = ("success", "failed")
    wait_until(lambda: api.run("warehouse_pipeline", run_id)["state"] in ended, "the run to end")
    assert api.run("warehouse_pipeline", run_id)["state"] == "success", api.tasks("warehouse_pipeline", run_id)
    with psycopg2.connect(machine.urls()["target"]) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from marts.fct_orders")
        assert cursor.fetchone()[0] > 10_000
    connection.close()

    assert processes_of(machine.folder)
    assert "stopped" in machine.succeed("airflow-down")
    assert processes_of(machine.folder) == []
    assert "was not running" in machine.succeed("airflow-down")
