"""A warehouse that is filled and built, fresh for each test, and dbt beside it.

The databases are filled and built once and copied for each test. Their names stay the same, for dbt writes them into
what it has parsed.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql

import etl
from etl.config import load_settings
from etl.database_url import DatabaseUrl
from etl.model import RunOptions
from source_db import schema, seed
from tests import commands

from .built_shop import few_variables

PROJECT = Path(__file__).parents[3] / "dbt"
WORKER = Path(__file__).with_name("dbt_worker.py")
COLUMNS = """
    select attname from pg_catalog.pg_attribute
    where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum
"""
# As the project's own, but for events, of which deletes are looked for as well.
TABLES = """
schema: public
discover: true
defaults: {{watermark: updated_at, deletes: reconcile, tombstone_days: {tombstone_days}}}
tables:
  events: {{watermark: event_id}}
  schema_migrations: {{skip: true}}
"""
# The shop's clock can be set ahead, so that days pass. What is inserted is stamped by a default, and keeps now().
CLOCK = """
    create schema clock;
    create table clock.ahead (days integer not null);
    insert into clock.ahead values (0);
    create or replace function touch_updated_at() returns trigger language plpgsql as $$
    begin
        new.updated_at := now() + make_interval(days => (select ahead.days from clock.ahead));
        return new;
    end
    $$
"""
# Tests name orders by their ids. Which of them are carts, which no fact shows, depends on the day of the seed.
PLACE_EARLY_CARTS = """
    update orders set status = 'placed', ordered_at = created_at where status = 'cart' and order_id < 330
"""
SCALE = 0.02
WAIT_SECONDS = 60


class Dbt:
    """A long-lived process that runs dbt commands on one project, without its tests, and one database."""

    def __init__(self, *, project: Path, folder: Path, target_url: str, **variables: str) -> None:
        parts = psycopg2.extensions.parse_dsn(target_url)
        self.target = folder / "target"
        self._process = commands.start(
            *("-c", WORKER.read_text(), "--project-dir", str(project), "--profiles-dir", str(project)),
            *("--target-path", str(self.target), "--log-path", str(folder / "logs")),
            env={
                **few_variables(),
                "DBT_HOST": parts["host"],
                "DBT_PORT": parts["port"],
                "DBT_USER": parts["user"],
                "DBT_ENV_SECRET_PASSWORD": parts["password"],
                "DBT_DBNAME": parts["dbname"],
                **variables,
            },
            cwd=folder,
        )
        self("parse")

    def try_to(self, *arguments: str) -> tuple[bool, str]:
        """Run one command; return whether it succeeded, and its output."""
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            return False, f"dbt died with {self._process.wait(WAIT_SECONDS)}"
        answer = json.loads(answer)
        return answer["is_success"], answer["log"]

    def __call__(self, *arguments: str) -> str:
        is_success, log = self.try_to(*arguments)
        assert is_success, f"dbt {' '.join(arguments)}\n{log}"
        return log

    def kill(self) -> None:
        """End the process as a machine does that loses its power."""
        self._process.kill()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(WAIT_SECONDS)
        self._process.stdin.close()
        self._process.stdout.close()

    @cached_property
    def _nodes(self) -> list[dict]:
        return list(json.loads((self.target / "manifest.json").read_text())["nodes"].values())

    @property
    def snapshots(self) -> list[str]:
        """The snapshots, as dbt has parsed them."""
        return [node["name"] for node in self._nodes if node["resource_type"] == "snapshot"]

    @cached_property
    def rebuilt(self) -> dict[str, tuple[str, list[str]]]:
        """The models that are built by touched keys, with their relations and keys, as dbt has parsed them."""
        found = {}
        for node in self._nodes:
            if node["config"].get("incremental_strategy") == "rebuild_touched":
                key = node["config"]["unique_key"]
                found[node["name"]] = (f"{node['schema']}.{node['name']}", [key] if isinstance(key, str) else key)
        return found

    @property
    def facts(self) -> list[str]:
        """Those of them that analysts read."""
        return [name for name, (relation, _) in self.rebuilt.items() if relation.startswith("marts.")]

    @cached_property
    def plain_queries(self) -> dict[str, str]:
        """What a full refresh of each of them selects."""
        self("compile", "--full-refresh", "--select", *self.rebuilt)
        folder = self.target / "compiled"
        return {name: next(folder.rglob(f"{name}.sql")).read_text() for name in self.rebuilt}


@dataclass
class Warehouse:
    """A source and a target with everything between them."""

    source_url: str
    target_url: str
    dbt: Dbt
    folder: Path
    tombstone_days: str = "null"
    days: int = 0  # by which both clocks are ahead
    _connections: list = field(default_factory=list)

    def query(self, statement, *parameters):
        return _query(self._target, statement, parameters)

    def on_source(self, statement, *parameters):
        return _query(self._source, statement, parameters)

    @cached_property
    def _target(self):
        return self._open(self.target_url)

    @cached_property
    def _source(self):
        return self._open(self.source_url)

    def _open(self, url):
        connection = psycopg2.connect(url)
        connection.autocommit = True
        self._connections.append(connection)
        return connection

    def close(self):
        for connection in self._connections:
            connection.close()

    @contextmanager
    def transaction(self, url=None):
        """A transaction of its own, on the target unless told otherwise; it commits at the end."""
        connection = psycopg2.connect(url or self.target_url)
        try:
            with connection, connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    @property
    def settings(self):
        tables = self.folder / "tables.yml"
        tables.write_text(TABLES.format(tombstone_days=self.tombstone_days))
        return load_settings(
            {
                "SOURCE_DATABASE_URL": self.source_url,
                "TARGET_DATABASE_URL": DatabaseUrl(self.target_url),
                "ETL_FENCE_MARGIN_SECONDS": "0",
                "ETL_FENCE_WAIT_SECONDS": "0.1",
                "ETL_TABLES": str(tables),
            }
        )

    def replicate(self, *tables, **options):
        """Run once, looking for deleted rows wherever they may be."""
        given = RunOptions(**{"reconcile": True, **options})
        result = etl.run(self.settings, tables, observe=lambda event: None, options=given)
        assert not result.has_failures, result
        if self.days:
            self._set_ahead(result.run_id)

    def adopt_copy(self):
        """Have the ledger take the shop for the one that it was copied from: as a database, it is another one."""
        ((now,),) = self.on_source("select oid from pg_database where datname = current_database()")
        ((before,),) = self.query("select distinct database_oid from etl.watermarks")
        self.query("update etl.watermarks set database_oid = %s", now)
        for table, column in (("watermarks", "read_signature"), ("net_scans", "scan_signature")):
            self.query(f"update etl.{table} set {column} = replace({column}, ' {before}, ', ' {now}, ')")

    def pass_days(self, days):
        """Let days pass on the clocks of the shop and of the warehouse, for what is written from now on."""
        self.days += days
        self.on_source("update clock.ahead set days = %s", self.days)

    def _set_ahead(self, run_id):
        """Give what a run has written the time that it is."""
        ahead = f"interval '{self.days} days'"
        self.query(
            f"update etl.runs set started_at = started_at + {ahead}, ended_at = ended_at + {ahead} where run_id = %s",
            run_id,
        )
        for table in ("customers", "products", "inventory_levels"):
            self.query(
                f"update raw.{table} set _etl_synced_at = _etl_synced_at + {ahead}, "
                f"_etl_deleted_at = _etl_deleted_at + {ahead} where _etl_run_id = %s",
                run_id,
            )

    @contextmanager
    def run_in_progress(self):
        """A run that writes rows of raw as the test says, and ends afterwards; gives its id."""
        ((run_id,),) = self.query("insert into etl.runs default values returning run_id")
        yield run_id
        self.query("update etl.runs set status = 'succeeded', ended_at = clock_timestamp() where run_id = %s", run_id)

    def wait_for(self, condition):
        """Wait until a condition on the target is true."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self.query(f"select {condition}") != [(True,)]:
            assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s for: {condition}"
            time.sleep(0.01)

    def wait_until_blocked(self, relation):
        """Wait until a session waits for a lock on this relation."""
        self.wait_for(f"exists (select from pg_locks where not granted and relation = '{relation}'::regclass)")

    def build(self, *models):
        """Build these models, or all: views, snapshots, histories, dimensions and facts."""
        selected = ("--select", *models) if models else ()
        return self.dbt("build", *selected)

    def try_to_build(self, *models):
        """Build what may fail; return whether it succeeded, and its output."""
        selected = ("--select", *models) if models else ()
        return self.dbt.try_to("build", *selected)

    def build_chain(self):
        """Build snapshots, histories and facts."""
        return self.build(*self.dbt.snapshots, *self.dbt.rebuilt)

    def fingerprints(self):
        """Return what changes with any value of a fact but the time at which it was built."""
        return {
            fact: self.query(
                f"select count(*), sum(hashtextextended((to_jsonb(f) - 'dbt_built_at')::text, 0)) "
                f"from marts.{fact} as f"
            )[0]
            for fact in self.dbt.facts
        }

    def row_versions(self):
        """Return where each row of a fact is stored and who wrote it: what changes with any write."""
        return {
            fact: self.query(f"select ctid::text, xmin::text from marts.{fact} order by ctid")
            for fact in self.dbt.facts
        }

    def differences(self, *models):
        """Compare models, or all, with a full refresh into another table; return the keys of the rows that differ."""
        found = {}
        for model in models or self.dbt.rebuilt:
            relation, key = self.dbt.rebuilt[model]
            keys = ", ".join(key)
            columns = ", ".join(name for (name,) in self.query(COLUMNS, relation))
            self.query(
                f"drop table if exists pg_temp.fully_refreshed; "
                f"create temporary table fully_refreshed (like {relation}); "
                f"insert into fully_refreshed ({columns}) select {columns} from ({self.dbt.plain_queries[model]}) as f"
            )
            rows = f"select {keys}, (to_jsonb(f) - 'dbt_built_at')::text as content from"
            different = self.query(
                f"with wanted as ({rows} fully_refreshed as f), found as ({rows} {relation} as f) "
                f"select distinct {keys} from ((table wanted except all table found) "
                f"union all (table found except all table wanted)) as different order by {keys}"
            )
            if different:
                found[model] = different
        return found

    def assert_equals_full_refresh(self, *models, after="the history"):
        """These models, or all, have exactly the rows that a full refresh would give them."""
        different = {model: (len(keys), keys[:3]) for model, keys in self.differences(*models).items()}

        assert not different, f"after {after}: {different}"


def _query(connection, statement, parameters):
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def _on_server(server, statement, *names):
    control = psycopg2.connect(server.url())
    control.autocommit = True
    with control.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
    control.close()


def _copy(server, template, name):
    _on_server(server, "create database {} template {} strategy file_copy", name, template)


def _drop(server, name):
    _on_server(server, "drop database if exists {} with (force)", name)


@pytest.fixture(scope="session")
def make_dbt(target_server, tmp_path_factory) -> Iterator[Callable[..., Dbt]]:
    """A function that starts dbt on the warehouse of the test, by default with the project as it is."""
    started = []

    def start(project: Path = PROJECT, **variables: str) -> Dbt:
        folder = tmp_path_factory.mktemp("dbt")
        if started:  # it then parses only what differs
            (folder / "target").mkdir()
            shutil.copy(started[0].target / "partial_parse.msgpack", folder / "target")
        started.append(Dbt(project=project, folder=folder, target_url=target_server.url("warehouse"), **variables))
        return started[-1]

    yield start
    for dbt in started:
        dbt.close()


@pytest.fixture(scope="session")
def dbt(make_dbt) -> Dbt:
    """One dbt for all tests: it holds nothing but the project as it is."""
    return make_dbt()


@pytest.fixture(scope="session")
def filled(source_server, target_server, tmp_path_factory) -> Iterator[tuple[str, str]]:
    """The names of templates: a shop with two years of sales, and a warehouse with one run of it."""
    names = ("shop", "warehouse")
    for server, name in zip((source_server, target_server), names, strict=True):
        _on_server(server, "create database {} template template0 encoding 'UTF8'", name)
    schema.apply(source_server.url("shop"))
    seed.load(source_server.url("shop"), scale=SCALE)
    warehouse = Warehouse(
        source_server.url("shop"), target_server.url("warehouse"), dbt=None, folder=tmp_path_factory.mktemp("filled")
    )
    warehouse.on_source(CLOCK)
    warehouse.on_source(PLACE_EARLY_CARTS)
    warehouse.replicate()
    warehouse.close()
    _copy(source_server, "shop", "shop_filled")
    _copy(target_server, "warehouse", "warehouse_filled")
    yield "shop_filled", "warehouse_filled"
    for server, name in zip((source_server, target_server), names, strict=True):
        _drop(server, name)
        _drop(server, f"{name}_filled")


@pytest.fixture(scope="session")
def built(filled, target_server, dbt) -> Iterator[str]:
    """The name of a template: the filled warehouse, built by dbt."""
    _drop(target_server, "warehouse")
    _copy(target_server, filled[1], "warehouse")
    dbt("build")
    _copy(target_server, "warehouse", "warehouse_built")
    yield "warehouse_built"
    _drop(target_server, "warehouse_built")


@pytest.fixture
def make_warehouse(filled, source_server, target_server, dbt, tmp_path) -> Iterator[Callable[[str], Warehouse]]:
    """A function that creates the shop and the warehouse again, the warehouse from this template."""
    made = []

    def make(template: str) -> Warehouse:
        _drop(source_server, "shop")
        _drop(target_server, "warehouse")
        _copy(source_server, filled[0], "shop")
        _copy(target_server, template, "warehouse")
        made.append(Warehouse(source_server.url("shop"), target_server.url("warehouse"), dbt=dbt, folder=tmp_path))
        made[-1].adopt_copy()
        return made[-1]

    yield make
    for warehouse in made:
        warehouse.close()


@pytest.fixture
def warehouse(built, make_warehouse) -> Warehouse:
    """A shop, and its warehouse after one run and one build."""
    return make_warehouse(built)


@pytest.fixture
def unbuilt(filled, make_warehouse) -> Warehouse:
    """A shop, and its warehouse after one run, which dbt has never seen."""
    return make_warehouse(filled[1])
