"""The read side: the catalog, the points of the fence, and the snapshot that the readers of tables share.

Begin at `Source`, the coordinating session of one attempt. Nothing here writes.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import psycopg2
import psycopg2.errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from etl.config import BYTES_PER_MB, Settings
from etl.errors import EtlError, SourceChangedError, UnavailableError
from etl.keys import foreign_keys
from etl.model import Activity, Point, Progress, Snapshot, Table, WatermarkKind
from etl.policy import fence
from etl.policy.column_types import TargetTypes
from etl.policy.deletes import Counters
from etl.policy.schema_changes import KnownTable
from etl.policy.table_order import Reference
from etl.postgres import sessions
from etl.postgres.error_translation import errors_of
from etl.postgres.throttle import Throttle
from etl.postgres.transactions import export_snapshot, single
from etl.source import catalog, identity, open_transactions, statements, storage
from etl.source.reader import Reader

DRAIN_POLL_SECONDS = 0.02
XIDS_OF_SNAPSHOT = """
    select pg_catalog.pg_snapshot_xmin(s)::text, pg_catalog.pg_snapshot_xmax(s)::text,
        pg_catalog.pg_postmaster_start_time()::text
    from pg_catalog.pg_current_snapshot() as s
"""
# Errors for the name of a snapshot whose transaction has ended; servers raise the last one since version 17.
SNAPSHOT_HAS_ENDED = (
    psycopg2.errors.InvalidParameterValue,
    psycopg2.errors.ObjectNotInPrerequisiteState,
    psycopg2.errors.UndefinedObject,
)
# Clocks are set back by up to one hour in autumn; a local time in that hour happens twice.
REPEATED_HOUR_SECONDS = 3600.0
# concat() uses the output function of the type, also where a user defined its cast to text.
POINT_EXPRESSIONS = {
    WatermarkKind.TIMESTAMPTZ: "pg_catalog.concat(%(instant)s::timestamptz)",
    WatermarkKind.TIMESTAMP: "pg_catalog.concat(%(repeated)s::timestamptz at time zone %(zone)s)",
    WatermarkKind.DATE: "pg_catalog.concat((%(repeated)s::timestamptz at time zone %(zone)s)::date)",
}


@dataclass(frozen=True, kw_only=True)
class Points:
    """The points of some tables, and the errors of tables that could not be read, such as one locked by DDL."""

    by_table: Mapping[str, Point] = field(default_factory=dict)
    errors: Mapping[str, EtlError] = field(default_factory=dict)
    has_clock: bool = True  # a standby has none before it has replayed a transaction


@dataclass(frozen=True, kw_only=True)
class Drain:
    """What was open after waiting at the fence."""

    activity: Activity
    waited_seconds: float


class Source:
    """The coordinating session on the source: listings in autocommit, then one exported snapshot."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = self._connect()
        try:
            with errors_of("source", "opening the run"), self._connection.cursor() as cursor:
                self.is_standby, self.may_see_all, encoding = _describe(cursor)
                self.identity = identity.read_identity(cursor, settings.tables.schema, is_standby=self.is_standby)
            if encoding == "SQL_ASCII":
                raise UnavailableError(
                    f"the database {settings.source_url.address} has encoding SQL_ASCII, so the encoding of its text "
                    "is unknown: copy it with pg_dump --encoding into a database with an encoding, and replicate that"
                )
        except BaseException:
            self._connection.close()
            raise
        self._readers: set[str] = set()  # tables that are still to be read at the snapshot
        self._lock = threading.Lock()
        rate = settings.max_source_mb_per_second
        self._throttle = Throttle(rate * BYTES_PER_MB) if rate else None
        self._sessions = sessions.Sessions(partial(sessions.connect_source, settings))  # for readers of tables

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._sessions.close()

    @property
    def margin_seconds(self) -> float:
        """How far points are set back; this also covers a clock that is set back by no more than that."""
        return self._settings.fence_margin_seconds

    def read_catalog(
        self, target: TargetTypes, names: Sequence[str], known: Mapping[str, KnownTable] | None = None
    ) -> catalog.Catalog:
        """Describe the configured tables as they are now; `names` limits them, `known` were replicated before."""
        with errors_of("source", "reading the catalog"), self._connection.cursor() as cursor:
            found = catalog.read_catalog(
                cursor, self._settings.tables, target, names, known or {}, source=self.identity
            )
        return _require_lookback(found) if self.is_standby else found

    def read_references(self, tables: Sequence[Table]) -> tuple[Reference, ...]:
        """Return which of these tables refer to which."""
        with errors_of("source", "reading the foreign keys"), self._connection.cursor() as cursor:
            return foreign_keys.read_references(cursor, tables)

    def take_points(self, tables: Sequence[Table]) -> Points:
        """Take a point for each table with a watermark: the values first, then the list of open transactions.

        This runs outside any transaction: inside one, the list would be as old as its snapshot.
        """
        values: dict[str, str | None] = {}
        errors: dict[str, EtlError] = {}
        with errors_of("source", "taking the points"), self._connection.cursor() as cursor:
            instant = self._read_clock(cursor)
            if instant is None:
                return Points(has_clock=False)
            by_clock = _clock_values(cursor, tables, instant)
            for table in tables:
                try:
                    values[table.name] = _point_value(cursor, table, by_clock)
                except EtlError as error:
                    errors[table.name] = error
            listed = open_transactions.list_activity(cursor, is_standby=self.is_standby)
        points = {
            name: Point(
                value=value,
                as_of=instant,
                transactions=listed.transactions,
                server_started_at=listed.server_started_at,
            )
            for name, value in values.items()
            if value is not None
        }
        return Points(by_table=points, errors=errors)

    def read_counters(self, tables: Sequence[Table]) -> dict[str, Counters]:
        """Return the counters of each table, by its name."""
        with errors_of("source", "reading the counters"), self._connection.cursor() as cursor:
            return storage.read_counters(cursor, tables)

    def drain(self, points: Sequence[Point]) -> Drain:
        """Wait up to `fence_wait_seconds` for the points to settle."""
        started = time.monotonic()
        with errors_of("source", "waiting at the fence"), self._connection.cursor() as cursor:
            while True:
                listed = open_transactions.list_activity(cursor, is_standby=self.is_standby)
                waited = time.monotonic() - started
                if fence.is_drained(points, listed) or waited >= self._settings.fence_wait_seconds:
                    return Drain(activity=listed, waited_seconds=waited)
                time.sleep(DRAIN_POLL_SECONDS)

    def export_snapshot(self, table_names: Collection[str]) -> Snapshot:
        """Open the transaction whose snapshot the readers of these tables share, until each has left it."""
        self._readers = set(table_names)
        with errors_of("source", "exporting the snapshot"), self._connection.cursor() as cursor:
            name = export_snapshot(cursor)
            cursor.execute(XIDS_OF_SNAPSHOT)
            oldest_xid, next_xid, server_started_at = cursor.fetchone() or ("", "", "")
        return Snapshot(
            name=name,
            source=self.identity,
            is_standby=self.is_standby,
            oldest_xid=oldest_xid,
            next_xid=next_xid,
            server_started_at=server_started_at,
            expires_at=time.monotonic() + self._settings.max_snapshot_seconds,
        )

    def leave_snapshot(self, table_name: str) -> None:
        """Record that a table no longer needs the snapshot; after the last table, end its transaction."""
        with self._lock:
            is_last = self._readers == {table_name}
            self._readers.discard(table_name)
        if is_last:
            with suppress(psycopg2.Error), self._connection.cursor() as cursor:  # a lost session holds nothing
                cursor.execute("rollback")

    def name_holders(self, progress: Progress) -> list[open_transactions.Holder]:
        """Return the transactions that keep the points of a table from settling."""
        with errors_of("source", "finding what holds a watermark back"), self._connection.cursor() as cursor:
            return open_transactions.name_holders(cursor, progress)

    def read_clock(self) -> dt.datetime:
        """Return the time of the source's clock."""
        return sessions.read_clock(self._connection, "source")

    @contextmanager
    def open_reader(self, table: Table, snapshot: Snapshot) -> Iterator[Reader]:
        """Open a reader of one table at a snapshot, in its own session, with a lock against rewrites until it closes.

        Raises SourceChangedError when the table was truncated or rewritten since its files were listed: such
        statements are not MVCC-safe, and an older snapshot sees the table empty (manual, "Caveats" of MVCC).
        """
        with self._sessions.take() as connection:
            with errors_of("source", table.label), connection.cursor() as cursor:
                cursor.execute("begin isolation level repeatable read, read only")
                _import_snapshot(cursor, table, snapshot)
                sessions.check_session(cursor, "source")
                cursor.execute(statements.lock_source(table))
                if storage.read_filenodes(cursor, table.oid) != table.filenodes:
                    raise SourceChangedError(
                        f"{table.label} was truncated or rewritten after the snapshot was taken; read again"
                    )
            reader = Reader(
                connection,
                table,
                snapshot,
                throttle=self._throttle,
                on_close=partial(self.leave_snapshot, table.name),
            )
            yield reader
            reader.close()

    def _connect(self) -> Connection:
        """Open a session that may stay idle in its transaction while other sessions read tables at its snapshot."""
        idle_seconds = self._settings.max_snapshot_seconds + self._settings.statement_timeout_seconds
        return sessions.connect_source(self._settings, idle_seconds=idle_seconds)

    def _read_clock(self, cursor: Cursor) -> dt.datetime | None:
        """Return the instant of the points to take, with the margin subtracted.

        A standby shows what was committed up to the last transaction that it replayed, so its own clock does not apply;
        the result is None if it has replayed no transaction since its start.
        """
        clock = "pg_last_xact_replay_timestamp" if self.is_standby else "clock_timestamp"
        cursor.execute(f"select pg_catalog.{clock}()")
        now: dt.datetime | None = single(cursor)
        return None if now is None else fence.set_back(now, self._settings.fence_margin_seconds)


def _import_snapshot(cursor: Cursor, table: Table, snapshot: Snapshot) -> None:
    try:
        cursor.execute("set transaction snapshot %s", (snapshot.name,))
    except SNAPSHOT_HAS_ENDED as error:
        raise SourceChangedError(
            f"{table.label}: the session that held the snapshot has ended on the source; read again"
        ) from error


def _require_lookback(found: catalog.Catalog) -> catalog.Catalog:
    """Refuse, on a standby, the tables that declare no lookback."""
    refusals = dict(found.refusals)
    for table in found.tables:
        if table.watermark is not None and not table.has_lookback:
            name = "lookback_rows" if table.watermark_kind is WatermarkKind.INTEGER else "lookback_seconds"
            refusals[table.name] = (
                f"{table.label}: the source is a standby, which cannot list the transactions open on its primary: "
                f"declare in tables.yml with {name} how late rows can arrive, or point SOURCE_DATABASE_URL at the "
                "primary"
            )
    tables = tuple(table for table in found.tables if table.name not in refusals)
    return replace(found, tables=tables, refusals=refusals)


def _describe(cursor: Cursor) -> tuple[bool, bool, str]:
    cursor.execute(
        "select pg_catalog.pg_is_in_recovery(), pg_catalog.pg_has_role('pg_read_all_stats', 'usage'),"
        " pg_catalog.current_setting('server_encoding')"
    )
    row = cursor.fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def _clock_values(
    cursor: Cursor, tables: Sequence[Table], instant: dt.datetime
) -> dict[tuple[WatermarkKind, str], str]:
    """Return the instant as a watermark, for each pair of kind and time zone that these tables have."""
    found = {}
    for kind, zone in {(t.watermark_kind, t.config.time_zone) for t in tables if t.watermark_kind}:
        if kind in POINT_EXPRESSIONS:
            repeated = fence.set_back(instant, REPEATED_HOUR_SECONDS)
            cursor.execute(
                f"select {POINT_EXPRESSIONS[kind]}", {"instant": instant, "repeated": repeated, "zone": zone}
            )
            found[kind, zone] = str(single(cursor))
    return found


def _point_value(cursor: Cursor, table: Table, by_clock: Mapping[tuple[WatermarkKind, str], str]) -> str | None:
    """Return the value of a table's point; None without a watermark, or for an integer column without rows."""
    if table.watermark_kind is None:
        return None
    if table.watermark_kind is not WatermarkKind.INTEGER:
        return by_clock[table.watermark_kind, table.config.time_zone]
    with errors_of("source", table.label):
        cursor.execute(statements.max_integer(table))
        largest: str | None = single(cursor)
    return largest
