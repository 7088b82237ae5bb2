"""Checks what the ledger has stored of a table against the source as it is now. Begin at `check_progress`.

A watermark, or a load that was begun, may only be used on the source that it was taken on, and not on an older state of
it. All faults are found before any is raised, so that one message names them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from etl.errors import TableError
from etl.model import LoadState, Point, Progress, Snapshot, Table, WatermarkKind
from etl.policy import fence
from etl.source.reader import Reader
from etl.source.session import Source

# Half of the circle of 32-bit transaction ids: beyond it, age() cannot tell older from newer.
MAX_XID_DISTANCE = 2**31


def check_progress(
    table: Table, stored: Progress, point: Point | None, *, source: Source, reader: Reader, has_clock: bool
) -> Progress:
    """Return the progress to go on from; of another watermark column, only what holds for any.

    Raises TableError with every reason for which the source does not fit the stored progress.
    """
    known = stored
    if stored.column != table.watermark:
        known = Progress(system_identifier=stored.system_identifier, next_xid=stored.next_xid)
    faults = [*_find_other_source(table, known, reader.snapshot)]
    if table.watermark is not None and known.watermark is not None and has_clock:
        if table.watermark_kind is WatermarkKind.INTEGER:
            faults += _find_restarted_sequence(table, known.watermark, point, reader)
        elif point is not None and not source.is_standby:
            faults += _find_clock_set_back(table, known, point, source.margin_seconds)
    if faults:
        raise TableError(f"{table.label}: {'; '.join(faults)}")
    return known


def check_null_watermarks(table: Table, reader: Reader) -> None:
    """Raise TableError when the table has rows without watermark and is configured to refuse them."""
    if table.watermark is None or table.config.null_watermarks == "read":
        return
    if table.column(table.watermark).is_nullable and reader.has_null_watermark():
        raise TableError(
            f'column "{table.watermark}" of {table.label} is NULL in some rows, which null_watermarks: refuse forbids: '
            "fill it on the source and declare it NOT NULL, or set null_watermarks: read in tables.yml"
        )


def is_usable(load: LoadState, table: Table, snapshot: Snapshot) -> bool:
    """Tell whether a first load that was begun can go on: with the same files, columns and cluster, and not too old."""
    return (
        load.filenodes == table.filenodes
        and load.signature == sign_columns(table)
        and load.system_identifier == snapshot.system_identifier
        and 0 <= xid_distance(load, snapshot) < MAX_XID_DISTANCE
    )


def sign_columns(table: Table) -> str:
    """Return what changes with any column or with the key."""
    columns = [(column.number, column.name, column.source_type, column.raw_type) for column in table.columns]
    return json.dumps({"columns": columns, "key": table.key})


def xid_distance(load: LoadState, snapshot: Snapshot) -> int:
    """Return how many transaction ids the source has given out since the load's first snapshot."""
    return int(snapshot.oldest_xid) - int(load.oldest_xid)


def _find_other_source(table: Table, progress: Progress, snapshot: Snapshot) -> Iterator[str]:
    if progress.system_identifier not in (None, snapshot.system_identifier):
        yield (
            f"the watermark was taken on another source cluster (system identifier {progress.system_identifier}, now "
            f"{snapshot.system_identifier}): point SOURCE_DATABASE_URL at the old one, or load the table anew with "
            f"`etl reset {table.argument}`"
        )
    elif progress.next_xid is not None and int(snapshot.next_xid) < int(progress.next_xid):
        yield (
            f"the source is older than at the last run (its transactions have come to {snapshot.next_xid}, and had to "
            f"{progress.next_xid}): a standby that lags has to catch up; after a restore from a backup, load the table "
            f"anew with `etl reset {table.argument}`"
        )


def _find_restarted_sequence(table: Table, watermark: str, point: Point | None, reader: Reader) -> Iterator[str]:
    """Tell a restarted sequence, which hands out numbers below the watermark, from rows that were deleted."""
    if int(point.value if point else 0) >= int(watermark) - table.config.lookback_rows:
        return
    last = reader.last_sequence_value()
    if last is not None and last >= int(watermark):
        return
    found = "no rows" if point is None else f"max({table.watermark}) = {point.value}"
    yield (
        f"the watermark is {watermark}, but the source has {found}, and its sequence "
        f"{'cannot tell' if last is None else f'is at {last}'}: if it was restarted, load the table anew with "
        f"`etl reset {table.argument}`; if rows were removed, grant select on the sequence to the role of "
        "SOURCE_DATABASE_URL"
    )


def _find_clock_set_back(table: Table, progress: Progress, point: Point, margin_seconds: float) -> Iterator[str]:
    seconds = fence.seconds_set_back(progress, point)
    if seconds > margin_seconds + table.config.lookback_seconds:
        yield (
            f"the source's clock is {seconds:.0f} s behind where it was at an earlier run, so rows written since may "
            f"be stamped below the watermark {progress.watermark}: declare lookback_seconds of more than that in "
            "tables.yml until the clock has caught up, or load the table anew with "
            f"`etl reset {table.argument}`"
        )
