"""A small shop with a warehouse, for tests of the dbt project: databases of their own, worked on as `make` does."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from source_db import schema, seed
from tests import commands
from tests.servers import create_database, drop_database

CHECKOUT = Path(__file__).parents[3]
SCALE = 0.02
NEEDED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "VIRTUAL_ENV")
DBT = """
import sys
from deploy.local.databases import open_databases
from etl.transform import project
sys.exit(project.run(open_databases().environment, sys.argv[1:]))
"""
PREFIXES = ("ETL_", "PG", "PYTHON")
# dbt's own variable. The tests of the project, 400 of them, take four fifths of the time of a build.
WITHOUT_UNIT_TESTS = {"DBT_EXCLUDE_RESOURCE_TYPES": "unit_test"}
WITHOUT_TESTS = {"DBT_EXCLUDE_RESOURCE_TYPES": "test unit_test"}
# What tells of runs differs with every run.
MARTS = """
    select relname from pg_class
    where relnamespace = 'marts'::regnamespace and relkind = 'r' and relname <> 'pipeline_health'
    order by 1
"""
_numbers = itertools.count(1)


def query(url, statement):
    """Run a statement in a session of its own, and return its rows."""
    connection = psycopg2.connect(url, options="-c timezone=UTC")
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@dataclass(frozen=True, kw_only=True)
class Shop:
    """The URLs of both sides, and a folder for what dbt writes."""

    source_url: str
    target_url: str
    folder: Path
    more: tuple[tuple[str, str], ...] = ()  # other variables of the environment

    def make(self, command, *arguments, **variables):
        """Run a command as the Makefile does, on this shop."""
        return self._python("-m", "deploy.local", command, *arguments, **variables)

    def dbt(self, *arguments, **variables):
        """Run dbt as `make` does, with any arguments."""
        return self._python("-c", DBT, *arguments, **variables)

    def succeed(self, command, *arguments, **variables):
        finished = self.make(command, *arguments, **variables)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished

    def fill(self):
        """Replicate the source and build all models as `make pipeline` does, without the tests of the project."""
        return self.succeed("pipeline", **WITHOUT_TESTS)

    def query(self, statement, url=None):
        return query(url or self.target_url, statement)

    def read_json(self, name):
        """Return a file that dbt has written, such as manifest.json."""
        return json.loads((self.folder / "target" / name).read_text())

    @property
    def environment(self):
        """The variables with which commands work on this shop."""
        return {
            **few_variables(),
            "SOURCE_DATABASE_URL": self.source_url,
            "TARGET_DATABASE_URL": self.target_url,
            "DBT_TARGET_PATH": str(self.folder / "target"),
            "DBT_LOG_PATH": str(self.folder / "logs"),
            "DBT_USE_COLORS": "false",
            "DBT_LOG_LEVEL_FILE": "none",  # a line for each event takes a twentieth of the time
            **dict(self.more),
        }

    def begin(self, command, *arguments):
        """Start a command as the Makefile does, without waiting for its end."""
        return subprocess.Popen(
            [sys.executable, "-m", "deploy.local", command, *arguments],
            cwd=CHECKOUT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _python(self, *arguments, **variables):
        return commands.run(*arguments, cwd=CHECKOUT, env={**self.environment, **variables})


def few_variables():
    """Return the variables that a command needs: dbt looks through all that there are for each line that it logs."""
    return {name: value for name, value in os.environ.items() if name in NEEDED_VARIABLES or name.startswith(PREFIXES)}


@contextmanager
def open_database(server) -> Iterator[str]:
    """Yield the URL of a fresh database, and drop it afterwards."""
    name = f"shop_{os.getpid()}_{next(_numbers)}"
    create_database(server, name)
    try:
        yield server.url(name)
    finally:
        drop_database(server, name)


@contextmanager
def open_source(server) -> Iterator[str]:
    """Yield the URL of a seeded source."""
    with open_database(server) as url:
        schema.apply(url)
        seed.load(url, scale=SCALE)
        yield url


@contextmanager
def open_shop(source_server, target_server, folder) -> Iterator[Shop]:
    """Yield a shop whose source is seeded and whose warehouse is empty."""
    with open_source(source_server) as source_url, open_database(target_server) as target_url:
        yield Shop(source_url=source_url, target_url=target_url, folder=folder)


def read_marts(query):
    """Return the rows of each mart and a fingerprint of them, but for the time at which they were built."""
    found = {}
    for (name,) in query(MARTS):
        row = "(to_jsonb(f) - 'dbt_built_at' - 'dbt_valid_from' - 'dbt_valid_to')::text"
        found[name] = query(f"select count(*), sum(hashtextextended({row}, 0)) from marts.{name} as f")[0]
    return found


@contextmanager
def locked(url, table, mode="access exclusive"):
    """Lock a table, so that its readers wait, or in another mode its writers."""
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"lock table {table} in {mode} mode")
            yield
    finally:
        connection.close()


def is_waited_for(table):
    """Return the condition that somebody waits for this table."""
    return f"exists (select from pg_locks where not granted and relation = '{table}'::regclass)"
