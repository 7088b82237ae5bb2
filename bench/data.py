"""The data to copy: creates the source databases, changes rows, and computes what a copy must contain.

A *place* is a source database and the tables that are copied from it together. Begin at `Sources`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from psycopg2 import sql

from bench.stage import Stage, create_database, execute, fetch

SMALL_TABLES = 100
SMALL_ROWS = 100
TENFOLD = 10
SHOP = ("orders", "customers", "order_items", "events")
SMALL_TABLE = """
    create table {name} (
        id bigint primary key, name text not null, amount numeric(12, 2), created_at timestamptz not null,
        updated_at timestamptz not null
    );
    insert into {name}
    select n, 'row ' || n, n / 7.0, timestamptz '2020-01-01', timestamptz '2020-01-01' + n * interval '1 second'
    from generate_series(1, {rows}) as n;
    create index on {name} (updated_at)
"""
# Raw tables have text in place of enums.
COLUMNS = """
    select a.attname, case t.typtype when 'e' then 'text' else format_type(a.atttypid, a.atttypmod) end
    from pg_attribute as a join pg_type as t on t.oid = a.atttypid
    where a.attrelid = {}::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A source table: the first column is the key, and `updated_at` shows what changed."""

    name: str
    columns: tuple[tuple[str, str], ...]  # names, and the types on the target

    @property
    def key(self) -> sql.Identifier:
        return sql.Identifier(self.columns[0][0])

    @property
    def names(self) -> sql.Composable:
        return sql.SQL(", ").join(sql.Identifier(name) for name, _ in self.columns)

    @property
    def values(self) -> sql.Composable:
        """Its columns, cast to their types on the target."""
        return sql.SQL(", ").join(
            sql.SQL("{}::{} as {}").format(sql.Identifier(name), sql.SQL(kind), sql.Identifier(name))
            for name, kind in self.columns
        )

    def content(self, rows: sql.Composable) -> sql.Composable:
        """Compose the plain query for the content of rows: their number and the sum of the hashes of their text."""
        return sql.SQL("select count(*), sum(hashtextextended(t::text, 0)) from (select {} from {}) as t").format(
            self.values, rows
        )

    def keys(self, rows: sql.Composable) -> sql.Composable:
        """Compose the plain query for the keys of rows: their number and the sum of the hashes of their text."""
        return sql.SQL("select count(*), sum(hashtextextended({}::text, 0)) from {}").format(self.key, rows)

    def create(self, name: str, kind: str = "table") -> sql.Composable:
        """Compose a CREATE TABLE of these columns, with only the primary key."""
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(of_type)) for column, of_type in self.columns
        )
        return sql.SQL("create {} {} ({}, primary key ({}))").format(
            sql.SQL(kind), sql.Identifier(name), columns, self.key
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """A source database and some of its tables; copies are named after the place."""

    name: str
    database: str
    table_names: tuple[str, ...]


ORDERS = Place(name="orders", database="shop", table_names=("orders",))
FOUR_TABLES = Place(name="four_tables", database="shop", table_names=SHOP)
TENFOLD_ORDERS = Place(name="tenfold", database="tenfold", table_names=("orders",))
MANY_TABLES = Place(
    name="many_tables",
    database="many_tables",
    table_names=tuple(f"small_{number:03}" for number in range(1, SMALL_TABLES + 1)),
)


class Sources:
    """The source databases; each is created when it is first used."""

    def __init__(self, stage: Stage, rows: int, say: Callable[[str], None]) -> None:
        self.stage, self.rows, self._say = stage, rows, say
        self._made: set[str] = set()
        self._tables: dict[tuple[str, str], Table] = {}
        self._contents: dict[tuple[str, str], tuple[Any, ...]] = {}

    def url(self, place: Place) -> str:
        """Return the URL of a place's database; create the database if it is missing."""
        if place.database not in self._made:
            create_database(self.stage.source, place.database)
            for statement in self._statements(place.database):
                execute(self.stage.source.url(place.database), statement, parameters={"rows": self._rows(place)})
            execute(self.stage.source.url(place.database), "vacuum analyze")
            self._made.add(place.database)
        return self.stage.source.url(place.database)

    def tables(self, place: Place) -> tuple[Table, ...]:
        return tuple(self.table(place, name) for name in place.table_names)

    def table(self, place: Place, name: str) -> Table:
        known = self._tables.get((place.database, name))
        if known is None:
            columns = fetch(self.url(place), sql.SQL(COLUMNS).format(sql.Literal(name)))
            known = Table(name=name, columns=tuple((column, kind) for column, kind in columns))
            self._tables[place.database, name] = known
        return known

    def content(self, place: Place, table: Table) -> tuple[Any, ...]:
        """Return the number of rows of a table and the sum of their hashes; cached until the rows change."""
        known = self._contents.get((place.database, table.name))
        if known is None:
            known = fetch(self.url(place), table.content(sql.Identifier(table.name)))[0]
            self._contents[place.database, table.name] = known
        return known

    def read_clock(self, place: Place) -> str:
        return str(fetch(self.url(place), "select clock_timestamp()::text")[0][0])

    def change_orders(self, place: Place) -> str:
        """Change as many orders as 1 % of `rows`, spread over the table; return the time before the change."""
        since = self.read_clock(place)
        self._contents.pop((place.database, "orders"), None)
        step = self._rows(place) // (self.rows // 100)
        execute(
            self.url(place),
            sql.SQL("update orders set total = total + 1, updated_at = now() where order_id % {} = 0").format(
                sql.Literal(step)
            ),
            "vacuum analyze orders",
        )
        return since

    def delete_rows(self, place: Place, turn: int) -> None:
        """Delete 0.1 % of the rows of each table, spread over the table and different in each turn."""
        for table in self.tables(place):
            self._contents.pop((place.database, table.name), None)
            execute(
                self.url(place),
                sql.SQL("delete from {} where {} % 1000 = {}").format(
                    sql.Identifier(table.name), table.key, sql.Literal(turn % 1000 + 1)
                ),
                sql.SQL("vacuum analyze {}").format(sql.Identifier(table.name)),
            )

    def write_silently(self, place: Place, turn: int) -> None:
        """Write new versions of 0.1 % of the rows of each table, with the same content, different in each turn."""
        for table in self.tables(place):
            execute(
                self.url(place),
                sql.SQL("update {0} set {1} = {1} where {1} % 1000 = {2}").format(
                    sql.Identifier(table.name), table.key, sql.Literal(turn % 1000)
                ),
                "select pg_stat_force_next_flush()",
                sql.SQL("vacuum analyze {}").format(sql.Identifier(table.name)),
            )

    def _rows(self, place: Place) -> int:
        return self.rows * TENFOLD if place.database == TENFOLD_ORDERS.database else self.rows

    def _statements(self, database: str) -> Iterator[str | sql.Composable]:
        self._say(f"creating source database {database} ...")
        if database == MANY_TABLES.database:
            for name in MANY_TABLES.table_names:
                yield sql.SQL(SMALL_TABLE).format(name=sql.Identifier(name), rows=sql.Literal(SMALL_ROWS))
            return
        scripts = resources.files("bench").joinpath("sql")
        yield scripts.joinpath("orders.sql").read_text()
        if database == ORDERS.database:
            yield scripts.joinpath("rest_of_shop.sql").read_text()
