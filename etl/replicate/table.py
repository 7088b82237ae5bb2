"""The order of steps for one table at one snapshot: a first load, or batches of changes.

Begin at `replicate_table`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from etl.errors import RowRefusedError, TableError
from etl.model import Counts, Outcome, Progress, Snapshot
from etl.policy import net
from etl.policy.schema_changes import Fit, describe_changes, fit_new_table, fit_table, require_table
from etl.policy.source_identity import Judgement, judge_source
from etl.replicate.changes import merge_changes
from etl.replicate.checks import check_null_watermarks, check_progress, check_source, forget_other_column
from etl.replicate.exchange import Exchange
from etl.replicate.full_load import load_first
from etl.replicate.net import check_content
from etl.replicate.task import Task, advance, on_source
from etl.results import Event, Observer
from etl.source.session import Source
from etl.target.new_table import RawLoad
from etl.target.writer import Writer


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
        judgement = Judgement(action="continue")
        if task.raw.exists and not task.is_replacement:
            judgement = check_source(writer, task.progress, snapshot)
        check_null_watermarks(table, reader)
        if task.raw.exists and not task.is_replacement:
            fit = fit_table(table, task.raw)
            if judgement.action == "compare":
                say(f"{judgement.finding}: all columns of all rows are compared")
                known = forget_other_column(table, task.progress)
            else:
                known = check_progress(
                    writer, fit.table, task.progress, task.point, source=source, reader=reader, has_clock=task.has_clock
                )
            rejected = task.raw.rejected_keys
        else:
            if task.is_replacement:
                _report_other_source(task, snapshot, say)
            loaded = _load(exchange, task, range_blocks=range_blocks)
            if isinstance(loaded, Outcome):
                return loaded
            fit, known = loaded, Progress()
            rejected = task.raw.rejected_keys if task.is_replacement else ()  # those of a dropped table are discarded
        for remark in fit.remarks:
            say(remark)
        is_continued = task.position is not None and table.watermark is not None
        start = replace(known, watermark=None, read_mark=None) if is_continued else known
        before = _before_changes(exchange, fit, start)
        exchange = replace(exchange, writer=writer.fitted(fit, before))
        after = advance(table, known, snapshot, task.point, task.activity)
        if judgement.action == "compare":  # all rows have to be compared before this source is stored
            after = replace(known, column=table.watermark, read_mark=None)
        outcome = merge_changes(
            exchange, before=before, after=after, position=task.position, rejected=rejected, note=task.note
        )
        if outcome.is_complete:
            is_whole = table.watermark is not None and before.watermark is None
            progress = check_content(exchange, task, judgement, outcome.progress, is_whole=is_whole)
            outcome = replace(outcome, progress=progress)
            if task.raw.has_load:  # left by a reload that failed
                RawLoad(exchange.writer).discard()
        return outcome


def _report_other_source(task: Task, snapshot: Snapshot, say: Callable[[str], None]) -> None:
    """Report that a reload, which any source may do, takes rows from another source than the runs before."""
    found = judge_source(task.table, task.progress, snapshot)
    if found.action != "continue":
        say(f"{found.finding}: the table is reloaded")


def _before_changes(exchange: Exchange, fit: Fit, known: Progress) -> Progress:
    """Return the progress to read from: without a watermark, if changes of columns gave old rows other values."""
    if not fit.changes:
        return known
    exchange.say(describe_changes(fit.changes))
    names = {change.column_name for change in fit.changes if change.needs_old_rows}
    added = {change.column_name for change in fit.changes if change.kind == "column_added"}
    is_filled = bool(names - added) or (bool(added) and exchange.reader.has_values(sorted(added)))
    return replace(known, watermark=None, read_mark=None) if is_filled else known


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
    snapshot, loaded = exchange.reader.snapshot, Counts()
    after = task.note(advance(task.table, Progress(), snapshot, task.point, task.activity), has_read=True)

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
        begun = on_source(Progress(), exchange.reader.snapshot)
        raw.start_over(discarded, begun, is_replacement=task.is_replacement)
        return _fit_for_batches(task, refusal)
    if is_complete and task.counters:
        exchange.writer.save_check(
            after, counters=task.counters, renewed=net.whole_slice(task.table, snapshot, task.counters)
        )
    return Outcome(progress=after if is_complete else Progress(), is_complete=is_complete)


def _fit_for_batches(task: Task, refusal: RowRefusedError) -> Fit:
    if not task.is_replacement:
        return fit_new_table(task.table)
    try:
        return fit_table(task.table, task.raw)
    except TableError as error:
        raise TableError(f"{refusal}; fix the row on the source, then reload the table") from error
