"""Stores the progress of every table in schema `etl` of the target: watermark, load, last comparison of keys.

Functions that take a cursor join the caller's transaction; those that take a connection commit on their own.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.ledger import runs
from etl.model import LoadState, Point, Progress, Table
from etl.policy.deletes import Counters
from etl.postgres.error_translation import errors_of
from etl.postgres.sql import compose_upsert

SAVE_PROGRESS = compose_upsert(
    ("etl", "watermarks"),
    key=("table_name",),
    values=(
        "column_name",
        "watermark",
        "as_of",
        "points",
        "system_identifier",
        "next_xid",
        "raw_types",
        "column_numbers",
        "run_id",
    ),
    stamp="changed_at",
)
SAVE_LOAD = compose_upsert(
    ("etl", "loads"),
    key=("table_name",),
    values=("filenodes", "signature", "system_identifier", "next_block", "oldest_xid", "run_id"),
    stamp="changed_at",
)
SAVE_COUNTERS = compose_upsert(
    ("etl", "reconciliations"),
    key=("table_name",),
    values=(
        "rows_inserted",
        "rows_updated",
        "rows_deleted",
        "filenodes",
        "stats_reset",
        "server_started_at",
        "listed_at",
        "run_id",
    ),
)


def read_progress(connection: Connection) -> dict[str, Progress]:
    """Return the progress of every table known to the target."""
    with errors_of("target", "reading the watermarks"), connection.cursor() as cursor:
        cursor.execute(
            "select table_name, column_name, watermark, as_of, points, system_identifier, next_xid from etl.watermarks"
        )
        return {
            name: Progress(
                watermark=watermark,
                column=column,
                as_of=as_of,
                points=tuple(_read_point(point) for point in points),
                system_identifier=system_identifier,
                next_xid=next_xid,
            )
            for name, column, watermark, as_of, points, system_identifier, next_xid in cursor
        }


def save_progress(cursor: Cursor, run_id: int, table: Table, progress: Progress) -> None:
    """Store the watermark and the points, in the transaction of the table's last rows."""
    save_partial_progress(cursor, run_id, table, progress)
    runs.finish_table(cursor, run_id, table.name, progress.watermark)


def save_partial_progress(cursor: Cursor, run_id: int, table: Table, progress: Progress) -> None:
    """Store the watermark and the points of a table that the run has not finished."""
    cursor.execute(
        SAVE_PROGRESS,
        {
            "table_name": table.name,
            "column_name": progress.column,
            "watermark": progress.watermark,
            "as_of": progress.as_of,
            "points": json.dumps([_write_point(point) for point in progress.points]),
            "system_identifier": progress.system_identifier,
            "next_xid": progress.next_xid,
            "raw_types": json.dumps({column.name: column.raw_type for column in table.columns}),
            "column_numbers": json.dumps({column.name: column.number for column in table.columns}),
            "run_id": run_id,
        },
    )


def read_load(cursor: Cursor, table_name: str) -> LoadState | None:
    """Return how far a first load in ranges has come; None when there is none."""
    cursor.execute(
        "select filenodes, signature, system_identifier, next_block, oldest_xid from etl.loads where table_name = %s",
        (table_name,),
    )
    row = cursor.fetchone()
    if row is None:
        return None
    filenodes, signature, system_identifier, next_block, oldest_xid = row
    return LoadState(
        filenodes=filenodes,
        signature=signature,
        system_identifier=system_identifier,
        next_block=next_block,
        oldest_xid=oldest_xid,
    )


def save_load(cursor: Cursor, run_id: int, table_name: str, load: LoadState) -> None:
    """Store how far a first load has come, in the transaction of its rows."""
    cursor.execute(
        SAVE_LOAD,
        {
            "table_name": table_name,
            "filenodes": load.filenodes,
            "signature": load.signature,
            "system_identifier": load.system_identifier,
            "next_block": load.next_block,
            "oldest_xid": load.oldest_xid,
            "run_id": run_id,
        },
    )


def delete_load(cursor: Cursor, table_name: str) -> None:
    """Forget a first load in ranges."""
    cursor.execute("delete from etl.loads where table_name = %s", (table_name,))


def save_counters(cursor: Cursor, run_id: int, table_name: str, counters: Counters) -> None:
    """Store the source's counters from before a snapshot at which `raw` has the same keys."""
    cursor.execute(
        SAVE_COUNTERS,
        {
            "table_name": table_name,
            "rows_inserted": counters.inserted,
            "rows_updated": counters.updated,
            "rows_deleted": counters.deleted,
            "filenodes": counters.filenodes,
            "stats_reset": counters.stats_reset,
            "server_started_at": counters.server_started_at,
            "listed_at": counters.listed_at,
            "run_id": run_id,
        },
    )


def read_counters(connection: Connection) -> dict[str, Counters]:
    """Return each table's counters on the source when its keys were last known to equal those of `raw`."""
    with errors_of("target", "reading the reconciliations"), connection.cursor() as cursor:
        cursor.execute(
            "select table_name, rows_inserted, rows_updated, rows_deleted, filenodes, stats_reset, "
            "server_started_at, listed_at from etl.reconciliations"
        )
        return {
            name: Counters(
                inserted=inserted,
                updated=updated,
                deleted=deleted,
                filenodes=filenodes,
                stats_reset=stats_reset,
                server_started_at=server_started_at,
                listed_at=listed_at,
            )
            for name, inserted, updated, deleted, filenodes, stats_reset, server_started_at, listed_at in cursor
        }


def forget_table(cursor: Cursor, table_name: str) -> None:
    """Forget the watermark, the rejects and the unfinished load of a table whose raw table is created again."""
    for known in ("watermarks", "rejected_rows", "loads", "reconciliations"):
        cursor.execute(f"delete from etl.{known} where table_name = %s", (table_name,))


def _write_point(point: Point) -> dict[str, Any]:
    return {
        "value": point.value,
        "as_of": point.as_of.isoformat(),
        "transactions": sorted(point.transactions),
        "server_started_at": point.server_started_at.isoformat(),
    }


def _read_point(stored: dict[str, Any]) -> Point:
    return Point(
        value=stored["value"],
        as_of=dt.datetime.fromisoformat(stored["as_of"]),
        transactions=frozenset(stored["transactions"]),
        server_started_at=dt.datetime.fromisoformat(stored["server_started_at"]),
    )
