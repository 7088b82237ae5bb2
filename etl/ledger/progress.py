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
from etl.model import LoadState, Mark, Point, Progress, SourceIdentity, Table
from etl.policy.deletes import Counters
from etl.postgres.error_translation import errors_of
from etl.postgres.sql import compose_upsert

SOURCE_COLUMNS = ("system_identifier", "database_oid", "database_name", "schema_name", "timeline")
SAVE_PROGRESS = compose_upsert(
    ("etl", "watermarks"),
    key=("table_name",),
    values=(
        "column_name",
        "watermark",
        "as_of",
        "points",
        *SOURCE_COLUMNS,
        "next_xid",
        "refusal",
        "read_xid",
        "read_signature",
        "changes_counted",
        "has_read",
        "clock_ahead",
        "raw_types",
        "column_numbers",
        "run_id",
    ),
    stamp="changed_at",
)
SAVE_LOAD = compose_upsert(
    ("etl", "loads"),
    key=("table_name",),
    values=("filenodes", "signature", *SOURCE_COLUMNS, "next_block", "oldest_xid", "run_id"),
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
            "select table_name, column_name, watermark, as_of, points, next_xid, refusal, read_xid, read_signature,"
            f" changes_counted, has_read, clock_ahead, {', '.join(SOURCE_COLUMNS)} from etl.watermarks"
        )
        return {
            name: Progress(
                watermark=watermark,
                column=column,
                as_of=as_of,
                points=tuple(_read_point(point) for point in points),
                source=read_source(*source),
                next_xid=next_xid,
                refusal=refusal,
                read_mark=Mark(oldest_xid=read_xid, signature=read_signature) if read_xid else None,
                changes_counted=changes_counted,
                has_read=has_read,
                clock_ahead=clock_ahead,
            )
            for (
                name,
                column,
                watermark,
                as_of,
                points,
                next_xid,
                refusal,
                read_xid,
                read_signature,
                changes_counted,
                has_read,
                clock_ahead,
                *source,
            ) in cursor
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
            **_write_source(progress.source),
            "next_xid": progress.next_xid,
            "refusal": progress.refusal,
            "read_xid": progress.read_mark.oldest_xid if progress.read_mark else None,
            "read_signature": progress.read_mark.signature if progress.read_mark else None,
            "changes_counted": progress.changes_counted,
            "has_read": progress.has_read,
            "clock_ahead": progress.clock_ahead,
            "raw_types": json.dumps({column.name: column.raw_type for column in table.columns}),
            "column_numbers": json.dumps({column.name: column.number for column in table.columns}),
            "run_id": run_id,
        },
    )


def save_refusal(cursor: Cursor, table_name: str, refusal: str) -> None:
    """Store why the source of a table is refused, unless an earlier reason is stored; saving progress removes it."""
    cursor.execute(
        "update etl.watermarks set refusal = %s where table_name = %s and refusal is null", (refusal, table_name)
    )


def read_load(cursor: Cursor, table_name: str) -> LoadState | None:
    """Return how far a first load in ranges has come; None when there is none."""
    cursor.execute(
        f"select filenodes, signature, next_block, oldest_xid, {', '.join(SOURCE_COLUMNS)} from etl.loads "
        "where table_name = %s",
        (table_name,),
    )
    row = cursor.fetchone()
    if row is None:
        return None
    filenodes, signature, next_block, oldest_xid, *source = row
    return LoadState(
        filenodes=filenodes,
        signature=signature,
        source=read_source(*source),
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
            **_write_source(load.source),
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


def delete_counters(cursor: Cursor, table_name: str) -> None:
    """Forget when the keys of a table were last compared."""
    cursor.execute("delete from etl.reconciliations where table_name = %s", (table_name,))


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
    """Forget what was known of a table whose raw table is created again: watermark, rejects, load and scans."""
    for known in ("watermarks", "rejected_rows", "loads", "reconciliations", "net_scans"):
        cursor.execute(f"delete from etl.{known} where table_name = %s", (table_name,))


def read_source(
    system_identifier: str | None,
    database_oid: int | None,
    database_name: str | None,
    schema: str | None,
    timeline: int | None,
) -> SourceIdentity:
    """Return the source in columns SOURCE_COLUMNS of a row."""
    return SourceIdentity(
        system_identifier=system_identifier,
        database_oid=database_oid,
        database_name=database_name,
        schema=schema,
        timeline=timeline,
    )


def _write_source(source: SourceIdentity) -> dict[str, Any]:
    return {
        "system_identifier": source.system_identifier,
        "database_oid": source.database_oid,
        "database_name": source.database_name,
        "schema_name": source.schema,
        "timeline": source.timeline,
    }


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
