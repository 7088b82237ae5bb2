"""Composes parts of statements that are the same on both sides. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from psycopg2 import sql

from etl.model import Table

SECONDS_PER_DAY = 86_400
PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*")


def written(*names: str) -> str:
    """Return a name as statements that people paste have it: in quotes, unless it is plain."""
    return ".".join(name if PLAIN_NAME.fullmatch(name) else quoted(name) for name in names)


def quoted(name: str) -> str:
    """Return a name in quotes; sql.Identifier does the same where there is a connection."""
    return '"{}"'.format(name.replace('"', '""'))


def copy_format(table: Table) -> sql.SQL:
    return sql.SQL("binary" if table.is_binary else "text")


def same_key(table: Table, one: str, other: str) -> sql.Composable:
    return sql.SQL(" and ").join(
        sql.SQL("{} = {}").format(sql.Identifier(one, name), sql.Identifier(other, name)) for name in table.key
    )


def comma(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def compose_upsert(
    table: tuple[str, str],
    *,
    key: Sequence[str],
    values: Sequence[str],
    kept: Sequence[str] = (),
    stamp: str | None = None,
) -> str:
    """Compose a statement that inserts a row, or updates the row that has its key.

    Its parameters have the names of the columns. `key`, `values` and `kept` are columns: those of a unique key, those
    that an update replaces, and those that it leaves as they are. `stamp` is a column that gets the server's time in
    both cases.
    """
    stamps = [] if stamp is None else [stamp]
    columns = [*key, *values, *kept]
    parameters = [f"%({column})s" for column in columns] + ["clock_timestamp()" for _ in stamps]
    changes = [f"{written(column)} = excluded.{written(column)}" for column in values]
    changes += [f"{written(column)} = clock_timestamp()" for column in stamps]
    return (
        f"insert into {written(*table)} ({', '.join(map(written, [*columns, *stamps]))}) "
        f"values ({', '.join(parameters)}) "
        f"on conflict ({', '.join(map(written, key))}) do update set {', '.join(changes)}"
    )
