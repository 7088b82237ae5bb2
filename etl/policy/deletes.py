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
            f"`etl {command} --allow-deletes {table.argument}`, else mend the source"
        )


def may_lack_rows(before: Counters | None, now: Counters, max_hours: float) -> bool:
    """Tell whether rows may have gone from a source table, or others taken their place, since `before`.

    `before` are the counters listed before the snapshot at which the table was last reconciled, or loaded; None when
    it never was. A clock that was set back, a restart and reset statistics may hide deletes.
    """
    if before is None:
        return True
    return (
        now.deleted != before.deleted
        or now.filenodes != before.filenodes
        or now.stats_reset != before.stats_reset
        or now.inserted < before.inserted
        or now.updated < before.updated
        or now.server_started_at != before.server_started_at
        or not dt.timedelta() <= now.listed_at - before.listed_at < dt.timedelta(hours=max_hours)
    )
