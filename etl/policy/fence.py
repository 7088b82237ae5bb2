"""Decides how far a watermark may advance. Pure: `etl.source.open_transactions` lists the open transactions.

`updated_at = now()` is the time at which the writing transaction began, so a row can become visible long after a row
with a larger value. A point is a value together with the transactions that were open when it was taken. It is
*settled* when all of them ended before the snapshot, because then no row below it can still appear.
Begin at `advance`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

from etl.model import Activity, Point, Progress

# While one transaction holds a table back, each run adds a point. Dropping points in the middle only makes the
# watermark advance in larger steps, so only the oldest point and the newest ones are kept.
MAX_KEPT_POINTS = 50


def is_settled(point: Point, activity: Activity) -> bool:
    """Return whether no transaction can still commit a row below the point.

    `activity` must be listed before the snapshot at which the run reads. A prepared transaction has lost its virtual
    id and its start time, so no point is settled while one exists.
    """
    if activity.has_prepared:
        return False
    if activity.oldest_start is not None and activity.oldest_start <= point.as_of:
        return False
    if point.server_started_at != activity.server_started_at:
        return True  # a restart ended every transaction that was not prepared
    return not point.transactions & activity.transactions


def advance(progress: Progress, new_point: Point | None, activity: Activity) -> Progress:
    """Return the progress after a run: the newest settled point as watermark, and later points for the next runs.

    Points are in the order in which they were taken. The watermark never moves back: if no point is settled, it stays.
    `new_point` is None if there was no value to take, as in an integer column without rows.
    """
    points = (*progress.points, new_point) if new_point else progress.points
    settled = [index for index, point in enumerate(points) if is_settled(point, activity)]
    if not settled:
        return replace(progress, points=_bounded(points))
    newest = points[settled[-1]]
    later = points[settled[-1] + 1 :]
    return replace(progress, watermark=newest.value, as_of=newest.as_of, points=_bounded(later))


def seconds_set_back(progress: Progress, point: Point) -> float:
    """Return how many seconds the source's clock was set back since the last point; 0 if it was not.

    Rows stamped after the clock was set back can be below the watermark.
    """
    latest = progress.latest_as_of
    return 0.0 if latest is None else max((latest - point.as_of).total_seconds(), 0.0)


def is_drained(points: Sequence[Point], activity: Activity) -> bool:
    """Return whether all points are settled, so that there is nothing to wait for."""
    return all(is_settled(point, activity) for point in points)


def set_back(instant: dt.datetime, margin_seconds: float) -> dt.datetime:
    """Return the instant less the margin.

    A backend reads the time that now() will return a moment before its transaction appears in pg_locks; the margin
    covers that moment. Raises ValueError for an instant without a time zone.
    """
    if instant.tzinfo is None:
        raise ValueError("expected an instant with a time zone, found a naive one")
    return instant - dt.timedelta(seconds=margin_seconds)


def _bounded(points: tuple[Point, ...]) -> tuple[Point, ...]:
    return points if len(points) <= MAX_KEPT_POINTS else (points[0], *points[-(MAX_KEPT_POINTS - 1) :])
