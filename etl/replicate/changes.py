"""What changed in one table since its watermark, merged in batches; rows that the target refuses are set aside.

Rows are read in the order of (watermark, key), so that a batch begins where the one before ended. When the target
refuses a batch, its halves are read again at the same snapshot, and theirs, down to the rows to blame.
Begin at `merge_changes`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from etl.errors import RowRefusedError
from etl.model import Counts, Outcome, Position, Progress, Table
from etl.replicate.exchange import Exchange
from etl.source.reader import Reader
from etl.source.statements import Window
from etl.target.batch import Batch

Keys = tuple[tuple[str, ...], ...]


def merge_changes(
    exchange: Exchange, *, before: Progress, after: Progress, position: Position | None, rejected: Keys
) -> Outcome:
    """Merge what changed since `before`, and the rejected rows with these keys; the last batch stores `after`.

    Ends early, between two batches, when the snapshot has expired; what was merged is then committed, and the outcome
    says from where to go on. Raises TableError.
    """
    final = position.progress if position else after
    *earlier, last = _windows(exchange.writer.table, before, rejected, position)
    for part in (*earlier, last):
        window: Window | None = part
        while window is not None:
            window = merge_window(exchange, window, final=final if part is last else None)
            if window is not None and exchange.reader.snapshot.is_expired:
                outcome = _cut(exchange, before, final, window)
                if outcome is not None:
                    return outcome
    return Outcome(progress=final)


def merge_window(exchange: Exchange, window: Window, *, final: Progress | None = None) -> Window | None:
    """Merge one batch in one transaction; return the window of the next one, None when this part is done.

    The last batch of a part stores `final`, and forgets the rejects among its keys that it has not refused again.
    """
    reader, writer = exchange.reader, exchange.writer
    with writer.open_batch() as batch:
        is_full = _merge(reader, batch, writer.table, window).read == window.limit
        if not is_full and window.keys is not None:
            batch.clear_rejects(window.keys)
        if not is_full and final is not None:
            batch.save_progress(final)
    exchange.on_commit(batch.counts)
    return replace(window, after=reader.window_end(window)) if is_full else None


def _merge(reader: Reader, batch: Batch, table: Table, window: Window) -> Counts:
    """Merge a window; where the target refuses it, merge its halves, down to single rows, which are set aside."""
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


def _windows(table: Table, before: Progress, rejected: Keys, position: Position | None) -> list[Window]:
    """Return the first window of each part to read: rows refused before, those without watermark, and the changes.

    Rows that were refused are tried again each run, for what was wrong may have been mended on the target alone.
    """
    limit = table.config.batch_rows
    retried = [Window(keys=rejected, limit=len(rejected) + 1)] if rejected else []
    if table.watermark is None or before.watermark is None:
        return [*retried, Window(limit=limit, after=position.after if position else None)]
    unmarked = [Window(is_null_watermark=True, limit=limit)] if table.column(table.watermark).is_nullable else []
    return [*retried, *unmarked, Window(read_from=before.watermark, limit=limit)]


def _cut(exchange: Exchange, before: Progress, final: Progress, window: Window) -> Outcome | None:
    """Leave the snapshot between two batches, if that is progress; None if the same rows would be read for ever.

    All rows up to the window are merged, and no open transaction can write below a settled point: the lesser of
    both is a watermark.
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
