"""The order of steps for one table at one snapshot: a first load, or batches of changes.

Begin at `replicate_table`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from etl.errors import RowRefusedError, TableError
from etl.model import Activity, Counts, Event, Observer, Outcome, Point, Position, Progress, RunOptions, Snapshot, Table
from etl.policy import fence
from etl.policy.deletes import Counters, may_lack_rows
from etl.policy.schema_changes import Fit, RawTable, describe_changes, fit_new_table, fit_table, require_table
from etl.replicate.changes import merge_changes
from etl.replicate.checks import check_null_watermarks, check_progress
from etl.replicate.exchange import Exchange
from etl.replicate.full_load import load_first
from etl.replicate.reconcile import identifying_columns, reconcile
from etl.source.session import Source
from etl.target.new_table import RawLoad
from etl.target.writer import Writer


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
    options: RunOptions
    position: Position | None = None  # where this run stopped reading the whole table

    @property
    def is_replacement(self) -> bool:
        """Whether the existing raw table is reloaded."""
        return self.options.full_refresh and self.position is None and self.raw.exists


def replicate_table(
    source: Source, snapshot: Snapshot, writer: Writer, task: Task, observe: Observer, *, range_blocks: int
) -> Outcome:
    """Bring one raw table up to the snapshot, or as far as possible before the snapshot expires.

    Each batch commits on its own, with its ledger row; the watermark commits with the last batch. Each transaction of a
    first load reads at most `range_blocks` blocks of the source. Raises TableError.
    """
    table = task.table

    def on_commit(counts: Counts) -> None:
        observe(Event(kind="batch_committed", table_name=table.name, counts=counts))

    def say(remark: str) -> None:
        observe(Event(kind="notice", message=f"{table.label}: {remark}"))

    with source.open_reader(table, snapshot) as reader:
        exchange = Exchange(reader=reader, writer=writer, on_commit=on_commit, say=say)
        check_null_watermarks(table, reader)
        if task.raw.exists and not task.is_replacement:
            fit = fit_table(table, task.raw)
            known = check_progress(
                fit.table, task.progress, task.point, source=source, reader=reader, has_clock=task.has_clock
            )
            rejected = task.raw.rejected_keys
        else:
            loaded = _load(exchange, task, range_blocks=range_blocks)
            if isinstance(loaded, Outcome):
                return loaded
            fit, known = loaded, Progress()
            rejected = task.raw.rejected_keys if task.is_replacement else ()  # those of a dropped table are discarded
        for remark in fit.remarks:
            say(remark)
        before = _before_changes(exchange, fit, replace(known, watermark=None) if task.position else known)
        exchange = replace(exchange, writer=writer.fitted(fit, before))
        after = _advance(task, known, snapshot)
        outcome = merge_changes(exchange, before=before, after=after, position=task.position, rejected=rejected)
        if outcome.is_complete:
            _reconcile(exchange, task)
            if task.raw.has_load:  # left by a reload that failed
                RawLoad(exchange.writer).discard()
        return outcome


def _reconcile(exchange: Exchange, task: Task) -> None:
    """Compare both sides if rows may have been deleted; compare all columns if the source table was rewritten."""
    table, counters, options = exchange.writer.table, task.counters, task.options
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


def _before_changes(exchange: Exchange, fit: Fit, known: Progress) -> Progress:
    """Return the progress to read from: without a watermark, if changes of columns gave old rows other values."""
    if not fit.changes:
        return known
    exchange.say(describe_changes(fit.changes))
    names = {change.column_name for change in fit.changes if change.needs_old_rows}
    added = {change.column_name for change in fit.changes if change.kind == "column_added"}
    is_filled = bool(names - added) or (bool(added) and exchange.reader.has_values(sorted(added)))
    return replace(known, watermark=None) if is_filled else known


def _load(exchange: Exchange, task: Task, *, range_blocks: int) -> Outcome | Fit:
    """Load a table; return how far it came, or, if the target rejects a row, the fit to load it in batches instead."""
    raw = RawLoad(exchange.writer)
    for column in task.table.columns:
        if column.remark:
            exchange.say(f'column "{column.name}" becomes text: {column.remark}')
    require_table(task.table, task.raw)
    if task.is_replacement:
        for remark in raw.check_replacement():
            exchange.say(remark)
    after, loaded = _advance(task, Progress(), exchange.reader.snapshot), Counts()

    def on_commit(counts: Counts) -> None:
        nonlocal loaded
        loaded += counts
        exchange.on_commit(counts)

    try:
        is_complete = load_first(
            replace(exchange, on_commit=on_commit),
            range_blocks=range_blocks,
            progress=after,
            is_replacement=task.is_replacement,
            allow_deletes=task.options.allow_deletes,
        )
    except RowRefusedError as refusal:
        exchange.say(f"starting over in batches, to set the rejected rows aside: {refusal}")
        discarded = Counts(read=-loaded.read, inserted=-loaded.inserted)
        exchange.on_commit(discarded)
        raw.start_over(discarded, is_replacement=task.is_replacement)
        return _fit_for_batches(task, refusal)
    if is_complete and task.counters:
        exchange.writer.save_counters(task.counters)
    return Outcome(progress=after if is_complete else Progress(), is_complete=is_complete)


def _fit_for_batches(task: Task, refusal: RowRefusedError) -> Fit:
    if not task.is_replacement:
        return fit_new_table(task.table)
    try:
        return fit_table(task.table, task.raw)
    except TableError as error:
        raise TableError(f"{refusal}; fix the row on the source, then reload the table") from error


def _advance(task: Task, before: Progress, snapshot: Snapshot) -> Progress:
    started = replace(
        before,
        column=task.table.watermark,
        system_identifier=snapshot.system_identifier,
        next_xid=snapshot.next_xid,
    )
    if task.table.watermark is None:
        return replace(started, watermark=None, as_of=None, points=())
    return fence.advance(started, task.point, task.activity)
