"""A small shop with a warehouse, for tests of the dbt project: databases of their own, worked on as `make` does."""

import datetime as dt
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
TODAY = dt.datetime.now(dt.UTC).date()
_open_names: set[str] = set()
_templates: dict[str, str] = {}  # the name of a seeded source, by the URL of its server


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
def open_database(server, template=None) -> Iterator[str]:
    """Yield the URL of a fresh database, and drop it afterwards.

    Names are used again, so that what dbt has parsed for one warehouse is true of a later one.
    """
    name = _find_free_name()
    create_database(server, name, template)
    try:
        yield server.url(name)
    finally:
        drop_database(server, name)
        _open_names.remove(name)


@contextmanager
def open_source(server) -> Iterator[str]:
    """Yield the URL of a seeded source."""
    if server.url() not in _templates:
        name = f"seeded_{os.getpid()}"
        create_database(server, name)
        schema.apply(server.url(name))
        seed.load(server.url(name), scale=SCALE)
        _templates[server.url()] = name
    with open_database(server, _templates[server.url()]) as url:
        yield url


def _find_free_name():
    name = next(name for n in itertools.count(1) if (name := f"shop_{os.getpid()}_{n}") not in _open_names)
    _open_names.add(name)
    return name


@contextmanager
def open_shop(source_server, target_server, folder) -> Iterator[Shop]:
    """Yield a shop whose source is seeded and whose warehouse is empty."""
    with open_source(source_server) as source_url, open_database(target_server) as target_url:
        yield Shop(source_url=source_url, target_url=target_url, folder=folder)


def read_marts(query):
    """Return the rows of each mart and a fingerprint of them, but for the time at which they were built.

    A day that ends during the tests adds its stock; it is left out.
    """
    found = {}
    for (name,) in query(MARTS):
        row = "(to_jsonb(f) - 'dbt_built_at' - 'dbt_valid_from' - 'dbt_valid_to')::text"
        rows = f"marts.{name} as f" + (f" where stock_date < '{TODAY}'" if name == "fct_inventory_daily" else "")
        found[name] = query(f"select count(*), sum(hashtextextended({row}, 0)) from {rows}")[0]
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
