"""The fence against its plain definition: a point settles when nothing can still commit a row below it."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.model import Activity, Point, Progress
from etl.policy import fence

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
TRANSACTIONS = st.frozensets(st.sampled_from(["3/1", "3/2", "4/7", "5/9"]), max_size=4)


def point(value="1", transactions=(), as_of=NOON, server_started_at=START):
    return Point(value=value, as_of=as_of, transactions=frozenset(transactions), server_started_at=server_started_at)


def activity(transactions=(), has_prepared=False, oldest_start=None, server_started_at=START):
    return Activity(
        transactions=frozenset(transactions),
        has_prepared=has_prepared,
        oldest_start=oldest_start,
        server_started_at=server_started_at,
    )


def test_a_point_settles_when_its_transactions_have_ended():
    assert not fence.is_settled(point(transactions=["3/1"]), activity(["3/1", "4/7"]))
    assert fence.is_settled(point(transactions=["3/1"]), activity(["4/7"]))


def test_nothing_settles_beside_a_prepared_transaction():
    assert not fence.is_settled(point(), activity(has_prepared=True))
    assert not fence.is_settled(point(), activity(has_prepared=True, server_started_at=NOON))


@pytest.mark.parametrize(("seconds", "expected"), [(-1, False), (0, False), (1, True)])
def test_transaction_started_no_later_than_the_point_holds_it(seconds, expected):
    started = NOON + dt.timedelta(seconds=seconds)

    assert fence.is_settled(point(), activity(oldest_start=started)) is expected


def test_server_restart_ends_transactions_with_reused_ids():
    assert fence.is_settled(point(transactions=["3/1"]), activity(["3/1"], server_started_at=NOON))


def test_clock_set_back_is_detected_from_any_earlier_point():
    progress = Progress(as_of=NOON, points=(point(as_of=NOON + dt.timedelta(seconds=60)),))

    assert fence.seconds_set_back(progress, point(as_of=NOON + dt.timedelta(seconds=20))) == 40
    assert fence.seconds_set_back(progress, point(as_of=NOON + dt.timedelta(seconds=61))) == 0
    assert fence.seconds_set_back(Progress(), point()) == 0


def test_instant_without_time_zone_is_rejected():
    with pytest.raises(ValueError, match="naive"):
        fence.set_back(dt.datetime(2026, 1, 1), 5)


@given(st.lists(TRANSACTIONS, min_size=1, max_size=fence.MAX_KEPT_POINTS - 1), TRANSACTIONS)
def test_watermark_is_the_newest_point_without_transactions(held, still_open):
    points = [point(str(place), transactions) for place, transactions in enumerate(held)]
    before = Progress(watermark="before", column="c", points=tuple(points[:-1]))

    after = fence.advance(before, points[-1], activity(still_open))

    settled = [each for each in points if not each.transactions & still_open]
    assert after.watermark == (settled[-1].value if settled else "before")
    assert list(after.points) == (points[points.index(settled[-1]) + 1 :] if settled else points)
    assert after.column == "c"


@given(st.integers(min_value=fence.MAX_KEPT_POINTS, max_value=200))
def test_long_held_watermark_keeps_a_limited_number_of_points(runs):
    progress = Progress(column="c")
    for run in range(runs):
        progress = fence.advance(progress, point(str(run), ["3/1"]), activity(["3/1"]))

    values = [each.value for each in progress.points]
    assert len(values) == fence.MAX_KEPT_POINTS
    assert values[0] == "0"
    assert values[-1] == str(runs - 1)
    assert fence.advance(progress, None, activity()).watermark == str(runs - 1)
    assert fence.advance(progress, None, activity()).points == ()
