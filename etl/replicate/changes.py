"""Merges what changed in one table since its watermark, in batches; rows that the target rejects are set aside.

Rows are read in the order of (watermark, key), so each batch begins where the previous one ended. When the target
rejects a batch, each half of it is read again at the same snapshot, and so on down to the offending rows.
Begin at `merge_changes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from etl.errors import RowRefusedError, TableError
from etl.model import Counts, Outcome, Position, Progress, Table
from etl.policy import net
from etl.replicate.exchange import Exchange
from etl.source.reader import Reader
from etl.source.statements import BlockRange, Window
from etl.target.batch import Batch

Keys = tuple[tuple[str, ...], ...]
MAX_KEYS = 1000  # in one statement


def merge_changes(
    exchange: Exchange,
    *,
    before: Progress,
    after: Progress,
    position: Position | None,
    rejected: Keys,
    note: Callable[[Progress, bool], Progress],
) -> Outcome:
    """Merge what changed since `before`, and the rejected rows with these keys; the last batch stores `after`.

    `note` adds to it what depends on whether any row was read, apart from the rejected ones. Each batch is one
    transaction. Stops between two batches when the snapshot has expired; the outcome then says where to continue.
    Raises TableError.
    """
    final, has_read = position.progress if position else after, False

    def finish(batch: Batch) -> None:
        nonlocal final
        final = note(final, has_read or batch.counts.read > 0)
        batch.save_progress(final)

    *earlier, last = _windows(exchange, before, rejected, position)
    for part in (*earlier, last):
        window: Window | None = part
        while window is not None:
            counts, window = merge_window(exchange, window, finish=finish if part is last else None)
            has_read = has_read or (part.keys is None and counts.read > 0)
            if window is not None and exchange.reader.snapshot.is_expired:
                outcome = _cut(exchange, before, final, window)
                if outcome is not None:
                    return outcome
    return Outcome(progress=final)


def merge_window(
    exchange: Exchange, window: Window, *, finish: Callable[[Batch], None] | None = None
) -> tuple[Counts, Window | None]:
    """Merge one batch in one transaction; return its counts, and the window of the next batch, if any.

    The last batch of a part ends with `finish`, in its transaction, and deletes the rejects among the window's keys
    that were not rejected again.
    """
    reader, writer = exchange.reader, exchange.writer
    with writer.open_batch() as batch:
        is_full = _merge(reader, batch, writer.table, window).read == window.limit
        _check_respelled(reader, writer.table, batch.respelled)
        if not is_full and window.keys is not None:
            batch.clear_rejects(window.keys)
        if not is_full and finish is not None:
            finish(batch)
    exchange.on_commit(batch.counts)
    return batch.counts, replace(window, after=reader.window_end(window)) if is_full else None


def _merge(reader: Reader, batch: Batch, table: Table, window: Window) -> Counts:
    """Merge a window; if the target rejects it, merge its halves, down to single rows, which are set aside."""
    try:
        return batch.merge(partial(reader.copy_out, table, window))
    except RowRefusedError as refusal:
        if window.limit == 1:
            batch.reject(reader.key_of(window), reader.text_of(window), refusal)
            return Counts(read=1, rejected=1)
    first = replace(window, limit=window.limit // 2)
    counts = _merge(reader, batch, table, first)
    if counts.read < first.limit:
        return counts
    rest = replace(window, limit=window.limit - first.limit, after=reader.window_end(first))
    return counts + _merge(reader, batch, table, rest)


def _check_respelled(reader: Reader, table: Table, keys: Sequence[tuple[str, ...]]) -> None:
    """Raise TableError when a row took the place of another row that the source still has.

    Equality of a type like citext depends on the locale of the database, so two keys of the source can be one in `raw`.
    """
    for start in range(0, len(keys), MAX_KEYS):
        chunk = keys[start : start + MAX_KEYS]
        kept = set(reader.keys_among(chunk)) & set(chunk)
        if kept:
            key = ", ".join(f"{name} = {value}" for name, value in zip(table.key, min(kept), strict=True))
            raise TableError(
                f"{table.label}: the source has another row beside the one with {key} whose key raw.{table.name} takes "
                "for the same: create the target's database with the locale of the source's, or change the column's "
                f"type on the source to text and reload the table with `etl reset {table.argument}`"
            )


def _windows(exchange: Exchange, before: Progress, rejected: Keys, position: Position | None) -> list[Window]:
    """Return the first window of each part to read: rejected rows, rows without a watermark, and changed rows.

    Rejected rows are retried in each run, because the cause may have been fixed on the target, where no watermark shows
    it. Of the others, only the versions that the last complete read could not see are new.
    """
    table = exchange.writer.table
    limit = table.config.batch_rows
    retried = [Window(keys=rejected, limit=len(rejected) + 1)] if rejected else []
    new = net.find_new(table, before, exchange.reader.snapshot)
    within = None if new is None else BlockRange(since_xid=new)
    if table.watermark is None or before.watermark is None:
        return [*retried, Window(limit=limit, within=within, after=position.after if position else None)]
    is_nullable = table.column(table.watermark).is_nullable
    unmarked = [Window(is_null_watermark=True, within=within, limit=limit)] if is_nullable else []
    return [*retried, *unmarked, Window(read_from=before.watermark, within=within, limit=limit)]


def _cut(exchange: Exchange, before: Progress, final: Progress, window: Window) -> Outcome | None:
    """Stop between two batches; return None where the next snapshot would only read the same rows again.

    All rows before the window are merged, and no open transaction can write below a settled point, so the lesser of the
    two is a valid watermark. It is committed here.
    """
    assert window.after is not None
    if window.keys is not None or window.is_null_watermark:
        return None
    if window.read_from is None:
        position = Position(after=window.after, progress=final)
        return Outcome(progress=before, is_complete=False, position=position)
    if final.watermark is None:
        return None
    reader = exchange.reader
    reached = reader.lesser_watermark(window.after[0], final.watermark)
    if reader.lesser_watermark(reached, window.read_from) == reached:
        return None
    progress = replace(before, watermark=reached)
    exchange.writer.save_progress(progress)
    return Outcome(progress=progress, is_complete=False)
