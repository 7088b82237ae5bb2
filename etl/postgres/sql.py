"""Composes parts of statements that are the same on both sides. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
