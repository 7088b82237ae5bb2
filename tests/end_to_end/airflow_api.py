"""`warehouse_pipeline` of an Airflow that runs, by its public interface, and the marts that it fills."""

import json
import re
import time
import urllib.request

from tests.integration.dbt.built_shop import query, read_marts

DAG_ID = "warehouse_pipeline"
WAIT_SECONDS = 420
POOL = "tidemark_source"
TASKS = ("extract_and_load", "dbt_run", "dbt_test", "freshness", "docs")  # as the DAG runs by default
# Those that refer to others before these, as the mapped tasks take them.
TABLES = (
    "order_items",
    "payments",
    "orders",
    "inventory_levels",
    "campaigns",
    "customers",
    "events",
    "products",
)
READERS_THAT_WAIT = "select count(distinct pid) from pg_locks where not granted and locktype = 'relation'"
SESSIONS_OF_READERS = "select count(*) from pg_stat_activity where usename = 'replicator'"


class Api:
    """Airflow's public interface, logged in."""

    def __init__(self, address, user, password):
        self.address, self.user, self.password = address, user, password
        answer = self._send("POST", "/auth/token", {"username": user, "password": password})
        self.token = answer["access_token"]

    def switch_on(self):
        """Let the DAG run, once its file has been read."""
        wait_until(self._is_known, "the DAG to be read")
        self._send("PATCH", f"/api/v2/dags/{DAG_ID}", {"is_paused": False})

    def trigger(self, **params):
        """Start a run; return its id."""
        content = {"logical_date": None, "conf": params}
        return self._send("POST", f"/api/v2/dags/{DAG_ID}/dagRuns", content)["dag_run_id"]

    def clear(self, run_id, *tasks):
        """Have tasks of a run that has ended done again; a mapped one is named with its index."""
        self._send(
            "POST",
            f"/api/v2/dags/{DAG_ID}/clearTaskInstances",
            {"dag_run_id": run_id, "task_ids": tasks, "dry_run": False, "only_failed": False},
        )

    def wait_for_success(self, run_id):
        """Wait until a run has ended; return how often each of its tasks was tried."""
        path = f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}"
        wait_until(lambda: self._send("GET", path)["state"] in ("success", "failed"), f"run {run_id} to end")
        assert self._send("GET", path)["state"] == "success", self.states(run_id)
        return {name: task["try_number"] for name, task in self._tasks(run_id).items() if task["state"] == "success"}

    def states(self, run_id):
        return {name: task["state"] for name, task in self._tasks(run_id).items()}

    def place(self, run_id, name):
        """Return the host that runs a task."""
        return self._tasks(run_id)[name]["hostname"]

    def title_of(self, run_id, name):
        """Return what the process that runs a task calls itself."""
        return f"airflow worker -- {(self._tasks(run_id) | self.tables(run_id))[name]['id']}"

    def tables(self, run_id):
        """Return the tasks of a run that replicate one table each, by table."""
        return {task["rendered_map_index"]: task for task in self._list_tasks(run_id) if task["map_index"] >= 0}

    def pool(self):
        """Return how many slots of the pool for the source are taken, and how many are waited for."""
        pool = self._send("GET", f"/api/v2/pools/{POOL}")
        return {state: pool[f"{state}_slots"] for state in ("occupied", "scheduled")}

    def assets_of(self, run_id):
        """Return the assets that a run has told of as updated."""
        events = self._send("GET", "/api/v2/assets/events")["asset_events"]
        return sorted(event["name"] for event in events if event["source_run_id"] == run_id)

    def _is_known(self):
        return DAG_ID in [dag["dag_id"] for dag in self._send("GET", "/api/v2/dags")["dags"]]

    def _tasks(self, run_id):
        return {task["task_id"]: task for task in self._list_tasks(run_id)}

    def _list_tasks(self, run_id):
        return self._send("GET", f"/api/v2/dags/{DAG_ID}/dagRuns/{run_id}/taskInstances")["task_instances"]

    def _send(self, method, path, content=None):
        headers = {"Content-Type": "application/json"}
        if hasattr(self, "token"):
            headers["Authorization"] = f"Bearer {self.token}"
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


def log_in_as_told(told):
    """Log in as `make airflow` tells, and let the DAG run."""
    api = Api(*re.search(r"Airflow: (\S+)  login (\S+)  password (\S+)", told).groups())
    api.switch_on()
    return api


def wait_until(is_true, what, seconds=WAIT_SECONDS):
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def marts(machine):
    url = machine.urls()["target"]
    return read_marts(lambda statement: query(url, statement))
