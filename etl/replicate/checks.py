"""Checks that the stored progress of a table fits the source as it is now.

Begin at `check_source`, which every command that reads both sides calls before it writes or judges.

A watermark or an unfinished load is valid only on the source that it comes from, and not on an older state of it. All
faults are collected before an error is raised, so one message names them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from etl.errors import TableError
from etl.model import LoadState, Point, Progress, Snapshot, Table, WatermarkKind
from etl.policy import fence
from etl.policy.net import MAX_XID_DISTANCE
from etl.policy.source_identity import Judgement, is_continued, judge_source
from etl.source.reader import Reader
from etl.source.session import Source
from etl.target.writer import Writer


def check_source(writer: Writer, stored: Progress, snapshot: Snapshot) -> Judgement:
    """Return whether the raw table can go on with this source, or has to be compared with it first.

    Raises TableError for another source and for an older one. That a run met an older one is stored, outside any
    transaction, so the table stays refused. Only of a standby it is not: it may have lagged, and the next run compares
    all columns anyway, because the last one has read from another server.
    """
    found = judge_source(writer.table, stored, snapshot)
    if found.action != "refuse":
        return found
    if found.is_older and writer.run_id and not snapshot.is_standby:
        writer.save_refusal(found.finding)
    raise TableError(f"{writer.table.label}: {found.finding}: {found.next_step}")


def forget_other_column(table: Table, stored: Progress) -> Progress:
    """Return the stored progress, without the watermark if that belongs to another column."""
    if stored.column == table.watermark:
        return stored
    return replace(stored, watermark=None, column=None, as_of=None, points=())


def check_progress(
    writer: Writer,
    table: Table,
    stored: Progress,
    point: Point | None,
    *,
    source: Source,
    reader: Reader,
    has_clock: bool,
) -> Progress:
    """Return the progress to continue from: without the watermark, if that belongs to another column.

    Raises TableError with every reason why the source does not fit the stored progress. Rows that are written before it
    fits again may have values below the watermark, which nothing shows then: so the run that goes on reads all rows.
    """
    known, faults = forget_other_column(table, stored), list[str]()
    if table.watermark is not None and known.watermark is not None and has_clock:
        if table.watermark_kind is WatermarkKind.INTEGER:
            faults += _find_restarted_sequence(table, known.watermark, point, reader)
        elif point is not None and not source.is_standby:
            faults += _find_clock_set_back(table, known, point, source.margin_seconds)
    if faults:
        writer.forget_scans()
        raise TableError(f"{table.label}: {'; '.join(faults)}")
    return known


def check_null_watermarks(table: Table, reader: Reader) -> None:
    """Raise TableError when the table has rows without a watermark and is configured to refuse them."""
    if table.watermark is None or table.config.null_watermarks == "read":
        return
    if table.column(table.watermark).is_nullable and reader.has_null_watermark():
        raise TableError(
            f'column "{table.watermark}" of {table.label} is NULL in some rows, which null_watermarks: refuse forbids: '
            "fill it on the source and declare it NOT NULL, or set null_watermarks: read in tables.yml"
        )


def is_usable(load: LoadState, table: Table, snapshot: Snapshot) -> bool:
    """Return whether an unfinished first load can continue: same files, columns and source, and not too old."""
    return (
        load.filenodes == table.files
        and load.signature == sign_columns(table)
        and is_continued(load.source, snapshot.source)
        and 0 <= xid_distance(load, snapshot) < MAX_XID_DISTANCE
    )


def sign_columns(table: Table) -> str:
    """Return a text that differs when any column or the key has changed."""
    columns = [(column.number, column.name, column.source_type, column.raw_type) for column in table.columns]
    return json.dumps({"columns": columns, "key": table.key})


def xid_distance(load: LoadState, snapshot: Snapshot) -> int:
    """Return how many transaction ids the source has assigned since the load's first snapshot."""
    return int(snapshot.oldest_xid) - int(load.oldest_xid)


def _find_restarted_sequence(table: Table, watermark: str, point: Point | None, reader: Reader) -> Iterator[str]:
    """Yield a fault when the sequence may have been restarted below the watermark; deleted rows alone are no fault."""
    if int(point.value if point else 0) >= int(watermark) - table.config.lookback_rows:
        return
    last = reader.last_sequence_value()
    if last is not None and last >= int(watermark):
        return
    found = "no rows" if point is None else f"max({table.watermark}) = {point.value}"
    yield (
        f"the watermark is {watermark}, but the source has {found}, and its sequence "
        f"{'cannot be read' if last is None else f'is at {last}'}: if it was restarted, reload the table with "
        f"`etl reset {table.argument}`; if rows were deleted, grant select on the sequence to the role of "
        "SOURCE_DATABASE_URL"
    )


def _find_clock_set_back(table: Table, progress: Progress, point: Point, margin_seconds: float) -> Iterator[str]:
    seconds = fence.seconds_set_back(progress, point)
    if seconds > margin_seconds + table.config.lookback_seconds:
        yield (
            f"the source's clock is {seconds:.0f} s behind where it was at an earlier run, so rows written since may "
            f"have times below the watermark {progress.watermark}: set lookback_seconds above that in tables.yml until "
            f"the clock has caught up, or reload the table with `etl reset {table.argument}`"
        )
