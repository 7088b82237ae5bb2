"""Decides whether a source table may have lost rows since it was last reconciled, and how many it may lose. Pure.

The counters of pg_stat_user_tables can lag by some seconds, and do not change during a long procedure. They are
therefore listed before the snapshot: what they do not show yet, they show in a later run. An update of a key does not
count as a delete, so each table is also reconciled at a regular interval.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from etl.errors import TableError
from etl.model import Table


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What the source has counted for a table and its partitions, and what shows that the counts were reset."""

    inserted: int
    updated: int
    deleted: int
    filenodes: str  # TRUNCATE and rewrites change them
    stats_reset: str  # when the statistics of the database and of the server were last reset, as after a crash
    server_started_at: dt.datetime
    listed_at: dt.datetime  # by the source's clock
    are_counted: bool = True  # track_counts is on
    estimated_blocks: int = 0  # of the table and its partitions, when it was last vacuumed or analyzed

    def was_reset_since(self, before: Counters) -> bool:
        """Return whether changes since `before` may be missing from the counts."""
        return (
            self.stats_reset != before.stats_reset
            or self.server_started_at != before.server_started_at
            or self.inserted < before.inserted
            or self.updated < before.updated
            or self.deleted < before.deleted
        )


def is_mass_delete(missing: int, rows: int, *, max_fraction: float, max_rows: int) -> bool:
    """Return whether so many of a table's rows are missing that a person must confirm their deletion.

    A fraction of few rows says little, so up to `max_rows` deletes pass, as long as a row is left: a table that was
    emptied stops, however small it is.
    """
    is_few = missing <= max_rows and missing < rows
    return missing > max_fraction * rows and not is_few


def check_fraction(table: Table, missing: int, rows: int, command: str = "run") -> None:
    """Raise TableError when more of a table's rows are missing from the source than one run may delete.

    The message names `command`, the etl command that can confirm the deletes.
    """
    fraction, least = table.config.max_delete_fraction, table.config.max_delete_rows
    if is_mass_delete(missing, rows, max_fraction=fraction, max_rows=least):
        limits = f"and max_delete_rows = {least} allow" if missing > least else "allows"
        raise TableError(
            f"{table.label}: {missing:,} of {rows:,} rows are missing from the source, more than "
            f"max_delete_fraction = {fraction:g} {limits}; nothing was deleted: if this is intended, confirm it with "
            f"`etl {command} --allow-deletes {table.argument}`, otherwise restore the rows on the source"
        )


def may_be_replaced(before: Counters | None, now: Counters) -> bool:
    """Return whether the table's rows may have been replaced by others, also under the same keys and watermarks.

    A data folder that was copied back keeps its timeline, and shows only that the server has been started.
    """
    return before is None or now.filenodes != before.filenodes or now.server_started_at != before.server_started_at


def may_lack_rows(before: Counters | None, now: Counters, max_hours: float, *, has_filter: bool = False) -> bool:
    """Return whether rows may have been deleted from a source table, or replaced by others, since `before`.

    `before` holds the counters that were listed before the snapshot at which the table was last reconciled or loaded;
    None if it never was. A clock that was set back, a restart, or reset statistics may hide deletes, so the result is
    then True. An update may take a row out of the filter of a table that `has_filter`.
    """
    if before is None:
        return True
    return (
        now.deleted != before.deleted
        or (has_filter and now.updated != before.updated)
        or now.filenodes != before.filenodes
        or not now.are_counted
        or now.was_reset_since(before)
        or not dt.timedelta() <= now.listed_at - before.listed_at < dt.timedelta(hours=max_hours)
    )
