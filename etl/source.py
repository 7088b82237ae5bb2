"""The read side: the catalog, the points of the fence, the snapshot, and the rows.

Begin at `Source`, the coordinating session of one attempt; `open_reader` gives the sessions that read rows at
its snapshot. Nothing here writes.
"""

from __future__ import annotations

import datetime as dt
import io
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any

import psycopg2
import psycopg2.errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.sql import Composable

from etl import catalog, fence, key_ranges, postgres, statements
from etl.column_types import TargetTypes
from etl.config import Settings
from etl.delete_gate import Counters
from etl.errors import EtlError, SourceChangedError, TableError, UnavailableError
from etl.key_ranges import Comparison, Side
from etl.model import Activity, Point, Progress, Table, WatermarkKind
from etl.statements import BlockRange, Window

DRAIN_POLL_SECONDS = 0.02
# What a server answers to the name of a snapshot whose transaction has ended; the last one since version 17.
SNAPSHOT_IS_GONE = (
    psycopg2.errors.InvalidParameterValue,
    psycopg2.errors.ObjectNotInPrerequisiteState,
    psycopg2.errors.UndefinedObject,
)
# Clocks are set back by up to one hour in autumn; a local time in that hour happens twice.
REPEATED_HOUR_SECONDS = 3600.0
POINT_EXPRESSIONS = {
    WatermarkKind.TIMESTAMPTZ: "%(instant)s::timestamptz::text",
    WatermarkKind.TIMESTAMP: "(%(repeated)s::timestamptz at time zone %(zone)s)::text",
    WatermarkKind.DATE: "((%(repeated)s::timestamptz at time zone %(zone)s)::date)::text",
}

# A virtual transaction whose session has just ended stays on the list: not knowing counts as open. Sessions of
# other databases cannot write here; autovacuum workers have no user.
LIST_TRANSACTIONS = """
    select l.virtualxid
    from pg_catalog.pg_locks as l
    left join pg_catalog.pg_stat_activity as a on a.pid = l.pid
    where l.locktype = 'virtualxid'
        and l.pid <> pg_catalog.pg_backend_pid()
        and (a.pid is null or (a.usesysid is not null and a.datname = pg_catalog.current_database()))
"""
# A walsender is active from the start of its stream on, without a transaction of its own; it counts by xact_start.
LIST_STARTS = """
    select
        exists (select from pg_catalog.pg_prepared_xacts where database = pg_catalog.current_database()),
        least(
            min(a.xact_start),
            min(a.query_start) filter (where a.state = 'active' and a.backend_type is distinct from 'walsender')
        ),
        pg_catalog.pg_postmaster_start_time()
    from pg_catalog.pg_stat_activity as a
    where a.pid <> pg_catalog.pg_backend_pid()
        and a.usesysid is not null
        and a.datname = pg_catalog.current_database()
"""
NAME_HOLDERS = """
    select a.pid, a.usename::text, a.application_name, a.state,
        extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::float8 as age_seconds
    from pg_catalog.pg_stat_activity as a
    where a.pid <> pg_catalog.pg_backend_pid() and a.usesysid is not null
        and a.datname = pg_catalog.current_database()
        and (
            a.xact_start <= %(as_of)s
            or exists (
                select from pg_catalog.pg_locks as l
                where l.pid = a.pid and l.locktype = 'virtualxid' and l.virtualxid = any (%(transactions)s)
            )
        )
    union all
    select null, p.owner::text, p.gid, 'prepared',
        extract(epoch from pg_catalog.clock_timestamp() - p.prepared)::float8
    from pg_catalog.pg_prepared_xacts as p
    where p.database = pg_catalog.current_database()
    order by age_seconds desc nulls last
"""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A transaction that holds a watermark back; unknown parts need pg_read_all_stats."""

    pid: int | None  # None: a prepared transaction
    user: str | None
    application: str | None  # of a prepared transaction its global id
    state: str | None
    age_seconds: float | None  # of a prepared transaction since it was prepared


class Source:
    """The coordinating session on the source: listings in autocommit, then one exported snapshot."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = self._connect()
        try:
            postgres.refuse_transaction_pooler(self._connection, "source", self._connect)
            with postgres.errors_of("source", "opening the run"), self._connection.cursor() as cursor:
                self.system_identifier, self.is_standby, self.may_see_all, encoding = _identify(cursor)
            if encoding == "SQL_ASCII":
                raise UnavailableError(
                    f"the database {settings.source_url.address} has encoding SQL_ASCII, which does not say what its "
                    "text means: copy it with pg_dump --encoding into a database with an encoding, and replicate that"
                )
        except BaseException:
            self._connection.close()
            raise
        self.snapshot = ""
        self._readers: set[str] = set()  # tables that are still to be read at the snapshot
        self._lock = threading.Lock()
        self.fence_wait_seconds = 0.0
        self.has_clock = True  # a standby has none before it has replayed a transaction
        self._expires_at = float("inf")

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def margin_seconds(self) -> float:
        """By how much points are set back, which also covers a clock set back by as much."""
        return self._settings.fence_margin_seconds

    @property
    def is_expired(self) -> bool:
        """Tell whether the snapshot has been held for as long as the settings allow."""
        return time.monotonic() >= self._expires_at

    def read_catalog(self, target: TargetTypes, names: Sequence[str]) -> catalog.Catalog:
        """Describe the configured tables as they are now; `names` limits them."""
        with postgres.errors_of("source", "reading the catalog"), self._connection.cursor() as cursor:
            found = catalog.read_catalog(cursor, self._settings.tables, target, names)
        return _require_lookback(found) if self.is_standby else found

    def take_points(self, tables: Sequence[Table]) -> tuple[dict[str, Point], dict[str, EtlError]]:
        """Take a point for each table with a watermark: the values first, then the list of open transactions.

        Outside any transaction: inside one, the list would be as old as its snapshot. Returns the points, and the
        errors of the tables that could not be read, such as one locked by DDL.
        """
        values: dict[str, str | None] = {}
        errors: dict[str, EtlError] = {}
        with postgres.errors_of("source", "taking the points"), self._connection.cursor() as cursor:
            instant = self._read_clock(cursor)
            self.has_clock = instant is not None
            if instant is None:
                return {}, {}
            for table in tables:
                try:
                    values[table.name] = _point_value(cursor, table, instant)
                except EtlError as error:
                    errors[table.name] = error
            activity = self._list_activity(cursor)
        points = {
            name: Point(
                value=value,
                as_of=instant,
                transactions=activity.transactions,
                server_started_at=activity.server_started_at,
            )
            for name, value in values.items()
            if value is not None
        }
        return points, errors

    def read_counters(self, tables: Sequence[Table]) -> dict[str, Counters]:
        """Return what the source counts of each table."""
        with postgres.errors_of("source", "reading the counters"), self._connection.cursor() as cursor:
            return catalog.read_counters(cursor, tables)

    def drain(self, points: Sequence[Point]) -> Activity:
        """Wait up to `fence_wait_seconds` for the points to settle; return the last listing."""
        started = time.monotonic()
        with postgres.errors_of("source", "waiting at the fence"), self._connection.cursor() as cursor:
            while True:
                activity = self._list_activity(cursor)
                self.fence_wait_seconds = time.monotonic() - started
                if fence.is_drained(points, activity):
                    return activity
                if self.fence_wait_seconds >= self._settings.fence_wait_seconds:
                    return activity
                time.sleep(DRAIN_POLL_SECONDS)

    def export_snapshot(self, table_names: Collection[str]) -> None:
        """Open the transaction whose snapshot every reader of this attempt shares, until each has left it."""
        self._readers = set(table_names)
        with postgres.errors_of("source", "exporting the snapshot"), self._connection.cursor() as cursor:
            cursor.execute("begin isolation level repeatable read, read only")
            cursor.execute("select pg_catalog.pg_export_snapshot()")
            self.snapshot = _single(cursor)
        self._expires_at = time.monotonic() + self._settings.max_snapshot_seconds

    def leave_snapshot(self, table_name: str) -> None:
        """Say that a table needs the snapshot no more; with the last one, the source is free of it."""
        with self._lock:
            is_last = self._readers == {table_name}
            self._readers.discard(table_name)
        if is_last:
            with suppress(psycopg2.Error), self._connection.cursor() as cursor:  # lost: it holds nothing any more
                cursor.execute("rollback")

    def name_holders(self, progress: Progress) -> list[Holder]:
        """Name the transactions that keep the points of a table from settling."""
        if not progress.points:
            return []
        held = sorted(set().union(*(point.transactions for point in progress.points)))
        with postgres.errors_of("source", "naming what holds a watermark"), self._connection.cursor() as cursor:
            cursor.execute(NAME_HOLDERS, {"transactions": held, "as_of": progress.points[0].as_of})
            return [
                Holder(pid=pid, user=user, application=application, state=state, age_seconds=age)
                for pid, user, application, state, age in cursor
            ]

    def read_clock(self) -> dt.datetime:
        """Return the time of the source's clock."""
        with postgres.errors_of("source", "reading the clock"), self._connection.cursor() as cursor:
            cursor.execute("select pg_catalog.clock_timestamp()")
            now: dt.datetime = _single(cursor)
        return now

    @contextmanager
    def open_reader(self, table: Table) -> Iterator[Reader]:
        """Open a session that reads one table at the snapshot, protected from rewrites until it closes.

        Raises SourceChangedError when the table was truncated or rewritten since its files were listed: such
        statements are not MVCC-safe, and an older snapshot sees the table empty (manual, "Caveats" of MVCC).
        """
        connection = postgres.connect_source(self._settings)
        try:
            with postgres.errors_of("source", table.label), connection.cursor() as cursor:
                cursor.execute("begin isolation level repeatable read, read only")
                self._import_snapshot(cursor, table)
                postgres.check_session(cursor, "source")
                cursor.execute(statements.lock_source(table))
                if catalog.read_filenodes(cursor, table.oid) != table.filenodes:
                    raise SourceChangedError(
                        f"{table.label} was truncated or rewritten after the snapshot was taken; read again"
                    )
            yield Reader(connection, table, self.snapshot, on_close=partial(self.leave_snapshot, table.name))
        finally:
            connection.close()

    def _import_snapshot(self, cursor: Cursor, table: Table) -> None:
        try:
            cursor.execute("set transaction snapshot %s", (self.snapshot,))
        except SNAPSHOT_IS_GONE as error:
            raise SourceChangedError(
                f"{table.label}: the session that held the snapshot is gone from the source; read again"
            ) from error

    def _connect(self) -> Connection:
        """Open a session that may idle for as long as it holds the snapshot and tables are read in others."""
        idle_seconds = self._settings.max_snapshot_seconds + self._settings.statement_timeout_seconds
        return postgres.connect_source(self._settings, idle_seconds=idle_seconds)

    def _read_clock(self, cursor: Cursor) -> dt.datetime | None:
        """Return the instant of the points to take.

        A standby shows what was committed up to its replay, so its own clock means nothing; None before it has
        replayed any transaction since its start.
        """
        clock = "pg_last_xact_replay_timestamp" if self.is_standby else "clock_timestamp"
        cursor.execute(f"select pg_catalog.{clock}()")
        now: dt.datetime | None = _single(cursor)
        return None if now is None else fence.set_back(now, self._settings.fence_margin_seconds)

    def _list_activity(self, cursor: Cursor) -> Activity:
        """List what is open: virtual transactions first, so that one that prepares meanwhile shows in either.

        A standby cannot tell what is open on its primary: there the declared lookback has to cover it.
        """
        transactions = frozenset() if self.is_standby else _list_transactions(cursor)
        has_prepared, oldest_start, server_started_at = _list_starts(cursor)
        return Activity(
            transactions=transactions,
            has_prepared=has_prepared and not self.is_standby,
            oldest_start=None if self.is_standby else oldest_start,
            server_started_at=server_started_at,
        )


class Reader:
    """One table at one snapshot."""

    def __init__(self, connection: Connection, table: Table, snapshot: str, *, on_close: Callable[[], None]) -> None:
        self._connection = connection
        self._table = table
        self.snapshot = snapshot
        self._on_close = on_close

    def close(self) -> None:
        """Leave the snapshot and the lock on the table."""
        self._connection.close()
        self._on_close()

    def copy_out(self, table: Table, rows: Window | BlockRange, into: IO[bytes]) -> None:
        """Write rows to a file in COPY format; `table` says in which form, as the target wants it."""
        self.copy(statements.copy_out(table, rows), into)

    def copy_out_keys(self, rows: Window | BlockRange, into: IO[bytes]) -> None:
        """Write the keys of rows to a file in COPY text format."""
        self.copy(statements.copy_out_keys(self._table, rows), into)

    def text_of(self, window: Window) -> bytes:
        """Return the rows of a small window in COPY text format, in UTF-8."""
        return self._copied(statements.copy_out_text(self._table, window))

    def window_end(self, window: Window) -> tuple[str, ...]:
        """Return the order values of the last row of a window that was full."""
        return self._row(statements.window_end(self._table, window))

    def key_of(self, window: Window) -> tuple[str, ...]:
        """Return the key, as text, of the last row of a window that was full."""
        return self._row(statements.last_key(self._table, window))

    def lesser_watermark(self, one: str, other: str) -> str:
        """Return the lesser of two values of the watermark column."""
        return str(self._row(statements.lesser_watermark(self._table, one, other))[0])

    def last_sequence_value(self) -> int | None:
        """Return the last number of the watermark's sequence; None without one, or without the privilege."""
        statement = (
            "select case when pg_catalog.has_sequence_privilege(%s::oid, 'select, usage')"
            " then pg_catalog.pg_sequence_last_value(%s::oid) end"
        )
        with postgres.errors_of("source", self._table.label), self._connection.cursor() as cursor:
            cursor.execute(statement, [self._table.watermark_sequence] * 2)
            last: int | None = _single(cursor)
        return last

    def has_values(self, names: Sequence[str]) -> bool:
        """Tell whether any row has a value in any of these columns."""
        return bool(self._row(statements.has_values(self._table, names))[0])

    def has_null_watermark(self) -> bool:
        """Tell whether any row has no watermark."""
        return bool(self._row(statements.has_null_watermark(self._table))[0])

    def oldest_xid(self) -> str:
        """Return the transaction id, an xid8, that no row version written after this snapshot falls below."""
        return str(self._row("select pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())")[0])

    def next_xid(self) -> str:
        """Return the transaction id, an xid8, below which all transactions had begun at this snapshot."""
        return str(self._row("select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())")[0])

    def block_counts(self) -> list[int]:
        """Return the number of blocks of each partition, or of the table itself."""
        with postgres.errors_of("source", self._table.label), self._connection.cursor() as cursor:
            return catalog.read_block_counts(cursor, self._table.oid)

    def checksums(self, comparison: Comparison) -> dict[int, tuple[int, str]]:
        """Return for each range of keys that has rows how many, and a checksum."""
        statement = key_ranges.checksums(Side(table=self._table, is_source=True), comparison)
        with postgres.errors_of("source", self._table.label), self._connection.cursor() as cursor:
            cursor.execute(statement)
            return {number: (rows, checksum) for number, rows, checksum in cursor}

    def column_hashes(
        self, keys: Sequence[tuple[str, ...]], *, is_same_encoding: bool
    ) -> dict[tuple[str, ...], list[int]]:
        """Return for each of some keys the hashes of the row's columns."""
        side = Side(table=self._table, is_source=True)
        with postgres.errors_of("source", self._table.label), self._connection.cursor() as cursor:
            cursor.execute(key_ranges.column_hashes(side, keys, is_same_encoding=is_same_encoding))
            return {tuple(key): hashes for *key, hashes in cursor}

    @property
    def encoding(self) -> str | None:
        """The encoding of the source's database, in which hashes of text are taken."""
        return self._connection.info.parameter_status("server_encoding")

    def copy(self, statement: Composable, into: IO[bytes]) -> None:
        """Write what a COPY statement gives to a file."""
        with postgres.errors_of("source", self._table.label), self._connection.cursor() as cursor:
            cursor.copy_expert(statement, into)

    def _row(self, statement: str | Composable) -> tuple[Any, ...]:
        with postgres.errors_of("source", self._table.label), self._connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone()
        assert row is not None
        return tuple(row)

    def _copied(self, statement: Composable) -> bytes:
        buffer = io.BytesIO()
        self.copy(statement, buffer)
        return buffer.getvalue()


def check_progress(table: Table, progress: Progress, point: Point | None, source: Source, reader: Reader) -> None:
    """Refuse to go on from a watermark that belongs to another source or was overtaken backwards."""
    if progress.system_identifier not in (None, source.system_identifier):
        raise TableError(
            f"{table.label}: the watermark was taken on another source cluster (system identifier "
            f"{progress.system_identifier}, now {source.system_identifier}): point SOURCE_DATABASE_URL at the old "
            f"one, or load the table anew with `etl reset {table.name}`"
        )
    next_xid = reader.next_xid()
    if progress.next_xid is not None and int(next_xid) < int(progress.next_xid):
        raise TableError(
            f"{table.label}: the source is older than at the last run (its transactions have come to {next_xid}, and "
            f"had to {progress.next_xid}): a standby that lags has to catch up; after a restore from a backup, load "
            f"the table anew with `etl reset {table.name}`"
        )
    if table.watermark is None or progress.watermark is None or not source.has_clock:
        return
    if table.watermark_kind is WatermarkKind.INTEGER:
        _check_integer(table, progress.watermark, point, reader)
    elif point is not None and not source.is_standby:
        _check_clock(table, progress, point, source.margin_seconds)


def _check_integer(table: Table, watermark: str, point: Point | None, reader: Reader) -> None:
    """Tell a sequence that was restarted, which hands out numbers below the watermark, from rows that were removed."""
    if int(point.value if point else 0) >= int(watermark) - table.config.lookback_rows:
        return
    last = reader.last_sequence_value()
    if last is not None and last >= int(watermark):
        return
    found = "no rows" if point is None else f"max({table.watermark}) = {point.value}"
    raise TableError(
        f"{table.label}: the watermark is {watermark}, but the source has {found}, and its sequence "
        f"{'cannot tell' if last is None else f'is at {last}'}: if it was restarted, load the table anew with "
        f"`etl reset {table.name}`; if rows were removed, grant select on the sequence to the role of "
        "SOURCE_DATABASE_URL"
    )


def _check_clock(table: Table, progress: Progress, point: Point, margin_seconds: float) -> None:
    seconds = fence.seconds_set_back(progress, point)
    if seconds > margin_seconds + table.config.lookback_seconds:
        raise TableError(
            f"{table.label}: the source's clock is {seconds:.0f} s behind where it was at an earlier run, so rows "
            f"written since may be stamped below the watermark {progress.watermark}: declare lookback_seconds of "
            "more than that in tables.yml until the clock has caught up, or load the table anew with "
            f"`etl reset {table.name}`"
        )


def _require_lookback(found: catalog.Catalog) -> catalog.Catalog:
    """Refuse, on a standby, the tables that declare no lookback."""
    refusals = dict(found.refusals)
    for table in found.tables:
        if table.watermark is not None and not table.has_lookback:
            name = "lookback_rows" if table.watermark_kind is WatermarkKind.INTEGER else "lookback_seconds"
            refusals[table.name] = (
                f"{table.label}: the source is a standby, which cannot list the transactions open on its primary: "
                f"declare in tables.yml with {name} how far rows can come late, or point SOURCE_DATABASE_URL at the "
                "primary"
            )
    tables = tuple(table for table in found.tables if table.name not in refusals)
    return replace(found, tables=tables, refusals=refusals)


def _identify(cursor: Cursor) -> tuple[str, bool, bool, str]:
    cursor.execute(
        "select system_identifier::text, pg_catalog.pg_is_in_recovery(),"
        " pg_catalog.pg_has_role('pg_read_all_stats', 'usage'), pg_catalog.current_setting('server_encoding')"
        " from pg_catalog.pg_control_system()"
    )
    row = cursor.fetchone()
    assert row is not None
    return row[0], row[1], row[2], row[3]


def _list_transactions(cursor: Cursor) -> frozenset[str]:
    cursor.execute(LIST_TRANSACTIONS)
    return frozenset(row[0] for row in cursor)


def _list_starts(cursor: Cursor) -> tuple[bool, dt.datetime | None, dt.datetime]:
    cursor.execute(LIST_STARTS)
    row = cursor.fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def _point_value(cursor: Cursor, table: Table, instant: dt.datetime) -> str | None:
    """Return the value of a table's point; None without watermark, or for an integer column without rows."""
    if table.watermark_kind is None:
        return None
    if table.watermark_kind is WatermarkKind.INTEGER:
        with postgres.errors_of("source", table.label):
            cursor.execute(statements.max_integer(table))
            largest: str | None = _single(cursor)
        return largest
    parameters: Mapping[str, Any] = {
        "instant": instant,
        "repeated": fence.set_back(instant, REPEATED_HOUR_SECONDS),
        "zone": table.config.time_zone,
    }
    cursor.execute(f"select {POINT_EXPRESSIONS[table.watermark_kind]}", parameters)
    return str(_single(cursor))


def _single(cursor: Cursor) -> Any:
    row = cursor.fetchone()
    assert row is not None
    return row[0]
