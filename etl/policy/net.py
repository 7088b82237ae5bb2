"""Decides when the net is drawn under a watermark, and which row versions a read may leave out. Pure.

A watermark column is an index into what changed, and it can lie: stamps that are old, missing or from another clock.
A row version cannot: one that a snapshot could not see was written after it, by a transaction whose id is not below the
oldest one that was open then (`pg_snapshot_xmin`). A net scan reads those of the whole table. Begin at `find_reason`.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from etl.model import Mark, Progress, Snapshot, Table, WatermarkKind
from etl.policy.deletes import Counters

XID_MODULUS = 2**32
# Half of the 32-bit transaction ids, which wrap around: beyond it, age() cannot distinguish older from newer.
MAX_XID_DISTANCE = 2**31
# Both clocks are read over a network, some time after one another.
CLOCK_TOLERANCE_SECONDS = 5.0
# What is scanned at a time: 256 MB, which takes some tenths of a second.
SLICE_BLOCKS = 32_768
# The signature of a mark that says nothing any more; no source has it.
FORGOTTEN = '{"columns": {}}'


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The blocks from `start` to `end`, exclusive, of a table or of each of its partitions, and their last net scan."""

    start: int
    end: int | None  # None: all that follow
    mark: Mark
    scanned_at: dt.datetime  # by the source's clock, before the snapshot


def has_net(table: Table) -> bool:
    """Return whether a table has a net below its watermark; without a watermark, each read is like a net scan."""
    return table.watermark is not None and table.has_blocks


def whole_slice(table: Table, snapshot: Snapshot, counters: Counters) -> Slice | None:
    """Return a table as one slice, all of whose rows were read at a snapshot; None without a net."""
    if not has_net(table):
        return None
    mark = Mark(oldest_xid=snapshot.oldest_xid, signature=sign_scan(table, snapshot))
    return Slice(start=0, end=None, mark=mark, scanned_at=counters.listed_at)


def sign_scan(table: Table, snapshot: Snapshot) -> str:
    """Describe what a net scan relies on, for `fits`.

    The same source, on the same timeline and since the same start of its server, because a copy of its files that was
    put back hands out the same ids again; the same files of the table; and what gives stored rows their values.
    """
    found = snapshot.source
    source = [found.system_identifier, found.database_oid, found.schema, found.timeline, snapshot.server_started_at]
    return json.dumps({"source": source, "files": table.files, "key": table.key, "columns": dict(table.contents)})


def sign_read(table: Table, snapshot: Snapshot) -> str:
    """Describe what a read by watermark relies on, for `fits`."""
    config = table.config
    way = [table.watermark, config.lookback_rows, config.lookback_seconds, config.time_zone]
    return json.dumps({**json.loads(sign_scan(table, snapshot)), "watermark": way})


def fits(before: str, now: str) -> bool:
    """Return whether a row version had the same values when it was read; added and dropped columns change none."""
    old, new = json.loads(before), json.loads(now)
    columns, others = old.pop("columns"), new.pop("columns")
    return bool(old == new) and all(columns[name] == others[name] for name in columns.keys() & others.keys())


def since(mark: Mark | None, snapshot: Snapshot, signature: str) -> str | None:
    """Return the 32-bit transaction id from which row versions are new; None when any version may be."""
    if mark is None or not fits(mark.signature, signature):
        return None
    is_near = 0 <= int(snapshot.oldest_xid) - int(mark.oldest_xid) < MAX_XID_DISTANCE
    return str(int(mark.oldest_xid) % XID_MODULUS) if is_near else None


def are_usable(slices: Sequence[Slice], table: Table, snapshot: Snapshot) -> bool:
    """Return whether the last scans of all slices tell which row versions are new."""
    signature = sign_scan(table, snapshot)
    return bool(slices) and all(since(one.mark, snapshot, signature) is not None for one in slices)


def find_new(table: Table, progress: Progress, snapshot: Snapshot) -> str | None:
    """Return the 32-bit transaction id from which row versions are new to a read that starts from `progress`.

    None when it has to read any version, as after a change of the columns.
    """
    return since(progress.read_mark, snapshot, sign_read(table, snapshot)) if table.has_blocks else None


def count_changes(counters: Counters) -> int:
    """Return how many rows the source has counted as inserted or updated."""
    return counters.inserted + counters.updated


def note_activity(before: Progress, after: Progress, now: Counters, *, clock_ahead: float, has_read: bool) -> Progress:
    """Return `after` with what shows a later run that the watermark column has lied since `before`.

    Counts that have moved are explained by rows that this run or the last one read: the counters lag by some seconds.
    Counts that are not explained, and a clock that has moved, are not noted, so they show until a net scan ends.
    """
    is_explained = has_read or before.has_read or before.changes_counted is None
    return replace(
        after,
        changes_counted=count_changes(now) if is_explained else before.changes_counted,
        has_read=has_read,
        clock_ahead=before.clock_ahead if has_clock_moved(before, clock_ahead) else clock_ahead,
    )


def note_scan(progress: Progress, now: Counters, *, clock_ahead: float) -> Progress:
    """Return the progress after a net scan, which explains all that was seen before it."""
    return replace(progress, changes_counted=count_changes(now), clock_ahead=clock_ahead)


def has_clock_moved(before: Progress, clock_ahead: float) -> bool:
    """Return whether the source's clock has moved against the target's."""
    return before.clock_ahead is not None and abs(clock_ahead - before.clock_ahead) > CLOCK_TOLERANCE_SECONDS


def find_reason(
    table: Table,
    slices: Sequence[Slice],
    snapshot: Snapshot,
    progress: Progress,
    *,
    before: Counters | None,
    now: Counters,
    clock_ahead: float,
) -> str | None:
    """Return why all of a table has to be scanned at once; None when the schedule decides.

    `progress` is what this run has noted, and `before` what the source had counted when keys were last compared.
    """
    signature = sign_scan(table, snapshot)
    is_by_clock = table.watermark_kind is not WatermarkKind.INTEGER
    reasons = {
        "it has not been scanned yet": not slices,
        "an earlier run refused its watermark": any(one.mark.signature == FORGOTTEN for one in slices),
        "its server was restarted, or its files or the values of its columns have changed": not all(
            fits(one.mark.signature, signature) for one in slices
        ),
        "more transactions have passed since its last scan than their ids can tell apart": not are_usable(
            slices, table, snapshot
        ),
        "the source counts no changes (track_counts is off)": not now.are_counted,
        "the source's counters were reset": before is not None and now.was_reset_since(before),
        "the source counts changes of which runs read nothing": progress.changes_counted
        not in (None, count_changes(now)),
        "the source's clock has moved": is_by_clock and has_clock_moved(progress, clock_ahead),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def choose_slices(table: Table, slices: Sequence[Slice], now: Counters) -> list[tuple[Slice, int]]:
    """Return the slices that the schedule wants to be scanned now, each with the number of its parts to scan.

    A part has SLICE_BLOCKS blocks. So many parts are due that those that are left can wait for their turns, if one is
    scanned each time that an equal share of `reconcile_every_hours` has passed.
    """
    period = dt.timedelta(hours=table.config.reconcile_every_hours)
    leaves = max(table.filenodes.count(":"), 1)
    ages = {one: _age(one, now, period) for one in slices}
    oldest_first = sorted(slices, key=lambda one: ages[one], reverse=True)
    parts = [_count_parts(one, now.estimated_blocks, leaves) for one in oldest_first]
    due = sum(parts)
    if period:
        places = itertools.accumulate(parts)
        can_wait = [(period - ages[one]) / period * sum(parts) for one in oldest_first]
        due = max((math.floor(place - left) for place, left in zip(places, can_wait, strict=True)), default=0)
    chosen = []
    for one, count in zip(oldest_first, parts, strict=True):
        if due > 0:
            chosen.append((one, min(count, due)))
        due -= count
    return chosen


def _age(one: Slice, now: Counters, period: dt.timedelta) -> dt.timedelta:
    """Return how long ago a slice was scanned; a whole period if the clock was set back since."""
    age = now.listed_at - one.scanned_at
    return age if age >= dt.timedelta() else period


def _count_parts(one: Slice, estimated_blocks: int, leaves: int) -> int:
    """Return the number of parts of a slice, which has the same blocks of each partition."""
    last = estimated_blocks / leaves
    end = last if one.end is None else min(one.end, last)
    return max(math.ceil((end - one.start) * leaves / SLICE_BLOCKS), 1)
