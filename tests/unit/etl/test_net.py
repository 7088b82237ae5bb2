"""The net below a watermark: what its marks tell, what makes a run look, and how a large table is scanned in steps."""

import datetime as dt
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.model import Mark, Progress, Snapshot, SourceIdentity, Table, TableConfig, WatermarkKind
from etl.policy import net
from etl.policy.deletes import Counters
from etl.policy.net import MAX_XID_DISTANCE, SLICE_BLOCKS, XID_MODULUS, Slice

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SIGNATURE = json.dumps({"files": "1:2", "key": ["id"], "columns": {"id": "a", "note": "b"}})
COUNTERS = Counters(
    inserted=10,
    updated=5,
    deleted=0,
    filenodes="1:2",
    stats_reset="",
    server_started_at=START,
    listed_at=START,
)
XIDS = st.integers(3, 2**40)


def snapshot_at(xid):
    return Snapshot(
        name="", source=SourceIdentity(), is_standby=False, oldest_xid=str(xid), next_xid=str(xid), expires_at=0.0
    )


def make_table(**config):
    return Table(
        schema="public",
        name="orders",
        oid=1,
        columns=(),
        key=("id",),
        watermark="updated_at",
        watermark_kind=WatermarkKind.TIMESTAMPTZ,
        watermark_sequence=None,
        config=TableConfig(**config),
        estimated_rows=0,
        filenodes="1:2",
        descendants="none",
        has_blocks=True,
    )


def slice_at(instant, start=0, end=None, xid=3):
    return Slice(start=start, end=end, mark=Mark(oldest_xid=str(xid), signature=SIGNATURE), scanned_at=instant)


@given(marked=XIDS, distance=st.integers(-(2**33), 2**33))
def test_mark_tells_less_than_half_of_all_ids(marked, distance):
    found = net.since(Mark(oldest_xid=str(marked), signature=SIGNATURE), snapshot_at(marked + distance), SIGNATURE)

    expected = str(marked % XID_MODULUS) if 0 <= distance < MAX_XID_DISTANCE else None
    assert found == expected


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({}, True),
        ({"columns": {"id": "a", "note": "b", "new": "c"}}, True),
        ({"columns": {"id": "a"}}, True),
        ({"columns": {"id": "a", "note": "other"}}, False),
        ({"files": "1:3"}, False),
        ({"key": ["note"]}, False),
        ({"watermark": ["updated_at"]}, False),
    ],
    ids=["same", "added", "dropped", "other values", "other files", "other key", "read another way"],
)
def test_mark_fits_what_gives_rows_the_same_values(now, expected):
    assert net.fits(SIGNATURE, json.dumps({**json.loads(SIGNATURE), **now})) is expected


@given(reads=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=20))
def test_counts_are_explained_by_rows_of_this_run_or_the_last(reads):
    """Each run counts some changes more, and reads rows or not."""
    progress, counted, noted, had_read, is_first = Progress(), 15, 15, False, True
    for more, has_read in reads:
        counted += more
        now = replace(COUNTERS, inserted=counted - COUNTERS.updated)
        progress = net.note_activity(progress, progress, now, clock_ahead=0.0, has_read=has_read)
        if has_read or had_read or is_first:
            noted = counted
        had_read, is_first = has_read, False
        assert progress.changes_counted == noted


@pytest.mark.parametrize(("seconds", "has_moved"), [(0.0, False), (4.9, False), (-5.1, True), (5.1, True)])
def test_clock_that_moved_stays_noted_until_a_scan(seconds, has_moved):
    before = Progress(clock_ahead=100.0)
    after = net.note_activity(before, before, COUNTERS, clock_ahead=100.0 + seconds, has_read=True)

    assert net.has_clock_moved(before, 100.0 + seconds) is has_moved
    assert after.clock_ahead == (100.0 if has_moved else 100.0 + seconds)
    assert net.note_scan(after, COUNTERS, clock_ahead=100.0 + seconds).clock_ahead == 100.0 + seconds


def scan(slices, chosen, blocks, instant):
    """Scan parts of the chosen slices, as a run does; return all slices then, and how many blocks were scanned."""
    parts, scanned = dict(chosen), 0
    after = [one for one in slices if one not in parts]
    for one, count in parts.items():
        last = blocks if one.end is None else one.end
        end = min(one.start + count * SLICE_BLOCKS, last)
        scanned += max(end - one.start, 0)
        starts = range(one.start, end, SLICE_BLOCKS) or [one.start]
        after += [slice_at(instant, start, min(start + SLICE_BLOCKS, last)) for start in starts]
        if end < last:
            after.append(replace(one, start=end))
        else:
            after[-1] = replace(after[-1], end=one.end)
    return after, scanned


@settings(deadline=None)
@given(
    blocks=st.integers(0, 40 * SLICE_BLOCKS),
    minutes=st.integers(1, 3 * 60),
    hours=st.sampled_from([1.0, 24.0, 100.0]),
)
def test_schedule_reaches_every_block_within_its_hours(blocks, minutes, hours):
    table = make_table(reconcile_every_hours=hours)
    slices, interval = [slice_at(START)], dt.timedelta(minutes=minutes)
    fair_parts = math.ceil(blocks / SLICE_BLOCKS) * minutes / 60 / hours
    for number in range(1, min(math.ceil(3 * hours * 60 / minutes), 400)):
        instant = START + number * interval
        now = replace(COUNTERS, listed_at=instant, estimated_blocks=blocks)
        chosen = net.choose_slices(table, slices, now)
        slices, scanned = scan(slices, chosen, blocks, instant)

        assert scanned <= (math.ceil(fair_parts) + 1) * SLICE_BLOCKS
        assert max(instant - one.scanned_at for one in slices) < dt.timedelta(hours=hours) + interval


def test_scan_of_the_future_is_due():
    """The source's clock was set back."""
    now = replace(COUNTERS, listed_at=START - dt.timedelta(hours=1))

    assert net.choose_slices(make_table(), [slice_at(START)], now) == [(slice_at(START), 1)]


def test_no_schedule_means_a_scan_with_each_run():
    found = net.choose_slices(make_table(reconcile_every_hours=0.0), [slice_at(START)], COUNTERS)

    assert found == [(slice_at(START), 1)]
