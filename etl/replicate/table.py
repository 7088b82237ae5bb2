"""The order of steps for one table at one snapshot: a first load, or batches of what changed.

Begin at `replicate_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from etl.errors import RowRefusedError
from etl.model import Activity, Counts, Event, Observer, Outcome, Point, Position, Progress, RunOptions, Table
from etl.policy import fence
from etl.policy.deletes import Counters, may_lack_rows
from etl.policy.schema_changes import RawTable, describe_changes
from etl.replicate.changes import check_null_watermarks, merge_changes
from etl.replicate.checks import check_progress
from etl.replicate.exchange import Exchange
from etl.replicate.full_load import load_first
from etl.replicate.reconcile import identifying_columns, reconcile
from etl.source.reader import Reader
from etl.source.session import Source
from etl.target.new_table import RawLoad
from etl.target.writer import Writer


@dataclass(frozen=True, kw_only=True)
class Task:
    """One table to bring up to date: where it stands, and what was known before the snapshot."""

    table: Table
    progress: Progress
    point: Point | None
    activity: Activity
    raw: RawTable
    counters: Counters | None  # None: the table vanished after it was listed
    reconciled: Counters | None  # those of the last time that keys were compared
    options: RunOptions
    position: Position | None = None  # where this run's reading of the whole table was cut


def replicate_table(source: Source, writer: Writer, task: Task, observe: Observer, *, range_blocks: int) -> Outcome:
    """Bring one raw table up to the snapshot, or as far as the time for holding it allows.

    Each batch commits on its own, with its ledger; the watermark commits with the last one. A transaction of a first
    load reads `range_blocks` blocks of the source at most. Raises TableError.
    """
    table = task.table

    def on_commit(counts: Counts) -> None:
        observe(Event(kind="batch_committed", table_name=table.name, counts=counts))

    with source.open_reader(table) as reader:
        exchange = Exchange(source=source, reader=reader, writer=writer, on_commit=on_commit)
        check_null_watermarks(reader, table)
        is_replacement = task.options.full_refresh and task.position is None and writer.raw.exists
        if not is_replacement and writer.fit():
            known = _known_progress(task)
            check_progress(table, known, task.point, source, reader)
            before = _before_changes(reader, writer, replace(known, watermark=None) if task.position else known)
            _say(observe, table, writer.remarks)
        else:
            outcome = _load(exchange, task, observe, range_blocks=range_blocks, is_replacement=is_replacement)
            _say(observe, table, writer.remarks)
            if outcome is not None:
                return outcome
            known = before = _before_changes(reader, writer, Progress())
        outcome = merge_changes(exchange, before=before, after=_advance(source, task, known), position=task.position)
        if outcome.is_complete:
            _reconcile(exchange, task)
            if writer.raw.has_load:  # left by one that was to replace the table, and failed
                RawLoad(writer).discard()
        return outcome


def _known_progress(task: Task) -> Progress:
    """Return where the table stands; of another watermark column, only what holds for any."""
    progress = task.progress
    if progress.column == task.table.watermark:
        return progress
    return Progress(system_identifier=progress.system_identifier, next_xid=progress.next_xid)


def _reconcile(exchange: Exchange, task: Task) -> None:
    """Compare both sides where rows may be gone: all columns where other rows may have taken their place."""
    table, counters, options = task.table, task.counters, task.options
    if counters is None or table.config.deletes == "none":
        return
    is_asked_for = options.reconcile or options.full_refresh or options.allow_deletes
    if not is_asked_for and not may_lack_rows(task.reconciled, counters, table.config.reconcile_every_hours):
        return
    is_rewritten = task.reconciled is not None and task.reconciled.filenodes != counters.filenodes
    reconcile(
        exchange,
        counters,
        allow_deletes=options.allow_deletes,
        columns=table.columns if is_rewritten else identifying_columns(table),
    )


def _before_changes(reader: Reader, writer: Writer, known: Progress) -> Progress:
    """Return from where to read: from the start, when changes of the columns gave old rows other values."""
    if not writer.changes:
        return known
    writer.remarks.append(describe_changes(writer.changes))
    names = {change.column_name for change in writer.changes if change.needs_old_rows}
    added = {change.column_name for change in writer.changes if change.kind == "column_added"}
    is_filled = bool(names - added) or (bool(added) and reader.has_values(sorted(added)))
    before = replace(known, watermark=None) if is_filled else known
    writer.keep_for_changes(before)
    return before


def _load(
    exchange: Exchange, task: Task, observe: Observer, *, range_blocks: int, is_replacement: bool
) -> Outcome | None:
    """Load a table anew; None when the target refuses rows, which only batches can set aside."""
    writer, raw, columns = exchange.writer, RawLoad(exchange.writer), task.table.columns
    _say(observe, task.table, [f'column "{one.name}" becomes text: {one.remark}' for one in columns if one.remark])
    if is_replacement:
        _say(observe, task.table, raw.check_replacement())
    after, loaded = _advance(exchange.source, task, Progress()), Counts()

    def on_commit(counts: Counts) -> None:
        nonlocal loaded
        loaded += counts
        exchange.on_commit(counts)

    try:
        is_complete = load_first(
            replace(exchange, on_commit=on_commit),
            range_blocks=range_blocks,
            progress=after,
            is_replacement=is_replacement,
            allow_deletes=task.options.allow_deletes,
        )
    except RowRefusedError as refusal:
        _say(observe, task.table, [f"starting over in batches, to set the rows to blame aside: {refusal}"])
        discarded = Counts(read=-loaded.read, inserted=-loaded.inserted)
        exchange.on_commit(discarded)
        raw.start_over(discarded, refusal, is_replacement=is_replacement)
        return None
    if is_complete and task.counters:
        writer.save_counters(task.counters)
    return Outcome(progress=after if is_complete else Progress(), is_complete=is_complete)


def _say(observe: Observer, table: Table, remarks: Sequence[str]) -> None:
    for remark in remarks:
        observe(Event(kind="notice", message=f"{table.label}: {remark}"))


def _advance(source: Source, task: Task, before: Progress) -> Progress:
    started = replace(
        before,
        column=task.table.watermark,
        system_identifier=source.system_identifier,
        next_xid=source.next_xid,
    )
    if task.table.watermark is None:
        return replace(started, watermark=None, as_of=None, points=())
    return fence.advance(started, task.point, task.activity)
