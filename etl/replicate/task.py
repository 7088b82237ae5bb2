"""One table to replicate at one snapshot, and what was known of it before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etl.model import Activity, Mark, Point, Position, Progress, RunOptions, Table
from etl.policy import net
from etl.policy.deletes import Counters
from etl.policy.net import Slice
from etl.policy.schema_changes import RawTable


@dataclass(frozen=True, kw_only=True)
class Task:
    """One table to replicate: its progress, and what was read before the snapshot."""

    table: Table
    progress: Progress
    point: Point | None
    has_clock: bool  # False: a standby could not report the time of its data, so no point was taken
    activity: Activity
    raw: RawTable
    counters: Counters | None  # None: the table was dropped after it was listed
    reconciled: Counters | None  # the counters when keys were last compared
    slices: Sequence[Slice] = ()  # with their last net scans
    clock_ahead: float = 0.0  # seconds by which the source's clock is ahead of the target's
    options: RunOptions
    position: Position | None = None  # where this run stopped reading the whole table

    @property
    def is_replacement(self) -> bool:
        """Whether the existing raw table is reloaded."""
        return self.options.full_refresh and self.position is None and self.raw.exists

    @property
    def is_check_asked_for(self) -> bool:
        """Whether the content of the table is checked although nothing calls for it."""
        return self.options.reconcile or self.options.full_refresh or self.options.allow_deletes

    def note(self, progress: Progress, has_read: bool) -> Progress:
        """Return the progress with what shows a later run that the watermark column has lied."""
        if self.counters is None:
            return progress
        return net.note_activity(
            self.progress, progress, self.counters, clock_ahead=self.clock_ahead, has_read=has_read
        )

    def whole(self, oldest_xid: str) -> Slice | None:
        """Return the table as one slice, all of whose rows were read at a snapshot; None without a net."""
        if self.counters is None or not net.has_net(self.table):
            return None
        mark = Mark(oldest_xid=oldest_xid, signature=net.sign_scan(self.table))
        return Slice(start=0, end=None, mark=mark, scanned_at=self.counters.listed_at)
