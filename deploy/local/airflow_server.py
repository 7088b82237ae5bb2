"""Starts and stops Airflow on this machine: `airflow standalone` on an embedded metadata database, without containers.

All its processes belong to one session, which is how they are found and stopped: children survive their parent, and a
process that sets its title overwrites its environment, so neither identifies them. Begin at `start`.
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

START_SECONDS = 240  # measured: 30 on two cores, mostly to create the metadata database
STOP_SECONDS = 20
POLL_SECONDS = 0.5
ANSWER_SECONDS = 5
LOGIN = "admin"
ALREADY_THERE = 409


@dataclass(frozen=True, kw_only=True)
class Airflow:
    """Where the Airflow of this checkout is; creating the value has no effect on it."""

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
        """The file with the id of the session in which Airflow was last started."""
        return self.home / "session"

    def login(self) -> tuple[str, str]:
        """Return the user and the password that Airflow generated at its first start."""
        passwords = json.loads((self.home / "passwords.json").read_text())
        return LOGIN, passwords[LOGIN]


def find_airflow(environment: Mapping[str, str] = os.environ) -> Airflow:
    """Return the Airflow of this checkout, running or not."""
    return Airflow(home=choose_home(CHECKOUT) / "airflow", port=read_port(environment, "AIRFLOW_PORT"))


def start(airflow: Airflow, databases: Databases, metadata_server: Server) -> None:
    """Start Airflow and wait until all its components are healthy. Raises UnavailableError that names its log."""
    if any(processes(airflow)):
        if is_healthy(airflow):
            make_pool(airflow)  # an earlier start may have failed to create it
            return
        stop(airflow)
    if is_listening(airflow.port):
        raise UnavailableError(
            f"port {airflow.port} is taken by another program: stop it, or choose another port: "
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
            raise UnavailableError(f"Airflow {found}: see {airflow.log}")
        time.sleep(POLL_SECONDS)
    make_pool(airflow)


def stop(airflow: Airflow) -> bool:
    """Stop every process of this Airflow, including running tasks; return whether there were any."""
    was_running = any(processes(airflow))
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS
        signalled: set[int] = set()
        while found := set(processes(airflow)):
            for pid in found - signalled:  # includes those started meanwhile
                with suppress(ProcessLookupError):
                    os.kill(pid, signal_number)
            signalled |= found
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        else:
            return was_running
    left = ", ".join(map(str, processes(airflow)))
    raise UnavailableError(f"these processes of Airflow have not ended, even after SIGKILL: {left}")


def processes(airflow: Airflow) -> Iterator[int]:
    """Yield the ids of the processes in Airflow's session whose working directory is in this checkout.

    The id of an ended session may be reused by another one, which has another working directory.
    """
    if not airflow.session.exists():
        return
    session = int(airflow.session.read_text())
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if os.getsid(int(folder.name)) == session and (folder / "cwd").readlink().is_relative_to(CHECKOUT):
                yield int(folder.name)


def variables(airflow: Airflow, databases: Databases, metadata_url: str) -> dict[str, str]:
    """Return the environment of all components of Airflow on this machine; call it once: they share keys."""
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
        "AIRFLOW__API__HOST": "127.0.0.1",  # anyone with the login can run the DAGs
        "AIRFLOW__API__PORT": str(airflow.port),
        "AIRFLOW__API__BASE_URL": airflow.address,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),  # Airflow's default is shorter than it requires
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
    """Create the pool that limits connections to the source; an existing one keeps its slots."""
    user, password = airflow.login()
    try:
        token = _post(airflow, "/auth/token", {"username": user, "password": password})["access_token"]
        pool = {
            "name": SOURCE_POOL,
            "slots": SOURCE_POOL_SLOTS,
            "description": "connections of warehouse_pipeline to the source",
        }
        _post(airflow, "/api/v2/pools", pool, Authorization=f"Bearer {token}")
    except OSError as error:  # includes the errors of urllib
        if getattr(error, "code", None) != ALREADY_THERE:
            raise UnavailableError(
                f"Airflow has started, but the pool {SOURCE_POOL} could not be created ({error}): create it with "
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
    """Name the driver in a URL, because SQLAlchemy's default driver is not installed."""
    return url.replace("postgresql:", f"postgresql+{driver}:", 1)


def is_healthy(airflow: Airflow) -> bool:
    """Return whether every component of Airflow reports that it is healthy."""
    try:
        address = f"{airflow.address}/api/v2/monitor/health"
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 an http address
            health = json.loads(answer.read())
    except (OSError, ValueError):
        return False
    parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    return all((health.get(part) or {}).get("status") == "healthy" for part in parts)
