"""One table to replicate at one snapshot: what was known of it before, and the progress that is stored after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from etl.model import Activity, Mark, Point, Position, Progress, RunOptions, Snapshot, Table
from etl.policy import fence, net
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


def advance(table: Table, before: Progress, snapshot: Snapshot, point: Point | None, activity: Activity) -> Progress:
    """Return the progress after the table was brought up to a snapshot."""
    mark = Mark(oldest_xid=snapshot.oldest_xid, signature=net.sign_read(table, snapshot))
    started = on_source(replace(before, column=table.watermark, read_mark=mark), snapshot)
    if table.watermark is None:
        return replace(started, watermark=None, as_of=None, points=())
    return fence.advance(started, point, activity)


def on_source(progress: Progress, snapshot: Snapshot) -> Progress:
    """Return the progress with the source as it is at this snapshot, on which nothing is refused."""
    return replace(progress, source=snapshot.source, next_xid=snapshot.next_xid, refusal=None)
