"""Keeps the run ledger in schema `etl` of the target.

Functions that take a cursor join the caller's transaction; those that take a connection commit on their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.errors import TableError
from etl.ledger import versions
from etl.ledger.rejects import as_ascii
from etl.model import Counts
from etl.policy.schema_changes import ChangeKind, SchemaChange, TableChangeKind
from etl.policy.source_identity import SourceChangeKind
from etl.postgres.error_translation import errors_of
from etl.postgres.sql import compose_upsert
from etl.postgres.transactions import single
from etl.results import TableResult

LOCK_WAIT_SECONDS = 15.0  # for the lock of the warehouse, where the caller has no settings
# No wait for the disk: the commit of the first batch makes this row durable too.
START_TABLE = """
    begin;
    set local synchronous_commit = off;
    insert into etl.table_runs as t (run_id, table_name, snapshot, watermark_before, fence_wait_seconds)
    select run_id, %s, %s, %s, %s from etl.runs where run_id = %s and status = 'running' for share
    on conflict (run_id, table_name) do update set
        snapshot = excluded.snapshot, status = 'running', ended_at = null,
        fence_wait_seconds = t.fence_wait_seconds + excluded.fence_wait_seconds,
        watermark_before = coalesce(t.watermark_before, excluded.watermark_before);
    commit
"""
RECORD_RETRY = compose_upsert(("etl", "table_runs"), key=("run_id", "table_name"), values=("error", "retries"))
FAIL_TABLE = compose_upsert(
    ("etl", "table_runs"), key=("run_id", "table_name"), values=("status", "error", "retries"), stamp="ended_at"
)
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
BURY_RUNS = """
    with dead as (
        update etl.runs set status = 'died', ended_at = clock_timestamp(), error = case
            when shared_by is null then 'the run vanished'
            else 'another run began before this one had ended'
        end
        where status = 'running'
        returning run_id
    )
    update etl.table_runs as t set status = 'died', ended_at = clock_timestamp()
    from dead
    where t.run_id = dead.run_id and t.status = 'running'
"""
# What runs have recorded of tables that they do not replicate any more.
ABSENCES: tuple[TableChangeKind, ...] = ("table_missing", "table_left_out")
LIST_ABSENCES = """
    select table_name, kind
    from (
        select distinct on (table_name) table_name, kind
        from etl.schema_changes where column_name is null
        order by table_name, change_id desc
    ) as last
    where kind = any (%s)
"""


def prepare(connection: Connection, lock_wait_seconds: float = LOCK_WAIT_SECONDS) -> None:
    """Upgrade the ledger to this release's version, and mark runs that vanished. Under the run lock.

    Commits on its own. Raises as `versions.upgrade` does.
    """
    versions.upgrade(connection, lock_wait_seconds)
    bury_runs(connection)


def bury_runs(connection: Connection) -> None:
    """Mark runs that have not ended as died: under the run lock, none of them is running."""
    with errors_of("target", "marking runs that vanished"), connection.cursor() as cursor:
        cursor.execute(BURY_RUNS)


def has_ledger(connection: Connection, *, may_be_older: bool = False) -> bool:
    """Tell whether a run has prepared this target.

    Raises ConfigurationError when the ledger has a version that this release does not know, and UnavailableError when
    it has an older one, unless `may_be_older`.
    """
    version = versions.read_version(connection)
    if version is not None and not may_be_older:
        versions.require_current(connection, version)
    return version is not None


def begin_run(connection: Connection, shared_by: str | None = None) -> int:
    """Record the start of a run and return its id; `shared_by` names the work that several processes share in it."""
    name = None if shared_by is None else _storable(connection, shared_by)
    with errors_of("target", "recording the run"), connection.cursor() as cursor:
        cursor.execute("insert into etl.runs (shared_by) values (%s) returning run_id", (name,))
        return int(single(cursor))


def is_running(connection: Connection, run_id: int) -> bool:
    """Tell whether a run has begun and not ended; under the run lock, in either form, that does not change."""
    with errors_of("target", "looking for the run"), connection.cursor() as cursor:
        cursor.execute("select exists (select from etl.runs where run_id = %s and status = 'running')", (run_id,))
        return bool(single(cursor))


def describe_shared_run(connection: Connection) -> str | None:
    """Describe the shared run that has begun and not ended; None when there is none.

    The ledger has to be there, in this release's version.
    """
    with errors_of("target", "looking for a shared run"), connection.cursor() as cursor:
        cursor.execute(
            "select run_id, shared_by, started_at from etl.runs where status = 'running' and shared_by is not null"
        )
        row = cursor.fetchone()
    return f"run {row[0]} of {row[1]}, begun at {row[2]:%Y-%m-%d %H:%M:%S %Z}" if row else None


def read_failed_tables(connection: Connection, run_id: int) -> list[str]:
    """Return the tables with which a run began and that have not succeeded in it, nor in a later run."""
    with errors_of("target", "reading what failed"), connection.cursor() as cursor:
        cursor.execute(
            "select t.table_name from etl.table_runs as t where t.run_id = %(run_id)s and not exists (select "
            "from etl.table_runs as s where s.run_id >= %(run_id)s and s.table_name = t.table_name "
            "and s.status = 'succeeded') order by 1",
            {"run_id": run_id},
        )
        return [row[0] for row in cursor.fetchall()]


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


def start_table(
    cursor: Cursor,
    run_id: int,
    table_name: str,
    *,
    watermark: str | None,
    snapshot: str,
    fence_wait_seconds: float,
) -> None:
    """Record that a table's replication begins, or begins again, in a transaction of its own.

    Of a run that has ended nothing is recorded: a thread may come to this after its run was interrupted.
    """
    cursor.execute(START_TABLE, (table_name, snapshot, watermark, fence_wait_seconds, run_id))


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


def finish_table(cursor: Cursor, run_id: int, table_name: str, watermark: str | None) -> None:
    """Record that a table succeeded."""
    cursor.execute(
        "update etl.table_runs set watermark_after = %s, status = 'succeeded', ended_at = clock_timestamp() "
        "where run_id = %s and table_name = %s",
        (watermark, run_id, table_name),
    )


def record_retry(connection: Connection, run_id: int, table_name: str, error: str, retries: int) -> None:
    """Record that a table will be retried, and why, even if it never started."""
    with errors_of("target", "recording the retry"), connection.cursor() as cursor:
        cursor.execute(
            RECORD_RETRY,
            {
                "run_id": run_id,
                "table_name": table_name,
                "error": _storable(connection, error),
                "retries": retries,
            },
        )


def fail_table(connection: Connection, run_id: int, result: TableResult) -> None:
    """Record that a table failed, even if it never started.

    What a target of another encoding cannot hold is escaped, in the message and in the table's name.
    """
    name, error = (_storable(connection, text or "") for text in (result.table_name, result.error))
    with errors_of("target", "recording the failure"), connection.cursor() as cursor:
        cursor.execute(
            FAIL_TABLE,
            {"run_id": run_id, "table_name": name, "status": "failed", "error": error, "retries": result.retries},
        )


def record_changes(cursor: Cursor, run_id: int, table_name: str, changes: Sequence[SchemaChange]) -> None:
    """Record what changed in a table's columns, in the transaction that follows it."""
    for change in changes:
        record_change(cursor, run_id, table_name, change.kind, change.detail, column_name=change.column_name)


def record_change(
    cursor: Cursor,
    run_id: int,
    table_name: str,
    kind: ChangeKind | TableChangeKind | SourceChangeKind,
    detail: str,
    *,
    column_name: str | None = None,
) -> None:
    """Record one change of the source's schema."""
    cursor.execute(
        "insert into etl.schema_changes (run_id, table_name, kind, column_name, detail) values (%s, %s, %s, %s, %s)",
        (run_id, table_name, kind, column_name, detail),
    )


def _storable(connection: Connection, text: str) -> str:
    return text if connection.info.parameter_status("server_encoding") == "UTF8" else as_ascii(text)


def read_absences(connection: Connection) -> dict[str, str]:
    """Return the tables last recorded as missing or left out, with the kind of that change.

    No names are passed, because the target's encoding may lack a character of one.
    """
    with errors_of("target", "reading the absent tables"), connection.cursor() as cursor:
        cursor.execute(LIST_ABSENCES, (list(ABSENCES),))
        return dict(cursor.fetchall())


def record_table_change(
    connection: Connection, run_id: int, table_name: str, kind: TableChangeKind, detail: str
) -> None:
    """Record what has become of a table, outside of any transaction."""
    with errors_of("target", "recording a change"), connection.cursor() as cursor:
        record_change(cursor, run_id, _storable(connection, table_name), kind, _storable(connection, detail))
