"""The first load of one table: in one transaction, or in ranges of blocks with recorded progress.

A load in ranges that broke, or whose snapshot grew too old, goes on at a newer snapshot. Rows may have changed, moved
between ranges or gone meanwhile, also without touching the watermark column. Once every range has been read, `_renew`
brings all of them to the last snapshot exactly: a row version that was written since the first one has the transaction
id of that snapshot's oldest transaction or a later one (xmin, "System Columns" in the manual); every other version was
in its place at all snapshots, and was loaded once. So versions written since are copied, and loaded rows whose key has
no older version any more are dropped. Begin at `load_first`.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from etl.model import LoadState, Progress, Snapshot
from etl.replicate.checks import is_usable, sign_columns, xid_distance
from etl.replicate.exchange import Exchange
from etl.source.statements import BlockRange
from etl.target.new_table import RawLoad

XID_MODULUS = 2**32
# A load that goes on for as long is renewed before, so that it never has to start over for its age.
RENEWED_XID_DISTANCE = 2**30


def load_first(
    exchange: Exchange, *, range_blocks: int, progress: Progress, is_replacement: bool, allow_deletes: bool
) -> bool:
    """Load a table that `raw` does not have, or has to replace; tell whether it is done, or the snapshot expired.

    A transaction reads `range_blocks` blocks of the source at most. The table appears in `raw` with its last rows and
    `progress`; the one that it replaces leaves its other rows as tombstones. Raises TableError; what was loaded until
    then stays.
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
    reader.close()  # building the key takes long, and needs nothing of the source
    published = raw.publish(progress, allow_deletes=allow_deletes)
    for remark in published.remarks:
        exchange.say(remark)
    if published.counts.deleted:
        exchange.on_commit(published.counts)
    return True


def range_end(counts: Sequence[int], start: int, limit: int) -> int | None:
    """Return the block at which a range from `start` ends, so that it has `limit` blocks at most, but one of each.

    `counts` are the numbers of blocks of the partitions, all of which are read from block `start` on. None when the
    range reaches the end of all of them: it has no upper end then, for they may have grown.
    """
    last = max(counts, default=0)
    fitting = range(start + 1, last + 1)
    place = bisect_right(fitting, limit, key=lambda end: sum(min(n, end) - min(n, start) for n in counts))
    end = start + max(place, 1)
    return end if end < last else None


def _begin(snapshot: Snapshot, raw: RawLoad) -> LoadState:
    return LoadState(
        filenodes=raw.table.filenodes,
        signature=sign_columns(raw.table),
        system_identifier=snapshot.system_identifier,
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
    """Return a load to go on with; one that no longer fits the source's table is discarded."""
    load = raw.read_state()
    if load is None or is_usable(load, raw.table, snapshot):
        return load
    raw.discard()
    return None
