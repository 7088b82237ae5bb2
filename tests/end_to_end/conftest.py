"""A machine to run the commands of the Makefile on."""

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import commands

CHECKOUT = Path(__file__).parents[2]
PARTS = ("etl", "deploy", "source_db", "dbt", "airflow")
PYCACHE = ("__pycache__",)
OF_MAKE = ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL")  # of the make that runs the tests
GENERATED = {"dbt": ("target", "logs", *PYCACHE)}  # of one part only: etl/target is code


class Machine:
    """A copy of the checkout below a private folder, and the commands of the Makefile on it."""

    def __init__(self, folder, ports):
        self.folder = folder
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.endswith("_DATABASE_URL") and not name.startswith("AIRFLOW") and name not in OF_MAKE
        } | ports

    def run(self, command, *arguments, **environment):
        return commands.run(
            "-m", "deploy.local", command, *arguments, cwd=self.folder, env={**self.environment, **environment}
        )

    def succeed(self, command, *arguments, **environment):
        finished = self.run(command, *arguments, **environment)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    def urls(self):
        """Return the URLs that the copy works with; asked of the copy itself."""
        return self.ask(
            "import json; from deploy.local.databases import *; s, t = embedded_servers(); "
            "print(json.dumps({'source': s.url(SOURCE_NAME), 'target': t.url(TARGET_NAME), **open_databases().urls}))"
        )

    def ask(self, script):
        """Return what a script prints as JSON, run with the code of the copy."""
        finished = commands.run("-c", script, cwd=self.folder, env=self.environment)
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout)


@contextmanager
def open_machine(free_port):
    """Yield a copy of the checkout with free ports, and remove it and its servers afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="tidemark-copy-"))  # mode 0700: the servers' user cannot enter it
    for part in PARTS:
        shutil.copytree(CHECKOUT / part, folder / part, ignore=shutil.ignore_patterns(*GENERATED.get(part, PYCACHE)))
    names = ("SOURCE_PORT", "TARGET_PORT", "AIRFLOW_PORT")
    made = Machine(folder, {name: str(free_port()) for name in names})
    yield made
    made.run("clean")
    shutil.rmtree(folder)


@pytest.fixture
def machine(free_port):
    with open_machine(free_port) as made:
        yield made
