"""The contenders that are compared: the command of each for each kind of work, and where it puts the rows.

A contender has its own target database for each place. Only `prepare` runs statements; nothing here runs a command.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from psycopg2 import sql

from bench.data import Place, Sources, Table
from bench.stage import Stage, create_database, execute

PYTHON = shlex.quote(sys.executable)
COPIED = "changed"  # the temporary table that receives rows before they are merged


class Contender:
    """A program that copies tables; a command is None if it cannot do that work."""

    name = ""

    def __init__(self, stage: Stage, sources: Sources) -> None:
        self.stage, self.sources = stage, sources

    def database(self, place: Place) -> str:
        return f"{self.name.replace(' ', '_')}_{place.name}"

    def environment(self, place: Place) -> Mapping[str, str]:
        self.sources.url(place)
        return self.stage.urls(place.database, self.database(place))

    def prepare(self, place: Place) -> None:
        """Create the database for a place, with empty tables unless the contender creates them itself."""
        create_database(self.stage.target, self.database(place))
        for table in self.sources.tables(place):
            execute(self.stage.target.url(self.database(place)), table.create(table.name))

    def rows(self, table: Table) -> sql.Composable:
        """Compose the FROM clause that selects the rows of a table on the target."""
        return sql.Identifier(table.name)

    def load(self, place: Place) -> str:
        """Compose the command that loads all rows of a place."""
        raise NotImplementedError

    def fill(self, place: Place) -> str:
        """Compose the command that creates a copy before the timing starts; it may be another, faster one."""
        return self.load(place)

    def update(self, place: Place, since: str) -> str:
        """Compose the command that copies what changed; `since` is for contenders that keep no watermark."""
        raise NotImplementedError

    def reconcile(self, place: Place) -> str | None:  # noqa: ARG002 overridden where deletes can be copied
        """Compose the command that copies deletes."""
        return None


class Tidemark(Contender):
    """This project, with its default settings."""

    name = "tidemark"

    def prepare(self, place: Place) -> None:
        create_database(self.stage.target, self.database(place))

    def environment(self, place: Place) -> Mapping[str, str]:
        return {**super().environment(place), "ETL_TABLES": str(Path(__file__).with_name("tables.yml"))}

    def rows(self, table: Table) -> sql.Composable:
        return sql.SQL("raw.{} where _etl_deleted_at is null").format(sql.Identifier(table.name))

    def load(self, place: Place) -> str:
        return f"{PYTHON} -m etl run {self._names(place)}"

    def update(self, place: Place, since: str) -> str:  # noqa: ARG002 it keeps watermarks
        return self.load(place)

    def reconcile(self, place: Place) -> str:
        return f"{PYTHON} -m etl run --reconcile {self._names(place)}"

    def verify(self, place: Place) -> str:
        return f"{PYTHON} -m etl verify {self._names(place)}"

    @staticmethod
    def _names(place: Place) -> str:
        return shlex.join(place.table_names)


class Pipe(Contender):
    """psql's COPY TO piped into another psql's COPY FROM: generally taken as the fastest possible.

    It verifies nothing, keeps no progress, and must be given the time since which rows have changed.
    """

    format = "binary"

    def load(self, place: Place) -> str:
        return self._side_by_side(place, self._load)

    def update(self, place: Place, since: str) -> str:
        return " && ".join(
            self._pipe(
                self._read(table, sql.SQL("where updated_at >= {}::timestamptz").format(sql.Literal(since))),
                table.create(COPIED, "temporary table"),
                self._write(COPIED),
                _upsert(table),
            )
            for table in self.sources.tables(place)
        )

    def reconcile(self, place: Place) -> str:
        """Copy all keys, and delete the rows whose key is not among them."""
        return self._side_by_side(place, self._reconcile)

    def _side_by_side(self, place: Place, compose: Callable[[Sequence[Table]], str]) -> str:
        """Compose two parallel streams, as many as this project uses: the largest table, and the others."""
        tables = {table.name: table for table in self.sources.tables(place)}
        largest = tables.pop("order_items", None)
        if largest is None:
            return compose(list(tables.values()))
        return (
            f"({compose([largest])}) & first=$!\n({compose(list(tables.values()))}); second=$?\n"
            "wait $first && exit $second"
        )

    def _reconcile(self, tables: Sequence[Table]) -> str:
        return " && ".join(
            self._pipe(
                sql.SQL("copy (select {} from {}) to stdout with (format {})").format(
                    table.key, sql.Identifier(table.name), sql.SQL(self.format)
                ),
                sql.SQL("create temporary table keys (key bigint)"),
                self._write("keys"),
                sql.SQL("analyze keys"),
                sql.SQL("delete from {0} where not exists (select from keys where keys.key = {0}.{1})").format(
                    sql.Identifier(table.name), table.key
                ),
            )
            for table in tables
        )

    def _load(self, tables: Sequence[Table]) -> str:
        return " && ".join(self._pipe(self._read(table, sql.SQL("")), self._write(table.name)) for table in tables)

    def _read(self, table: Table, condition: sql.Composable) -> sql.Composable:
        return sql.SQL("copy (select {} from {} {}) to stdout with (format {})").format(
            table.values, sql.Identifier(table.name), condition, sql.SQL(self.format)
        )

    def _write(self, name: str) -> sql.Composable:
        return sql.SQL("copy {} from stdin with (format {})").format(sql.Identifier(name), sql.SQL(self.format))

    def _pipe(self, read: sql.Composable, *steps: sql.Composable) -> str:
        write = " ".join(f"-c {self._quoted(step)}" for step in steps)
        source, target = '"$SOURCE_DATABASE_URL"', '"$TARGET_DATABASE_URL"'
        return f"{self.stage.psql} {source} -c {self._quoted(read)} | {self.stage.psql} {target} {write}"

    def _quoted(self, statement: sql.Composable) -> str:
        return shlex.quote(self.stage.text(statement))


class BinaryPipe(Pipe):
    name = "psql binary"


class TextPipe(Pipe):
    name = "psql text"
    format = "text"

    def update(self, place: Place, since: str) -> str:
        """Copy many tables as one script, as pg_dump does: in two sessions, instead of two for each table."""
        if len(place.table_names) == 1:
            return super().update(place, since)
        changed = sql.SQL("where updated_at >= {}::timestamptz").format(sql.Literal(since))
        steps = []
        for table in self.sources.tables(place):
            before = sql.SQL("{}; {};").format(table.create(COPIED, "temporary table"), self._write(COPIED))
            after = sql.SQL("{}; drop table {};").format(_upsert(table), sql.Identifier(COPIED))
            steps += [
                _print(self.stage.text(before)),
                self._read(table, changed),
                _print("\\.\n" + self.stage.text(after)),
            ]
        read = " ".join(f"-c {self._quoted(step)}" for step in steps)
        return f'{self.stage.psql} "$SOURCE_DATABASE_URL" {read} | {self.stage.psql} "$TARGET_DATABASE_URL"'


class Tutorial(Contender):
    """The loader of a tutorial: rows pass through Python, and `max(updated_at)` is the watermark."""

    name = "tutorial"

    def load(self, place: Place) -> str:
        return f"{PYTHON} -m bench.tutorial {shlex.join(place.table_names)}"

    def fill(self, place: Place) -> str:
        """Fill the same tables with the pipe, which is several times faster: this contender has no other state."""
        return BinaryPipe(self.stage, self.sources).load(place)

    def update(self, place: Place, since: str) -> str:  # noqa: ARG002 it reads max(updated_at) of its own table
        return self.load(place)


def _print(text: str) -> sql.Composable:
    return sql.SQL("select {}").format(sql.Literal(text))


def _upsert(table: Table) -> sql.Composable:
    names = [sql.Identifier(name) for name, _ in table.columns[1:]]
    return sql.SQL("insert into {} select * from {} on conflict ({}) do update set {}").format(
        sql.Identifier(table.name),
        sql.Identifier(COPIED),
        table.key,
        sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(name) for name in names),
    )


CONTENDERS: Mapping[str, type[Contender]] = {
    kind.name.replace(" ", "-"): kind for kind in (Tidemark, BinaryPipe, TextPipe, Tutorial)
}
