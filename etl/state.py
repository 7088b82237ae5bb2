"""Keeps watermarks and the run ledger in schema `etl` of the target, and holds the run lock.

Functions that take a cursor join the caller's transaction; those that take a connection commit on their own.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.delete_gate import Counters
from etl.errors import LockHeldError, RowRefusedError, TableError
from etl.model import Counts, LoadState, Point, Progress, Table, TableResult
from etl.postgres import errors_of, transaction
from etl.schema_changes import SchemaChange

# Any constant serves, as long as every run on a database uses the same: "tide" in ASCII.
RUN_LOCK_KEY = 0x74696465

NAME_LOCK_HOLDER = """
    select a.pid, a.usename, coalesce(host(a.client_addr), 'local'), a.backend_start
    from pg_catalog.pg_locks as l
    join pg_catalog.pg_stat_activity as a on a.pid = l.pid
    where l.locktype = 'advisory' and l.granted and l.classid = 0 and l.objid = %s and l.objsubid = 1
        and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
"""
LEDGER_VERSION = "Ledger version 3."  # as the comment on etl.runs begins

START_TABLE = """
    insert into etl.table_runs as t (run_id, table_name, snapshot, watermark_before, fence_wait_seconds)
    values (%s, %s, %s, %s, %s)
    on conflict (run_id, table_name) do update set
        snapshot = excluded.snapshot, fence_wait_seconds = t.fence_wait_seconds + excluded.fence_wait_seconds,
        watermark_before = coalesce(t.watermark_before, excluded.watermark_before)
"""
ADD_BATCH = """
    update etl.table_runs set
        batches = batches + 1,
        rows_read = rows_read + %s,
        rows_inserted = rows_inserted + %s,
        rows_updated = rows_updated + %s,
        rows_deleted = rows_deleted + %s,
        rows_rejected = rows_rejected + %s,
        bytes_read = bytes_read + %s
    where run_id = %s and table_name = %s
"""
SAVE_PROGRESS = """
    insert into etl.watermarks (
        table_name, column_name, watermark, as_of, points, system_identifier, next_xid, raw_types,
        column_numbers, run_id
    )
    values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    on conflict (table_name) do update set
        column_name = excluded.column_name, watermark = excluded.watermark, as_of = excluded.as_of,
        points = excluded.points, system_identifier = excluded.system_identifier, next_xid = excluded.next_xid,
        raw_types = excluded.raw_types,
        column_numbers = excluded.column_numbers, run_id = excluded.run_id, changed_at = clock_timestamp()
"""
SAVE_LOAD = """
    insert into etl.loads (table_name, filenodes, signature, system_identifier, next_block, oldest_xid, run_id)
    values (%s, %s, %s, %s, %s, %s, %s)
    on conflict (table_name) do update set
        filenodes = excluded.filenodes, signature = excluded.signature, system_identifier = excluded.system_identifier,
        next_block = excluded.next_block, oldest_xid = excluded.oldest_xid, run_id = excluded.run_id,
        changed_at = clock_timestamp()
"""
SAVE_COUNTERS = """
    insert into etl.reconciliations (
        table_name, rows_inserted, rows_updated, rows_deleted, filenodes, stats_reset,
        server_started_at, listed_at, run_id
    )
    values (%s, %s, %s, %s, %s, %s, %s, %s, %s)
    on conflict (table_name) do update set
        rows_inserted = excluded.rows_inserted, rows_updated = excluded.rows_updated,
        rows_deleted = excluded.rows_deleted, filenodes = excluded.filenodes,
        stats_reset = excluded.stats_reset, server_started_at = excluded.server_started_at,
        listed_at = excluded.listed_at, run_id = excluded.run_id
"""
ADD_REJECT = """
    insert into etl.rejected_rows (table_name, key, row_text, sqlstate, message, run_id, first_run_id)
    values (%(table)s, %(key)s, %(row)s, %(sqlstate)s, %(message)s, %(run_id)s, %(run_id)s)
    on conflict (table_name, key) do update set
        row_text = excluded.row_text, sqlstate = excluded.sqlstate, message = excluded.message,
        run_id = excluded.run_id, rejected_at = clock_timestamp()
"""
# to_regclass() fails without the privilege on the schema.
MAY_READ_BUILDS = """
    select pg_catalog.has_schema_privilege(n.oid, 'usage') and pg_catalog.has_table_privilege(c.oid, 'select')
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'intermediate' and c.relname = 'dbt_builds'
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
        if not _has_ledger(cursor):
            with transaction(connection):
                cursor.execute(ledger)
        cursor.execute(BURY_RUNS)


def has_ledger(connection: Connection) -> bool:
    """Tell whether a run has prepared this target, with the ledger that this version reads."""
    with errors_of("target", "looking for the ledger"), connection.cursor() as cursor:
        return _has_ledger(cursor)


def _has_ledger(cursor: Cursor) -> bool:
    cursor.execute("select pg_catalog.obj_description(pg_catalog.to_regclass('etl.runs'), 'pg_class')")
    (comment,) = cursor.fetchone() or (None,)
    return str(comment or "").startswith(LEDGER_VERSION)


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
        cursor.execute(
            "update etl.table_runs set status = 'failed', ended_at = clock_timestamp(), error = coalesce(%s, error) "
            "where run_id = %s and status = 'running'",
            (error, run_id),
        )


def export_snapshot(connection: Connection) -> str:
    """Open a transaction whose snapshot of the target others can share while it stays open."""
    with errors_of("target", "exporting a snapshot"), connection.cursor() as cursor:
        cursor.execute("begin isolation level repeatable read, read only")
        cursor.execute("select pg_catalog.pg_export_snapshot()")
        row = cursor.fetchone()
    assert row is not None
    return str(row[0])


def read_progress(connection: Connection) -> dict[str, Progress]:
    """Return where every table known to the target stands."""
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


def start_table(
    connection: Connection,
    run_id: int,
    table_name: str,
    *,
    watermark: str | None,
    snapshot: str,
    fence_wait_seconds: float,
) -> None:
    """Record that a table's replication begins, or begins again."""
    with errors_of("target", "recording the table"), connection.cursor() as cursor:
        cursor.execute(START_TABLE, (run_id, table_name, snapshot, watermark, fence_wait_seconds))


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
        (
            counts.read,
            counts.inserted,
            counts.updated,
            counts.deleted,
            counts.rejected,
            counts.bytes,
            run_id,
            table_name,
        ),
    )


def save_progress(cursor: Cursor, run_id: int, table: Table, progress: Progress) -> None:
    """Store the watermark and the points, in the transaction of the table's last rows."""
    save_partial_progress(cursor, run_id, table, progress)
    finish_table(cursor, run_id, table.name, progress.watermark)


def finish_table(cursor: Cursor, run_id: int, table_name: str, watermark: str | None) -> None:
    """Record that a table succeeded."""
    cursor.execute(
        "update etl.table_runs set watermark_after = %s, status = 'succeeded', ended_at = clock_timestamp() "
        "where run_id = %s and table_name = %s",
        (watermark, run_id, table_name),
    )


def save_partial_progress(cursor: Cursor, run_id: int, table: Table, progress: Progress) -> None:
    """Store the watermark and the points of a table that the run has not done with yet."""
    cursor.execute(
        SAVE_PROGRESS,
        (
            table.name,
            progress.column,
            progress.watermark,
            progress.as_of,
            json.dumps([_write_point(point) for point in progress.points]),
            progress.system_identifier,
            progress.next_xid,
            json.dumps({column.name: column.raw_type for column in table.columns}),
            json.dumps({column.name: column.number for column in table.columns}),
            run_id,
        ),
    )


def read_columns(cursor: Cursor, table_name: str) -> tuple[dict[str, str], dict[str, int], bool]:
    """Return the type in `raw` and the attnum of each column of the source when the table was last replicated.

    And whether a load of the table is unfinished.
    """
    cursor.execute(
        "select w.raw_types, w.column_numbers, l.table_name is not null "
        "from (values (%s)) as t (table_name) left join etl.watermarks as w using (table_name) "
        "left join etl.loads as l using (table_name)",
        (table_name,),
    )
    raw_types, numbers, has_load = cursor.fetchone() or (None, None, False)
    return raw_types or {}, numbers or {}, has_load


def record_changes(cursor: Cursor, run_id: int, table_name: str, changes: Sequence[SchemaChange]) -> None:
    """Record what changed in a table's columns, in the transaction that follows it."""
    for change in changes:
        record_change(cursor, run_id, table_name, change.kind, change.detail, column_name=change.column_name)


def record_change(
    cursor: Cursor, run_id: int, table_name: str, kind: str, detail: str, *, column_name: str | None = None
) -> None:
    """Record one change of the source's schema."""
    cursor.execute(
        "insert into etl.schema_changes (run_id, table_name, kind, column_name, detail) values (%s, %s, %s, %s, %s)",
        (run_id, table_name, kind, column_name, detail),
    )


def record_missing_tables(connection: Connection, run_id: int, names: Sequence[str]) -> list[str]:
    """Record that the source no longer has these tables, and return those of which that was not known."""
    with errors_of("target", "recording missing tables"), connection.cursor() as cursor:
        cursor.execute(
            "select w.table_name from etl.watermarks as w where w.table_name = any (%s) "
            "and 'table_missing' is distinct from (select c.kind from etl.schema_changes as c "
            "where c.table_name = w.table_name and c.column_name is null order by c.change_id desc limit 1) order by 1",
            (list(names),),
        )
        new = [row[0] for row in cursor.fetchall()]
        for name in new:
            record_change(cursor, run_id, name, "table_missing", "gone from the source; raw keeps its rows")
    return new


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
        (
            table_name,
            load.filenodes,
            load.signature,
            load.system_identifier,
            load.next_block,
            load.oldest_xid,
            run_id,
        ),
    )


def delete_load(cursor: Cursor, table_name: str) -> None:
    """Forget a first load in ranges."""
    cursor.execute("delete from etl.loads where table_name = %s", (table_name,))


def save_counters(cursor: Cursor, run_id: int, table_name: str, counters: Counters) -> None:
    """Store what the source counted before a snapshot at which `raw` has the same keys."""
    cursor.execute(
        SAVE_COUNTERS,
        (
            table_name,
            counters.inserted,
            counters.updated,
            counters.deleted,
            counters.filenodes,
            counters.stats_reset,
            counters.server_started_at,
            counters.listed_at,
            run_id,
        ),
    )


def read_counters(connection: Connection) -> dict[str, Counters]:
    """Return for each table what the source counted when its keys were last known to equal those of `raw`."""
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


def read_built_run(cursor: Cursor) -> int | None:
    """Return the newest run that every incremental dbt model has read; None before the first build.

    Raises TableError when this role may not see that.
    """
    cursor.execute(MAY_READ_BUILDS)
    row = cursor.fetchone()
    if row is None:
        return None
    if row != (True,):
        raise TableError(
            "tombstones cannot be purged, for intermediate.dbt_builds tells which of them dbt has read: run on the "
            "target: grant usage on schema intermediate, and select on intermediate.dbt_builds, to the role of "
            "TARGET_DATABASE_URL; or set tombstone_days: null in tables.yml"
        )
    cursor.execute("select min(run_id) from intermediate.dbt_builds")
    built = cursor.fetchone()
    return built[0] if built else None


def forget_table(cursor: Cursor, table_name: str) -> None:
    """Forget the watermark, the rejects and the unfinished load of a table whose raw table is made anew."""
    for known in ("watermarks", "rejected_rows", "loads", "reconciliations"):
        cursor.execute(f"delete from etl.{known} where table_name = %s", (table_name,))


def add_reject(
    cursor: Cursor, run_id: int, table_name: str, *, key: Sequence[str], text: bytes, refusal: RowRefusedError
) -> int | None:
    """Keep a row that the target refused; return the last run that refused it before, None for a row new here."""
    parameters = {
        "table": table_name,
        "key": _write_key(key),
        "row": _as_ascii(text.decode("utf-8").removesuffix("\n")),
        "sqlstate": refusal.sqlstate,
        "message": _as_ascii(str(refusal)),
        "run_id": run_id,
    }
    cursor.execute(
        "select run_id from etl.rejected_rows where table_name = %s and key = %s", (table_name, parameters["key"])
    )
    before = cursor.fetchone()
    cursor.execute(ADD_REJECT, parameters)
    return before[0] if before else None


def count_rejects(cursor: Cursor, table_name: str) -> int:
    """Return how many rows of the table are refused at present."""
    cursor.execute("select count(*) from etl.rejected_rows where table_name = %s", (table_name,))
    row = cursor.fetchone()
    assert row is not None
    return int(row[0])


def read_rejected_keys(cursor: Cursor, table_name: str) -> tuple[tuple[str, ...], ...]:
    """Return the keys of the rows that are refused at present."""
    cursor.execute("select key from etl.rejected_rows where table_name = %s order by key", (table_name,))
    return tuple(tuple(json.loads(key)) for (key,) in cursor.fetchall())


def clear_rejects(cursor: Cursor, table_name: str, keys: Iterable[Sequence[str]]) -> None:
    """Forget rows that were refused and are not any more."""
    cursor.execute(
        "delete from etl.rejected_rows where table_name = %s and key = any (%s)",
        (table_name, [_write_key(key) for key in keys]),
    )


def record_retry(connection: Connection, run_id: int, table_name: str, error: str, retries: int) -> None:
    """Record that a table will be tried again, and why, also one that never started."""
    with errors_of("target", "recording the retry"), connection.cursor() as cursor:
        cursor.execute(
            "insert into etl.table_runs (run_id, table_name, error, retries) values (%s, %s, %s, %s) "
            "on conflict (run_id, table_name) do update set error = excluded.error, retries = excluded.retries",
            (run_id, table_name, _storable(connection, error), retries),
        )


def fail_table(connection: Connection, run_id: int, result: TableResult) -> None:
    """Record that a table failed, also one that never started.

    What a target of another encoding cannot hold is escaped, in the message and in the table's name.
    """
    name, error = (_storable(connection, text or "") for text in (result.table_name, result.error))
    with errors_of("target", "recording the failure"), connection.cursor() as cursor:
        cursor.execute(
            "insert into etl.table_runs (run_id, table_name, status, ended_at, error, retries) "
            "values (%s, %s, 'failed', clock_timestamp(), %s, %s) "
            "on conflict (run_id, table_name) do update set "
            "status = 'failed', ended_at = excluded.ended_at, error = excluded.error, retries = excluded.retries",
            (run_id, name, error, result.retries),
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


def _write_key(key: Sequence[str]) -> str:
    return json.dumps(list(key))


def _as_ascii(text: str) -> str:
    """Escape what a target of another encoding might not be able to hold."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def _storable(connection: Connection, text: str) -> str:
    return text if connection.info.parameter_status("server_encoding") == "UTF8" else _as_ascii(text)


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
