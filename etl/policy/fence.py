"""Decides how far a watermark may advance. Pure: listing what is open is the work of `activity`.

`updated_at = now()` is the time at which the writing transaction began, so a row can become visible long after
a larger value has. A point is a value together with the transactions open when it was taken; it is *settled*
when all of them had ended before the snapshot, for then no row below it can still appear.
Begin reading at `advance`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

from etl.model import Activity, Point, Progress

# A table held back by one transaction collects a point a run. Dropping one in the middle only makes the
# watermark advance in larger steps, so a bounded number is kept: the oldest, and the newest.
MAX_KEPT_POINTS = 50


def is_settled(point: Point, activity: Activity) -> bool:
    """Tell whether no transaction can still commit a row below the point.

    `activity` has to be listed before the snapshot that the run reads at. A prepared transaction has lost its
    virtual id and its start time, so while any exists nothing is known.
    """
    if activity.has_prepared:
        return False
    if activity.oldest_start is not None and activity.oldest_start <= point.as_of:
        return False
    if point.server_started_at != activity.server_started_at:
        return True  # a restart ended every transaction that was not prepared
    return not point.transactions & activity.transactions


def advance(progress: Progress, new_point: Point | None, activity: Activity) -> Progress:
    """Return the progress after a run: the newest settled point, and the points that stay for later runs.

    Points are ordered as they were taken. The watermark never moves back: with nothing settled it stays.
    `new_point` is None where the table had no value to take, an integer column without rows.
    """
    points = (*progress.points, new_point) if new_point else progress.points
    settled = [index for index, point in enumerate(points) if is_settled(point, activity)]
    if not settled:
        return replace(progress, points=_bounded(points))
    newest = points[settled[-1]]
    later = points[settled[-1] + 1 :]
    return replace(progress, watermark=newest.value, as_of=newest.as_of, points=_bounded(later))


def seconds_set_back(progress: Progress, point: Point) -> float:
    """Return by how much the source's clock was set back since the last point, 0 when it was not.

    Rows stamped by a clock that was set back can be below the watermark.
    """
    latest = progress.latest_as_of
    return 0.0 if latest is None else max((latest - point.as_of).total_seconds(), 0.0)


def is_drained(points: Sequence[Point], activity: Activity) -> bool:
    """Tell whether waiting longer for open transactions would settle nothing more."""
    return all(is_settled(point, activity) for point in points)


def set_back(instant: dt.datetime, margin_seconds: float) -> dt.datetime:
    """Return the instant less the margin.

    A backend takes the time that now() will return a moment before its transaction shows in pg_locks; the
    margin covers that moment. A naive instant is refused.
    """
    if instant.tzinfo is None:
        raise ValueError("expected an instant with a time zone, found a naive one")
    return instant - dt.timedelta(seconds=margin_seconds)


def _bounded(points: tuple[Point, ...]) -> tuple[Point, ...]:
    return points if len(points) <= MAX_KEPT_POINTS else (points[0], *points[-(MAX_KEPT_POINTS - 1) :])
