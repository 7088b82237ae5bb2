"""Airflow as on several machines: each part and each worker by a command of its own, tasks handed out through Redis.

The workers get what docs/scaling.md says that a worker needs, and nothing else: no metadata database among it.
"""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.local.airflow_server import Airflow, is_healthy, make_pool

from .airflow_api import Api, wait_until

PARTS = ("api-server", "scheduler", "dag-processor", "triggerer")
WORKERS = ("worker-1", "worker-2")
WORKER_NEEDS = (
    "AIRFLOW__CORE__EXECUTOR",
    "AIRFLOW__CORE__DAGS_FOLDER",
    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL",
    "AIRFLOW__CELERY__BROKER_URL",
    "AIRFLOW__CELERY__RESULT_BACKEND",
    "AIRFLOW_CONN_SOURCE_DB",
    "AIRFLOW_CONN_TARGET_DB",
    "AIRFLOW_CONN_TRANSFORMER_DB",
)
VARIABLES = """
import json
from deploy.local.airflow_server import find_airflow, variables
from deploy.local.databases import embedded_servers, open_databases, provision_metadata
airflow, databases = find_airflow(), open_databases()
print(json.dumps(variables(airflow, databases, provision_metadata(embedded_servers()[1]))))
"""
# Workers on one machine take different names, as workers on different machines have them.
HOSTNAME = """
import os
def hostname():
    return os.environ["WORKER_NAME"]
"""


def find_redis():
    return shutil.which("redis-server")


class Cluster:
    """The parts of one Airflow, started apart, in a session each."""

    def __init__(self, machine, folder, redis_port):
        self.machine = machine
        self.folder = folder
        self.redis_port = redis_port
        celery = {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CELERY__BROKER_URL": f"redis://127.0.0.1:{redis_port}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"redis://127.0.0.1:{redis_port}/1",
        }
        self.variables = machine.ask(VARIABLES) | celery
        self.airflow = Airflow(home=Path(self.variables["AIRFLOW_HOME"]), port=int(machine.environment["AIRFLOW_PORT"]))
        self.processes = {}

    def start(self, **settings):
        """Start Redis, the parts of Airflow and the workers; wait until all are at work; return Airflow's interface."""
        variables = self.variables | settings
        redis = ["--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        self._start("redis", [find_redis(), *redis], {"PATH": os.defpath})
        assert self._start("migrate", airflow("db", "migrate"), variables).wait(300) == 0, self.log("migrate")
        del self.processes["migrate"]
        for part in PARTS:
            self._start(part, airflow(part), variables)
        (self.folder / "place.py").write_text(HOSTNAME)
        for name in WORKERS:
            arguments = ("--celery-hostname", f"celery@{name}", "--concurrency", "1", "--skip-serve-logs")
            self._start(name, airflow("celery", "worker", *arguments), self._worker_variables(name) | settings)
        wait_until(self._are_all_at_work, "all parts to be at work")
        make_pool(self.airflow)
        return Api(self.airflow.address, *self.airflow.login())

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name):
        """End a part with all that it has started, as when its machine goes away."""
        process = self.processes.pop(name)
        while found := list(session_of(process)):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()

    def stop(self):
        """End all; nothing that they keep is needed any more."""
        for name in list(self.processes):
            self.kill(name)

    def _worker_variables(self, name):
        return {
            **{variable: self.variables[variable] for variable in WORKER_NEEDS},
            "PATH": self.variables["PATH"],
            "AIRFLOW_HOME": str(self.folder / name),
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "place.hostname",
            "PYTHONPATH": f"{self.variables['PYTHONPATH']}:{self.folder}",
            "WORKER_NAME": name,
        }

    def _start(self, name, command, variables):
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.machine.folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.processes[name]

    def _are_all_at_work(self):
        ended = [name for name, one in self.processes.items() if one.poll() is not None]
        assert ended == [], "\n".join(self.log(name)[-3000:] for name in ended)
        return is_healthy(self.airflow) and all(" ready." in self.log(name) for name in WORKERS)


def airflow(*arguments):
    return [sys.executable, "-m", "airflow", *arguments]


def session_of(process):
    """Yield the ids of the processes in the session that a process leads, but for those that have ended."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if os.getsid(int(folder.name)) == process.pid and state != "Z":
                yield int(folder.name)


@contextmanager
def open_cluster(machine, folder, redis_port):
    cluster = Cluster(machine, folder, redis_port)
    try:
        yield cluster
    finally:
        cluster.stop()
