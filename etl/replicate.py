"""The order of steps for one table at one snapshot: a first load, or batches of what changed.

Begin at `replicate_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from etl import fence
from etl.config import Settings
from etl.model import Activity, Counts, Event, Point, Progress, Table
from etl.source import Reader, Source, check_progress
from etl.statements import Window
from etl.target import Writer, open_writer

Observer = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One table to bring up to date: where it stands, and what was known before the snapshot."""

    table: Table
    progress: Progress
    point: Point | None
    activity: Activity
    system_identifier: str


def replicate_table(
    settings: Settings, source: Source, run_id: int, task: Task, observe: Observer
) -> tuple[Counts, Progress]:
    """Bring one raw table up to the snapshot; return what was done and where the table stands now.

    Each batch commits on its own, with its ledger; the watermark commits with the last one. Raises TableError.
    """
    table = task.table
    with open_writer(settings, table, run_id) as writer, source.open_reader(table) as reader:
        if not writer.has_raw_table():
            after = _advance(task, Progress())
            counts = writer.load_first(partial(reader.copy_out, Window()), after)
            observe(Event(kind="batch_committed", table_name=table.name, counts=counts))
            return counts, after
        check_progress(table, task.progress, task.point, task.system_identifier)
        before = task.progress if task.progress.column == table.watermark else Progress()
        after = _advance(task, before)
        counts = Counts()
        for batch in _merge_changes(reader, writer, table, before, after):
            counts += batch
            observe(Event(kind="batch_committed", table_name=table.name, counts=batch))
        return counts, after


def _merge_changes(reader: Reader, writer: Writer, table: Table, before: Progress, after: Progress) -> Iterator[Counts]:
    """Merge what changed and yield the counts of each batch once it has committed."""
    *earlier, last = _windows(table, before)
    for part in (*earlier, last):
        window, is_full = part, True
        while is_full:
            counts = writer.merge_batch(partial(reader.copy_out, window), after if part is last else None)
            yield counts
            is_full = counts.read == table.batch_rows
            if is_full:
                window = replace(window, after=reader.window_end(window))


def _windows(table: Table, before: Progress) -> list[Window]:
    """Return the first window of each part to read; rows without a watermark are read every time."""
    if table.watermark is None or before.watermark is None:
        return [Window(limit=table.batch_rows)]
    changed = Window(read_from=before.watermark, limit=table.batch_rows)
    if not table.column(table.watermark).is_nullable:
        return [changed]
    return [changed, Window(is_null_watermark=True, limit=table.batch_rows)]


def _advance(task: Task, before: Progress) -> Progress:
    started = replace(before, column=task.table.watermark, system_identifier=task.system_identifier)
    if task.table.watermark is None:
        return replace(started, watermark=None, points=())
    return fence.advance(started, task.point, task.activity)
