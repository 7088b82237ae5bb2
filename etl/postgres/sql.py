"""Composes fragments of statements that both sides share, and reads statements from files. Uses no database."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import resources

from psycopg2 import sql

from etl.model import Table
from etl.text import escape_identifier

SECONDS_PER_DAY = 86_400
PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*")
# Words that cannot name a table or column without quotes ("SQL Key Words", appendix C of the manual).
RESERVED = frozenset([
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization", "binary",
    "both", "case", "cast", "check", "collate", "collation", "column", "concurrently", "constraint", "create",
    "cross", "current_catalog", "current_date", "current_role", "current_schema", "current_time",
    "current_timestamp", "current_user", "default", "deferrable", "desc", "distinct", "do", "else", "end",
    "except", "false", "fetch", "for", "foreign", "freeze", "from", "full", "grant", "group", "having", "ilike",
    "in", "initially", "inner", "intersect", "into", "is", "isnull", "join", "lateral", "leading", "left", "like",
    "limit", "localtime", "localtimestamp", "natural", "not", "notnull", "null", "offset", "on", "only", "or",
    "order", "outer", "overlaps", "placing", "primary", "references", "returning", "right", "select",
    "session_user", "similar", "some", "symmetric", "system_user", "table", "tablesample", "then", "to",
    "trailing", "true", "union", "unique", "user", "using", "variadic", "verbose", "when", "where", "window",
    "with",
])  # fmt: skip


def quote_name(*names: str) -> str:
    """Return a qualified name for statements that people paste, with quotes only where they are needed."""
    return ".".join(map(_quote, names))


def _quote(name: str) -> str:
    if is_plain(name):
        return name
    return '"{}"'.format(name.replace('"', '""')) if name.isprintable() else escape_identifier(name)


def is_plain(name: str) -> bool:
    """Return whether a name means the same with and without quotes."""
    return PLAIN_NAME.fullmatch(name) is not None and name not in RESERVED


def read_sql(package: str, name: str) -> str:
    """Return the statement in the file NAME.sql of a package."""
    return resources.files(package).joinpath(f"{name}.sql").read_text(encoding="utf-8")


def copy_format(table: Table) -> sql.SQL:
    """Return the COPY format of a table: binary where every column allows it."""
    return sql.SQL("binary" if table.is_binary else "text")


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
    changes = [f"{quote_name(column)} = excluded.{quote_name(column)}" for column in values]
    changes += [f"{quote_name(column)} = clock_timestamp()" for column in stamps]
    return (
        f"insert into {quote_name(*table)} ({', '.join(map(quote_name, [*columns, *stamps]))}) "
        f"values ({', '.join(parameters)}) "
        f"on conflict ({', '.join(map(quote_name, key))}) do update set {', '.join(changes)}"
    )
