"""Decides whether rows may have gone from a source table since it was last reconciled, and how many may. Pure.

The counters of pg_stat_user_tables lag behind by up to some seconds, and stand still during a long procedure. They are
therefore listed before the snapshot: what they do not show yet, they show in a later run. An update of a key leaves
them as they are, so a table is reconciled once in a while all the same.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from etl.errors import TableError
from etl.model import Table


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What the source counts of a table and its partitions, and what would make these counts start anew."""

    inserted: int
    updated: int
    deleted: int
    filenodes: str  # TRUNCATE and rewrites change them
    stats_reset: str  # when statistics of the database were last reset, and those of the server, as after a crash
    server_started_at: dt.datetime
    listed_at: dt.datetime  # by the source's clock


def check_fraction(table: Table, gone: int, rows: int, command: str = "run") -> None:
    """Raise TableError when more of a table's rows are gone from the source than may go in one run.

    `command` is the one that confirms it.
    """
    limit = table.config.max_delete_fraction
    if gone > limit * rows:
        raise TableError(
            f"{table.label}: {gone:,} of {rows:,} rows are gone from the source, more than "
            f"max_delete_fraction = {limit:g} of them; nothing was deleted: if that is meant, confirm it with "
            f"`etl {command} --allow-deletes {table.name}`, else mend the source"
        )


def why_reconcile(before: Counters | None, now: Counters, max_hours: float) -> str | None:
    """Return why a table has to be reconciled, None when nothing can have gone since `before`.

    `before` are the counters listed before the snapshot at which the table was last reconciled, or loaded.
    """
    if before is None:
        return "it never was"
    reasons = {
        f"the last time is {max_hours:g} hours ago": now.listed_at - before.listed_at >= dt.timedelta(hours=max_hours),
        "the source's clock was set back": now.listed_at < before.listed_at,
        "the source was restarted": now.server_started_at != before.server_started_at,
        "the source's table was truncated or rewritten": now.filenodes != before.filenodes,
        "rows were deleted": now.deleted != before.deleted,
        "the source's counters were reset": now.stats_reset != before.stats_reset
        or now.inserted < before.inserted
        or now.updated < before.updated,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
