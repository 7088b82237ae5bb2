"""What is open on the source: the listing that the fence decides by, and who holds a watermark back.

Begin at `list_activity`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from psycopg2.extensions import cursor as Cursor

from etl.model import Activity, Progress

# A virtual transaction whose session has just ended stays on the list: not knowing counts as open. Sessions of
# other databases cannot write here; autovacuum workers have no user.
LIST_TRANSACTIONS = """
    select l.virtualxid
    from pg_catalog.pg_locks as l
    left join pg_catalog.pg_stat_activity as a on a.pid = l.pid
    where l.locktype = 'virtualxid'
        and l.pid <> pg_catalog.pg_backend_pid()
        and (a.pid is null or (a.usesysid is not null and a.datname = pg_catalog.current_database()))
"""
# A walsender is active from the start of its stream on, without a transaction of its own; it counts by xact_start.
LIST_STARTS = """
    select
        exists (select from pg_catalog.pg_prepared_xacts where database = pg_catalog.current_database()),
        least(
            min(a.xact_start),
            min(a.query_start) filter (where a.state = 'active' and a.backend_type is distinct from 'walsender')
        ),
        pg_catalog.pg_postmaster_start_time()
    from pg_catalog.pg_stat_activity as a
    where a.pid <> pg_catalog.pg_backend_pid()
        and a.usesysid is not null
        and a.datname = pg_catalog.current_database()
"""
NAME_HOLDERS = """
    select a.pid, a.usename::text, a.application_name, a.state,
        extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::float8 as age_seconds
    from pg_catalog.pg_stat_activity as a
    where a.pid <> pg_catalog.pg_backend_pid() and a.usesysid is not null
        and a.datname = pg_catalog.current_database()
        and (
            a.xact_start <= %(as_of)s
            or exists (
                select from pg_catalog.pg_locks as l
                where l.pid = a.pid and l.locktype = 'virtualxid' and l.virtualxid = any (%(transactions)s)
            )
        )
    union all
    select null, p.owner::text, p.gid, 'prepared',
        extract(epoch from pg_catalog.clock_timestamp() - p.prepared)::float8
    from pg_catalog.pg_prepared_xacts as p
    where p.database = pg_catalog.current_database()
    order by age_seconds desc nulls last
"""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A transaction that holds a watermark back; unknown parts need pg_read_all_stats."""

    pid: int | None  # None: a prepared transaction
    user: str | None
    application: str | None  # of a prepared transaction its global id
    state: str | None
    age_seconds: float | None  # of a prepared transaction since it was prepared


def list_activity(cursor: Cursor, *, is_standby: bool) -> Activity:
    """List what is open: virtual transactions first, so that one that prepares meanwhile shows in either.

    A standby cannot tell what is open on its primary: there the declared lookback has to cover it.
    """
    transactions = frozenset() if is_standby else list_transactions(cursor)
    has_prepared, oldest_start, server_started_at = list_starts(cursor)
    return Activity(
        transactions=transactions,
        has_prepared=has_prepared and not is_standby,
        oldest_start=None if is_standby else oldest_start,
        server_started_at=server_started_at,
    )


def list_transactions(cursor: Cursor) -> frozenset[str]:
    cursor.execute(LIST_TRANSACTIONS)
    return frozenset(row[0] for row in cursor)


def list_starts(cursor: Cursor) -> tuple[bool, dt.datetime | None, dt.datetime]:
    cursor.execute(LIST_STARTS)
    row = cursor.fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def name_holders(cursor: Cursor, progress: Progress) -> list[Holder]:
    """Name the transactions that keep the points of a table from settling."""
    if not progress.points:
        return []
    held = sorted(set().union(*(point.transactions for point in progress.points)))
    cursor.execute(NAME_HOLDERS, {"transactions": held, "as_of": progress.points[0].as_of})
    return [
        Holder(pid=pid, user=user, application=application, state=state, age_seconds=age)
        for pid, user, application, state, age in cursor
    ]
