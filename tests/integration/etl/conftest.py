"""A source, a target and the runs between them."""

import datetime as dt
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

import etl
from etl.config import Settings, parse_tables
from etl.database_url import DatabaseUrl
from etl.model import Point, RunOptions, Table
from etl.results import Event, RunResult, TableResult
from etl.source.reader import Reader
from etl.source.session import Points, Source
from tests import commands

pytest.register_assert_rewrite("tests.integration.etl.faults")


@dataclass
class Replication:
    """Two real databases, an autocommit session on each, and runs with their events."""

    source_url: str
    target_url: str
    source: Connection
    target: Connection
    settings: Settings
    folder: Path
    events: list[Event] = field(default_factory=list)

    def run(self, *table_names: str, options: RunOptions | None = None, **changes: Any) -> RunResult:
        return etl.run(self.settings_with(**changes), table_names, observe=self.events.append, options=options)

    def settings_with(self, **changes: Any) -> Settings:
        return replace(self.settings, **changes)

    def run_one(self, table_name: str, **changes: Any) -> TableResult:
        """Run one table, which has to succeed."""
        (result,) = self.run(table_name, **changes).tables
        assert result.status == "succeeded", result.error
        return result

    def configure(self, document: dict[str, Any]) -> None:
        faults: list[str] = []
        self.settings = replace(self.settings, tables=parse_tables(document, faults))
        assert faults == [], "faults of the configuration"

    def on_source(self, statement: str, *parameters: Any) -> list[Any]:
        return query(self.source, statement, *parameters)

    def on_target(self, statement: str, *parameters: Any) -> list[Any]:
        return query(self.target, statement, *parameters)

    def rows(self, table_name: str) -> tuple[list[str], list[str]]:
        """Return all rows as text, sorted, of a source table and of its raw table."""
        names = [
            row[0]
            for row in self.on_source(
                "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped "
                "order by attnum",
                sql.Identifier("public", table_name).as_string(self.source),
            )
        ]
        columns = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in names)
        found = []
        for connection, schema in ((self.source, "public"), (self.target, "raw")):
            statement = sql.SQL("select row({})::text from {}").format(columns, sql.Identifier(schema, table_name))
            found.append(sorted(row[0] for row in query(connection, statement)))
        return found[0], found[1]

    def open_source(self) -> Connection:
        """Open another session on the source, for a transaction of its own."""
        return psycopg2.connect(self.source_url)

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in a process of its own."""
        return commands.run("-m", "etl", *arguments, env={**self.environment, **environment}, timeout=60)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SOURCE_DATABASE_URL": self.source_url,
            "TARGET_DATABASE_URL": self.target_url,
            "ETL_TABLES": str(self.write_tables("{}", "default.yml")),
        }

    def write_tables(self, text: str, name: str = "tables.yml") -> Path:
        """Write a tables.yml and return its path."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


def query(connection: Connection, statement: Any, *parameters: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def _connect(url: str) -> Connection:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("set timezone = 'UTC'; set extra_float_digits = 3")
    return connection


@pytest.fixture
def replicate_between(tmp_path: Path) -> Iterator[Callable[[str, str], Replication]]:
    """A function that returns the replication from one URL to another."""
    made = []

    def make(source_url: str, target_url: str) -> Replication:
        settings = Settings(
            source_url=DatabaseUrl(source_url),
            target_url=DatabaseUrl(target_url),
            tables=parse_tables({}, []),
            fence_wait_seconds=0.05,
            fence_margin_seconds=0.0,
            lock_wait_seconds=1.0,
        )
        found = Replication(
            source_url=source_url,
            target_url=target_url,
            source=_connect(source_url),
            target=_connect(target_url),
            settings=settings,
            folder=tmp_path,
        )
        made.append(found)
        return found

    yield make
    for found in made:
        found.source.close()
        found.target.close()


@pytest.fixture
def replication(source_url: str, target_url: str, replicate_between: Callable[[str, str], Replication]) -> Replication:
    return replicate_between(source_url, target_url)


def make_orders(replication: Replication, rows: int) -> None:
    replication.on_source(
        """
        create type order_status as enum ('placed', 'paid', 'shipped');
        create domain amount as numeric(12, 2) check (value >= 0);
        create table orders (
            order_id bigint generated always as identity primary key,
            status order_status not null default 'placed',
            total amount not null,
            attributes jsonb not null default '{}',
            note text,
            updated_at timestamptz not null default now()
        );
        create index on orders (updated_at)
        """
    )
    add_orders(replication.source, rows)


def add_orders(connection: Connection, rows: int) -> None:
    query(
        connection,
        "insert into orders (total, attributes, note) "
        "select n / 7.0, jsonb_build_object('n', n), 'note ' || n from generate_series(1, %s) as n",
        rows,
    )


@pytest.fixture
def orders(replication: Replication) -> Replication:
    """A replication whose source has 1,000 orders."""
    make_orders(replication, 1000)
    return replication


@pytest.fixture
def create_orders() -> Callable[[Replication, int], None]:
    """A function that makes the table of orders, with this many rows."""
    return make_orders


@pytest.fixture
def read_as_role(replication: Replication) -> Iterator[Callable[[bool], None]]:
    """A function that makes runs read as a role of their own, with pg_read_all_stats or without.

    With the privilege, two rules of the fence cover for each other. The role may read the tables of schema public.
    """
    (database,) = replication.on_source("select current_database()")[0]
    names: list[str] = []

    def read_as(may_see_all: bool) -> None:
        name = f"reader_{database}_{len(names)}"
        names.append(name)
        replication.on_source(f"create role {name} login password 'r'; grant usage on schema public to {name}")
        replication.on_source(f"grant select on all tables in schema public to {name}")
        replication.on_source(f"alter default privileges in schema public grant select on tables to {name}")
        if may_see_all:
            replication.on_source(f"grant pg_read_all_stats to {name}")
        url = re.sub(r"//[^@]*@", f"//{name}:r@", replication.source_url)
        replication.settings = replace(replication.settings, source_url=DatabaseUrl(url))

    yield read_as
    for name in names:
        replication.on_source(f"drop owned by {name}; drop role {name}")


@pytest.fixture(params=["with pg_read_all_stats", "without pg_read_all_stats"])
def may_see_all(request: pytest.FixtureRequest) -> bool:
    """Whether the source's role has pg_read_all_stats: a test that asks for it is played both ways."""
    return str(request.param).startswith("with ")


@pytest.fixture
def reader(orders: Replication, read_as_role: Callable[[bool], None], may_see_all: bool) -> Replication:
    """The orders, read by a role of its own."""
    read_as_role(may_see_all)
    return orders


@pytest.fixture
def watermark_is_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs trust max(column), whatever is still open, as loaders do that poll a column."""
    monkeypatch.setattr(Source, "take_points", _take_max_points)


def _take_max_points(source: Source, tables: Sequence[Table]) -> Points:
    points = {}
    for table in tables:
        if table.watermark is None:
            continue
        statement = sql.SQL("select max({})::text, pg_postmaster_start_time() from {}").format(
            sql.Identifier(table.watermark), sql.Identifier(table.schema, table.name)
        )
        ((value, started_at),) = query(source._connection, statement)
        if value is not None:
            points[table.name] = Point(
                value=value,
                as_of=dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
                transactions=frozenset(),
                server_started_at=started_at,
            )
    return Points(by_table=points)


@pytest.fixture
def count_copied_lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """A function from which on the lines that readers copy from the source are counted, in the list it returns."""

    def start() -> list[int]:
        counts: list[int] = []
        copy = Reader.copy

        def spy(reader: Reader, statement: sql.Composable, into: IO[bytes]) -> None:
            class Counting:
                def write(self, chunk: bytes) -> int:
                    counts.append(bytes(chunk).count(b"\n"))
                    return into.write(chunk)

            copy(reader, statement, cast(IO[bytes], Counting()))

        monkeypatch.setattr(Reader, "copy", spy)
        return counts

    return start


@pytest.fixture
def insert_orders() -> Any:
    return add_orders


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """A function that waits for a condition, and fails the test after `seconds`."""

    def wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.01)

    return wait
