"""The read side: the catalog, the points of the fence, the snapshot, and the rows.

Begin at `Source`, the coordinating session of one attempt; `open_reader` gives the sessions that read rows at
its snapshot. Nothing here writes.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl import catalog, fence, postgres, statements
from etl.config import Settings
from etl.errors import SourceChangedError, TableError, UnavailableError
from etl.model import Activity, Point, Progress, Table, WatermarkKind
from etl.statements import Window

DRAIN_POLL_SECONDS = 0.02
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
LIST_STARTS = """
    select
        exists (select from pg_catalog.pg_prepared_xacts where database = pg_catalog.current_database()),
        least(min(a.xact_start), min(a.query_start) filter (where a.state = 'active')),
        pg_catalog.pg_postmaster_start_time()
    from pg_catalog.pg_stat_activity as a
    where a.pid <> pg_catalog.pg_backend_pid()
        and a.usesysid is not null
        and a.datname = pg_catalog.current_database()
"""
NAME_HOLDERS = """
    select a.pid, a.usename, a.application_name, a.state,
        extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::float8
    from pg_catalog.pg_locks as l
    join pg_catalog.pg_stat_activity as a on a.pid = l.pid
    where l.locktype = 'virtualxid' and l.virtualxid = any (%s)
    order by a.xact_start
"""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A session whose transaction holds a watermark back; unknown parts need pg_read_all_stats."""

    pid: int
    user: str | None
    application: str | None
    state: str | None
    age_seconds: float | None


class Source:
    """The coordinating session on the source: listings in autocommit, then one exported snapshot."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = postgres.connect_source(settings, idle_seconds=settings.snapshot_timeout_seconds)
        try:
            with postgres.errors_of("source", "opening the run"), self._connection.cursor() as cursor:
                self.system_identifier, is_standby = _identify(cursor)
        except BaseException:
            self._connection.close()
            raise
        if is_standby:
            self._connection.close()
            raise UnavailableError(
                f"the source {settings.source_url.address} is a standby, which cannot list the transactions "
                "open on its primary: point SOURCE_DATABASE_URL at the primary"
            )
        self.snapshot = ""
        self.fence_wait_seconds = 0.0

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def read_catalog(self, known_to_target: Set[str], names: Sequence[str]) -> catalog.Catalog:
        """Describe the configured tables as they are now; `names` limits them."""
        with postgres.errors_of("source", "reading the catalog"), self._connection.cursor() as cursor:
            return catalog.read_catalog(cursor, self._settings.tables, known_to_target, names)

    def take_points(self, tables: Sequence[Table]) -> dict[str, Point]:
        """Take a point for each table with a watermark: the values first, then the list of open transactions.

        Outside any transaction: inside one, the list would be as old as its snapshot.
        """
        with postgres.errors_of("source", "taking the points"), self._connection.cursor() as cursor:
            cursor.execute("select pg_catalog.clock_timestamp()")
            now = _single(cursor)
            instant = fence.set_back(now, self._settings.fence_margin_seconds)
            counted = [table for table in tables if table.watermark_kind is WatermarkKind.INTEGER]
            values = _largest_integers(cursor, counted)
            values |= {table.name: _clock_value(cursor, table, instant) for table in tables if _is_clocked(table)}
            activity = _list_activity(cursor)
        return {
            name: Point(
                value=value,
                as_of=instant,
                transactions=activity.transactions,
                server_started_at=activity.server_started_at,
            )
            for name, value in values.items()
            if value is not None
        }

    def drain(self, points: Sequence[Point]) -> Activity:
        """Wait up to `fence_wait_seconds` for the points to settle; return the last listing."""
        started = time.monotonic()
        with postgres.errors_of("source", "waiting at the fence"), self._connection.cursor() as cursor:
            while True:
                activity = _list_activity(cursor)
                self.fence_wait_seconds = time.monotonic() - started
                if fence.is_drained(points, activity):
                    return activity
                if self.fence_wait_seconds >= self._settings.fence_wait_seconds:
                    return activity
                time.sleep(DRAIN_POLL_SECONDS)

    def export_snapshot(self) -> None:
        """Open the transaction whose snapshot every reader of this attempt shares; it stays open until close."""
        with postgres.errors_of("source", "exporting the snapshot"), self._connection.cursor() as cursor:
            cursor.execute("begin isolation level repeatable read, read only")
            cursor.execute("select pg_catalog.pg_export_snapshot()")
            self.snapshot = _single(cursor)

    def name_holders(self, progress: Progress) -> list[Holder]:
        """Name the sessions whose transactions keep the points of a table from settling."""
        held = sorted(set().union(*(point.transactions for point in progress.points)))
        with postgres.errors_of("source", "naming what holds a watermark"), self._connection.cursor() as cursor:
            cursor.execute(NAME_HOLDERS, (held,))
            return [
                Holder(pid=pid, user=user, application=application, state=state, age_seconds=age)
                for pid, user, application, state, age in cursor
            ]

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
                cursor.execute("set transaction snapshot %s", (self.snapshot,))
                cursor.execute(statements.lock_source(table))
                if catalog.read_filenodes(cursor, table.oid) != table.filenodes:
                    raise SourceChangedError(
                        f"{table.label} was truncated or rewritten after the snapshot was taken; read again"
                    )
            yield Reader(connection, table)
        finally:
            connection.close()


class Reader:
    """One table at one snapshot."""

    def __init__(self, connection: Connection, table: Table) -> None:
        self._connection = connection
        self._table = table

    def copy_out(self, window: Window, into: IO[bytes]) -> None:
        """Write the rows of a window to a file in COPY format."""
        with postgres.errors_of("source", self._table.label), self._connection.cursor() as cursor:
            cursor.copy_expert(statements.copy_out(self._table, window), into)

    def window_end(self, window: Window) -> tuple[str, ...]:
        """Return the order values of the last row of a window that was full."""
        with postgres.errors_of("source", self._table.label), self._connection.cursor() as cursor:
            cursor.execute(statements.window_end(self._table, window))
            row = cursor.fetchone()
        assert row is not None
        return tuple(row)

    def checksum(self) -> tuple[int, str]:
        """Return the number of rows and a checksum of their text."""
        with postgres.errors_of("source", self._table.label), self._connection.cursor() as cursor:
            cursor.execute(statements.count_source(self._table))
            rows, checksum = cursor.fetchone() or (0, "0")
        return rows, checksum


def check_progress(table: Table, progress: Progress, point: Point | None, system_identifier: str) -> None:
    """Refuse to go on from a watermark that belongs to another source or was overtaken backwards."""
    if progress.system_identifier not in (None, system_identifier):
        raise TableError(
            f"{table.label}: the watermark was taken on another source cluster (system identifier "
            f"{progress.system_identifier}, now {system_identifier}): point SOURCE_DATABASE_URL at the old one, or "
            f"drop raw.{table.name} to load it anew"
        )
    if table.watermark_kind is not WatermarkKind.INTEGER or progress.watermark is None:
        return
    if point is None or int(point.value) < int(progress.watermark):
        found = "no rows" if point is None else f"max({table.watermark}) = {point.value}"
        raise TableError(
            f"{table.label}: the watermark is {progress.watermark}, but the source has {found}: "
            f"the sequence was restarted or rows were removed; drop raw.{table.name} to load it anew"
        )


def _identify(cursor: Cursor) -> tuple[str, bool]:
    cursor.execute("select system_identifier::text, pg_catalog.pg_is_in_recovery() from pg_catalog.pg_control_system()")
    row = cursor.fetchone()
    assert row is not None
    return row[0], row[1]


def _list_activity(cursor: Cursor) -> Activity:
    """List what is open: virtual transactions first, so that one that prepares meanwhile shows in either."""
    cursor.execute(LIST_TRANSACTIONS)
    transactions = frozenset(row[0] for row in cursor)
    cursor.execute(LIST_STARTS)
    row = cursor.fetchone()
    assert row is not None
    has_prepared, oldest_start, server_started_at = row
    return Activity(
        transactions=transactions,
        has_prepared=has_prepared,
        oldest_start=oldest_start,
        server_started_at=server_started_at,
    )


def _is_clocked(table: Table) -> bool:
    return table.watermark_kind in POINT_EXPRESSIONS


def _clock_value(cursor: Cursor, table: Table, instant: dt.datetime) -> str:
    assert table.watermark_kind is not None
    parameters: Mapping[str, Any] = {
        "instant": instant,
        "repeated": fence.set_back(instant, REPEATED_HOUR_SECONDS),
        "zone": table.time_zone,
    }
    cursor.execute(f"select {POINT_EXPRESSIONS[table.watermark_kind]}", parameters)
    return str(_single(cursor))


def _largest_integers(cursor: Cursor, tables: Sequence[Table]) -> dict[str, str | None]:
    if not tables:
        return {}
    cursor.execute(statements.max_integers(tables))
    row = cursor.fetchone()
    assert row is not None
    return {table.name: value for table, value in zip(tables, row, strict=True)}


def _single(cursor: Cursor) -> Any:
    row = cursor.fetchone()
    assert row is not None
    return row[0]
