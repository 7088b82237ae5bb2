"""Transactions and savepoints of a session in autocommit, and the snapshots that sessions share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.errors import EtlError


def single(cursor: Cursor) -> Any:
    """Return the value of a statement that returns one row with one column."""
    row = cursor.fetchone()
    assert row is not None
    return row[0]


def export_snapshot(cursor: Cursor) -> str:
    """Open a read-only transaction; return the name of its snapshot, which others can share while it stays open."""
    cursor.execute("begin isolation level repeatable read, read only")
    cursor.execute("select pg_catalog.pg_export_snapshot()")
    return str(single(cursor))


@contextlib.contextmanager
def savepoint(cursor: Cursor, name: str) -> Iterator[None]:
    """Run a block inside a transaction; if it raises EtlError, undo only the block and raise the error again."""
    cursor.execute(f"savepoint {name}")
    try:
        yield
    except EtlError:
        with contextlib.suppress(psycopg2.Error):  # if the connection is lost, the first error is raised
            cursor.execute(f"rollback to savepoint {name}")
        raise
    cursor.execute(f"release savepoint {name}")


@contextlib.contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Run a block in one transaction of an autocommit session: commit at its end, roll back on any error."""
    with connection.cursor() as cursor:
        cursor.execute("begin")
        try:
            yield
        except BaseException:
            with contextlib.suppress(psycopg2.Error):
                cursor.execute("rollback")
            raise
        cursor.execute("commit")
