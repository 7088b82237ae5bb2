"""The DAG files as Airflow reads them, in a process of its own without any connection."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import has_airflow

collect_ignore_glob = [] if has_airflow() else ["test_*.py"]
CHECKOUT = Path(__file__).parents[3]
DAGS = CHECKOUT / "airflow" / "dags"
READER = Path(__file__).with_name("read_dags.py")


@pytest.fixture(scope="session")
def dag_files(tmp_path_factory):
    """What a fresh process finds in each DAG file, by the file's name."""
    files = sorted(DAGS.glob("*.py"))
    assert files
    home = tmp_path_factory.mktemp("airflow")
    return {path.name: read(path, home) for path in files}


def read(path, home, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PIPELINE"))}
    finished = subprocess.run(
        [sys.executable, str(READER), str(path)],
        cwd=CHECKOUT,
        env={**kept, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def dags(dag_files):
    return {dag["dag_id"]: dag for found in dag_files.values() for dag in found["dags"]}
