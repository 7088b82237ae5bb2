"""Makes the keys of a raw table match the source: deleted rows become tombstones, missing rows are loaded.

Reading by watermark finds neither a deleted row nor a row that comes back with an old watermark. Both sides are
compared at the run's snapshot, after changes have been merged, so rows newer than the snapshot are on neither side.
Begin at `reconcile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from etl.compare.buckets import extra_keys
from etl.compare.differences import Differences, find_differences, list_differences
from etl.model import Column, Table
from etl.policy.deletes import check_fraction
from etl.replicate.changes import merge_window
from etl.replicate.exchange import Exchange
from etl.source.statements import Window


def identifying_columns(table: Table) -> tuple[Column, ...]:
    """Return the key and the watermark column, which differs where a row came back with an old watermark."""
    names = dict.fromkeys([*table.key, *([table.watermark] if table.watermark else [])])
    return tuple(table.column(name) for name in names)


def reconcile(exchange: Exchange, *, allow_deletes: bool, columns: Sequence[Column]) -> Differences:
    """Compare these columns of both sides, and repair `raw`.

    With `deletes: none`, rows that only `raw` has are kept and not counted. Returns what was repaired.
    Raises TableError, with nothing written, when more than `max_delete_fraction` of the rows were deleted and
    `allow_deletes` is not set.
    """
    writer, table = exchange.writer, exchange.writer.table
    with writer.transaction() as cursor:
        found = find_differences(exchange.reader, cursor, table, columns, None, is_pending_apart=False)
    if table.config.deletes == "none":
        found = replace(found, extra=0)
    if not allow_deletes:
        check_fraction(table, found.extra, found.raw_rows)
    repair(exchange, found)
    return found


def repair(exchange: Exchange, found: Differences) -> None:
    """Turn extra rows into tombstones, if deletes are followed, and load missing and changed rows, at the snapshot."""
    writer = exchange.writer
    if found.extra and writer.table.config.deletes == "reconcile":
        exchange.on_commit(writer.bury_rows(extra_keys()))
    if not found.to_load:
        return
    with writer.session() as cursor:
        for chunk in list_differences(cursor, writer.table, ("missing", "changed", "rejected")):
            window = Window(keys=tuple(each.key for each in chunk), limit=len(chunk) + 1)
            merge_window(exchange, window)
