"""Refuses to go on from a watermark that the source, as it is now, does not fit. Begin at `check_progress`."""

from __future__ import annotations

from etl.errors import TableError
from etl.model import Point, Progress, Table, WatermarkKind
from etl.policy import fence
from etl.source.reader import Reader
from etl.source.session import Source


def check_progress(table: Table, progress: Progress, point: Point | None, source: Source, reader: Reader) -> None:
    """Refuse to go on from a watermark that belongs to another source or was overtaken backwards."""
    if progress.system_identifier not in (None, source.system_identifier):
        raise TableError(
            f"{table.label}: the watermark was taken on another source cluster (system identifier "
            f"{progress.system_identifier}, now {source.system_identifier}): point SOURCE_DATABASE_URL at the old "
            f"one, or load the table anew with `etl reset {table.argument}`"
        )
    if progress.next_xid is not None and int(source.next_xid) < int(progress.next_xid):
        raise TableError(
            f"{table.label}: the source is older than at the last run (its transactions have come to "
            f"{source.next_xid}, and had to {progress.next_xid}): a standby that lags has to catch up; after a restore "
            f"from a backup, load the table anew with `etl reset {table.argument}`"
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
        f"`etl reset {table.argument}`; if rows were removed, grant select on the sequence to the role of "
        "SOURCE_DATABASE_URL"
    )


def _check_clock(table: Table, progress: Progress, point: Point, margin_seconds: float) -> None:
    seconds = fence.seconds_set_back(progress, point)
    if seconds > margin_seconds + table.config.lookback_seconds:
        raise TableError(
            f"{table.label}: the source's clock is {seconds:.0f} s behind where it was at an earlier run, so rows "
            f"written since may be stamped below the watermark {progress.watermark}: declare lookback_seconds of "
            "more than that in tables.yml until the clock has caught up, or load the table anew with "
            f"`etl reset {table.argument}`"
        )
