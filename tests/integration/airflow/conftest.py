"""A small shop, and the DAGs run on it to their end by Airflow itself, with a metadata database of their own."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import has_airflow
from tests.integration.dbt.built_shop import WITHOUT_TESTS, open_database, open_source, query, read_marts

collect_ignore_glob = [] if has_airflow() else ["test_*.py"]
CHECKOUT = Path(__file__).parents[3]
DAGS = CHECKOUT / "airflow" / "dags"
DRIVER = Path(__file__).with_name("dag_process.py")
WAIT_SECONDS = 120


class Airflow:
    """The DAGs on one shop."""

    def __init__(self, folder, source_url, target_url):
        self.folder = folder
        self.source_url = source_url
        self.target_url = target_url
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "ALERT"))},
            **settings(folder),
            "AIRFLOW_CONN_SOURCE_DB": source_url,
            "AIRFLOW_CONN_TARGET_DB": target_url,
            "DBT_TARGET_PATH": str(folder / "target"),
            "DBT_LOG_PATH": str(folder / "dbt_logs"),
            "ETL_FENCE_WAIT_SECONDS": "0.1",
            **WITHOUT_TESTS,  # but for the tests in which rules are checked
        }

    @property
    def parsed(self):
        """The file in which dbt keeps the project as it has parsed it, for this warehouse."""
        return self.folder / "target" / "partial_parse.msgpack"

    def start(self, dag_id, variables=None, **options):
        """Start a process that runs a DAG to its end."""
        given = json.dumps({"logical_date": "2026-06-01T00:00:00+00:00", **options})
        return subprocess.Popen(
            [sys.executable, str(DRIVER), str(DAGS), dag_id, given],
            cwd=CHECKOUT,
            env={**self.environment, **(variables or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, dag_id, variables=None, **options):
        """Run a DAG to its end; return its outcome with all that was logged."""
        process = self.start(dag_id, variables, **options)
        log, _ = process.communicate(timeout=600)
        return self.read_outcome(log)

    @staticmethod
    def read_outcome(log):
        lines = [line for line in log.splitlines() if line.startswith("OUTCOME ")]
        assert lines, log
        return {**json.loads(lines[-1].removeprefix("OUTCOME ")), "log": log}

    def succeed(self, dag_id, variables=None, **options):
        outcome = self.run(dag_id, variables, **options)
        assert outcome["state"] == "success", outcome["log"]
        return outcome

    def make(self, command, *arguments):
        """Run a command as the Makefile does, without Airflow."""
        process = self.start_making(command, *arguments)
        told, _ = process.communicate(timeout=600)
        assert process.returncode == 0, told

    def fill(self):
        """Replicate the source and build all models, without Airflow and without the tests of the project."""
        self.make("extract")
        self.make("dbt-run")

    def start_making(self, command, *arguments):
        """Start a command as the Makefile does, without Airflow."""
        urls = {"SOURCE_DATABASE_URL": self.source_url, "TARGET_DATABASE_URL": self.target_url}
        return subprocess.Popen(
            [sys.executable, "-m", "deploy.local", command, *arguments],
            cwd=CHECKOUT,
            env={**self.environment, **urls},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stored_text(self):
        """Return all that Airflow has stored, rendered templates and returned values among it."""
        return (self.folder / "airflow.db").read_bytes().decode(errors="replace")

    def query(self, statement, url=None):
        return query(url or self.target_url, statement)

    def on_source(self, statement):
        return self.query(statement, self.source_url)

    def marts(self):
        return read_marts(self.query)

    def wait_for(self, condition, url=None):
        """Wait until a query on the target answers true."""
        wait_until(lambda: self.query(f"select {condition}", url) == [(True,)], condition)


def wait_until(is_true, what):
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s for: {what}"
        time.sleep(0.05)


def settings(folder):
    return {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/airflow.db",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(folder / "logs"),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "SCARF_ANALYTICS": "false",
        "NO_COLOR": "1",
    }


@pytest.fixture(scope="session")
def metadata(tmp_path_factory):
    """A folder with an empty metadata database, to be copied."""
    folder = tmp_path_factory.mktemp("metadata")
    made = subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        env={**os.environ, **settings(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """A manifest as `make manifest` writes it, to be copied."""
    folder = tmp_path_factory.mktemp("manifest")
    made = subprocess.run(
        [sys.executable, "-m", "deploy.local", "manifest"],
        cwd=CHECKOUT,
        env={**os.environ, "DBT_TARGET_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder / "airflow" / "manifest.json"


@pytest.fixture(scope="session")
def parsed(tmp_path_factory):
    """What dbt has parsed, by warehouse: it is the same for each test, and takes dbt seconds."""
    folder = tmp_path_factory.mktemp("parsed")
    return lambda airflow: folder / airflow.target_url.rpartition("/")[2]


@pytest.fixture
def make_airflow(metadata, parsed, tmp_path):
    made = []

    def make(source_url, target_url):
        folder = tmp_path / f"airflow_{len(list(tmp_path.iterdir()))}"
        shutil.copytree(metadata, folder)
        made.append(Airflow(folder, source_url, target_url))
        if parsed(made[-1]).exists():
            made[-1].parsed.parent.mkdir()
            shutil.copy(parsed(made[-1]), made[-1].parsed)
        return made[-1]

    yield make
    for airflow in made:
        if airflow.parsed.exists() and not parsed(airflow).exists():
            shutil.copy(airflow.parsed, parsed(airflow))


@pytest.fixture
def airflow(make_airflow, source_server, target_server):
    """The DAGs on a shop of their own and an empty warehouse."""
    with open_source(source_server) as source_url, open_database(target_server) as target_url:
        yield make_airflow(source_url, target_url)
