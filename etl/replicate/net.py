"""Finds what the watermark column has not shown, after the changes that it shows have been merged.

A net scan reads the row versions that the last one could not see, whatever their watermark, and a comparison of keys
finds deleted rows. Where the last net scan says nothing about the table as it is now, all columns are compared.
Begin at `check_content`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from etl.model import Counts, Mark, Progress
from etl.policy import net
from etl.policy.deletes import Counters, may_be_replaced, may_lack_rows
from etl.policy.net import SLICE_BLOCKS, Slice
from etl.policy.source_identity import Judgement
from etl.replicate.changes import merge_window
from etl.replicate.exchange import Exchange
from etl.replicate.full_load import range_end
from etl.replicate.reconcile import identifying_columns, reconcile
from etl.replicate.task import Task, advance
from etl.source.statements import BlockRange, Window
from etl.target.batch import Batch


def check_content(
    exchange: Exchange, task: Task, judgement: Judgement, progress: Progress, *, is_whole: bool
) -> Progress:
    """Scan, or compare, what has to be: because something says that the watermark lied, or because of the schedule.

    `progress` is what this run has stored. `is_whole` tells that it read every row, whatever its watermark. Returns the
    progress that is stored then. Raises TableError when more rows were deleted than one run may delete.
    """
    if task.counters is None:
        return progress
    if judgement.action == "compare":
        return _compare_with_new_timeline(exchange, task, task.counters, judgement)
    table, counters, snapshot = task.table, task.counters, exchange.reader.snapshot
    is_followed = table.config.deletes == "reconcile"
    is_compared = is_followed and (
        task.is_check_asked_for
        or may_lack_rows(
            task.reconciled, counters, table.config.reconcile_every_hours, has_filter=table.config.where is not None
        )
    )
    columns, renewed, reason = identifying_columns(table), None, None
    if is_whole and progress.read_mark is not None:
        found = net.whole_slice(table, snapshot, counters)
        renewed = replace(found, mark=replace(found.mark, oldest_xid=progress.read_mark.oldest_xid)) if found else None
    elif net.has_net(table):
        reason = net.find_reason(
            table,
            task.slices,
            snapshot,
            progress,
            before=task.reconciled,
            now=counters,
            clock_ahead=task.clock_ahead,
        )
        is_explained = True
        if net.are_usable(task.slices, table, snapshot):
            is_explained = _scan(exchange, task, counters, reason)
        else:
            exchange.say(f"all columns are compared: {reason}")
            columns, renewed, is_compared = table.columns, net.whole_slice(table, snapshot, counters), True
        if reason and is_explained:
            progress = net.note_scan(progress, counters, clock_ahead=task.clock_ahead)
    elif not table.has_blocks and may_be_replaced(task.reconciled, counters):
        columns = table.columns
    if is_compared:
        reconcile(exchange, allow_deletes=task.options.allow_deletes, columns=columns)
    are_known = is_compared or not is_followed
    if is_compared or renewed or reason:
        exchange.writer.save_check(progress, counters=counters if are_known else None, renewed=renewed)
    if is_compared and is_followed and table.config.tombstone_days is not None:
        exchange.writer.purge_tombstones(table.config.tombstone_days)
    return progress


def _compare_with_new_timeline(exchange: Exchange, task: Task, counters: Counters, judgement: Judgement) -> Progress:
    """Compare all columns, repair `raw`, and store that the table goes on from the source's new timeline.

    This is stored last, so a run that is killed compares again.
    """
    writer, table, snapshot = exchange.writer, task.table, exchange.reader.snapshot
    found = reconcile(exchange, allow_deletes=task.options.allow_deletes, columns=table.columns)
    progress = task.note(advance(table, Progress(), snapshot, task.point, task.activity), has_read=True)
    differed = found.missing + found.extra + found.changed
    detail = f"{judgement.finding}: all rows were compared, {differed:,} differed and were repaired"
    writer.settle_source(progress, "source_compared", detail)
    writer.save_check(progress, counters=counters, renewed=net.whole_slice(table, snapshot, counters))
    exchange.say(detail)
    return progress


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of a slice, to be scanned in one go, and what is left of the slice after it."""

    start: int
    end: int | None
    since_xid: str
    rest: Slice | None


def _scan(exchange: Exchange, task: Task, counters: Counters, reason: str | None) -> bool:
    """Scan all slices, if there is a reason, else those that the schedule wants; say what the watermark did not show.

    Each part is stored with its last rows. Returns whether all of them were scanned before the snapshot expired.
    """
    if task.is_check_asked_for or reason is not None:
        chosen = [(one, sys.maxsize) for one in task.slices]
    else:
        chosen = net.choose_slices(task.table, task.slices, counters)
    parts = list(_parts(exchange, task, chosen)) if chosen else []
    found, done = Counts(), 0
    while done < len(parts) and not (done and exchange.reader.snapshot.is_expired):
        found += _scan_part(exchange, task, counters, parts[done])
        done += 1
    rows = found.inserted + found.updated
    if rows:
        cause = f" ({reason})" if reason else ""
        exchange.say(
            f'{rows:,} rows had changed without a change of column "{task.table.watermark}", its watermark{cause}: '
            "they were found by their row versions, and are replicated; name a column that every change sets, or "
            "watermark: xmin, in tables.yml"
        )
    return done == len(parts)


def _parts(exchange: Exchange, task: Task, chosen: Sequence[tuple[Slice, int]]) -> Iterator[_Part]:
    """Yield the parts of slices, of at most SLICE_BLOCKS each, and of each slice no more than are chosen."""
    counts, snapshot = exchange.reader.block_counts(), exchange.reader.snapshot
    signature = net.sign_scan(task.table, snapshot)
    for one, limit in chosen:
        since_xid = net.since(one.mark, snapshot, signature)
        assert since_xid is not None, "the slices are usable"
        within = counts if one.end is None else [min(count, one.end) for count in counts]
        start = one.start
        for _ in range(limit):
            end = range_end(within, start, SLICE_BLOCKS)
            rest = replace(one, start=end) if end is not None else None
            yield _Part(start=start, end=one.end if end is None else end, since_xid=since_xid, rest=rest)
            if end is None:
                break
            start = end


def _scan_part(exchange: Exchange, task: Task, counters: Counters, part: _Part) -> Counts:
    """Merge the new row versions of a part, and store its scan with the last ones."""
    snapshot = exchange.reader.snapshot
    blocks = BlockRange(start=part.start, end=part.end, since_xid=part.since_xid)
    window: Window | None = Window(within=blocks, limit=task.table.config.batch_rows)
    mark = Mark(oldest_xid=snapshot.oldest_xid, signature=net.sign_scan(task.table, snapshot))
    scanned = Slice(start=part.start, end=part.end, mark=mark, scanned_at=counters.listed_at)
    found = Counts()

    def finish(batch: Batch) -> None:
        rows = found + batch.counts
        batch.save_scan(scanned, rows.inserted + rows.updated)
        if part.rest is not None:
            batch.save_scan(part.rest, 0)

    while window is not None:
        counts, window = merge_window(exchange, window, finish=finish)
        found += counts
    return found
