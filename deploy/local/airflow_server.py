"""Starts and stops Airflow on this machine: `airflow standalone` on an embedded metadata database, without containers.

All of its processes are in one session, and are found and stopped by it: children outlive a plain end of their parent,
and a process that gives itself a title writes over its environment. Begin at `start`.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local.databases import CHECKOUT, Databases, provision_metadata, read_port
from deploy.local.servers import Server, choose_home, is_listening
from etl.errors import UnavailableError
from etl.orchestration.pools import SOURCE_POOL, SOURCE_POOL_SLOTS

START_SECONDS = 240  # seen: 30 on two cores, most of it the making of the metadata database
STOP_SECONDS = 20
POLL_SECONDS = 0.5
ANSWER_SECONDS = 5
LOGIN = "admin"
ALREADY_THERE = 409


@dataclass(frozen=True, kw_only=True)
class Airflow:
    """Where Airflow of this checkout lives; making the value touches nothing."""

    home: Path
    port: int

    @property
    def address(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def log(self) -> Path:
        return self.home / "standalone.log"

    @property
    def session(self) -> Path:
        """The file that holds the number of the session in which it was started last."""
        return self.home / "session"

    def login(self) -> tuple[str, str]:
        """Return the user and the password that Airflow made at its first start."""
        passwords = json.loads((self.home / "passwords.json").read_text())
        return LOGIN, passwords[LOGIN]


def find_airflow(environment: Mapping[str, str] = os.environ) -> Airflow:
    """Return the Airflow of this checkout, running or not."""
    return Airflow(home=choose_home(CHECKOUT) / "airflow", port=read_port(environment, "AIRFLOW_PORT"))


def start(airflow: Airflow, databases: Databases, metadata_server: Server) -> None:
    """Start Airflow and wait until its scheduler is at work. Raises UnavailableError with where its log is."""
    if any(processes(airflow)):
        if is_healthy(airflow):
            make_pool(airflow)  # which an earlier start may have failed to make
            return
        stop(airflow)
    if is_listening(airflow.port):
        raise UnavailableError(
            f"port {airflow.port} is taken by another program: stop that, or choose another port: "
            f"make airflow AIRFLOW_PORT={airflow.port + 1000}"
        )
    airflow.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = variables(airflow, databases, provision_metadata(metadata_server))
    with airflow.log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "standalone"],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    airflow.session.write_text(f"{process.pid}\n")
    deadline = time.monotonic() + START_SECONDS
    while not is_healthy(airflow):
        if process.poll() is not None or time.monotonic() > deadline:
            code = process.poll()
            stop(airflow)
            found = f"has not started within {START_SECONDS} s" if code is None else f"ended with exit code {code}"
            raise UnavailableError(f"Airflow {found}: {airflow.log} says why")
        time.sleep(POLL_SECONDS)
    make_pool(airflow)


def stop(airflow: Airflow) -> bool:
    """Stop every process of this Airflow, tasks at work too; tell whether there were any."""
    was_running = any(processes(airflow))
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS
        told: set[int] = set()
        while found := set(processes(airflow)):
            for pid in found - told:  # those that were started meanwhile, too
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= found
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        else:
            return was_running
    raise UnavailableError(f"processes of Airflow do not end: {', '.join(map(str, processes(airflow)))}")


def processes(airflow: Airflow) -> Iterator[int]:
    """Yield the ids of the processes of this Airflow's session that work in this checkout.

    The number of a session that has ended may be given to another one, which works elsewhere.
    """
    if not airflow.session.exists():
        return
    session = int(airflow.session.read_text())
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if os.getsid(int(folder.name)) == session and (folder / "cwd").readlink().is_relative_to(CHECKOUT):
                yield int(folder.name)


def variables(airflow: Airflow, databases: Databases, metadata_url: str) -> dict[str, str]:
    """Return the environment of all parts of Airflow on this machine; they share keys, so make it once."""
    connections = {
        "AIRFLOW_CONN_SOURCE_DB": databases.urls["SOURCE_DATABASE_URL"],
        "AIRFLOW_CONN_TARGET_DB": databases.urls["TARGET_DATABASE_URL"],
    }
    transformer = databases.environment.get("TRANSFORMER_DATABASE_URL")
    if transformer:
        connections["AIRFLOW_CONN_TRANSFORMER_DB"] = transformer
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_DATABASE_URL")}
    return {
        **kept,
        **connections,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(CHECKOUT),
        "AIRFLOW_HOME": str(airflow.home),
        "AIRFLOW__API__HOST": "127.0.0.1",  # whoever has the login runs the DAGs
        "AIRFLOW__API__PORT": str(airflow.port),
        "AIRFLOW__API__BASE_URL": airflow.address,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),  # its own is shorter than what it asks for
        "AIRFLOW__CORE__DAGS_FOLDER": str(CHECKOUT / "airflow" / "dags"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{airflow.address}/execution/",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(airflow.home / "passwords.json"),
        "AIRFLOW__COSMOS__ENABLE_TELEMETRY": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": _with_driver(metadata_url, "psycopg2"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": _with_driver(metadata_url, "asyncpg"),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(airflow.home / "logs"),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "SCARF_ANALYTICS": "false",
    }


def make_pool(airflow: Airflow) -> None:
    """Make the pool that bounds connections to the source; one that is there keeps its slots."""
    user, password = airflow.login()
    try:
        token = _post(airflow, "/auth/token", {"username": user, "password": password})["access_token"]
        pool = {
            "name": SOURCE_POOL,
            "slots": SOURCE_POOL_SLOTS,
            "description": "connections of warehouse_pipeline to the source, where each table has a task",
        }
        _post(airflow, "/api/v2/pools", pool, Authorization=f"Bearer {token}")
    except OSError as error:  # of urllib, too
        if getattr(error, "code", None) != ALREADY_THERE:
            raise UnavailableError(
                f"Airflow has started, but the pool {SOURCE_POOL} cannot be made ({error}): make it with "
                f"`airflow pools set {SOURCE_POOL} {SOURCE_POOL_SLOTS} source`, or see {airflow.log}"
            ) from error


def _post(airflow: Airflow, path: str, content: Mapping[str, Any], **headers: str) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 an http address
        airflow.address + path, json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
        answered: dict[str, Any] = json.loads(answer.read())
    return answered


def _with_driver(url: str, driver: str) -> str:
    """Name the driver: SQLAlchemy takes another one by default than the one that is installed."""
    return url.replace("postgresql:", f"postgresql+{driver}:", 1)


def is_healthy(airflow: Airflow) -> bool:
    """Tell whether every part of Airflow says that it is at work."""
    try:
        address = f"{airflow.address}/api/v2/monitor/health"
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 an http address
            health = json.loads(answer.read())
    except (OSError, ValueError):
        return False
    parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    return all((health.get(part) or {}).get("status") == "healthy" for part in parts)
