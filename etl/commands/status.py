"""Reports the state of each table: its watermark, how old that is, what holds it back, and what was rejected."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from etl.config import Settings
from etl.errors import UnavailableError
from etl.ledger import runs
from etl.ledger.net_scans import ScanSummary, read_summaries
from etl.ledger.progress import read_progress
from etl.model import Progress
from etl.policy.column_types import TargetTypes
from etl.policy.schema_changes import KnownTable, TableChangeKind
from etl.postgres import sessions
from etl.postgres.error_translation import errors_of
from etl.source.catalog import Catalog
from etl.source.open_transactions import Holder
from etl.source.session import Source
from etl.target.raw_tables import read_known_tables
from etl.target.types import read_types

SECONDS_PER_MINUTE = 60
SECONDS_PER_HOUR = 3600
ABSENT: Mapping[TableChangeKind, str] = {"table_missing": "dropped", "table_left_out": "left out"}
LIST_LAST_RUNS = """
    select distinct on (t.table_name) t.table_name, t.status, t.ended_at, t.error,
        (select count(*) from etl.rejected_rows as r where r.table_name = t.table_name),
        (
            select c.detail from etl.schema_changes as c
            where c.table_name = t.table_name and c.run_id = t.run_id
                and c.kind in ('source_compared', 'source_adopted')
            order by c.change_id desc limit 1
        )
    from etl.table_runs as t
    order by t.table_name, t.run_id desc
"""


@dataclass(frozen=True, kw_only=True)
class TableStatus:
    """The state of one table."""

    table_name: str
    watermark_column: str | None
    watermark: str | None
    lag_seconds: float | None  # by the source's clock: since this long ago, no row below the watermark can appear
    status: str  # of its last run; failed when it cannot be read now, dropped, or left out in tables.yml
    ended_at: dt.datetime | None
    points_waiting: int
    holders: tuple[Holder, ...]
    rejected_rows: int
    scan_age_seconds: float | None  # since the oldest of its net scans; None without a net
    is_scan_late: bool  # that is longer than reconcile_every_hours
    rows_found: int  # by net scans, which the watermark column had not shown
    error: str | None  # why it cannot be read now, or of its last run, even if a retry succeeded
    refusal: str | None  # why its source is refused until a person settles it
    source_change: str | None  # how its source changed, if its last run compared all rows because of that
    source_error: str | None = None  # why the source cannot be read: lag, age of scans and holders are unknown


@dataclass(frozen=True, kw_only=True)
class _AtSource:
    """What the source shows, or why it cannot be reached."""

    now: dt.datetime | None = None
    catalog: Catalog | None = None
    holders: Mapping[str, Sequence[Holder]] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class _LastRun:
    """What the ledger has of the last run of a table."""

    table_name: str
    status: str
    ended_at: dt.datetime | None
    error: str | None
    rejected_rows: int
    source_change: str | None


def read_status(settings: Settings, table_names: Collection[str] = ()) -> tuple[TableStatus, ...]:
    """Return the status of each table that a run has recorded, or of those named.

    While the source cannot be reached, this is what the ledger knows, with the reason in `source_error`. Raises
    UnavailableError before the first run and for a ledger of an older version, ConfigurationError for one of a
    version that this release does not know, and when no table is left to replicate.
    """
    with closing(sessions.connect_target(settings)) as control:
        if not runs.has_ledger(control):
            raise UnavailableError(f"the target {settings.target_url.address} has no recorded run: run `etl run` first")
        progress, scans = read_progress(control), read_summaries(control)
        types, known = read_types(control), read_known_tables(control)
        with errors_of("target", "reading the ledger"), control.cursor() as cursor:
            cursor.execute(LIST_LAST_RUNS)
            found = [_LastRun(*row) for row in cursor.fetchall()]
    last_runs = [each for each in found if not table_names or each.table_name in table_names]
    positions = {each.table_name: progress[each.table_name] for each in last_runs if each.table_name in progress}
    source = _ask_source(settings, types, known, positions)
    return tuple(
        _describe(
            each,
            where=progress.get(each.table_name, Progress()),
            scan=scans.get(each.table_name),
            max_hours=settings.tables.table(each.table_name).reconcile_every_hours,
            source=source,
        )
        for each in last_runs
    )


def find_source_error(tables: Sequence[TableStatus]) -> str | None:
    """Return why the source could not be read for these tables, None if it was."""
    return next((table.source_error for table in tables if table.source_error), None)


def _ask_source(
    settings: Settings, types: TargetTypes, known: Mapping[str, KnownTable], positions: Mapping[str, Progress]
) -> _AtSource:
    try:
        with Source(settings) as source:
            return _AtSource(
                now=source.read_clock(),
                catalog=source.read_catalog(types, (), known),
                holders={name: source.name_holders(position) for name, position in positions.items()},
            )
    except UnavailableError as error:
        if not error.is_transient:
            raise
        return _AtSource(error=str(error))


def _as_found(table: TableStatus, found: Catalog | None) -> TableStatus:
    """Return a table's status as the source and tables.yml are now, whatever its last run was."""
    if found is None:
        return table
    if table.table_name in found.refusals:
        return replace(table, status="failed", error=found.refusals[table.table_name])
    kinds = {absent.name: absent.kind for absent in found.absent}
    if table.table_name in kinds:
        return replace(table, status=ABSENT[kinds[table.table_name]])
    return table


def describe_holder(holder: Holder) -> str:
    """Describe in words what holds a watermark back, and for how long."""
    who = "prepared transaction" if holder.pid is None else f"pid {holder.pid}"
    known = [part for part in (holder.application, f"user {holder.user}" if holder.user else "") if part]
    age = f" ({describe_duration(holder.age_seconds)})" if holder.age_seconds is not None else ""
    return f"{who} {', '.join(known)}{age}"


def describe_duration(seconds: float | None) -> str:
    """Write seconds in readable units: 12 s, 3 min, 2 h 5 min."""
    if seconds is None:
        return ""
    if seconds < SECONDS_PER_MINUTE:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(int(seconds // SECONDS_PER_MINUTE), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _describe(
    last: _LastRun,
    *,
    where: Progress,
    scan: ScanSummary | None,
    max_hours: float,
    source: _AtSource,
) -> TableStatus:
    now = source.now
    scan_age = (now - scan.oldest_at).total_seconds() if scan and now else None
    described = TableStatus(
        table_name=last.table_name,
        watermark_column=where.column,
        watermark=where.watermark,
        lag_seconds=(now - where.as_of).total_seconds() if where.as_of and now else None,
        status=last.status,
        ended_at=last.ended_at,
        points_waiting=len(where.points),
        holders=tuple(source.holders.get(last.table_name, ())),
        rejected_rows=last.rejected_rows,
        scan_age_seconds=scan_age,
        is_scan_late=scan_age is not None and scan_age > max_hours * SECONDS_PER_HOUR,
        rows_found=scan.rows_found if scan else 0,
        error=last.error,
        refusal=where.refusal,
        source_change=last.source_change,
        source_error=source.error,
    )
    return _as_found(described, source.catalog)
