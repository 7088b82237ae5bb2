"""The first load of one table: in one transaction, or in ranges of blocks with recorded progress.

A load in ranges that was interrupted, or whose snapshot expired, continues at a newer snapshot. Meanwhile, rows may
have changed, moved between ranges or been deleted, even without touching the watermark column. Once every range has
been read, `_renew` brings all of them to exactly the last snapshot. A row version written since the first snapshot has
the id of the oldest transaction of that snapshot or a later one (xmin, "System Columns" in the manual), and is copied.
Every other version was in the same place at all snapshots, and was loaded once. Loaded rows whose key no longer has
such an older version are dropped. Begin at `load_first`.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from etl.model import LoadState, Progress, Snapshot
from etl.policy.net import XID_MODULUS
from etl.replicate.checks import is_usable, sign_columns, xid_distance
from etl.replicate.exchange import Exchange
from etl.source.statements import BlockRange
from etl.target.new_table import RawLoad

# A load this old is renewed before it continues, so that it never has to start over because of its age.
RENEWED_XID_DISTANCE = 2**30


def load_first(
    exchange: Exchange, *, range_blocks: int, progress: Progress, is_replacement: bool, allow_deletes: bool
) -> bool:
    """Load a table that `raw` does not have, or reload one; return False when the snapshot expired before the end.

    Each transaction reads at most `range_blocks` blocks of the source. The table appears in `raw` complete, together
    with `progress`. Rows that only the replaced table had become tombstones. Raises TableError; ranges that were loaded
    before it are kept.
    """
    reader, raw = exchange.reader, RawLoad(exchange.writer)
    snapshot = reader.snapshot
    load = _usable_load(snapshot, raw)
    limit = range_blocks if raw.table.has_blocks else sys.maxsize
    if load is None and not is_replacement and range_end(reader.block_counts(), 0, limit) is None:
        exchange.on_commit(raw.make_whole(partial(reader.copy_out, raw.table, BlockRange()), progress))
        return True
    has_older_snapshots = load is not None
    if load is None:
        load = _begin(snapshot, raw)
    elif xid_distance(load, snapshot) >= RENEWED_XID_DISTANCE:
        load = _renew(exchange, raw, load)
    while load.next_block is not None:
        load = _load_range(exchange, raw, load, limit)
        if load.next_block is not None and snapshot.is_expired:
            return False
    if has_older_snapshots:
        _renew(exchange, raw, load)
    reader.close()  # building the key takes long and does not need the source
    published = raw.publish(progress, allow_deletes=allow_deletes)
    for remark in published.remarks:
        exchange.say(remark)
    if published.counts.deleted:
        exchange.on_commit(published.counts)
    return True


def range_end(counts: Sequence[int], start: int, limit: int) -> int | None:
    """Return the block before which a range from `start` ends; None when it reaches the end of every partition.

    `counts` are the numbers of blocks of the partitions. The same range is read of each partition: at most `limit`
    blocks in total, but at least one of each. The last range has no end, because partitions may have grown.
    """
    last = max(counts, default=0)
    fitting = range(start + 1, last + 1)
    place = bisect_right(fitting, limit, key=lambda end: sum(min(n, end) - min(n, start) for n in counts))
    end = start + max(place, 1)
    return end if end < last else None


def _begin(snapshot: Snapshot, raw: RawLoad) -> LoadState:
    return LoadState(
        filenodes=raw.table.files,
        signature=sign_columns(raw.table),
        source=snapshot.source,
        next_block=0,
        oldest_xid=snapshot.oldest_xid,
    )


def _load_range(exchange: Exchange, raw: RawLoad, load: LoadState, limit: int) -> LoadState:
    start, reader = load.next_block, exchange.reader
    assert start is not None
    end = range_end(reader.block_counts(), start, limit)
    after = replace(load, next_block=end)
    rows = BlockRange(start=start, end=end)
    exchange.on_commit(raw.add_range(partial(reader.copy_out, raw.table, rows), after, is_first=start == 0))
    return after


def _renew(exchange: Exchange, raw: RawLoad, load: LoadState) -> LoadState:
    """Bring the ranges read so far, up to `next_block`, to the reader's snapshot."""
    reader, xid = exchange.reader, str(int(load.oldest_xid) % XID_MODULUS)
    kept = BlockRange(end=load.next_block, before_xid=xid)
    written = BlockRange(end=load.next_block, since_xid=xid)
    after = replace(load, oldest_xid=reader.snapshot.oldest_xid)
    counts = raw.renew(partial(reader.copy_out_keys, kept), partial(reader.copy_out, raw.table, written), after)
    exchange.on_commit(counts)
    return after


def _usable_load(snapshot: Snapshot, raw: RawLoad) -> LoadState | None:
    """Return the unfinished load to continue, or None; one that no longer fits the source's table is discarded."""
    load = raw.read_state()
    if load is None or is_usable(load, raw.table, snapshot):
        return load
    raw.discard()
    return None
