"""Stores the rows that the target rejected, in the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from psycopg2.extensions import cursor as Cursor

from etl.errors import RowRefusedError
from etl.postgres.sql import compose_upsert

ADD_REJECT = compose_upsert(
    ("etl", "rejected_rows"),
    key=("table_name", "key"),
    values=("row_text", "sqlstate", "message", "run_id"),
    kept=("first_run_id",),
    stamp="rejected_at",
)


def add_reject(
    cursor: Cursor, run_id: int, table_name: str, *, key: Sequence[str], text: bytes, refusal: RowRefusedError
) -> int | None:
    """Store a row that the target rejected; return the last run that rejected it before, None for a new one."""
    parameters = {
        "table_name": table_name,
        "key": _write_key(key),
        "row_text": as_ascii(text.decode("utf-8").removesuffix("\n")),
        "sqlstate": refusal.sqlstate,
        "message": as_ascii(str(refusal)),
        "run_id": run_id,
        "first_run_id": run_id,
    }
    cursor.execute(
        "select run_id from etl.rejected_rows where table_name = %s and key = %s", (table_name, parameters["key"])
    )
    before = cursor.fetchone()
    cursor.execute(ADD_REJECT, parameters)
    return before[0] if before else None


def count_rejects(cursor: Cursor, table_name: str) -> int:
    """Return how many rows of the table are rejected at present."""
    cursor.execute("select count(*) from etl.rejected_rows where table_name = %s", (table_name,))
    row = cursor.fetchone()
    assert row is not None
    return int(row[0])


def read_rejected_keys(cursor: Cursor, table_name: str) -> tuple[tuple[str, ...], ...]:
    """Return the keys of the rows that are rejected at present."""
    cursor.execute("select key from etl.rejected_rows where table_name = %s order by key", (table_name,))
    return tuple(read_key(key) for (key,) in cursor.fetchall())


def clear_rejects(cursor: Cursor, table_name: str, keys: Iterable[Sequence[str]]) -> None:
    """Forget rows that are no longer rejected."""
    cursor.execute(
        "delete from etl.rejected_rows where table_name = %s and key = any (%s)",
        (table_name, [_write_key(key) for key in keys]),
    )


def read_key(text: str) -> tuple[str, ...]:
    """Return the key that `etl.rejected_rows` holds as text."""
    return tuple(json.loads(text))


def _write_key(key: Sequence[str]) -> str:
    return json.dumps(list(key))


def as_ascii(text: str) -> str:
    """Escape what a target of another encoding might not be able to hold."""
    return text.encode("ascii", "backslashreplace").decode("ascii")
