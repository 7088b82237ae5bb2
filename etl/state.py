"""Keeps watermarks and the run ledger in schema `etl` of the target, and holds the run lock.

Functions that take a cursor join the caller's transaction; those that take a connection commit on their own.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.errors import LockHeldError, TableError
from etl.model import Counts, Point, Progress, TableResult
from etl.postgres import errors_of, transaction

# Any constant serves, as long as every run on a database uses the same: "tide" in ASCII.
RUN_LOCK_KEY = 0x74696465

NAME_LOCK_HOLDER = """
    select a.pid, a.usename, coalesce(host(a.client_addr), 'local'), a.backend_start
    from pg_catalog.pg_locks as l
    join pg_catalog.pg_stat_activity as a on a.pid = l.pid
    where l.locktype = 'advisory' and l.granted and l.classid = 0 and l.objid = %s and l.objsubid = 1
        and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
"""
START_TABLE = """
    insert into etl.table_runs (run_id, table_name, snapshot, watermark_before, fence_wait_seconds, retries)
    values (%s, %s, %s, %s, %s, %s)
    on conflict (run_id, table_name) do update set
        snapshot = excluded.snapshot, fence_wait_seconds = excluded.fence_wait_seconds, retries = excluded.retries
"""
ADD_BATCH = """
    update etl.table_runs set
        batches = batches + 1,
        rows_read = rows_read + %s,
        rows_inserted = rows_inserted + %s,
        rows_updated = rows_updated + %s,
        rows_deleted = rows_deleted + %s,
        bytes_read = bytes_read + %s
    where run_id = %s and table_name = %s
"""
SAVE_PROGRESS = """
    insert into etl.watermarks (table_name, column_name, watermark, points, system_identifier, run_id)
    values (%s, %s, %s, %s, %s, %s)
    on conflict (table_name) do update set
        column_name = excluded.column_name, watermark = excluded.watermark, points = excluded.points,
        system_identifier = excluded.system_identifier, run_id = excluded.run_id, changed_at = clock_timestamp()
"""
BURY_RUNS = """
    with dead as (
        update etl.runs set status = 'died', ended_at = clock_timestamp(), error = 'the run vanished'
        where status = 'running'
        returning run_id
    )
    update etl.table_runs as t set status = 'died', ended_at = clock_timestamp()
    from dead
    where t.run_id = dead.run_id and t.status = 'running'
"""


@contextmanager
def run_lock(connection: Connection, wait_seconds: float) -> Iterator[None]:
    """Hold the lock that lets one run at a time work on a target; the server frees it with the session.

    Raises LockHeldError, naming the holder, after `wait_seconds`.
    """
    with errors_of("target", "taking the run lock"), connection.cursor() as cursor:
        cursor.execute("select pg_catalog.current_setting('lock_timeout')")
        usual = cursor.fetchone()
        cursor.execute(
            "select pg_catalog.set_config('lock_timeout', %s, false)", (f"{int(wait_seconds * 1000) or 1}ms",)
        )
        try:
            cursor.execute("select pg_catalog.pg_advisory_lock(%s)", (RUN_LOCK_KEY,))
        except psycopg2.errors.LockNotAvailable as error:
            raise LockHeldError(_describe_holder(cursor, wait_seconds)) from error
        cursor.execute("select pg_catalog.set_config('lock_timeout', %s, false)", usual)
    try:
        yield
    finally:
        with suppress(psycopg2.Error), connection.cursor() as cursor:
            cursor.execute("select pg_catalog.pg_advisory_unlock(%s)", (RUN_LOCK_KEY,))


def prepare(connection: Connection) -> None:
    """Create the schemas and the ledger where they are missing; mark runs that vanished. Under the run lock."""
    ledger = resources.files("etl").joinpath("ledger.sql").read_text(encoding="utf-8")
    with errors_of("target", "preparing the ledger"), connection.cursor() as cursor:
        if not has_ledger(connection):
            with transaction(connection):
                cursor.execute(ledger)
        cursor.execute(BURY_RUNS)


def has_ledger(connection: Connection) -> bool:
    """Tell whether a run has ever prepared this target."""
    with errors_of("target", "looking for the ledger"), connection.cursor() as cursor:
        cursor.execute(
            "select pg_catalog.to_regclass('etl.watermarks') is not null and to_regclass('etl.runs') is not null"
        )
        row = cursor.fetchone()
    return bool(row and row[0])


def begin_run(connection: Connection) -> int:
    """Record the start of a run and return its id."""
    with errors_of("target", "recording the run"), connection.cursor() as cursor:
        cursor.execute("insert into etl.runs default values returning run_id")
        row = cursor.fetchone()
    assert row is not None
    return int(row[0])


def end_run(connection: Connection, run_id: int, error: str | None) -> None:
    """Record how a run ended."""
    status = "failed" if error else "succeeded"
    with errors_of("target", "recording the run"), connection.cursor() as cursor:
        cursor.execute(
            "update etl.runs set status = %s, ended_at = clock_timestamp(), error = %s "
            "where run_id = %s and status = 'running'",
            (status, error, run_id),
        )


def read_progress(connection: Connection) -> dict[str, Progress]:
    """Return where every table known to the target stands."""
    with errors_of("target", "reading the watermarks"), connection.cursor() as cursor:
        cursor.execute("select table_name, column_name, watermark, points, system_identifier from etl.watermarks")
        return {
            name: Progress(
                watermark=watermark,
                column=column,
                points=tuple(_read_point(point) for point in points),
                system_identifier=system_identifier,
            )
            for name, column, watermark, points, system_identifier in cursor
        }


def start_table(
    connection: Connection,
    run_id: int,
    table_name: str,
    *,
    watermark: str | None,
    snapshot: str,
    fence_wait_seconds: float,
    retries: int,
) -> None:
    """Record that a table's replication begins, or begins again."""
    with errors_of("target", "recording the table"), connection.cursor() as cursor:
        cursor.execute(START_TABLE, (run_id, table_name, snapshot, watermark, fence_wait_seconds, retries))


def guard_run(cursor: Cursor, run_id: int) -> None:
    """Make the batch in hand commit only if its run still holds the target.

    A run that lost its lock is marked as died by the next one, which waits for this row lock; afterwards the
    old run's batches fail here.
    """
    cursor.execute("select status from etl.runs where run_id = %s for share", (run_id,))
    row = cursor.fetchone()
    if row is None or row[0] != "running":
        raise TableError(f"run {run_id} lost its lock and another run has taken over; this batch is not written")


def add_batch(cursor: Cursor, run_id: int, table_name: str, counts: Counts) -> None:
    """Add a batch to the ledger, in its own transaction."""
    cursor.execute(
        ADD_BATCH,
        (counts.read, counts.inserted, counts.updated, counts.deleted, counts.bytes, run_id, table_name),
    )


def save_progress(cursor: Cursor, run_id: int, table_name: str, progress: Progress) -> None:
    """Store the watermark and the points, in the transaction of the table's last rows."""
    points = json.dumps([_write_point(point) for point in progress.points])
    cursor.execute(
        SAVE_PROGRESS,
        (table_name, progress.column, progress.watermark, points, progress.system_identifier, run_id),
    )
    cursor.execute(
        "update etl.table_runs set watermark_after = %s, status = 'succeeded', ended_at = clock_timestamp(), "
        "error = null where run_id = %s and table_name = %s",
        (progress.watermark, run_id, table_name),
    )


def fail_table(connection: Connection, run_id: int, result: TableResult) -> None:
    """Record that a table failed, also one that never started."""
    with errors_of("target", "recording the failure"), connection.cursor() as cursor:
        cursor.execute(
            "insert into etl.table_runs (run_id, table_name, status, ended_at, error, retries) "
            "values (%s, %s, 'failed', clock_timestamp(), %s, %s) "
            "on conflict (run_id, table_name) do update set "
            "status = 'failed', ended_at = excluded.ended_at, error = excluded.error, retries = excluded.retries",
            (run_id, result.table_name, result.error, result.retries),
        )


def _describe_holder(cursor: Cursor, wait_seconds: float) -> str:
    cursor.execute(NAME_LOCK_HOLDER, (RUN_LOCK_KEY,))
    row = cursor.fetchone()
    holder = (
        "a run that has just ended"
        if row is None
        else (f"pid {row[0]}, user {row[1]}, from {row[2]}, connected since {row[3]:%Y-%m-%d %H:%M:%S %Z}")
    )
    return (
        f"another run is at work on this target ({holder}); waited {wait_seconds:g} s: "
        "run again once it has ended, or wait longer with ETL_LOCK_WAIT_SECONDS"
    )


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
